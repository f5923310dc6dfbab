"""The gradients of an NCA step, as Triton kernels; see `triton_kernels` for the layout and the recurring arguments."""

import triton
import triton.language as tl

from morphogen.automata.fused.triton_kernels import (
    EPSILON,
    SLOPE,
    _conditioning,
    _fires,
    _hidden,
    _neighbours,
    _operand,
    _spread,
)


@triton.jit
def _emit(pointer, value, rows, part, alive, channel, N: tl.constexpr, PER_CELL: tl.constexpr):
    """Store a gradient (BM, channels): of every cell with PER_CELL, else its sum over this program's cells."""
    if PER_CELL:
        tl.store(pointer + rows[:, None] * N + channel[None, :], value, alive[:, None] & (channel < N)[None, :])
    else:
        tl.store(pointer + part * N + channel, tl.sum(value, 0), channel < N)


@triton.jit(do_not_specialize=["word", "threshold"])  # else compiled for several values
def backward_kernel(
    state, weights, conditioning, norm, statistics, sums, fire, word, threshold, gradient, d_state, factors,
    d_conditioning, d_norm, d_output_bias, size, C: tl.constexpr, H: tl.constexpr, CP: tl.constexpr, BM: tl.constexpr,
    BH: tl.constexpr, BK: tl.constexpr, PER_CELL: tl.constexpr, REFLECT: tl.constexpr, GROUP: tl.constexpr,
    SUMS: tl.constexpr, FIRES: tl.constexpr, BF16: tl.constexpr, EMULATE: tl.constexpr,
):  # fmt: skip
    """The gradients of a step, given that of the next state, `gradient` (images, cells, C); everything recomputed.

    With GROUP in two calls after `forward_kernel` with STATISTICS. The first, with SUMS, writes for each cell the sums
    (images, cells) of the gradient of the normalised hidden layer and of its product with that layer; the second
    reads their means for each image from the same places, as `means` and `spreads` hold those of the hidden layer.

    Tuples of pointers: weights (perceive, hidden, output), conditioning (perceive_bias, state_scale, perceived_scale,
    hidden_bias, hidden_scale), norm (weight, bias), statistics (perceived, means, spreads), sums (first, second), fire
    (keys, origins); size (height, width, shared).

    Writes d_state (without what comes through perceiving), the factors of the weights' gradients (d_seen: the gradient
    of what was perceived, z (cells, 2C), change (cells, C): the gradient of the masked change, activated and d_hidden
    (cells, H)), and the gradients of the conditioning inputs, in their order, and of the biases: maps with PER_CELL,
    where those are maps, else sums of each program.
    """
    perceive, hidden, output = weights
    perceive_bias, state_scale, perceived_scale, hidden_bias, hidden_scale = conditioning
    norm_weight, norm_bias = norm
    perceived, means, spreads = statistics
    first_sums, second_sums = sums
    keys, origins = fire
    d_seen, z, change, activated, d_hidden = factors
    d_perceive_bias, d_state_scale, d_perceived_scale, d_hidden_bias, d_hidden_scale = d_conditioning
    d_norm_weight, d_norm_bias = d_norm
    height, width, shared = size
    image = tl.program_id(1)
    part = image * tl.num_programs(0) + tl.program_id(0)
    cell = tl.program_id(0) * BM + tl.arange(0, BM)
    alive = cell < height * width
    y, x = cell // width, cell % width
    place = (image * height * width + cell).to(tl.int64)
    if PER_CELL:
        rows = (image * shared * height * width + cell).to(tl.int64)
        there = alive
    else:
        rows = (image * shared + tl.arange(0, 1)).to(tl.int64)
        there = rows >= 0
    k = tl.arange(0, CP)
    keep = alive[:, None] & (k < C)[None, :]
    own = tl.load(state + place[:, None] * C + k[None, :], keep, 0.0).to(tl.float32)
    if GROUP:
        seen = tl.load(perceived + place[:, None] * C + k[None, :], keep, 0.0).to(tl.float32)
    else:
        seen = _neighbours(
            state, perceive, image, y, x, alive, height, width, C, CP, BM, BK, REFLECT, BF16, EMULATE
        ) + _conditioning(perceive_bias, rows, there, k, C)
    one = _conditioning(state_scale, rows, there, k, C)
    two = _conditioning(perceived_scale, rows, there, k, C)
    xs = _operand(own * one, BF16, EMULATE)
    ps = _operand(seen * two, BF16, EMULATE)
    if GROUP:
        mean = tl.load(means + image + tl.zeros((BM,), tl.int32))
        scale = tl.load(spreads + image + tl.zeros((BM,), tl.int32))
    else:
        mean, squares = _spread(xs, ps, hidden, hidden_bias, rows, there, C, H, CP, BM, BH)
        scale = tl.rsqrt(squares / H + EPSILON)
    after = tl.load(gradient + place[:, None] * C + k[None, :], keep, 0.0).to(tl.float32)
    arriving = after
    if FIRES:
        fire = _fires(keys, origins, image, y, x, word, threshold)
        arriving = tl.where(fire[:, None], after, 0.0)
    into = _operand(arriving, BF16, EMULATE)

    if GROUP and not SUMS:
        first = tl.load(first_sums + image + tl.zeros((BM,), tl.int32))
        second = tl.load(second_sums + image + tl.zeros((BM,), tl.int32))
    else:
        first = tl.zeros((BM,), tl.float32)
        second = tl.zeros((BM,), tl.float32)
        for h0 in range(0, H, BH):
            h = h0 + tl.arange(0, BH)
            value = _hidden(xs, ps, hidden, hidden_bias, rows, there, h, C, H, CP)
            value = (value - mean[:, None]) * scale[:, None]
            w = tl.load(output + h[:, None] * C + k[None, :], (h < H)[:, None] & (k < C)[None, :], 0.0)
            d = tl.dot(into, tl.trans(w), input_precision="ieee") * _conditioning(hidden_scale, rows, there, h, H)
            if GROUP:
                weight = tl.load(norm_weight + h, h < H, 0.0)[None, :]
                bent = value * weight + tl.load(norm_bias + h, h < H, 0.0)[None, :]
                d = tl.where(bent > 0, d, d * SLOPE) * weight
            else:
                d = tl.where(value > 0, d, d * SLOPE)
            first += tl.sum(d, 1)
            second += tl.sum(d * value, 1)
        if not SUMS:
            first = first / H
            second = second / H

    if SUMS:
        tl.store(first_sums + place, first, alive)
        tl.store(second_sums + place, second, alive)
    else:
        d_xs = tl.zeros((BM, CP), tl.float32)
        d_ps = tl.zeros((BM, CP), tl.float32)
        for h0 in range(0, H, BH):
            h = h0 + tl.arange(0, BH)
            value = _hidden(xs, ps, hidden, hidden_bias, rows, there, h, C, H, CP)
            value = (value - mean[:, None]) * scale[:, None]
            factor = _conditioning(hidden_scale, rows, there, h, H)
            w = tl.load(output + h[:, None] * C + k[None, :], (h < H)[:, None] & (k < C)[None, :], 0.0)
            d = tl.dot(into, tl.trans(w), input_precision="ieee")
            bent = value
            if GROUP:
                weight = tl.load(norm_weight + h, h < H, 0.0)[None, :]
                bent = value * weight + tl.load(norm_bias + h, h < H, 0.0)[None, :]
            slope = tl.where(bent > 0, 1.0, SLOPE)
            active = bent * slope
            inside = alive[:, None] & (h < H)[None, :]
            tl.store(activated + place[:, None] * H + h[None, :], active * factor, inside)
            _emit(d_hidden_scale, d * active, rows, part, alive, h, H, PER_CELL)
            d = d * factor * slope
            if GROUP:
                tl.store(d_norm_weight + part * H + h, tl.sum(d * value, 0), h < H)
                tl.store(d_norm_bias + part * H + h, tl.sum(d, 0), h < H)
                d = d * weight
            d = tl.where(inside, scale[:, None] * (d - first[:, None] - value * second[:, None]), 0.0)
            tl.store(d_hidden + place[:, None] * H + h[None, :], d, inside)
            _emit(d_hidden_bias, d, rows, part, alive, h, H, PER_CELL)
            d = _operand(d, BF16, EMULATE)
            columns = (k < C)[:, None] & (h < H)[None, :]
            w = tl.load(hidden + k[:, None] * H + h[None, :], columns, 0.0)
            d_xs = tl.dot(d, tl.trans(w), d_xs, input_precision="ieee")
            w = tl.load(hidden + (C + k)[:, None] * H + h[None, :], columns, 0.0)
            d_ps = tl.dot(d, tl.trans(w), d_ps, input_precision="ieee")
        tl.store(d_state + place[:, None] * C + k[None, :], after + d_xs * one, keep)
        tl.store(d_seen + place[:, None] * C + k[None, :], d_ps * two, keep)
        tl.store(z + place[:, None] * 2 * C + k[None, :], own * one, keep)
        tl.store(z + place[:, None] * 2 * C + C + k[None, :], seen * two, keep)
        tl.store(change + place[:, None] * C + k[None, :], arriving, keep)
        tl.store(d_output_bias + part * C + k, tl.sum(arriving, 0), k < C)
        _emit(d_perceive_bias, d_ps * two, rows, part, alive, k, C, PER_CELL)
        _emit(d_state_scale, d_xs * own, rows, part, alive, k, C, PER_CELL)
        # A cell beyond the image perceives the bias, but its gradient is zero.
        _emit(d_perceived_scale, d_ps * seen, rows, part, alive, k, C, PER_CELL)


@triton.jit
def perceive_backward_kernel(
    d_seen, perceive, out, height, width, BORDER: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, BM: tl.constexpr,
    BK: tl.constexpr, BF16: tl.constexpr, EMULATE: tl.constexpr,
):  # fmt: skip
    """The gradient of the state through perceiving, float32 (images, height + 2 BORDER, width + 2 BORDER, C).

    perceive (9, C, C): the weights turned around, as (8 - tap, to, from).
    """
    image = tl.program_id(1)
    wide = width + 2 * BORDER
    count = (height + 2 * BORDER) * wide
    cell = tl.program_id(0) * BM + tl.arange(0, BM)
    alive = cell < count
    y, x = cell // wide - BORDER, cell % wide - BORDER
    total = _neighbours(d_seen, perceive, image, y, x, alive, height, width, C, CP, BM, BK, False, BF16, EMULATE)
    k = tl.arange(0, CP)
    place = (image * count + cell).to(tl.int64)
    tl.store(out + place[:, None] * C + k[None, :], total, alive[:, None] & (k < C)[None, :])
