"""A slide at a model's scale: one of other micrometres a pixel is painted into only when it has been resampled."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from morphogen.core.errors import InputError
from morphogen.pyramids.arrays import create_array
from morphogen.pyramids.levels import blocks
from morphogen.pyramids.ome_zarr import OmeZarr, write_ome_zarr
from morphogen.pyramids.pyramid import SAME_SCALE, Pixels, Pyramid
from morphogen.pyramids.region import Region
from morphogen.slides.mask import Mask

_NAME = "rescaled.ome.zarr"


def check_scale(source: Pyramid, own: float | None, rescale: bool) -> float | None:
    """The micrometres a pixel that a slide is to be brought to, where that is needed and asked for; own: the model's.

    Raises InputError where the two scales differ and `rescale` is not asked for, or one of them is not known although
    it is.
    """
    if rescale and (source.mpp is None or own is None):
        who = "this model" if own is None else source.path
        raise InputError(f"--rescale needs the micrometres a pixel of both, which {who} does not say; leave it out")
    if source.mpp is None or own is None or all(abs(mpp / own - 1) <= SAME_SCALE for mpp in source.mpp):
        return None
    if not rescale:
        raise InputError(
            f"--inpaint {source.path} has {max(source.mpp):g} micrometres a pixel, but this model paints at {own:g}; "
            "--rescale brings the slide to the model's scale, into a new .ome.zarr"
        )
    return own


def rescaled_size(source: Pyramid, mpp: float) -> tuple[int, int]:
    """(height, width) of a slide brought to other micrometres a pixel."""
    assert source.mpp is not None
    height, width = (max(1, round(n * own / mpp)) for n, own in zip(source.levels[0], source.mpp, strict=True))
    return height, width


def rescaled(folder: Path) -> Path:
    """Where the rescaled slide lies in the folder of a work."""
    return folder / _NAME


def rescale_slide(source: Pyramid, size: tuple[int, int], mpp: float, folder: Path) -> OmeZarr:
    """The slide in another size (height, width), written into the folder of a work, anew at every start."""
    raw = folder / "rescaled-raw.zarr"
    shutil.rmtree(rescaled(folder), ignore_errors=True)
    grid = blocks(size)
    array = create_array(raw, (source.channels, *size), (source.channels, *grid.chunk), "uint8")
    for region in grid:
        array[:, region.rows, region.columns] = _resample(source, size, region).transpose(2, 0, 1)
    write_ome_zarr(rescaled(folder), [array], {"pixel_size": mpp})
    shutil.rmtree(raw)
    return OmeZarr(rescaled(folder))


def _resample(source: Pyramid, size: tuple[int, int], region: Region) -> Pixels:
    """A region of the slide in another size: means of what each pixel covers, from the level next larger."""
    fitting = [n for n, level in enumerate(source.levels) if level[0] >= size[0] and level[1] >= size[1]]
    level = fitting[-1] if fitting else 0
    high, wide = source.levels[level]
    down, right = high / size[0], wide / size[1]
    top, left = int(region.y * down), int(region.x * right)
    bottom = min(high, int(np.ceil((region.y + region.height) * down)))
    end = min(wide, int(np.ceil((region.x + region.width) * right)))
    pixels = source.read_region(Region(top, left, max(1, bottom - top), max(1, end - left)), level)
    x, y = region.x * right - left, region.y * down - top
    box = (x, y, min(x + region.width * right, pixels.shape[1]), min(y + region.height * down, pixels.shape[0]))
    planes = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(pixels[..., c])).resize(
                (region.width, region.height), Image.Resampling.BOX, box=box
            )
        )
        for c in range(pixels.shape[2])
    ]
    return np.stack(planes, axis=2)


def rescale_mask(mask: Mask, before: tuple[int, int], size: tuple[int, int]) -> Mask:
    """A mask of a slide of one size (height, width) for the slide in another, by the pixels' centres."""

    def found(region: Region) -> np.ndarray:
        rows = ((np.arange(region.y, region.y + region.height) + 0.5) * before[0] / size[0]).astype(np.int64)
        columns = ((np.arange(region.x, region.x + region.width) + 0.5) * before[1] / size[1]).astype(np.int64)
        whole = Region(int(rows[0]), int(columns[0]), int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1)
        marked: np.ndarray = mask(whole)[rows[:, None] - rows[0], columns[None, :] - columns[0]]
        return marked

    return found
