// An update rule run for some NCA steps on a CPU, cell by cell: everything that a cell computes in a step stays in the
// caches, and the state is the only traffic with memory. Only cells that fire (and are active) are computed. Every
// cell's sums run in the same order whatever else is in its tile, so the result does not depend on tiles, threads or
// the batch.
//
// Here is what Python calls (cpu_autograd.py); abi.h has the arguments. Every function but the first four returns 0, or
// 1 where it failed and kernel_error says why.

#include "backward.h"

namespace {

void fill(Mapping &m, int embedding, int hidden, int outputs, const float *first, const float *first_bias,
          const float *second, const float *second_bias) {
    m.hidden = hidden, m.outputs = outputs;
    m.first.assign(static_cast<size_t>(embedding) * m.width(), 0.0f);
    for (int e = 0; e < embedding; e++)
        for (int k = 0; k < hidden; k++) m.first[e * m.width() + k] = first[k * embedding + e];
    m.first_bias = padded(first_bias, hidden, m.width());
    m.second.pack(second, outputs, hidden);
    m.second_bias = padded(second_bias, outputs, m.second.outputs);
    m.second_back.pack_transposed(second, outputs, hidden, m.second.outputs);
}

Rule *make_rule(const RuleWeights &w) {
    if (w.embedding > MAX_EMBEDDING) throw std::invalid_argument("the embedding is wider than the kernel's");
    if (w.embed_hidden % LANES) throw std::invalid_argument("embed_hidden is not padded");
    auto made = std::make_unique<Rule>();
    Rule &r = *made;
    const int channels = w.channels, hidden = w.hidden, embedding = w.embedding;
    r.channels = channels, r.hidden = hidden, r.embedding = embedding, r.group = w.group != 0;
    r.norm_epsilon = w.norm_epsilon, r.leaky_slope = static_cast<float>(w.leaky_slope);
    r.wide = round_up(channels + embedding, PAIR);
    r.channels_padded = round_up(channels, LANES);
    r.hidden_padded = round_up(hidden, LANES);
    r.z_width = r.wide + r.channels_padded;
    r.z_padded = round_up(r.z_width, LANES);
    r.perceive.pack(w.perceive, channels, 9 * r.wide);
    r.into_hidden.pack(w.into_hidden, hidden, r.z_width, r.z_padded);
    r.output.pack(w.output, channels, hidden);
    r.perceive_bias = padded(w.perceive_bias, channels, r.channels_padded);
    r.hidden_bias = padded(w.hidden_bias, hidden, r.hidden_padded);
    r.output_bias = padded(w.output_bias, channels, r.channels_padded);
    r.norm_weight = padded(w.norm_weight, hidden, r.hidden_padded);
    r.norm_bias = padded(w.norm_bias, hidden, r.hidden_padded);
    const int mapping_padded = round_up(w.mapping_hidden, LANES);
    r.nothing.assign(
        std::max({r.z_padded, r.hidden_padded, round_up(channels + embedding, LANES), mapping_padded}), 0.0f);
    r.output_back.pack_transposed(w.output, channels, hidden, r.channels_padded);
    r.into_hidden_back.pack_transposed(w.into_hidden, hidden, r.z_padded, r.hidden_padded);
    const int back_width = round_up(channels, PAIR);
    std::vector<float> back(static_cast<size_t>(channels + embedding) * 9 * back_width, 0.0f);
    for (int from = 0; from < channels; from++)
        for (int tap = 0; tap < 9; tap++)
            for (int to = 0; to < channels + embedding; to++)
                back[(static_cast<size_t>(to) * 9 + tap) * back_width + from] =
                    w.perceive[(static_cast<size_t>(from) * 9 + tap) * r.wide + to];
    r.perceive_back.pack(back.data(), channels + embedding, 9 * back_width);
    if (w.embed_out) {
        fill(r.scale1, embedding, w.mapping_hidden, r.z_padded, w.scale1_first, w.scale1_first_bias, w.scale1_second,
             w.scale1_second_bias);
        fill(r.scale2, embedding, w.mapping_hidden, hidden, w.scale2_first, w.scale2_first_bias, w.scale2_second,
             w.scale2_second_bias);
        r.embed_hidden = w.embed_hidden;
        r.embed_out.assign(w.embed_out, w.embed_out + static_cast<size_t>(embedding) * w.embed_hidden);
        r.embed_out_bias.assign(w.embed_out_bias, w.embed_out_bias + embedding);
    }
    return made.release();
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

const char *kernel_abi() { return describe(); }
const char *kernel_error() { return last_error; }

// 2 where products are in bfloat16, 1 where in float32.
int nca_pair() { return PAIR; }
int nca_lanes() { return LANES; }

int nca_rule(const RuleWeights *weights, void **rule) {
    return guarded([&] { *rule = make_rule(*weights); });
}

void nca_free(void *rule) { delete static_cast<Rule *>(rule); }

int nca_run(const void *rule, const RunArguments *run) {
    return guarded([&] {
        Grid g(*static_cast<const Rule *>(rule), *run);
        std::vector<Element> history(2 * g.size());
        Forward(g, history.data(), false, nullptr).run();
    });
}

// As nca_run, keeping what nca_backward needs in `history` and `statistics`.
int nca_forward(const void *rule, const RunArguments *run) {
    return guarded([&] {
        Grid g(*static_cast<const Rule *>(rule), *run);
        Forward(g, static_cast<Element *>(run->history), true, reinterpret_cast<Statistics *>(run->statistics)).run();
    });
}

// Bytes of `history`.
int nca_history(const void *rule, const RunArguments *run, int64_t *bytes) {
    return guarded([&] {
        const Grid g(*static_cast<const Rule *>(rule), *run);
        *bytes = static_cast<int64_t>(g.size()) * (run->steps + 1) * sizeof(Element);
    });
}

int nca_backward(const void *rule, const RunArguments *run, const RuleGradients *gradients) {
    return guarded([&] {
        Grid g(*static_cast<const Rule *>(rule), *run);
        Backward(g, *gradients).run();
    });
}

// The words of Philox4x32-10 at absolute positions, as in core/random.py.
int nca_fire(const FireArguments *arguments) {
    const FireArguments &a = *arguments;
    const long image = static_cast<long>(a.height) * a.width;
    const auto line = [&](int block, int b, int y) {
        const uint64_t key = a.keys[block * a.batch + b], row = static_cast<uint64_t>(a.origins[2 * b]) + y;
        uint8_t *to = a.fire + (static_cast<long>(block) * 4 * a.batch + b) * image + static_cast<long>(y) * a.width;
        const uint8_t *alive = a.active ? a.active + b * image + static_cast<long>(y) * a.width : nullptr;
        const int words = std::min(4, a.steps - 4 * block);
        for (int x = 0; x < a.width; x++) {
            if (alive && !alive[x]) {
                for (int word = 0; word < words; word++) to[word * a.batch * image + x] = 0;
                continue;
            }
            const uint64_t column = static_cast<uint64_t>(a.origins[2 * b + 1]) + x;
            uint32_t c[4] = {static_cast<uint32_t>(column), static_cast<uint32_t>(column >> 32),
                             static_cast<uint32_t>(row), static_cast<uint32_t>(row >> 32)};
            uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
            for (int i = 0; i < 10; i++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
                const uint64_t p0 = static_cast<uint64_t>(c[0]) * 0xD2511F53u;
                const uint64_t p1 = static_cast<uint64_t>(c[2]) * 0xCD9E8D57u;
                const uint32_t d[4] = {static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k0, static_cast<uint32_t>(p1),
                                       static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k1, static_cast<uint32_t>(p0)};
                std::memcpy(c, d, sizeof c);
            }
            for (int word = 0; word < words; word++) to[word * a.batch * image + x] = c[word] < a.threshold;
        }
    };
    const int threads = std::max(1, a.threads);
    return guarded([&] {
        in_threads(threads, [&](int thread) noexcept {
            for (int block = 0; block < (a.steps + 3) / 4; block++)
                for (int i = thread; i < a.batch * a.height; i += threads) line(block, i / a.height, i % a.height);
        });
    });
}
}
#pragma GCC visibility pop
