"""The levels of a pyramid model on one slide: each has a canvas of its own, and a finer one reads the coarser one's.

The finest level's canvas lies in the folder of the work, those of the coarser ones in folders inside it, which stay
until the slide is in place. A level is begun when the one before is painted.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from morphogen.core.condition import ConditionConfig
from morphogen.core.images import to_float
from morphogen.core.keys import Key
from morphogen.core.model import Model
from morphogen.diffusion.condition import in_sampling, of_map, reads
from morphogen.diffusion.denoiser import Denoiser
from morphogen.diffusion.ladder import Ladder, level_seed
from morphogen.pyramids.region import Region
from morphogen.slides.canvas import Canvas
from morphogen.slides.manifest import SlideManifest
from morphogen.slides.maps import read_written
from morphogen.tasks.checks import need_painter


def find_painters(model: Model, task: str) -> list[Denoiser]:
    """What paints a slide: the levels of a pyramid, coarsest first, or the one model. Raises InputError as
    `need_painter`.
    """
    return [model[k] for k in range(len(model))] if isinstance(model, Ladder) else [need_painter(model, task)]


def level_folder(work: Path, number: int, levels: int) -> Path:
    """Where the work on a level lies. work: the folder of the slide's work."""
    return work if number == levels - 1 else work / f"level-{number}"


def level_manifests(manifest: SlideManifest, model: Model, tiles: list[int]) -> list[SlideManifest]:
    """The manifests of all levels, coarsest first; the last is that of the slide itself. tiles: each level's."""
    if not isinstance(model, Ladder):
        return [manifest]
    coarser = [
        manifest.model_copy(update={"size": size, "tile": tile, "level": number, "pixel_size": None})
        for number, (size, tile) in enumerate(zip(model.sizes(manifest.size)[:-1], tiles, strict=True))
    ]
    return [*coarser, manifest]


class SlideCondition:
    """What a slide, or a level of one, is told: the finished canvas of the level before, and its map.

    folder: of the level's own work. model: of the whole slide.
    """

    def __init__(self, folder: Path, manifest: SlideManifest, model: Model) -> None:
        self._folder, self._size, self._has_map = folder, manifest.size, manifest.map_sha256 is not None
        number = manifest.level or 0
        self._config = find_painters(model, "painting slides")[number].condition
        self._seed, self._before = level_seed(manifest.seed, number), None
        if isinstance(model, Ladder) and number > 0:
            work = folder if number == len(model) - 1 else folder.parent
            self._before = Canvas.painted_in(level_folder(work, number - 1, len(model)))

    def of(self, region: Region) -> Tensor | None:
        """The condition (1, K, height, width) of a region of the level; None where nothing is told."""
        if self._config is None:
            return None
        maps = read_written(self._folder, region) if self._has_map else None
        if self._before is None:
            return None if maps is None else of_map(self._config, maps, torch.empty(1, 1, *region.size))
        return told(self._config, self._read, self._seed, region, self._size, maps)

    def _read(self, region: Region) -> Tensor:
        assert self._before is not None
        found = self._before[:, region.rows, region.columns]
        return to_float(torch.from_numpy(np.ascontiguousarray(found)))[None]


def told(
    config: ConditionConfig,
    read: Callable[[Region], Tensor],
    seed: int,
    region: Region,
    canvas: tuple[int, int],
    maps: Tensor | None = None,
) -> Tensor:
    """The condition (1, K, height, width) of a region of a level of a canvas (height, width).

    read: float (1, C, h, w) of a region of the finished picture of the level before. seed: the level's. maps: uint8
    (1, height, width) of the region.
    """
    (top, bottom), (left, right) = (
        reads((first, first + count), config.factor, length)
        for first, count, length in zip((region.y, region.x), region.size, config.coarse(canvas), strict=True)
    )
    picture = read(Region(top, left, bottom - top, right - left))
    key = Key((seed,), origins=((region.y, region.x),), canvas=canvas)
    return in_sampling(config, picture, key, region.size, at=(top, left), maps=maps)
