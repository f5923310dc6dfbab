"""Approximate painting, for models that see further than a halo: overlapping windows, blended, and frozen statistics.

Each tile's window is as large as the images that the model was made for; a step is taken in each, and where the next
step reads, the windows there are averaged, the more the farther from their edges (as in Bar-Tal et al.,
"MultiDiffusion"). Statistics of group normalisation are those of a small image made with the same seed and settings.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from morphogen.core.errors import InputError
from morphogen.core.evaluation import Evaluation
from morphogen.core.files import replace_file
from morphogen.core.keys import Key
from morphogen.core.spatial_norm import SpatialNorm, Statistics
from morphogen.diffusion.denoiser import Denoiser
from morphogen.diffusion.sampling import Stepper
from morphogen.pyramids.region import Region, TileGrid
from morphogen.slides.canvas import BUFFERS, Canvas
from morphogen.slides.progress import checksum

_STATISTICS = "statistics.npz"


def check_windows(model: Denoiser, size: tuple[int, int]) -> int:
    """The tile of approximate painting: half a window. Raises InputError where a model or size cannot be painted so."""
    side = window_of(model)
    if model.carries_memory:
        raise InputError(
            f"{model.family} cannot be painted in windows, which carry no state from step to step as it does"
        )
    if side % 4 or side < 4 * model.cell_size:
        raise InputError(
            f"--approximate paints in windows as large as the model's images, whose side should be a multiple of 4 and "
            f"at least {4 * model.cell_size}; this model's are {side}x{side}"
        )
    if min(size) < side:
        raise InputError(
            f"--size {size[0]}x{size[1]} is smaller than the {side}x{side} pixels that the model was made for, which "
            "are the windows that --approximate paints in; use `morphogen sample`"
        )
    return side // 2


def window_of(model: Denoiser) -> int:
    """The side of a window."""
    return min(model.image.height, model.image.width)


class BlendedCanvas(Canvas):
    """A canvas whose buffers keep each tile's whole window, so that reading can blend them."""

    def __init__(self, folder: Path, grid: TileGrid, channels: int, kept: int, cell: int = 1) -> None:
        super().__init__(folder, grid, channels, kept)
        self._cell = cell
        self.side = 2 * grid.tile[0]
        ramp = np.minimum(np.arange(1, self.side + 1), np.arange(self.side, 0, -1)).astype(np.float32)
        self._weight = ramp[:, None] * ramp[None, :]

    def window(self, index: int) -> Region:
        """The window of a tile: a quarter of its side around it, moved inwards at the canvas's edges. It begins with a
        whole cell, and so may end some pixels beyond the canvas.
        """
        region, (height, width) = self.grid.region(index), self.grid.size
        y = min(max(0, region.y - self.side // 4), height - self.side)
        x = min(max(0, region.x - self.side // 4), width - self.side)
        return Region(-(-y // self._cell) * self._cell, -(-x // self._cell) * self._cell, self.side, self.side)

    def create(self, evaluations: int) -> None:
        super().create(3)  # with both buffers

    def layout(self, name: str) -> tuple[tuple[int, ...], tuple[int, ...], str]:
        if name not in BUFFERS:
            return super().layout(name)
        shape = (len(self.grid), self.kept, self.side, self.side)
        return shape, (1, *shape[1:]), "float32"

    def bytes_needed(self, evaluations: int, tiles: int) -> int:
        return tiles * self.kept * self.side**2 * 8

    def write_window(self, i: int, index: int, kept: Tensor) -> int:
        """Put what evaluation number i leaves of a tile's window, (1, kept, side, side), in its place; its checksum."""
        values = kept[0].cpu().numpy()
        self.array(BUFFERS[i % 2])[index] = values
        return checksum(values)

    def checksum_left(self, i: int, index: int, last: bool) -> int | None:
        if last:
            return super().checksum_left(i, index, last)
        try:
            return checksum(np.asarray(self.array(BUFFERS[i % 2])[index]))
        except Exception:  # as above
            return None

    def forget(self, i: int, index: int, last: bool) -> None:
        if last:
            return super().forget(i, index, last)
        (self.folder / BUFFERS[i % 2] / "c" / str(index) / "0" / "0" / "0").unlink(missing_ok=True)

    def read(self, i: int, region: Region) -> Tensor:
        array = self.array(BUFFERS[i % 2])
        sums = np.zeros((self.kept, *region.size), np.float32)
        weights = np.zeros(region.size, np.float32)
        # At the lower and right edges a window is moved inwards by up to its side.
        for index in self.grid.touched(region.grown(self.side, self.grid.size)):
            window = self.window(index)
            top, left = max(window.y, region.y), max(window.x, region.x)
            bottom = min(window.y + self.side, region.y + region.height)
            right = min(window.x + self.side, region.x + region.width)
            if bottom <= top or right <= left:
                continue
            shared = Region(top, left, bottom - top, right - left)
            here, there = shared.within(region), shared.within(window)
            sums[:, here[0], here[1]] += self._weight[there] * np.asarray(array[index])[:, there[0], there[1]]
            weights[here] += self._weight[there]
        return torch.from_numpy(sums / weights)[None]


class FrozenStatistics:
    """The statistics of a model's normalisations over the image, frozen for each evaluation and NCA step.

    folder: of the work, where they are kept. Other models have none and stay as they are.
    """

    def __init__(self, folder: Path, stepper: Stepper, seed: int) -> None:
        norms = stepper.denoiser.spatial_norms()
        self._evaluations, self._calls = len(stepper), [0] * len(norms)
        if not norms:
            self._kept = []
            return
        path = folder / _STATISTICS
        kept = _load_statistics(path, len(norms))
        if kept is None:
            kept = _measure(stepper, norms, seed)
            buffer = io.BytesIO()
            np.savez(buffer, *kept)
            replace_file(path, buffer.getvalue())
        self._kept = kept
        for number, norm in enumerate(norms):
            norm.replay = partial(self._next, number)

    def _next(self, number: int) -> Statistics:
        mean, variance = self._kept[number][self._calls[number]]
        self._calls[number] += 1
        return float(mean), float(variance)

    def begin(self, i: int) -> None:
        """Be at evaluation number i."""
        for number, kept in enumerate(self._kept):
            self._calls[number] = i * (len(kept) // self._evaluations)


def _measure(stepper: Stepper, norms: list[SpatialNorm], seed: int) -> list[np.ndarray]:
    """The statistics (calls, 2) of each normalisation while an image of the model's own size is made."""
    found: list[list[Statistics]] = [[] for _ in norms]
    for norm, heard in zip(norms, found, strict=True):
        norm.record = heard.append
    image = stepper.denoiser.image
    key = Key.of([seed])
    x, history = stepper.begin(key, (image.height, image.width)), None
    for i in range(len(stepper)):
        output = stepper.step(i, x, Evaluation(key.at(i)), history)
        x, history = output.x, output.history
    for norm in norms:
        norm.record = None
    return [np.array(heard) for heard in found]


def _load_statistics(path: Path, count: int) -> list[np.ndarray] | None:
    """The statistics measured before; None where it was not, or the file (which has checksums) is damaged."""
    try:
        with np.load(path) as kept:
            return [kept[f"arr_{number}"] for number in range(count)]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error):
        return None
