"""Every format and mode, with the exact pixels that must come out."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from morphogen.data.decode import decode, image_size
from morphogen.data.formats import BadImage

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
LIMIT = 10**6


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(values: np.ndarray, **options: Any) -> bytes:
    buffer = BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("BMP", {}), ("PPM", {})]
)
def test_lossless_formats_give_the_pixels_back(kind: str, options: dict[str, Any]) -> None:
    data = encoded(Image.fromarray(RGB), kind, **options)
    np.testing.assert_array_equal(decode(data, "x"), RGB)
    assert image_size(data, "x", LIMIT) == (5, 7)


def test_jpeg_is_what_pillow_decodes() -> None:
    data = encoded(Image.fromarray(RGB), "JPEG", quality=95)
    np.testing.assert_array_equal(decode(data, "x"), np.asarray(Image.open(BytesIO(data))))


def test_grayscale_fills_three_channels_or_one() -> None:
    data = encoded(Image.fromarray(RGB[..., 0]))
    np.testing.assert_array_equal(decode(data, "x"), np.repeat(RGB[..., :1], 3, axis=2))
    np.testing.assert_array_equal(decode(data, "x", colour="gray"), RGB[..., :1])


def test_colour_to_gray_is_luma() -> None:
    image = Image.fromarray(RGB)
    np.testing.assert_array_equal(decode(encoded(image), "x", colour="gray")[..., 0], np.asarray(image.convert("L")))


def test_one_bit() -> None:
    bits = Image.fromarray(RGB[..., 0]).point(lambda v: 255 * (v > 99)).convert("1")
    expected = np.where(RGB[..., :1] > 99, 255, 0)
    np.testing.assert_array_equal(decode(encoded(bits), "x"), np.repeat(expected, 3, axis=2))


def test_transparent_pixels_show_the_background() -> None:
    alpha = np.full((5, 7, 1), 255, np.uint8)
    alpha[0], alpha[1] = 0, 51
    data = encoded(Image.fromarray(np.concatenate([RGB, alpha], axis=2)))
    out = decode(data, "x", background="#102030")
    assert (out[0] == (16, 32, 48)).all()
    mixed = RGB[1] * 0.2 + np.array((16, 32, 48)) * 0.8
    np.testing.assert_allclose(out[1], mixed, atol=1)
    np.testing.assert_array_equal(out[2:], RGB[2:])


def test_gray_with_alpha() -> None:
    la = np.stack([RGB[..., 0], np.where(RGB[..., 1] > 128, 255, 0).astype(np.uint8)], axis=2)
    out = decode(encoded(Image.fromarray(la)), "x", background="black", colour="gray")
    np.testing.assert_array_equal(out[..., 0], np.where(RGB[..., 1] > 128, RGB[..., 0], 0))


def test_palette_with_and_without_transparency() -> None:
    indices = (RGB[..., 0] % 4).astype(np.uint8)
    colours = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9)], np.uint8)
    image = Image.new("P", (7, 5))
    image.putdata(indices.ravel().tolist())
    image.putpalette(colours.tobytes())
    np.testing.assert_array_equal(decode(encoded(image), "x"), colours[indices])
    shown = colours.copy()
    shown[3] = (255, 255, 255)
    np.testing.assert_array_equal(decode(encoded(image, transparency=3), "x"), shown[indices])
    many = encoded(image, transparency=bytes([255, 255, 255, 0]))
    np.testing.assert_array_equal(decode(many, "x"), shown[indices])
    np.testing.assert_array_equal(decode(encoded(image, "GIF", transparency=3), "x"), shown[indices])


def test_rgb_with_one_transparent_colour() -> None:
    pixels = RGB.copy()
    pixels[0, 0] = (1, 2, 3)
    out = decode(encoded(Image.fromarray(pixels), transparency=(1, 2, 3)), "x")
    assert (out[0, 0] == 255).all() and (out[1] == RGB[1]).all()


def test_cmyk() -> None:
    cmyk = Image.fromarray(RGB).convert("CMYK")
    np.testing.assert_allclose(decode(encoded(cmyk, "TIFF"), "x"), RGB, atol=1)
    jpeg = decode(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"), "x")
    assert (jpeg[8, 8] > (240, -1, -1)).all() and (jpeg[8, 8] < (256, 16, 16)).all()  # red


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_gray_is_scaled_by_the_full_range(kind: str) -> None:
    values = np.arange(0, 65536, 1873, dtype=np.uint16).reshape(5, 7)
    data = encoded(Image.fromarray(values), kind)
    np.testing.assert_array_equal(decode(data, "x", colour="gray")[..., 0], np.rint(values / 257.0))


def png16_rgb(values: np.ndarray) -> bytes:
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_sixteen_bit_colour() -> None:
    values = RGB.astype(np.uint16) * 257
    np.testing.assert_array_equal(decode(png16_rgb(values), "x"), RGB)
    np.testing.assert_array_equal(decode(tiff(values, photometric="rgb"), "x"), RGB)
    planes = tiff(values.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(decode(planes, "x"), RGB)
    assert image_size(planes, "x", LIMIT) == (5, 7)


def test_float_tiff_is_scaled_from_0_to_1_and_refused_beyond() -> None:
    values = np.linspace(0, 1, 35, dtype=np.float32).reshape(5, 7)
    for kind in (np.float32, np.float64):
        np.testing.assert_array_equal(
            decode(tiff(values.astype(kind)), "x", colour="gray")[..., 0], np.rint(values.astype(kind) * 255)
        )
    for bad in (values * 700, values - 0.5, np.full((5, 7), np.nan, np.float32)):
        with pytest.raises(BadImage, match=r"^x\.tif: floating-point values outside 0\.\.1 .* convert"):
            decode(tiff(bad), "x.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation(orientation: int, kind: str) -> None:
    image = Image.fromarray(np.kron(RGB, np.ones((8, 8, 1), np.uint8)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, kind, exif=exif)
    with Image.open(BytesIO(data)) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened))
    out = decode(data, "x")
    np.testing.assert_array_equal(out, expected)
    assert out.flags.c_contiguous
    assert image_size(data, "x", LIMIT) == expected.shape[:2] == ((40, 56) if orientation < 5 else (56, 40))


def test_damaged_exif_does_not_matter() -> None:
    data = encoded(Image.fromarray(RGB), exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\0\0")
    np.testing.assert_array_equal(decode(data, "x"), RGB)


def test_first_frame_and_first_page() -> None:
    frames = [Image.new("RGB", (7, 5), colour) for colour in ("red", "lime")]
    for kind in ("GIF", "TIFF", "PNG"):
        assert (decode(encoded(frames[0], kind, save_all=True, append_images=frames[1:]), "x") == (255, 0, 0)).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_truncated(kind: str) -> None:
    pixels = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(pixels), kind)
    with pytest.raises(BadImage, match=r"^cut\.img: ") as caught:
        decode(data[: len(data) // 2], "cut.img")
    assert caught.value.kind == ("unreadable" if kind == "WEBP" else "truncated")
    assert len(str(caught.value).splitlines()) == 1


def test_garbage_and_nothing() -> None:
    for data, reason in (
        (b"", "empty"),
        (b"GIF89a", "image"),
        (b"not an image at all", "not an image"),
        (b"II*\0" * 9, ""),
    ):
        with pytest.raises(BadImage, match=rf"^bad\.png: .*{reason}") as caught:
            decode(data, "bad.png")
        assert caught.value.kind == "unreadable"


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "WEBP", "JPEG"])
def test_any_damaged_byte_gives_pixels_or_a_named_error(kind: str) -> None:
    whole = encoded(Image.fromarray(RGB), kind)
    refused = 0
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 0x55
        try:
            out = decode(bytes(data), "x.img", max_pixels=10_000)
        except BadImage as error:
            assert str(error).startswith("x.img: ") and "\n" not in str(error)
            refused += 1
        else:
            assert out.dtype == np.uint8 and out.ndim == 3 and out.shape[2] == 3
            assert kind != "PNG" or np.array_equal(out, RGB)  # its checksums find everything that matters
    assert refused > 5


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    header = struct.pack(">IIBBBBB", 60000, 50000, 8, 2, 0, 0, 0)
    body = b"IHDR" + header
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    png += struct.pack(">I", 4) + b"IDAT" + bytes(8)
    for read in (decode, lambda d, n: image_size(d, n, 200_000_000)):
        with pytest.raises(
            BadImage, match=r"^bomb\.png: 60000x50000 is 3,000,000,000 pixels; the limit is 200,000,000"
        ) as caught:
            read(png, "bomb.png")
        assert caught.value.kind == "oversized"


def test_pixels_between_pillows_limit_and_ours_are_read_without_a_warning() -> None:
    data = encoded(Image.new("1", (10000, 9500)))
    before = Image.MAX_IMAGE_PIXELS
    assert decode(data, "x", colour="gray", max_pixels=100_000_000).shape == (9500, 10000, 1)
    assert before == Image.MAX_IMAGE_PIXELS
    with pytest.raises(BadImage, match="the limit is 90,000,000"):
        decode(data, "x", max_pixels=90_000_000)


def test_a_bad_image_survives_pickling() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(BadImage("a.png", "no good", "oversized")))
    assert (error.name, error.reason, error.kind, str(error)) == ("a.png", "no good", "oversized", "a.png: no good")
