"""A pyramid model: a ladder of denoisers, coarsest first, each told the picture that the one before has painted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from morphogen.core.errors import InputError
from morphogen.core.images import as_stored
from morphogen.core.keys import Key
from morphogen.core.model import Batch, Callback, ImageConfig, Model, StepInfo
from morphogen.core.random import Purpose, mix
from morphogen.core.request import Precision, PrecisionChoice, SamplingRequest
from morphogen.core.validation import table, validate
from morphogen.diffusion.condition import in_sampling, of_map, shrink_map
from morphogen.diffusion.denoiser import Denoiser
from morphogen.diffusion.request import ON_CANVAS, resolve
from morphogen.diffusion.sampling import sample

Size = tuple[int, int]
_LARGEST = 512


class Ladder(Model):
    """Levels from the coarsest to the finest. The first is told nothing; each other one how its image looks from afar.

    levels: denoisers of pixels with the same channels and labels, all but the first with a condition. size: height and
    width of what it paints by default; where none is given, as large as what its coarsest level has learnt
    from, at most 512.
    Raises ValueError where they do not belong together.
    """

    family: ClassVar[str] = "pyramid"
    takes_labels: ClassVar[bool] = True

    def __init__(self, levels: Sequence[Denoiser], size: Size | None = None) -> None:
        super().__init__()
        _check(levels)
        self.levels = nn.ModuleList(levels)
        finest, scale = levels[-1].image, self.scale(0)
        coarsest = levels[0].image
        height, width = size or (min(side * scale, _LARGEST) for side in (coarsest.height, coarsest.width))
        self.image = finest.model_copy(update={"height": height, "width": width})
        self.labels = levels[0].labels

    def __len__(self) -> int:
        return len(self.levels)

    def __getitem__(self, number: int) -> Denoiser:
        level = self.levels[number]
        assert isinstance(level, Denoiser)
        return level

    def factor(self, number: int) -> int:
        """Pixels of a level, on a side, that are one of the level before."""
        condition = self[number].condition
        assert condition is not None
        return condition.factor

    def scale(self, number: int) -> int:
        """Pixels of the finest level, on a side, that are one of a level."""
        scale = 1
        for finer in range(number + 1, len(self)):
            scale *= self.factor(finer)
        return scale

    def sizes(self, size: Size) -> list[Size]:
        """Height and width at every level of an image (height, width) of the finest."""
        found = [size]
        for number in range(len(self) - 1, 0, -1):
            condition = self[number].condition
            assert condition is not None
            found.insert(0, condition.coarse(found[0]))
        return found

    def key(self, key: Key, number: int) -> Key:
        """The key of a level, in its own pixels: every level has random numbers of its own. key: of the whole."""
        return replace(key, seeds=tuple(level_seed(seed, number) for seed in key.seeds))

    def up_to(self, number: int) -> Model:
        """The model that paints the coarser levels up to a number, counted from 0. Raises InputError beyond the last.

        The coarsest alone is a denoiser of its own.
        """
        if not 0 <= number < len(self):
            raise InputError(f"there is no level {number}; this model has the levels 0 (coarsest) to {len(self) - 1}")
        return Ladder([self[k] for k in range(number + 1)]).eval()

    # ------------------------------------------------------------------------------------------ the contract

    @classmethod
    def from_config(cls, config: Mapping[str, object], where: str) -> Self:
        table(config, where, ("family", "levels", "image"))
        found = config.get("levels")
        if not isinstance(found, list) or not found:
            raise InputError(f"{where}: levels should be a list of models, coarsest first")
        levels = []
        for number, settings in enumerate(found):
            place = f"{where}: levels.{number}"
            family = Model.families.get(str(table(settings, place).get("family")))
            if family is None or not issubclass(family, Denoiser):
                raise InputError(f"{place}: family should be a denoiser's, not {settings.get('family')!r}")
            levels.append(family.from_config(settings, place))
        image = validate(ImageConfig, config["image"], f"{where}: image") if "image" in config else None
        try:
            return cls(levels, None if image is None else (image.height, image.width))
        except ValueError as error:
            raise InputError(f"{where}: {error}") from None

    def config_dict(self) -> dict[str, object]:
        levels = [self[k].config_dict() for k in range(len(self))]
        return {"family": self.family, "image": self.image.settings(), "levels": levels}

    def training_loss(self, batch: Batch, key: Key) -> Tensor:
        raise InputError("a pyramid is trained level by level: morphogen train DATA --levels N")

    def generate(
        self,
        key: Key,
        size: Size | None = None,
        request: SamplingRequest = SamplingRequest(),
        labels: Tensor | None = None,
        callback: Callback | None = None,
        maps: Tensor | None = None,
    ) -> Tensor:
        request = self.resolve(request)
        if maps is not None:
            self.check_maps(maps, len(key), size)
        painted: Tensor | None = None
        for number, there in enumerate(self.sizes(size or (self.image.height, self.image.width))):
            told = self.condition(number, painted, key, there, self.map_at(number, maps))
            painted = sample(
                self[number],
                self.key(key, number),
                there,
                request,
                labels=labels,
                condition=told,
                callback=of_all_levels(callback, number, len(self)),
            )
        assert painted is not None
        return painted

    def condition(
        self, number: int, painted: Tensor | None, key: Key, size: Size, maps: Tensor | None = None
    ) -> Tensor | None:
        """What a level is told of what the level before has painted (B, C, h, w), as a picture stores it, and of its
        map uint8 (B, *size). None where it is told nothing.

        key: of the whole. size: height and width at this level.
        """
        config = self[number].condition
        if config is None or painted is None:
            if config is None or maps is None:
                return None
            return of_map(config, maps, torch.empty(len(maps), 1, *size, device=self.device))
        return in_sampling(config, as_stored(painted), self.key(key, number), size, maps=maps)

    def map_at(self, number: int, maps: Tensor | None) -> Tensor | None:
        """Maps uint8 (B, H, W) of the finest level as a level is told them."""
        return None if maps is None else shrink_map(maps, self.scale(number))

    @property
    def classes(self) -> Mapping[str, str | None]:
        return self[len(self) - 1].classes

    def resolve(self, request: SamplingRequest) -> SamplingRequest:
        return [resolve(request, self[k], ON_CANVAS) for k in range(len(self))][-1]

    @property
    def minimum_size(self) -> int:
        return max((self[k].minimum_size - 1) * self.scale(k) + 1 for k in range(len(self)))

    @property
    def receptive_range(self) -> int | None:
        """Of its levels together, in pixels of the finest, and as much as the enlarging between them reads."""
        reach = 0
        for number in range(len(self)):
            own = self[number].receptive_range
            if own is None:
                return None
            reach += (own + int(number > 0)) * self.scale(number)
        return reach

    @property
    def cell_size(self) -> int:
        return self[len(self) - 1].cell_size

    @property
    def inexact_in_tiles(self) -> str | None:
        for number in range(len(self)):
            reason = self[number].inexact_in_tiles
            if reason is not None:
                return f"of its level {number}, {reason}"
        return None

    def compute_in(self, precision: PrecisionChoice | None = "auto") -> str | None:
        reasons = [self[k].compute_in(precision) for k in range(len(self))]
        return next((reason for reason in reasons if reason is not None), None)

    @property
    def precision(self) -> Precision:
        return self[len(self) - 1].precision

    @property
    def uses_kernel(self) -> bool:
        return all(self[k].uses_kernel for k in range(len(self)))

    def compile_steps(self) -> None:
        for number in range(len(self)):
            self[number].compile_steps()

    def deployed_parameter_count(self) -> int:
        return sum(self[k].deployed_parameter_count() for k in range(len(self)))


def level_seed(seed: int, number: int) -> int:
    """The seed of what a level paints, of the seed of the whole."""
    return mix(seed, Purpose.LEVEL, number)


def of_all_levels(callback: Callback | None, number: int, levels: int) -> Callback | None:
    """The callback of one level: told the steps of all levels, as if they were one run."""
    if callback is None:
        return None

    def report(now: StepInfo) -> Tensor | None:
        return callback(replace(now, step=number * now.steps + now.step, steps=levels * now.steps))

    return report


def _check(levels: Sequence[Denoiser]) -> None:
    first = levels[0]
    if first.condition is not None and first.condition.has_picture:
        raise ValueError("level 0 is told a picture, but nothing is painted before the coarsest level")
    for number, level in enumerate(levels):
        if level.latents is not None:
            raise ValueError(f"level {number} works in latents; levels are models of pixels")
        if number and (level.condition is None or not level.condition.has_picture):
            raise ValueError(f"level {number} is not told what the level before has painted")
        if level.classes != first.classes:
            raise ValueError(f"level {number} paints from other maps than level 0: they are of different trainings")
        if level.image.channels != first.image.channels:
            raise ValueError(
                f"level {number} has images of {level.image.channels} channels, and level 0 of {first.image.channels}"
            )
        if level.labels.names and level.labels != first.labels:
            raise ValueError(f"level {number} has other labels than level 0: they are of different trainings")
        if number and level.image.mpp is not None and first.image.mpp is not None:
            _check_scale(levels, number)


def _check_scale(levels: Sequence[Denoiser], number: int) -> None:
    before, level = levels[number - 1].image.mpp, levels[number]
    assert level.condition is not None and level.image.mpp is not None
    wanted = level.image.mpp * level.condition.factor
    if before is not None and not 0.97 < before / wanted < 1.03:
        raise ValueError(
            f"level {number} paints at {level.image.mpp:g} micrometres a pixel and is told pictures at {wanted:g}, but "
            f"level {number - 1} paints at {before:g}: they are of different trainings"
        )
