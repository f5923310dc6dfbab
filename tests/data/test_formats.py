"""Files of other makers: colour profiles, stacks, planes, camera bits, and formats that are not read."""

from __future__ import annotations

import logging
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from morphogen.data import formats
from morphogen.data.check import Report, check_images
from morphogen.data.config import DataConfig
from morphogen.data.dataset import build_dataset
from morphogen.data.decode import decode, decode_image, open_picture
from morphogen.data.formats import BadImage
from morphogen.data.sources import open_source

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (12, 16, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def check(folder: Path, **settings: Any) -> Report:
    return check_images(DataConfig(source=str(folder), size=8, **settings), progress=False)


def found(report: Report) -> dict[str, str]:
    return {problem.name: problem.kind for problem in report.problems}


# ---------------------------------------------------------------------------------------------------------- profiles


def wide_profile() -> bytes:
    """A matrix profile whose red and blue are swapped sRGB ones: what it says is plain to see."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(profile[128:132], "big")
    tags = {bytes(profile[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    red, blue = (slice(tags[name] + 4, tags[name] + 12) for name in (b"rXYZ", b"bXYZ"))
    profile[red], profile[blue] = profile[blue], profile[red]
    return bytes(profile).replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be")).replace(b"sRGB", b"swap")


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_profile_is_followed(kind: str) -> None:
    data = encoded(Image.fromarray(RGB), kind, icc_profile=wide_profile())
    out = decode(data, "x").astype(int)
    # Two levels: the profile's colourants are rounded to 16 bits, and its curve to 8.
    assert np.abs(out - RGB[..., ::-1]).max() <= 2
    over = decode(encoded(Image.fromarray(np.dstack([RGB, RGB[..., :1]])), icc_profile=wide_profile()), "x", "black")
    share = RGB[..., :1] / 255
    assert np.abs(over - RGB[..., ::-1] * share).max() <= 3
    palette = Image.fromarray(RGB).quantize(8)
    plain = np.asarray(palette.convert("RGB")).astype(int)
    assert np.abs(decode(encoded(palette, icc_profile=wide_profile()), "x") - plain[..., ::-1]).max() <= 2


def test_srgb_and_damaged_profiles_change_nothing() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (srgb, b"no profile", srgb[:200], ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()):
        np.testing.assert_array_equal(decode(encoded(Image.fromarray(RGB), icc_profile=profile), "x"), RGB)


def test_the_real_case_becomes_srgb(cases: Path) -> None:
    data = (cases / "icc-prophoto.png").read_bytes()
    with Image.open(BytesIO(data)) as image:
        own = ImageCms.ImageCmsProfile(BytesIO(image.info["icc_profile"]))
        wanted = ImageCms.profileToProfile(image, own, ImageCms.createProfile("sRGB"), ImageCms.Intent(1))
        plain = np.asarray(image).astype(int)
    out = decode(data, "x").astype(int)
    assert np.abs(out - np.asarray(wanted)).max() <= 1  # black point compensation
    assert np.abs(out - plain).mean() > 5


# ------------------------------------------------------------------------------------------------ frames and planes


def stack(path: Path, values: np.ndarray, **options: Any) -> None:
    tifffile.imwrite(path, values, **options)


def test_frames_are_counted_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = [Image.fromarray(np.roll(RGB, i, axis=0)) for i in range(3)]
    for name in ("a.gif", "b.png", "c.webp", "d.tif", "e.avif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    stack(tmp_path / "f.tif", RNG.integers(0, 256, (100, 12, 16), dtype=np.uint8), photometric="minisblack")
    stack(tmp_path / "g.ome.tif", RNG.integers(0, 256, (5, 12, 16), dtype=np.uint8), metadata={"axes": "ZYX"})
    report = check(tmp_path)
    names = ["a.gif", "b.png", "c.webp", "d.tif", "e.avif", "f.tif", "g.ome.tif"]
    assert found(report) == dict.fromkeys(names, "several frames")
    details = {problem.name: problem.detail for problem in report.problems}
    assert details["f.tif"] == "the first of 100 frames or pages is used" and "5 frames" in details["g.ome.tif"]
    build_dataset(DataConfig(source=str(tmp_path), size=8, split="none"))
    said = capsys.readouterr().err
    assert said.count("images of which the first frame or page is used") == 1 and "a.gif" in said and "6 more" in said


def test_the_preview_in_a_cameras_jpeg_is_no_frame(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[Image.fromarray(RGB[:8, :8])])
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.format == "MPO"
    assert not found(check(tmp_path))


@pytest.mark.parametrize("axes", ["CYX", "ZCYX", "CZYX", "TCZYX"])
def test_planes_are_read_by_their_axes(axes: str) -> None:
    shape = {"C": 3, "Z": 2, "T": 2, "Y": 12, "X": 16}
    values = np.zeros([shape[axis] for axis in axes], np.uint8)
    first = tuple(slice(None) if axis in "CYX" else 0 for axis in axes)
    values[first] = RGB.transpose(2, 0, 1)
    buffer = BytesIO()
    tifffile.imwrite(buffer, values, ome=True, metadata={"axes": axes}, photometric="minisblack")
    read = decode_image(buffer.getvalue(), "x")
    np.testing.assert_array_equal(read.pixels, RGB)
    assert read.facts.frames == 2 ** sum(axis in "ZT" for axis in axes)
    np.testing.assert_array_equal(np.asarray(open_picture(buffer.getvalue(), "x")), RGB)


@pytest.mark.parametrize("count", [2, 4, 5])
def test_other_numbers_of_planes_are_refused_by_name(count: int, tmp_path: Path) -> None:
    stack(tmp_path / "a.ome.tif", RNG.integers(0, 256, (count, 12, 16), dtype=np.uint8), metadata={"axes": "CYX"})
    report = check(tmp_path)
    assert found(report) == {"a.ome.tif": "unreadable"} and f"a TIFF of {count} channels" in report.problems[0].detail


def test_the_real_planes(cases: Path) -> None:
    out = decode((cases / "cyx-flat.ome.tif").read_bytes(), "x")
    assert out.shape == (500, 600, 3)
    np.testing.assert_array_equal(out.transpose(2, 0, 1), tifffile.imread(cases / "cyx-flat.ome.tif"))


# ------------------------------------------------------------------------------------------------------------- bits


def test_bits_that_are_not_used_are_said_and_can_be_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = (np.arange(192, dtype=np.uint16) * 21).reshape(12, 16)  # up to 4011
    Image.fromarray(values).save(tmp_path / "a.png")
    Image.fromarray(values // 2).save(tmp_path / "b.png")
    report = check(tmp_path)
    assert found(report) == {"a.png": "dark"}
    assert "its largest value is 4011 of 65535" in report.problems[0].detail
    assert "--max-value 4095 reads it by 12 bits" in report.problems[0].detail
    build_dataset(DataConfig(source=str(tmp_path), size=8, split="none"))
    assert "4011 of 65535" in capsys.readouterr().err
    assert not found(check(tmp_path, max_value=4095))
    data = (tmp_path / "a.png").read_bytes()
    np.testing.assert_array_equal(
        decode(data, "x", colour="gray", max_value=4095)[..., 0], np.rint(values / 4095 * 255)
    )
    bright = decode(data, "x", colour="gray", max_value=2000)[..., 0]
    assert (bright[values >= 2000] == 255).all() and bright[values < 1990].max() < 255
    values[0, 0] = 40000
    Image.fromarray(values).save(tmp_path / "a.png")
    assert not found(check(tmp_path))


def test_an_ome_tiff_says_its_bits_itself() -> None:
    values = (np.arange(192, dtype=np.uint16) * 21).reshape(12, 16)
    for planes in (values, np.stack([values, values // 2, values // 3])):
        buffer = BytesIO()
        axes = "CYX" if planes.ndim == 3 else "YX"
        tifffile.imwrite(
            buffer, planes, ome=True, photometric="minisblack", metadata={"axes": axes, "SignificantBits": 12}
        )
        read = decode_image(buffer.getvalue(), "x")
        wanted = np.rint(np.atleast_3d(planes.T).transpose(1, 0, 2) / 4095 * 255)
        np.testing.assert_array_equal(read.pixels, np.broadcast_to(wanted, (12, 16, 3)))
        assert read.facts.largest is None


def test_wide_colours_by_their_bits() -> None:
    values = RGB.astype(np.uint16) * 16
    buffer = BytesIO()
    tifffile.imwrite(buffer, values, photometric="rgb")
    np.testing.assert_array_equal(decode(buffer.getvalue(), "x", max_value=255 * 16), RGB)


def test_the_real_camera_bits(cases: Path, tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes((cases / "gray12in16.tif").read_bytes())
    assert found(check(tmp_path)) == {"a.tif": "dark"} and not found(check(tmp_path, max_value=4095))


# ---------------------------------------------------------------------------------------------- formats and folders


def test_avif_and_heic_are_read(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    smooth = np.linspace(0, 255, 64 * 64, dtype=np.uint8).reshape(64, 64)
    image = Image.fromarray(np.dstack([smooth, smooth.T, smooth]))
    image.save(tmp_path / "a.avif", quality=95)
    pillow_heif.from_pillow(image).save(tmp_path / "b.heic", quality=95)
    assert not found(check(tmp_path))
    for name in ("a.avif", "b.heic"):
        out = decode((tmp_path / name).read_bytes(), name).astype(int)
        assert np.abs(out - np.asarray(image)).mean() < 3  # both are lossy


def test_a_stereo_camera_s_jpeg_is_read(tmp_path: Path) -> None:
    """Its first picture; the second is the other eye's."""
    image = Image.fromarray(RGB)
    image.save(tmp_path / "a.mpo", save_all=True, append_images=[image.rotate(180)], quality=95)
    assert not found(check(tmp_path))
    with Image.open(tmp_path / "a.mpo") as first:
        assert np.array_equal(decode((tmp_path / "a.mpo").read_bytes(), "a.mpo"), np.asarray(first.convert("RGB")))


UNREAD = ("a.jxl", "b.jp2", "c.tga", "d.svg", "e.psd", "f.mp4", "g.nii.gz", "h.DNG", "i.fits", "j.npy", "k.tar.gz")


def test_files_of_formats_that_are_not_read_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")
    for name in (*UNREAD, "notes.txt", "labels.csv"):
        (tmp_path / name).write_bytes(b"what it is does not matter")
    assert found(check(tmp_path)) == dict.fromkeys(UNREAD, "not read")
    build_dataset(DataConfig(source=str(tmp_path), size=8, split="none"))
    assert "note: files that are not read: a.jxl (it is JPEG XL) and 10 more" in capsys.readouterr().err
    (tmp_path / "a.png").unlink()
    with pytest.raises(Exception, match=r"holds 13 files but no image \(a\.jxl is JPEG XL\)"):
        open_source(DataConfig(source=str(tmp_path)))
    monkeypatch.setattr(formats, "has_heif", lambda: False)
    assert "morphogen[heif]" in str(formats.unread_kind("x.HEIC"))
    with pytest.raises(BadImage, match="needs pillow-heif"):
        decode(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "x.jpg")


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_class_folders_linked_to_one_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inside, outside = tmp_path / "set", tmp_path / "pictures"
    for folder in (inside / "sound", outside):
        folder.mkdir(parents=True)
    for i in range(3):
        Image.fromarray(np.roll(RGB, i, axis=0)).save(outside / f"{i}.png")
        Image.fromarray(255 - np.roll(RGB, i, axis=0)).save(inside / "sound" / f"{i}.png")
    for name in ("early", "late"):
        (inside / name).symlink_to(outside)
    (inside / "sound" / "round").symlink_to(inside)
    report = check(inside)
    assert found(report) == {"late": "linked twice", "sound/round": "linked twice"} and report.images == 6
    assert {problem.name: problem.detail for problem in report.problems}["late"] == "a link to early, read once"
    build_dataset(DataConfig(source=str(inside), size=8, split="none"))
    assert "linked folders whose images are read once: late (a link to early" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------------- threads


def test_reading_in_threads_changes_nothing_for_others() -> None:
    """Pillow's limit and tifffile's logger belong to the whole process: other threads rely on them meanwhile."""
    damaged = BytesIO()
    tifffile.imwrite(
        damaged, RNG.integers(0, 256, (3, 64, 64), dtype=np.uint8), photometric="rgb", planarconfig="separate"
    )
    data = damaged.getvalue()[:-5000]
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logger = tifffile.logger()
    logger.addHandler(handler)
    stop, limits = threading.Event(), set()

    def watch() -> None:
        while not stop.is_set():
            limits.add(Image.MAX_IMAGE_PIXELS)
            logger.error("mine")

    def read(_: int) -> None:
        with pytest.raises(BadImage):
            decode(data, "x.tif")

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(read, range(60)))
    finally:
        stop.set()
        watcher.join()
        logger.removeHandler(handler)
    assert limits == {Image.MAX_IMAGE_PIXELS} and not logger.disabled
    assert heard and set(heard) == {"mine"}
