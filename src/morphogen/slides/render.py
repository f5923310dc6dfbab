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
from morphogen.core.notices import say_once
from morphogen.core.request import PrecisionChoice, SamplingRequest
from morphogen.diffusion.denoiser import Denoiser
from morphogen.diffusion.request import FROM_IMAGE, FROM_NOISE, resolve
from morphogen.diffusion.sampling import Stepper
from morphogen.models import find_model, load_model
from morphogen.pyramids import formats
from morphogen.pyramids.levels import make_levels
from morphogen.pyramids.opening import open_pyramid
from morphogen.pyramids.pyramid import Pyramid, WritablePyramid
from morphogen.pyramids.region import TileGrid
from morphogen.slides.canvas import DISK_FULL, Canvas
from morphogen.slides.executors import Executor, InProcessExecutor, ProcessExecutor
from morphogen.slides.inpainting import filled_whole, mark_tiles, write_filled_copy
from morphogen.slides.manifest import SlideManifest, fingerprints
from morphogen.slides.mask import open_mask
from morphogen.slides.overlap_blend import BlendedCanvas, check_windows
from morphogen.slides.region import check_steps_alone, halo_of
from morphogen.slides.schedule import (
    Preview,
    check_preview,
    disk_full,
    disk_needed,
    free_bytes,
    in_words,
    preview_file,
    run_schedule,
    stored_bytes,
    work_folder,
)
from morphogen.slides.tile_worker import FIXED_TILE, TASK, any_shape, default_tile, prepare
from morphogen.tasks.checks import need_denoiser

LARGEST_SIDE = 2**31 - 1
_LARGEST_TILE = 8192
_LONGEST_NAME = 220  # bytes; of 255, so that the work's folder and what lies beside the slide have room
_STAGED = "out"


@dataclass(frozen=True)
class SlideRequest:
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

    def executor(self, folder: Path) -> Executor:
        """Who paints."""
        if self.ray is not None:
            from morphogen.slides.ray_executor import RayExecutor

            return RayExecutor(folder, self.ray, self.workers)
        return InProcessExecutor(folder) if self.workers == 1 else ProcessExecutor(folder, self.workers)


def render(request: SlideRequest) -> tuple[Path, bool]:
    """Paint a slide, or go on with one; the file, and whether there was anything left to do.

    Raises InputError for what cannot be, before anything is written; and where the disk is full.
    """
    _check(request)
    source = None if request.source is None else _open_source(request)
    suffix = formats.find_format(request.out) if source is None else _ending(request.out)
    if source is not None:
        request = replace(request, size=source.levels[0])
    model_folder = find_model(request.model)
    model = need_denoiser(load_model(model_folder), TASK, pixels=True)
    channels = model.image.channels
    if source is not None and source.channels != channels:
        raise InputError(
            f"--inpaint {request.source} has {source.channels} channels, but this model's images {channels}"
        )
    computed_in = prepare(model, request.device, request.precision, request.approximate)
    manifest = _manifest(request, suffix, model, model_folder, computed_in)
    if source is None:
        formats.check_format(suffix, channels, request.jpeg)
    folder, grid = work_folder(request.out), TileGrid(manifest.size, (manifest.tile, manifest.tile))
    # Windows are blended once more at the end.
    evaluations = len(Stepper(model, SamplingRequest(manifest.sampler, manifest.sampling_steps))) + int(
        manifest.approximate
    )
    canvas = (
        BlendedCanvas(folder, grid, channels, model.cell_size)
        if manifest.approximate
        else Canvas(folder, grid, channels)
    )
    del model  # the workers have their own
    if not folder.exists() and _finished(request, manifest):
        return request.out, False
    with _work(folder, manifest, request.out):
        left = not _finished(request, manifest)  # looked at again, since another process may have ended just now
        if left:
            _paint(request, manifest, canvas, evaluations, source)
    return request.out, left


def _finished(request: SlideRequest, manifest: SlideManifest) -> bool:
    """Whether all of the output is in place. Raises InputError where what lies there is not of this manifest."""
    there = [part.exists() for part in formats.parts(request.out)]
    if any(there):
        found = (
            formats.read_metadata(request.out, manifest.format) if request.source is None else read_note(request.out)
        )
        manifest.check_same(found, f"--out {request.out}")
    return all(there)


def _paint(
    request: SlideRequest, manifest: SlideManifest, canvas: Canvas, evaluations: int, source: Pyramid | None
) -> None:
    """Paint what is left, and put its output in place. Raises InputError where the disk is or becomes full."""
    folder, grid, needed = canvas.folder, canvas.grid, 0
    if not (folder / "ledger").exists():
        check_preview(request.out)
    try:
        tiles = list(range(len(grid)))
        if request.mask is not None:
            tiles = mark_tiles(folder, open_mask(request.mask, manifest.size), grid, f"--mask {request.mask}")
        needed = disk_needed(canvas, evaluations, len(tiles))
        if source is not None:
            # As an OME-Zarr: the whole, its smaller levels, and the file made of them.
            pixels = source.channels * manifest.size[0] * manifest.size[1]
            needed += pixels * 8 // 3 if _converts(request) else stored_bytes(source.path)
        _check_space(request.out, folder, needed)
        height, width = manifest.size
        say_once(
            f"painting {height}x{width} pixels, {len(tiles)} tiles of {manifest.tile}, in {evaluations} steps; "
            f"it takes {in_words(needed)} on the disk while it goes on, and is resumed by the same command; preview: "
            f"{preview_file(request.out)}"
        )
        if not (folder / "ledger").exists():
            canvas.create(evaluations)
        preview = Preview(preview_file(request.out), manifest.size, canvas.channels)
        run_schedule(canvas, evaluations, tiles, request.executor, preview)
        staged = folder / _STAGED / request.out.name  # a folder of its own, since outputs may have any name
        shutil.rmtree(staged.parent, ignore_errors=True)
        staged.parent.mkdir()
        if source is None or _converts(request):
            whole = canvas.painted if source is None else filled_whole(folder, source, canvas)
            levels = make_levels(folder, whole, formats.SMALLEST_LEVEL[manifest.format])
            formats.write(staged, manifest.format, levels, manifest.metadata())
        else:
            assert isinstance(source, WritablePyramid)
            write_filled_copy(folder, source, staged, canvas, tiles)
        if hasattr(os, "sync"):  # what is renamed below, and what it was made of then deleted, is to be on the disk
            os.sync()
        _put_in_place(request, manifest, staged)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise disk_full(folder, needed, error) from None


def _put_in_place(request: SlideRequest, manifest: SlideManifest, staged: Path) -> None:
    """Move an output to where it was asked for. A kill in between leaves some of its parts there: the request's own."""
    _finished(request, manifest)  # nothing of others has come there meanwhile
    if request.source is not None:
        replace_file(_note(request.out), json_bytes(manifest.metadata()))
    for part, place in zip(formats.parts(staged), formats.parts(request.out), strict=True):
        if place.is_dir():
            shutil.rmtree(place)
        part.replace(place)
    sync_folder(request.out.parent)


def _open_source(request: SlideRequest) -> Pyramid:
    """The slide to inpaint. Raises InputError where it or what is asked for of it cannot be."""
    assert request.source is not None
    if request.mask is None:
        raise InputError(f"--inpaint {request.source} needs a --mask: an image, white where to fill, or a GeoJSON")
    if request.jpeg is not None or (request.pixel_size is not None and not _converts(request)):
        raise InputError("--jpeg and --pixel-size are not for --inpaint, whose slide stays as it is")
    kind = _ending(request.source)
    if _ending(request.out) != kind and not _converts(request):
        also = "" if request.source.is_dir() else ", or in .ome.zarr"
        raise InputError(f"--out {request.out}: its name should end in {kind}, as that of the slide to inpaint{also}")
    if request.source.resolve() == request.out.resolve():
        raise InputError(f"--out {request.out} is the slide to inpaint; name another, which will be a copy of it")
    try:
        source = open_pyramid(request.source)
        if source.ignored:
            axes = " and ".join(f"{count} planes along {name}" for name, count in source.ignored.items())
            raise InputError(f"{request.source} has {axes}; only flat images can be inpainted")
        if not _converts(request):
            if not isinstance(source, WritablePyramid):
                raise InputError(f"{request.source} cannot be written to; give --out a name in .ome.zarr")
            source.check_writable()
    except InputError as error:
        raise InputError(f"--inpaint {error}") from None
    return source


def _ending(path: Path) -> str:
    """The end of a name that says what a file is: .tif, .ome.zarr."""
    return "".join(path.suffixes[-2:] if path.suffixes[-2:-1] == [".ome"] else path.suffixes[-1:])


def _converts(request: SlideRequest) -> bool:
    """Whether a TIFF is to become an OME-Zarr while a hole in it is filled."""
    return request.source is not None and not request.source.is_dir() and _ending(request.out) == ".ome.zarr"


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
def _work(folder: Path, manifest: SlideManifest, out: Path) -> Iterator[None]:
    """The folder of the work, held by one process at a time; it goes once its output is in place."""
    lock, begun, done = FileLock(folder / "lock", timeout=0), True, False
    try:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            if (
                folder.exists()
                and not SlideManifest.there(folder)
                and not all(_is_leftover(p) for p in folder.iterdir())
            ):
                raise InputError(f"{folder} holds no work of Morphogen's; move it away, or use another --out")
            folder.mkdir(exist_ok=True)
            lock.acquire()
            begun = SlideManifest.there(folder)
            if begun:
                manifest.check_same(SlideManifest.load(folder).model_dump(mode="json"), str(folder))
            manifest.save(folder)
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
    """Whether a kill before the manifest is written, or after the end, leaves such a file in a work folder."""
    return path.name == "lock" or path.name.startswith(".job.json-")


def _clear(folder: Path) -> None:
    """Remove a work that is done: the manifest last, so that what a kill leaves of it is known for what it is."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in ("job.json", "lock"):
            path.unlink()
    (folder / "job.json").unlink(missing_ok=True)
    (folder / "lock").unlink(missing_ok=True)


def _check(request: SlideRequest) -> None:
    if len(os.fsencode(request.out.name)) > _LONGEST_NAME:
        raise InputError(f"--out {request.out}: its name is too long; it may have {_LONGEST_NAME} bytes")
    height, width = request.size
    if max(height, width) > LARGEST_SIDE:
        raise InputError(f"--size {height}x{width}: a side may have {LARGEST_SIDE} pixels at most")
    if request.tile is not None and not 1 <= request.tile <= _LARGEST_TILE:
        raise InputError(f"--tile {request.tile}: it should be between 1 and {_LARGEST_TILE}")
    if request.jpeg is not None and not 1 <= request.jpeg <= 100:
        raise InputError(f"--jpeg {request.jpeg}: the quality should be between 1 and 100")
    if request.pixel_size is not None and not 0 < request.pixel_size < 1e6:
        raise InputError(f"--pixel-size {request.pixel_size:g}: it should be above 0 and below 1,000,000 micrometres")


def _manifest(request: SlideRequest, suffix: str, model: Denoiser, folder: Path, computed_in: str) -> SlideManifest:
    """The manifest of a request. Raises InputError for what the model or its sampler cannot do."""
    height, width = request.size
    if min(height, width) < model.minimum_size:
        raise InputError(
            f"--size {height}x{width} is too small: {model.family} needs at least {model.minimum_size} on each side"
        )
    default = FROM_NOISE if request.source is None else FROM_IMAGE
    stepper = Stepper(model, resolve(SamplingRequest(request.sampler, request.sampling_steps), model, default))
    check_steps_alone(stepper)
    if request.approximate and model.inexact_in_tiles is None:
        raise InputError(f"--approximate is not needed: this {model.family} is exact in tiles; leave it out")
    if request.approximate and request.source is not None:
        raise InputError("--approximate cannot fill holes; --inpaint needs a model that is exact in tiles")
    tile = check_windows(model, request.size) if request.approximate else _exact_tile(request, model, computed_in)
    if request.approximate and request.tile not in (None, tile):
        raise InputError(f"--tile {request.tile}: with --approximate it is {tile}, half of the model's own image size")
    source: dict[str, Any] = {}
    if request.source is not None and request.mask is not None:
        metadata = (request.source / name for name in (".zattrs", "zarr.json"))
        state = next((path for path in metadata if path.exists()), request.source).stat()
        # Cells farther than the model's range cannot reach the hole before what is known is put back.
        context = model.context or 0 if request.context is None else min(request.context, halo_of(model))
        try:
            mask = sha256(request.mask)
        except OSError as error:
            raise InputError(f"--mask {request.mask} cannot be read: {error.strerror or error}") from None
        source = {
            "source": str(request.source.resolve()),
            "source_state": f"{state.st_size} bytes, {state.st_mtime_ns}",
            "mask_sha256": mask,
            "context": context,
        }
    weights, config = fingerprints(folder)
    return SlideManifest(
        **source,
        model=str(folder.resolve()),
        model_sha256=weights,
        config_sha256=config,
        size=request.size,
        seed=request.seed,
        sampler=stepper.name,
        sampling_steps=stepper.steps,
        device=request.device,
        computed_in=computed_in,
        tile=tile,
        format=suffix,
        approximate=request.approximate,
        jpeg=request.jpeg,
        pixel_size=request.pixel_size,
    )


def _exact_tile(request: SlideRequest, model: Denoiser, computed_in: str) -> int:
    try:
        halo = halo_of(model)
    except InputError as error:
        raise InputError(f"{error}; --approximate paints it with frozen statistics and blended overlaps") from None
    tile = request.tile or default_tile(halo)
    if not any_shape(computed_in) and tile != FIXED_TILE:
        say_once(f"note: without the fast kernel on a CPU, tiles are {FIXED_TILE}, so that all give the same pixels")
        tile = FIXED_TILE
    return tile
