"""The same rule, fast: folded, packed and run by a kernel that is compiled on the user's machine."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch import Tensor

from morphogen.automata.embedding import Inputs
from morphogen.automata.fused.build import Precision, has_bfloat16, load_kernel
from morphogen.automata.fused.cpu_autograd import FusedRule, history_bytes, run_with_gradients
from morphogen.automata.update_rule import UpdateRule
from morphogen.core.keys import Key
from morphogen.core.request import PrecisionChoice


class Acceleration:
    """The fast forms of a model's rules: made when first wanted, and again when the weights have changed.

    precision: of the products; auto is bfloat16 where the processor has it. Raises Unavailable, saying why, where this
    machine cannot run them.
    """

    device_type = "cpu"

    def __init__(self, precision: PrecisionChoice = "auto") -> None:
        self.wanted = precision
        self.precision: Precision = ("bfloat16" if has_bfloat16() else "float32") if precision == "auto" else precision
        self._kernel = load_kernel(self.precision)
        self._fused: dict[int, tuple[list[int], FusedRule]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)(self.wanted)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.wanted,)

    def fused(self, rule: UpdateRule) -> FusedRule:
        """A rule's fast form, with its weights as they are now."""
        versions = [p._version for p in rule.parameters()]
        known = self._fused.get(id(rule))
        if known is None or known[0] != versions:
            known = versions, FusedRule(rule, self.precision)
            self._fused[id(rule)] = known
        return known[1]

    def run(
        self,
        rule: UpdateRule,
        state: Tensor,
        inputs: Inputs,
        steps: int,
        fire: Tensor | None = None,
        active: Tensor | None = None,
        recompute: bool = False,
    ) -> Tensor:
        """The state (B, c, H, W) after `steps` steps of a rule; with gradients where they are wanted.

        fire: uint8 (steps, B, H, W), or None: every cell fires. active: boolean (B, 1, H, W), without gradients only.
        recompute: see `run_with_gradients`.
        """
        if not torch.is_grad_enabled():
            return self.fused(rule).run(state, inputs, steps, fire, active)
        with torch.autocast("cpu", enabled=False):
            return run_with_gradients(rule, self.precision, state, inputs, steps, fire, recompute)

    def history_bytes(
        self, rule: UpdateRule, per_cell_embedding: bool, batch: int, size: tuple[int, int], steps: int
    ) -> int:
        """What a training step keeps of one run of a rule for its gradients."""
        return history_bytes(rule, self.precision, per_cell_embedding, batch, size, steps)

    def fire(self, key: Key, nca_steps: int, rate: float, size: tuple[int, int], active: Tensor | None) -> Tensor:
        """`Key.fire_masks`, restricted to active cells (B, 1, H, W), as uint8 (nca_steps, B, height, width)."""
        blocks = [key.fire_keys(block) for block in range(math.ceil(nca_steps / 4))]
        keys = torch.tensor([[k - 2**64 if k >= 2**63 else k for k in row] for row in blocks], dtype=torch.int64)
        origins = torch.tensor(key.placed(), dtype=torch.int64)
        alive = None if active is None else active.to("cpu", torch.uint8).expand(len(key), 1, *size).contiguous()
        fire = torch.empty(nca_steps, len(key), *size, dtype=torch.uint8)
        self._kernel.nca_fire(
            keys.data_ptr(),
            origins.data_ptr(),
            *(len(key), *size, nca_steps, round(rate * 2**32)),
            None if alive is None else alive.data_ptr(),
            fire.data_ptr(),
            torch.get_num_threads(),
        )
        return fire
