"""A user's request for a slide, its checks, and the manifest that follows from it."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from morphogen.core.errors import InputError
from morphogen.core.files import sha256
from morphogen.core.model import Model
from morphogen.core.notices import say_once
from morphogen.core.request import SamplingRequest
from morphogen.diffusion.denoiser import Denoiser
from morphogen.diffusion.ladder import Ladder
from morphogen.diffusion.request import FROM_IMAGE, ON_CANVAS, resolve
from morphogen.pyramids.ome_zarr_versions import DEFAULT_VERSION, WRITTEN
from morphogen.pyramids.opening import open_pyramid
from morphogen.pyramids.pyramid import Pyramid, WritablePyramid
from morphogen.slides.computation import Computation
from morphogen.slides.executors import Executor, InProcessExecutor, ProcessExecutor
from morphogen.slides.levels import find_painters
from morphogen.slides.manifest import SlideManifest, fingerprints
from morphogen.slides.overlap_blend import check_windows
from morphogen.slides.region import halo_of
from morphogen.slides.tile_worker import FIXED_TILE, TASK, default_tile

LARGEST_SIDE = 2**31 - 1
_LARGEST_TILE = 8192
_LONG_TO_READ, _READERS = 10e9, 4  # bytes that take half a minute; threads
_LONGEST_NAME = 220  # bytes; of 255, so that the work's folder and what lies beside the slide have room


@dataclass(frozen=True)
class SlideRequest:
    """A user's request. model: a folder, a bundled name or a hub id. size: (height, width). out: its suffix says
    the format. tile: None for the default. workers: processes; 1 is this one. ray: an address, `local`, or
    None. jpeg: quality 1 to 100, or None for no loss. pixel_size: micrometres.
    zarr: the version of OME-Zarr. rescale: bring the slide to inpaint to the model's scale. overwrite: replace a slide
    that is there, and work that was begun with other settings.
    source, mask, context: a slide to inpaint, which gives the size; where; and how many cells around that update too.
    map: which class each pixel is of, a label image, whose size the slide then has, or a GeoJSON.
    classes: of QuPath, to which the polygons of the mask must belong. mask_value: what marks the hole in an image.
    """

    model: str
    size: tuple[int, int]
    out: Path
    seed: int = 0
    sampling: SamplingRequest = SamplingRequest()
    tile: int | None = None
    workers: int = 1
    ray: str | None = None
    jpeg: int | None = None
    pixel_size: float | None = None
    device: str = "cpu"
    approximate: bool = False
    source: Path | None = None
    mask: Path | None = None
    classes: tuple[str, ...] = ()
    mask_value: int | None = None
    context: int | None = None
    zarr: str | None = None
    map: Path | None = None
    rescale: bool = False
    overwrite: bool = False

    def executor(self, folder: Path) -> Executor:
        """Who paints."""
        if self.ray is not None:
            from morphogen.slides.ray_executor import RayExecutor

            return RayExecutor(folder, self.ray, self.workers)
        return InProcessExecutor(folder) if self.workers == 1 else ProcessExecutor(folder, self.workers)


def check_request(request: SlideRequest) -> None:
    """Raise InputError for what no model could do."""
    if len(os.fsencode(request.out.name)) > _LONGEST_NAME:
        raise InputError(f"--out {request.out}: its name is too long; it may have {_LONGEST_NAME} bytes")
    height, width = request.size
    if max(height, width) > LARGEST_SIDE:
        raise InputError(f"--size {height}x{width}: a side may have {LARGEST_SIDE} pixels at most")
    if request.tile is not None and not 1 <= request.tile <= _LARGEST_TILE:
        raise InputError(f"--tile {request.tile}: it should be between 1 and {_LARGEST_TILE}")
    if request.jpeg is not None and not 1 <= request.jpeg <= 100:
        raise InputError(f"--jpeg {request.jpeg}: the quality should be between 1 and 100")
    if request.zarr is not None and request.zarr not in WRITTEN:
        raise InputError(f"--zarr {request.zarr}: choose one of {', '.join(WRITTEN)}")
    if request.zarr is not None and (ending(request.out) != ".ome.zarr" or not _makes_file(request)):
        raise InputError("--zarr is the version of a new OME-Zarr; give --out a name in .ome.zarr, or leave it out")
    if request.pixel_size is not None and not 0 < request.pixel_size < 1e6:
        raise InputError(f"--pixel-size {request.pixel_size:g}: it should be above 0 and below 1,000,000 micrometres")


def open_source(request: SlideRequest) -> Pyramid:
    """The slide to inpaint. Raises InputError where it or what is asked for of it cannot be."""
    assert request.source is not None
    if request.mask is None:
        raise InputError(f"--inpaint {request.source} needs a --mask: an image, white where to fill, or a GeoJSON")
    if request.rescale and (ending(request.out) != ".ome.zarr" or request.pixel_size is not None):
        raise InputError("--rescale makes a new OME-Zarr at the model's scale: end --out in .ome.zarr, no --pixel-size")
    if request.jpeg is not None or (request.pixel_size is not None and not converts(request)):
        raise InputError("--jpeg and --pixel-size are not for --inpaint, whose slide stays as it is")
    kind = ending(request.source)
    if ending(request.out) != kind and not converts(request):
        also = "" if request.source.is_dir() else ", or in .ome.zarr"
        raise InputError(f"--out {request.out}: its name should end in {kind}, as that of the slide to inpaint{also}")
    if request.source.resolve() == request.out.resolve():
        raise InputError(f"--out {request.out} is the slide to inpaint; name another, which will be a copy of it")
    try:
        source = open_pyramid(request.source)
        if source.ignored:
            axes = " and ".join(f"{count} planes along {name}" for name, count in source.ignored.items())
            raise InputError(f"{request.source} has {axes}; only flat images can be inpainted")
        if not converts(request):
            if not isinstance(source, WritablePyramid):
                raise InputError(f"{request.source} cannot be written to; give --out a name in .ome.zarr")
            source.check_writable()
    except InputError as error:
        raise InputError(f"--inpaint {error}") from None
    return source


def ending(path: Path) -> str:
    """The end of a name that says what a file is: .tif, .ome.zarr."""
    return "".join(path.suffixes[-2:] if path.suffixes[-2:-1] == [".ome"] else path.suffixes[-1:])


def converts(request: SlideRequest) -> bool:
    """Whether a slide is to become a new OME-Zarr while a hole in it is filled."""
    if request.source is None or ending(request.out) != ".ome.zarr":
        return False
    return request.rescale or not request.source.is_dir()


def make_manifest(
    request: SlideRequest, suffix: str, whole: Model, folder: Path, computation: Computation
) -> SlideManifest:
    """The manifest of a request. Raises InputError for what the model or its sampler cannot do."""
    height, width = request.size
    if min(height, width) < whole.minimum_picture:
        raise InputError(
            f"--size {height}x{width} is too small: {whole.family} needs at least {whole.minimum_picture} on each side"
        )
    model = find_painters(whole, TASK)[-1]
    model.grid_size(request.size)
    asked = request.sampling
    sampling = resolve(asked, model, ON_CANVAS if request.source is None else FROM_IMAGE)
    if request.approximate and model.inexact_in_tiles is None:
        raise InputError(f"--approximate is not needed: this {model.family} is exact in tiles; leave it out")
    if request.approximate and request.source is not None:
        raise InputError("--approximate cannot fill holes; --inpaint needs a model that is exact in tiles")
    tile = check_windows(model, request.size) if request.approximate else exact_tile(request, model, computation)
    if request.approximate and request.tile not in (None, tile):
        raise InputError(f"--tile {request.tile}: with --approximate it is {tile}, half of the model's own image size")
    source: dict[str, object] = {}
    if request.source is not None and request.mask is not None:
        # Cells farther than the model's range cannot reach the hole before what is known is put back.
        context = model.context or 0 if request.context is None else min(request.context, halo_of(model))
        source = {
            "source": str(request.source.resolve()),
            "source_state": _state(request.source),
            "mask_sha256": sha256(request.mask, "--mask "),
            "classes": request.classes or None,
            "mask_value": request.mask_value,
            "context": context,
        }
    level = len(whole) - 1 if isinstance(whole, Ladder) else None
    weights, config = fingerprints(folder)
    return SlideManifest(
        **source,
        model=str(folder.resolve()),
        model_sha256=weights,
        config_sha256=config,
        size=request.size,
        seed=request.seed,
        sampler=str(sampling.sampler),
        sampling_steps=sampling.steps or 0,
        device=request.device,
        computation=computation,
        tile=tile,
        format=suffix,
        approximate=request.approximate,
        jpeg=request.jpeg,
        pixel_size=request.pixel_size,
        rescale=request.pixel_size if request.rescale else None,
        level=level,
        map_sha256=None if request.map is None else sha256(request.map, "--map "),
        zarr=(request.zarr or DEFAULT_VERSION) if suffix == ".ome.zarr" and _makes_file(request) else None,
    )


def _makes_file(request: SlideRequest) -> bool:
    """Whether the output is a file of our own making, not a copy of a slide."""
    return request.source is None or converts(request)


def _state(source: Path) -> str:
    """The fingerprint of a slide: a hash of its file's content, or of every file of an OME-Zarr but those that file
    browsers leave (.DS_Store). Times and lengths alone would not tell a chunk that was written anew.
    """
    if not source.is_dir():
        files = [source]
    else:
        kept = (".zattrs", ".zarray", ".zgroup", ".zmetadata")
        files = [p for p in sorted(source.rglob("*")) if p.is_file() and (p.name in kept or p.name[:1] != ".")]
    size = sum(path.stat().st_size for path in files)
    if size > _LONG_TO_READ:
        say_once(f"reading {source} ({size / 1e9:.0f} GB), to know it again when the work is resumed")
    if files == [source]:
        return f"{size} bytes, {sha256(source)}"
    seen = hashlib.sha256()
    with ThreadPoolExecutor(_READERS) as pool:
        for path, content in zip(files, pool.map(sha256, files), strict=True):
            seen.update(b"%s %s\n" % (os.fsencode(path.relative_to(source)), content.encode()))
    return f"{len(files)} files, {seen.hexdigest()}"


def exact_tile(request: SlideRequest, model: Denoiser, computation: Computation) -> int:
    """The side of a model's tiles. Raises InputError where they would not be exact."""
    try:
        halo = halo_of(model)
    except InputError as error:
        raise InputError(f"{error}; --approximate paints it with frozen statistics and blended overlaps") from None
    tile = request.tile or default_tile(halo)
    if not computation.any_shape and tile != FIXED_TILE:
        say_once(f"note: without the fast kernel on a CPU, tiles are {FIXED_TILE}, so that all give the same pixels")
        tile = FIXED_TILE
    return tile
