"""The fast form of a model's update rules: on CPUs `fused.Acceleration`, on CUDA devices `TritonAcceleration`."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from morphogen.automata.embedding import Inputs, positions
from morphogen.automata.update_rule import UpdateRule
from morphogen.core.keys import Key
from morphogen.core.request import Precision


class RuleAcceleration(Protocol):
    """The fast form of a model's rules, with their weights as they are when it runs."""

    device_type: str
    precision: Precision

    def run(
        self,
        rule: UpdateRule,
        state: Tensor,
        inputs: Inputs,
        steps: int,
        fire: Any = None,
        active: Tensor | None = None,
        recompute: bool = False,
    ) -> Tensor:
        """The state (B, c, H, W) after `steps` steps of a rule; with gradients where they are wanted.

        fire: from `fire`, or None: every cell fires. active: boolean (B, 1, H, W), the cells that may change.
        recompute: keep less for the backward pass and compute it again.
        """

    def fire(self, key: Key, nca_steps: int, rate: float, size: tuple[int, int], active: Tensor | None) -> Any:
        """`Key.fire_masks` of a grid (height, width), restricted to active cells, in the form that `run` takes."""

    def history_bytes(
        self, rule: UpdateRule, per_cell_embedding: bool, batch: int, size: tuple[int, int], steps: int
    ) -> int:
        """Bytes that a training step keeps of one run of a rule for its gradients."""

    def check(self, rule: UpdateRule, per_cell_embedding: bool, gradients: bool) -> None:
        """Hold a rule against the plain form. Raises Unavailable where this computes something else."""


def deviation(fast: RuleAcceleration, rule: UpdateRule, per_cell_embedding: bool, gradients: bool) -> float:
    """How far a step of a small grid is from the plain rule's: the relative error of what it changes and, where they
    will be wanted, of its gradients. 0 where the plain rule's own numbers are not finite.

    per_cell_embedding: whether the rule's cells know their place.
    """
    device = rule.output.weight_v.device
    state = torch.linspace(-1.0, 1.0, rule.channels * 80, device=device).view(1, rule.channels, 8, 10).sin()
    x, y = positions((8, 10), device) if per_cell_embedding else (None, None)
    vectors = rule.label_vectors
    labels = None if vectors is None else torch.linspace(0.0, 1.0, len(vectors.weight), device=device).view(1, -1)
    inputs = Inputs(torch.full((1, 1, 1, 1), 0.5, device=device), 1, "released", x, y, labels)
    with torch.set_grad_enabled(gradients), torch.autocast(device.type, enabled=False):
        plain = rule.run(state, inputs.at, [None], labels=labels)
        found = fast.run(rule, state.clone(), inputs, 1)
        pairs = [(found - state, plain - state)]
        if gradients:
            pairs.append((_gradient_of(rule, found), _gradient_of(rule, plain)))
        if not all(bool(expected.isfinite().all()) for _, expected in pairs):
            return 0.0
        errors = [((a - b).norm() / b.norm().clamp(min=1e-12)).detach() for a, b in pairs]
        return max(float(error) for error in errors)


def _gradient_of(rule: UpdateRule, state: Tensor) -> Tensor:
    """The gradient of a state's square sum for all of a rule's parameters, in one row."""
    wanted = [p for p in rule.parameters() if p.requires_grad]
    found = torch.autograd.grad(state.float().square().sum(), wanted, allow_unused=True)
    return torch.cat([g.flatten() for g in found if g is not None])
