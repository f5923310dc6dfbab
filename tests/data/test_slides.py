"""Patches out of real slides, and what is said where they are damaged."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from morphogen.core.condition import UNKNOWN
from morphogen.core.errors import InputError
from morphogen.data.config import DataConfig
from morphogen.data.dataset import ImageDataset, build_dataset
from morphogen.data.fitting import jitter_stain
from morphogen.data.slide import tissue_mask
from morphogen.data.sources import open_source

openslide = pytest.importorskip("openslide")


def build(path: Path, **settings: Any) -> ImageDataset:
    return build_dataset(DataConfig(source=str(path), **settings), progress=False)


def pyramid(path: Path) -> np.ndarray:
    """A tiled two-level TIFF of 512x512: tissue-coloured in its left half, every pixel different."""
    y, x = np.mgrid[:512, :512]
    image = np.full((512, 512, 3), 250, np.uint8)
    left = x < 256
    image[left] = np.stack([200 + y % 56, x % 128, 100 + (y + x) % 100], axis=2).astype(np.uint8)[left]
    with tifffile.TiffWriter(path) as writer:
        writer.write(image, tile=(64, 64), photometric="rgb", subfiletype=0)
        small = image.reshape(128, 4, 128, 4, 3).mean((1, 3)).round().astype(np.uint8)
        writer.write(small, tile=(64, 64), photometric="rgb", subfiletype=1)
    return image


def test_patches_lie_on_tissue_and_are_the_pixels_of_the_slide(tmp_path: Path) -> None:
    image = pyramid(tmp_path / "s.tif")
    dataset = build(tmp_path / "s.tif", size=32, flips="none", turns=False)
    assert dataset.source.sampled and dataset.fitting.domain == "pathology" and len(dataset) == 1
    windows = np.lib.stride_tricks.sliding_window_view(image, (32, 32, 3))[:, :, 0]
    seen = set()
    for n in range(40):
        patch = dataset[n][0].permute(1, 2, 0).numpy()
        found = np.argwhere((windows[:, :, 0, 0] == patch[0, 0]).all(-1))
        exact = [tuple(p) for p in found if np.array_equal(windows[p[0], p[1]], patch)]
        assert exact, n
        assert exact[0][1] <= 256 - 16 + 1  # at least half tissue, to within a pixel of the mask
        seen.add(exact[0])
    assert len(seen) == 40 and max(y for y, _ in seen) > 380 and min(y for y, _ in seen) < 100


def test_downscale_reads_the_level_that_fits(tmp_path: Path) -> None:
    pyramid(tmp_path / "s.tif")
    for factor in (1, 2, 4, 5.5):
        patch = build(tmp_path / "s.tif", size="16x24", downscale=factor)[3][0]
        assert patch.shape == (3, 16, 24)
        assert patch.float().mean() < 245
    gray = build(tmp_path / "s.tif", size=16, downscale=4, colour="gray")
    assert gray[0][0].shape == (1, 16, 16)


@pytest.mark.parametrize("factor", [16, 17.5])
def test_coarse_patches_are_means_of_the_slide(tmp_path: Path, factor: float) -> None:
    """Read out of a level in memory, which the file does not have; every patch is what the slide shrunk by area has."""
    image = pyramid(tmp_path / "s.tif")
    dataset = build(tmp_path / "s.tif", size=8, downscale=factor, flips="none", turns=False)
    side = int(factor)
    high = 512 // side * side
    whole = image[:high, :high].reshape(high // side, side, high // side, side, 3).mean((1, 3))
    for n in range(12):
        patch = dataset[n][0].permute(1, 2, 0).numpy().astype(float)
        if factor == side:  # at a whole factor it is a crop of the whole one
            errors = [
                np.abs(whole[y : y + 8, x : x + 8] - patch).max()
                for y in range(whole.shape[0] - 7)
                for x in range(whole.shape[1] - 7)
            ]
            assert min(errors) <= 2.5  # two roundings, of the file's own level of 1/4 and of ours
        assert abs(patch.mean() - whole[:, : whole.shape[1] // 2].mean()) < 60
    again = build(tmp_path / "s.tif", size=8, downscale=factor, flips="none", turns=False)
    assert all(torch.equal(dataset[n][0], again[n][0]) for n in range(12))


def test_patches_at_a_chosen_number_of_micrometres(shared: Path, tmp_path: Path) -> None:
    slide = shared / "slides" / "cmu-1-small-region.svs"  # 0.499 micrometres a pixel
    coarse = build(slide, size=32, mpp=1.996, flips="none", turns=False)
    expected = build(slide, size=32, downscale=4, flips="none", turns=False)
    assert all(torch.equal(coarse[n][0], expected[n][0]) for n in range(8))
    with pytest.raises(InputError, match=r"its pixels are 0\.499 micrometres, and --mpp 0\.25 would enlarge them"):
        build(slide, size=32, mpp=0.25)
    with pytest.raises(InputError, match=r"does not say how many micrometres its pixels are.*use --downscale"):
        build(shared / "slides" / "tcga-cr-7395-01a-01-ts1.svs", size=32, mpp=1)
    Image.new("RGB", (64, 64)).save(tmp_path / "x.png")
    with pytest.raises(InputError, match=r"--mpp 1: .*x\.png holds no slides; use --downscale"):
        build(tmp_path / "x.png", size=32, mpp=1)


def test_stain_jitter_is_keyed_and_as_strong_as_said(tmp_path: Path) -> None:
    pyramid(tmp_path / "s.tif")
    plain = build(tmp_path / "s.tif", size=32)
    light, strong = (build(tmp_path / "s.tif", size=32, stain_jitter=s) for s in (0.05, 0.2))
    shifts = []
    for dataset in (light, strong):
        patches = [dataset[n][0].float() for n in range(24)]
        assert all(torch.equal(dataset[n][0].float(), patches[n]) for n in (23, 5, 11))  # a function of n alone
        shifts.append(np.mean([(p - plain[n][0].float()).abs().mean() for n, p in enumerate(patches)]))
        means = torch.stack([p.mean(dim=(1, 2)) - plain[n][0].float().mean(dim=(1, 2)) for n, p in enumerate(patches)])
        assert means.std(dim=0).min() > 0.5  # colours go their own ways
    assert 2 < shifts[0] < 16 and 2.5 * shifts[0] < shifts[1]
    assert torch.equal(strong.fixed(3)[0], plain.fixed(3)[0])  # what is measured on is left alone


def test_stains_are_what_is_varied() -> None:
    from skimage.color import hed_from_rgb

    pixels = np.random.default_rng(0).integers(60, 200, (16, 16, 3)).astype(np.uint8)
    assert np.array_equal(jitter_stain(pixels, [0, 0, 0], [0, 0, 0]), pixels)
    before, after = (
        -np.log(p / 255.0) @ hed_from_rgb for p in (pixels, jitter_stain(pixels, [0.1, 0, -0.1], [0, 0.05, 0]))
    )
    # Rounding to whole grey levels, which the unmixing of stains multiplies.
    assert np.abs(after - (before * [1.1, 1, 0.9] + [0, 0.05, 0])).max() < 0.03


def test_a_patch_larger_than_the_slide(tmp_path: Path) -> None:
    pyramid(tmp_path / "s.tif")
    with pytest.raises(InputError, match="512x512 is smaller than a patch, which covers 1024x1024 of its pixels"):
        build(tmp_path / "s.tif", size=256, downscale=4)


def test_a_slide_without_tissue(tmp_path: Path) -> None:
    blank = np.full((512, 512, 3), 250, np.uint8)
    with tifffile.TiffWriter(tmp_path / "blank.tif") as writer:
        writer.write(blank, tile=(64, 64), photometric="rgb")
        writer.write(blank[::4, ::4], tile=(64, 64), photometric="rgb", subfiletype=1)
    with pytest.raises(InputError, match=r"blank\.tif: it shows no tissue"):
        build(tmp_path / "blank.tif", size=32)


def test_a_slide_that_is_all_tissue_is_all_used() -> None:
    pink = np.random.default_rng(0).integers(0, 40, (64, 64, 3)) + np.array([200, 100, 160])
    assert tissue_mask(pink.astype(np.uint8)).all()


def test_slides_and_images_do_not_mix(tmp_path: Path) -> None:
    pyramid(tmp_path / "s.tif")
    Image.new("RGB", (64, 64)).save(tmp_path / "x.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "plain.tif")
    with pytest.raises(InputError, match=r"holds slides \(s\.tif\) and images \(plain\.tif\)"):
        open_source(DataConfig(source=str(tmp_path)))
    (tmp_path / "s.tif").unlink()
    assert not open_source(DataConfig(source=str(tmp_path))).sampled


def test_without_openslide_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "s.svs").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "openslide", None)
    with pytest.raises(InputError, match=r'needs OpenSlide: pip install "morphogen\[slides\]"'):
        open_source(DataConfig(source=str(tmp_path / "s.svs")))


@pytest.mark.slow
def test_real_slides(shared: Path, tmp_path: Path) -> None:
    for file in (shared / "slides").glob("*.svs"):
        shutil.copy(file, tmp_path)
    dataset = build(tmp_path, size=64, downscale=4)
    assert len(dataset) == 2 and [name for name, _ in dataset.bad] == ["broken.svs"]
    patches = torch.stack([dataset[n][0] for n in range(40)]).float()
    white = (patches > 235).all(dim=1).float().mean((1, 2))
    assert white.mean() < 0.2 and white.max() < 0.7
    other = pickle.loads(pickle.dumps(dataset))
    assert all(torch.equal(other[n][0], dataset[n][0]) for n in (39, 3, 17))
    assert dataset.fixed(100)[0].shape == (3, 64, 64)
    assert dataset.fingerprint == build(tmp_path, size=32).fingerprint


def test_a_broken_slide(shared: Path) -> None:
    with pytest.raises(
        InputError, match=r"its only image cannot be used: broken\.svs: OpenSlide cannot read this slide"
    ):
        build(shared / "slides" / "broken.svs")


WORKERS = """
import multiprocessing, sys, torch
from morphogen.data.config import DataConfig
from morphogen.data.dataset import build_dataset

if __name__ == "__main__":
    dataset = build_dataset(DataConfig(source=sys.argv[1], size=32), progress=False)
    expected = torch.stack([dataset[n][0] for n in range(40)])
    loader = torch.utils.data.DataLoader(dataset, sampler=range(40), num_workers=2, multiprocessing_context="fork")
    assert torch.equal(torch.cat([batch for batch, _ in loader]), expected)
    print("same")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_slides_in_forked_workers(tmp_path: Path) -> None:
    pyramid(tmp_path / "s.tif")
    script = tmp_path / "workers.py"
    script.write_text(WORKERS)
    out = subprocess.run(
        [sys.executable, script, tmp_path / "s.tif"], capture_output=True, text=True, timeout=60, check=False
    )
    assert out.stdout.strip() == "same", out.stderr


def test_patches_of_an_annotated_slide_have_their_maps(tmp_path: Path) -> None:
    """A slide whose colours are those of the polygons in its annotation, at full resolution and shrunk by four."""
    colours = {"background": (230, 180, 200), "gland": (90, 40, 140), "lumen": (240, 120, 60)}
    shapes = {"gland": (100, 60, 300, 420), "lumen": (160, 120, 240, 300)}  # left, top, right, bottom
    image = np.full((512, 512, 3), colours["background"], np.uint8)
    features: list[dict[str, Any]] = []
    for name, (left, top, right, bottom) in shapes.items():
        image[top:bottom, left:right] = colours[name]
        ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
        of_class = {"classification": {"name": name}}
        features.append(
            {"type": "Feature", "properties": of_class, "geometry": {"type": "Polygon", "coordinates": [ring]}}
        )
    ignored = [[400, 400], [460, 400], [460, 460], [400, 460]]
    of_class = {"classification": {"name": "Ignore*"}}
    features.append(
        {"type": "Feature", "properties": of_class, "geometry": {"type": "Polygon", "coordinates": [ignored]}}
    )
    with tifffile.TiffWriter(tmp_path / "s.tif") as writer:
        writer.write(image, tile=(64, 64), photometric="rgb", subfiletype=0)
        writer.write(image[::4, ::4], tile=(64, 64), photometric="rgb", subfiletype=1)
    (tmp_path / "notes").mkdir()
    notes = tmp_path / "notes" / "s.geojson"
    notes.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    for more in ({}, {"downscale": 4.0}):
        data = build(tmp_path / "s.tif", size=32, maps=str(notes), **more)
        assert data.classes == {"0": "background", "1": "gland", "2": "lumen"}
        palette = np.array([colours[name] for name in ("background", "gland", "lumen")], int)
        unknown = 0
        for n in range(40):
            pixels, found = data[n][0].permute(1, 2, 0).numpy().astype(int), data.map(n).numpy()
            unknown += int((found == UNKNOWN).sum())
            known = found != UNKNOWN
            away = np.abs(pixels[known] - palette[found[known]]).max(axis=1)
            # Shrunk by four a pixel of a border is a mixture, or may fall to the other side of it.
            assert (away > 2).mean() < (0.12 if more else 1e-9), n
        assert unknown  # below Ignore*
    folder = build(tmp_path / "s.tif", size=32, maps=str(tmp_path / "notes"))
    assert (folder.map(3) == build(tmp_path / "s.tif", size=32, maps=str(notes)).map(3)).all()
    for maps, sentence in (
        (tmp_path / "nowhere", "of slides it should be a GeoJSON, or a folder of them"),
        (tmp_path, "the slide s.tif has no GeoJSON of its name"),
    ):
        with pytest.raises(InputError, match=sentence):
            build(tmp_path / "s.tif", size=32, maps=str(maps))
