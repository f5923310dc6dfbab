"""An update rule in the form that the compiled kernel runs, for inference, and for training with its own gradients."""

from __future__ import annotations

import copy
import ctypes
import math
import weakref
from typing import Any

import torch
from torch import Tensor

from morphogen.automata.embedding import Inputs
from morphogen.automata.fused.abi import RuleGradients, RuleWeights, RunArguments
from morphogen.automata.fused.build import load_kernel
from morphogen.automata.fused.packing import TABLES, Layout, Tensors
from morphogen.automata.update_rule import LEAKY_SLOPE, NORM_EPSILON, UpdateRule
from morphogen.core.request import Precision


def _plain(tensors: Tensors) -> Tensors:
    """As the kernel reads them."""
    return {name: t.detach().to("cpu", torch.float32).contiguous() for name, t in tensors.items()}


class _Handle:
    """The kernel's own copy of packed weights."""

    def __init__(self, kernel: ctypes.CDLL, layout: Layout, weights: Tensors) -> None:
        rule = layout.rule
        given = RuleWeights(
            channels=rule.channels,
            hidden=rule.hidden.weight_v.shape[0],
            embedding=layout.embedding,
            group=int(rule.norm is not None),
            norm_epsilon=NORM_EPSILON,
            leaky_slope=LEAKY_SLOPE,
        )
        if layout.per_cell_embedding:
            given.mapping_hidden, given.embed_hidden = layout.mapping_hidden, layout.embed_hidden
        held = _plain(weights)
        given.point(held)
        made = ctypes.c_void_p()
        kernel.nca_rule(given, made)
        self.value = made.value
        weakref.finalize(self, kernel.nca_free, self.value)


class FusedRule:
    """A copy of an update rule's weights, as they are now, and the kernel that runs it.

    precision: of the products; sums, the state and the normalisation are float32. Raises Unavailable where the kernel
    cannot be used on this machine.
    """

    def __init__(self, rule: UpdateRule, precision: Precision) -> None:
        self._kernel = load_kernel(precision)
        self._rule = copy.deepcopy(rule).double()  # so that folding rounds once, however many threads PyTorch has
        # One form for an embedding that is the same everywhere, and one for one that differs from cell to cell.
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
            return torch.cat(
                [self.run(state[[i]], inputs.of_image(i), steps, mask, alive[[i]], threads) for i, mask in each]
            )
        layout, handle = self._form(inputs.x is not None)
        call = _Call(layout, state, layout.tables(inputs, steps), fire, active, threads, copy=False)
        self._kernel.nca_run(handle.value, call.arguments(0, steps))
        return call.cells.permute(0, 3, 1, 2)


class _Call:
    """The arguments of the kernel's functions beside the weights, and the tensors that it lies in."""

    def __init__(
        self,
        layout: Layout,
        state: Tensor,
        tables: Tensors,
        fire: Tensor | None,
        active: Tensor | None = None,
        threads: int | None = None,
        copy: bool = True,
    ) -> None:
        self.cells = _cells(state, copy)
        self.batch, self.height, self.width, _ = self.cells.shape
        self.positions = torch.arange(self.height * self.width, dtype=torch.int32)
        if active is not None:
            self.positions = self.positions[active.any(dim=0).flatten().cpu()]
        self.tables, self.fire, self.threads = _plain(tables), fire, threads or torch.get_num_threads()
        self.images = next(t.shape[1] for name, t in tables.items() if name in ("step_scale1", "by_y"))
        self.reflect = int(layout.rule.padding == "reflect")

    def arguments(self, first: int, steps: int) -> RunArguments:
        """The arguments for some of the steps."""
        given = RunArguments(self.batch, self.height, self.width, self.reflect, steps, self.images)
        given.cell_count, given.threads = len(self.positions), self.threads
        given.point({"state": self.cells, "cells": self.positions} | _rows_from(self.tables, first))
        if self.fire is not None:
            given.point({"fire": self.fire[first:]})
        return given


def _cells(state: Tensor, copy: bool = True) -> Tensor:
    """A state (B, c, H, W) in the kernel's order, float32 (B, H, W, c); a copy, or itself where it can be."""
    return state.detach().permute(0, 2, 3, 1).to("cpu", torch.float32, copy=copy).contiguous()


def _rows_from(tensors: Tensors, first: int) -> Tensors:
    """The tensors, those with a row for each step without the rows of the first steps."""
    return {name: t[first:] if name in TABLES else t for name, t in tensors.items()}


class _Steps(torch.autograd.Function):
    """The steps with gradients by the kernel. It keeps every step's state, or with a `segment` below `steps` the first
    state of each segment, and computes everything else again.

    tensors: the weights and tables by `names`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        kernel: ctypes.CDLL,
        layout: Layout,
        steps: int,
        segment: int,
        fire: Tensor | None,
        names: tuple[str, ...],
        state: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        given = dict(zip(names, tensors, strict=True))
        tables = {name: given.pop(name) for name in names if name in TABLES}
        handle = _Handle(kernel, layout, given)
        call = _Call(layout, state, tables, fire)
        ctx.given = kernel, layout, handle, call, names
        ctx.kept = []
        for first in range(0, steps, segment):
            count = min(segment, steps - first)
            if segment < steps:
                ctx.kept.append((first, count, call.cells.clone(), None))
                kernel.nca_run(handle.value, call.arguments(first, count))
            else:
                ctx.kept.append((first, count, None, _keep(kernel, handle, call, first, count)))
        ctx.shapes = [t.shape for t in tensors]
        return call.cells.permute(0, 3, 1, 2).clone(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        kernel, layout, handle, call, names = ctx.given
        steps = sum(count for _, count, _, _ in ctx.kept)
        found = layout.gradients(steps, call.batch, call.height, call.width)
        back = _cells(gradient)
        while ctx.kept:
            first, count, cells, history = ctx.kept.pop()
            if history is None:
                call.cells = cells
                history = _keep(kernel, handle, call, first, count)
            call.cells = back
            run, into = call.arguments(first, count), RuleGradients()
            run.point(history)
            into.point(_rows_from(found, first))
            kernel.nca_backward(handle.value, run, into)
        each = zip(names, ctx.shapes, strict=True)
        own = [layout.unpad(name, found[name]).reshape(shape) for name, shape in each]
        return *[None] * 6, back.permute(0, 3, 1, 2), *own


def _keep(kernel: ctypes.CDLL, handle: _Handle, call: _Call, first: int, steps: int) -> Tensors:
    """Run some steps; every step's state, and the statistics of the group norm."""
    run, size = call.arguments(first, steps), ctypes.c_int64()
    kernel.nca_history(handle.value, run, size)
    kept = {
        "history": torch.zeros(size.value, dtype=torch.uint8),
        "statistics": torch.empty(steps, call.batch, 2),
    }
    run.point(kept)
    kernel.nca_forward(handle.value, run)
    return kept


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

    recompute: keep one state in every sqrt(steps) and run those between again in the
    backward pass: the same bits from a fraction of the memory, for a quarter more time.
    """
    kernel = load_kernel(precision)
    layout = Layout.of(rule, inputs.x is not None, kernel)
    segment = math.isqrt(steps - 1) + 1 if recompute else steps
    given = layout.weights() | layout.tables(inputs, steps)
    result: Tensor = _Steps.apply(kernel, layout, steps, segment, fire, tuple(given), state, *given.values())
    return result


def history_bytes(
    rule: UpdateRule, precision: Precision, per_cell_embedding: bool, batch: int, size: tuple[int, int], steps: int
) -> int:
    """Bytes that `run_with_gradients` keeps."""
    kernel = load_kernel(precision)
    layout = Layout.of(rule, per_cell_embedding, kernel)
    padded = (size[0] + 2) * (size[1] + 2)
    return batch * padded * layout.wide * (4 // layout.pair) * (steps + 1)
