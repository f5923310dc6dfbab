"""The attention of chosen cells to their 3x3 neighbourhood, forward and backward, as Triton kernels.

A program takes BM cells and one head; the grid is (programs, heads). A cell's neighbours lie side by side in a tile of
NINE = 16 (nine, and seven that never count), and are read where they are. Head widths that are no powers of two are
masked; wide heads are taken BD numbers at a time. No program writes where another does, so results are the same
whatever the order. `triton_attention` calls these.

Arguments that come up again and again:
queries, and rows like them: (count, heads * D), one after another, of the cells numbered by `cells`, int64 (count,).
keys, values: (cells of the grid, heads * D), `keys_apart` and `values_apart` numbers from one row to the next.
spread: float32 (count, heads), the logarithm of the softmax's denominator.
"""

import triton
import triton.language as tl

NINE = tl.constexpr(16)


@triton.jit
def _around(cell, height, width):
    """The numbers (BM, NINE) of the cells around some, and whether they lie on the grid; False for the last seven."""
    i = tl.arange(0, NINE)
    down = i // 3 - 1
    right = i % 3 - 1
    y = (cell // width % height)[:, None] + down[None, :]
    x = (cell % width)[:, None] + right[None, :]
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width) & (i < 9)[None, :]
    return cell[:, None] + (down * width + right)[None, :], inside


@triton.jit
def _row(pointer, row, apart, keep, d, D: tl.constexpr):
    """Numbers d of the program's head in rows (BM,): float32 (BM, BD), zero where not kept."""
    place = row[:, None] * apart + tl.program_id(1) * D + d[None, :]
    return tl.load(pointer + place, keep[:, None] & (d < D)[None, :], 0.0).to(tl.float32)


@triton.jit
def _rows(pointer, row, apart, keep, d, D: tl.constexpr):
    """The same in rows (BM, NINE): float32 (BM, NINE, BD)."""
    place = row[:, :, None] * apart + tl.program_id(1) * D + d[None, None, :]
    return tl.load(pointer + place, keep[:, :, None] & (d < D)[None, None, :], 0.0).to(tl.float32)


@triton.jit
def _put(pointer, value, row, alive, d, WIDE: tl.constexpr, D: tl.constexpr):
    """Store numbers d of the program's head in rows (BM,)."""
    place = row.to(tl.int64)[:, None] * WIDE + tl.program_id(1) * D + d[None, :]
    tl.store(pointer + place, value, alive[:, None] & (d < D)[None, :])


@triton.jit(do_not_specialize=["count"])  # else compiled for several values: it changes from step to step
def attend_kernel(
    queries, keys, values, cells, out, spread, count, keys_apart, values_apart, height, width, scale,
    WIDE: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The attended values: out, like queries, and `spread`."""
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    alive = row < count
    there, inside = _around(tl.load(cells + row, alive, 0), height, width)
    inside = inside & alive[:, None]
    logits = tl.zeros((BM, NINE), tl.float32)
    for d0 in range(0, D, BD):
        d = d0 + tl.arange(0, BD)
        q = _row(queries, row.to(tl.int64), WIDE, alive, d, D)
        logits += tl.sum(q[:, None, :] * _rows(keys, there, keys_apart, inside, d, D), 2)
    # Off the grid a key is zero, and so is its logit, which counts unless masked. A cell itself (4) always counts.
    i = tl.arange(0, NINE)[None, :]
    counts = i < 9
    if MASKED:
        counts = inside | (i == 4)
    logits = tl.where(counts, logits * scale, -float("inf"))
    most = tl.max(logits, 1)
    weights = tl.exp(logits - most[:, None])
    total = tl.sum(weights, 1)
    weights = weights / total[:, None]
    for d0 in range(0, D, BD):
        d = d0 + tl.arange(0, BD)
        attended = tl.sum(weights[:, :, None] * _rows(values, there, values_apart, inside, d, D), 1)
        _put(out, attended, row, alive, d, WIDE, D)
    tl.store(spread + row.to(tl.int64) * HEADS + tl.program_id(1), most + tl.log(total), alive)


@triton.jit(do_not_specialize=["count"])
def queries_kernel(
    queries, keys, values, cells, spread, gradient, d_queries, mean, count, keys_apart, values_apart, height, width,
    scale, WIDE: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """The gradient of the queries, given that of `out`; and `mean`, float32 (count, heads): that of the weights,
    averaged by the weights, which `keys_values_kernel` needs.
    """
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    alive = row < count
    there, inside = _around(tl.load(cells + row, alive, 0), height, width)
    inside = inside & alive[:, None]
    logits = tl.zeros((BM, NINE), tl.float32)
    d_weights = tl.zeros((BM, NINE), tl.float32)
    for d0 in range(0, D, BD):
        d = d0 + tl.arange(0, BD)
        q = _row(queries, row.to(tl.int64), WIDE, alive, d, D)
        back = _row(gradient, row.to(tl.int64), WIDE, alive, d, D)
        logits += tl.sum(q[:, None, :] * _rows(keys, there, keys_apart, inside, d, D), 2)
        d_weights += tl.sum(back[:, None, :] * _rows(values, there, values_apart, inside, d, D), 2)
    # A neighbour off the grid, whether it counts or not, has a key and a value of zero: it adds nothing below.
    one = row.to(tl.int64) * HEADS + tl.program_id(1)
    weights = tl.where(inside, tl.exp(logits * scale - tl.load(spread + one, alive, 0.0)[:, None]), 0.0)
    average = tl.sum(weights * d_weights, 1)
    d_logits = weights * (d_weights - average[:, None]) * scale
    for d0 in range(0, D, BD):
        d = d0 + tl.arange(0, BD)
        found = tl.sum(d_logits[:, :, None] * _rows(keys, there, keys_apart, inside, d, D), 1)
        _put(d_queries, found, row, alive, d, WIDE, D)
    tl.store(mean + one, average, alive)


@triton.jit
def keys_values_kernel(
    queries, keys, values, places, spread, gradient, mean, d_keys, d_values, count, keys_apart, values_apart, height,
    width, scale, WIDE: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """The gradients of the keys and values of all `count` cells of the grid, gathered from the cells that see them.

    places: int32 (count,), the row of each cell's query, or -1 where it has none.
    """
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    alive = row < count
    cell = row.to(tl.int64)
    there, inside = _around(cell, height, width)
    seer = tl.load(places + there, inside & alive[:, None], -1).to(tl.int64)
    sees = seer >= 0
    logits = tl.zeros((BM, NINE), tl.float32)
    d_weights = tl.zeros((BM, NINE), tl.float32)
    for d0 in range(0, D, BD):
        d = d0 + tl.arange(0, BD)
        k = _row(keys, cell, keys_apart, alive, d, D)
        v = _row(values, cell, values_apart, alive, d, D)
        logits += tl.sum(k[:, None, :] * _rows(queries, seer, WIDE, sees, d, D), 2)
        d_weights += tl.sum(v[:, None, :] * _rows(gradient, seer, WIDE, sees, d, D), 2)
    one = seer * HEADS + tl.program_id(1)
    weights = tl.where(sees, tl.exp(logits * scale - tl.load(spread + one, sees, 0.0)), 0.0)
    d_logits = weights * (d_weights - tl.load(mean + one, sees, 0.0)) * scale
    for d0 in range(0, D, BD):
        d = d0 + tl.arange(0, BD)
        d_key = tl.sum(d_logits[:, :, None] * _rows(queries, seer, WIDE, sees, d, D), 1)
        d_value = tl.sum(weights[:, :, None] * _rows(gradient, seer, WIDE, sees, d, D), 1)
        _put(d_keys, d_key, row, alive, d, WIDE, D)
        _put(d_values, d_value, row, alive, d, WIDE, D)
