// Vectors, and matrix products of a few rows, in bfloat16 with float32 sums where the processor has it, else in float32.
//
// Written with the vector extensions of GCC and Clang. With NCA_FLOAT32 defined everything is in float32.
//
// Where a product and a sum are rounded once is said here, by `multiply_add`, and not left to the compiler, which is told
// to join none (-ffp-contract=off): it joins them in one loop and not in another, so that a cell's bits would depend on
// how many cells are computed with it, and tiles would differ from the whole.

#pragma once

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
#endif
#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__))
#include <immintrin.h>
#elif defined(__ARM_NEON) && defined(__ARM_FEATURE_FMA)
#include <arm_neon.h>
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
static_assert(ROWS <= TILE, "a tile holds a block of rows");
static_assert(COLUMNS <= 3 && ROWS <= 8, "what `product` and the unrolled loops are written for");
static_assert(PAIR * sizeof(Element) == sizeof(float), "a pair of factors is one lane");
typedef float Vector __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t Integers __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

inline Vector splat(float value) { return value - Vector{}; }
inline Vector load(const float *p) { return *reinterpret_cast<const Vector *>(p); }
inline void store(float *p, Vector v) { *reinterpret_cast<Vector *>(p) = v; }

// a * b + c, rounded once on every processor that can, and twice on every other.
inline Vector multiply_add(Vector a, Vector b, Vector c) {
#if defined(__AVX512F__)
    return (Vector)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__) && defined(__FMA__)
    return (Vector)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif !defined(__AVX2__) && defined(__ARM_NEON) && defined(__ARM_FEATURE_FMA)
    return (Vector)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

#if defined(NCA_BFLOAT16)
inline void store_element(Element *p, Vector v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), (__m256i)_mm512_cvtneps_pbh((__m512)v));
}
inline Vector load_element(const Element *p) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
    return (Vector)_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
#else
inline void store_element(Element *p, Vector v) { store(p, v); }
inline Vector load_element(const Element *p) { return load(p); }
#endif

inline float total(Vector v) {
    float sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += v[lane];
    return sum;
}

inline float to_float(Element value) {
#if defined(NCA_BFLOAT16)
    uint32_t bits = static_cast<uint32_t>(value) << 16;
    float wide;
    std::memcpy(&wide, &bits, 4);
    return wide;
#else
    return value;
#endif
}

inline Element to_element(float value) {
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
    Vector r = multiply_add(n, splat(2.12194440e-4f), multiply_add(n, splat(-0.693359375f), x));
    Vector p = splat(1.0f / 720);
    p = multiply_add(p, r, splat(1.0f / 120));
    p = multiply_add(p, r, splat(1.0f / 24));
    p = multiply_add(p, r, splat(1.0f / 6));
    p = multiply_add(p, r, splat(0.5f));
    p = multiply_add(p, r, splat(1.0f));
    p = multiply_add(p, r, splat(1.0f));
    return p * (Vector)((whole + 127) << 23);
}
inline Vector silu(Vector x) { return x / (1.0f + exponential(-x)); }

int round_up(int value, int unit) { return (value + unit - 1) / unit * unit; }

// A weight (outputs, inputs) as panels of COLUMNS * LANES outputs: for each pair of inputs, each output's pair.
struct Panels {
    int inputs = 0, outputs = 0;  // padded to PAIR and to LANES
    std::vector<Element> data;

    // weight: (rows = outputs, columns = inputs), its rows `stride` apart.
    void pack(const float *weight, int rows, int columns, int stride = 0) {
        stride = stride ? stride : columns;
        inputs = round_up(columns, PAIR);
        outputs = round_up(rows, LANES);
        data.assign(static_cast<size_t>(inputs) * outputs + LANES * PAIR, to_element(0.0f));
        size_t at = 0;
        for (int first = 0; first < outputs; first += COLUMNS * LANES) {
            int width = std::min(COLUMNS * LANES, outputs - first);
            for (int k = 0; k < inputs; k += PAIR)
                for (int j = 0; j < width; j++)
                    for (int q = 0; q < PAIR; q++, at++)
                        if (first + j < rows && k + q < columns)
                            data[at] = to_element(weight[static_cast<size_t>(first + j) * stride + k + q]);
        }
    }

    // Of (rows, columns), the panels of its transpose, whose inputs are in `inputs_padded`.
    void pack_transposed(const float *weight, int rows, int columns, int inputs_padded) {
        std::vector<float> turned(static_cast<size_t>(columns) * inputs_padded, 0.0f);
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < columns; j++)
                turned[static_cast<size_t>(j) * inputs_padded + i] = weight[static_cast<size_t>(i) * columns + j];
        pack(turned.data(), columns, inputs_padded);
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
            for (int n = 0; n < N; n++) sums[m][n] = multiply_add(left, right[n], sums[m][n]);
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

// rows (count, width), each pair of them woven together: out (pairs, width, PAIR). A missing last row is zero.
inline void weave(const Element *const *rows, long offset, int count, int width, Element *out) {
    for (int i = 0; i < count; i += PAIR, out += static_cast<long>(width) * PAIR) {
        const Element *a = rows[i] + offset;
        if (PAIR == 1) {
            std::memcpy(out, a, width * sizeof(Element));
        } else if (i + 1 < count) {
            const Element *b = rows[i + 1] + offset;
            for (int k = 0; k < width; k++) out[2 * k] = a[k], out[2 * k + 1] = b[k];
        } else {
            for (int k = 0; k < width; k++) out[2 * k] = a[k], out[2 * k + 1] = to_element(0.0f);
        }
    }
}

template <int M, int N>
inline void outer_block(const Element *left, long left_row, const Element *right, long right_row, int pairs, float *out,
                        long out_row) {
    Vector sums[M][N];
#pragma GCC unroll 8
    for (int m = 0; m < M; m++)
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) sums[m][n] = load(out + m * out_row + n * LANES);
    for (int p = 0; p < pairs; p++, left += left_row, right += right_row) {
        Vector values[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) values[n] = *reinterpret_cast<const Vector *>(right + n * LANES * PAIR);
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) {
#if defined(NCA_BFLOAT16)
            int32_t both;
            std::memcpy(&both, left + m * PAIR, 4);
            __m512bh one = (__m512bh)_mm512_set1_epi32(both);
#pragma GCC unroll 4
            for (int n = 0; n < N; n++)
                sums[m][n] = (Vector)_mm512_dpbf16_ps((__m512)sums[m][n], one, (__m512bh)values[n]);
#else
            Vector one = splat(left[m]);
#pragma GCC unroll 4
            for (int n = 0; n < N; n++) sums[m][n] = multiply_add(one, values[n], sums[m][n]);
#endif
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; m++)
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) store(out + m * out_row + n * LANES, sums[m][n]);
}

template <int N>
inline void outer_columns(const Element *left, int left_width, const Element *right, int right_width, int pairs,
                          float *out, long out_row) {
    int m = 0;
    const long l = static_cast<long>(left_width) * PAIR, r = static_cast<long>(right_width) * PAIR;
    for (; m + ROWS <= left_width; m += ROWS)
        outer_block<ROWS, N>(left + m * PAIR, l, right, r, pairs, out + m * out_row, out_row);
    for (; m + 2 <= left_width; m += 2)
        outer_block<2, N>(left + m * PAIR, l, right, r, pairs, out + m * out_row, out_row);
    for (; m < left_width; m++) outer_block<1, N>(left + m * PAIR, l, right, r, pairs, out + m * out_row, out_row);
}

// out (left_width, right_width) += the sum over rows of left[row] x right[row], both woven; right_width in LANES.
inline void outer(const Element *left, int left_width, const Element *right, int right_width, int rows, float *out) {
    int pairs = (rows + PAIR - 1) / PAIR;
    for (int n = 0; n < right_width;) {
        int vectors = std::min(COLUMNS, (right_width - n) / LANES);
        const Element *from = right + static_cast<long>(n) * PAIR;
        if (vectors == 3)
            outer_columns<3>(left, left_width, from, right_width, pairs, out + n, right_width);
        else if (vectors == 2)
            outer_columns<2>(left, left_width, from, right_width, pairs, out + n, right_width);
        else
            outer_columns<1>(left, left_width, from, right_width, pairs, out + n, right_width);
        n += vectors * LANES;
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

// Run body(0) to body(count - 1), each in a thread of its own. They wait for each other at barriers, so none begins
// before all threads are there, and none where one could not be had. Bodies throw nothing: what they need is allocated
// before.
template <class Body> void in_threads(int count, const Body &body) {
    static_assert(noexcept(body(0)), "an exception in a thread ends the process");
    enum { WAIT, GO, LEAVE };
    std::atomic<int> signal{WAIT};
    std::vector<std::thread> others;
    const auto join = [&](int now) {
        signal = now;
        if (now == GO) body(0);
        for (std::thread &other : others) other.join();
    };
    try {
        others.reserve(count - 1);
        for (int i = 1; i < count; i++)
            others.emplace_back([&signal, &body, i] {
                while (signal == WAIT) std::this_thread::yield();
                if (signal == GO) body(i);
            });
    } catch (...) {
        join(LEAVE);
        throw;
    }
    join(GO);
}

}  // namespace
