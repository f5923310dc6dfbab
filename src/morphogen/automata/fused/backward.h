// Gradients of a run: step by step backwards from the states that the forward pass kept, everything else computed
// again. Blocks of cells are dealt out to threads in a fixed way and sums are added in a fixed order, so that the same
// number of threads gives the same bits.

#pragma once

#include "forward.h"

namespace {

// Gradients of a mapping's weights, laid out as the kernel needs them: inputs before outputs.
struct MappingSums {
    std::vector<float> first, first_bias, second, second_bias;
    void size(const Mapping &m, int embedding) {
        first.assign(static_cast<size_t>(embedding) * m.width(), 0.0f);
        first_bias.assign(m.width(), 0.0f);
        second.assign(static_cast<size_t>(m.width()) * m.second.outputs, 0.0f);
        second_bias.assign(m.second.outputs, 0.0f);
    }
};

// What one thread adds up; the last four are of the step in hand, a row for each image where the embedding is a vector.
struct Sums {
    std::vector<float> perceive, hidden, output, output_bias, norm_weight, norm_bias;
    MappingSums scale1_map, scale2_map;
    std::vector<float> embed_out, embed_out_bias, by_x;
    std::vector<float> perceive_bias, hidden_bias, scale1, scale2;

    Sums(const Rule &r, const RunArguments &p)
        : perceive(static_cast<size_t>(9) * r.wide * r.channels_padded),
          hidden(static_cast<size_t>(r.z_padded) * r.hidden_padded),
          output(static_cast<size_t>(r.channels_padded) * r.hidden_padded), output_bias(r.channels_padded),
          norm_weight(r.hidden_padded), norm_bias(r.hidden_padded), embed_out(static_cast<size_t>(r.embedding) * r.embed_hidden),
          embed_out_bias(r.embedding), by_x(p.per_cell_embedding() ? static_cast<size_t>(p.width) * r.embed_hidden : 0),
          perceive_bias(static_cast<size_t>(p.batch) * r.channels_padded),
          hidden_bias(static_cast<size_t>(p.batch) * r.hidden_padded),
          scale1(static_cast<size_t>(p.batch) * r.z_padded), scale2(static_cast<size_t>(p.batch) * r.hidden_padded) {
        if (p.per_cell_embedding()) {
            scale1_map.size(r.scale1, r.embedding);
            scale2_map.size(r.scale2, r.embedding);
        }
    }
};

inline void add(float *to, const std::vector<float> &from) {
    for (size_t i = 0; i < from.size(); i++) to[i] += from[i];
}

struct BackWork : Work {
    std::vector<float> raw, normal, d_hidden, d_z, d_mapped;
    std::vector<Element> d_change, d_before_norm, d_perceived, d_scale1, d_scale2, left, right;
    Statistics found[TILE];
    explicit BackWork(const Rule &r)
        : Work(r), raw(static_cast<size_t>(TILE) * r.channels_padded), normal(static_cast<size_t>(TILE) * r.hidden_padded),
          d_hidden(static_cast<size_t>(TILE) * r.hidden_padded), d_z(static_cast<size_t>(TILE) * r.z_padded),
          d_mapped(static_cast<size_t>(TILE) * std::max(r.scale1.width(), r.scale2.width())),
          d_change(static_cast<size_t>(TILE) * r.channels_padded), d_before_norm(static_cast<size_t>(TILE) * r.hidden_padded),
          d_perceived(static_cast<size_t>(TILE) * r.channels_padded), d_scale1(static_cast<size_t>(TILE) * r.z_padded),
          d_scale2(static_cast<size_t>(TILE) * r.hidden_padded),
          left(static_cast<size_t>(TILE + PAIR) * std::max({r.z_padded, r.hidden_padded, r.scale1.width(), r.wide})),
          right(static_cast<size_t>(TILE + PAIR) * std::max(r.z_padded, r.hidden_padded)) {}
};

// sums (left_width, right_width) += the outer products of a tile's rows.
void outer_rows(BackWork &w, const Element *left, int left_width, const Element *right, int right_width, int count,
                float *sums) {
    const Element *rows[TILE];
    for (int i = 0; i < count; i++) rows[i] = left + static_cast<long>(i) * left_width;
    weave(rows, 0, count, left_width, w.left.data());
    for (int i = 0; i < count; i++) rows[i] = right + static_cast<long>(i) * right_width;
    weave(rows, 0, count, right_width, w.right.data());
    outer(w.left.data(), left_width, w.right.data(), right_width, count, sums);
}

struct Backward {
    Grid &g;
    const Rule &r;
    const RunArguments &p;
    Element *history;
    const Statistics *statistics;  // (steps, batch), for the group norm
    float *gradient;               // (batch, height, width, channels): of the last state, then of the first
    const RuleGradients &out;
    Barrier barrier;
    int block_count, back_width;
    long back_row, back_image;
    std::vector<Element> d_perceived;  // (batch, height + 4, width + 4, back_width), zero at the border
    std::vector<float> d_embedded;     // (batch, height, width, embedding)
    std::vector<Sums> sums;            // one a thread
    std::vector<Element> kept;         // (cells, batch, hidden_padded): gradient before the group norm
    std::vector<double> partial;       // (blocks, batch, 2): its sums
    std::vector<BackWork> works;       // one a thread
    std::vector<std::pair<int, int>> border;  // (y, x) of the cells that mirror others

    Backward(Grid &grid, const RuleGradients &gradients)
        : g(grid), r(grid.rule), p(grid.run), history(static_cast<Element *>(p.history)),
          statistics(reinterpret_cast<const Statistics *>(p.statistics)), gradient(p.state), out(gradients),
          barrier(p.threads), block_count((p.cell_count + TILE - 1) / TILE), back_width(round_up(r.channels, PAIR)),
          back_row(static_cast<long>(p.width + 4) * back_width), back_image(back_row * (p.height + 4)),
          d_perceived(static_cast<size_t>(back_image) * p.batch + 2 * LANES * PAIR),
          d_embedded(p.per_cell_embedding() ? static_cast<size_t>(p.batch) * p.height * p.width * r.embedding : 0),
          sums(p.threads, Sums(r, p)), works(p.threads, BackWork(r)) {
        for (int x = -1; x <= p.width; x++) border.emplace_back(-1, x), border.emplace_back(p.height, x);
        for (int y = 0; y < p.height; y++) border.emplace_back(y, -1), border.emplace_back(y, p.width);
        if (r.group) {
            kept.resize(static_cast<size_t>(p.cell_count) * p.batch * r.hidden_padded);
            partial.resize(static_cast<size_t>(block_count) * p.batch * 2);
        }
    }

    void run() {
        in_threads(p.threads, [this](int thread) noexcept { work(thread); });
    }

    long back_place(int b, int y, int x) const { return b * back_image + (y + 2) * back_row + static_cast<long>(x + 2) * back_width; }
    float *gradient_of(int b, int position) {
        return gradient + (static_cast<long>(b) * p.height * p.width + position) * r.channels;
    }
    float *embedded_of(int b, int position) {
        return &d_embedded[(static_cast<long>(b) * p.height * p.width + position) * r.embedding];
    }
    // The sums that a step's biases and scales go to: a row for each image, or one for all where they are maps.
    int image_row(int b) const { return p.per_cell_embedding() ? 0 : b; }

    template <class Body> void blocks(int thread, const Body &body) {
        for (int block = thread; block < block_count; block += p.threads)
            body(block, block * TILE, std::min((block + 1) * TILE, p.cell_count));
        barrier.wait();
    }

    void work(int thread) {
        BackWork &w = works[thread];
        for (int step = p.steps - 1; step >= 0; step--) {
            Element *now = history + static_cast<size_t>(step) * g.size();
            embed(g, step, thread, now);  // writes what is there already
            share(thread, d_embedded, 0.0f);
            barrier.wait();
            Sums &s = sums[thread];
            blocks(thread, [&](int block, int begin, int end) {
                for (int b = 0; b < p.batch; b++) {
                    map_embeddings(g, b, begin, end, w, true, true);
                    Tile t(b);
                    for (int i = begin; i < end; i++) {
                        if (p.fires(step, b, p.cells[i]))
                            t.add(p.cells[i], i - begin);
                        else if (!r.group)
                            std::memset(&d_perceived[back_place(b, p.cells[i])], 0, back_width * sizeof(Element));
                    }
                    after_norm(step, t, w, s, now);
                    if (r.group)
                        keep(block, begin, t, w);
                    else
                        before_norm(step, t, w, s, now);
                }
            });
            if (r.group)
                blocks(thread, [&](int, int begin, int end) {
                    for (int b = 0; b < p.batch; b++) {
                        map_embeddings(g, b, begin, end, w, true, true);
                        Tile t(b);
                        for (int i = begin; i < end; i++) t.add(p.cells[i], i - begin);
                        through_group_norm(step, begin, t, w, now);
                        before_norm(step, t, w, s, now);
                    }
                });
            blocks(thread, [&](int, int begin, int end) {
                for (int b = 0; b < p.batch; b++) gather(b, begin, end);
            });
            if (p.reflect)
                for (int b = thread; b < p.batch; b += p.threads) fold_border(b);
            barrier.wait();
            if (p.per_cell_embedding()) back_through_embedding(step, thread, s);
            barrier.wait();
            if (thread == 0) collect(step);
            barrier.wait();
        }
    }

    long back_place(int b, int position) const { return back_place(b, position / p.width, position % p.width); }

    void share(int thread, std::vector<float> &values, float value) {
        const size_t part = (values.size() + p.threads - 1) / p.threads;
        const size_t begin = std::min(values.size(), part * thread), end = std::min(values.size(), begin + part);
        std::fill(values.begin() + begin, values.begin() + end, value);
    }

    // Compute a tile's step again; then the gradient of the normalised hidden layer, into w.d_hidden, and with `cell`
    // norm through it, into w.d_before_norm.
    void after_norm(int step, const Tile &t, BackWork &w, Sums &s, const Element *now) {
        perceive_and_hide(g, step, t, w, now, nullptr, w.raw.data());
        const Statistics *of = r.group ? statistics + static_cast<long>(step) * p.batch + t.b : nullptr;
        activate(g, step, t, w, of, w.normal.data(), w.found);
        const Element *rows[TILE];
        for (int i = 0; i < t.count; i++) {
            Element *to = &w.d_change[static_cast<size_t>(i) * r.channels_padded];
            const float *from = gradient_of(t.b, t.position[i]);
            rows[i] = to;
            for (int k = 0; k < r.channels_padded; k++) to[k] = to_element(k < r.channels ? from[k] : 0.0f);
            for (int k = 0; k < r.channels; k++) s.output_bias[k] += from[k];
        }
        const long none = 0;
        product(rows, t.count, &none, 1, r.output_back, r.nothing.data(),
                [&](int i, int j, Vector v) { store(&w.d_hidden[static_cast<size_t>(i) * r.hidden_padded + j], v); });
        outer_rows(w, w.d_change.data(), r.channels_padded, w.activated.data(), r.hidden_padded, t.count, s.output.data());
        const Scales scales(g, w, step, t.b);
        float *d_scale2 = &s.scale2[static_cast<size_t>(image_row(t.b)) * r.hidden_padded];
        for (int i = 0; i < t.count; i++) {
            const float *by = scales.second + t.slot[i] * scales.second_stride;
            const float *normal = &w.normal[static_cast<size_t>(i) * r.hidden_padded];
            float *d = &w.d_hidden[static_cast<size_t>(i) * r.hidden_padded];
            Vector sum = {}, with_normal = {};
            for (int k = 0; k < r.hidden_padded; k += LANES) {
                const Vector n = load(normal + k), d_activated = load(d + k);
                const Vector gain = r.group ? load(&r.norm_weight[k]) : splat(1.0f);
                const Vector y = r.group ? n * gain + load(&r.norm_bias[k]) : n;
                const Vector d_scale = d_activated * leaky(y, r.leaky_slope);
                if (p.per_cell_embedding())
                    store_element(&w.d_scale2[static_cast<size_t>(i) * r.hidden_padded + k], d_scale);
                else
                    store(d_scale2 + k, load(d_scale2 + k) + d_scale);
                const Vector d_y = d_activated * load(by + k) * (y > 0.0f ? splat(1.0f) : splat(r.leaky_slope));
                if (r.group) {
                    store(&s.norm_weight[k], load(&s.norm_weight[k]) + d_y * n);
                    store(&s.norm_bias[k], load(&s.norm_bias[k]) + d_y);
                }
                const Vector d_n = d_y * gain;
                store(d + k, d_n);
                sum += d_n;
                with_normal += d_n * n;
            }
            if (r.group) continue;
            const float mean = total(sum) / r.hidden, slope = total(with_normal) / r.hidden, scale = w.found[i].scale;
            Element *to = &w.d_before_norm[static_cast<size_t>(i) * r.hidden_padded];
            for (int k = 0; k < r.hidden_padded; k += LANES)
                store_element(to + k, (load(d + k) - mean - load(normal + k) * slope) * scale);
            clear_padding(to);
        }
        if (p.per_cell_embedding()) back_through_mapping(r.scale2, s.scale2_map, t, w, w.d_scale2.data());
    }

    void clear_padding(Element *hidden) {
        for (int k = r.hidden; k < r.hidden_padded; k++) hidden[k] = to_element(0.0f);
    }

    void keep(int block, int begin, const Tile &t, const BackWork &w) {
        double sum = 0, with_normal = 0;
        for (int i = 0; i < t.count; i++) {
            Element *to = &kept[(static_cast<size_t>(begin + t.slot[i]) * p.batch + t.b) * r.hidden_padded];
            const float *d = &w.d_hidden[static_cast<size_t>(i) * r.hidden_padded];
            const float *normal = &w.normal[static_cast<size_t>(i) * r.hidden_padded];
            Vector one = {}, other = {};
            for (int k = 0; k < r.hidden_padded; k += LANES) {
                one += load(d + k);
                other += load(d + k) * load(normal + k);
                store_element(to + k, load(d + k));
            }
            sum += total(one), with_normal += total(other);
        }
        partial[(static_cast<size_t>(block) * p.batch + t.b) * 2] = sum;
        partial[(static_cast<size_t>(block) * p.batch + t.b) * 2 + 1] = with_normal;
    }

    // The group norm's statistics are of all cells, so all have a gradient, fired or not.
    void through_group_norm(int step, int begin, const Tile &t, BackWork &w, const Element *now) {
        const Statistics of = statistics[static_cast<long>(step) * p.batch + t.b];
        perceive_and_hide(g, step, t, w, now, nullptr, w.raw.data());
        double sum = 0, with_normal = 0;
        for (int i = 0; i < block_count; i++) {
            sum += partial[(static_cast<size_t>(i) * p.batch + t.b) * 2];
            with_normal += partial[(static_cast<size_t>(i) * p.batch + t.b) * 2 + 1];
        }
        const double count = static_cast<double>(p.cell_count) * r.hidden;
        const float mean = static_cast<float>(sum / count), slope = static_cast<float>(with_normal / count);
        for (int i = 0; i < t.count; i++) {
            const bool fired = p.fires(step, t.b, t.position[i]);
            const Element *d = &kept[(static_cast<size_t>(begin + t.slot[i]) * p.batch + t.b) * r.hidden_padded];
            Element *to = &w.d_before_norm[static_cast<size_t>(i) * r.hidden_padded];
            const float *hidden = &w.hidden[static_cast<size_t>(i) * r.hidden_padded];
            for (int k = 0; k < r.hidden_padded; k += LANES) {
                const Vector n = (load(hidden + k) - of.mean) * of.scale;
                const Vector own = fired ? load_element(d + k) : splat(0.0f);
                store_element(to + k, (own - mean - n * slope) * of.scale);
            }
            clear_padding(to);
        }
    }

    // From the hidden layer before its normalisation (w.d_before_norm) back to the state, the embedding and d_perceived.
    void before_norm(int step, const Tile &t, BackWork &w, Sums &s, const Element *now) {
        const Element *rows[TILE];
        float *d_bias = &s.hidden_bias[static_cast<size_t>(image_row(t.b)) * r.hidden_padded];
        for (int i = 0; i < t.count; i++) {
            rows[i] = &w.d_before_norm[static_cast<size_t>(i) * r.hidden_padded];
            for (int k = 0; k < r.hidden_padded; k += LANES) store(d_bias + k, load(d_bias + k) + load_element(rows[i] + k));
        }
        const long none = 0;
        product(rows, t.count, &none, 1, r.into_hidden_back, r.nothing.data(),
                [&](int i, int j, Vector v) { store(&w.d_z[static_cast<size_t>(i) * r.z_padded + j], v); });
        outer_rows(w, w.z.data(), r.z_padded, w.d_before_norm.data(), r.hidden_padded, t.count, s.hidden.data());
        const Scales scales(g, w, step, t.b);
        float *d_scale1 = &s.scale1[static_cast<size_t>(image_row(t.b)) * r.z_padded];
        d_bias = &s.perceive_bias[static_cast<size_t>(image_row(t.b)) * r.channels_padded];
        for (int i = 0; i < t.count; i++) {
            const float *by = scales.first + t.slot[i] * scales.first_stride;
            const float *d_z = &w.d_z[static_cast<size_t>(i) * r.z_padded];
            const Element *cell = now + g.place(t.b, t.position[i]);
            Element *d_own = &w.d_scale1[static_cast<size_t>(i) * r.z_padded];
            float *d_state = gradient_of(t.b, t.position[i]);
            const auto scale_gradient = [&](int k, float value) {
                if (p.per_cell_embedding())
                    d_own[k] = to_element(value);
                else
                    d_scale1[k] += value;
            };
            for (int k = 0; k < r.channels; k++) {
                scale_gradient(k, d_z[k] * to_float(cell[k]));
                d_state[k] += d_z[k] * by[k];
            }
            for (int e = 0, k = r.channels; e < r.embedding; e++, k++) {
                scale_gradient(k, d_z[k] * g.embedding(t.b, t.position[i])[e]);
                embedded_of(t.b, t.position[i])[e] += d_z[k] * by[k];
            }
            for (int k = r.channels + r.embedding; k < r.wide; k++) scale_gradient(k, 0.0f);
            Element *d_perceived_here = &w.d_perceived[static_cast<size_t>(i) * r.channels_padded];
            for (int k = 0; k < r.channels_padded; k += LANES) {
                const Vector d = load(d_z + r.wide + k), back = d * load(by + r.wide + k);
                const Vector d_scale = d * load(&w.raw[static_cast<size_t>(i) * r.channels_padded + k]);
                if (p.per_cell_embedding())
                    store_element(d_own + r.wide + k, d_scale);
                else
                    store(d_scale1 + r.wide + k, load(d_scale1 + r.wide + k) + d_scale);
                store_element(d_perceived_here + k, back);
                store(d_bias + k, load(d_bias + k) + back);
            }
            if (p.per_cell_embedding())
                for (int k = r.z_width; k < r.z_padded; k++) d_own[k] = to_element(0.0f);
            std::memcpy(&d_perceived[back_place(t.b, t.position[i])], d_perceived_here, back_width * sizeof(Element));
        }
        for (int i = 0; i < t.count; i++) rows[i] = &w.d_perceived[static_cast<size_t>(i) * r.channels_padded];
        weave(rows, 0, t.count, r.channels_padded, w.right.data());
        for (int i = 0; i < t.count; i++) rows[i] = now + g.place(t.b, t.position[i]);
        long taps[9];
        neighbours(g, r.wide, taps, 1);
        for (int tap = 0; tap < 9; tap++) {
            weave(rows, taps[tap], t.count, r.wide, w.left.data());
            outer(w.left.data(), r.wide, w.right.data(), r.channels_padded, t.count,
                  &s.perceive[static_cast<size_t>(tap) * r.wide * r.channels_padded]);
        }
        if (p.per_cell_embedding()) back_through_mapping(r.scale1, s.scale1_map, t, w, w.d_scale1.data());
    }

    // From a mapping's output (count, outputs in LANES) back to its weights and to the embedding.
    void back_through_mapping(const Mapping &m, MappingSums &s, const Tile &t, BackWork &w, const Element *d_out) {
        const int outputs = m.second.outputs;
        const Element *rows[TILE];
        for (int i = 0; i < t.count; i++) {
            rows[i] = d_out + static_cast<long>(i) * outputs;
            const float *embedded = g.embedding(t.b, t.position[i]);
            for (int k = 0; k < m.width(); k += LANES)
                store_element(&w.mapped[static_cast<size_t>(i) * m.width() + k], silu(before_silu(m, embedded, r.embedding, k)));
            for (int k = 0; k < outputs; k += LANES)
                store(&s.second_bias[k], load(&s.second_bias[k]) + load_element(rows[i] + k));
        }
        const long none = 0;
        product(rows, t.count, &none, 1, m.second_back, r.nothing.data(),
                [&](int i, int j, Vector v) { store(&w.d_mapped[static_cast<size_t>(i) * m.width() + j], v); });
        outer_rows(w, w.mapped.data(), m.width(), d_out, outputs, t.count, s.second.data());
        for (int i = 0; i < t.count; i++) {
            const float *embedded = g.embedding(t.b, t.position[i]);
            Vector d_embedding[MAX_EMBEDDING] = {};
            for (int k = 0; k < m.width(); k += LANES) {
                const Vector x = before_silu(m, embedded, r.embedding, k), open = 1.0f / (1.0f + exponential(-x));
                const Vector d = load(&w.d_mapped[static_cast<size_t>(i) * m.width() + k]) * open * (1.0f + x * (1.0f - open));
                store(&s.first_bias[k], load(&s.first_bias[k]) + d);
                for (int e = 0; e < r.embedding; e++) {
                    float *to = &s.first[static_cast<size_t>(e) * m.width() + k];
                    store(to, load(to) + embedded[e] * d);
                    d_embedding[e] += d * load(&m.first[static_cast<size_t>(e) * m.width() + k]);
                }
            }
            for (int e = 0; e < r.embedding; e++) embedded_of(t.b, t.position[i])[e] += total(d_embedding[e]);
        }
    }

    // What cells of `rows` get back from the perceptions of their neighbours, added by `to(row, channel, value)`.
    template <class To> void transposed(const Element *const *rows, int count, const To &to) {
        long taps[9];
        for (int i = 0; i < 9; i++) taps[i] = -((i / 3 - 1) * back_row + static_cast<long>(i % 3 - 1) * back_width);
        product(rows, count, taps, 9, r.perceive_back, r.nothing.data(), to);
    }

    void receive(int b, int position, int j, Vector v) {
        float *d_state = gradient_of(b, position);
        if (j + LANES <= r.channels) {
            store(d_state + j, load(d_state + j) + v);
            return;
        }
        for (int k = j; k < j + LANES && k < r.channels + r.embedding; k++)
            (k < r.channels ? d_state[k] : embedded_of(b, position)[k - r.channels]) += v[k - j];
    }

    void gather(int b, int begin, int end) {
        const Element *rows[TILE];
        for (int i = begin; i < end; i++) rows[i - begin] = &d_perceived[back_place(b, p.cells[i])];
        transposed(rows, end - begin, [&](int i, int j, Vector v) { receive(b, p.cells[begin + i], j, v); });
    }

    // The border mirrors cells of the image, which get its gradient too.
    void fold_border(int b) {
        const auto inside = [](int i, int size) { return i < 0 ? 1 : i == size ? size - 2 : i; };
        const Element *rows[TILE];
        for (size_t first = 0; first < border.size(); first += TILE) {
            const int count = static_cast<int>(std::min<size_t>(TILE, border.size() - first));
            for (int i = 0; i < count; i++)
                rows[i] = &d_perceived[back_place(b, border[first + i].first, border[first + i].second)];
            transposed(rows, count, [&](int i, int j, Vector v) {
                const auto [y, x] = border[first + i];
                receive(b, inside(y, p.height) * p.width + inside(x, p.width), j, v);
            });
        }
    }

    // From the embedding of each cell back to the tables of its first layer. A thread has rows of its own.
    void back_through_embedding(int step, int thread, Sums &s) {
        for (int b = 0; b < p.batch; b++)
            for (int y = thread; y < p.height; y += p.threads) {
                const float *right = p.by_y + ((static_cast<long>(step) * p.batch + b) * p.height + y) * r.embed_hidden;
                float *d_right = out.by_y + ((static_cast<long>(step) * p.batch + b) * p.height + y) * r.embed_hidden;
                for (int x = 0; x < p.width; x++) {
                    const float *left = p.by_x + (static_cast<long>(step) * p.width + x) * r.embed_hidden;
                    float *d_left = &s.by_x[static_cast<size_t>(x) * r.embed_hidden];
                    const float *d = embedded_of(b, y * p.width + x);
                    for (int e = 0; e < r.embedding; e++) s.embed_out_bias[e] += d[e];
                    for (int k = 0; k < r.embed_hidden; k += LANES) {
                        const Vector before = load(left + k) + load(right + k), open = 1.0f / (1.0f + exponential(-before));
                        Vector back = {};
                        for (int e = 0; e < r.embedding; e++) {
                            float *to = &s.embed_out[static_cast<size_t>(e) * r.embed_hidden + k];
                            store(to, load(to) + d[e] * (before * open));
                            back += d[e] * load(&r.embed_out[static_cast<size_t>(e) * r.embed_hidden + k]);
                        }
                        back *= open * (1.0f + before * (1.0f - open));
                        store(d_left + k, load(d_left + k) + back);
                        store(d_right + k, load(d_right + k) + back);
                    }
                }
            }
    }

    // Add a step's sums, thread after thread, to the gradients: so a run in segments has the bits of a run in one.
    void collect(int step) {
        const auto hand = [](float *to, std::vector<float> &from) {
            if (to) add(to, from);
            std::fill(from.begin(), from.end(), 0.0f);
        };
        for (Sums &s : sums) {
            hand(out.perceive, s.perceive), hand(out.into_hidden, s.hidden), hand(out.output, s.output);
            hand(out.output_bias, s.output_bias), hand(out.norm_weight, s.norm_weight), hand(out.norm_bias, s.norm_bias);
            if (p.per_cell_embedding()) {  // one bias for all steps and images, in the first row
                s.perceive_bias.resize(r.channels_padded), s.hidden_bias.resize(r.hidden_padded);
                hand(out.perceive_bias, s.perceive_bias), hand(out.hidden_bias, s.hidden_bias);
                hand(out.scale1_first, s.scale1_map.first), hand(out.scale1_first_bias, s.scale1_map.first_bias);
                hand(out.scale1_second, s.scale1_map.second), hand(out.scale1_second_bias, s.scale1_map.second_bias);
                hand(out.scale2_first, s.scale2_map.first), hand(out.scale2_first_bias, s.scale2_map.first_bias);
                hand(out.scale2_second, s.scale2_map.second), hand(out.scale2_second_bias, s.scale2_map.second_bias);
                hand(out.embed_out, s.embed_out), hand(out.embed_out_bias, s.embed_out_bias);
                hand(out.by_x + static_cast<long>(step) * p.width * r.embed_hidden, s.by_x);
            } else {
                const long first = static_cast<long>(step) * p.batch;
                hand(out.step_perceive_bias + first * r.channels_padded, s.perceive_bias);
                hand(out.step_hidden_bias + first * r.hidden_padded, s.hidden_bias);
                hand(out.step_scale1 + first * r.z_padded, s.scale1);
                hand(out.step_scale2 + first * r.hidden_padded, s.scale2);
            }
        }
    }
};

}  // namespace
