"""OME-Zarr and TIFFs as training data: found, read at their scale, and named where they cannot be used."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
import zarr
from PIL import Image
from run_helpers import pixels
from slide_files import SIZE, level, write_bioformats2raw, write_zarr

from morphogen.core.errors import InputError
from morphogen.data import slide_readers
from morphogen.data.check import check_images
from morphogen.data.colour_choice import choose_colour
from morphogen.data.config import DataConfig
from morphogen.data.dataset import ImageDataset, build_dataset
from morphogen.data.sources import open_source


def build(path: Path, **settings: Any) -> ImageDataset:
    return build_dataset(DataConfig(source=str(path), **{"size": 16, **settings}), progress=False)


def contains(image: np.ndarray, patch: torch.Tensor) -> bool:
    """Whether a patch is somewhere in an image, exactly."""
    wanted = patch.permute(1, 2, 0).numpy()
    high, wide, channels = wanted.shape
    windows = np.lib.stride_tricks.sliding_window_view(image, (high, wide, channels))[:, :, 0]
    near = np.argwhere((windows[:, :, 0, 0] == wanted[0, 0]).all(-1))
    return any(np.array_equal(windows[y, x], wanted) for y, x in near)


@pytest.mark.parametrize(
    ("zarr_format", "axes", "options"),
    [(2, "cyx", {}), (2, "tczyx", {"separator": "."}), (3, "cyx", {}), (3, "yxc", {}), (2, "tczyx", {"said": "0.1"})],
)
def test_patches_of_an_ome_zarr(tmp_path: Path, zarr_format: int, axes: str, options: dict[str, Any]) -> None:
    path = write_zarr(tmp_path / "set" / "a.ome.zarr", zarr_format, axes, **options)
    for where in (path, path.parent):  # by itself, or in a folder
        dataset = build(where, flips="none", turns=False)
        assert dataset.source.sampled and len(dataset) == 1
        assert all(contains(level(0), dataset[n][0]) for n in range(6))
    half = build(path, flips="none", turns=False, downscale=2)  # from the level of that size
    assert all(contains(level(1), half[n][0]) for n in range(6))
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again[5][0], dataset[5][0])


def test_a_store_of_bioformats2raw_and_a_plate(tmp_path: Path, cases: Path) -> None:
    dataset = build(write_bioformats2raw(tmp_path / "a.zarr"), flips="none", turns=False)
    assert contains(level(0), dataset[0][0])
    assert build(cases / "bf2raw5.ome.zarr")[0][0].shape == (3, 16, 16)
    group = zarr.open_group(tmp_path / "plate.zarr", mode="w", zarr_format=2)
    group.attrs["plate"] = {"wells": [{"path": "B/2"}]}
    with pytest.raises(InputError, match="is a plate; name one of its images"):
        build(tmp_path / "plate.zarr")


def test_scale_of_an_ome_zarr(tmp_path: Path) -> None:
    path = write_zarr(tmp_path / "a.ome.zarr", 2, unit="micrometer", scale=0.5)
    assert build(path).mpp == 0.5 and build(path, downscale=3).mpp == 1.5
    coarse, expected = build(path, mpp=1), build(path, downscale=2)
    assert coarse.mpp == 1 and all(torch.equal(coarse[n][0], expected[n][0]) for n in range(4))
    with pytest.raises(InputError, match=r"its pixels are 0\.5 micrometres, and --mpp 0\.25 would enlarge them"):
        build(path, mpp=0.25)


def write_array(path: Path, values: np.ndarray, axes: str) -> Path:
    group = zarr.open_group(path, mode="w", zarr_format=2)
    group.create_array("0", data=values, chunks=tuple(min(n, 64) for n in values.shape))
    named = [{"name": axis, "type": "space"} for axis in axes]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": named, "datasets": [{"path": "0"}]}]
    return path


def test_channels_and_depths_of_an_ome_zarr(tmp_path: Path) -> None:
    gray = write_array(tmp_path / "gray.zarr", pixels(64, 64, 0)[..., 0], "yx")
    assert choose_colour(DataConfig(source=str(gray))).colour == "gray"
    assert contains(pixels(64, 64, 0)[..., :1], build(gray, colour="gray", flips="none", turns=False)[0][0])
    clear = np.zeros((4, 64, 64), np.uint8)
    clear[:3, :, 32:] = 200
    clear[3, :, 32:] = 255
    over = np.full((64, 64, 3), 200, np.uint8)
    over[:, :32] = 0, 0, 255  # and not the black that lies under what is transparent
    seen = build(write_array(tmp_path / "clear.zarr", clear, "cyx"), background="blue", flips="none", turns=False)
    assert contains(over, seen[0][0])
    for channels in (2, 5):
        values = np.zeros((channels, 64, 64), np.uint8)
        with pytest.raises(InputError, match=rf"it has {channels} channels; patches need 1 or 3"):
            build(write_array(tmp_path / f"{channels}.zarr", values, "cyx"))
    with pytest.raises(InputError, match=r"its pixels are uint16; they should have 8 bits"):
        build(write_array(tmp_path / "deep.zarr", np.zeros((64, 64), np.uint16), "yx"))


def test_stores_and_slides_are_told_apart_and_damage_is_named(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        write_array(tmp_path / f"{name}.zarr", pixels(64, 64, seed).transpose(2, 0, 1), "cyx")
    write_array(tmp_path / "c.zarr", pixels(64, 64, 1).transpose(2, 0, 1), "cyx")
    report = check_images(DataConfig(source=str(tmp_path), size=16), progress=False)
    assert [(p.name, p.kind) for p in report.problems] == [("c.zarr", "duplicate")] and report.images == 3
    (tmp_path / "b.zarr" / "0" / ".zarray").write_text("{")
    report = check_images(DataConfig(source=str(tmp_path), size=16), progress=False)
    assert {p.name: p.kind for p in report.problems} == {"b.zarr": "unreadable", "c.zarr": "duplicate"}
    Image.new("RGB", (64, 64)).save(tmp_path / "x.png")
    with pytest.raises(InputError, match=r"holds slides \(a\.zarr\) and images \(x\.png\)"):
        open_source(DataConfig(source=str(tmp_path)))


# ------------------------------------------------------------------------------------------------------------- TIFFs


def ome_tiff(path: Path, mpp: float | None, levels: int, tile: bool = True) -> np.ndarray:
    """An OME-TIFF whose smaller levels, if any, lie in SubIFDs."""
    image = pixels(256, 320, 4)
    scale = {} if mpp is None else {"PhysicalSizeX": mpp, "PhysicalSizeY": mpp}
    options: dict[str, Any] = {"photometric": "rgb", **({"tile": (64, 64)} if tile else {})}
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(image, subifds=levels - 1, metadata={"axes": "YXS", **scale}, **options)
        for n in range(1, levels):
            writer.write(image[:: 2**n, :: 2**n], subfiletype=1, **options)
    return image


def test_an_ome_tiff_with_subifds_is_a_slide_at_its_scale(tmp_path: Path) -> None:
    image = ome_tiff(tmp_path / "a.ome.tif", 0.25, 3)
    dataset = build(tmp_path / "a.ome.tif", flips="none", turns=False)
    assert dataset.source.sampled and dataset.mpp == 0.25 and contains(image, dataset[0][0])
    assert all(contains(image[::2, ::2], build(tmp_path, mpp=0.5, flips="none", turns=False)[n][0]) for n in range(4))


def test_tiled_tiffs_without_levels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = ome_tiff(tmp_path / "a.ome.tif", 0.25, 1)
    assert not build(tmp_path / "a.ome.tif").source.sampled  # small: an image, to be read whole
    asked = build(tmp_path / "a.ome.tif", mpp=0.25, flips="none", turns=False)
    assert asked.source.sampled and contains(image, asked[0][0])
    monkeypatch.setattr(slide_readers, "_LARGE", 200 * 300)
    large = build(tmp_path / "a.ome.tif", flips="none", turns=False)
    assert large.source.sampled and large.mpp == 0.25 and contains(image, large[0][0])
    with pytest.raises(InputError, match=r"--mpp 1: .* holds no slides"):
        Image.new("RGB", (64, 64)).save(tmp_path / "plain.tif")
        build(tmp_path / "plain.tif", mpp=1)


def test_slides_without_a_scale_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, mpp in (("a", 0.25), ("b", None), ("c", 0.5)):
        ome_tiff(tmp_path / f"{name}.ome.tif", mpp, 2)
    report = check_images(DataConfig(source=str(tmp_path), size=16), progress=False)
    assert {p.name: p.kind for p in report.problems if p.kind != "duplicate"} == {
        "b.ome.tif": "no scale", "c.ome.tif": "other scale"
    }  # fmt: skip
    assert build_dataset(DataConfig(source=str(tmp_path), size=16, split="none")).mpp is None
    said = capsys.readouterr().err
    assert "b.ome.tif (it does not say how large its pixels are, but a.ome.tif has pixels of 0.25 micrometres" in said
    asked = build(tmp_path, mpp=0.5, split="none")
    assert [name for name, _ in asked.bad] == ["b.ome.tif"] and asked.mpp == 0.5


def test_a_large_thumbnail_is_made_in_strips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_zarr(tmp_path / "a.ome.zarr", 2)
    monkeypatch.setattr(slide_readers, "_THUMBNAIL", 60)
    monkeypatch.setattr(slide_readers, "_STRIP", 1000)
    thumbnail = slide_readers.PyramidSlide(path, "a", "white").thumbnail()
    small = level(1)  # 75x117, so every second pixel
    assert SIZE == (150, 233) and thumbnail.shape == (37, 58, 3)
    mean = small[:74, :116].reshape(37, 2, 58, 2, 3).mean((1, 3))
    assert np.abs(thumbnail - mean).max() <= 0.5
