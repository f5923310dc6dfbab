"""The same rule, fast: folded, packed and run by a compiled kernel."""

from __future__ import annotations

import contextlib
import hashlib
import math
from pathlib import Path
from typing import Any, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from morphogen.automata.active import mask_halo
from morphogen.automata.embedding import Inputs
from morphogen.automata.fused.abi import FireArguments
from morphogen.automata.fused.build import has_bfloat16, kernel_folder, load_kernel
from morphogen.automata.fused.compiler import Unavailable, processor_flags
from morphogen.automata.fused.cpu_autograd import FusedRule, history_bytes, run_with_gradients
from morphogen.automata.fused.protocol import deviation
from morphogen.automata.update_rule import UpdateRule
from morphogen.core.keys import Key
from morphogen.core.random import fire_threshold
from morphogen.core.request import Precision, PrecisionChoice

# Relative errors that `check` lets pass: sums in another order, and eight bits of every factor.
_CHECKED = {"float32": 1e-3, "bfloat16": 0.2}


class Acceleration:
    """The fast forms of a model's rules on CPUs: made when first wanted, and again when the weights have changed.

    precision: of the products; auto is bfloat16 where the processor has it. Raises Unavailable, saying why, where this
    machine cannot run them.
    """

    device_type = "cpu"

    def __init__(self, precision: PrecisionChoice = "auto") -> None:
        self.wanted = precision
        self.precision: Precision = ("bfloat16" if has_bfloat16() else "float32") if precision == "auto" else precision
        self._kernel = load_kernel(self.precision)
        # By the rule itself: an id is given to another object when its own is gone.
        self._fused: WeakKeyDictionary[UpdateRule, tuple[list[int], FusedRule]] = WeakKeyDictionary()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)(self.wanted)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.wanted,)

    def fused(self, rule: UpdateRule) -> FusedRule:
        """A rule's fast form, with its weights as they are now."""
        versions = [p._version for p in rule.parameters()]
        known = self._fused.get(rule)
        if known is None or known[0] != versions:
            known = versions, FusedRule(rule, self.precision)
            self._fused[rule] = known
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
        """As `RuleAcceleration.run`. fire: uint8 (steps, B, H, W). active: without gradients only. recompute: see
        `run_with_gradients`.
        """
        if not torch.is_grad_enabled():
            return self.fused(rule).run(state, inputs, steps, fire, active)
        with torch.autocast("cpu", enabled=False):
            return run_with_gradients(rule, self.precision, state, inputs, steps, fire, recompute)

    def history_bytes(
        self, rule: UpdateRule, per_cell_embedding: bool, batch: int, size: tuple[int, int], steps: int
    ) -> int:
        """Bytes that a training step keeps of one run of a rule for its gradients."""
        return history_bytes(rule, self.precision, per_cell_embedding, batch, size, steps)

    def fire(self, key: Key, nca_steps: int, rate: float, size: tuple[int, int], active: Tensor | None) -> Tensor:
        """`Key.fire_masks`, restricted to active cells (B, 1, H, W) and to those that news of a cut has not reached, as
        uint8 (nca_steps, B, height, width).
        """
        blocks = [key.fire_keys(block) for block in range(math.ceil(nca_steps / 4))]
        keys = torch.tensor([[k - 2**64 if k >= 2**63 else k for k in row] for row in blocks], dtype=torch.int64)
        origins = torch.tensor(key.placed(), dtype=torch.int64)
        alive = None if active is None else active.to("cpu", torch.uint8).expand(len(key), 1, *size).contiguous()
        fire = torch.empty(nca_steps, len(key), *size, dtype=torch.uint8)
        given = FireArguments(threshold=fire_threshold(rate), batch=len(key), height=size[0], width=size[1])
        given.steps, given.threads = nca_steps, torch.get_num_threads()
        given.point({"keys": keys, "origins": origins, "fire": fire} | ({} if alive is None else {"active": alive}))
        self._kernel.nca_fire(given)
        mask_halo(fire, key)
        return fire

    def check(self, rule: UpdateRule, per_cell_embedding: bool, gradients: bool) -> None:
        """Hold a rule against the plain form, once for each shape of a rule, library and machine.

        Raises Unavailable where the kernel computes something else.
        """
        library = Path(self._kernel._name)
        shapes = [tuple(p.shape) for p in rule.parameters()]
        words = (library.name, rule.padding, per_cell_embedding, gradients, *shapes, *sorted(processor_flags()))
        name = "checked-" + hashlib.sha256(repr(words).encode()).hexdigest()[:24]
        with contextlib.suppress(OSError):
            if (kernel_folder() / name).exists():
                return
        error = deviation(self, rule, per_cell_embedding, gradients)
        if not error < _CHECKED[self.precision]:
            raise Unavailable(f"the compiled kernel computes wrongly on this machine, by {error:.2g}: {library}")
        with contextlib.suppress(OSError):
            (kernel_folder() / name).touch()
