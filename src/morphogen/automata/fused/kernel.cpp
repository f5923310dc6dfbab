// An update rule run for some NCA steps on a CPU, cell by cell: everything that a cell computes in a step stays in the
// caches, and the state is the only traffic with memory. Only cells that fire (and are active) are computed. Every
// cell's sums run in the same order whatever else is in its tile, so the result does not depend on tiles, threads or
// the batch.
//
// Compiled on the user's machine by build.py. Here is what Python calls.

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

}  // namespace

extern "C" {

// 2 where products are in bfloat16, 1 where in float32.
int nca_pair() { return PAIR; }
int nca_lanes() { return LANES; }

// perceive: (channels, 9 taps, wide). into_hidden: (hidden, z_padded), in the order of z. output: (channels, hidden).
void *nca_rule(int channels, int hidden, int embedding, int group, const float *perceive, const float *into_hidden,
               const float *output, const float *perceive_bias, const float *hidden_bias, const float *output_bias,
               const float *norm_weight, const float *norm_bias) {
    Rule *r = new Rule();
    r->channels = channels, r->hidden = hidden, r->embedding = embedding, r->group = group != 0;
    r->wide = round_up(channels + embedding, PAIR);
    r->channels_padded = round_up(channels, LANES);
    r->hidden_padded = round_up(hidden, LANES);
    r->z_width = r->wide + r->channels_padded;
    r->z_padded = round_up(r->z_width, LANES);
    r->perceive.pack(perceive, channels, 9 * r->wide);
    r->into_hidden.pack(into_hidden, hidden, r->z_width, r->z_padded);
    r->output.pack(output, channels, hidden);
    r->perceive_bias = padded(perceive_bias, channels, r->channels_padded);
    r->hidden_bias = padded(hidden_bias, hidden, r->hidden_padded);
    r->output_bias = padded(output_bias, channels, r->channels_padded);
    r->norm_weight = padded(norm_weight, hidden, r->hidden_padded);
    r->norm_bias = padded(norm_bias, hidden, r->hidden_padded);
    r->nothing.assign(std::max({r->z_padded, r->hidden_padded, round_up(channels + embedding, LANES), 1024}), 0.0f);
    r->output_back.pack_transposed(output, channels, hidden, r->channels_padded);
    r->into_hidden_back.pack_transposed(into_hidden, hidden, r->z_padded, r->hidden_padded);
    const int back_width = round_up(channels, PAIR);
    std::vector<float> back(static_cast<size_t>(channels + embedding) * 9 * back_width, 0.0f);
    for (int from = 0; from < channels; from++)
        for (int tap = 0; tap < 9; tap++)
            for (int to = 0; to < channels + embedding; to++)
                back[(static_cast<size_t>(to) * 9 + tap) * back_width + from] =
                    perceive[(static_cast<size_t>(from) * 9 + tap) * r->wide + to];
    r->perceive_back.pack(back.data(), channels + embedding, 9 * back_width);
    return r;
}

// The networks that make scale1 (in the order of z, padded) and scale2.
void nca_mappings(void *rule, int mapping_hidden, const float *first1, const float *first_bias1, const float *second1,
                  const float *second_bias1, const float *first2, const float *first_bias2, const float *second2,
                  const float *second_bias2, int embed_hidden, const float *embed_out, const float *embed_out_bias) {
    Rule *r = static_cast<Rule *>(rule);
    fill(r->scale1, r->embedding, mapping_hidden, r->z_padded, first1, first_bias1, second1, second_bias1);
    fill(r->scale2, r->embedding, mapping_hidden, r->hidden, first2, first_bias2, second2, second_bias2);
    r->embed_hidden = embed_hidden;
    r->embed_out.assign(embed_out, embed_out + static_cast<size_t>(r->embedding) * embed_hidden);
    r->embed_out_bias.assign(embed_out_bias, embed_out_bias + r->embedding);
}

void nca_free(void *rule) { delete static_cast<Rule *>(rule); }

// state: (batch, height, width, channels), changed in place. See Plan for the others.
void nca_run(void *rule, float *state, int batch, int height, int width, int reflect, int steps, int images,
             const float *perceive_bias, const float *hidden_bias, const float *scale1, const float *scale2,
             const float *by_x, const float *by_y, const uint8_t *fire, const int32_t *cells, int cell_count,
             int threads) {
    const Rule &r = *static_cast<Rule *>(rule);
    Plan p{steps, batch, height, width, reflect != 0, images, perceive_bias, hidden_bias, scale1, scale2, by_x, by_y,
           fire, cells, cell_count, std::max(1, threads)};
    Grid g(r, p);
    std::vector<Element> history(2 * g.size());
    Forward(g, state, history.data(), false, nullptr).run();
}

// As nca_run, keeping every step's state for nca_backward in `history`, of nca_history numbers of PAIR's kind, and the
// statistics of the group norm in `statistics` (steps, batch, 2).
void nca_forward(void *rule, float *state, int batch, int height, int width, int reflect, int steps, int images,
                 const float *perceive_bias, const float *hidden_bias, const float *scale1, const float *scale2,
                 const float *by_x, const float *by_y, const uint8_t *fire, const int32_t *cells, int cell_count,
                 int threads, void *history, float *statistics) {
    const Rule &r = *static_cast<Rule *>(rule);
    Plan p{steps, batch, height, width, reflect != 0, images, perceive_bias, hidden_bias, scale1, scale2, by_x, by_y,
           fire, cells, cell_count, std::max(1, threads)};
    Grid g(r, p);
    Forward(g, state, static_cast<Element *>(history), true, reinterpret_cast<Statistics *>(statistics)).run();
}

// Bytes of `history`.
int64_t nca_history(void *rule, int batch, int height, int width, int steps) {
    const Rule &r = *static_cast<Rule *>(rule);
    Plan p{};
    p.batch = batch, p.height = height, p.width = width;
    return static_cast<int64_t>(Grid(r, p).size()) * (steps + 1) * sizeof(Element);
}

// gradient: of the last state, (batch, height, width, channels); becomes that of the first. Tables are one an image.
// outputs: 22 arrays in the order of Outputs, added to.
void nca_backward(void *rule, float *gradient, int batch, int height, int width, int reflect, int steps, int images,
                  const float *perceive_bias, const float *hidden_bias, const float *scale1, const float *scale2,
                  const float *by_x, const float *by_y, const uint8_t *fire, const int32_t *cells, int cell_count,
                  int threads, void *history, const float *statistics, float *const *outputs) {
    const Rule &r = *static_cast<Rule *>(rule);
    Plan p{steps, batch, height, width, reflect != 0, images, perceive_bias, hidden_bias, scale1, scale2, by_x, by_y,
           fire, cells, cell_count, std::max(1, threads)};
    Grid g(r, p);
    Outputs out;
    static_assert(sizeof(Outputs) == 22 * sizeof(float *), "the order that Python knows");
    std::memcpy(&out, outputs, sizeof out);
    Backward(g, static_cast<Element *>(history), reinterpret_cast<const Statistics *>(statistics), gradient, out).run();
}

// Which cells fire: the words of Philox4x32-10 at absolute positions, as in core/random.py. keys: (blocks, batch), one
// for every four steps. fire: (steps, batch, height, width); active: (batch, height, width), or null.
void nca_fire(const uint64_t *keys, const int64_t *origins, int batch, int height, int width, int steps,
              uint64_t threshold, const uint8_t *active, uint8_t *fire, int threads) {
    const long image = static_cast<long>(height) * width;
    const auto line = [&](int block, int b, int y) {
        const uint64_t key = keys[block * batch + b], row = static_cast<uint64_t>(origins[2 * b] + y);
        uint8_t *to = fire + (static_cast<long>(block) * 4 * batch + b) * image + static_cast<long>(y) * width;
        const uint8_t *alive = active ? active + b * image + static_cast<long>(y) * width : nullptr;
        const int words = std::min(4, steps - 4 * block);
        for (int x = 0; x < width; x++) {
            if (alive && !alive[x]) {
                for (int word = 0; word < words; word++) to[word * batch * image + x] = 0;
                continue;
            }
            const uint64_t column = static_cast<uint64_t>(origins[2 * b + 1] + x);
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
            for (int word = 0; word < words; word++) to[word * batch * image + x] = c[word] < threshold;
        }
    };
    threads = std::max(1, threads);
    in_threads(threads, [&](int thread) {
        for (int block = 0; block < (steps + 3) / 4; block++)
            for (int i = thread; i < batch * height; i += threads) line(block, i / height, i % height);
    });
}
}
