"""OME-Zarr: images in a folder of chunks."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import numpy as np

from morphogen.core.errors import InputError, first_line
from morphogen.core.files import JsonObject
from morphogen.core.images import METADATA_KEY
from morphogen.pyramids.arrays import PixelArray
from morphogen.pyramids.levels import blocks
from morphogen.pyramids.ome_zarr_versions import DEFAULT_VERSION, WRITTEN, OmeZarrV01, version_of
from morphogen.pyramids.pyramid import Pixels, WritablePyramid, as_mpp, check_tiled
from morphogen.pyramids.region import Region

_LEVEL = r"\w[\w.-]*(/\w[\w.-]*)*"  # a path that stays within the group
EXTRA = 'pip install "morphogen[slides]"'


class OmeZarr(WritablePyramid):
    """An OME-Zarr image, versions 0.1 to 0.5; of bioformats2raw's layout, the first image.

    Raises InputError, naming it, where it is none, damaged, or its pixels have more than 8 bits.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            import zarr
        except ImportError:
            raise InputError(f"{path} is an OME-Zarr, which needs zarr: {EXTRA}") from None
        try:
            self.store, multiscale, version = _find_image(path)
            self._names = [str(entry["path"]) for entry in multiscale["datasets"]]
            if not self._names or not all(re.fullmatch(_LEVEL, name) for name in self._names):
                raise ValueError("its levels have no names")
            group = zarr.open_group(str(self.store), mode="r")
            self._arrays: list[Any] = [group[name] for name in self._names]
            self.axes = [axis.lower() for axis in version.axes(multiscale)]
            mpp = version.mpp(multiscale)
        except InputError:
            raise
        except Exception as error:  # damaged stores raise errors of many types
            raise InputError(f"{path} is not an OME-Zarr image: {first_line(error)}") from None
        for array in self._arrays:
            if not isinstance(array, zarr.Array) or array.ndim != len(self.axes) or not {"y", "x"} <= set(self.axes):
                raise InputError(f"{path} is not an OME-Zarr image: a level lacks the axes {', '.join(self.axes)}")
            if array.dtype != np.uint8:
                raise InputError(f"{path}: its pixels are {array.dtype}; they should have 8 bits (uint8)")
        rows, columns = self.axes.index("y"), self.axes.index("x")
        self.levels = [(array.shape[rows], array.shape[columns]) for array in self._arrays]
        stored = [array.shards or array.chunks for array in self._arrays]
        self.tiles = [(chunk[rows], chunk[columns]) for chunk in stored]
        for chunk in self.tiles:
            check_tiled(path, chunk)
        lengths = dict(zip(self.axes, self._arrays[0].shape, strict=True))
        self.channels = lengths.get("c", 1)
        self.ignored = {name: count for name, count in lengths.items() if name not in "cyx" and count > 1}
        self.mpp = as_mpp(*mpp)
        self._lock = threading.Lock()

    def _index(self, region: Region) -> tuple[slice | int, ...]:
        places = {"y": region.rows, "x": region.columns, "c": slice(None)}
        return tuple(places.get(axis, 0) for axis in self.axes)

    def read_region(self, region: Region, level: int = 0) -> Pixels:
        try:
            with self._lock:
                values = np.asarray(self._arrays[level][self._index(region)])
        except Exception as error:  # damaged chunks raise errors of many types
            where = f"row {region.y}, column {region.x}"
            raise InputError(f"{self.path} cannot be read at {where}: {first_line(error)}") from None
        kept = [axis for axis in self.axes if axis in "cyx"]
        values = values.transpose([kept.index(axis) for axis in "yxc" if axis in kept])
        return np.ascontiguousarray(values if "c" in kept else values[..., None])

    def check_writable(self) -> None:
        if self.ignored:
            raise InputError(
                f"{self.path} has the axes {', '.join(self.axes)}; only flat images (c, y, x) can be inpainted"
            )

    def write_tile(self, region: Region, pixels: Pixels, level: int) -> None:
        import zarr

        kept = [axis for axis in self.axes if axis in "cyx"]
        values = pixels if "c" in kept else pixels[..., 0]
        values = values.transpose(["yxc".index(axis) for axis in kept])
        array: Any = zarr.open_group(str(self.store), mode="r+")[self._names[level]]
        array[self._index(region)] = values


def _find_image(path: Path) -> tuple[Path, JsonObject, OmeZarrV01]:
    """The group that holds the image of a store, its first multiscale, and its version."""
    import zarr

    attributes = dict(zarr.open_group(str(path), mode="r").attrs)
    version = version_of(attributes, path)
    ome = version.ome(attributes)
    # "bioformats2raw.layout" (transitional): images in groups 0, 1, ... beside the group OME.
    if "multiscales" not in ome and "bioformats2raw.layout" in ome:
        if not (path / "0").is_dir():
            raise InputError(f"{path} has bioformats2raw's layout, but no image in its folder 0")
        return _find_image(path / "0")
    if "multiscales" not in ome and "plate" in ome:
        wells = [str(well.get("path")) for well in ome["plate"].get("wells", ())][:1]
        raise InputError(f"{path} is a plate; name one of its images, such as {path / (wells or ['A/1'])[0] / '0'}")
    if "multiscales" not in ome:
        raise InputError(f"{path} is no OME-Zarr image (it has no multiscales)")
    return path, ome["multiscales"][0], version


def describe_image(name: str, levels: int, channels: int, pixel_size: float | None) -> JsonObject:
    """The description by OME-NGFF 0.4 and 0.5 of an image whose levels are each half as large as the one before."""
    unit = {} if pixel_size is None else {"unit": "micrometer"}
    axes = [{"name": "c", "type": "channel"}, *({"name": n, "type": "space", **unit} for n in "yx")]

    def transform(level: int) -> list[dict[str, object]]:
        scale = (pixel_size or 1.0) * 2**level
        return [{"type": "scale", "scale": [1.0, scale, scale]}]

    colours = ["FF0000", "00FF00", "0000FF"] if channels == 3 else ["FFFFFF"] * channels
    labels = ["red", "green", "blue"] if channels == 3 else [f"channel {i}" for i in range(channels)]
    window = {"min": 0, "max": 255, "start": 0, "end": 255}
    return {
        "multiscales": [
            {
                "name": name,
                "axes": axes,
                "datasets": [{"path": str(i), "coordinateTransformations": transform(i)} for i in range(levels)],
                "type": "mean",
            }
        ],
        "omero": {
            "name": name,
            "channels": [
                {"color": colour, "label": label, "window": window, "active": True}
                for colour, label in zip(colours, labels, strict=True)
            ],
            "rdefs": {"model": "color"},
        },
    }


def write_ome_zarr(out: Path, levels: list[PixelArray], metadata: JsonObject) -> None:
    """Write levels, zarr uint8 (C, height, width) from the largest on. metadata: of it `pixel_size` (micrometres) and
    `zarr` (the version) are also the image's own.
    """
    import zarr

    version = WRITTEN[metadata.get("zarr") or DEFAULT_VERSION]
    group = zarr.open_group(str(out), mode="w", zarr_format=version.zarr_format)
    for number, level in enumerate(levels):
        channels, *size = level.shape
        grid = blocks((size[0], size[1]))
        array = group.create_array(
            str(number), shape=level.shape, chunks=(channels, *grid.chunk), dtype="uint8", fill_value=0,
            **version.array_options(),
        )  # fmt: skip
        for region in grid:
            array[:, region.rows, region.columns] = level[:, region.rows, region.columns]
    name, channels = out.name[: -len(".ome.zarr")], levels[0].shape[0]
    described = version.attributes(describe_image(name, len(levels), channels, metadata.get("pixel_size")))
    group.attrs.update({**described, METADATA_KEY: metadata})
