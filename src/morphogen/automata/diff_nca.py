"""Diff-NCA (Kalkhof et al., section 3.1): an image NCA that predicts the noise, knowing nothing beyond its range."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from torch import Tensor

from morphogen.automata.active import around
from morphogen.automata.embedding import Inputs
from morphogen.automata.nca import NCAConfig, NCADenoiser
from morphogen.automata.state import read_noise, seed_state
from morphogen.core.keys import Key
from morphogen.core.model import ImageConfig, LabelConfig
from morphogen.diffusion.config import DiffusionConfig

_EMBEDDING = 2  # timestep, NCA step


class DiffNCA(NCADenoiser):
    """One update rule over the image. It is conditioned on the timestep and the NCA step, not on the
    position, so it is the same everywhere, at any size, and reads at most `nca_steps` cells around.
    """

    family: ClassVar[str] = "diff-nca"

    def __init__(
        self,
        image: ImageConfig,
        architecture: NCAConfig,
        diffusion: DiffusionConfig,
        condition_channels: int = 0,
        labels: LabelConfig = LabelConfig(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__(image, architecture, diffusion, condition_channels, labels)
        self.rule = self.new_rule(architecture.channels, _EMBEDDING, "reflect", list(range(self.fixed_channels)))

    def noise(
        self, fixed: Tensor, t: Tensor, key: Key, active: Tensor | None, steps: int, labels: Tensor | None = None
    ) -> Tensor:
        if active is not None:
            rows, columns = around(active)  # beyond it nothing changes, and the noise output stays zero
            part = active[..., rows, columns]
            # Cells that rest surround it, which are no cut.
            there = replace(key.moved(rows.start, columns.start), canvas=None)
            noise = fixed.new_zeros(len(fixed), self.colours, *fixed.shape[-2:])
            noise[..., rows, columns] = self._noise(fixed[..., rows, columns], t, there, part, steps, labels)
            return noise
        return self._noise(fixed, t, key, None, steps, labels)

    def _noise(
        self, fixed: Tensor, t: Tensor, key: Key, active: Tensor | None, steps: int, labels: Tensor | None
    ) -> Tensor:
        inputs = Inputs(self.time_fraction(t), steps, self.architecture.encoding, labels=labels)
        state = self.run_image(seed_state(fixed, self.architecture.channels), inputs, key, active)
        return read_noise(state, self.fixed_channels, self.colours)

    @property
    def minimum_size(self) -> int:
        return self.cell_size + 1  # reflection needs a neighbour

    @property
    def receptive_range(self) -> int | None:
        farthest = (self.architecture.nca_steps + 1) * self.cell_size - 1
        return farthest if self.exact_in_tiles else None

    @property
    def inexact_in_tiles(self) -> str | None:
        if self.architecture.norm == "group":
            return "its group normalisation averages over all cells of the image"
        return None
