"""Pictures of every kind: what a model sees of them, and results of the same kind."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps

from morphogen.core.errors import InputError
from morphogen.core.images import save_png, to_bytes
from morphogen.data.decode import open_picture
from morphogen.tasks.masks import as_mask
from morphogen.tasks.pictures import as_picture

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
WIDE = RNG.integers(0, 65536, (5, 7), dtype=np.uint16)


def kinds() -> dict[str, Any]:
    """One picture of each kind, 5x7."""
    rgb = Image.fromarray(COLOUR)
    rgba = Image.fromarray(np.dstack([COLOUR, ALPHA]))
    tensor = torch.from_numpy(COLOUR.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)
    return {
        "L": rgb.convert("L"),
        "LA": rgba.convert("LA"),
        "RGB": rgb,
        "RGBA": rgba,
        "1": rgb.convert("1"),
        "I;16": Image.fromarray(WIDE),
        "uint8 (H, W)": COLOUR[..., 0],
        "uint8 (H, W, 1)": COLOUR[..., :1],
        "uint8 (H, W, 3)": COLOUR,
        "uint8 (H, W, 4)": np.dstack([COLOUR, ALPHA]),
        "uint16 (H, W)": WIDE,
        "float (3, H, W)": tensor,
        "float (1, H, W)": tensor[:1],
    }


def values(given: Any) -> np.ndarray:
    return np.asarray(given)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", kinds())
def test_kinds_come_back_and_unchanged_pixels_exactly(name: str, channels: int) -> None:
    given = kinds()[name]
    picture = as_picture(given)
    assert picture.size == (5, 7)
    seen = picture.for_model(channels)
    assert seen.shape == (channels, 5, 7) and seen.dtype == torch.float32 and seen.abs().max() <= 1
    changed = torch.zeros(5, 7, dtype=torch.bool)
    changed[1:3, 2:6] = True
    result = picture.painted(-seen, changed).given()
    assert type(result) is type(given)
    if isinstance(given, Image.Image):
        assert result.mode == given.mode
    assert values(result).dtype == values(given).dtype and values(result).shape == values(given).shape
    planes = (values(x).astype(float) for x in (result, given))
    same = np.abs(np.subtract(*planes)) == 0
    same = same.all(axis=0 if isinstance(given, torch.Tensor) else 2) if same.ndim == 3 else same
    assert same[~changed.numpy()].all()
    assert not same[changed.numpy()].all()
    if channels == picture.colours:  # what a model gives back as it saw it is the picture
        back = values(picture.painted(seen).given()).astype(float)
        allowed = 0 if picture.alpha() is None else 255  # see below
        assert np.abs(back - values(given)).max() <= allowed


def test_transparency_lies_on_white_and_what_is_seen_comes_out_right() -> None:
    """At every opacity, the new colours over white are those wanted, within half a level over the opacity."""
    picture = as_picture(kinds()["RGBA"])
    over = Image.alpha_composite(Image.new("RGBA", (7, 5), "white"), kinds()["RGBA"]).convert("RGB")
    seen = to_bytes(picture.for_model(3)[None])[0]
    assert np.abs(seen.astype(int) - np.asarray(over)).max() <= 1
    # Colours that lie over white at this opacity: anything brighter than white times (1 - alpha).
    wanted = torch.lerp(torch.ones(3, 5, 7), torch.rand(3, 5, 7) * 2 - 1, picture.alpha().expand(3, -1, -1))  # type: ignore[union-attr]
    result = picture.painted(wanted).given()
    np.testing.assert_array_equal(np.asarray(result)[..., 3], ALPHA)
    shown = Image.alpha_composite(Image.new("RGBA", (7, 5), "white"), result).convert("RGB")
    assert np.abs(np.asarray(shown).astype(int) - to_bytes(wanted[None])[0]).max() <= 1


def test_filled_transparency_becomes_opaque() -> None:
    picture = as_picture(kinds()["RGBA"])
    hole = torch.zeros(5, 7, dtype=torch.bool)
    hole[2, 3] = True
    colours = torch.full((3, 5, 7), 0.5)
    result = np.asarray(picture.painted(colours, changed=hole, opaque=hole).given())
    assert result[2, 3].tolist() == [191, 191, 191, 255]
    np.testing.assert_array_equal(np.delete(result.reshape(35, 4), 17, 0)[:, 3], np.delete(ALPHA.ravel(), 17))


def test_gray_and_colour() -> None:
    assert torch.equal(as_picture(kinds()["L"]).for_model(3)[0], as_picture(kinds()["L"]).for_model(1)[0])
    mine = to_bytes(as_picture(COLOUR).for_model(1)[None])[0, ..., 0].astype(int)
    assert np.abs(mine - np.asarray(Image.fromarray(COLOUR).convert("L"))).max() <= 1


@pytest.mark.parametrize("mode", ["P", "CMYK", "YCbCr", "HSV"])
def test_other_modes_become_rgb(mode: str) -> None:
    picture = as_picture(Image.fromarray(COLOUR).convert(mode))
    assert picture.given().mode == "RGB"


def test_a_palette_with_transparency_keeps_it() -> None:
    palette = Image.fromarray(COLOUR).convert("P")
    palette.info["transparency"] = 3
    assert as_picture(palette).given().mode == "RGBA"


def test_enlarging_keeps_given_values() -> None:
    for name, given in kinds().items():
        large = as_picture(given).enlarged(4)
        assert large.size == (20, 28)
        assert torch.equal(large.values[:, ::4, ::4], as_picture(given).values), name
    alpha = as_picture(Image.fromarray(np.array([[[9, 0], [9, 200]]], np.uint8))).enlarged(2).values[1]
    assert alpha.tolist() == [[0, 100, 200, 200]] * 2


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("a.png", "is a str"),
        (COLOUR.astype(float), "array of float64"),
        (COLOUR.astype(bool), "array of bool"),
        (np.zeros((5, 7, 5), np.uint8), "1 to 4 channels"),
        (np.zeros((0, 7), np.uint8), "shape"),
        (np.zeros((1, 5, 7, 3), np.uint8), "4 axes"),
        (torch.zeros(5, 7), "should be float of the shape"),
        (torch.zeros(3, 5, 7, dtype=torch.uint8), "should be float"),
        (torch.zeros(2, 5, 7), "should be float of the shape"),
        (torch.full((3, 5, 7), 1.5), "outside"),
        (torch.full((3, 5, 7), torch.nan), "outside"),
        (Image.new("F", (3, 3)), "mode F"),
        (Image.fromarray(np.full((2, 2), 70000, np.int32)), "outside 0..65535"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_is_no_picture(wrong: Any, says: str) -> None:
    with pytest.raises(InputError, match=says) as error:
        as_picture(wrong, "photo.png")
    assert "photo.png" in str(error.value)


def test_masks() -> None:
    marked = np.zeros((5, 7), bool)
    marked[1, 2:4] = True
    white = marked.astype(np.uint8) * 255
    drawn = np.dstack([np.full((5, 7, 3), 255, np.uint8), white])  # white strokes on a transparent layer
    given: dict[str, Any] = {
        "L": Image.fromarray(white),
        "1": Image.fromarray(white).convert("1"),
        "RGB": Image.fromarray(white).convert("RGB"),
        "P": Image.fromarray(white).convert("P"),
        "RGBA": Image.fromarray(drawn),
        "I;16": Image.fromarray(white.astype(np.uint16) * 257),
        "bool": marked,
        "uint8": white,
        "tensor": torch.from_numpy(marked),
        "tensor with a channel": torch.from_numpy(marked)[None],
    }
    for name, mask in given.items():
        assert torch.equal(as_mask(mask, (5, 7)), torch.from_numpy(marked)), name
    edge = np.array([[127, 128]], np.uint8)
    assert as_mask(edge, (1, 2)).tolist() == as_mask(Image.fromarray(edge), (1, 2)).tolist() == [[False, True]]
    with pytest.raises(InputError, match=r"--mask m.png is 5x7, but the image is 7x5"):
        as_mask(Image.fromarray(white), (7, 5), "--mask m.png")
    for wrong in (white.astype(float), torch.zeros(5, 7), "m.png", [[1]]):
        with pytest.raises(InputError, match="should be a PIL image, a boolean or integer array"):
            as_mask(wrong, (5, 7))


def swapped_profile() -> bytes:
    """A profile that calls sRGB's red blue and its blue red: what it says is plain to see."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(profile[128:132], "big")
    tags = {bytes(profile[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    red, blue = (slice(tags[name] + 4, tags[name] + 12) for name in (b"rXYZ", b"bXYZ"))
    profile[red], profile[blue] = profile[blue], profile[red]
    return bytes(profile).replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be")).replace(b"sRGB", b"swap")


@pytest.mark.parametrize("name", ["RGB", "RGBA"])
def test_a_model_sees_srgb_and_the_result_has_the_files_own_colours(name: str) -> None:
    plain = kinds()[name]
    plain.info.update(icc_profile=swapped_profile(), dpi=(300.0, 150.0))
    picture = as_picture(plain)
    seen = picture.for_model(3)
    plain.info.pop("icc_profile")
    swapped = as_picture(plain).for_model(3).flip(0)
    # Two of 255 levels for the rounding of the profile's numbers, divided among [-1, 1].
    assert (seen - swapped).abs().max() <= 2 * 2 / 255
    changed = torch.zeros(5, 7, dtype=torch.bool)
    changed[1:3] = True
    result = picture.painted(seen, changed).given()
    before, after = np.asarray(plain).astype(int), np.asarray(result).astype(int)
    np.testing.assert_array_equal(before[[0, 3, 4]], after[[0, 3, 4]])
    sure = np.ones_like(before, bool) if name == "RGB" else np.broadcast_to(before[..., 3:] > 128, before.shape)
    assert np.abs(before - after)[sure].max() <= 6  # there and back, through 8 bits and half of them at half opacity
    assert result.info["icc_profile"] == swapped_profile() and result.info["dpi"] == (300.0, 150.0)
    large = picture.enlarged(2).painted(torch.zeros(3, 10, 14)).given()
    assert large.info["icc_profile"] == swapped_profile() and large.info["dpi"] == (300.0, 150.0)


def test_profiles_that_cannot_be_used_are_kept() -> None:
    for mode, profile in (("RGB", b"damaged"), ("L", b"damaged"), ("LA", swapped_profile())):
        image = kinds()[mode]
        image.info["icc_profile"] = profile
        picture = as_picture(image)
        result = picture.painted(picture.for_model(3)).given()
        assert result.info["icc_profile"] == profile and result.mode == mode


def test_resolution_and_profile_reach_the_file(tmp_path: Path) -> None:
    image = kinds()["RGB"]
    image.info.update(icc_profile=swapped_profile(), dpi=(300.0, 300.0))
    save_png(tmp_path / "a.png", as_picture(image).given())
    with Image.open(tmp_path / "a.png") as saved:
        assert saved.info["icc_profile"] == swapped_profile()
        assert saved.info["dpi"] == pytest.approx((300, 300), abs=0.01)  # PNG counts pixels a metre


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_exif_says(orientation: int) -> None:
    """As the commands turn it, once, whether it comes from a file or from Pillow."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = BytesIO()
    kinds()["RGB"].save(buffer, "PNG", exif=exif)
    with Image.open(buffer) as image:
        wanted = np.asarray(ImageOps.exif_transpose(image))
        np.testing.assert_array_equal(np.asarray(as_picture(image).given()), wanted)
    opened = open_picture(buffer.getvalue(), "a.png")
    np.testing.assert_array_equal(np.asarray(as_picture(opened).given()), wanted)
