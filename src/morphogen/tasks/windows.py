"""The parts of a large picture that filling its holes has to look at, so that the cost follows the hole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from morphogen.core.model import Model, StepInfo
from morphogen.diffusion.ladder import Ladder
from morphogen.tasks.checks import need_denoiser

_BLOCK = 32
_WORTHWHILE = 0.7


class Window(NamedTuple):
    """A rectangle of a picture, in pixels; `bottom` and `right` lie outside it."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.bottom - self.top, self.right - self.left

    def cut(self, values: Tensor) -> Tensor:
        """The part of values (..., H, W) inside."""
        return values[..., self.top : self.bottom, self.left : self.right]

    def overlaps(self, other: Window) -> bool:
        """Whether they share a pixel."""
        rows = self.top < other.bottom and other.top < self.bottom
        return rows and self.left < other.right and other.left < self.right

    def joined(self, other: Window) -> Window:
        """The smallest window around both."""
        return Window(*map(min, self[:2], other[:2]), *map(max, self[2:], other[2:]))


class Part(NamedTuple):
    """A window of one of several pictures."""

    picture: int
    window: Window


def find_windows(model: Model, hole: Tensor, context: int | None = None) -> list[Window]:
    """Disjoint windows that hold everything that fills a hole, boolean (H, W): its pixels, its context, and the cells
    that these look at. One, the whole picture, for a model that reads all of it, and where less would not pay.

    context: pixels around the hole whose cells update as well; the model's own by default. Where a model's cells are
    normalised one by one, what lies in a window comes out as if the whole picture were computed, for the cells around
    it rest.
    """
    height, width = hole.shape
    whole = Window(0, 0, height, width)
    if isinstance(model, Ladder):  # whose coarsest level looks far
        return [whole]
    denoiser = need_denoiser(model, "inpainting")
    reach = denoiser.context if context is None else context
    if reach is None or not denoiser.exact_in_tiles or denoiser.latents is not None:
        return [whole]
    cell = denoiser.cell_size
    block = cell * -(-max(_BLOCK, denoiser.minimum_picture) // cell)  # windows begin with whole cells
    marked = F.max_pool2d(hole[None, None].float(), block, ceil_mode=True)
    around = -(-(reach + 2 * cell) // block)
    grown = F.max_pool2d(marked, 2 * around + 1, stride=1, padding=around)[0, 0] > 0
    labels, _ = ndimage.label(grown.numpy(), structure=[[1] * 3] * 3)
    found: list[Window] = []
    for rows, columns in ndimage.find_objects(labels):
        window = Window(rows.start * block, columns.start * block, rows.stop * block, columns.stop * block)
        window = Window(window.top, window.left, min(window.bottom, height), min(window.right, width))
        while (other := next((w for w in found if w.overlaps(window)), None)) is not None:
            found.remove(other)
            window = window.joined(other)
        found.append(_at_least(window, block, whole))
    area = sum(w.size[0] * w.size[1] for w in found)
    return found if area < _WORTHWHILE * height * width else [whole]


def _at_least(window: Window, side: int, whole: Window) -> Window:
    """The window, a block larger at the far end of the picture where that cut it short of a side."""
    top = window.top if window.size[0] >= side else max(whole.top, window.top - side)
    left = window.left if window.size[1] >= side else max(whole.left, window.left - side)
    return Window(top, left, window.bottom, window.right)


class WindowStep(StepInfo):
    """A step told as of whole pictures, which are put together only if somebody looks at them."""

    def __init__(self, step: int, steps: int, timestep: int | None, paste: Callable[[str], Tensor]) -> None:
        for name, value in (("step", step), ("steps", steps), ("timestep", timestep), ("_paste", paste)):
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        if name not in ("images", "clean"):
            raise AttributeError(name)
        value: Tensor = self._paste(name)
        object.__setattr__(self, name, value)
        return value


def paste(pictures: Tensor, parts: Sequence[Part], images: Tensor) -> Tensor:
    """Pictures (B, C, H, W) with images (N, C, h, w) put in where the parts are."""
    pasted = pictures.to(images.device, copy=True)
    for part, image in zip(parts, images, strict=True):
        part.window.cut(pasted[part.picture]).copy_(image)
    return pasted
