"""Between tensors on the scale [-1, 1] and pictures: bytes, PIL images, grids, and files that say what made them."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from morphogen.core.errors import InputError
from morphogen.core.files import JsonObject, open_ordinary, replace_file

METADATA_KEY = "morphogen"
_LARGE_PIXELS = 2**22
_INCH = 25_400  # micrometres
_DESCRIPTION = 0x010E  # ImageDescription of EXIF


def to_float(images: Tensor) -> Tensor:
    """uint8 (..., ) 0..255 to float32 -1..1; floats, which latents are, stay as they are."""
    return images if images.is_floating_point() else images.float() / 127.5 - 1


def to_bytes(images: Tensor) -> np.ndarray:
    """Float images (B, C, H, W), about [-1, 1], to uint8 (B, H, W, C); what lies outside is clipped.

    Of four channels the last is alpha, which the colours are multiplied by; in the result they are not.
    """
    values = (images.float() + 1) * 127.5
    if values.shape[1] == 4:
        alpha = values[:, 3:].round().clamp(0, 255)
        colours = torch.where(alpha > 0, values[:, :3] * 255 / alpha.clamp(min=1), 0.0)
        values = torch.cat([colours, alpha], dim=1)
    return values.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def as_stored(images: Tensor) -> Tensor:
    """Float images of the scale [-1, 1] as a file of 8 bits holds them: one of 256 values each."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1


def to_rgb(images: Tensor) -> Tensor:
    """Float images (B, 1, 3 or 4, H, W), about [-1, 1], as (B, 3, H, W): gray three times, transparency on white."""
    if images.shape[1] == 4:
        return images[:, :3] - images[:, 3:] + 1
    return images.expand(-1, 3, -1, -1)


def to_pil(images: Tensor) -> list[Image.Image]:
    """Float images (B, C, H, W), about [-1, 1], to PIL images of mode L (C 1), RGB (3) or RGBA (4; see `to_bytes`)."""
    arrays = to_bytes(images)
    return [Image.fromarray(a[..., 0] if a.shape[-1] == 1 else a) for a in arrays]


def sample_grid(images: Sequence[Image.Image], columns: int | None = None, gap: int = 2) -> Image.Image:
    """Images of one size side by side, `columns` in a row, as square as possible by default; between them white, or
    nothing if they are RGBA.
    """
    columns = columns or int(np.ceil(np.sqrt(len(images))))
    rows = -(-len(images) // columns)
    width, height = images[0].size
    between = (0, 0, 0, 0) if images[0].mode == "RGBA" else "white"
    canvas = Image.new(images[0].mode, (columns * (width + gap) - gap, rows * (height + gap) - gap), between)
    for i, image in enumerate(images):
        canvas.paste(image, ((i % columns) * (width + gap), (i // columns) * (height + gap)))
    return canvas


def scale_of(image: Image.Image) -> float | None:
    """The micrometres a pixel that an image by a model of known scale carries; None for all others.

    A resolution in dots an inch alone is no scale: it mostly is a default of printers and screens.
    """
    found = image.info.get("mpp")
    if found is None and isinstance(image.info.get(METADATA_KEY), str):
        try:
            said = json.loads(image.info[METADATA_KEY])
        except ValueError:
            return None
        found = said.get("mpp") if isinstance(said, dict) else None
    return float(found) if isinstance(found, int | float) and 0 < found < 1e6 else None


def with_scale(image: Image.Image, mpp: float | None) -> Image.Image:
    """The image, which from now on says its micrometres a pixel where they are known, as a resolution (dpi) too."""
    if mpp is not None:
        image.info |= {"mpp": mpp, "dpi": (_INCH / mpp, _INCH / mpp)}
    return image


def save_png(path: Path, image: Image.Image, metadata: Mapping[str, object] | None = None) -> None:
    """Write a PNG at once, with the image's colour profile and resolution.

    metadata goes into a text chunk named `morphogen`, as JSON; its `mpp`, micrometres a pixel, is the resolution too.
    """
    info = PngInfo()
    mpp = None if metadata is None else metadata.get("mpp")
    dpi = (_INCH / mpp, _INCH / mpp) if isinstance(mpp, float) else image.info.get("dpi")
    if metadata is not None:
        info.add_text(METADATA_KEY, json.dumps(dict(metadata)))
    buffer = io.BytesIO()
    level = 1 if image.width * image.height > _LARGE_PIXELS else 6  # where compressing would take longer than painting
    image.save(buffer, "PNG", pnginfo=info, dpi=dpi, compress_level=level)
    replace_file(path, buffer.getvalue())


def read_metadata(path: Path) -> JsonObject | None:
    """The metadata that `save_png` or `save_film` put into a file; None if there are none."""
    try:
        with open_ordinary(path) as file, Image.open(file) as image:
            if METADATA_KEY in image.info:
                found = json.loads(image.info[METADATA_KEY])
            else:
                found = json.loads(image.info.get("comment") or image.getexif()[_DESCRIPTION])[METADATA_KEY]
    except (InputError, OSError, SyntaxError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, dict) else None


def save_film(
    path: Path,
    frames: Sequence[Image.Image],
    seconds: float = 4.0,
    hold: float = 1.5,
    metadata: Mapping[str, object] | None = None,
) -> None:
    """Write frames of one size as an animation, by the suffix: .webp, .gif or .png (APNG). Else InputError.

    metadata goes into the description of its EXIF data, or a GIF's comment, as JSON.
    """
    kind = path.suffix.lower().lstrip(".")
    if kind not in ("webp", "gif", "png"):
        raise InputError(f"{path}: films are .webp, .gif or .png")
    duration = max(20, int(1000 * seconds / len(frames)))
    durations = [duration] * (len(frames) - 1) + [int(1000 * hold)]
    options: dict[str, object] = {"save_all": True, "append_images": list(frames[1:]), "duration": durations, "loop": 0}
    if kind == "webp":
        options |= {"quality": 80}  # noise does not compress without loss
    if metadata is not None:
        said = json.dumps({METADATA_KEY: dict(metadata)})
        exif = Image.Exif()
        exif[_DESCRIPTION] = said
        options |= {"comment": said} if kind == "gif" else {"exif": exif}
    buffer = io.BytesIO()
    frames[0].save(buffer, kind.upper(), **options)
    replace_file(path, buffer.getvalue())
