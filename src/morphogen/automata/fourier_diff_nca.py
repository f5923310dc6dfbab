"""FourierDiff-NCA (Kalkhof et al., section 3.2): a first NCA over the lowest frequencies, a second over the image.

The Fourier stage spreads global information in few steps: a cell there is a frequency, so every cell speaks for the
whole image. What it writes into the noise-output and hidden channels is what the image stage starts from.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from morphogen.automata.active import around
from morphogen.automata.embedding import Inputs, positions
from morphogen.automata.nca import NCAConfig, NCADenoiser
from morphogen.automata.state import read_noise
from morphogen.automata.update_rule import Norm, UpdateRule
from morphogen.core.keys import Key
from morphogen.core.model import ImageConfig, LabelConfig
from morphogen.diffusion.config import DiffusionConfig

_EMBEDDING = 4  # x, y, timestep, NCA step


class FourierNCAConfig(NCAConfig):
    """The settings of FourierDiff-NCA; norm is `group` as published."""

    norm: Norm = Field("group", description="cell: over the channels of each cell; group: GroupNorm(1, h)")
    window: int = Field(16, ge=2, le=1024, description="frequencies on a side, from zero up, of the Fourier stage")
    fourier_steps: int = Field(32, ge=1, le=512, description="NCA steps of the Fourier stage")
    positions: Literal["stretch", "continue"] = Field(
        "stretch",
        description="at other sizes: stretch runs from 1 to 0 over any width and height, as published; continue "
        "keeps the step from cell to cell",
    )
    spectrum: Literal["forward", "ortho"] = Field(
        "forward",
        description="at other sizes: forward leaves an image's amplitudes in the window as they are, as published; "
        "ortho those of the noise",
    )

    def check(self, image: ImageConfig, condition_channels: int = 0) -> None:
        super().check(image, condition_channels)
        if min(image.height, image.width) < self.minimum_size:
            raise ValueError(
                f"the size {image.height}x{image.width} is too small for FourierDiff-NCA: its window of {self.window}x"
                f"{self.window} frequencies needs at least {self.minimum_size} on each side"
            )

    @property
    def minimum_size(self) -> int:
        """The smallest height and width in pixels of an image whose spectrum has the window."""
        return 2 * self.window * self.patch


class FourierDiffNCA(NCADenoiser):
    """An update rule over the spectrum's window (real and imaginary halves, 2c channels), then one over the image (c
    channels). Both are conditioned on x, y, the timestep and the NCA step.
    """

    family: ClassVar[str] = "fourier-diff-nca"
    config_class: ClassVar[type[FourierNCAConfig]] = FourierNCAConfig
    architecture: FourierNCAConfig

    def __init__(
        self,
        image: ImageConfig,
        architecture: FourierNCAConfig,
        diffusion: DiffusionConfig,
        condition_channels: int = 0,
        labels: LabelConfig = LabelConfig(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__(image, architecture, diffusion, condition_channels, labels)
        c, fixed = architecture.channels, self.fixed_channels
        self.fourier = self.new_rule(2 * c, _EMBEDDING, "zeros", [*range(fixed), *range(c, c + fixed)])
        self.rule = self.new_rule(c, _EMBEDDING, "reflect", list(range(fixed)))

    def noise(
        self, fixed: Tensor, t: Tensor, key: Key, active: Tensor | None, steps: int, labels: Tensor | None = None
    ) -> Tensor:
        inputs = self.inputs((fixed.shape[-2], fixed.shape[-1]), t, steps, labels)
        state, where = self.image_seed_state(fixed, t, labels), (self.fixed_channels, self.colours)
        if active is None:
            return read_noise(self.run_image(state, inputs, key), *where)
        rows, columns = around(active)  # beyond it nothing changes
        there = replace(key.moved(rows.start, columns.start), canvas=None)  # cells that rest surround it: no cut
        part = self.run_image(state[..., rows, columns], inputs.crop(rows, columns), there, active[..., rows, columns])
        noise = read_noise(state, *where).clone()
        noise[..., rows, columns] = read_noise(part, *where)
        return noise

    def image_seed_state(self, fixed: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """The state (B, c, rows, columns) after the Fourier stage: the fixed channels (B, fixed_channels, rows,
        columns), and other channels that know of all of them.
        """
        c, count, side = self.architecture.channels, fixed.shape[1], self.architecture.window
        height, width = fixed.shape[-2:]
        x = fixed.float()
        # The lowest frequencies: the window that starts at the centre once the zero frequency has been shifted there.
        window = torch.fft.fft2(x, norm="forward")[..., :side, :side]
        cells = x.new_zeros(len(x), 2 * c, side, side)
        cells[:, :count], cells[:, c : c + count] = window.real, window.imag
        if self.architecture.spectrum == "ortho":
            trained = self.architecture.grid((self.image.height, self.image.width))
            cells = cells * math.sqrt(height * width / (trained[0] * trained[1]))
        cells = self._run_fourier(cells.contiguous(memory_format=torch.channels_last), t, labels).float()
        written = torch.complex(cells[:, count:c].contiguous(), cells[:, c + count :].contiguous())
        image = torch.fft.ifft2(written, s=(x.shape[-2], x.shape[-1]), norm="forward").real  # zero at all others
        return torch.cat([x, image], dim=1).contiguous(memory_format=torch.channels_last)

    def _run_fourier(self, cells: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        side, steps = self.architecture.window, self.architecture.fourier_steps
        x, y = positions((side, side), t.device)
        inputs = Inputs(self.time_fraction(t), side, self.architecture.encoding, x, y, labels)
        fast = self.fast()
        if fast is not None:
            return fast.run(self.fourier, cells, inputs, steps, recompute=self.recompute)
        return self.fourier.run(cells, inputs.at, [None] * steps, self.recompute, labels=labels)

    def stages(self, size: tuple[int, int]) -> list[tuple[UpdateRule, bool, tuple[int, int], int]]:
        settings = self.architecture
        window = (settings.window, settings.window)
        return [
            (self.fourier, True, window, settings.fourier_steps),
            (self.rule, True, settings.grid(size), settings.nca_steps),
        ]

    def inputs(self, size: tuple[int, int], t: Tensor, steps: int, labels: Tensor | None = None) -> Inputs:
        """The embedding inputs of the cells (rows, columns) at timesteps t (B,), a step counting 1 / steps."""
        x, y = positions(size, t.device)
        if self.architecture.positions == "continue":
            rows, columns = self.architecture.grid((self.image.height, self.image.width))
            x = 1 - (1 - x) * (size[1] - 1) / (columns - 1)
            y = 1 - (1 - y) * (size[0] - 1) / (rows - 1)
        return Inputs(self.time_fraction(t), steps, self.architecture.encoding, x, y, labels)

    @property
    def minimum_size(self) -> int:
        return self.architecture.minimum_size

    @property
    def receptive_range(self) -> int | None:
        return None

    @property
    def inexact_in_tiles(self) -> str | None:
        return "its Fourier stage reads the whole image, and its cells know their position relative to the image's size"
