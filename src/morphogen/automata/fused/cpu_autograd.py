"""An update rule in the form that the kernel runs: for inference, and for training with gradients of its own."""

from __future__ import annotations

import copy
import ctypes
import math
import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from morphogen.automata.embedding import Inputs
from morphogen.automata.fused.build import Precision, load_kernel
from morphogen.automata.fused.packing import Layout, Mapping, Packed, Tables
from morphogen.automata.update_rule import UpdateRule


def _plain(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.detach().to("cpu", torch.float32).contiguous()


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


class _Handle:
    """The kernel's own copy of packed weights."""

    def __init__(self, kernel: ctypes.CDLL, layout: Layout, packed: Packed) -> None:
        hidden = packed.hidden_bias.shape[0]
        group = int(packed.norm_weight is not None)
        plain = [_plain(t) for t in packed[:8]]
        self.value: int = kernel.nca_rule(layout.rule.channels, hidden, layout.embedding, group, *map(_address, plain))
        weakref.finalize(self, kernel.nca_free, self.value)
        if packed.scale1 is not None and packed.scale2 is not None and packed.embed_out is not None:
            maps = [_plain(t) for t in (*packed.scale1, *packed.scale2, packed.embed_out, packed.embed_out_bias)]
            inner, embed = packed.scale1.first.shape[0], packed.embed_out.shape[1]
            kernel.nca_mappings(self.value, inner, *map(_address, maps[:8]), embed, *map(_address, maps[8:]))


class FusedRule:
    """A copy of an update rule's weights, as they are now, and the kernel that runs it.

    precision: of the products; sums, the state and the normalisation are float32. Raises Unavailable where the kernel
    cannot be used on this machine.
    """

    def __init__(self, rule: UpdateRule, precision: Precision) -> None:
        self._kernel = load_kernel(precision)
        self._rule = copy.deepcopy(rule).double()  # so that folding rounds once, however many threads PyTorch has
        # One form for an embedding that is the same everywhere, and one for a map.
        self._forms: dict[bool, tuple[Layout, _Handle]] = {}

    def _form(self, per_cell_embedding: bool) -> tuple[Layout, _Handle]:
        if per_cell_embedding not in self._forms:
            layout = Layout.of(self._rule, per_cell_embedding, self._kernel)
            self._forms[per_cell_embedding] = layout, _Handle(self._kernel, layout, layout.weights())
        return self._forms[per_cell_embedding]

    @torch.no_grad()
    def run(
        self,
        state: Tensor,
        inputs: Inputs,
        steps: int,
        fire: Tensor | None = None,
        active: Tensor | None = None,
        threads: int | None = None,
    ) -> Tensor:
        """The state after `steps` NCA steps, float32 (B, c, H, W), channels last; the given one may be overwritten.

        state: (B, c, H, W). inputs: of one timestep for all images, or of one each. fire: uint8 (steps, B, H, W), or
        None for all. active: boolean (B, 1, H, W), the cells that fire may name; None for all.
        """
        if active is not None and self._rule.norm is not None and len(state) > 1:  # statistics of its own cells only
            alive = active.expand(len(state), *active.shape[1:])
            masks = [None if fire is None else fire[:, [i]].contiguous() for i in range(len(state))]
            each = zip(range(len(state)), masks, strict=True)
            own = [
                inputs if len(inputs.time) == 1 else replace(inputs, time=inputs.time[[i]]) for i in range(len(state))
            ]
            return torch.cat([self.run(state[[i]], own[i], steps, mask, alive[[i]], threads) for i, mask in each])
        layout, handle = self._form(inputs.x is not None)
        call = _Call(state, layout.tables(inputs, steps), steps, fire, active, self._rule, threads, copy=False)
        self._kernel.nca_run(handle.value, *call)
        return call.cells.permute(0, 3, 1, 2)


class _Call:
    """The arguments that the kernel's functions share, and what they point to."""

    def __init__(
        self,
        state: Tensor,
        tables: Tables,
        steps: int,
        fire: Tensor | None,
        active: Tensor | None,
        rule: UpdateRule,
        threads: int | None = None,
        copy: bool = True,
    ) -> None:
        self.cells = _cells(state, copy)
        batch, height, width, _ = self.cells.shape
        self.positions = torch.arange(height * width, dtype=torch.int32)
        if active is not None:
            self.positions = self.positions[active.any(dim=0).flatten().cpu()]
        self.tables, self.fire, self.threads = [_plain(t) for t in tables], fire, threads or torch.get_num_threads()
        self.images = next(t.shape[1] for t in (tables.scale1, tables.by_y) if t is not None)
        self.grid = (batch, height, width, int(rule.padding == "reflect"))
        self.span = (0, steps)

    def __iter__(self) -> Iterator[int | None]:
        first, steps = self.span
        yield self.cells.data_ptr()
        yield from (*self.grid, steps, self.images)
        yield from (_address(_from(table, first)) for table in self.tables)
        yield _address(_from(self.fire, first))
        yield from (_address(self.positions), len(self.positions), self.threads)


def _cells(state: Tensor, copy: bool = True) -> Tensor:
    """A state (B, c, H, W) in the kernel's order, float32 (B, H, W, c); a copy, or itself where it can be."""
    return state.detach().permute(0, 2, 3, 1).to("cpu", torch.float32, copy=copy).contiguous()


def _from(steps: Tensor | None, first: int) -> Tensor | None:
    return None if steps is None else steps[first:]


class _Steps(torch.autograd.Function):
    """The steps with gradients by the kernel. It keeps every step's state, or with a `segment` below `steps` the first
    state of each segment, and computes everything else again.
    """

    @staticmethod
    def forward(
        ctx: Any, kernel: Any, layout: Layout, steps: int, segment: int, fire: Tensor | None, state: Tensor, *flat: Any
    ) -> Any:
        packed, tables = _unflatten(flat)
        handle = _Handle(kernel, layout, packed)
        call = _Call(state, tables, steps, fire, None, layout.rule)
        ctx.given = kernel, layout, handle, call
        ctx.kept = []
        for first in range(0, steps, segment):
            call.span = first, min(segment, steps - first)
            if segment < steps:
                ctx.kept.append((call.span, call.cells.clone(), None))
                kernel.nca_run(handle.value, *call)
            else:
                ctx.kept.append((call.span, None, _keep(kernel, handle, call)))
        ctx.shapes = [None if t is None else t.shape for t in flat]
        return call.cells.permute(0, 3, 1, 2).clone(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        kernel, layout, handle, call = ctx.given
        batch, height, width, _ = call.grid
        steps = sum(span[1] for span, _, _ in ctx.kept)
        found = _gradients(layout, steps, batch, height, width)
        back = _cells(gradient)
        while ctx.kept:
            call.span, cells, history = ctx.kept.pop()
            if history is None:
                call.cells = cells
                history = _keep(kernel, handle, call)
            call.cells = back
            here = [
                _from(t, call.span[0]) if i in _BY_STEP[layout.per_cell_embedding] else t for i, t in enumerate(found)
            ]
            pointers = (ctypes.c_void_p * len(found))(*map(_address, here))
            kernel.nca_backward(handle.value, *call, *map(_address, history), pointers)
        d_flat = _in_order(layout, found)
        d_flat = [None if s is None or g is None else g.reshape(s) for g, s in zip(d_flat, ctx.shapes, strict=True)]
        return None, None, None, None, None, back.permute(0, 3, 1, 2), *d_flat


_BY_STEP = {False: range(6, 10), True: range(20, 22)}  # which of the kernel's gradients have a row for each step


def _keep(kernel: Any, handle: _Handle, call: _Call) -> tuple[Tensor, Tensor]:
    """Run the steps of a call's span; every step's state, and the statistics of the group norm."""
    batch, height, width, _ = call.grid
    steps = call.span[1]
    states = torch.zeros(kernel.nca_history(handle.value, batch, height, width, steps), dtype=torch.uint8)
    statistics = torch.empty(steps, batch, 2)
    kernel.nca_forward(handle.value, *call, states.data_ptr(), statistics.data_ptr())
    return states, statistics


def run_with_gradients(
    rule: UpdateRule,
    precision: Precision,
    state: Tensor,
    inputs: Inputs,
    steps: int,
    fire: Tensor | None,
    recompute: bool = False,
) -> Tensor:
    """`FusedRule.run` for training: with gradients for the state and for the rule's weights.

    recompute: keep a state only every so many steps (the root of their number) and run those between again in the
    backward pass: the same bits from a fraction of the memory, for a quarter more time.
    """
    kernel = load_kernel(precision)
    layout = Layout.of(rule, inputs.x is not None, kernel)
    segment = math.isqrt(steps - 1) + 1 if recompute else steps
    result: Tensor = _Steps.apply(
        kernel, layout, steps, segment, fire, state, *_flatten(layout.weights(), layout.tables(inputs, steps))
    )
    return result


def history_bytes(
    rule: UpdateRule, precision: Precision, per_cell_embedding: bool, batch: int, size: tuple[int, int], steps: int
) -> int:
    """What `run_with_gradients` keeps."""
    kernel = load_kernel(precision)
    layout = Layout.of(rule, per_cell_embedding, kernel)
    padded = (size[0] + 2) * (size[1] + 2)
    return batch * padded * layout.wide * (4 // layout.pair) * (steps + 1)


def _flatten(packed: Packed, tables: Tables) -> list[Tensor | None]:
    flat: list[Tensor | None] = []
    for part in packed:
        flat += [*part] if isinstance(part, Mapping) else [part]
        if part is None and len(flat) in (9, 13):  # where there is no mapping, its four places stay empty
            flat += [None] * 3
    return [*flat, *tables]


def _unflatten(flat: Any) -> tuple[Packed, Tables]:
    maps = [None if flat[i] is None else Mapping(*flat[i : i + 4]) for i in (8, 12)]
    return Packed(*flat[:8], *maps, *flat[16:18]), Tables(*flat[18:])


def _gradients(layout: Layout, steps: int, batch: int, height: int, width: int) -> list[Tensor | None]:
    """Zeros for the kernel's `Outputs`, in its order."""
    c, h, z, m, e = layout.channels, layout.hidden, layout.z, layout.mapping, layout.embedding
    shapes: list[tuple[int, ...] | None] = [(9, layout.wide, c), (z, h), (c, h), (c,), (h,), (h,)]
    if layout.per_cell_embedding:
        embed = layout.rule.embed[0].weight_v.shape[0]  # type: ignore[index]
        shapes += [(c,), (h,), None, None, (e, m), (m,), (m, z), (z,), (e, m), (m,), (m, h), (h,)]
        shapes += [(e, embed), (e,), (steps, width, embed), (steps, batch, height, embed)]  # type: ignore[list-item]
    else:
        shapes += [(steps, batch, c), (steps, batch, h), (steps, batch, z), (steps, batch, h)] + [None] * 12
    return [None if shape is None else torch.zeros(shape) for shape in shapes]


def _in_order(layout: Layout, found: list[Tensor | None]) -> list[Tensor | None]:
    """The kernel's gradients, unpadded and turned, in the order of `_flatten`."""
    perceive, hidden, output, output_bias, norm_weight, norm_bias, perceive_bias, hidden_bias, *rest = found
    assert perceive is not None and hidden is not None and output is not None
    assert output_bias is not None and norm_weight is not None and norm_bias is not None
    c, h = layout.rule.channels, layout.rule.hidden.weight_v.shape[0]
    norm = [norm_weight[:h], norm_bias[:h]] if layout.rule.norm is not None else [None, None]
    weights = [perceive[..., :c].permute(2, 0, 1), hidden.T[:h], output[:c, :h]]
    if not layout.per_cell_embedding:
        tables = [perceive_bias, hidden_bias, *rest[:2], None, None]
        return [*weights, None, None, output_bias[:c], *norm, *[None] * 10, *tables]
    first1, first_bias1, second1, second_bias1, first2, first_bias2, second2, second_bias2, *last = rest[2:]
    m = layout.rule.condition_hidden[0].weight_v.shape[0]  # type: ignore[index]
    one = [first1.T[:m], first_bias1[:m], second1.T[:, :m], second_bias1]  # type: ignore[union-attr,index]
    two = [first2.T[:m], first_bias2[:m], second2.T[:h, :m], second_bias2[:h]]  # type: ignore[union-attr,index]
    embed_out, embed_out_bias, by_x, by_y = last
    biases = [perceive_bias[:c], hidden_bias[:h], output_bias[:c]]  # type: ignore[index]
    return [*weights, *biases, *norm, *one, *two, embed_out, embed_out_bias, *[None] * 4, by_x, by_y]
