"""Painting one tile: what every worker does, on whichever machine it runs."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from morphogen.automata.nca import NCADenoiser
from morphogen.core.errors import InputError
from morphogen.core.evaluation import Evaluation
from morphogen.core.images import to_bytes
from morphogen.core.keys import Key
from morphogen.core.request import PrecisionChoice, SamplingRequest
from morphogen.diffusion.denoiser import Denoiser
from morphogen.diffusion.sampling import Stepper
from morphogen.models import load_model
from morphogen.pyramids.region import Region, TileGrid
from morphogen.slides.canvas import Canvas
from morphogen.slides.inpainting import KnownContent
from morphogen.slides.manifest import SlideManifest, fingerprints
from morphogen.slides.overlap_blend import BlendedCanvas, FrozenStatistics, has_statistics
from morphogen.slides.region import step_region, with_halo
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
    return f"{'bfloat16' if model.autocast else 'float32'} by PyTorch on {model.device.type}"


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


class TilePreview(NamedTuple):
    """What a worker tells of a tile: how it looks small (rows, columns, C), from which row and column on."""

    y: int
    x: int
    pixels: np.ndarray


def preview_scale(size: tuple[int, int]) -> int:
    """How many pixels a pixel of the preview is wide."""
    return max(1, -(-max(size) // PREVIEW_SIDE))


def _small(region: Region, images: Tensor, scale: int) -> TilePreview:
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
    return TilePreview(top, left, pixels)


class TileWorker:
    """Opens the manifest of a folder and paints its tiles. threads: to compute with; None for as many as PyTorch has.

    Raises InputError where the model has changed, or this machine computes otherwise than the manifest says.
    """

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        import zarr

        self.folder, self.manifest = folder, SlideManifest.load(folder)
        if not any_shape(self.manifest.computed_in) and not self.manifest.device.startswith("cuda"):
            threads = 1
        if threads is not None:
            torch.set_num_threads(threads)
            zarr.config.set({"async.concurrency": 4, "threading.max_workers": 1})
        if fingerprints(Path(self.manifest.model)) != (self.manifest.model_sha256, self.manifest.config_sha256):
            raise InputError(
                f"the model {self.manifest.model} is not, or no more, the one that the slide was begun with"
            )
        self.model = need_denoiser(load_model(self.manifest.model), TASK, pixels=True)
        precision: PrecisionChoice = "bfloat16" if "bfloat16" in self.manifest.computed_in else "float32"
        found = prepare(self.model, self.manifest.device, precision, self.manifest.approximate)
        if found != self.manifest.computed_in:
            raise InputError(
                f"this machine computes in {found}, but the slide was begun in {self.manifest.computed_in}; "
                "every machine must compute alike"
            )
        self.stepper = Stepper(self.model, SamplingRequest(self.manifest.sampler, self.manifest.sampling_steps))
        self.grid = TileGrid(self.manifest.size, (self.manifest.tile, self.manifest.tile))
        channels, cell = self.model.image.channels, self.model.cell_size
        approximate = self.manifest.approximate
        self.canvas = (
            BlendedCanvas(folder, self.grid, channels, cell) if approximate else Canvas(folder, self.grid, channels)
        )
        self._statistics = (
            FrozenStatistics(folder, self.stepper, self.manifest.seed) if self.manifest.approximate else None
        )
        self._known: KnownContent | None = None
        if self.manifest.source is not None:
            self._known = KnownContent(folder, Path(self.manifest.source), self.manifest.context or 0)
        self._scale = preview_scale(self.manifest.size)

    def step(self, i: int, index: int) -> TilePreview:
        """Take evaluation number i of a tile, and write what it leaves. Doing so again changes nothing."""
        manifest, region = self.manifest, self.grid.region(index)
        if isinstance(self.canvas, BlendedCanvas):
            return self._in_window(self.canvas, i, index)
        outer = with_halo(self.model, region, manifest.size)
        noisy = None if i == 0 else self.canvas.read(i - 1, outer).to(self.model.device)
        known, active = (None, None) if self._known is None else self._known.around(outer)
        after = step_region(self.stepper, i, manifest.seed, region, manifest.size, noisy, known, active)
        if i + 1 == len(self.stepper):
            self.canvas.write_painted(region, to_bytes(after)[0].transpose(2, 0, 1))
        else:
            self.canvas.write(i, region, after)
        return _small(region, after, self._scale)

    def _in_window(self, canvas: BlendedCanvas, i: int, index: int) -> TilePreview:
        region, window = self.grid.region(index), canvas.window(index)
        if i == len(self.stepper):
            blended = canvas.read(i - 1, region)
            canvas.write_painted(region, to_bytes(blended)[0].transpose(2, 0, 1))
            return _small(region, blended, self._scale)
        assert self._statistics is not None
        self._statistics.begin(i)
        key = Key((self.manifest.seed,), i, ((window.y, window.x),))
        noisy = canvas.read(i - 1, window).to(self.model.device) if i else self.stepper.begin(key, window.size)
        after = self.stepper.step(i, noisy, Evaluation(key)).x
        canvas.write_window(i, index, after)
        rows, columns = region.within(window)
        return _small(region, after[..., rows, columns], self._scale)
