"""Painting one tile: what every worker does, on whichever machine it runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from morphogen.core.errors import InputError
from morphogen.core.evaluation import Evaluation
from morphogen.core.images import to_bytes
from morphogen.core.keys import Key
from morphogen.core.request import SamplingRequest
from morphogen.diffusion.denoiser import Denoiser
from morphogen.diffusion.ladder import Ladder, level_seed
from morphogen.diffusion.sampling import Stepper
from morphogen.models import load_model
from morphogen.pyramids.region import Region, TileGrid
from morphogen.slides.canvas import Canvas
from morphogen.slides.computation import prepare
from morphogen.slides.inpainting import KnownContent
from morphogen.slides.levels import SlideCondition, find_painters
from morphogen.slides.manifest import SlideManifest, fingerprints
from morphogen.slides.overlap_blend import BlendedCanvas, FrozenStatistics
from morphogen.slides.region import decoded_from, step_region, with_halo
from morphogen.slides.rescaling import rescaled

PREVIEW_SIDE = 1024
FIXED_TILE = 256
_LARGEST_OVERHEAD = 0.15
_LARGEST_REPLAY = 2**22
TASK = "painting slides"


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
    """How a tile looks small (rows, columns, C), and from which row and column of the preview on."""

    y: int
    x: int
    pixels: np.ndarray


class SteppedTile(NamedTuple):
    """A worker's report of a tile: how it looks, and the checksum of what lies on the disk."""

    preview: TilePreview
    checksum: int


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


def make_stepper(model: Denoiser, manifest: SlideManifest) -> Stepper:
    """What takes the sampling steps of a slide."""
    request = SamplingRequest(manifest.sampler, manifest.sampling_steps)
    return Stepper(model, request, clip=model.latents is None)


def make_canvas(folder: Path, manifest: SlideManifest, stepper: Stepper) -> Canvas:
    """The canvas of a slide, in the folder of its work."""
    denoiser = stepper.denoiser
    grid = TileGrid(denoiser.grid_size(manifest.size), (manifest.tile, manifest.tile))
    channels = denoiser.picture.channels
    if manifest.approximate:
        return BlendedCanvas(folder, grid, channels, stepper.kept_channels, denoiser.cell_size)
    factor = 1 if denoiser.latents is None else denoiser.latents.factor
    return Canvas(folder, grid, channels, stepper.kept_channels, factor)


def open_worker(folder: Path, threads: int | None = None) -> TileWorker:
    """A worker for this process, which computes with this many threads from now on; None leaves their number as it is.

    Where the bits depend on how many there are, it is one. Raises InputError as `TileWorker` does.
    """
    import zarr

    manifest = SlideManifest.load(folder)
    if not manifest.computation.any_shape and not manifest.device.startswith("cuda"):
        threads = 1
    if threads is not None:
        torch.set_num_threads(threads)
        zarr.config.set({"async.concurrency": 4, "threading.max_workers": 1})
    return TileWorker(folder)


class TileWorker:
    """Opens the manifest of a folder and paints its tiles.

    Raises InputError where the model has changed, or this machine computes otherwise than the manifest says.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.manifest = folder, SlideManifest.load(folder)
        if fingerprints(Path(self.manifest.model)) != (self.manifest.model_sha256, self.manifest.config_sha256):
            raise InputError(
                f"the model {self.manifest.model} is not, or no more, the one that the slide was begun with"
            )
        whole = load_model(self.manifest.model)
        self.model = find_painters(whole, TASK)[-1 if self.manifest.level is None else self.manifest.level]
        began = self.manifest.computation
        found = prepare(self.model, self.manifest.device, began.precision, self.manifest.approximate)
        if found != began:
            raise InputError(
                f"this machine computes in {found}, but the slide was begun in {began}; "
                "every machine must compute alike"
            )
        self.stepper = make_stepper(self.model, self.manifest)
        self.canvas = make_canvas(folder, self.manifest, self.stepper)
        self.grid = self.canvas.grid
        self._statistics = (
            FrozenStatistics(folder, self.stepper, self.manifest.seed) if self.manifest.approximate else None
        )
        self._known: KnownContent | None = None
        if self.manifest.source is not None:
            source = Path(self.manifest.source) if self.manifest.rescale is None else rescaled(folder)
            self._known = KnownContent(folder, source, self.manifest.context or 0)
        self.seed = self.manifest.seed
        self._told = SlideCondition(folder, self.manifest, whole)
        if isinstance(whole, Ladder):
            assert self.manifest.level is not None
            self.seed = level_seed(self.seed, self.manifest.level)
        self._scale = preview_scale(self.manifest.size)

    def step(self, i: int, index: int) -> SteppedTile:
        """Take evaluation number i of a tile, and write what it leaves. Doing so again changes nothing."""
        region = self.grid.region(index)
        if isinstance(self.canvas, BlendedCanvas):
            return self._step_window(self.canvas, i, index)
        if i == len(self.stepper):
            return self._decode(i, region)
        outer = with_halo(self.model, region, self.grid.size)
        kept = None if i == 0 else self.canvas.read(i - 1, outer).to(self.model.device)
        after = self._evaluate(i, region, kept)
        shown = TilePreview(0, 0, np.zeros((0, 0, self.canvas.channels), np.uint8))  # noisy latents are no picture
        if self.model.latents is None:
            shown = _small(region, self._noisy(after), self._scale)
        return SteppedTile(shown, self._write(i, region, after))

    def replay(self, i: int, index: int) -> int:
        """Compute from the noise on what evaluation number i leaves of a tile, write it and return its checksum.

        What each evaluation reads around makes the region of the one before larger. Raises InputError where the first
        would be larger than `_LARGEST_REPLAY` pixels.
        """
        tile, decodes = self.grid.region(index), i == len(self.stepper)
        regions = [decoded_from(self.model, tile, self.grid.size) if decodes else tile]
        for _ in range(i - int(decodes)):
            regions.append(with_halo(self.model, regions[-1], self.grid.size))
        if math.prod(regions[-1].size) > _LARGEST_REPLAY:
            raise InputError("it takes too much to compute that tile alone")
        state: Tensor | None = None
        for evaluation, region in enumerate(reversed(regions)):
            state = self._evaluate(evaluation, region, state)
        assert state is not None
        if decodes:
            return self.canvas.write_painted(
                tile, to_bytes(self._pixels(tile, regions[0], state))[0].transpose(2, 0, 1)
            )
        return self._write(i, regions[0], state)

    def _evaluate(self, i: int, region: Region, kept: Tensor | None) -> Tensor:
        """The result of evaluation number i in a region. kept: of the one before, with a halo."""
        size = self.grid.size
        known, active = None, None
        outer = with_halo(self.model, region, size)
        if self._known is not None:
            known, active = self._known.around(outer)
        return step_region(self.stepper, i, self.seed, region, size, kept, known, active, self._condition(outer))

    def _condition(self, outer: Region) -> Tensor | None:
        """What the cells of a region are told."""
        told = self._told.of(outer)
        return None if told is None else told.to(self.model.device)

    def _write(self, i: int, region: Region, after: Tensor) -> int:
        """Write what evaluation number i leaves of a tile; its checksum."""
        if i + 1 < len(self.stepper) or self.model.latents is not None:
            return self.canvas.write(i, region, after)
        return self.canvas.write_painted(region, to_bytes(self._noisy(after))[0].transpose(2, 0, 1))

    def _noisy(self, kept: Tensor) -> Tensor:
        """The noisy images, of what is kept between two evaluations."""
        return kept[:, : self.model.image.channels]

    def _decode(self, i: int, region: Region) -> SteppedTile:
        """Write the pixels of a tile of latents, which is all that the last evaluation does."""
        outer = decoded_from(self.model, region, self.grid.size)
        pixels = self._pixels(region, outer, self.canvas.read(i - 1, outer).to(self.model.device))
        left = self.canvas.write_painted(region, to_bytes(pixels)[0].transpose(2, 0, 1))
        return SteppedTile(_small(region.scaled(self.canvas.factor), pixels, self._scale), left)

    def _pixels(self, region: Region, outer: Region, kept: Tensor) -> Tensor:
        """The pixels (1, C, height, width) of a region of latents. kept: of the region `decoded_from`."""
        rows, columns = (region.y, region.y + region.height), (region.x, region.x + region.width)
        return self.model.decode_part(self._noisy(kept), (outer.y, outer.x), self.grid.size, rows, columns)

    def _step_window(self, canvas: BlendedCanvas, i: int, index: int) -> SteppedTile:
        region, window = self.grid.region(index), canvas.window(index)
        if i == len(self.stepper):
            blended = self._noisy(canvas.read(i - 1, region))
            left = canvas.write_painted(region, to_bytes(blended)[0].transpose(2, 0, 1))
            return SteppedTile(_small(region, blended, self._scale), left)
        assert self._statistics is not None
        self._statistics.begin(i)
        key = Key((self.manifest.seed,), i, ((window.y, window.x),))
        noisy, history = self.stepper.begin(key, window.size), None
        if i > 0:
            noisy, history = self.stepper.resume(i, canvas.read(i - 1, window).to(self.model.device))
        evaluation = Evaluation(key, condition=self._condition(window))
        after = self.stepper.keep(self.stepper.step(i, noisy, evaluation, history))
        left = canvas.write_window(i, index, after)
        rows, columns = region.within(window)
        return SteppedTile(_small(region, self._noisy(after)[..., rows, columns], self._scale), left)
