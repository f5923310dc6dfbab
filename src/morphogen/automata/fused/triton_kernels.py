"""The NCA step, forward and backward, as Triton kernels.

A program takes BM cells of one image; the grid is (programs an image, images). Cells lie channels last: the state is
(images, height * width, C). Widths that are no powers of two are masked (CP is C rounded up to one), and the hidden
layer is taken in blocks of BH, so it never leaves the chip in the forward pass. `triton_launch` calls these.

Arguments that come up again and again:
weights, of the dtype of the products: perceive (9, C, C) as (tap, from, to); hidden (2C, H); output (H, C).
conditioning inputs: what the embedding contributes, channels last, a row for each image, or with PER_CELL one for each
cell of each image; `shared` is 0 where all images have the same and 1 where each has its own.
keys: int64, an image's key of this step's block of four; word: which of the block's four words is this step's.
BF16: products of bfloat16, else of float32; sums are float32 in either case. EMULATE: Triton's interpreter, which
cannot multiply bfloat16, gets the rounded numbers as float32.
"""

import triton
import triton.language as tl

from morphogen.automata.update_rule import LEAKY_SLOPE, NORM_EPSILON

EPSILON = tl.constexpr(NORM_EPSILON)
SLOPE = tl.constexpr(LEAKY_SLOPE)


@triton.jit
def _operand(x, BF16: tl.constexpr, EMULATE: tl.constexpr):
    """A factor in the dtype of the products."""
    if BF16:
        x = x.to(tl.bfloat16)
        if EMULATE:
            x = x.to(tl.float32)
    else:
        x = x.to(tl.float32)
    return x


@triton.jit
def _fires(keys, origins, image, y, x, word, threshold):
    """Which cells update: `Key.fire_masks` for cells (y, x) of an image."""
    key = tl.load(keys + image)
    y = tl.load(origins + 2 * image) + y
    x = tl.load(origins + 2 * image + 1) + x
    a, b, c, d = tl.philox(
        key, x.to(tl.uint32), (x >> 32).to(tl.uint32), y.to(tl.uint32), (y >> 32).to(tl.uint32), n_rounds=10
    )
    drawn = tl.where(word == 0, a, tl.where(word == 1, b, tl.where(word == 2, c, d)))
    return drawn.to(tl.int64) < threshold


@triton.jit
def _neighbours(
    cells, weight, image, y, x, alive, height, width, C: tl.constexpr, CP: tl.constexpr, BM: tl.constexpr,
    BK: tl.constexpr, REFLECT: tl.constexpr, BF16: tl.constexpr, EMULATE: tl.constexpr,
):  # fmt: skip
    """A 3x3 convolution at the cells (y, x) of an image: float32 (BM, CP)."""
    total = tl.zeros((BM, CP), tl.float32)
    to = tl.arange(0, CP)
    for tap in range(9):
        row = y + tap // 3 - 1
        column = x + tap % 3 - 1
        if REFLECT:
            row = tl.abs(row)
            row = tl.where(row >= height, 2 * height - 2 - row, row)
            column = tl.abs(column)
            column = tl.where(column >= width, 2 * width - 2 - column, column)
        inside = alive & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        place = ((image * height + row) * width + column).to(tl.int64)
        for k0 in range(0, C, BK):
            k = k0 + tl.arange(0, BK)
            a = tl.load(cells + place[:, None] * C + k[None, :], inside[:, None] & (k < C)[None, :], 0.0)
            b = tl.load(weight + (tap * C + k)[:, None] * C + to[None, :], (k < C)[:, None] & (to < C)[None, :], 0.0)
            total = tl.dot(_operand(a, BF16, EMULATE), b, total, input_precision="ieee")
    return total


@triton.jit
def _conditioning(pointer, rows, there, channel, N: tl.constexpr):
    """A conditioning input of the cells: float32 (BM or 1, channels), zero beyond N."""
    keep = there[:, None] & (channel < N)[None, :]
    return tl.load(pointer + rows[:, None] * N + channel[None, :], keep, 0.0).to(tl.float32)


@triton.jit
def _hidden(
    xs, ps, weight, bias, rows, there, h, C: tl.constexpr, H: tl.constexpr, CP: tl.constexpr
):  # fmt: skip
    """Columns h of the hidden layer before normalisation: float32 (BM, BH). xs, ps: both halves of z."""
    k = tl.arange(0, CP)
    keep = (k < C)[:, None] & (h < H)[None, :]
    first = tl.load(weight + k[:, None] * H + h[None, :], keep, 0.0)
    second = tl.load(weight + (C + k)[:, None] * H + h[None, :], keep, 0.0)
    total = tl.dot(xs, first, input_precision="ieee")
    total = tl.dot(ps, second, total, input_precision="ieee")
    return total + _conditioning(bias, rows, there, h, H)


@triton.jit
def _spread(
    xs, ps, weight, bias, rows, there, C: tl.constexpr, H: tl.constexpr, CP: tl.constexpr, BM: tl.constexpr,
    BH: tl.constexpr,
):  # fmt: skip
    """Each cell's mean over the hidden layer and its sum of squares around that, merged block by block."""
    mean = tl.zeros((BM,), tl.float32)
    squares = tl.zeros((BM,), tl.float32)
    for h0 in range(0, H, BH):
        h = h0 + tl.arange(0, BH)
        value = tl.where((h < H)[None, :], _hidden(xs, ps, weight, bias, rows, there, h, C, H, CP), 0.0)
        count = tl.minimum(H - h0, BH) * 1.0
        middle = tl.sum(value, 1) / count
        off = tl.where((h < H)[None, :], value - middle[:, None], 0.0)
        apart = middle - mean
        mean += apart * (count / (h0 + count))
        squares += tl.sum(off * off, 1) + apart * apart * (h0 * count / (h0 + count))
    return mean, squares


@triton.jit(do_not_specialize=["word", "threshold"])  # else compiled for several values
def forward_kernel(
    state, out, perceive, hidden, output, output_bias, perceive_bias, state_scale, perceived_scale, hidden_bias,
    hidden_scale, norm_weight, norm_bias, perceived, means, spreads, keys, origins, word, threshold, height, width,
    shared, C: tl.constexpr, H: tl.constexpr, CP: tl.constexpr, BM: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr,
    PER_CELL: tl.constexpr, REFLECT: tl.constexpr, GROUP: tl.constexpr, STATISTICS: tl.constexpr, FIRES: tl.constexpr,
    BF16: tl.constexpr, EMULATE: tl.constexpr,
):  # fmt: skip
    """A step; with GROUP in two calls, the first with STATISTICS.

    STATISTICS writes what was perceived (images, cells, C) and each cell's mean and sum of squares (images, cells);
    the second call reads the perceived, and in means and spreads each image's mean and 1 / standard deviation.
    """
    image = tl.program_id(1)
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
    if GROUP and not STATISTICS:
        seen = tl.load(perceived + place[:, None] * C + k[None, :], keep, 0.0).to(tl.float32)
    else:
        seen = _neighbours(
            state, perceive, image, y, x, alive, height, width, C, CP, BM, BK, REFLECT, BF16, EMULATE
        ) + _conditioning(perceive_bias, rows, there, k, C)
    xs = _operand(own * _conditioning(state_scale, rows, there, k, C), BF16, EMULATE)
    ps = _operand(seen * _conditioning(perceived_scale, rows, there, k, C), BF16, EMULATE)
    if STATISTICS:
        mean, squares = _spread(xs, ps, hidden, hidden_bias, rows, there, C, H, CP, BM, BH)
        tl.store(perceived + place[:, None] * C + k[None, :], seen, keep)
        tl.store(means + place, mean, alive)
        tl.store(spreads + place, squares, alive)
    else:
        if GROUP:
            mean = tl.load(means + image + tl.zeros((BM,), tl.int32))
            scale = tl.load(spreads + image + tl.zeros((BM,), tl.int32))
        else:
            mean, squares = _spread(xs, ps, hidden, hidden_bias, rows, there, C, H, CP, BM, BH)
            scale = tl.rsqrt(squares / H + EPSILON)
        change = tl.zeros((BM, CP), tl.float32)
        for h0 in range(0, H, BH):
            h = h0 + tl.arange(0, BH)
            value = _hidden(xs, ps, hidden, hidden_bias, rows, there, h, C, H, CP)
            value = (value - mean[:, None]) * scale[:, None]
            if GROUP:
                weight = tl.load(norm_weight + h, h < H, 0.0)
                value = value * weight[None, :] + tl.load(norm_bias + h, h < H, 0.0)[None, :]
            value = tl.where(value > 0, value, value * SLOPE) * _conditioning(hidden_scale, rows, there, h, H)
            w = tl.load(output + h[:, None] * C + k[None, :], (h < H)[:, None] & (k < C)[None, :], 0.0)
            change = tl.dot(_operand(value, BF16, EMULATE), w, change, input_precision="ieee")
        change += tl.load(output_bias + k, k < C, 0.0)[None, :]
        if FIRES:
            fire = _fires(keys, origins, image, y, x, word, threshold)
            change = tl.where(fire[:, None], change, 0.0)
        tl.store(out + place[:, None] * C + k[None, :], own + change, keep)


@triton.jit(do_not_specialize=["word", "threshold"])  # else compiled for several values
def fire_kernel(keys, origins, out, word, threshold, height, width, BM: tl.constexpr):
    """Which cells update, as uint8 (images, cells)."""
    image = tl.program_id(1)
    cell = tl.program_id(0) * BM + tl.arange(0, BM)
    fire = _fires(keys, origins, image, cell // width, cell % width, word, threshold)
    tl.store(out + image * height * width + cell, fire.to(tl.uint8), cell < height * width)
