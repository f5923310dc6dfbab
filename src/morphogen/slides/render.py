"""A slide from beginning to end: check, begin or go on, paint, write the file, clean up."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from morphogen.core.condition import Classes
from morphogen.core.errors import InputError, Interrupted
from morphogen.core.files import json_bytes, read_json, replace_file, sync_folder
from morphogen.core.model import Model
from morphogen.core.notices import say_once
from morphogen.diffusion.denoiser import Denoiser
from morphogen.diffusion.ladder import Ladder
from morphogen.models import find_model, load_model
from morphogen.pyramids import formats
from morphogen.pyramids.levels import make_levels
from morphogen.pyramids.pyramid import SAME_SCALE, Pyramid, WritablePyramid
from morphogen.slides.canvas import DISK_FULL, Canvas
from morphogen.slides.computation import prepare
from morphogen.slides.inpainting import filled_whole, mark_tiles, write_filled_copy
from morphogen.slides.levels import find_painters, level_folder, level_manifests
from morphogen.slides.manifest import SlideManifest
from morphogen.slides.maps import map_size, open_map, write_map
from morphogen.slides.mask import open_mask
from morphogen.slides.overwriting import check_replaceable, remove
from morphogen.slides.progress import TileProgress
from morphogen.slides.request import (
    SlideRequest,
    check_request,
    converts,
    ending,
    exact_tile,
    make_manifest,
    open_source,
)
from morphogen.slides.rescaling import check_scale, rescale_mask, rescale_slide, rescaled_size
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
from morphogen.slides.tile_worker import TASK, make_canvas, make_stepper
from morphogen.slides.work_folder import hold_work
from morphogen.tasks.checks import need_denoiser

_STAGED = "out"


def render(request: SlideRequest) -> tuple[Path, bool]:
    """Paint a slide, or go on with one; the file, and whether there was anything left to do.

    Raises InputError for what cannot be, before anything is written; and where the disk is full. Raises Interrupted for
    Ctrl-C and SIGTERM.
    """
    check_request(request)
    source = None if request.source is None else open_source(request)
    suffix = formats.find_format(request.out) if source is None else ending(request.out)
    model_folder = find_model(request.model)
    model = load_model(model_folder)
    painters = find_painters(model, TASK)
    if source is not None or request.approximate:
        need_denoiser(model, "--approximate" if source is None else "filling holes of slides", pixels=True)
    channels, classes = model.picture.channels, dict(model.classes)
    if request.map is not None:
        if not classes:
            raise InputError(f"--map {request.map}: {request.model} was trained without maps; leave it out")
        size = map_size(request.map, request.size if any(request.size) else None, classes)
        request = replace(request, size=size)
    if source is not None and source.channels != channels:
        raise InputError(
            f"--inpaint {request.source} has {source.channels} channels, but this model's images {channels}"
        )
    request = _at_scale(request, source, model.picture.mpp)
    computation = [prepare(each, request.device, request.sampling.precision, request.approximate) for each in painters][
        -1
    ]
    manifest = make_manifest(request, suffix, model, model_folder, computation)
    if source is None:
        formats.check_format(suffix, channels, request.jpeg)
    folder = work_folder(request.out)
    tiles = [exact_tile(request, each, computation) for each in painters[:-1]]
    levels = [
        _level(folder, number, painters, model, of) for number, of in enumerate(level_manifests(manifest, model, tiles))
    ]
    del model, painters  # the workers have their own
    if not folder.exists() and _finished(request, manifest):
        return request.out, False
    with hold_work(folder, manifest, request.out, request.overwrite):
        left = not _finished(request, manifest)  # looked at again, since another process may have ended just now
        if left:
            try:
                _paint(request, levels, source, classes)
            except KeyboardInterrupt:  # Ctrl-C or SIGTERM: tiles are on the disk as soon as they are done
                raise Interrupted(
                    f"stopped; what is painted is kept in {folder}, and the same command goes on with it"
                ) from None
    return request.out, left


class _Level(NamedTuple):
    """A level of a slide, or all of one that has no others: its manifest, its canvas, and its evaluations."""

    manifest: SlideManifest
    canvas: Canvas
    evaluations: int
    scale: int
    """Pixels of the slide, on a side, that are one of the level's; or, of latents, one of its cells."""


def _level(work: Path, number: int, painters: Sequence[Denoiser], whole: Model, manifest: SlideManifest) -> _Level:
    model, levels = painters[number], len(painters)
    scale = whole.scale(number) if isinstance(whole, Ladder) else 1
    stepper = make_stepper(model, manifest)
    # At the end windows are blended once more, and latents are decoded.
    evaluations = len(stepper) + int(manifest.approximate or model.latents is not None)
    canvas = make_canvas(level_folder(work, number, levels), manifest, stepper)
    return _Level(manifest, canvas, evaluations, scale * canvas.factor)


def _paint_coarser(request: SlideRequest, level: _Level, number: int) -> None:
    """Paint a coarser level, or what is left of it."""
    folder = level.canvas.folder
    folder.mkdir(exist_ok=True)
    level.manifest.save(folder)
    if not TileProgress.exists(folder):
        level.canvas.create(level.evaluations)
    height, width = level.manifest.size
    say_once(f"level {number}: {height}x{width} pixels")
    preview = Preview(preview_file(request.out), level.manifest.size, level.canvas.channels)
    run_schedule(level.canvas, level.evaluations, range(len(level.canvas.grid)), request.executor, preview)


def _at_scale(request: SlideRequest, source: Pyramid | None, own: float | None) -> SlideRequest:
    """The request with its size, where a slide gives it, and its micrometres a pixel. own: the model's.

    Raises InputError where the model paints at another scale than is asked for.
    """
    if source is None:
        wanted = request.pixel_size
        if wanted is not None and own is not None and abs(wanted / own - 1) > SAME_SCALE:
            raise InputError(f"--pixel-size {wanted:g}: this model paints at {own:g} micrometres a pixel; leave it out")
        return replace(request, pixel_size=wanted or own)
    to = check_scale(source, own, request.rescale)
    if to is not None:
        return replace(request, size=rescaled_size(source, to), pixel_size=to)
    known = source.mpp[1] if source.mpp is not None and converts(request) else None
    return replace(request, size=source.levels[0], pixel_size=request.pixel_size or known, rescale=False)


def _finished(request: SlideRequest, manifest: SlideManifest) -> bool:
    """Whether all of the output is in place. Raises InputError where what lies there is not of this manifest, and is
    not to be replaced or cannot be.
    """
    there = [part.exists() for part in formats.parts(request.out)]
    if any(there):
        try:
            of_slide = request.source is None
            found = formats.read_metadata(request.out, manifest.format) if of_slide else read_note(request.out)
            manifest.check_same(found, f"--out {request.out}")
        except InputError:
            if not request.overwrite:
                raise
            needed = (request.source, request.mask, request.map, Path(manifest.model))
            check_replaceable(request.out, [path for path in needed if path is not None])
            return False
    return all(there)


def _paint(request: SlideRequest, levels: Sequence[_Level], source: Pyramid | None, classes: Classes) -> None:
    """Paint what is left, and put its output in place. Raises InputError where the disk is or becomes full."""
    manifest, canvas, evaluations, _ = levels[-1]
    folder, grid, needed = canvas.folder, canvas.grid, 0
    if not TileProgress.exists(folder) and not request.overwrite:
        check_preview(request.out)
    try:
        tiles = list(range(len(grid)))
        if request.mask is not None:
            size = manifest.size if source is None else source.levels[0]
            mask = open_mask(request.mask, size, request.classes, request.mask_value)
            if source is not None and manifest.rescale is not None:
                mask = rescale_mask(mask, source.levels[0], manifest.size)
            tiles = mark_tiles(folder, mask, grid, f"--mask {request.mask}")
        needed = disk_needed(canvas, evaluations, len(tiles))
        needed += sum(disk_needed(each.canvas, each.evaluations, len(each.canvas.grid)) for each in levels[:-1])
        if source is not None:
            # As an OME-Zarr: the whole, its smaller levels, and the file made of them.
            pixels = source.channels * manifest.size[0] * manifest.size[1]
            needed += pixels * 8 // 3 if converts(request) else stored_bytes(source.path)
            needed += 2 * pixels if manifest.rescale is not None else 0
        _check_space(request.out, folder, needed)
        height, width = manifest.size
        say_once(
            f"painting {height}x{width} pixels, {len(tiles)} tiles of {manifest.tile}, in {evaluations} steps; "
            f"it takes {in_words(needed)} on the disk while it goes on, and is resumed by the same command; preview: "
            f"{preview_file(request.out)}"
        )
        if request.map is not None:
            read = open_map(request.map, manifest.size, classes)
            for level in levels:
                write_map(level.canvas.folder, read, manifest.size, level.scale)
        for number, level in enumerate(levels[:-1]):
            _paint_coarser(request, level, number)
        if source is not None and manifest.rescale is not None:
            source = rescale_slide(source, manifest.size, manifest.rescale, folder)
        if not TileProgress.exists(folder):
            canvas.create(evaluations)
        preview = Preview(preview_file(request.out), manifest.size, canvas.channels)
        run_schedule(canvas, evaluations, tiles, request.executor, preview)
        staged = folder / _STAGED / request.out.name  # a folder of its own, since outputs may have any name
        shutil.rmtree(staged.parent, ignore_errors=True)
        staged.parent.mkdir()
        if source is None or converts(request):
            whole = canvas.painted if source is None else filled_whole(folder, source, canvas)
            scales = make_levels(folder, whole, formats.SMALLEST_LEVEL[manifest.format])
            formats.write(staged, manifest.format, scales, manifest.metadata())
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
    if request.overwrite:
        remove(request.out)  # before its note is that of another slide
    if request.source is not None:
        replace_file(_note(request.out), json_bytes(manifest.metadata()))
    for part, place in zip(formats.parts(staged), formats.parts(request.out), strict=True):
        if place.is_dir():
            shutil.rmtree(place)
        part.replace(place)
    sync_folder(request.out.parent)


def _note(out: Path) -> Path:
    return out.with_name(out.name + ".morphogen.json")


def read_note(out: Path) -> dict[str, object]:
    """The note beside an inpainted slide, whose own metadata stay as they were. Raises InputError for others."""
    if not _note(out).is_file():
        raise InputError(
            f"--out {out} exists and was not painted by Morphogen; use another name, or replace it with --overwrite"
        )
    return dict(read_json(_note(out)))


def _check_space(out: Path, folder: Path, needed: int) -> None:
    missing = needed - stored_bytes(folder) - free_bytes(folder)
    if missing > 0:
        raise InputError(
            f"--out {out}: painting it takes {in_words(needed)} on the disk, {in_words(missing)} more than is free"
        )
