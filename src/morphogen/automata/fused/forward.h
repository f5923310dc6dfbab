// Running the steps: blocks of cells, shared out among threads.

#pragma once

#include "rule.h"

namespace {

struct Forward {
    Grid &g;
    const Rule &r;
    const RunArguments &p;
    float *state;      // (batch, height, width, channels), changed in place
    Element *history;  // (2 or steps + 1, g.size()): the states that cells perceive, of each step or of the last two
    bool keep_all;
    Statistics *kept_statistics;  // (steps, batch), or null: for gradients through the group norm
    Barrier barrier;
    std::atomic<int> taken{0};
    int block_count;
    std::vector<double> sums;  // (blocks, batch, 2): of the hidden layer, for the group norm
    std::vector<float> kept;   // (cells, batch, hidden_padded): the hidden layer, likewise
    std::vector<Statistics> statistics;
    std::vector<Work> works;  // one a thread

    Forward(Grid &grid, Element *states, bool all, Statistics *statistics_out)
        : g(grid), r(grid.rule), p(grid.run), state(p.state), history(states), keep_all(all),
          kept_statistics(statistics_out), barrier(p.threads), block_count((p.cell_count + TILE - 1) / TILE),
          works(p.threads, Work(r)) {
        if (r.group) {
            sums.resize(static_cast<size_t>(block_count) * p.batch * 2);
            kept.resize(static_cast<size_t>(p.cell_count) * p.batch * r.hidden_padded);
            statistics.resize(p.batch);
        }
    }

    void run() {
        in_threads(p.threads, [this](int thread) noexcept { work(thread); });
    }

    Element *states(int step) { return history + static_cast<size_t>(keep_all ? step : step % 2) * g.size(); }

    template <class Body> void blocks(int thread, const Body &body) {
        for (int block; (block = taken.fetch_add(1)) < block_count;)
            body(block, block * TILE, std::min((block + 1) * TILE, p.cell_count));
        barrier.wait();
        if (thread == 0) taken = 0;
        barrier.wait();
    }

    void stay(int b, int position, const Element *now, Element *next) {
        const long at = g.place(b, position);
        std::memcpy(next + at, now + at, r.channels * sizeof(Element));
        g.mirror(next, b, position, 0, r.channels);
    }

    void work(int thread) {
        Work &w = works[thread];
        g.write(state, history, thread);
        if (p.cell_count < p.height * p.width) g.write(state, states(1), thread);  // for the cells that never change
        barrier.wait();
        for (int step = 0; step < p.steps; step++) {
            Element *now = states(step), *next = states(step + 1);
            embed(g, step, thread, now);
            barrier.wait();
            blocks(thread, [&](int block, int begin, int end) {
                for (int b = 0; b < p.batch; b++) {
                    if (b == 0 || p.images > 1) map_embeddings(g, b, begin, end, w, true, !r.group);
                    Tile t(b);
                    for (int i = begin; i < end; i++) {
                        if (r.group || p.fires(step, b, p.cells[i]))
                            t.add(p.cells[i], i - begin);
                        else
                            stay(b, p.cells[i], now, next);
                    }
                    perceive_and_hide(g, step, t, w, now, state, nullptr);
                    if (r.group)
                        keep(block, begin, t, w);
                    else
                        update(step, t, w, nullptr, next);
                }
            });
            if (!r.group) continue;
            if (thread == 0) summarise(step);
            barrier.wait();
            blocks(thread, [&](int, int begin, int end) {
                for (int b = 0; b < p.batch; b++) {
                    if (b == 0 || p.images > 1) map_embeddings(g, b, begin, end, w, false, true);
                    Tile t(b);
                    for (int i = begin; i < end; i++) {
                        if (p.fires(step, b, p.cells[i])) {
                            const float *from = &kept[(static_cast<size_t>(i) * p.batch + b) * r.hidden_padded];
                            std::memcpy(&w.hidden[static_cast<size_t>(t.count) * r.hidden_padded], from,
                                        r.hidden_padded * sizeof(float));
                            t.add(p.cells[i], i - begin);
                        } else {
                            stay(b, p.cells[i], now, next);
                        }
                    }
                    update(step, t, w, &statistics[b], next);
                }
            });
        }
    }

    // What follows the normalisation, added to the state and written to `next`.
    void update(int step, const Tile &t, Work &w, const Statistics *of, Element *next) {
        activate(g, step, t, w, of, nullptr, nullptr);
        const Element *rows[TILE];
        for (int i = 0; i < t.count; i++) rows[i] = &w.activated[static_cast<size_t>(i) * r.hidden_padded];
        const long none = 0;
        product(rows, t.count, &none, 1, r.output, r.output_bias.data(), [&](int i, int j, Vector v) {
            float *to = state + (static_cast<long>(t.b) * p.height * p.width + t.position[i]) * r.channels;
            Element *at = next + g.place(t.b, t.position[i]);
            if (j + LANES <= r.channels) {
                v += load(to + j);
                store(to + j, v);
                store_element(at + j, v);
            } else {
                for (int k = j; k < r.channels; k++) {
                    to[k] += v[k - j];
                    at[k] = to_element(to[k]);
                }
            }
        });
        for (int i = 0; i < t.count; i++) g.mirror(next, t.b, t.position[i], 0, r.channels);
    }

    void keep(int block, int begin, const Tile &t, const Work &w) {
        double sum = 0, squares = 0;
        for (int i = 0; i < t.count; i++) {
            const float *hidden = &w.hidden[static_cast<size_t>(i) * r.hidden_padded];
            std::memcpy(&kept[(static_cast<size_t>(begin + t.slot[i]) * p.batch + t.b) * r.hidden_padded], hidden,
                        r.hidden_padded * sizeof(float));
            Vector one = {}, square = {};
            for (int k = 0; k < r.hidden_padded; k += LANES) {
                Vector v = load(hidden + k);
                one += v;
                square = multiply_add(v, v, square);
            }
            sum += total(one), squares += total(square);
        }
        sums[(static_cast<size_t>(block) * p.batch + t.b) * 2] = sum;
        sums[(static_cast<size_t>(block) * p.batch + t.b) * 2 + 1] = squares;
    }

    void summarise(int step) {
        const double count = static_cast<double>(p.cell_count) * r.hidden;
        for (int b = 0; b < p.batch; b++) {
            double sum = 0, squares = 0;
            for (int i = 0; i < block_count; i++) {
                sum += sums[(static_cast<size_t>(i) * p.batch + b) * 2];
                squares += sums[(static_cast<size_t>(i) * p.batch + b) * 2 + 1];
            }
            const double mean = sum / count, variance = std::max(squares / count - mean * mean, 0.0);
            statistics[b] = {static_cast<float>(mean), static_cast<float>(1.0 / std::sqrt(variance + r.norm_epsilon))};
            if (kept_statistics) kept_statistics[static_cast<long>(step) * p.batch + b] = statistics[b];
        }
    }
};

}  // namespace
