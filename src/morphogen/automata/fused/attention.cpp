// Attention of chosen cells to their 3x3 neighbourhood, and its gradients, without copies of neighbours: each neighbour's
// key and value is read where it lies. automata/neighbours.py is what this must agree with.
// abi.h has the arguments.

#include "abi.h"
#include "products.h"

namespace {

constexpr int NEIGHBOURS = 9;

struct Grid9 {
    int height, width, masked;

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
    for (; i + LANES <= count; i += LANES) sum = multiply_add(load(a + i), load(b + i), sum);
    float all = total(sum);
    for (; i < count; i++) all += a[i] * b[i];
    return all;
}

inline void add(float *to, const float *from, float by, int count) {
    int i = 0;
    for (; i + LANES <= count; i += LANES) store(to + i, multiply_add(load(from + i), splat(by), load(to + i)));
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

#pragma GCC visibility push(default)
extern "C" {

const char *kernel_abi() { return describe(); }
const char *kernel_error() { return last_error; }

int neighbours_attend(const AttentionArguments *arguments) {
    const AttentionArguments &a = *arguments;
    const Grid9 g{a.height, a.width, a.masked};
    const int deep = a.deep, wide = a.heads * a.deep;
    const float scale = 1.0f / std::sqrt(static_cast<float>(deep));
    const auto work = [&](int thread) noexcept {
        const int64_t first = a.count * thread / a.threads, last = a.count * (thread + 1) / a.threads;
        int64_t there[NEIGHBOURS];
        float here[NEIGHBOURS];
        for (int64_t n = first; n < last; n++) {
            g.around(a.cells[n], there);
            float *to = a.out + n * wide;
            std::fill(to, to + wide, 0.0f);
            for (int head = 0; head < a.heads; head++) {
                const int at = head * deep;
                const float *q = a.queries + n * wide + at;
                for (int i = 0; i < NEIGHBOURS; i++)
                    here[i] = there[i] < 0 ? 0.0f : scale * dot(q, a.keys + there[i] * a.stride + at, deep);
                softmax(g, there, here);
                for (int i = 0; i < NEIGHBOURS; i++)
                    if (there[i] >= 0) add(to + at, a.values + there[i] * a.stride + at, here[i], deep);
                if (a.weights) std::copy(here, here + NEIGHBOURS, a.weights + (n * a.heads + head) * NEIGHBOURS);
            }
        }
    };
    return guarded([&] { in_threads(a.threads, work); });
}

// Heads are dealt out to threads, so that two never add to the same numbers, and each adds in the order of the cells.
int neighbours_gradients(const AttentionArguments *arguments) {
    const AttentionArguments &a = *arguments;
    const Grid9 g{a.height, a.width, 0};
    const int deep = a.deep, wide = a.heads * a.deep;
    const float scale = 1.0f / std::sqrt(static_cast<float>(deep));
    const auto work = [&](int thread) noexcept {
        int64_t there[NEIGHBOURS];
        float back[NEIGHBOURS];
        for (int head = thread; head < a.heads; head += a.threads) {
            const int at = head * deep;
            for (int64_t n = 0; n < a.count; n++) {
                g.around(a.cells[n], there);
                const float *w = a.weights + (n * a.heads + head) * NEIGHBOURS, *d = a.d_out + n * wide + at;
                const float *q = a.queries + n * wide + at;
                float mean = 0;
                for (int i = 0; i < NEIGHBOURS; i++) {
                    back[i] = there[i] < 0 ? 0.0f : dot(d, a.values + there[i] * a.stride + at, deep);
                    mean += w[i] * back[i];
                }
                for (int i = 0; i < NEIGHBOURS; i++) {
                    if (there[i] < 0) continue;
                    const float by = w[i] * (back[i] - mean) * scale;
                    add(a.d_queries + n * wide + at, a.keys + there[i] * a.stride + at, by, deep);
                    add(a.d_keys + there[i] * wide + at, q, by, deep);
                    add(a.d_values + there[i] * wide + at, d, w[i], deep);
                }
            }
        }
    };
    return guarded([&] { in_threads(a.threads, work); });
}
}
#pragma GCC visibility pop
