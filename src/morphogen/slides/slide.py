"""A slide from beginning to end: check, begin or go on, paint, write the file, clean up."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from morphogen.core.errors import InputError
from morphogen.core.files import json_bytes, read_json, replace_file, sha256, sync_folder
from morphogen.core.model import PrecisionChoice
from morphogen.core.notices import say_once
from morphogen.diffusion.denoiser import Denoiser
from morphogen.diffusion.samplers import Stepper
from morphogen.models import find_model, load_model
from morphogen.slides import formats
from morphogen.slides.canvas import DISK_FULL, Canvas, Grid
from morphogen.slides.crew import Alone, Crew, Processes
from morphogen.slides.existing import Existing, open_existing
from morphogen.slides.hole import open_hole
from morphogen.slides.inpainting import converted, mark, put_in
from morphogen.slides.job import Job, fingerprints
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
from morphogen.slides.painter import FIXED_TILE, TASK, any_shape, default_tile, prepare
from morphogen.slides.pyramid import make_levels
from morphogen.slides.tile import check_steps_alone, halo_of
from morphogen.slides.windows import Windows, check_windows
from morphogen.tasks.checks import find_sampling, need_denoiser

LARGEST_SIDE = 2**31 - 1
_LARGEST_TILE = 8192
_LONGEST_NAME = 220  # bytes; of 255, so that the work's folder and what lies beside the slide have room
_STAGED = "out"


@dataclass(frozen=True)
class Wish:
    """What a user asks for. model: a folder, a bundled name or a hub id. size: (height, width). out: its suffix says
    the format. tile: None for the default. workers: processes; 1 is this one. ray: an address, `local`, or
    None. jpeg: quality 1 to 100, or None for no loss. pixel_size: micrometres.
    source, mask, context: a slide to inpaint, which gives the size; where; and how many cells around that update too.
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
    precision: PrecisionChoice = "auto"
    approximate: bool = False
    source: Path | None = None
    mask: Path | None = None
    context: int | None = None

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
    _check(wish)
    source = None if wish.source is None else _open_source(wish)
    suffix = formats.find_format(wish.out) if source is None else _ending(wish.out)
    if source is not None:
        wish = replace(wish, size=source.sizes[0])
    model_folder = find_model(wish.model)
    model = need_denoiser(load_model(model_folder), TASK, pixels=True)
    channels = model.image.channels
    if source is not None and source.channels != channels:
        raise InputError(f"--inpaint {wish.source} has {source.channels} channels, but this model's images {channels}")
    computed_in = prepare(model, wish.device, wish.precision, wish.approximate)
    job = _job(wish, suffix, model, model_folder, computed_in)
    if source is None:
        formats.check_format(suffix, channels, wish.jpeg)
    folder, grid = work_folder(wish.out), Grid(job.size, job.tile)
    # Windows are blended once more at the end.
    evaluations = len(Stepper(model, job.sampler, job.sampling_steps)) + int(job.approximate)
    canvas = Windows(folder, grid, channels, model.cell_size) if job.approximate else Canvas(folder, grid, channels)
    del model  # the workers have their own
    if not folder.exists() and _finished(wish, job):
        return wish.out, False
    with _work(folder, job, wish.out):
        left = not _finished(wish, job)  # looked at again, since another process may have ended just now
        if left:
            _paint(wish, job, canvas, evaluations, source)
    return wish.out, left


def _finished(wish: Wish, job: Job) -> bool:
    """Whether all of the output is in place. Raises InputError where what lies there is not of this job."""
    there = [part.exists() for part in formats.parts(wish.out)]
    if any(there):
        found = formats.read_metadata(wish.out, job.format) if wish.source is None else read_note(wish.out)
        job.check_same(found, f"--out {wish.out}")
    return all(there)


def _paint(wish: Wish, job: Job, canvas: Canvas, evaluations: int, source: Existing | None) -> None:
    """Paint what is left of a job, and put its output in place. Raises InputError where the disk is or becomes full."""
    folder, grid, needed = canvas.folder, canvas.grid, 0
    try:
        tiles = list(range(len(grid)))
        if wish.mask is not None:
            tiles = mark(folder, open_hole(wish.mask, job.size), grid, f"--mask {wish.mask}")
        needed = disk_needed(canvas, evaluations, len(tiles))
        if source is not None:
            # As an OME-Zarr: the whole, its smaller levels, and the file made of them.
            pixels = source.channels * job.size[0] * job.size[1]
            needed += pixels * 8 // 3 if _converts(wish) else stored_bytes(source.path)
        _check_space(wish.out, folder, needed)
        height, width = job.size
        say_once(
            f"painting {height}x{width} pixels, {len(tiles)} tiles of {job.tile}, in {evaluations} steps; it takes "
            f"{in_words(needed)} on the disk while it goes on, and is resumed by the same command; preview: "
            f"{preview_file(wish.out)}"
        )
        if not (folder / "ledger").exists():
            canvas.create(evaluations)
        preview = Preview(preview_file(wish.out), job.size, canvas.channels)
        paint(canvas, evaluations, tiles, wish.crew, preview)
        staged = folder / _STAGED / wish.out.name  # a folder of its own, since outputs may have any name
        shutil.rmtree(staged.parent, ignore_errors=True)
        staged.parent.mkdir()
        if source is None or _converts(wish):
            whole = canvas.painted if source is None else converted(folder, source, canvas)
            levels = make_levels(folder, whole, formats.SMALLEST_LEVEL[job.format])
            formats.write(staged, job.format, levels, job.metadata())
        else:
            put_in(folder, source, staged, canvas, tiles)
        if hasattr(os, "sync"):  # what is renamed below, and what it was made of then deleted, is to be on the disk
            os.sync()
        _put_in_place(wish, job, staged)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise disk_full(folder, needed, error) from None


def _put_in_place(wish: Wish, job: Job, staged: Path) -> None:
    """Move an output to where it was asked for. A kill in between leaves some of its parts there: the job's own."""
    _finished(wish, job)  # nothing of others has come there meanwhile
    if wish.source is not None:
        replace_file(_note(wish.out), json_bytes(job.metadata()))
    for part, place in zip(formats.parts(staged), formats.parts(wish.out), strict=True):
        if place.is_dir():
            shutil.rmtree(place)
        part.replace(place)
    sync_folder(wish.out.parent)


def _open_source(wish: Wish) -> Existing:
    """The slide to inpaint. Raises InputError where it or what is asked for of it cannot be."""
    assert wish.source is not None
    if wish.mask is None:
        raise InputError(f"--inpaint {wish.source} needs a --mask: an image, white where to fill, or a GeoJSON")
    if wish.jpeg is not None or (wish.pixel_size is not None and not _converts(wish)):
        raise InputError("--jpeg and --pixel-size are not for --inpaint, whose slide stays as it is")
    kind = _ending(wish.source)
    if _ending(wish.out) != kind and not _converts(wish):
        also = "" if wish.source.is_dir() else ", or in .ome.zarr"
        raise InputError(f"--out {wish.out}: its name should end in {kind}, as that of the slide to inpaint{also}")
    if wish.source.resolve() == wish.out.resolve():
        raise InputError(f"--out {wish.out} is the slide to inpaint; name another, which will be a copy of it")
    source = open_existing(wish.source)
    if not _converts(wish):
        source.check_writable()
    return source


def _ending(path: Path) -> str:
    """The end of a name that says what a file is: .tif, .ome.zarr."""
    return "".join(path.suffixes[-2:] if path.suffixes[-2:-1] == [".ome"] else path.suffixes[-1:])


def _converts(wish: Wish) -> bool:
    """Whether a TIFF is to become an OME-Zarr while a hole in it is filled."""
    return wish.source is not None and not wish.source.is_dir() and _ending(wish.out) == ".ome.zarr"


def _note(out: Path) -> Path:
    return out.with_name(out.name + ".morphogen.json")


def read_note(out: Path) -> dict[str, Any]:
    """What stands beside an inpainted slide, whose own metadata stay as they were. Raises InputError for others."""
    if not _note(out).is_file():
        raise InputError(f"--out {out} exists and was not painted by Morphogen; use another name")
    return dict(read_json(_note(out)))


def _check_space(out: Path, folder: Path, needed: int) -> None:
    missing = needed - stored_bytes(folder) - free_bytes(folder)
    if missing > 0:
        raise InputError(
            f"--out {out}: painting it takes {in_words(needed)} on the disk, {in_words(missing)} more than is free"
        )


@contextlib.contextmanager
def _work(folder: Path, job: Job, out: Path) -> Iterator[None]:
    """The folder of the work, held by one process at a time; it goes once its output is in place."""
    lock, begun, done = FileLock(folder / "lock", timeout=0), True, False
    try:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            if folder.exists() and not Job.there(folder) and not all(_is_leftover(p) for p in folder.iterdir()):
                raise InputError(f"{folder} holds no work of Morphogen's; move it away, or use another --out")
            folder.mkdir(exist_ok=True)
            lock.acquire()
            begun = Job.there(folder)
            if begun:
                job.check_same(Job.load(folder).model_dump(mode="json"), str(folder))
            job.save(folder)
        except Timeout:
            raise InputError(f"another process is painting {out}; let it end, or use another --out") from None
        except OSError as error:
            raise InputError(f"--out {out} cannot be written: {error.strerror or error}") from None
        yield
        done = True
    except InputError:
        done = not begun and not (folder / "ledger").exists()  # refused before anything was painted
        raise
    finally:
        with contextlib.suppress(OSError):  # what cannot be removed now is with the next start
            if done:
                _clear(folder)
        lock.release()
        with contextlib.suppress(OSError):
            folder.rmdir()


def _is_leftover(path: Path) -> bool:
    """Whether a kill before the job was written down, or after its end, leaves such a file in the folder of a work."""
    return path.name == "lock" or path.name.startswith(".job.json-")


def _clear(folder: Path) -> None:
    """Remove a work that is done: the job last, so that what a kill leaves of it is known for what it is."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in ("job.json", "lock"):
            path.unlink()
    (folder / "job.json").unlink(missing_ok=True)
    (folder / "lock").unlink(missing_ok=True)


def _check(wish: Wish) -> None:
    if len(os.fsencode(wish.out.name)) > _LONGEST_NAME:
        raise InputError(f"--out {wish.out}: its name is too long; it may have {_LONGEST_NAME} bytes")
    height, width = wish.size
    if max(height, width) > LARGEST_SIDE:
        raise InputError(f"--size {height}x{width}: a side may have {LARGEST_SIDE} pixels at most")
    if wish.tile is not None and not 1 <= wish.tile <= _LARGEST_TILE:
        raise InputError(f"--tile {wish.tile}: it should be between 1 and {_LARGEST_TILE}")
    if wish.jpeg is not None and not 1 <= wish.jpeg <= 100:
        raise InputError(f"--jpeg {wish.jpeg}: the quality should be between 1 and 100")
    if wish.pixel_size is not None and not 0 < wish.pixel_size < 1e6:
        raise InputError(f"--pixel-size {wish.pixel_size:g}: it should be above 0 and below 1,000,000 micrometres")


def _job(wish: Wish, suffix: str, model: Denoiser, folder: Path, computed_in: str) -> Job:
    """The job of a wish. Raises InputError for what the model or its sampler cannot do."""
    height, width = wish.size
    if min(height, width) < model.minimum_size:
        raise InputError(
            f"--size {height}x{width} is too small: {model.family} needs at least {model.minimum_size} on each side"
        )
    sampler, steps = model.sampling(wish.sampler, wish.sampling_steps)
    if wish.source is not None:
        sampler, steps = find_sampling(model, wish.sampler, wish.sampling_steps)
    check_steps_alone(Stepper(model, sampler, steps))
    if wish.approximate and model.inexact_in_tiles is None:
        raise InputError(f"--approximate is not needed: this {model.family} is exact in tiles; leave it out")
    if wish.approximate and wish.source is not None:
        raise InputError("--approximate cannot fill holes; --inpaint needs a model that is exact in tiles")
    tile = check_windows(model, wish.size) if wish.approximate else _exact_tile(wish, model, computed_in)
    if wish.approximate and wish.tile not in (None, tile):
        raise InputError(f"--tile {wish.tile}: with --approximate it is {tile}, half of the model's own image size")
    source: dict[str, Any] = {}
    if wish.source is not None and wish.mask is not None:
        metadata = (wish.source / name for name in (".zattrs", "zarr.json"))
        state = next((path for path in metadata if path.exists()), wish.source).stat()
        # Cells farther than the model's range cannot reach the hole before what is known is put back.
        context = model.context or 0 if wish.context is None else min(wish.context, halo_of(model))
        try:
            mask = sha256(wish.mask)
        except OSError as error:
            raise InputError(f"--mask {wish.mask} cannot be read: {error.strerror or error}") from None
        source = {
            "source": str(wish.source.resolve()),
            "source_state": f"{state.st_size} bytes, {state.st_mtime_ns}",
            "mask_sha256": mask,
            "context": context,
        }
    weights, config = fingerprints(folder)
    return Job(
        **source,
        model=str(folder.resolve()),
        model_sha256=weights,
        config_sha256=config,
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


def _exact_tile(wish: Wish, model: Denoiser, computed_in: str) -> int:
    try:
        halo = halo_of(model)
    except InputError as error:
        raise InputError(f"{error}; --approximate paints it with frozen statistics and blended overlaps") from None
    tile = wish.tile or default_tile(halo)
    if not any_shape(computed_in) and tile != FIXED_TILE:
        say_once(f"note: without the fast kernel on a CPU, tiles are {FIXED_TILE}, so that all give the same pixels")
        tile = FIXED_TILE
    return tile
