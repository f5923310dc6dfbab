"""An image without edges, computed where it is looked at."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from morphogen.core.images import to_bytes, to_float
from morphogen.core.keys import Key
from morphogen.core.model import Model
from morphogen.core.request import SamplingRequest
from morphogen.diffusion.ladder import Ladder, level_seed
from morphogen.diffusion.predictor import NoisePredictor
from morphogen.diffusion.request import ON_SCREEN, resolve
from morphogen.diffusion.sampling import Stepper
from morphogen.pyramids.region import Region
from morphogen.slides.levels import told
from morphogen.slides.region import decoded_from, halo_of, step_region, with_halo
from morphogen.studio.blocks import Block, BlockCache, Values
from morphogen.tasks.checks import need_painter

Place = tuple[int, int]
"""Row and column in the grid of blocks."""
CANVAS = 2**40
"""Height and width of the canvas in pixels: nobody sees its edges."""
_BLOCK = 20  # pixels on a side that a block should have about, as a multiple of what a step reads around it
_LARGEST = 512  # pixels on a side of what is computed at once: bounds memory, and how long a stop waits
_DECODED_BYTES = 2**26  # of the blocks of a slide in latents that stay decoded


class Stopped(Exception):
    """A tile is no longer wanted; the blocks that were finished are kept."""


class EndlessSlide:
    """The image that one seed fixes on a canvas too large to be computed.

    A region of the finished image follows from a region of the noise that is larger by what each step reads around, so
    it can be computed by itself, and comes out as in an image of any size that holds it. What comes after some of the
    steps is kept in a cache, in blocks as large as that many steps read around: then a block needs the blocks around it
    some steps before and nothing else, and what lies beside a known region needs little more. For one thread at a time.

    Of a model in latents all this is in cells of `factor` pixels on a side, and the blocks are decoded one by one, each
    with what the decoder sees around it. `side`, `canvas` and every region but those of `pictures` count cells.

    cache_bytes: how much of the disk the cache may take. before, canvas: of a level of a pyramid, the slide of the
    level before, which it is told, and its canvas' height and width in its own pixels. Raises InputError for a model
    whose cells know their place or look everywhere, one in latents that Morphogen has not learnt, or numbers out of
    range.
    """

    def __init__(
        self,
        model: Model,
        seed: int = 0,
        sampler: str | None = None,
        steps: int | None = None,
        cache_bytes: int = 2**30,
        before: EndlessSlide | None = None,
        canvas: int = CANVAS,
    ) -> None:
        denoiser = need_painter(model, "an endless slide")
        reach = halo_of(denoiser) // denoiser.cell_size * denoiser.cell_size  # around whole cells
        request = resolve(SamplingRequest(sampler, steps), denoiser, ON_SCREEN)
        self.stepper = Stepper(denoiser, request, clip=denoiser.latents is None)
        self.mpp = model.picture.mpp
        (self.seed,) = Key.of([seed]).seeds
        self.sampler, self.steps, self.channels = self.stepper.name, self.stepper.steps, model.image.channels
        self.factor = 1 if denoiser.latents is None else denoiser.latents.factor
        self._together = max(1, round(_BLOCK / reach))  # steps between what is kept
        self.side = self._together * reach
        self._before, self.canvas = before, (canvas // self.factor, canvas // self.factor)
        self._kept = self.stepper.kept_channels
        self._decoded: OrderedDict[Place, NDArray[np.uint8]] = OrderedDict()
        self.cache = BlockCache((self._kept, self.side, self.side), cache_bytes)

    def pictures(self, regions: Sequence[Region], stop: Callable[[], bool] = lambda: False) -> list[NDArray[np.uint8]]:
        """The pixels of regions, uint8 (height, width, channels) each, computed together, which is faster than one by
        one where they touch. Raises Stopped once `stop()` is true, which is asked before every rectangle.
        """
        if self.factor > 1:
            return self._decode(regions, stop)
        return [to_bytes(values)[0] for values in self.finished(regions, stop)]

    def finished(self, regions: Sequence[Region], stop: Callable[[], bool] = lambda: False) -> list[Tensor]:
        """What the last step leaves of regions, float (1, C, height, width) each: pixels of [-1, 1], or latents.

        Raises Stopped as `pictures`.
        """
        blocks = self._finished({place for region in regions for place in self._places(region)}, stop)
        values = [self._gather(len(self.stepper), region, blocks) for region in regions]
        return [torch.from_numpy(part[: self.channels])[None] for part in values]

    def decode(self, latents: Tensor, region: Region, block: Region) -> NDArray[np.uint8]:
        """The pixels, uint8 (height, width, channels), of blocks of cells. latents: float (1, C, rows, columns) of a
        region that holds `decoded_from` them.
        """
        rows, columns = (block.y, block.y + block.height), (block.x, block.x + block.width)
        seen, begin = latents.to(self.denoiser.device), (region.y, region.x)
        pixels: NDArray[np.uint8] = to_bytes(
            self.denoiser.decode_part(seen, begin, self.canvas, rows, columns, self.side)
        )[0]
        return pixels

    def in_blocks(self, region: Region) -> Region:
        """The whole blocks of cells that hold a region of pixels."""
        side = self.side * self.factor
        top, left = region.y // side, region.x // side
        bottom, right = -(-(region.y + region.height) // side), -(-(region.x + region.width) // side)
        return Region(top, left, bottom - top, right - left).scaled(self.side)

    def _decode(self, regions: Sequence[Region], stop: Callable[[], bool]) -> list[NDArray[np.uint8]]:
        """As `pictures`, out of blocks of latents that are decoded."""
        wholes = [self.in_blocks(region) for region in regions]
        places = {place for whole in wholes for place in self._places(whole)}
        pixels = {place: self._decoded[place] for place in places if place in self._decoded}
        missing = sorted(places - pixels.keys())
        blocks = {place: Region(place[0] * self.side, place[1] * self.side, self.side, self.side) for place in missing}
        outers = {place: decoded_from(self.denoiser, blocks[place], self.canvas, self.side) for place in missing}
        for place, latents in zip(missing, self.finished([outers[p] for p in missing], stop), strict=True):
            pixels[place] = self.decode(latents, outers[place], blocks[place])
        for place in places:  # the last used last
            self._decoded[place] = pixels[place]
            self._decoded.move_to_end(place)
        most = _DECODED_BYTES // ((self.side * self.factor) ** 2 * self.denoiser.picture.channels)
        while len(self._decoded) > most:
            self._decoded.popitem(last=False)
        found = []
        for region, whole in zip(regions, wholes, strict=True):
            rows = range(whole.y // self.side, (whole.y + whole.height) // self.side)
            columns = range(whole.x // self.side, (whole.x + whole.width) // self.side)
            joined = np.concatenate([np.concatenate([pixels[r, c] for c in columns], axis=1) for r in rows])
            inside = region.within(whole.scaled(self.factor))
            found.append(np.ascontiguousarray(joined[inside]))
        return found

    @property
    def denoiser(self) -> NoisePredictor:
        """What paints it."""
        return self.stepper.denoiser

    def trajectory(self, region: Region, stop: Callable[[], bool] = lambda: False) -> list[Tensor]:
        """What every step leaves of a region, float (1, kept channels, height, width) each.

        Where the region has been looked at, the cache has most of it. Raises Stopped as `pictures`.
        """
        found: list[Tensor] = []
        for end in reversed(self._ends()):
            found += self._between(len(found), end, region, stop)
            blocks = self._finished(self._places(region), stop, end)
            found.append(torch.from_numpy(self._gather(end, region, blocks))[None])
        return found

    def _between(self, begin: int, end: int, region: Region, stop: Callable[[], bool]) -> list[Tensor]:
        """What the steps leave of a region that come between two that are kept in blocks."""
        parts = [region]  # what each step must lead to, from the last one
        for _ in range(end - begin - 2):
            parts.append(with_halo(self.denoiser, parts[-1], self.canvas))
        if end - begin < 2:
            return []
        largest, x = with_halo(self.denoiser, parts[-1], self.canvas), None
        if begin > 0:
            blocks = self._finished(self._places(largest), stop, begin)
            x = torch.from_numpy(self._gather(begin, largest, blocks))[None].to(self.denoiser.device)
        seen, found = self._told(largest, stop), []
        for step, part in zip(range(begin, end - 1), reversed(parts), strict=True):
            rows, columns = with_halo(self.denoiser, part, self.canvas).within(largest)
            here = None if seen is None else seen[..., rows, columns]
            x = step_region(self.stepper, step, self.seed, part, self.canvas, x, condition=here)
            rows, columns = region.within(part)
            found.append(x[..., rows, columns].cpu())
        return found

    def _ends(self, last: int | None = None) -> list[int]:
        """The steps after which blocks are kept, from the last one."""
        ends = range(len(self.stepper), 0, -self._together)
        return [end for end in ends if last is None or end <= last]

    def _places(self, region: Region) -> set[Place]:
        """The blocks that hold a region."""
        rows, columns = (
            range(first // self.side, -(-(first + count) // self.side))
            for first, count in ((region.y, region.height), (region.x, region.width))
        )
        return {(row, column) for row in rows for column in columns}

    def _finished(self, places: set[Place], stop: Callable[[], bool], last: int | None = None) -> dict[Block, Values]:
        """The finished blocks at these places, or those after `last` steps, computed where the cache lacks them."""
        ends = self._ends(last)
        missing: dict[int, set[Place]] = {}
        known: dict[int, dict[Block, Values]] = {0: {}}
        wanted = places
        for end in ends:  # from the last: what the cache has, and what must be computed
            found = {place: self.cache.get(Block(end, *place)) for place in wanted}
            known[end] = {Block(end, *place): values for place, values in found.items() if values is not None}
            missing[end] = {place for place, values in found.items() if values is None}
            wanted = self._with_neighbours(missing[end])
        for end, begin in reversed(list(zip(ends, [*ends[1:], 0], strict=True))):
            for rectangle in _rectangles(missing[end], self.side):
                if stop():
                    raise Stopped
                known[end] |= self._advance(begin, end, rectangle, known[begin], stop)
            del known[begin]
        return known[ends[0]]

    def _with_neighbours(self, places: set[Place]) -> set[Place]:
        most = (self.canvas[0] - 1) // self.side
        near = {(row + down, column + right) for row, column in places for down in (-1, 0, 1) for right in (-1, 0, 1)}
        return {(row, column) for row, column in near if 0 <= row <= most and 0 <= column <= most}

    def _told(self, region: Region, stop: Callable[[], bool]) -> Tensor | None:
        """What a region is told of the level before; None of a model that is told nothing."""
        if self._before is None:
            return None
        slide, denoiser = self._before, self.stepper.denoiser
        assert denoiser.condition is not None

        def read(coarse: Region) -> Tensor:
            (pixels,) = slide.pictures([coarse], stop)
            return to_float(torch.from_numpy(pixels.transpose(2, 0, 1).copy()))[None]

        return told(denoiser.condition, read, self.seed, region, self.canvas).to(denoiser.device)

    def _advance(
        self, begin: int, end: int, region: Region, before: dict[Block, Values], stop: Callable[[], bool]
    ) -> dict[Block, Values]:
        """The blocks of a region after `end` steps, from those after `begin` steps; they go into the cache."""
        canvas, x = self.canvas, None
        parts = [region]  # what each step must lead to, from the last one
        for _ in range(end - begin - 1):
            parts.append(with_halo(self.stepper.denoiser, parts[-1], canvas))
        if begin > 0:
            values = self._gather(begin, with_halo(self.stepper.denoiser, parts[-1], canvas), before)
            x = torch.from_numpy(values)[None].to(self.stepper.denoiser.device)
        largest = with_halo(self.stepper.denoiser, parts[-1], canvas)
        seen = self._told(largest, stop)
        for step, part in zip(range(begin, end), reversed(parts), strict=True):
            rows, columns = with_halo(self.stepper.denoiser, part, canvas).within(largest)
            here = None if seen is None else seen[..., rows, columns]
            x = step_region(self.stepper, step, self.seed, part, canvas, x, condition=here)
        assert x is not None
        values = x[0].float().cpu().numpy()
        found: dict[Block, Values] = {}
        for row, column in self._places(region):
            y, left = row * self.side - region.y, column * self.side - region.x
            block = Block(end, row, column)
            found[block] = np.ascontiguousarray(values[:, y : y + self.side, left : left + self.side])
            self.cache.put(block, found[block])
        return found

    def _gather(self, steps: int, region: Region, blocks: dict[Block, Values]) -> Values:
        """The kept values of a region, float32 (kept channels, height, width), out of the blocks that hold it."""
        side, places = self.side, self._places(region)
        top, left = min(row for row, _ in places), min(column for _, column in places)
        bottom, right = max(row for row, _ in places) + 1, max(column for _, column in places) + 1
        whole = Region(top * side, left * side, (bottom - top) * side, (right - left) * side)
        values = np.empty((self._kept, *whole.size), np.float32)
        for row, column in places:
            rows, columns = Region(row * side, column * side, side, side).within(whole)
            values[:, rows, columns] = blocks[Block(steps, row, column)]
        rows, columns = region.within(whole)
        return np.ascontiguousarray(values[:, rows, columns])


class EndlessLevel(NamedTuple):
    """A level of an endless picture: what computes it, and how many pixels of the finest are one of it, on a side."""

    slide: EndlessSlide
    scale: int


def endless_levels(
    model: Model, seed: int = 0, sampler: str | None = None, steps: int | None = None, cache_bytes: int = 2**30
) -> list[EndlessLevel]:
    """The levels of an endless slide, finest first: of a pyramid all of its own, of another model one.

    Raises InputError as `EndlessSlide`.
    """
    if not isinstance(model, Ladder):
        return [EndlessLevel(EndlessSlide(model, seed, sampler, steps, cache_bytes), 1)]
    found: list[EndlessLevel] = []
    (seed,) = Key.of([seed]).seeds
    for number in range(len(model)):
        before, scale = found[0].slide if found else None, model.scale(number)
        own, share = level_seed(seed, number), cache_bytes // len(model)
        slide = EndlessSlide(
            model[number], own, sampler, steps, share, before, model.sizes((CANVAS, CANVAS))[number][0]
        )
        found.insert(0, EndlessLevel(slide, scale))
    return found


def _rectangles(places: set[Place], side: int) -> Iterator[Region]:
    """Disjoint rectangles of whole blocks, of limited size, that hold exactly these: few, though not the fewest."""
    left, most = set(places), max(1, _LARGEST // side)
    while left:
        row, column = min(left)
        right = column + 1
        while (row, right) in left and right - column < most:
            right += 1
        bottom, span = row + 1, range(column, right)
        while bottom - row < most and all((bottom, c) in left for c in span):
            bottom += 1
        left -= {(r, c) for r in range(row, bottom) for c in span}
        yield Region(row * side, column * side, (bottom - row) * side, len(span) * side)
