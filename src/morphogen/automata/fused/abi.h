// What Python passes to the kernels. abi.py has the same structures; it compares names, offsets and sizes with those of
// `describe` when a library is loaded, so that neither can be changed alone.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <string>

#define ABI_MEMBER(type, name) type name;
#define ABI_DESCRIBE(type, name) \
    text += " " #name "@" + std::to_string(offsetof(Here, name)) + "+" + std::to_string(sizeof(Here::name));
#define ABI_STRUCTURE(Name, FIELDS)                                       \
    inline void describe_##Name(std::string &text) {                      \
        using Here = Name;                                                \
        text += #Name "+" + std::to_string(sizeof(Here));                 \
        FIELDS(ABI_DESCRIBE)                                              \
        text += "\n";                                                     \
    }

// A rule's weights, float32, with gains folded in. The second line of widths, the mappings and embed_out are for rules
// whose embedding differs from cell to cell; otherwise the widths are 0 and the pointers null.
//
// perceive: (channels, 9 taps, wide). into_hidden: (hidden, z_padded), in the order of z. output: (channels, hidden).
// scale1, scale2: the networks that make the scales of z (in its order, padded) and of the hidden layer, each
// (mapping_hidden, embedding), (mapping_hidden,), (outputs, mapping_hidden), (outputs,). embed_out: (embedding,
// embed_hidden), embed_hidden being padded. norm_weight, norm_bias: of the group norm, or null.
#define RULE_WEIGHTS(F)                                                                                      \
    F(int32_t, channels) F(int32_t, hidden) F(int32_t, embedding) F(int32_t, group)                          \
    F(int32_t, mapping_hidden) F(int32_t, embed_hidden)                                                      \
    F(double, norm_epsilon) F(double, leaky_slope)                                                           \
    F(const float *, perceive) F(const float *, into_hidden) F(const float *, output)                        \
    F(const float *, perceive_bias) F(const float *, hidden_bias) F(const float *, output_bias)              \
    F(const float *, norm_weight) F(const float *, norm_bias)                                                \
    F(const float *, scale1_first) F(const float *, scale1_first_bias)                                       \
    F(const float *, scale1_second) F(const float *, scale1_second_bias)                                     \
    F(const float *, scale2_first) F(const float *, scale2_first_bias)                                       \
    F(const float *, scale2_second) F(const float *, scale2_second_bias)                                     \
    F(const float *, embed_out) F(const float *, embed_out_bias)

// A run of some steps over a batch.
//
// state: (batch, height, width, channels), changed in place; for nca_backward the gradient of the last state, which
// becomes that of the first. images: how many rows the tables have, 1 for all or one for each image.
// step_perceive_bias, step_hidden_bias, step_scale1, step_scale2: where the embedding is one vector, rows (steps,
// images) of channels_padded, hidden_padded, z_padded, hidden_padded. by_x, by_y: where it differs from cell to cell,
// what its first layer adds up, (steps, width, embed_hidden) and (steps, images, height, embed_hidden).
// fire: (steps, batch, height, width), or null: every cell fires. cells: positions (y * width + x) that may be active,
// ascending. history: every step's state, of nca_history bytes, and statistics: of the group norm (steps, batch, 2);
// nca_forward writes both and nca_backward reads them.
#define RUN_ARGUMENTS(F)                                                                                     \
    F(int32_t, batch) F(int32_t, height) F(int32_t, width) F(int32_t, reflect)                               \
    F(int32_t, steps) F(int32_t, images) F(int32_t, cell_count) F(int32_t, threads)                          \
    F(float *, state)                                                                                        \
    F(const float *, step_perceive_bias) F(const float *, step_hidden_bias)                                  \
    F(const float *, step_scale1) F(const float *, step_scale2)                                              \
    F(const float *, by_x) F(const float *, by_y)                                                            \
    F(const uint8_t *, fire) F(const int32_t *, cells) F(void *, history) F(float *, statistics)

// Where gradients are added to, float32, inputs before outputs; packing.py has the shapes.
#define RULE_GRADIENTS(F)                                                                                    \
    F(float *, perceive) F(float *, into_hidden) F(float *, output) F(float *, output_bias)                  \
    F(float *, norm_weight) F(float *, norm_bias) F(float *, perceive_bias) F(float *, hidden_bias)          \
    F(float *, step_perceive_bias) F(float *, step_hidden_bias) F(float *, step_scale1)                      \
    F(float *, step_scale2)                                                                                  \
    F(float *, scale1_first) F(float *, scale1_first_bias) F(float *, scale1_second)                         \
    F(float *, scale1_second_bias)                                                                           \
    F(float *, scale2_first) F(float *, scale2_first_bias) F(float *, scale2_second)                         \
    F(float *, scale2_second_bias)                                                                           \
    F(float *, embed_out) F(float *, embed_out_bias) F(float *, by_x) F(float *, by_y)

// Which cells fire. keys: (blocks of four steps, batch). origins: (batch, 2), the absolute (y, x) of the first cells.
// active: (batch, height, width), or null. fire: (steps, batch, height, width), written.
#define FIRE_ARGUMENTS(F)                                                                                    \
    F(uint64_t, threshold) F(const uint64_t *, keys) F(const int64_t *, origins)                             \
    F(const uint8_t *, active) F(uint8_t *, fire)                                                            \
    F(int32_t, batch) F(int32_t, height) F(int32_t, width) F(int32_t, steps) F(int32_t, threads)

// Attention of chosen cells. Rows are float32: queries (count, heads * deep) of the cells numbered by `cells`, keys and
// values (batch * height * width, heads * deep) with `stride` numbers from one row to the next. weights: (count, heads,
// 9), kept for the gradients, or null. out: like queries. d_out: its gradient. d_queries, d_keys, d_values: added to,
// the last two without gaps between rows.
#define ATTENTION_ARGUMENTS(F)                                                                               \
    F(const float *, queries) F(const float *, keys) F(const float *, values) F(int64_t, stride)             \
    F(const int64_t *, cells) F(int64_t, count) F(int32_t, height) F(int32_t, width) F(int32_t, heads)       \
    F(int32_t, deep) F(int32_t, masked) F(int32_t, threads) F(float *, out) F(float *, weights)              \
    F(const float *, d_out) F(float *, d_queries) F(float *, d_keys) F(float *, d_values)

namespace {

struct RuleWeights {
    RULE_WEIGHTS(ABI_MEMBER)
};
struct RunArguments {
    RUN_ARGUMENTS(ABI_MEMBER)

    bool per_cell_embedding() const { return by_x != nullptr; }
    int own(int b) const { return images > 1 ? b : 0; }
    const float *row(const float *table, int step, int b, int size) const {
        return table + (static_cast<long>(step) * images + own(b)) * size;
    }
    bool fires(int step, int b, int position) const {
        return !fire || fire[(static_cast<long>(step) * batch + b) * height * width + position];
    }
};
struct RuleGradients {
    RULE_GRADIENTS(ABI_MEMBER)
};
struct FireArguments {
    FIRE_ARGUMENTS(ABI_MEMBER)
};
struct AttentionArguments {
    ATTENTION_ARGUMENTS(ABI_MEMBER)
};

ABI_STRUCTURE(RuleWeights, RULE_WEIGHTS)
ABI_STRUCTURE(RunArguments, RUN_ARGUMENTS)
ABI_STRUCTURE(RuleGradients, RULE_GRADIENTS)
ABI_STRUCTURE(FireArguments, FIRE_ARGUMENTS)
ABI_STRUCTURE(AttentionArguments, ATTENTION_ARGUMENTS)

const char *describe() {
    static const std::string all = [] {
        std::string text;
        describe_RuleWeights(text), describe_RunArguments(text), describe_RuleGradients(text);
        describe_FireArguments(text), describe_AttentionArguments(text);
        return text;
    }();
    return all.c_str();
}

thread_local char last_error[200];

// Nothing may be thrown to Python: 0, or 1 with the reason in last_error.
template <class Body> int guarded(const Body &body) noexcept {
    try {
        body();
        return 0;
    } catch (const std::exception &error) {
        std::snprintf(last_error, sizeof last_error, "%s", error.what());
    } catch (...) {
        std::snprintf(last_error, sizeof last_error, "unknown error");
    }
    return 1;
}

}  // namespace
