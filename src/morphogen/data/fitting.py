"""From a source image to pixels of the training size, and its random crop, flip and quarter turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from morphogen.core.condition import UNKNOWN
from morphogen.core.errors import InputError
from morphogen.core.random import integers
from morphogen.data.config import DataConfig, Domain, Fit
from morphogen.data.decode import Pixels
from morphogen.data.formats import BadImage
from morphogen.data.maps import resized_map
from morphogen.data.source import ClassMap, Source

_ORIENTED: tuple[Domain, ...] = ("photo", "faces", "icons")


@dataclass(frozen=True)
class Fitting:
    """How images are fitted and augmented, with every `auto` resolved. size: (height, width)."""

    size: tuple[int, int]
    domain: Domain
    fit: Fit
    flip_x: bool
    flip_y: bool
    turns: bool
    downscale: float
    background: str
    stain_jitter: float = 0.0

    @classmethod
    def of(cls, config: DataConfig, source: Source) -> Fitting:
        """Of a configuration, for a source. Raises InputError for micrometres without slides."""
        if config.mpp is not None and not source.sampled:
            raise InputError(f"--mpp {config.mpp:g}: {config.source} holds no slides; use --downscale")
        domain = source.domain if config.domain == "auto" else config.domain
        by_domain = {"icons": "none", "photo": "horizontal", "faces": "horizontal"}.get(domain, "both")
        flips = by_domain if config.flips == "auto" else config.flips
        fit: Fit = "crop" if config.fit == "auto" else config.fit
        if source.sampled or (config.fit == "auto" and (domain not in _ORIENTED or len(source) == 1)):
            fit = "random"
        turns = domain not in _ORIENTED if config.turns is None else config.turns
        return cls(
            size=config.size,
            domain=domain,
            fit=fit,
            flip_x=flips != "none",
            flip_y=flips == "both",
            turns=turns,
            downscale=1.0 if source.sampled else config.downscale,
            background=config.background,
            stain_jitter=config.stain_jitter,
        )

    def shrunk_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of an image after `downscale`."""
        return (max(round(size[0] / self.downscale), 1), max(round(size[1] / self.downscale), 1))

    def check_size(self, name: str, size: tuple[int, int]) -> None:
        """Raise BadImage where an image of this (height, width) would have to be enlarged."""
        height, width = self.shrunk_size(size)
        small = (height < self.size[0], width < self.size[1])
        if all(small) if self.fit == "pad" else any(small):  # padding decides by the side that is nearer to the size
            after = f" after downscale {self.downscale:g}" if self.downscale > 1 else ""
            reason = f"{height}x{width} (height x width){after} is smaller than {self.size[0]}x{self.size[1]}"
            raise BadImage(name, reason, "too small")

    def prepared(self, name: str, pixels: Pixels) -> Pixels:
        """A decoded image (H, W, C) shrunk by `downscale`, and of the final size unless crops are random."""
        self.check_size(name, pixels.shape[:2])
        pixels = _resized(pixels, self.shrunk_size(pixels.shape[:2]), area=True)
        return pixels if self.fit == "random" else fitted(pixels, self.size, self.fit, self.background)

    def crop(self, pixels: Pixels, key: int | None) -> Pixels:
        """A crop of the final size at a keyed place, or at the centre where key is None."""
        (height, width), (high, wide) = pixels.shape[:2], self.size
        rows, columns = height - high, width - wide
        y, x = (
            (rows // 2, columns // 2)
            if key is None
            else (n % (m + 1) for n, m in zip(integers(key, 2), (rows, columns), strict=True))
        )
        return pixels[y : y + high, x : x + wide]

    def augmented(self, pixels: Pixels, key: int) -> Pixels:
        """Pixels of the final size, flipped and turned and their stains varied as the key says."""
        pixels = self.oriented(pixels, key)
        if self.stain_jitter:
            shifts = [self.stain_jitter * (2 * (n / 2**64) - 1) for n in integers(key, 9)[3:]]
            pixels = jitter_stain(pixels, shifts[:3], shifts[3:])
        return pixels

    def oriented(self, pixels: Pixels, key: int) -> Pixels:
        """Pixels, or a map, flipped and turned as the key says."""
        mirrored, turns = self.orientation(key)
        return np.rot90(pixels[:, ::-1] if mirrored else pixels, turns)

    def prepared_map(self, found: ClassMap) -> ClassMap:
        """A map (H, W), as `prepared` makes of its image: of each pixel the class that covers most of it."""
        found = resized_map(found, self.shrunk_size(found.shape))
        if self.fit == "random":
            return found
        if self.fit == "stretch":
            return resized_map(found, self.size)
        high, wide = self.size
        inner = _inner_size(found.shape, self.size, self.fit)
        found = resized_map(found, inner)
        y, x = abs(inner[0] - high) // 2, abs(inner[1] - wide) // 2
        if self.fit == "crop":
            return found[y : y + high, x : x + wide]
        canvas = np.full((high, wide), UNKNOWN, np.uint8)
        canvas[y : y + inner[0], x : x + inner[1]] = found
        return canvas

    def orientation(self, key: int) -> tuple[bool, int]:
        """Whether the key says to mirror left and right, and by how many quarter turns to turn after it."""
        x, y, turns = integers(key, 3)
        return self._orientation(x & 1, y & 1, turns % 4)

    def orientations(self) -> list[tuple[bool, int]]:
        """All that `orientation` may say, as it is first: 1, 2, 4 or 8."""
        return sorted({self._orientation(x, y, turns) for x in (0, 1) for y in (0, 1) for turns in range(4)})

    def _orientation(self, x: int, y: int, turns: int) -> tuple[bool, int]:
        x, y = x & self.flip_x, y & self.flip_y  # upside down is mirrored and turned by two quarters
        if not self.turns:
            turns = 0
        elif self.size[0] != self.size[1]:
            turns = 2 * (turns % 2)
        return bool(x ^ y), (turns + 2 * y) % 4


def jitter_stain(pixels: Pixels, factors: Sequence[float], added: Sequence[float]) -> Pixels:
    """Pixels (H, W, 3) with other amounts of haematoxylin, eosin and DAB: each times 1 + factor, plus what is added in
    optical density (natural logarithm). Stain vectors of Ruifrok and Johnston (2001); varied as by Tellez et al.,
    "Quantifying the effects of data augmentation and stain color normalization" (2019).
    """
    from skimage.color import hed_from_rgb, rgb_from_hed

    density = -np.log(np.maximum(pixels, 1) / 255.0)
    stains = (density @ hed_from_rgb) * (1 + np.asarray(factors)) + np.asarray(added)
    varied: Pixels = np.rint(255.0 * np.exp(-(stains @ rgb_from_hed))).clip(0, 255).astype(np.uint8)
    return varied


def _resized(pixels: Pixels, size: tuple[int, int], area: bool = False) -> Pixels:
    from PIL import Image

    if pixels.shape[:2] == size:
        return pixels
    how = Image.Resampling.BOX if area else Image.Resampling.BICUBIC  # both antialiased
    if pixels.shape[2] == 4:  # colours that are multiplied by alpha already
        image = Image.frombytes("RGBa", (pixels.shape[1], pixels.shape[0]), np.ascontiguousarray(pixels).tobytes())
        found = np.array(image.resize((size[1], size[0]), how))
        np.minimum(found, found[..., 3:], out=found)  # bicubic goes beyond edges, where none is brighter than alpha
        return found
    gray = pixels.shape[2] == 1
    image = Image.fromarray(pixels[..., 0] if gray else pixels)
    out = np.asarray(image.resize((size[1], size[0]), how))
    return out[..., None] if gray else out


def fitted(pixels: Pixels, size: tuple[int, int], fit: Fit, background: str) -> Pixels:
    """An image (H, W, C) at the final (height, width) by crop, stretch or pad."""
    from PIL import ImageColor

    if fit == "stretch":
        return _resized(pixels, size)
    high, wide = size
    inner = _inner_size(pixels.shape[:2], size, fit)
    pixels = _resized(pixels, inner)
    y, x = abs(inner[0] - high) // 2, abs(inner[1] - wide) // 2
    if fit == "crop":
        return pixels[y : y + high, x : x + wide]
    channels = pixels.shape[2]
    colour = 0 if channels == 4 else ImageColor.getcolor(background, "L" if channels == 1 else "RGB")
    canvas = np.empty((high, wide, channels), np.uint8)
    canvas[:] = colour
    canvas[y : y + inner[0], x : x + inner[1]] = pixels
    return canvas


def _inner_size(size: tuple[int, int], final: tuple[int, int], fit: Fit) -> tuple[int, int]:
    """The (height, width) that an image is resized to, before it is cropped or padded to the final one."""
    shares = [wanted / there for wanted, there in zip(final, size, strict=True)]
    scale = max(shares) if fit == "crop" else min(shares)
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)
