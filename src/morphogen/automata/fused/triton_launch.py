"""One NCA step and its gradients by the Triton kernels: their arguments, buffers and grids.

Needs Triton, so import it only where that is installed. On the CPU it runs in Triton's interpreter, for the tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from torch.nn import functional as F

from morphogen.automata.fused import triton_backward as backward_kernels
from morphogen.automata.fused import triton_kernels as kernels
from morphogen.automata.update_rule import NORM_EPSILON, StepConditioning, UpdateRule, Weights
from morphogen.core.keys import Key
from morphogen.core.random import fire_threshold

EMULATED: bool = triton.knobs.runtime.interpret


@dataclass(frozen=True)
class Fire:
    """Which cells of a batch update, for the kernels to work out.

    keys: int64 (blocks of four steps, B). origins: int64 (B, 2), the absolute (y, x) of the first cells. threshold:
    a cell updates where its word is below.
    """

    keys: Tensor
    origins: Tensor
    threshold: int

    @classmethod
    def of(cls, key: Key, steps: int, rate: float, device: torch.device) -> Fire:
        """`Key.fire_masks` of a number of steps, not yet worked out."""
        blocks = [key.fire_keys(block) for block in range(-(-steps // 4))]
        signed = [[k - 2**64 if k >= 2**63 else k for k in row] for row in blocks]
        keys, origins = torch.tensor(signed, dtype=torch.int64), torch.tensor(key.placed(), dtype=torch.int64)
        return cls(keys.to(device), origins.to(device), fire_threshold(rate))

    def masks(self, steps: int, size: tuple[int, int]) -> list[Tensor]:
        """The masks as `Key.fire_masks` returns them."""
        batch, (height, width), found = len(self.origins), size, []
        for step in range(steps):
            out = torch.empty(batch, height * width, dtype=torch.uint8, device=self.keys.device)
            kernels.fire_kernel[(triton.cdiv(height * width, 64), batch)](
                self.keys[step // 4], self.origins, out, step % 4, self.threshold, height, width, BM=64,
                **({} if EMULATED else {"enable_fp_fusion": True}),
            )  # fmt: skip
            found.append(out.bool().view(batch, 1, height, width))
        return found


@dataclass(frozen=True)
class Folded:
    """A rule's weights as the kernels read them; the products' factors in bfloat16 if `bf16`, else float32."""

    perceive: Tensor  # (9, c, c) as (tap, from, to)
    perceive_back: Tensor  # (9, c, c) as (8 - tap, to, from)
    hidden: Tensor  # (2c, h)
    output: Tensor  # (h, c)
    output_bias: Tensor  # (c,)
    norm_weight: Tensor | None  # (h,)
    norm_bias: Tensor | None  # (h,)
    reflect: bool
    bf16: bool

    @classmethod
    @torch.no_grad()
    def of(cls, rule: UpdateRule, w: Weights, bf16: bool) -> Folded:
        """Lay out folded weights."""
        c = rule.channels

        def factor(weight: Tensor) -> Tensor:
            if bf16:
                weight = weight.bfloat16()
            return (weight.float() if EMULATED or not bf16 else weight).contiguous()

        taps = w.perceive_state.permute(2, 3, 1, 0).reshape(9, c, c)
        return cls(
            factor(taps),
            factor(taps.flip(0).mT),
            factor(w.hidden.flatten(1).T),
            factor(w.output.flatten(1).T),
            w.output_bias.float(),
            None if rule.norm is None else rule.norm.weight.float(),
            None if rule.norm is None else rule.norm.bias.float(),
            reflect=rule.padding == "reflect",
            bf16=bf16,
        )


@dataclass(frozen=True)
class ConditioningInputs:
    """A step's conditioning, in `StepConditioning`'s order: each (B or 1, cells or 1, width)."""

    parts: tuple[Tensor, ...]
    per_cell_embedding: bool

    @classmethod
    def of(cls, c: StepConditioning, size: tuple[int, int]) -> ConditioningInputs:
        """Vectors stay vectors unless one of them is a map."""
        per_cell_embedding = any(part.shape[-2:] != (1, 1) for part in c)
        images = max(len(part) for part in c)
        spread = size if per_cell_embedding else (1, 1)
        parts = [part.expand(images, -1, *spread).permute(0, 2, 3, 1).flatten(1, 2) for part in c]
        return cls(tuple(part.contiguous() for part in parts), per_cell_embedding)


class Step:
    """The shapes of a step, and its kernels.

    state: (B, height * width, c), float32 or bfloat16, contiguous. size: (height, width).
    """

    def __init__(self, w: Folded, conditioning: ConditioningInputs, state: Tensor, size: tuple[int, int]) -> None:
        self.w, self.conditioning, self.state, self.size = w, conditioning, state, size
        self.batch, self.cells, self.channels = state.shape
        self.hidden = w.hidden.shape[1]
        padded = max(16, triton.next_power_of_2(self.channels))
        wide = padded > 128 or not w.bf16
        block = 32 if EMULATED else 32 if wide else 64
        widest = max(16, triton.next_power_of_2(self.hidden))
        self.programs = triton.cdiv(self.cells, block)
        self.kind: dict[str, object] = {
            "C": self.channels, "CP": padded, "BM": block, "BK": min(32, padded),
            "BF16": w.bf16, "EMULATE": EMULATED,
        }  # fmt: skip
        self.whole: dict[str, Any] = {
            "H": self.hidden, "BH": min(16 if EMULATED else 32 if wide else 64, widest),
            "PER_CELL": conditioning.per_cell_embedding, "REFLECT": w.reflect, "GROUP": w.norm_weight is not None,
        }  # fmt: skip
        self.tuning: dict[str, Any] = (
            {} if EMULATED else {"num_warps": 8, "num_stages": 1 if wide else 2, "enable_fp_fusion": True}
        )
        self.shared = int(len(conditioning.parts[0]) > 1)
        self.norm = [state if t is None else t for t in (w.norm_weight, w.norm_bias)]

    def _firing(self, fire: Fire | None, step: int) -> list[object]:
        """keys, origins, word, threshold."""
        if fire is None:
            return [self.state, self.state, 0, 0]
        return [fire.keys[step // 4], fire.origins, step % 4, fire.threshold]

    def _forward(self, out: Tensor, saved: list[Tensor], fire: Fire | None, step: int, statistics: bool) -> None:
        w = self.w
        kernels.forward_kernel[(self.programs, self.batch)](
            self.state, out, w.perceive, w.hidden, w.output, w.output_bias, *self.conditioning.parts, *self.norm,
            *saved, *self._firing(fire, step), *self.size, self.shared, STATISTICS=statistics, FIRES=fire is not None,
            **self.kind, **self.whole, **self.tuning,
        )  # fmt: skip

    def _statistics(self) -> list[Tensor]:
        """The perception; each image's mean and 1 / standard deviation. Placeholders for `cell` norm."""
        if self.w.norm_weight is None:
            return [self.state] * 3
        seen = self._empty(self.channels)
        means, squares = (self.state.new_empty(self.batch, self.cells, dtype=torch.float32) for _ in range(2))
        self._forward(self.state, [seen, means, squares], None, 0, statistics=True)
        mean = means.mean(dim=1)
        variance = squares.mean(dim=1) / self.hidden + (means - mean[:, None]).square().mean(dim=1)
        return [seen, mean, torch.rsqrt(variance + NORM_EPSILON)]

    def _empty(self, width: int, dtype: torch.dtype | None = None) -> Tensor:
        """A number for every cell and channel; of the products' dtype if none is given."""
        factors = torch.bfloat16 if self.w.bf16 else torch.float32
        return self.state.new_empty(self.batch, self.cells, width, dtype=dtype or factors)

    def forward(self, fire: Fire | None, step: int) -> Tensor:
        """The next state, like the state. step: the step's number, which with `fire` says which cells update."""
        out = torch.empty_like(self.state)
        self._forward(out, self._statistics(), fire, step, statistics=False)
        return out

    def backward(self, gradient: Tensor, fire: Fire | None, step: int) -> Gradients:
        """The gradients, given that of the next state, float32 like the state in shape. The conditioning inputs must
        be one row for each image.
        """
        c, h, w = self.channels, self.hidden, self.w
        group = w.norm_weight is not None
        saved = self._statistics()
        d_state, d_seen = self._empty(c, torch.float32), self._empty(c)
        factors = [self._empty(2 * c), self._empty(c), self._empty(h), self._empty(h)]
        norm = [d_state.new_empty(self.batch, self.programs, h) for _ in range(2)] if group else [d_state] * 2
        output_bias = d_state.new_empty(self.batch, self.programs, c)
        rows = self.cells if self.conditioning.per_cell_embedding else self.programs
        conditioning = [d_state.new_empty(self.batch, rows, part.shape[-1]) for part in self.conditioning.parts]

        keys, origins, word, threshold = self._firing(fire, step)

        def run(first: Tensor, second: Tensor, only_sums: bool) -> None:
            backward_kernels.backward_kernel[(self.programs, self.batch)](
                self.state, (w.perceive, w.hidden, w.output), self.conditioning.parts, tuple(self.norm), tuple(saved),
                (first, second), (keys, origins), word, threshold, gradient, d_state, (d_seen, *factors),
                tuple(conditioning), tuple(norm), output_bias, (*self.size, self.shared), SUMS=only_sums,
                FIRES=fire is not None, **self.kind, **{**self.whole, "BH": min(32, self.whole["BH"])},
                **self.tuning,  # twice the factors to hold
            )  # fmt: skip

        first, second = (d_state.new_empty(self.batch, self.cells) for _ in range(2))
        if group:
            run(first, second, only_sums=True)
            first, second = (t.mean(dim=1) / h for t in (first, second))
        run(first, second, only_sums=False)
        d_state += self._perceive_backward(d_seen)
        z, change, activated, d_hidden = (t.flatten(0, 1) for t in factors)
        return Gradients(
            d_state,
            self._perceive_weight(d_seen),
            _product(d_hidden, z),
            _product(change, activated),
            output_bias.sum(dim=(0, 1)),
            [t.sum(dim=(0, 1)) for t in norm] if group else [],
            conditioning
            if self.conditioning.per_cell_embedding
            else [t.sum(dim=1, keepdim=True) for t in conditioning],
        )

    def _perceive_backward(self, d_seen: Tensor) -> Tensor:
        """The gradient of the state through perceiving; at a reflecting border what fell beyond it comes back."""
        height, width = self.size
        border = int(self.w.reflect)
        tall, wide = height + 2 * border, width + 2 * border
        out = d_seen.new_empty(self.batch, tall, wide, self.channels, dtype=torch.float32)
        backward_kernels.perceive_backward_kernel[(triton.cdiv(tall * wide, self.kind["BM"]), self.batch)](
            d_seen, self.w.perceive_back, out, height, width, BORDER=border, **self.kind, **self.tuning
        )
        if border:
            out[:, 2] += out[:, 0]
            out[:, -3] += out[:, -1]
            out[:, :, 2] += out[:, :, 0]
            out[:, :, -3] += out[:, :, -1]
            out = out[:, 1:-1, 1:-1]
        return out.flatten(1, 2)

    def _perceive_weight(self, d_seen: Tensor) -> Tensor:
        """The gradient (c, c, 3, 3) of the 3x3 convolution's weight."""
        c = self.channels

        def maps(cells: Tensor) -> Tensor:
            return cells.to(d_seen.dtype).view(self.batch, *self.size, c).permute(0, 3, 1, 2)

        padded = F.pad(maps(self.state), (1, 1, 1, 1), mode="reflect" if self.w.reflect else "constant")
        weight = d_seen.new_empty(c, c, 3, 3).to(memory_format=torch.channels_last)
        found: Tensor = torch.ops.aten.convolution_backward(
            maps(d_seen), padded, weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, True, False]
        )[1]
        return found.float()


@dataclass(frozen=True)
class Gradients:
    """The gradients of a step, float32: of the state (B, cells, c), of the weights as `Weights` has them but for their
    trailing ones, of the normalisation's weight and bias, and of the conditioning inputs.
    """

    state: Tensor
    perceive: Tensor  # (c, c, 3, 3)
    hidden: Tensor  # (h, 2c)
    output: Tensor  # (c, h)
    output_bias: Tensor  # (c,)
    norm: list[Tensor]
    conditioning: list[Tensor]  # (B, cells or 1, width), in StepConditioning's order


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a^T b, float32."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.mm(a.T, b, out_dtype=torch.float32)
    return a.T.float() @ b.float()
