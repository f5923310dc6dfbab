"""FourierDiff-NCA (Kalkhof et al., section 3.2): a first NCA over the lowest frequencies, a second over the image.

The Fourier stage spreads global information in few steps: a cell there is a frequency, so every cell speaks for the
whole image. What it writes into the noise-output and hidden channels is what the image stage starts from.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from morphogen.automata.diff_nca import NCAConfig, conditioned
from morphogen.automata.embedding import encode, positions
from morphogen.automata.state import read_noise, seed_state
from morphogen.automata.update_rule import Norm, UpdateRule
from morphogen.core.keys import Key
from morphogen.core.model import ImageConfig, Prediction
from morphogen.diffusion.config import DiffusionConfig
from morphogen.diffusion.denoiser import Denoiser

WINDOW = 16  # frequencies on a side, from zero up
FOURIER_STEPS = 32
_EMBEDDING_INPUTS = 4  # x, y, timestep, NCA step
_EMBEDDING = 4


class FourierNCAConfig(NCAConfig):
    """The settings of FourierDiff-NCA; norm is `group` as published."""

    norm: Norm = Field("group", description="cell: over the channels of each cell; group: GroupNorm(1, h)")
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

    def check(self, image: ImageConfig) -> None:
        super().check(image)
        if min(image.height, image.width) < 2 * WINDOW:
            raise ValueError(
                f"the size {image.height}x{image.width} is too small for FourierDiff-NCA: its window of {WINDOW}x"
                f"{WINDOW} frequencies needs at least {2 * WINDOW} on each side"
            )


class FourierDiffNCA(Denoiser):
    """An update rule over the spectrum's window (real and imaginary halves, 2c channels), then one over the image (c
    channels). Both are told x, y, the timestep and the NCA step.
    """

    family: ClassVar[str] = "fourier-diff-nca"
    config_class: ClassVar[type[FourierNCAConfig]] = FourierNCAConfig
    architecture: FourierNCAConfig

    def __init__(self, image: ImageConfig, architecture: FourierNCAConfig, diffusion: DiffusionConfig) -> None:
        super().__init__(image, architecture, diffusion)
        c, colours = architecture.channels, image.channels
        self.fourier = UpdateRule(
            2 * c,
            architecture.hidden,
            inputs=_EMBEDDING_INPUTS**2,
            embedding=_EMBEDDING,
            norm=architecture.norm,
            padding="zeros",
            fixed=[*range(colours), *range(c, c + colours)],
        )
        self.rule = UpdateRule(
            c,
            architecture.hidden,
            inputs=_EMBEDDING_INPUTS**2,
            embedding=_EMBEDDING,
            norm=architecture.norm,
            padding="reflect",
            fixed=list(range(colours)),
        )

    def predict(
        self, x: Tensor, t: Tensor, key: Key, active: Tensor | None = None, nca_steps: int | None = None
    ) -> Prediction:
        state = self.image_seed_state(x, t)
        return Prediction(read_noise(self.run_image(state, t, key, active, nca_steps), self.image.channels))

    def image_seed_state(self, x: Tensor, t: Tensor) -> Tensor:
        """The state (B, c, H, W) after the Fourier stage: the noisy image, and globally informed other channels."""
        c, colours = self.architecture.channels, self.image.channels
        height, width = x.shape[-2:]
        spectrum = torch.fft.fftshift(
            torch.fft.fft2(seed_state(x.float(), c).contiguous(), norm="forward"), dim=(-2, -1)
        )
        top, left = height // 2, width // 2  # the zero frequency after the shift
        window = spectrum[..., top : top + WINDOW, left : left + WINDOW]
        cells = torch.cat([window.real, window.imag], dim=1).contiguous(memory_format=torch.channels_last)
        if self.architecture.spectrum == "ortho":
            cells = cells * math.sqrt(height * width / (self.image.height * self.image.width))
        encoded = self._encoder(positions((WINDOW, WINDOW), t.device), t, WINDOW)
        cells = self.fourier.run(cells, encoded, [None] * FOURIER_STEPS, self.recompute).float()
        written = torch.complex(cells[:, colours:c].contiguous(), cells[:, c + colours :].contiguous())
        spectrum = spectrum.clone()
        spectrum[:, colours:, top : top + WINDOW, left : left + WINDOW] = written
        image = torch.fft.ifft2(torch.fft.ifftshift(spectrum, dim=(-2, -1)), norm="forward").real
        return torch.cat([x.float(), image[:, colours:]], dim=1).contiguous(memory_format=torch.channels_last)

    def run_image(
        self, state: Tensor, t: Tensor, key: Key, active: Tensor | None = None, nca_steps: int | None = None
    ) -> Tensor:
        """The last state (B, c, H, W) of the image stage."""
        steps = nca_steps or self.architecture.nca_steps
        size = (state.shape[-2], state.shape[-1])
        fire = key.fire_masks(steps, self.architecture.fire_rate, size, state.device)
        x, y = positions(size, t.device)
        if self.architecture.positions == "continue":
            x = 1 - (1 - x) * (size[1] - 1) / (self.image.width - 1)
            y = 1 - (1 - y) * (size[0] - 1) / (self.image.height - 1)
        return self.rule.run(state, self._encoder((x, y), t, steps), conditioned(fire, active), self.recompute)

    def _encoder(self, where: tuple[Tensor, Tensor], t: Tensor, steps: int):  # type: ignore[no-untyped-def]
        x, y = where
        time = self.time_fraction(t)

        def encoded(step: int) -> Tensor:
            return encode([x, y, time, torch.full_like(time, step / steps)], self.architecture.encoding)

        return encoded

    @property
    def minimum_size(self) -> int:
        return 2 * WINDOW

    @property
    def receptive_range(self) -> int | None:
        return None

    @property
    def inexact_in_tiles(self) -> str | None:
        return "its Fourier stage reads the whole image, and its cells know their position relative to the image's size"

    def compile_steps(self) -> None:
        self.fourier.compile_step()
        self.rule.compile_step()

    def deployed_parameter_count(self) -> int:
        return self.parameter_count() - self.fourier.gain_count() - self.rule.gain_count()
