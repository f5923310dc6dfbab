"""GeCA (Elbatel, Kamnitsas and Li, "An organism starts with a single pix-cell", MICCAI 2024): one transformer block,
the same for all cells and steps, in which a cell attends to its 3x3 neighbourhood.

A cell holds the noisy image, which never changes, what it puts out (noise, and a learned variance) and hidden channels,
which may be carried from one timestep to the next (gene heredity). Where paper and released code differ, both are
settings.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from morphogen.automata.geca_block import GeCABlock, maps, rows
from morphogen.automata.geca_fast import FastGeCA
from morphogen.automata.neighbours import CellGrid, Kernel
from morphogen.core.evaluation import Evaluation
from morphogen.core.keys import Key
from morphogen.core.model import Prediction
from morphogen.core.random import Purpose
from morphogen.core.request import Precision, PrecisionChoice


class GeCA(GeCABlock):
    """The model. It computes only the cells that update, and keys and values of their neighbours."""

    family: ClassVar[str] = "geca"
    carries_memory: ClassVar[bool] = True
    acceleration: FastGeCA | None = None

    # ------------------------------------------------------------------------------------------ an evaluation

    def evaluate(self, x: Tensor, t: Tensor, evaluation: Evaluation) -> Prediction:
        grid = CellGrid(len(x), x.shape[-2], x.shape[-1])
        key, active = evaluation.key, evaluation.active
        steps = evaluation.nca_steps or self.architecture.nca_steps
        fire = key.fire_masks(steps, self.architecture.fire_rate, (grid.height, grid.width), x.device)
        if active is not None:
            fire = [mask & active for mask in fire]
        cells = self.run(
            self.with_condition(x, evaluation),
            self.start(key, grid, evaluation.memory).to(x),
            t,
            evaluation.labels,
            fire,
        )
        return self.split(cells[:, : self.outputs], cells)

    def start(self, key: Key, grid: CellGrid, memory: Tensor | None) -> Tensor:
        """Output and hidden channels (B, ., H, W) at the start: a fresh seed, and what is inherited of the memory."""
        size, settings = (grid.height, grid.width), self.architecture
        count = self.outputs + settings.hidden
        cells = torch.zeros(len(key), count, *size, device=self.device)
        centre = (size[0] // 2, size[1] // 2)
        random = key.moved(*centre).normals(Purpose.SEED_STATE, count, (1, 1), self.device)[..., 0, 0]
        seeded = count if settings.seed == "printed" else self.outputs
        cells[:, :seeded, centre[0], centre[1]] = random[:, :seeded]
        if memory is not None and settings.heredity != "none":
            first = self.outputs if settings.heredity == "hidden" else 0
            last = self.outputs if settings.heredity == "out" else count
            cells[:, first:last] = memory[:, first:last]
        return cells

    def run(self, x: Tensor, cells: Tensor, t: Tensor, labels: Tensor | None, fire: list[Tensor]) -> Tensor:
        """Output and hidden channels (B, ., H, W) after a step for each mask (B, 1, H, W) of `fire`, from `cells`."""
        if self.acceleration is not None and self.device.type == "cpu" and not torch.is_grad_enabled():
            return self.acceleration.run(self, x, cells, t, labels, fire)
        grid = CellGrid(len(x), x.shape[-2], x.shape[-1])
        modulation = self.modulate(self.conditioning(t, labels))
        fixed = self.fixed_embedding(x, grid)
        own = rows(cells)
        for mask in fire:
            fired = mask.expand(grid.batch, 1, -1, -1).flatten().nonzero().flatten()
            if self.recompute and torch.is_grad_enabled():
                own = checkpoint(
                    self.step, own, fixed, modulation, fired, grid, use_reentrant=False, preserve_rng_state=False
                )
            else:
                own = self.step(own, fixed, modulation, fired, grid)
        return maps(own, grid)

    # ------------------------------------------------------------------------------------------ the contract

    def compute_in(self, precision: PrecisionChoice | None = "auto") -> str | None:
        from morphogen.automata.fused.compiler import Unavailable
        from morphogen.automata.geca_fast import FastGeCA

        self.acceleration = self.attention = None
        super().compute_in(precision)
        if precision is None or self.device.type not in ("cpu", "cuda"):
            return None
        try:
            if self.device.type == "cuda":
                self.attention = self._on_gpu()
                return None
            self.acceleration = FastGeCA(precision)
        except Unavailable as reason:
            return str(reason)
        self.autocast = False
        return None

    @property
    def precision(self) -> Precision:
        return super().precision if self.acceleration is None else self.acceleration.precision

    def _on_gpu(self) -> Kernel:
        """The attention's Triton kernels, tried as this model calls them. Raises Unavailable, saying why, where they
        don't work.
        """
        from morphogen.automata.fused.compiler import Unavailable

        try:
            from morphogen.automata.fused.triton_attention import TritonAttention
        except ImportError:
            raise Unavailable("Triton is not installed") from None
        kernel, settings = TritonAttention(), self.architecture
        dtype = torch.bfloat16 if self.autocast else torch.float32
        masked = settings.off_grid == "masked"
        kernel.check(self.device, dtype, settings.width, settings.heads, masked, gradients=self.training)
        return kernel

    @property
    def minimum_size(self) -> int:
        return 2

    @property
    def receptive_range(self) -> int | None:
        return None

    @property
    def inexact_in_tiles(self) -> str | None:
        return "its cells know their place in the image, whose centre cell is the seed"

    def compile_steps(self) -> None:
        self.step = torch.compile(self.step, dynamic=True)  # type: ignore[method-assign]
