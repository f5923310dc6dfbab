"""Painting one tile: what every worker does, on whichever machine it runs."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from morphogen.automata.nca import NCADenoiser
from morphogen.core.errors import InputError
from morphogen.core.images import to_bytes
from morphogen.core.keys import Key
from morphogen.core.model import PrecisionChoice
from morphogen.diffusion.denoiser import Denoiser
from morphogen.diffusion.samplers import Stepper
from morphogen.models import load_model
from morphogen.slides.canvas import Canvas, Grid
from morphogen.slides.inpainting import Filling
from morphogen.slides.job import Job, fingerprints
from morphogen.slides.tile import Region, step_region, with_halo
from morphogen.slides.windows import Statistics, Windows, has_statistics
from morphogen.tasks.checks import need_denoiser

PREVIEW_SIDE = 1024
FIXED_TILE = 256
_LARGEST_OVERHEAD = 0.15
TASK = "painting slides"


def prepare(model: Denoiser, device: str, precision: PrecisionChoice, approximate: bool = False) -> str:
    """Put a model on a device in its fast form; in words, what it then computes in.

    The kernel on a CPU gives every cell the same bits whatever the shape of its tile; nothing else promises that, and
    then one thread and tiles of one shape (`FIXED_TILE`) keep the bits the same. approximate: in windows.
    """
    model.to(device)
    model.compute_in(None if approximate and has_statistics(model) else precision)
    fast = model.fast() if isinstance(model, NCADenoiser) else None
    if fast is not None:
        return f"{fast.precision} by the fast kernel on {fast.device_type}"
    return f"{'bfloat16' if model.bf16 else 'float32'} by PyTorch on {model.device.type}"


def any_shape(computed_in: str) -> bool:
    """Whether a cell's bits are the same in tiles of any shape."""
    return computed_in.endswith("by the fast kernel on cpu")


def overhead(tile: int, halo: int) -> float:
    """The share of cell updates outside an inner tile that its halo costs, step by step shrinking."""
    return sum((1 + 2 * i / tile) ** 2 for i in range(halo)) / halo - 1 if halo else 0.0


def default_tile(halo: int) -> int:
    """The smallest tile from 256 on, in steps of 64, whose halo costs less than 15 %."""
    tile = FIXED_TILE
    while overhead(tile, halo) >= _LARGEST_OVERHEAD:
        tile += 64
    return tile


class Painted(NamedTuple):
    """What a worker tells of a tile: how it looks small (rows, columns, C), from which row and column on."""

    y: int
    x: int
    pixels: np.ndarray


def preview_scale(size: tuple[int, int]) -> int:
    """How many pixels a pixel of the preview is wide."""
    return max(1, -(-max(size) // PREVIEW_SIDE))


def _small(region: Region, images: Tensor, scale: int) -> Painted:
    """The pixels of the preview whose first cell lies in a region: the means of what of them does."""
    top, left = -(-region.y // scale), -(-region.x // scale)
    rows = [y - region.y for y in range(top * scale, region.y + region.height, scale)]
    columns = [x - region.x for x in range(left * scale, region.x + region.width, scale)]
    pixels = np.zeros((len(rows), len(columns), images.shape[1]), np.uint8)
    if rows and columns:
        plane = images[0].cpu().numpy()[:, rows[0] :, columns[0] :]
        first = np.subtract(rows, rows[0]), np.subtract(columns, columns[0])
        sums = np.add.reduceat(np.add.reduceat(plane, first[0], axis=1), first[1], axis=2)
        counts = np.diff([*first[0], plane.shape[1]])[:, None] * np.diff([*first[1], plane.shape[2]])
        pixels = to_bytes(torch.from_numpy(sums / counts)[None])[0]
    return Painted(top, left, pixels)


class Painter:
    """Opens the job of a folder and paints its tiles. threads: to compute with; None for as many as PyTorch has.

    Raises InputError where the model has changed, or this machine computes otherwise than the job says.
    """

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        import zarr

        self.folder, self.job = folder, Job.load(folder)
        if not any_shape(self.job.computed_in) and not self.job.device.startswith("cuda"):
            threads = 1
        if threads is not None:
            torch.set_num_threads(threads)
            zarr.config.set({"async.concurrency": 4, "threading.max_workers": 1})
        if fingerprints(Path(self.job.model)) != (self.job.model_sha256, self.job.config_sha256):
            raise InputError(f"the model {self.job.model} is not, or no more, the one that the slide was begun with")
        self.model = need_denoiser(load_model(self.job.model), TASK, pixels=True)
        precision: PrecisionChoice = "bfloat16" if "bfloat16" in self.job.computed_in else "float32"
        found = prepare(self.model, self.job.device, precision, self.job.approximate)
        if found != self.job.computed_in:
            raise InputError(
                f"this machine computes in {found}, but the slide was begun in {self.job.computed_in}; "
                "every machine must compute alike"
            )
        self.stepper = Stepper(self.model, self.job.sampler, self.job.sampling_steps)
        self.grid = Grid(self.job.size, self.job.tile)
        channels, cell = self.model.image.channels, self.model.cell_size
        approximate = self.job.approximate
        self.canvas = Windows(folder, self.grid, channels, cell) if approximate else Canvas(folder, self.grid, channels)
        self._statistics = Statistics(folder, self.stepper, self.job.seed) if self.job.approximate else None
        self._filling: Filling | None = None
        if self.job.source is not None:
            self._filling = Filling(folder, Path(self.job.source), self.job.context or 0)
        self._scale = preview_scale(self.job.size)

    def paint(self, i: int, index: int) -> Painted:
        """Take evaluation number i of a tile, and write what it leaves. Doing so again changes nothing."""
        job, region = self.job, self.grid.region(index)
        if isinstance(self.canvas, Windows):
            return self._in_window(self.canvas, i, index)
        outer = with_halo(self.model, region, job.size)
        noisy = None if i == 0 else self.canvas.read(i - 1, outer).to(self.model.device)
        known, active = (None, None) if self._filling is None else self._filling.around(outer)
        after = step_region(self.stepper, i, job.seed, region, job.size, noisy, known, active)
        if i + 1 == len(self.stepper):
            self.canvas.write_painted(region, to_bytes(after)[0].transpose(2, 0, 1))
        else:
            self.canvas.write(i, region, after)
        return _small(region, self.stepper.shown(after, i), self._scale)

    def _in_window(self, canvas: Windows, i: int, index: int) -> Painted:
        region, window = self.grid.region(index), canvas.window(index)
        if i == len(self.stepper):
            blended = canvas.read(i - 1, region)
            canvas.write_painted(region, to_bytes(blended)[0].transpose(2, 0, 1))
            return _small(region, blended, self._scale)
        assert self._statistics is not None
        self._statistics.begin(i)
        key = Key((self.job.seed,), i, ((window.y, window.x),))
        noisy = canvas.read(i - 1, window).to(self.model.device) if i else self.stepper.begin(key, window.size)
        after = self.stepper.step(i, noisy, key).x
        canvas.write_window(i, index, after)
        rows, columns = region.within(window)
        return _small(region, self.stepper.shown(after, i)[..., rows, columns], self._scale)
