// An update rule, a grid of cells, and what a cell computes in a step: perceive = 3x3 convolution of [state, e];
// z = [state, e, perceive] * scale1; hidden = linear(z); normalise; leaky ReLU; * scale2; linear; added to the state.

#pragma once

#include <memory>
#include <stdexcept>

#include "abi.h"
#include "products.h"

namespace {

constexpr int MAX_EMBEDDING = 8;  // numbers in an embedding that differs from cell to cell
static_assert(MAX_EMBEDDING <= LANES * 2, "the last vector of a gradient holds what follows the channels");

// A small network of the embedding: linear, SiLU, linear.
struct Mapping {
    int hidden = 0, outputs = 0;
    std::vector<float> first, first_bias;  // (embedding, hidden), (hidden); hidden in LANES
    Panels second, second_back;
    std::vector<float> second_bias;
    int width() const { return round_up(hidden, LANES); }
};

struct Rule {
    int channels, hidden, embedding;  // as the model has them
    int wide;                         // channels + embedding, in PAIR: what perceive reads of a cell
    int channels_padded, hidden_padded;
    int z_width, z_padded;  // wide + channels_padded: what the hidden layer reads; in LANES
    bool group;
    double norm_epsilon;
    float leaky_slope;
    Panels perceive, into_hidden, output;
    Panels perceive_back, into_hidden_back, output_back;  // transposed, for gradients
    std::vector<float> perceive_bias, hidden_bias, output_bias, norm_weight, norm_bias, nothing;
    Mapping scale1, scale2;                        // where the embedding is a map
    int embed_hidden = 0;                          // of the network that makes the embedding
    std::vector<float> embed_out, embed_out_bias;  // (embedding, embed_hidden), (embedding)
};

inline std::vector<float> padded(const float *values, int count, int size) {
    std::vector<float> out(size, 0.0f);
    if (values) std::copy(values, values + count, out.begin());
    return out;
}

// Where the cells lie: in memory each image has a border of one cell, which mirrors the image or stays zero.
struct Grid {
    const Rule &rule;
    const RunArguments &run;
    long row, image;
    std::vector<float> embedded;  // (images, height, width, embedding), of the step in hand

    Grid(const Rule &r, const RunArguments &p) : rule(r), run(p) {
        row = static_cast<long>(p.width + 2) * r.wide;
        image = row * (p.height + 2);
        if (p.per_cell_embedding()) embedded.resize(static_cast<size_t>(p.images) * p.height * p.width * r.embedding);
    }
    // Numbers in a batch; what lies beyond is read, not used.
    size_t size() const { return static_cast<size_t>(image) * run.batch + 2 * LANES * PAIR; }
    long place(int b, int y, int x) const { return b * image + (y + 1) * row + static_cast<long>(x + 1) * rule.wide; }
    long place(int b, int position) const { return place(b, position / run.width, position % run.width); }
    const float *embedding(int b, int position) const {
        long cells = static_cast<long>(run.height) * run.width;
        return &embedded[(run.own(b) * cells + position) * rule.embedding];
    }

    // Copy what lies at a cell of `to` to the border cells that mirror it.
    void mirror(Element *to, int b, int position, int first, int count) const {
        if (!run.reflect) return;
        const int y = position / run.width, x = position % run.width;
        int ys[3] = {y, -2, -2}, xs[3] = {x, -2, -2};
        if (y == 1) ys[1] = -1;
        if (y == run.height - 2) ys[2] = run.height;
        if (x == 1) xs[1] = -1;
        if (x == run.width - 2) xs[2] = run.width;
        if (ys[1] == -2 && ys[2] == -2 && xs[1] == -2 && xs[2] == -2) return;
        const Element *from = to + place(b, y, x) + first;
        for (int i = 0; i < 3; i++)
            for (int j = 0; j < 3; j++)
                if (ys[i] > -2 && xs[j] > -2 && (i || j))
                    std::memcpy(to + place(b, ys[i], xs[j]) + first, from, count * sizeof(Element));
    }
    // This thread's rows of a state, (batch, height, width, channels) in float32, as what cells perceive.
    void write(const float *state, Element *to, int thread) const {
        for (int line = thread; line < run.batch * run.height; line += run.threads) {
            const int b = line / run.height, y = line % run.height;
            for (int x = 0; x < run.width; x++) {
                const float *from = state + (static_cast<long>(line) * run.width + x) * rule.channels;
                Element *at = to + place(b, y, x);
                int k = 0;
                for (; k + LANES <= rule.channels; k += LANES) store_element(at + k, load(from + k));
                for (; k < rule.channels; k++) at[k] = to_element(from[k]);
                mirror(to, b, y * run.width + x, 0, rule.channels);
            }
        }
    }
};

// Up to TILE cells of one image. slot: the row of each in the maps of its block.
struct Tile {
    int b, count = 0;
    int position[TILE], slot[TILE];
    explicit Tile(int image) : b(image) {}
    void add(int where, int row) { position[count] = where, slot[count++] = row; }
};

struct Work {  // what one thread computes in
    std::vector<Element> z, activated, mapped;
    std::vector<float> hidden, scale1, scale2;
    explicit Work(const Rule &r)
        : z(static_cast<size_t>(TILE) * r.z_padded), activated(static_cast<size_t>(TILE) * r.hidden_padded),
          mapped(static_cast<size_t>(TILE) * std::max(r.scale1.width(), r.scale2.width())),
          hidden(static_cast<size_t>(TILE) * r.hidden_padded), scale1(static_cast<size_t>(TILE) * r.z_padded),
          scale2(static_cast<size_t>(TILE) * r.hidden_padded) {}
};

// The embedding of one cell.
inline void embed_cell(const Rule &r, const RunArguments &p, int step, int image, int position, float *out) {
    const float *left = p.by_x + (static_cast<long>(step) * p.width + position % p.width) * r.embed_hidden;
    const float *right =
        p.by_y + ((static_cast<long>(step) * p.images + image) * p.height + position / p.width) * r.embed_hidden;
    Vector sums[MAX_EMBEDDING] = {};
    for (int k = 0; k < r.embed_hidden; k += LANES) {
        Vector value = silu(load(left + k) + load(right + k));
        for (int e = 0; e < r.embedding; e++)
            sums[e] = multiply_add(value, load(&r.embed_out[e * r.embed_hidden + k]), sums[e]);
    }
    for (int e = 0; e < r.embedding; e++) out[e] = r.embed_out_bias[e] + total(sums[e]);
}

// This thread's share of the embedding of a step, also into the states.
void embed(Grid &g, int step, int thread, Element *now) {
    const Rule &r = g.rule;
    const RunArguments &p = g.run;
    if (!p.per_cell_embedding()) return;
    const int cells = p.height * p.width, share = (cells + p.threads - 1) / p.threads;
    const int begin = std::min(cells, thread * share), end = std::min(cells, begin + share);
    for (int image = 0; image < p.images; image++)
        for (int i = begin; i < end; i++) {
            float *out = &g.embedded[(static_cast<long>(image) * cells + i) * r.embedding];
            embed_cell(r, p, step, image, i, out);
            for (int b = image; b < (p.images > 1 ? image + 1 : p.batch); b++) {
                Element *at = now + g.place(b, i) + r.channels;
                for (int e = 0; e < r.embedding; e++) at[e] = to_element(out[e]);
                g.mirror(now, b, i, r.channels, r.embedding);
            }
        }
}

inline Vector before_silu(const Mapping &m, const float *embedded, int embedding, int k) {
    Vector sum = load(&m.first_bias[k]);
    for (int e = 0; e < embedding; e++) sum = multiply_add(splat(embedded[e]), load(&m.first[e * m.width() + k]), sum);
    return sum;
}

// The network's output for the embeddings of some cells, and its hidden layer in `mapped`.
void map_embedding(const Mapping &m, const float *const *embedded, int embedding, int count, Element *mapped, float *out,
                   long stride) {
    const Element *rows[TILE];
    for (int i = 0; i < count; i++) {
        Element *to = mapped + static_cast<size_t>(i) * m.width();
        rows[i] = to;
        for (int k = 0; k < m.width(); k += LANES) store_element(to + k, silu(before_silu(m, embedded[i], embedding, k)));
    }
    const long none = 0;
    product(rows, count, &none, 1, m.second, m.second_bias.data(),
            [&](int i, int j, Vector v) { store(out + i * stride + j, v); });
}

// The maps of the cells begin to end of the list, for an image.
void map_embeddings(const Grid &g, int b, int begin, int end, Work &w, bool first, bool second) {
    const Rule &r = g.rule;
    if (!g.run.per_cell_embedding()) return;
    const float *embedded[TILE];
    for (int i = begin; i < end; i++) embedded[i - begin] = g.embedding(b, g.run.cells[i]);
    const int count = end - begin;
    if (first) map_embedding(r.scale1, embedded, r.embedding, count, w.mapped.data(), w.scale1.data(), r.z_padded);
    if (second) map_embedding(r.scale2, embedded, r.embedding, count, w.mapped.data(), w.scale2.data(), r.hidden_padded);
}

// The rows scale1 and scale2 of a tile: base + slot * stride.
struct Scales {
    const float *first, *second;
    long first_stride, second_stride;
    Scales(const Grid &g, const Work &w, int step, int b) {
        const Rule &r = g.rule;
        const RunArguments &p = g.run;
        first = p.per_cell_embedding() ? w.scale1.data() : p.row(p.step_scale1, step, b, r.z_padded);
        second = p.per_cell_embedding() ? w.scale2.data() : p.row(p.step_scale2, step, b, r.hidden_padded);
        first_stride = p.per_cell_embedding() ? r.z_padded : 0;
        second_stride = p.per_cell_embedding() ? r.hidden_padded : 0;
    }
};

inline void neighbours(const Grid &g, int wide, long *taps, int sign) {
    const long row = static_cast<long>(g.run.width + 2) * wide;
    for (int i = 0; i < 9; i++) taps[i] = sign * ((i / 3 - 1) * row + static_cast<long>(i % 3 - 1) * wide);
}

// Everything up to the hidden layer before its normalisation, into w.z and w.hidden. `state`: float32, or null to read
// the one as elements in `now`. `raw`: what perceive put out (TILE, channels_padded), where it is wanted.
void perceive_and_hide(const Grid &g, int step, const Tile &t, Work &w, const Element *now, const float *state,
                       float *raw) {
    const Rule &r = g.rule;
    const RunArguments &p = g.run;
    const Scales s(g, w, step, t.b);
    const Element *rows[TILE];
    long taps[9];
    neighbours(g, r.wide, taps, 1);
    for (int i = 0; i < t.count; i++) {
        rows[i] = now + g.place(t.b, t.position[i]);
        const float *by = s.first + t.slot[i] * s.first_stride;
        Element *z = &w.z[static_cast<size_t>(i) * r.z_padded];
        int k = 0;
        if (state) {
            const float *from = state + (static_cast<long>(t.b) * p.height * p.width + t.position[i]) * r.channels;
            for (; k + LANES <= r.channels; k += LANES) store_element(z + k, load(from + k) * load(by + k));
            for (; k < r.channels; k++) z[k] = to_element(from[k] * by[k]);
        } else {
            for (; k + LANES <= r.channels; k += LANES) store_element(z + k, load_element(rows[i] + k) * load(by + k));
            for (; k < r.channels; k++) z[k] = to_element(to_float(rows[i][k]) * by[k]);
        }
        if (r.embedding) {
            const float *embedded = g.embedding(t.b, t.position[i]);
            for (int e = 0; e < r.embedding; e++, k++) z[k] = to_element(embedded[e] * by[k]);
        }
        for (; k < r.wide; k++) z[k] = to_element(0.0f);
    }
    const float *bias = p.per_cell_embedding() ? r.perceive_bias.data() : p.row(p.step_perceive_bias, step, t.b, r.channels_padded);
    product(rows, t.count, taps, 9, r.perceive, bias, [&](int i, int j, Vector v) {
        if (raw) store(raw + static_cast<long>(i) * r.channels_padded + j, v);
        store_element(&w.z[static_cast<size_t>(i) * r.z_padded + r.wide + j],
               v * load(s.first + t.slot[i] * s.first_stride + r.wide + j));
    });
    const long none = 0;
    for (int i = 0; i < t.count; i++) rows[i] = &w.z[static_cast<size_t>(i) * r.z_padded];
    bias = p.per_cell_embedding() ? r.hidden_bias.data() : p.row(p.step_hidden_bias, step, t.b, r.hidden_padded);
    product(rows, t.count, &none, 1, r.into_hidden, bias,
            [&](int i, int j, Vector v) { store(&w.hidden[static_cast<size_t>(i) * r.hidden_padded + j], v); });
}

struct Statistics {
    float mean, scale;
};

// Of the hidden layer of one cell; the padding is zero and counts in no sum.
inline Statistics statistics_of(const float *hidden, const Rule &r) {
    Vector sum = {}, squares = {};
    for (int k = 0; k < r.hidden_padded; k += LANES) {
        Vector v = load(hidden + k);
        sum += v;
        squares = multiply_add(v, v, squares);
    }
    float mean = total(sum) / r.hidden;
    float variance = std::max(total(squares) / r.hidden - mean * mean, 0.0f);
    return {mean, 1.0f / std::sqrt(variance + static_cast<float>(r.norm_epsilon))};
}

inline Vector leaky(Vector v, float slope) {
    Vector low = v * slope;
    return v > low ? v : low;
}

// Normalise, activate and scale w.hidden into w.activated. `of`: the image's statistics, or null for each cell's own.
// `normal`: the normalised hidden layer (TILE, hidden_padded), where it is wanted. `found`: each cell's statistics.
void activate(const Grid &g, int step, const Tile &t, Work &w, const Statistics *of, float *normal, Statistics *found) {
    const Rule &r = g.rule;
    const Scales s(g, w, step, t.b);
    for (int i = 0; i < t.count; i++) {
        const float *hidden = &w.hidden[static_cast<size_t>(i) * r.hidden_padded];
        Element *to = &w.activated[static_cast<size_t>(i) * r.hidden_padded];
        const Statistics a = of ? *of : statistics_of(hidden, r);
        if (found) found[i] = a;
        const float *by = s.second + t.slot[i] * s.second_stride;
        const Vector scale = splat(a.scale), shift = splat(-a.mean * a.scale);
        for (int k = 0; k < r.hidden_padded; k += LANES) {
            Vector v = multiply_add(load(hidden + k), scale, shift);
            if (normal) store(normal + static_cast<size_t>(i) * r.hidden_padded + k, v);
            if (r.group) v = multiply_add(v, load(&r.norm_weight[k]), load(&r.norm_bias[k]));
            store_element(to + k, leaky(v, r.leaky_slope) * load(by + k));
        }
    }
}

}  // namespace
