"""A slide from beginning to end: check, begin or go on, paint, write the file, clean up."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from morphogen.core.errors import InputError
from morphogen.core.files import sha256, sync_folder
from morphogen.core.model import Wanted
from morphogen.core.model_files import WEIGHTS_FILE
from morphogen.core.notices import say_once
from morphogen.diffusion.denoiser import Denoiser
from morphogen.diffusion.samplers import Stepper
from morphogen.models import find_model, load_model
from morphogen.slides import formats
from morphogen.slides.canvas import Canvas, Grid
from morphogen.slides.crew import Alone, Crew, Processes
from morphogen.slides.job import Job
from morphogen.slides.paint import (
    Preview,
    disk_full,
    disk_needed,
    free_bytes,
    in_words,
    paint,
    preview_file,
    stored_bytes,
    work_folder,
)
from morphogen.slides.painter import FIXED_TILE, any_shape, default_tile, need_denoiser, prepare
from morphogen.slides.pyramid import make_levels
from morphogen.slides.tile import check_steps_alone, halo_of

LARGEST_SIDE = 2**31 - 1
_LARGEST_TILE = 8192


@dataclass(frozen=True)
class Wish:
    """What a user asks for. model: a folder, a bundled name or a hub id. size: (height, width). out: its suffix says
    the format. tile: None for the default. workers: processes; 1 is this one. ray: an address, `local`, or
    None. jpeg: quality 1 to 100, or None for no loss. pixel_size: micrometres.
    """

    model: str
    size: tuple[int, int]
    out: Path
    seed: int = 0
    sampler: str | None = None
    sampling_steps: int | None = None
    tile: int | None = None
    workers: int = 1
    ray: str | None = None
    jpeg: int | None = None
    pixel_size: float | None = None
    device: str = "cpu"
    precision: Wanted = "auto"
    approximate: bool = False

    def crew(self, folder: Path) -> Crew:
        """Who paints."""
        if self.ray is not None:
            from morphogen.slides.cluster import Cluster

            return Cluster(folder, self.ray, self.workers)
        return Alone(folder) if self.workers == 1 else Processes(folder, self.workers)


def slide(wish: Wish) -> tuple[Path, bool]:
    """Paint a slide, or go on with one; the file, and whether there was anything left to do.

    Raises InputError for what cannot be, before anything is written; and where the disk is full.
    """
    suffix = formats.find_format(wish.out)
    _check(wish)
    model_folder = find_model(wish.model)
    model = need_denoiser(load_model(model_folder))
    computed_in = prepare(model, wish.device, wish.precision)
    job = _job(wish, suffix, model, model_folder, computed_in)
    formats.check_format(suffix, model.image.channels, wish.jpeg)
    folder = work_folder(wish.out)
    if not Job.there(folder) and any(part.exists() for part in formats.parts(wish.out)):
        job.check_same(formats.read_metadata(wish.out, suffix), f"--out {wish.out}")
        return wish.out, False
    grid = Grid(job.size, job.tile)
    evaluations = len(Stepper(model, job.sampler, job.sampling_steps))
    canvas = Canvas(folder, grid, model.image.channels)
    needed = disk_needed(canvas, evaluations, len(grid))
    channels = model.image.channels
    del model  # the workers have their own
    missing = needed - stored_bytes(folder) - free_bytes(folder)
    if missing > 0:
        raise InputError(
            f"--out {wish.out}: painting it takes {in_words(needed)} on the disk, {in_words(missing)} more than is "
            "free there"
        )
    with _work(folder, job, wish.out):
        height, width = job.size
        say_once(
            f"painting {height}x{width} pixels in {len(grid)} tiles of {job.tile} and {evaluations} steps; it takes "
            f"{in_words(needed)} on the disk while it goes on, and is resumed by the same command; preview: "
            f"{preview_file(wish.out)}"
        )
        try:
            if not (folder / "painted.zarr").exists():
                canvas.create(evaluations)
            preview = Preview(preview_file(wish.out), job.size, channels)
            paint(folder, job, evaluations, channels, range(len(grid)), wish.crew, preview)
            finish(folder, wish.out, suffix, canvas.painted, job.metadata())
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise disk_full(folder, needed) from None
    return wish.out, True


def finish(folder: Path, out: Path, suffix: str, image: Any, metadata: dict[str, Any]) -> None:
    """Make the file of a painted image, zarr (C, height, width), put it in place at once, and remove the work."""
    staged = folder / out.name
    for part in formats.parts(staged):
        if part.is_dir():
            shutil.rmtree(part)
        part.unlink(missing_ok=True)
    levels = make_levels(folder, image, formats.SMALLEST_LEVEL[suffix])
    formats.write(staged, suffix, levels, metadata)
    for part, place in zip(formats.parts(staged), formats.parts(out), strict=True):
        if part.exists():
            part.replace(place)
    sync_folder(out.parent)


@contextlib.contextmanager
def _work(folder: Path, job: Job, out: Path) -> Iterator[None]:
    """The folder of the work, held by one process at a time; it goes once its output is in place."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if Job.there(folder):
            job.check_same(Job.load(folder).model_dump(mode="json"), str(folder))
        elif folder.exists() and any(p.name not in ("lock", "painted.zarr") for p in folder.iterdir()):
            raise InputError(f"{folder} holds no work of Morphogen's; move it away, or use another --out")
        folder.mkdir(exist_ok=True)
        lock = FileLock(folder / "lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise InputError(f"another process is painting {out}; let it end, or use another --out") from None
    except OSError as error:
        raise InputError(f"--out {out} cannot be written: {error.strerror or error}") from None
    try:
        job.save(folder)
        yield
        (folder / "job.json").unlink()
    finally:
        lock.release()
        if not Job.there(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _check(wish: Wish) -> None:
    height, width = wish.size
    if max(height, width) > LARGEST_SIDE:
        raise InputError(f"--size {height}x{width}: a side may have {LARGEST_SIDE} pixels at most")
    if wish.tile is not None and not 1 <= wish.tile <= _LARGEST_TILE:
        raise InputError(f"--tile {wish.tile}: it should be between 1 and {_LARGEST_TILE}")
    if wish.jpeg is not None and not 1 <= wish.jpeg <= 100:
        raise InputError(f"--jpeg {wish.jpeg}: the quality should be between 1 and 100")
    if wish.pixel_size is not None and not 0 < wish.pixel_size < 1e6:
        raise InputError(f"--pixel-size {wish.pixel_size:g}: it should be above 0 micrometres")


def _job(wish: Wish, suffix: str, model: Denoiser, folder: Path, computed_in: str) -> Job:
    """The job of a wish. Raises InputError for what the model or its sampler cannot do."""
    height, width = wish.size
    if min(height, width) < model.minimum_size:
        raise InputError(
            f"--size {height}x{width} is too small: {model.family} needs at least {model.minimum_size} on each side"
        )
    sampler, steps = model.sampling(wish.sampler, wish.sampling_steps)
    check_steps_alone(Stepper(model, sampler, steps))
    try:
        halo = halo_of(model)
    except InputError as error:
        raise InputError(f"{error}; --approximate paints it with frozen statistics and blended overlaps") from None
    tile = wish.tile or default_tile(halo)
    if not any_shape(computed_in) and tile != FIXED_TILE:
        say_once(f"note: without the fast kernel on a CPU, tiles are {FIXED_TILE}, so that all give the same pixels")
        tile = FIXED_TILE
    return Job(
        model=str(folder.resolve()),
        model_sha256=sha256(folder / WEIGHTS_FILE),
        size=wish.size,
        seed=wish.seed,
        sampler=sampler,
        sampling_steps=steps,
        device=wish.device,
        computed_in=computed_in,
        tile=tile,
        format=suffix,
        approximate=wish.approximate,
        jpeg=wish.jpeg,
        pixel_size=wish.pixel_size,
    )
