"""An update rule's steps by the Triton kernels: for inference, for training, and as what a model is accelerated by.

Needs Triton, so import it only where that is installed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from morphogen.automata.embedding import Inputs
from morphogen.automata.fused.build import Precision, Unavailable
from morphogen.automata.fused.triton_step import EMULATED, Fire, Folded, Step, Told
from morphogen.automata.update_rule import Conditioning, UpdateRule, Weights
from morphogen.core.keys import Key
from morphogen.core.model import Wanted

_GRAPHS = 16  # how many are kept


@dataclass(frozen=True)
class _Run:
    """Steps of a rule: all that is no tensor that changes from call to call."""

    rule: UpdateRule
    narrow: bool
    steps: int
    size: tuple[int, int]
    inputs: Inputs
    fire: Fire | None

    def tensors(self) -> list[Tensor]:
        """The tensors that `with_tensors` puts in other places."""
        inputs, fire = self.inputs, self.fire
        where = [] if inputs.x is None or inputs.y is None else [inputs.x, inputs.y]
        return [inputs.time, *where, *([] if fire is None else [fire.keys, fire.origins])]

    def with_tensors(self, tensors: list[Tensor]) -> _Run:
        """The same with other tensors of the same shapes."""
        time, *rest = tensors
        inputs, fire = replace(self.inputs, time=time), self.fire
        if inputs.x is not None:
            inputs, rest = replace(inputs, x=rest[0], y=rest[1]), rest[2:]
        if fire is not None:
            fire = replace(fire, keys=rest[0], origins=rest[1])
        return replace(self, inputs=inputs, fire=fire)

    def name(self) -> tuple[Any, ...]:
        """What tells its graphs apart from others, beside the shapes of the tensors."""
        threshold = None if self.fire is None else self.fire.threshold
        parameters = tuple((p.data_ptr(), p.requires_grad) for p in self.rule.parameters())
        inputs = self.inputs
        return parameters, self.narrow, self.steps, self.size, inputs.steps, inputs.encoding, inputs.x is None, threshold

    def condition(self, step: int, w: Weights, images: int | None = None) -> Conditioning:
        """What the step's embedding contributes; for each of `images` apart, or as the timesteps are."""
        encoded = self.inputs.at(step)
        if images is not None:
            encoded = encoded.expand(images, -1, -1, -1)
        encoded = encoded.contiguous(memory_format=torch.channels_last)
        narrow = self.narrow and encoded.is_cuda and encoded.shape[-2:] != (1, 1)
        with torch.autocast(encoded.device.type, torch.bfloat16, enabled=narrow, cache_enabled=False):
            return self.rule.condition(encoded, w)

    def conditioners(self) -> list[Tensor]:
        """The trained parameters that `condition` reads from the rule."""
        rule = self.rule
        layers = (rule.embed, rule.condition_perception, rule.condition_hidden)
        found = [p for layer in layers for p in layer.parameters()]
        found += [b for b in (rule.perceive.bias, rule.hidden.bias) if b is not None]
        return [p for p in found if p.requires_grad]

    def forward(self, state: Tensor, w: Weights) -> list[Tensor]:
        """The state (B, cells, c) before each step, and the last."""
        folded, states = Folded.of(self.rule, w, self.narrow), [state]
        for i in range(self.steps):
            told = Told.of(self.condition(i, w), self.size)
            states.append(Step(folded, told, states[-1], self.size).forward(self.fire, i))
        return states

    def last(self, state: Tensor) -> Tensor:
        """The last state only."""
        w = self.rule.weights()
        folded = Folded.of(self.rule, w, self.narrow)
        for i in range(self.steps):
            told = Told.of(self.condition(i, w), self.size)
            state = Step(folded, told, state, self.size).forward(self.fire, i)
        return state

    def backward(self, states: list[Tensor], gradient: Tensor, w: Weights) -> list[Tensor | None]:
        """The gradients of the first state, of the folded weights, of the norm's weight and bias where it has them,
        and of `conditioners`.
        """
        folded, c = Folded.of(self.rule, w, self.narrow), self.rule.channels
        of_norm = 0 if self.rule.norm is None else 2
        leaves = w._replace(
            perceive_embedding=w.perceive_embedding.detach().requires_grad_(),
            hidden_embedding=w.hidden_embedding.detach().requires_grad_(),
        )
        wanted = [leaves.perceive_embedding, leaves.hidden_embedding, *self.conditioners()]
        totals = [torch.zeros_like(t, dtype=torch.float32) for t in wanted]
        mains: list[Tensor] = []
        for i in reversed(range(self.steps)):
            with torch.enable_grad():
                told = Told.of(self.condition(i, leaves, len(gradient)), self.size)
            step = Step(folded, Told(tuple(t.detach() for t in told.parts), told.maps), states[i], self.size)
            found = step.backward(gradient, self.fire, i)
            gradient = found.state
            main = [found.perceive, found.hidden, found.output, found.output_bias, *found.norm]
            mains = main if not mains else [a.add_(b) for a, b in zip(mains, main, strict=True)]
            given = [g.to(t.dtype) for g, t in zip(found.told, told.parts, strict=True)]
            for total, part in zip(totals, torch.autograd.grad(told.parts, wanted, given, allow_unused=True), strict=True):
                if part is not None:
                    total += part
        perceive, hidden, output, bias, *norm = mains
        assert len(norm) == of_norm
        hidden, output = hidden.view(-1, 2 * c, 1, 1), output.view(c, -1, 1, 1)
        weights = [perceive, totals[0], totals[1], hidden, output, bias]
        return [gradient, *weights, *norm, *totals[2:]]


class _Steps(torch.autograd.Function):
    """The steps with gradients by the kernels, which keeps each step's state and computes everything else again."""

    @staticmethod
    def forward(ctx: Any, run: _Run, graphs: _Graphs | None, state: Tensor, *flat: Tensor) -> Tensor:
        count = len(Weights._fields)

        def work(tensors: list[Tensor]) -> list[Tensor]:
            state, *rest = tensors
            weights = Weights(*rest[:count])
            return run.with_tensors(rest[count:]).forward(state, weights)

        tensors = [state, *flat[:count], *run.tensors()]
        states = work(tensors) if graphs is None else graphs(("forward", *run.name()), work, tensors)
        ctx.run, ctx.graphs = run, graphs
        ctx.save_for_backward(*states[:-1], *flat[:count])
        return states[-1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        run: _Run = ctx.run
        count, steps = len(Weights._fields), run.steps

        def work(tensors: list[Tensor]) -> list[Tensor | None]:
            gradient, *rest = tensors
            weights = Weights(*rest[steps : steps + count])
            return run.with_tensors(rest[steps + count :]).backward(rest[:steps], gradient, weights)

        tensors = [gradient.float().contiguous(), *ctx.saved_tensors, *run.tensors()]
        with torch.autocast(gradient.device.type, enabled=False):
            found = work(tensors) if ctx.graphs is None else ctx.graphs(("backward", *run.name()), work, tensors)
        return None, None, found[0].to(gradient.dtype), *found[1:]
