"""Painting on an endless slide: a stroke computes what lies around it anew, and nothing else.

What a stroke changes is kept as a layer: a rectangle around it with what every sampling step has left there. Within, a
step reads the new state; beyond its border, what was there before. So a layer fits its surroundings without a seam, the
cost is that of the rectangle, layers lie upon one another, and taking one away shows what was below. Of a pyramid every
level has its layer, each told what the level before has become.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from morphogen.core.condition import class_names
from morphogen.core.errors import InputError
from morphogen.core.images import to_bytes, to_float
from morphogen.core.keys import Key
from morphogen.core.model import Model
from morphogen.core.request import SamplingRequest
from morphogen.diffusion.condition import of_map, shrink_map
from morphogen.diffusion.known import Known
from morphogen.diffusion.ladder import level_seed
from morphogen.diffusion.sampling import sample
from morphogen.pyramids.region import Region
from morphogen.slides.levels import told
from morphogen.slides.region import decoded_from, step_region, with_halo
from morphogen.studio.edits import Edit, PaintingFile, map_of
from morphogen.studio.endless import EndlessLevel, Stopped, endless_levels

MOST_EDITS = 500
TILES = 2**24
"""Tiles on a side of what the page can show, where it begins in the middle: a power of two, exact for JavaScript."""
_PREVIEW_STEPS = 4
Stop = Callable[[], bool]


def tile_side(levels: Sequence[EndlessLevel], about: int = 64) -> int:
    """Pixels on a side of the page's tiles: whole blocks of the finest level."""
    side = levels[0].slide.side * levels[0].slide.factor
    return max(1, round(about / side)) * side


def middle_of(levels: Sequence[EndlessLevel], tile: int = 64) -> int:
    """The pixel of the finest level's canvas, across and down, in the middle of what the page can show."""
    return tile_side(levels, tile) * TILES // 2


@dataclass(frozen=True)
class Layer:
    """What a stroke has made of a rectangle of a level.

    kept: float (1, K, height, width) of `region` after each sampling step; of a model in latents in cells, and the
    decoder carries a change further. pixels: uint8 (height, width, C) of `shown`.
    """

    region: Region
    kept: list[Tensor]
    shown: Region
    pixels: NDArray[np.uint8]


@dataclass(frozen=True)
class Change:
    """A stroke, and its layers by the level's number, finest first."""

    edit: Edit
    layers: list[Layer]


class Painting:
    """The strokes on an endless slide; they can be undone and done again. levels: of the slide, finest first. middle:
    the pixel of its canvas that places of strokes are counted from, across and down.

    For one thread at a time.
    """

    def __init__(self, levels: Sequence[EndlessLevel], middle: int) -> None:
        self.levels, self.middle = levels, middle
        self.names = class_names(dict(levels[0].slide.denoiser.classes))
        self.done: list[Change] = []
        self.undone: list[Change] = []

    @property
    def edits(self) -> list[Edit]:
        """The strokes that are there, in their order."""
        return [change.edit for change in self.done]

    def check(self, edit: Edit) -> None:
        """Raise InputError for a stroke that cannot be."""
        edit.area()
        if edit.what == "class" and not self.names:
            raise InputError("this model was trained without maps; only places can be given another seed")
        if edit.what == "class" and edit.name is not None and edit.name not in self.names:
            raise InputError(f"there is no class {edit.name!r}; the model's are {', '.join(self.names)}")
        if len(self.done) >= MOST_EDITS:
            raise InputError(f"there are {MOST_EDITS} strokes, which is the most; save the painting and begin anew")

    def paint(self, edit: Edit, stop: Stop = lambda: False) -> Change:
        """Paint a stroke, which then is the last. Raises InputError as `check`, and Stopped once `stop()` is true."""
        self.check(edit)
        edits = [*self.edits, edit]
        layers: list[Layer] = []
        for number in reversed(range(len(self.levels))):  # coarsest first
            layers.insert(0, self._layer(number, edits, layers, stop))
        change = Change(edit, layers)
        self.done.append(change)
        self.undone.clear()
        return change

    def undo(self) -> Change | None:
        """Take the last stroke away; None if there is none."""
        if not self.done:
            return None
        self.undone.append(self.done.pop())
        return self.undone[-1]

    def redo(self) -> Change | None:
        """Put back the stroke that was taken away last; None if there is none."""
        if not self.undone:
            return None
        self.done.append(self.undone.pop())
        return self.done[-1]

    def picture(self, number: int, region: Region, stop: Stop = lambda: False) -> NDArray[np.uint8]:
        """The pixels (height, width, C) of a region of a level, with all strokes."""
        (pixels,) = self.levels[number].slide.pictures([region], stop)
        return self.over(number, region, pixels)

    def finished(self, number: int, region: Region, stop: Stop = lambda: False) -> Tensor:
        """What the last step leaves of a region of a level with all strokes, float (1, C, height, width)."""
        slide = self.levels[number].slide
        (found,) = slide.finished([region], stop)
        for change in self.done:
            layer = change.layers[number]
            found = _put(region, found, layer.region, layer.kept[-1][:, : slide.channels])
        return found

    def over(self, number: int, region: Region, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Pixels of a region of a level as computed without strokes, with all strokes upon them."""
        return _upon(region, pixels, [change.layers[number] for change in self.done])

    def map_of(self, region: Region) -> NDArray[np.uint8]:
        """The map of a region of full resolution: the numbers of classes, or UNKNOWN."""
        return map_of([self._placed(edit) for edit in self.edits], region, self.names)

    def preview(self, edit: Edit, stop: Stop = lambda: False) -> tuple[Region, NDArray[np.uint8]]:
        """About what a stroke will give, in a tenth of the time: the finest level filled in few steps around what is
        known (inpainting). Its region, and its pixels.
        """
        self.check(edit)
        slide = self.levels[0].slide
        area = self._area(0, edit)
        outer = with_halo(slide.denoiser, area, slide.canvas)
        before = self.finished(0, outer, stop)
        fixed = torch.ones(1, 1, *outer.size)
        rows, columns = area.within(outer)
        fixed[..., rows, columns] = 0
        key = Key(
            (edit.seed if edit.what == "seed" else slide.seed,), origins=((outer.y, outer.x),), canvas=slide.canvas
        )
        request = SamplingRequest("dpm++", _PREVIEW_STEPS)
        condition = self._condition(0, [*self.edits, edit], outer, lambda coarse: self.picture(1, coarse, stop))
        device = slide.denoiser.device
        made = sample(
            slide.denoiser,
            key,
            outer.size,
            request,
            known=Known(before.to(device), fixed.to(device)),
            clip=slide.factor == 1,
            condition=None if condition is None else condition.to(device),
        )
        shown, whole = area.scaled(slide.factor), outer.scaled(slide.factor)
        return shown, to_bytes(slide.denoiser.to_pixels(made))[0][shown.within(whole)]

    # ------------------------------------------------------------------------------------------------ inside

    def _scale(self, number: int) -> int:
        """How many pixels of full resolution a pixel of a level is, or a cell of its latents, on a side."""
        return self.levels[number].scale * self.levels[number].slide.factor

    def _decoded(self, number: int, area: Region, made: Tensor, stop: Stop) -> tuple[Region, NDArray[np.uint8]]:
        """The pixels that change when a region of a level becomes `made`, float (1, C, height, width), and where."""
        slide = self.levels[number].slide
        if slide.factor == 1:
            return area, to_bytes(made)[0]
        side = Region(area.y // slide.side, area.x // slide.side, 1, 1).scaled(slide.side)
        reach = side.y - decoded_from(slide.denoiser, side, slide.canvas, slide.side).y
        blocks = slide.in_blocks(area.grown(reach, slide.canvas).scaled(slide.factor))
        outer = decoded_from(slide.denoiser, blocks, slide.canvas, slide.side)
        latents = _put(outer, self.finished(number, outer, stop), area, made)
        return blocks.scaled(slide.factor), slide.decode(latents, outer, blocks)

    def _placed(self, edit: Edit) -> Edit:
        """A stroke on the canvas, whose origin is its upper left corner."""
        return edit.model_copy(update={"points": tuple((x + self.middle, y + self.middle) for x, y in edit.points)})

    def _area(self, number: int, edit: Edit) -> Region:
        """What a stroke computes anew of a level: what it covers, and as much around as one evaluation reads."""
        slide, scale = self.levels[number].slide, self._scale(number)
        area = self._placed(edit).area()
        top, left = area.y // scale, area.x // scale
        bottom, right = -(-(area.y + area.height) // scale), -(-(area.x + area.width) // scale)
        whole = Region(top, left, max(1, bottom - top), max(1, right - left))
        return with_halo(slide.denoiser, whole, slide.canvas)

    def _condition(
        self, number: int, edits: list[Edit], region: Region, read: Callable[[Region], NDArray[np.uint8]]
    ) -> Tensor | None:
        """What a region of a level is told. read: the pixels of the level before."""
        slide, scale = self.levels[number].slide, self._scale(number)
        config, maps = slide.denoiser.condition, None
        if config is None:
            return None
        if config.classes:
            found = map_of([self._placed(edit) for edit in edits], region.scaled(scale), self.names)
            maps = shrink_map(torch.from_numpy(found)[None], scale)
        if not config.has_picture:
            assert maps is not None
            return of_map(config, maps, torch.empty(1, 1, *region.size))

        def before(coarse: Region) -> Tensor:
            return to_float(torch.from_numpy(read(coarse).transpose(2, 0, 1).copy()))[None]

        return told(config, before, slide.seed, region, slide.canvas, maps)

    def _layer(self, number: int, edits: list[Edit], coarser: list[Layer], stop: Stop) -> Layer:
        """What the last of some strokes makes of a level. coarser: its layers of the levels before, finest first."""
        slide = self.levels[number].slide
        denoiser, stepper, canvas = slide.denoiser, slide.stepper, slide.canvas
        area = self._area(number, edits[-1])
        outer = with_halo(denoiser, area, canvas)
        rows, columns = area.within(outer)

        def read(coarse: Region) -> NDArray[np.uint8]:
            return _upon(coarse, self.picture(number + 1, coarse, stop), coarser[:1])

        condition = self._condition(number, edits, outer, read)
        condition = None if condition is None else condition.to(denoiser.device)
        before = slide.trajectory(outer, stop)  # as it was, after every step
        for change in self.done:
            layer = change.layers[number]
            before = [_put(outer, *both) for both in zip(before, [layer.region] * len(before), layer.kept, strict=True)]
        noise = self._noise(number, edits, outer)
        kept: list[Tensor] = []
        state: Tensor | None = None
        for i in range(len(stepper)):
            if stop():
                raise Stopped
            after = step_region(stepper, i, slide.seed, area, canvas, state, condition=condition, noise=noise)
            kept.append(after.cpu())
            state = before[i].clone()
            state[..., rows, columns] = after
        return Layer(area, kept, *self._decoded(number, area, kept[-1][:, : slide.channels], stop))

    def _noise(self, number: int, edits: list[Edit], region: Region) -> Tensor:
        """The noise that a region of a level begins with: below strokes of another seed it is that seed's."""
        slide, scale = self.levels[number].slide, self._scale(number)
        key = Key((slide.seed,), origins=((region.y, region.x),), canvas=slide.canvas)
        noise = slide.stepper.begin(key, region.size)
        for edit in edits:
            if edit.what == "seed":
                covered = self._placed(edit).covers(region.scaled(scale))
                share = torch.from_numpy(covered).float().view(region.height, scale, region.width, scale).mean((1, 3))
                seed = level_seed(edit.seed, len(self.levels) - 1 - number) if len(self.levels) > 1 else edit.seed
                own = Key((seed,), origins=key.origins, canvas=key.canvas)
                other = slide.stepper.begin(own, region.size)
                noise = other.where((share > 0.5).to(noise.device), noise)
        return noise


def paint_again(model: Model, file: PaintingFile) -> NDArray[np.uint8]:
    """The picture (height, width, C) that a file of the page tells of: all its strokes, in their order.

    Raises InputError for strokes that the model cannot paint.
    """
    levels = endless_levels(model, file.seed, file.sampler, file.sampling_steps)
    painting = Painting(levels, middle_of(levels))
    for edit in file.edits:
        painting.paint(edit)
    return painting.picture(0, Region(file.y + painting.middle, file.x + painting.middle, file.height, file.width))


def _upon(region: Region, pixels: NDArray[np.uint8], layers: Sequence[Layer]) -> NDArray[np.uint8]:
    """Pixels (height, width, C) of a region with layers upon them."""
    result = pixels
    for layer in layers:
        common = _common(region, layer.shown)
        if common is not None:
            result = result.copy() if result is pixels else result
            rows, columns = common.within(layer.shown)
            into = common.within(region)
            result[into[0], into[1]] = layer.pixels[rows, columns]
    return result


def _put(region: Region, values: Tensor, other: Region, upon: Tensor) -> Tensor:
    """The values (1, K, height, width) of a region, with those of another one upon them."""
    common = _common(region, other)
    if common is None:
        return values
    values = values.clone()
    rows, columns = common.within(region)
    within = common.within(other)
    values[..., rows, columns] = upon[..., within[0], within[1]].to(values.device)
    return values


def _common(one: Region, other: Region) -> Region | None:
    """What two regions have in common; None if nothing."""
    top, left = max(one.y, other.y), max(one.x, other.x)
    bottom = min(one.y + one.height, other.y + other.height)
    right = min(one.x + one.width, other.x + other.width)
    return None if top >= bottom or left >= right else Region(top, left, bottom - top, right - left)
