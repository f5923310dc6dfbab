// An update rule run for some NCA steps on a CPU, cell by cell: everything that a cell computes in a step stays in the
// caches, and the state is the only traffic with memory.
//
// A step of one cell: perceive = 3x3 convolution of [state, e]; z = [state, e, perceive] * scale1; hidden = linear(z);
// normalise; leaky ReLU; * scale2; linear; added to the state. The linear layers are small matrix products over up to
// TILE cells at a time, in bfloat16 with float32 sums where the processor has it, else in float32. Only cells that
// fire (and are active) are computed. Every cell's sums run in the same order whatever else is in its tile, so the
// result does not depend on tiles, threads or the batch.
//
// Written with the vector extensions of GCC and Clang; compiled on the user's machine by build.py. With NCA_FLOAT32
// defined everything is in float32.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>
#if defined(__AVX512BF16__) && !defined(NCA_FLOAT32)
#define NCA_BFLOAT16
#include <immintrin.h>
#endif

namespace {

#if defined(NCA_BFLOAT16)
constexpr int LANES = 16, ROWS = 8, COLUMNS = 3, PAIR = 2;
using Element = uint16_t;
#elif defined(__AVX512F__)
constexpr int LANES = 16, ROWS = 8, COLUMNS = 3, PAIR = 1;
using Element = float;
#elif defined(__AVX2__)
constexpr int LANES = 8, ROWS = 6, COLUMNS = 2, PAIR = 1;
using Element = float;
#else
constexpr int LANES = 4, ROWS = 6, COLUMNS = 3, PAIR = 1;
using Element = float;
#endif
constexpr int TILE = 64;
typedef float Vector __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t Integers __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

inline Vector splat(float value) { return value - Vector{}; }
inline Vector load(const float *p) { return *reinterpret_cast<const Vector *>(p); }
inline void store(float *p, Vector v) { *reinterpret_cast<Vector *>(p) = v; }

#if defined(NCA_BFLOAT16)
inline void narrow(Element *p, Vector v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), (__m256i)_mm512_cvtneps_pbh((__m512)v));
}
inline Vector widen(const Element *p) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
    return (Vector)_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
#else
inline void narrow(Element *p, Vector v) { store(p, v); }
inline Vector widen(const Element *p) { return load(p); }
#endif

inline Element narrow_one(float value) {
#if defined(NCA_BFLOAT16)
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return static_cast<Element>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
#else
    return value;
#endif
}

// exp for the logistic function: 2^n times a polynomial of the fraction, relative error below 2e-7.
inline Vector exponential(Vector x) {
    x = x < splat(-87.0f) ? splat(-87.0f) : x;
    x = x > splat(88.0f) ? splat(88.0f) : x;
    Vector scaled = x * 1.44269504f;
    Integers whole = __builtin_convertvector(scaled + (scaled < 0.0f ? splat(-0.5f) : splat(0.5f)), Integers);
    Vector n = __builtin_convertvector(whole, Vector);
    Vector r = x - n * 0.693359375f + n * 2.12194440e-4f;
    Vector p = splat(1.0f / 720);
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return p * (Vector)((whole + 127) << 23);
}
inline Vector silu(Vector x) { return x / (1.0f + exponential(-x)); }

int round_up(int value, int unit) { return (value + unit - 1) / unit * unit; }

// A weight (outputs, inputs) as panels of COLUMNS * LANES outputs: for each pair of inputs, each output's pair.
struct Panels {
    int inputs = 0, outputs = 0;  // padded to PAIR and to LANES
    std::vector<Element> data;

    void pack(const float *weight, int rows, int columns) {  // (rows = outputs, columns = inputs)
        inputs = round_up(columns, PAIR);
        outputs = round_up(rows, LANES);
        data.assign(static_cast<size_t>(inputs) * outputs + LANES * PAIR, narrow_one(0.0f));
        size_t at = 0;
        for (int first = 0; first < outputs; first += COLUMNS * LANES) {
            int width = std::min(COLUMNS * LANES, outputs - first);
            for (int k = 0; k < inputs; k += PAIR)
                for (int j = 0; j < width; j++)
                    for (int q = 0; q < PAIR; q++, at++)
                        if (first + j < rows && k + q < columns)
                            data[at] = narrow_one(weight[static_cast<size_t>(first + j) * columns + k + q]);
        }
    }
};

// sums[m][n] += rows[m][k] * panel[k][n] over `count` inputs.
template <int M, int N>
inline void multiply(Vector (&sums)[M][N], const Element *const *rows, long offset, const Element *panel, int count) {
    for (int k = 0; k < count; k += PAIR, panel += N * LANES * PAIR) {
        Vector right[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) right[n] = *reinterpret_cast<const Vector *>(panel + n * LANES * PAIR);
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) {
#if defined(NCA_BFLOAT16)
            int32_t both;
            std::memcpy(&both, rows[m] + offset + k, 4);
            __m512bh left = (__m512bh)_mm512_set1_epi32(both);
#pragma GCC unroll 4
            for (int n = 0; n < N; n++)
                sums[m][n] = (Vector)_mm512_dpbf16_ps((__m512)sums[m][n], left, (__m512bh)right[n]);
#else
            Vector left = splat(rows[m][offset + k]);
#pragma GCC unroll 4
            for (int n = 0; n < N; n++) sums[m][n] += left * right[n];
#endif
        }
    }
}

// One panel for M rows: the sums over all taps, handed to `done(row, first column, N, sums of the row)`.
template <int M, int N, class Done>
inline void panel_rows(const Element *const *rows, const long *taps, int tap_count, int inputs, const Element *panel,
                       const float *bias, int first_row, int first, const Done &done) {
    Vector sums[M][N];
#pragma GCC unroll 8
    for (int m = 0; m < M; m++)
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) sums[m][n] = load(bias + first + n * LANES);
    for (int tap = 0; tap < tap_count; tap++)
        multiply<M, N>(sums, rows, taps[tap], panel + static_cast<size_t>(tap) * inputs * N * LANES, inputs);
#pragma GCC unroll 8
    for (int m = 0; m < M; m++)
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) done(first_row + m, first + n * LANES, sums[m][n]);
}

template <int N, class Done>
inline void panel_all(const Element *const *rows, int count, const long *taps, int tap_count, int inputs,
                      const Element *panel, const float *bias, int first, const Done &done) {
    int m = 0;
    for (; m + ROWS <= count; m += ROWS)
        panel_rows<ROWS, N>(rows + m, taps, tap_count, inputs, panel, bias, m, first, done);
    for (; m + 4 <= count; m += 4) panel_rows<4, N>(rows + m, taps, tap_count, inputs, panel, bias, m, first, done);
    for (; m + 2 <= count; m += 2) panel_rows<2, N>(rows + m, taps, tap_count, inputs, panel, bias, m, first, done);
    for (; m < count; m++) panel_rows<1, N>(rows + m, taps, tap_count, inputs, panel, bias, m, first, done);
}

// rows (count, taps * inputs) times the weight, in vectors of the result. With several taps the weight's inputs are
// tap after tap, and row m's are read at rows[m] + taps[tap].
template <class Done>
void product(const Element *const *rows, int count, const long *taps, int tap_count, const Panels &weight,
             const float *bias, const Done &done) {
    int inputs = weight.inputs / tap_count;
    const Element *panel = weight.data.data();
    for (int first = 0; first < weight.outputs;) {
        int vectors = std::min(COLUMNS, (weight.outputs - first) / LANES);
        if (vectors == 3)
            panel_all<3>(rows, count, taps, tap_count, inputs, panel, bias, first, done);
        else if (vectors == 2)
            panel_all<2>(rows, count, taps, tap_count, inputs, panel, bias, first, done);
        else
            panel_all<1>(rows, count, taps, tap_count, inputs, panel, bias, first, done);
        panel += static_cast<size_t>(weight.inputs) * vectors * LANES;
        first += vectors * LANES;
    }
}

class Barrier {
  public:
    explicit Barrier(int count) : count_(count), waiting_(0), turn_(0) {}
    void wait() {
        if (count_ == 1) return;
        int turn = turn_.load();
        if (waiting_.fetch_add(1) + 1 == count_) {
            waiting_ = 0;
            {
                std::lock_guard<std::mutex> guard(mutex_);
                turn_++;
            }
            woken_.notify_all();
            return;
        }
        for (int i = 0; i < 2000; i++)  // a step's threads finish close together
            if (turn_.load() != turn) return;
        std::unique_lock<std::mutex> lock(mutex_);
        woken_.wait(lock, [&] { return turn_.load() != turn; });
    }

  private:
    const int count_;
    std::atomic<int> waiting_, turn_;
    std::mutex mutex_;
    std::condition_variable woken_;
};

// A small network of the embedding: linear, SiLU, linear.
struct Mapping {
    int hidden = 0;
    std::vector<float> first, first_bias;  // (embedding, hidden), (hidden)
    Panels second;
    std::vector<float> second_bias;
};

struct Rule {
    int channels, hidden, embedding;  // as the model has them
    int wide;                         // channels + embedding, padded to PAIR: what perceive reads of a cell
    int channels_padded, hidden_padded, z_width;
    bool group;
    Panels perceive, into_hidden, output;
    std::vector<float> perceive_bias, hidden_bias, output_bias, norm_weight, norm_bias;
    Mapping scale1, scale2;                       // where the embedding is a map
    int embed_hidden = 0;                         // of the network that makes the embedding
    std::vector<float> embed_out, embed_out_bias;  // (embedding, embed_hidden), (embedding)
};

std::vector<float> padded(const float *values, int count, int size) {
    std::vector<float> out(size, 0.0f);
    if (values) std::copy(values, values + count, out.begin());
    return out;
}

struct Work {  // what one thread computes in
    std::vector<Element> z, activated, mapped;
    std::vector<float> hidden, scale1, scale2;
    Work(const Rule &r)
        : z(static_cast<size_t>(TILE) * r.z_width + LANES), activated(static_cast<size_t>(TILE) * r.hidden_padded),
          mapped(static_cast<size_t>(TILE) * round_up(std::max({r.scale1.hidden, r.scale2.hidden, 1}), LANES)),
          hidden(static_cast<size_t>(TILE) * r.hidden_padded),
          scale1(static_cast<size_t>(TILE) * (r.z_width + LANES)),
          scale2(static_cast<size_t>(TILE) * r.hidden_padded) {}
};

struct Grid {
    const Rule &rule;
    int batch, height, width;
    bool reflect;
    float *state;                      // (batch, height, width, channels), float32
    std::vector<Element> now, next;    // (batch, height + 2, width + 2, wide)
    std::vector<float> embedded;       // (height, width, embedding)
    long row, image;

    Grid(const Rule &r, float *s, int b, int h, int w, bool reflects)
        : rule(r), batch(b), height(h), width(w), reflect(reflects), state(s) {
        row = static_cast<long>(width + 2) * r.wide;
        image = row * (height + 2);
        now.assign(static_cast<size_t>(image) * batch + 2 * LANES, narrow_one(0.0f));
    }
    long place(int b, int y, int x) const { return b * image + (y + 1) * row + static_cast<long>(x + 1) * rule.wide; }

    // Copy what lies at a cell of `to` to the border cells that mirror it.
    void mirror(Element *to, int b, int y, int x, int first, int count) const {
        if (!reflect) return;
        int ys[3] = {y, -2, -2}, xs[3] = {x, -2, -2};
        if (y == 1) ys[1] = -1;
        if (y == height - 2) ys[2] = height;
        if (x == 1) xs[1] = -1;
        if (x == width - 2) xs[2] = width;
        if (ys[1] == -2 && ys[2] == -2 && xs[1] == -2 && xs[2] == -2) return;
        const Element *from = to + place(b, y, x) + first;
        for (int i = 0; i < 3; i++)
            for (int j = 0; j < 3; j++)
                if (ys[i] > -2 && xs[j] > -2 && (i || j))
                    std::memcpy(to + place(b, ys[i], xs[j]) + first, from, count * sizeof(Element));
    }
    void write(Element *to, int b, int y, int x) const {
        const float *from = state + (static_cast<long>(b * height + y) * width + x) * rule.channels;
        Element *at = to + place(b, y, x);
        for (int i = 0; i < rule.channels; i++) at[i] = narrow_one(from[i]);
        mirror(to, b, y, x, 0, rule.channels);
    }
};

// What `run` is told of all its steps.
struct Plan {
    int steps;
    const float *perceive_bias, *hidden_bias;  // (steps, channels), (steps, hidden): where the embedding is one vector
    const float *scale1, *scale2;              // (steps, 2 channels + embedding), (steps, hidden): likewise
    const float *by_x, *by_y;                  // (steps, width, embed_hidden), (steps, height, …): where it is a map
    const uint8_t *fire;                       // (steps, batch, height, width), or null: every cell fires
    const int32_t *cells;                      // positions (y * width + x) that may be active, ascending
    int cell_count;
};

void embed(const Grid &g, const Plan &p, int step, int begin, int end, float *out) {
    const Rule &r = g.rule;
    for (int i = begin; i < end; i++) {
        int y = i / g.width, x = i % g.width;
        const float *left = p.by_x + (static_cast<long>(step) * g.width + x) * r.embed_hidden;
        const float *right = p.by_y + (static_cast<long>(step) * g.height + y) * r.embed_hidden;
        Vector sums[8] = {};
        for (int k = 0; k < r.embed_hidden; k += LANES) {
            Vector value = silu(load(left + k) + load(right + k));
            for (int e = 0; e < r.embedding; e++) sums[e] += value * load(&r.embed_out[e * r.embed_hidden + k]);
        }
        for (int e = 0; e < r.embedding; e++) {
            float total = r.embed_out_bias[e];
            for (int lane = 0; lane < LANES; lane++) total += sums[e][lane];
            out[static_cast<long>(i) * r.embedding + e] = total;
        }
    }
}

void map_embedding(const Mapping &m, const float *const *embedded, int embedding, int count, Work &w, float *out,
                   long stride) {
    int width = round_up(m.hidden, LANES);
    const Element *rows[TILE];
    for (int i = 0; i < count; i++) {
        Element *to = &w.mapped[static_cast<size_t>(i) * width];
        rows[i] = to;
        for (int k = 0; k < width; k += LANES) {
            Vector sum = load(&m.first_bias[k]);
            for (int e = 0; e < embedding; e++) sum += embedded[i][e] * load(&m.first[e * width + k]);
            narrow(to + k, silu(sum));
        }
    }
    const long none = 0;
    product(rows, count, &none, 1, m.second, m.second_bias.data(),
            [&](int i, int j, Vector v) { store(out + i * stride + j, v); });
}

struct Tile {
    int b, count;
    int position[TILE], slot[TILE];  // where the cell is, and its row in the maps
};

// Everything up to the hidden layer before its normalisation, into w.hidden.
void perceive_and_hide(const Grid &g, const Plan &p, int step, const Tile &t, Work &w, const Element *now) {
    const Rule &r = g.rule;
    const bool maps = p.by_x != nullptr;
    const Element *rows[TILE];
    long taps[9];
    for (int i = 0; i < 9; i++) taps[i] = (i / 3 - 1) * g.row + static_cast<long>(i % 3 - 1) * r.wide;
    const float *scale = maps ? w.scale1.data() : p.scale1 + static_cast<long>(step) * r.z_width;
    const long stride = maps ? r.z_width + LANES : 0;
    for (int i = 0; i < t.count; i++) {
        int y = t.position[i] / g.width, x = t.position[i] % g.width;
        rows[i] = now + g.place(t.b, y, x);
        const float *from = g.state + (static_cast<long>(t.b) * g.height * g.width + t.position[i]) * r.channels;
        const float *by = scale + t.slot[i] * stride;
        Element *z = &w.z[static_cast<size_t>(i) * r.z_width];
        int k = 0;
        for (; k + LANES <= r.channels; k += LANES) narrow(z + k, load(from + k) * load(by + k));
        for (; k < r.channels; k++) z[k] = narrow_one(from[k] * by[k]);
        for (int e = 0; e < r.embedding; e++, k++)
            z[k] = narrow_one(g.embedded[static_cast<long>(t.position[i]) * r.embedding + e] * by[k]);
        for (; k < r.wide; k++) z[k] = narrow_one(0.0f);
    }
    const float *bias = maps ? r.perceive_bias.data() : p.perceive_bias + static_cast<long>(step) * r.channels_padded;
    product(rows, t.count, taps, 9, r.perceive, bias, [&](int i, int j, Vector v) {
        narrow(&w.z[static_cast<size_t>(i) * r.z_width + r.wide + j], v * load(scale + t.slot[i] * stride + r.wide + j));
    });
    const long none = 0;
    for (int i = 0; i < t.count; i++) rows[i] = &w.z[static_cast<size_t>(i) * r.z_width];
    bias = maps ? r.hidden_bias.data() : p.hidden_bias + static_cast<long>(step) * r.hidden_padded;
    product(rows, t.count, &none, 1, r.into_hidden, bias,
            [&](int i, int j, Vector v) { store(&w.hidden[static_cast<size_t>(i) * r.hidden_padded + j], v); });
}

// Normalise w.hidden, activate it, and add what follows to the state and to `next`.
void activate_and_update(Grid &g, const Plan &p, int step, const Tile &t, Work &w, float mean, float scale_by,
                         Element *next) {
    const Rule &r = g.rule;
    const bool maps = p.by_x != nullptr;
    const float *scale = maps ? w.scale2.data() : p.scale2 + static_cast<long>(step) * r.hidden_padded;
    const long stride = maps ? r.hidden_padded : 0;
    const Element *rows[TILE];
    for (int i = 0; i < t.count; i++) {
        const float *hidden = &w.hidden[static_cast<size_t>(i) * r.hidden_padded];
        Element *to = &w.activated[static_cast<size_t>(i) * r.hidden_padded];
        rows[i] = to;
        if (!r.group) {  // padding is zero, and counts in neither sum
            Vector sum = {}, squares = {};
            for (int k = 0; k < r.hidden_padded; k += LANES) {
                Vector v = load(hidden + k);
                sum += v;
                squares += v * v;
            }
            float total = 0, total_squares = 0;
            for (int lane = 0; lane < LANES; lane++) total += sum[lane], total_squares += squares[lane];
            mean = total / r.hidden;
            scale_by = 1.0f / std::sqrt(std::max(total_squares / r.hidden - mean * mean, 0.0f) + 1e-5f);
        }
        const float *by = scale + t.slot[i] * stride;
        Vector shift = splat(-mean * scale_by);
        for (int k = 0; k < r.hidden_padded; k += LANES) {
            Vector v = load(hidden + k) * scale_by + shift;
            if (r.group) v = v * load(&r.norm_weight[k]) + load(&r.norm_bias[k]);
            Vector low = v * 0.01f;
            v = v > low ? v : low;
            narrow(to + k, v * load(by + k));
        }
    }
    const long none = 0;
    product(rows, t.count, &none, 1, r.output, r.output_bias.data(), [&](int i, int j, Vector v) {
        long cell = (static_cast<long>(t.b) * g.height * g.width + t.position[i]) * r.channels;
        Element *at = next + g.place(t.b, t.position[i] / g.width, t.position[i] % g.width);
        if (j + LANES <= r.channels) {
            v += load(g.state + cell + j);
            store(g.state + cell + j, v);
            narrow(at + j, v);
        } else {
            for (int k = j; k < r.channels; k++) {
                g.state[cell + k] += v[k - j];
                at[k] = narrow_one(g.state[cell + k]);
            }
        }
    });
    for (int i = 0; i < t.count; i++)
        g.mirror(next, t.b, t.position[i] / g.width, t.position[i] % g.width, 0, r.channels);
}

struct Run {
    Grid &g;
    const Plan &p;
    int threads;
    Barrier barrier;
    std::atomic<int> taken{0};
    std::vector<double> sums;           // (blocks, batch, 2): of the hidden layer, for the group norm
    std::vector<float> kept;            // (cells, batch, hidden): the hidden layer, likewise
    std::vector<float> mean, scale_by;  // (batch), likewise

    Run(Grid &grid, const Plan &plan, int count) : g(grid), p(plan), threads(count), barrier(count) {
        int blocks = (p.cell_count + TILE - 1) / TILE;
        if (g.rule.group) {
            sums.resize(static_cast<size_t>(blocks) * g.batch * 2);
            kept.resize(static_cast<size_t>(p.cell_count) * g.batch * g.rule.hidden_padded);
            mean.resize(g.batch);
            scale_by.resize(g.batch);
        }
    }

    bool fires(int step, int b, int position) const {
        return !p.fire || p.fire[(static_cast<long>(step) * g.batch + b) * g.height * g.width + position];
    }

    template <class Body> void blocks(int first_thread, const Body &body) {
        int count = (p.cell_count + TILE - 1) / TILE;
        for (int block; (block = taken.fetch_add(1)) < count;)
            body(block, block * TILE, std::min((block + 1) * TILE, p.cell_count));
        barrier.wait();
        if (first_thread == 0) taken = 0;
        barrier.wait();
    }

    void maps_of(int begin, int end, Work &w, bool first, bool second) {
        if (!p.by_x) return;
        const Rule &r = g.rule;
        const float *embedded[TILE];
        for (int i = begin; i < end; i++) embedded[i - begin] = &g.embedded[static_cast<long>(p.cells[i]) * r.embedding];
        if (first) map_embedding(r.scale1, embedded, r.embedding, end - begin, w, w.scale1.data(), r.z_width + LANES);
        if (second) map_embedding(r.scale2, embedded, r.embedding, end - begin, w, w.scale2.data(), r.hidden_padded);
    }

    void work(int thread) {
        const Rule &r = g.rule;
        Work w(r);
        for (int step = 0; step < p.steps; step++) {
            Element *now = (step % 2 ? g.next : g.now).data(), *next = (step % 2 ? g.now : g.next).data();
            if (p.by_x) {
                int total = g.height * g.width, share = (total + threads - 1) / threads;
                int begin = std::min(total, thread * share), end = std::min(total, begin + share);
                embed(g, p, step, begin, end, g.embedded.data());
                for (int i = begin; i < end; i++)
                    for (int b = 0; b < g.batch; b++) {
                        Element *at = now + g.place(b, i / g.width, i % g.width) + r.channels;
                        for (int e = 0; e < r.embedding; e++)
                            at[e] = narrow_one(g.embedded[static_cast<long>(i) * r.embedding + e]);
                        g.mirror(now, b, i / g.width, i % g.width, r.channels, r.embedding);
                    }
                barrier.wait();
            }
            blocks(thread, [&](int block, int begin, int end) {
                maps_of(begin, end, w, true, !r.group);
                for (int b = 0; b < g.batch; b++) {
                    Tile t;
                    t.b = b;
                    t.count = 0;
                    for (int i = begin; i < end; i++) {
                        if (r.group || fires(step, b, p.cells[i])) {
                            t.position[t.count] = p.cells[i];
                            t.slot[t.count++] = i - begin;
                        } else {
                            int y = p.cells[i] / g.width, x = p.cells[i] % g.width;
                            long at = g.place(b, y, x);
                            std::memcpy(next + at, now + at, r.channels * sizeof(Element));
                            g.mirror(next, b, y, x, 0, r.channels);
                        }
                    }
                    perceive_and_hide(g, p, step, t, w, now);
                    if (r.group)
                        keep(block, begin, t, w);
                    else
                        activate_and_update(g, p, step, t, w, 0, 0, next);
                }
            });
            if (!r.group) continue;
            if (thread == 0) statistics();
            barrier.wait();
            blocks(thread, [&](int, int begin, int end) {
                maps_of(begin, end, w, false, true);
                for (int b = 0; b < g.batch; b++) {
                    Tile t;
                    t.b = b;
                    t.count = 0;
                    for (int i = begin; i < end; i++) {
                        if (fires(step, b, p.cells[i])) {
                            const float *from = &kept[(static_cast<size_t>(i) * g.batch + b) * r.hidden_padded];
                            std::memcpy(&w.hidden[static_cast<size_t>(t.count) * r.hidden_padded], from,
                                        r.hidden_padded * sizeof(float));
                            t.position[t.count] = p.cells[i];
                            t.slot[t.count++] = i - begin;
                        } else {
                            int y = p.cells[i] / g.width, x = p.cells[i] % g.width;
                            long at = g.place(b, y, x);
                            std::memcpy(next + at, now + at, r.channels * sizeof(Element));
                            g.mirror(next, b, y, x, 0, r.channels);
                        }
                    }
                    activate_and_update(g, p, step, t, w, mean[b], scale_by[b], next);
                }
            });
        }
    }

    void keep(int block, int begin, const Tile &t, const Work &w) {
        const Rule &r = g.rule;
        double total = 0, squares = 0;
        for (int i = 0; i < t.count; i++) {
            const float *hidden = &w.hidden[static_cast<size_t>(i) * r.hidden_padded];
            float *to = &kept[(static_cast<size_t>(begin + i) * g.batch + t.b) * r.hidden_padded];
            std::memcpy(to, hidden, r.hidden_padded * sizeof(float));
            Vector sum = {}, square = {};
            for (int k = 0; k < r.hidden_padded; k += LANES) {
                Vector v = load(hidden + k);
                sum += v;
                square += v * v;
            }
            for (int lane = 0; lane < LANES; lane++) total += sum[lane], squares += square[lane];
        }
        sums[(static_cast<size_t>(block) * g.batch + t.b) * 2] = total;
        sums[(static_cast<size_t>(block) * g.batch + t.b) * 2 + 1] = squares;
    }

    void statistics() {
        int blocks = (p.cell_count + TILE - 1) / TILE;
        double count = static_cast<double>(p.cell_count) * g.rule.hidden;
        for (int b = 0; b < g.batch; b++) {
            double total = 0, squares = 0;
            for (int i = 0; i < blocks; i++) {
                total += sums[(static_cast<size_t>(i) * g.batch + b) * 2];
                squares += sums[(static_cast<size_t>(i) * g.batch + b) * 2 + 1];
            }
            double middle = total / count, variance = std::max(squares / count - middle * middle, 0.0);
            mean[b] = static_cast<float>(middle);
            scale_by[b] = static_cast<float>(1.0 / std::sqrt(variance + 1e-5));
        }
    }
};

void fill(Mapping &m, int embedding, int hidden, int outputs, const float *first, const float *first_bias,
          const float *second, const float *second_bias) {
    int width = round_up(hidden, LANES);
    m.hidden = hidden;
    m.first.assign(static_cast<size_t>(embedding) * width, 0.0f);
    for (int e = 0; e < embedding; e++)
        for (int k = 0; k < hidden; k++) m.first[e * width + k] = first[k * embedding + e];
    m.first_bias = padded(first_bias, hidden, width);
    m.second.pack(second, outputs, hidden);
    m.second_bias = padded(second_bias, outputs, m.second.outputs);
}

}  // namespace

extern "C" {

// 2 where products are in bfloat16, 1 where in float32.
int nca_pair() { return PAIR; }
int nca_lanes() { return LANES; }

// perceive: (channels, 9 taps, wide). into_hidden: (hidden, wide + channels padded to lanes). output: (channels, hidden).
void *nca_rule(int channels, int hidden, int embedding, int group, const float *perceive, const float *into_hidden,
               const float *output, const float *perceive_bias, const float *hidden_bias, const float *output_bias,
               const float *norm_weight, const float *norm_bias) {
    Rule *r = new Rule();
    r->channels = channels, r->hidden = hidden, r->embedding = embedding, r->group = group != 0;
    r->wide = round_up(channels + embedding, PAIR);
    r->channels_padded = round_up(channels, LANES);
    r->hidden_padded = round_up(hidden, LANES);
    r->z_width = r->wide + r->channels_padded;
    // Panels read the inputs of all taps one after the other: (channels, 9 * wide).
    r->perceive.pack(perceive, channels, 9 * r->wide);
    r->into_hidden.pack(into_hidden, hidden, r->z_width);
    r->output.pack(output, channels, hidden);
    r->perceive_bias = padded(perceive_bias, channels, r->channels_padded);
    r->hidden_bias = padded(hidden_bias, hidden, r->hidden_padded);
    r->output_bias = padded(output_bias, channels, r->channels_padded);
    r->norm_weight = padded(norm_weight, hidden, r->hidden_padded);
    r->norm_bias = padded(norm_bias, hidden, r->hidden_padded);
    return r;
}

// The networks that make scale1 (in the order of z, which has `wide` and then the padded channels) and scale2.
void nca_mappings(void *rule, int mapping_hidden, const float *first1, const float *first_bias1, const float *second1,
                  const float *second_bias1, const float *first2, const float *first_bias2, const float *second2,
                  const float *second_bias2, int embed_hidden, const float *embed_out, const float *embed_out_bias) {
    Rule *r = static_cast<Rule *>(rule);
    fill(r->scale1, r->embedding, mapping_hidden, r->z_width, first1, first_bias1, second1, second_bias1);
    fill(r->scale2, r->embedding, mapping_hidden, r->hidden, first2, first_bias2, second2, second_bias2);
    r->embed_hidden = embed_hidden;
    r->embed_out.assign(embed_out, embed_out + static_cast<size_t>(r->embedding) * embed_hidden);
    r->embed_out_bias.assign(embed_out_bias, embed_out_bias + r->embedding);
}

void nca_free(void *rule) { delete static_cast<Rule *>(rule); }

// state: (batch, height, width, channels), changed in place. See Plan for the others.
void nca_run(void *rule, float *state, int batch, int height, int width, int reflect, int steps,
             const float *perceive_bias, const float *hidden_bias, const float *scale1, const float *scale2,
             const float *by_x, const float *by_y, const uint8_t *fire, const int32_t *cells, int cell_count,
             int threads) {
    const Rule &r = *static_cast<Rule *>(rule);
    Grid g(r, state, batch, height, width, reflect != 0);
    for (int b = 0; b < batch; b++)
        for (int y = 0; y < height; y++)
            for (int x = 0; x < width; x++) g.write(g.now.data(), b, y, x);
    g.next = g.now;
    if (by_x) g.embedded.resize(static_cast<size_t>(height) * width * r.embedding);
    Plan p{steps, perceive_bias, hidden_bias, scale1, scale2, by_x, by_y, fire, cells, cell_count};
    Run run(g, p, std::max(1, threads));
    std::vector<std::thread> others;
    for (int i = 1; i < run.threads; i++) others.emplace_back([&run, i] { run.work(i); });
    run.work(0);
    for (std::thread &other : others) other.join();
}

// Which cells fire: the words of Philox4x32-10 at absolute positions, as in core/random.py. keys: (blocks, batch), one
// for every four steps. fire: (steps, batch, height, width); active: (batch, height, width), or null.
void nca_fire(const uint64_t *keys, const int64_t *origins, int batch, int height, int width, int steps,
              uint64_t threshold, const uint8_t *active, uint8_t *fire) {
    const long image = static_cast<long>(height) * width;
    for (int block = 0; block < (steps + 3) / 4; block++)
        for (int b = 0; b < batch; b++) {
            uint64_t key = keys[block * batch + b];
            for (int y = 0; y < height; y++) {
                uint64_t row = static_cast<uint64_t>(origins[2 * b] + y);
                uint8_t *to = fire + (static_cast<long>(block) * 4 * batch + b) * image + static_cast<long>(y) * width;
                const uint8_t *alive = active ? active + b * image + static_cast<long>(y) * width : nullptr;
                int words = std::min(4, steps - 4 * block);
                for (int x = 0; x < width; x++) {
                    uint64_t column = static_cast<uint64_t>(origins[2 * b + 1] + x);
                    uint32_t c[4] = {static_cast<uint32_t>(column), static_cast<uint32_t>(column >> 32),
                                     static_cast<uint32_t>(row), static_cast<uint32_t>(row >> 32)};
                    uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
                    for (int i = 0; i < 10; i++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
                        uint64_t p0 = static_cast<uint64_t>(c[0]) * 0xD2511F53u;
                        uint64_t p1 = static_cast<uint64_t>(c[2]) * 0xCD9E8D57u;
                        uint32_t d[4] = {static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k0, static_cast<uint32_t>(p1),
                                         static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k1, static_cast<uint32_t>(p0)};
                        std::memcpy(c, d, sizeof c);
                    }
                    for (int word = 0; word < words; word++)
                        to[word * batch * image + x] = c[word] < threshold && (!alive || alive[x]);
                }
            }
        }
}
}
