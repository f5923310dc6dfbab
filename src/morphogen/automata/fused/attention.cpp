// Attention of chosen cells to their 3x3 neighbourhood, and its gradients, without copies of neighbours: each neighbour's
// key and value is read where it lies. automata/neighbours.py is what this must agree with.
//
// Rows are float32, one after another: queries (count, wide) of the cells numbered by `cells`, keys and values
// (batch * height * width, wide) with `stride` numbers from one row to the next, weights (count, heads, 9).

#include "products.h"

namespace {

constexpr int NEIGHBOURS = 9;

struct Grid9 {
    int height, width, heads, deep, wide, masked;
    int64_t stride;

    // The cells around cell `number`, or -1 off the grid.
    void around(int64_t number, int64_t *there) const {
        const int64_t place = number % (static_cast<int64_t>(height) * width);
        const int y = static_cast<int>(place / width), x = static_cast<int>(place % width);
        for (int i = 0; i < NEIGHBOURS; i++) {
            const int down = i / 3 - 1, right = i % 3 - 1;
            const bool inside = y + down >= 0 && y + down < height && x + right >= 0 && x + right < width;
            there[i] = inside ? number + down * width + right : -1;
        }
    }
};

inline float dot(const float *a, const float *b, int count) {
    Vector sum{};
    int i = 0;
    for (; i + LANES <= count; i += LANES) sum += load(a + i) * load(b + i);
    float all = total(sum);
    for (; i < count; i++) all += a[i] * b[i];
    return all;
}

inline void add(float *to, const float *from, float by, int count) {
    int i = 0;
    for (; i + LANES <= count; i += LANES) store(to + i, load(to + i) + load(from + i) * by);
    for (; i < count; i++) to[i] += from[i] * by;
}

// Softmax over the neighbours that count; the others get no weight.
inline void softmax(const Grid9 &g, const int64_t *there, float *w) {
    float most = -INFINITY;
    for (int i = 0; i < NEIGHBOURS; i++)
        if (!g.masked || there[i] >= 0) most = std::max(most, w[i]);
    float sum = 0;
    for (int i = 0; i < NEIGHBOURS; i++) sum += w[i] = g.masked && there[i] < 0 ? 0.0f : std::exp(w[i] - most);
    for (int i = 0; i < NEIGHBOURS; i++) w[i] /= sum;
}

}  // namespace

extern "C" {

// out: (count, wide). weights: kept for the gradients, or null.
void neighbours_attend(const float *queries, const float *keys, const float *values, int64_t stride, const int64_t *cells,
                       int64_t count, int height, int width, int heads, int deep, int masked, float *out,
                       float *weights, int threads) {
    const Grid9 g{height, width, heads, deep, heads * deep, masked, stride};
    const float scale = 1.0f / std::sqrt(static_cast<float>(deep));
    in_threads(threads, [&](int thread) {
        const int64_t first = count * thread / threads, last = count * (thread + 1) / threads;
        int64_t there[NEIGHBOURS];
        float here[NEIGHBOURS];
        for (int64_t n = first; n < last; n++) {
            g.around(cells[n], there);
            float *to = out + n * g.wide;
            std::fill(to, to + g.wide, 0.0f);
            for (int head = 0; head < heads; head++) {
                const int at = head * deep;
                const float *q = queries + n * g.wide + at;
                for (int i = 0; i < NEIGHBOURS; i++)
                    here[i] = there[i] < 0 ? 0.0f : scale * dot(q, keys + there[i] * stride + at, deep);
                softmax(g, there, here);
                for (int i = 0; i < NEIGHBOURS; i++)
                    if (there[i] >= 0) add(to + at, values + there[i] * stride + at, here[i], deep);
                if (weights) std::copy(here, here + NEIGHBOURS, weights + (n * heads + head) * NEIGHBOURS);
            }
        }
    });
}

// Gradients, added to: d_queries (count, wide); d_keys, d_values, rows like keys and values but `wide` apart. Heads are
// dealt out to threads, so that two never add to the same numbers, and each adds in the order of the cells.
void neighbours_gradients(const float *queries, const float *keys, const float *values, int64_t stride,
                          const int64_t *cells, int64_t count, int height, int width, int heads, int deep,
                          const float *weights, const float *d_out, float *d_queries, float *d_keys, float *d_values,
                          int threads) {
    const Grid9 g{height, width, heads, deep, heads * deep, 0, stride};
    const float scale = 1.0f / std::sqrt(static_cast<float>(deep));
    in_threads(threads, [&](int thread) {
        int64_t there[NEIGHBOURS];
        float back[NEIGHBOURS];
        for (int head = thread; head < heads; head += threads) {
            const int at = head * deep;
            for (int64_t n = 0; n < count; n++) {
                g.around(cells[n], there);
                const float *w = weights + (n * heads + head) * NEIGHBOURS, *d = d_out + n * g.wide + at;
                const float *q = queries + n * g.wide + at;
                float mean = 0;
                for (int i = 0; i < NEIGHBOURS; i++) {
                    back[i] = there[i] < 0 ? 0.0f : dot(d, values + there[i] * stride + at, deep);
                    mean += w[i] * back[i];
                }
                for (int i = 0; i < NEIGHBOURS; i++) {
                    if (there[i] < 0) continue;
                    const float by = w[i] * (back[i] - mean) * scale;
                    add(d_queries + n * g.wide + at, keys + there[i] * stride + at, by, deep);
                    add(d_keys + there[i] * g.wide + at, q, by, deep);
                    add(d_values + there[i] * g.wide + at, d, w[i], deep);
                }
            }
        }
    });
}
}
