"""Keys: what fixes the randomness of a batch of images."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from morphogen.core import random
from morphogen.core.errors import InputError
from morphogen.core.random import Purpose


@dataclass(frozen=True)
class Key:
    """Each image's seed, the evaluation counter, and where on which canvas each image lies.

    seeds: one integer in 0..2**64-1 an image; it fixes that image completely.
    evaluation: how many times the denoiser has been evaluated before, 0 for the first.
    origins: absolute (y, x) of each image's first cell on its canvas; empty means (0, 0) for all.
    canvas: (height, width) of the whole canvas, or None where the images are their own canvas. An edge of an image
        inside its canvas is a cut: within the model's `receptive_range` of it the result means nothing.
    """

    seeds: tuple[int, ...]
    evaluation: int = 0
    origins: tuple[tuple[int, int], ...] = ()
    canvas: tuple[int, int] | None = None

    @classmethod
    def of(cls, seeds: Iterable[int]) -> Key:
        """A key for whole images. Raises InputError for a seed that is no integer in 0..2**64-1."""
        try:
            seeds = tuple(operator.index(s) for s in seeds)
        except TypeError:
            raise InputError(f"seeds are integers in 0..{random.MAX_SEED}, not {seeds!r}") from None
        for seed in seeds:
            if not 0 <= seed <= random.MAX_SEED:
                raise InputError(f"seed {seed} is outside 0..{random.MAX_SEED}")
        return cls(seeds)

    def __len__(self) -> int:
        return len(self.seeds)

    def coarser(self, pixels: int) -> Key:
        """The key on a canvas whose cells are squares of `pixels` pixels on a side.

        Raises InputError where an image does not begin with a whole cell.
        """
        if any(y % pixels or x % pixels for y, x in self.origins):
            raise InputError(
                f"a part of a canvas should begin at multiples of {pixels} pixels, as the model's cells do"
            )
        canvas = None if self.canvas is None else (-(-self.canvas[0] // pixels), -(-self.canvas[1] // pixels))
        return replace(self, origins=tuple((y // pixels, x // pixels) for y, x in self.origins), canvas=canvas)

    def at(self, evaluation: int) -> Key:
        """The same key at another evaluation."""
        return replace(self, evaluation=evaluation)

    def moved(self, down: int, right: int) -> Key:
        """The key of the part of each image that begins `down` cells further down and `right` further right."""
        return replace(self, origins=tuple((y + down, x + right) for y, x in self.placed()))

    def placed(self) -> tuple[tuple[int, int], ...]:
        """The origin of every image."""
        return self.origins or ((0, 0),) * len(self.seeds)

    def cuts(self, size: tuple[int, int]) -> list[tuple[bool, bool, bool, bool]]:
        """Which edges of each image (height, width) lie inside its canvas: the upper, lower, left and right one."""
        if self.canvas is None:
            return [(False,) * 4] * len(self)
        bottom, right = self.canvas
        return [(y > 0, y + size[0] < bottom, x > 0, x + size[1] < right) for y, x in self.placed()]

    def normals(self, purpose: Purpose, channels: int, size: tuple[int, int], device: torch.device | str) -> Tensor:
        """Standard normals float32 (B, channels, height, width) for a purpose at this evaluation."""
        keys = [random.mix(seed, purpose, self.evaluation) for seed in self.seeds]
        return random.normals(keys, self.placed(), channels, size, device)

    def fire_masks(
        self, nca_steps: int, rate: float, size: tuple[int, int], device: torch.device | str, stage: int = 0
    ) -> list[Tensor]:
        """Which cells update in each NCA step: `nca_steps` boolean masks (B, 1, H, W), True with probability `rate`.

        stage tells apart automata that run one after the other in one evaluation.
        """
        threshold = random.fire_threshold(rate)
        masks: list[Tensor] = []
        for block in range((nca_steps + 3) // 4):
            found = random.words(self.fire_keys(block, stage), self.placed(), size, device)
            masks += [word < threshold for word in found]
        return masks[:nca_steps]

    def fire_keys(self, block: int, stage: int = 0) -> list[int]:
        """The keys, one an image, of the fire masks of steps 4 block to 4 block + 3: one word of Philox each."""
        return [random.mix(seed, Purpose.FIRE, self.evaluation, stage, block) for seed in self.seeds]
