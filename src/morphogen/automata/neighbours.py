"""Attention of a cell to its 3x3 neighbourhood, for the cells that update, without copies of all neighbours.

The literal form copies every cell's nine keys and nine values. Here one neighbour at a time is looked at, and the
backward pass looks at them again. On a CPU a compiled kernel does both in one pass if there is one; on a GPU Triton
kernels do, where the model has them (`GeCA.compute_in`).
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from morphogen.automata.fused.abi import AttentionArguments
from morphogen.automata.fused.build import load_attention
from morphogen.automata.fused.compiler import Unavailable
from morphogen.core.notices import say_once

_SIDE = 3


class CellGrid(NamedTuple):
    """A batch of grids of cells; cell (b, y, x) is number (b * height + y) * width + x."""

    batch: int
    height: int
    width: int

    @property
    def cells(self) -> int:
        return self.batch * self.height * self.width


class Kernel(Protocol):
    """The interface of an attention kernel on a device of its own; `fused.triton_attention.TritonAttention` is one."""

    def takes(self, queries: Tensor) -> bool:
        """Whether it is for such tensors."""

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, cells: Tensor, grid: CellGrid, heads: int, masked: bool
    ) -> tuple[Tensor, Tensor]:
        """The attended values, and a tensor that `gradients` needs."""

    def gradients(
        self, q: Tensor, k: Tensor, v: Tensor, cells: Tensor, kept: Tensor, d_out: Tensor, grid: CellGrid, heads: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of q, k and v."""


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    cells: Tensor,
    grid: CellGrid,
    heads: int,
    masked: bool = False,
    kernel: Kernel | None = None,
) -> Tensor:
    """Attention of some cells to their neighbours: (F, D), with gradients.

    queries: (F, D) of the cells numbered by `cells`, int64 (F,), each at most once. keys, values: (cells of the grid,
    D). heads: each attends with its own D / heads numbers. masked: neighbours off the grid are left out; otherwise they
    are zero vectors inside the softmax, as released. kernel: what computes it where it takes these tensors.
    """
    if kernel is not None and not kernel.takes(queries):
        kernel = None
    result: Tensor = _Attention.apply(queries, keys, values, cells, grid, heads, masked, kernel)
    return result


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        cells: Tensor,
        grid: CellGrid,
        heads: int,
        masked: bool,
        given: Kernel | None,
    ) -> Tensor:
        kept = any(ctx.needs_input_grad)
        ctx.given, ctx.kernel = (grid, heads), given
        if given is not None:
            out, weights = given.attend(queries, keys, values, cells, grid, heads, masked)
            ctx.save_for_backward(queries, keys, values, cells, weights)
            return out
        ctx.dtypes = queries.dtype, keys.dtype, values.dtype
        q, k, v = (_wide(t) for t in (queries, keys, values))
        kernel = _kernel(q)
        if kernel is None:
            out, weights = _attend_plainly(q, k, v, cells, grid, heads, masked)
        else:
            out, weights = _attend_by(kernel, q, k, v, cells, grid, heads, masked, kept)
        ctx.save_for_backward(queries, keys, values, cells, weights)
        return out.to(queries.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        queries, keys, values, cells, weights = ctx.saved_tensors
        if ctx.kernel is not None:
            d_out = gradient.to(queries.dtype)
            return (*ctx.kernel.gradients(queries, keys, values, cells, weights, d_out, *ctx.given), *[None] * 5)
        q, k, v, d_out = (_wide(t) for t in (queries, keys, values, gradient))
        kernel = _kernel(q)
        if kernel is None:
            found = _gradients_plainly(q, k, v, cells, weights, d_out, *ctx.given)
        else:
            found = _gradients_by(kernel, q, k, v, cells, weights, d_out, *ctx.given)
        return (*(t.to(dtype) for t, dtype in zip(found, ctx.dtypes, strict=True)), *[None] * 5)


def _kernel(like: Tensor) -> ctypes.CDLL | None:
    """The compiled kernel, or None on other devices, for other types, and if there is no compiler."""
    if like.device.type != "cpu" or like.dtype != torch.float32:
        return None
    try:
        return load_attention()
    except Unavailable as reason:
        say_once(f"note: attention without the fast kernel: {reason}")
        return None


def _arguments(
    q: Tensor, k: Tensor, v: Tensor, cells: Tensor, grid: CellGrid, heads: int
) -> tuple[AttentionArguments, list[Tensor]]:
    """The arguments that the kernel's functions share, and the tensors that must live as long."""
    if k.stride() != v.stride() or k.stride(1) != 1:
        k, v = k.contiguous(), v.contiguous()
    q, cells = q.contiguous(), cells.contiguous()
    given = AttentionArguments(stride=k.stride(0), count=len(cells), height=grid.height, width=grid.width)
    given.heads, given.deep, given.threads = heads, q.shape[1] // heads, torch.get_num_threads()
    given.point({"queries": q, "keys": k, "values": v, "cells": cells})
    return given, [q, k, v, cells]


def _attend_by(
    kernel: ctypes.CDLL,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cells: Tensor,
    grid: CellGrid,
    heads: int,
    masked: bool,
    kept: bool,
) -> tuple[Tensor, Tensor]:
    given, held = _arguments(q, k, v, cells, grid, heads)
    given.masked = int(masked)
    out = torch.empty_like(held[0])
    weights = torch.empty(len(cells) if kept else 0, heads, 9)
    given.point({"out": out} | ({"weights": weights} if kept else {}))
    kernel.neighbours_attend(given)
    return out, weights


def _gradients_by(
    kernel: ctypes.CDLL,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cells: Tensor,
    weights: Tensor,
    d_out: Tensor,
    grid: CellGrid,
    heads: int,
) -> tuple[Tensor, Tensor, Tensor]:
    given, held = _arguments(q, k, v, cells, grid, heads)
    d_out = d_out.contiguous()
    d_q, d_k, d_v = (torch.zeros(t.shape) for t in (q, k, v))
    given.point({"weights": weights, "d_out": d_out, "d_queries": d_q, "d_keys": d_k, "d_values": d_v})
    kernel.neighbours_gradients(given)
    del held
    return d_q, d_k, d_v


def _attend_plainly(
    q: Tensor, k: Tensor, v: Tensor, cells: Tensor, grid: CellGrid, heads: int, masked: bool
) -> tuple[Tensor, Tensor]:
    place = _places(cells, grid)
    scale = (q.shape[1] // heads) ** -0.5
    logits = torch.stack([_per_head(q * _around(k, place, i, grid), heads) * scale for i in range(9)], dim=-1)
    if masked:
        logits = logits.masked_fill(_off_grid(place, grid)[:, None], -torch.inf)
    weights = logits.softmax(dim=-1)
    out = torch.zeros_like(q)
    for i in range(9):
        out += _over_heads(weights[..., i], _around(v, place, i, grid))
    return out, weights


def _gradients_plainly(
    q: Tensor, k: Tensor, v: Tensor, cells: Tensor, weights: Tensor, d_out: Tensor, grid: CellGrid, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    place = _places(cells, grid)
    scale = (q.shape[1] // heads) ** -0.5
    d_weights = torch.stack([_per_head(d_out * _around(v, place, i, grid), heads) for i in range(9)], dim=-1)
    d_logits = weights * (d_weights - (weights * d_weights).sum(dim=-1, keepdim=True)) * scale
    d_q, d_k, d_v = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for i in range(9):
        there, inside = _neighbour(place, i, grid)
        d_q += _over_heads(d_logits[..., i], _around(k, place, i, grid))
        d_k.index_add_(0, there[inside], _over_heads(d_logits[..., i], q)[inside])
        d_v.index_add_(0, there[inside], _over_heads(weights[..., i], d_out)[inside])
    return d_q, d_k, d_v


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _places(cells: Tensor, grid: CellGrid) -> tuple[Tensor, Tensor, Tensor]:
    return cells, cells // grid.width % grid.height, cells % grid.width


def _neighbour(place: tuple[Tensor, Tensor, Tensor], i: int, grid: CellGrid) -> tuple[Tensor, Tensor]:
    """The numbers (F,) of neighbours i, 0 being the upper left, and whether they lie on the grid."""
    cells, rows, columns = place
    down, right = i // _SIDE - 1, i % _SIDE - 1
    y, x = rows + down, columns + right
    return cells + down * grid.width + right, (y >= 0) & (y < grid.height) & (x >= 0) & (x < grid.width)


def _around(values: Tensor, place: tuple[Tensor, Tensor, Tensor], i: int, grid: CellGrid) -> Tensor:
    """Neighbours i of the cells (F, D), zero off the grid."""
    there, inside = _neighbour(place, i, grid)
    return values[there.clamp(0, grid.cells - 1)].mul_(inside[:, None])


def _off_grid(place: tuple[Tensor, Tensor, Tensor], grid: CellGrid) -> Tensor:
    return torch.stack([~_neighbour(place, i, grid)[1] for i in range(9)], dim=-1)


def _per_head(products: Tensor, heads: int) -> Tensor:
    """Sums (F, heads) over the numbers of each head of (F, D)."""
    return products.view(len(products), heads, -1).sum(dim=-1)


def _over_heads(weights: Tensor, values: Tensor) -> Tensor:
    """Values (F, D), each head's numbers times its weight (F, heads)."""
    return (values.view(*weights.shape, -1) * weights[..., None]).flatten(1)
