"""A run with `--levels N`: a run of its own for every level, coarsest first, in RUN/levels, and the pyramid they make.

A level is trained by the same loop as any model, and resumes like it. It is told real coarser pictures, noised, so no
level waits for another one to be good: more time for the run is more time for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from morphogen.core.condition import ConditionConfig
from morphogen.core.errors import InputError
from morphogen.core.images import sample_grid, save_png, to_pil
from morphogen.core.keys import Key
from morphogen.core.model import ImageConfig
from morphogen.core.notices import say_once
from morphogen.core.validation import validate
from morphogen.data.config import DataConfig
from morphogen.data.dataset import ImageDataset
from morphogen.data.fitting import Fitting
from morphogen.data.formats import BadImage
from morphogen.data.source import PatchSource, Source
from morphogen.data.sources import open_source
from morphogen.diffusion.denoiser import Denoiser
from morphogen.diffusion.ladder import Ladder
from morphogen.models import PRESETS, family_class, find_preset, load_model
from morphogen.training.config import RunConfig, widened
from morphogen.training.export import export
from morphogen.training.latent_choice import PIXELS
from morphogen.training.recipes import resolve
from morphogen.training.run_folder import RunFolder
from morphogen.training.state import TrainingFacts

SMALLEST = 16
FEW = 50
"""Independent patches below which a level repeats what it has seen rather than learns from it."""
_GRID, _GRID_SIDE = 4, 512  # samples of a pyramid at the end, and their largest height and width
_LOOKED_AT = 256  # images whose sizes are looked at


@dataclass(frozen=True)
class Level:
    """A level of a run. config: of its own run. scale: pixels of the finest level, on a side, that are one of it.
    patches: about how many patches of its size the images hold that share no pixel.
    """

    config: RunConfig
    scale: int
    patches: float

    def described(self, number: int) -> str:
        """In words for the user."""
        height, width = self.config.data.size
        return f"level {number} at 1/{self.scale}: {height}x{width}, about {self.patches:,.0f} independent patches"


def find_levels(config: RunConfig) -> list[Level]:
    """The levels of a run, coarsest first. Raises InputError where its images are too small for them."""
    source = open_source(config.data)
    fitting, count = Fitting.of(config.data, source), config.levels.count
    sizes = [] if fitting.fit != "random" else _picture_sizes(source, fitting)
    found = []
    for number in range(count):
        scale = int(config.levels.factor ** (count - 1 - number))
        data, patches = _level_data(config, fitting, sizes, scale, len(source))
        found.append(Level(_level_run(config, data, number), scale, patches))
    return found


def say_levels(levels: Sequence[Level], quiet: bool = False) -> None:
    """Say once what each level learns from, and which have little."""
    for number, level in enumerate(levels):
        if not quiet:
            say_once(level.described(number))
        if level.patches < FEW:
            say_once(
                f"note: level {number} has few independent patches: below {FEW} it repeats its images rather than "
                "learns from them; more images, or fewer --levels, help"
            )


def assemble(config: RunConfig, folder: RunFolder) -> Ladder:
    """The pyramid of the levels that were trained."""
    levels = []
    for number in range(config.levels.count):
        level = load_model(folder.level(number))
        assert isinstance(level, Denoiser)
        levels.append(level)
    try:
        return Ladder(levels).eval()
    except ValueError as error:
        raise InputError(f"{folder.levels}: {error}") from None


def finer_preset(config: RunConfig) -> str:
    """The preset of the levels above the coarsest: its own, or where that sees the whole image a local one."""
    if config.levels.finer is not None:
        return config.levels.finer
    if find_preset(config.model).family != "fourier-diff-nca":
        return config.model
    return config.model.removeprefix("fourier-") if config.model.removeprefix("fourier-") in PRESETS else "diff-nca"


def _level_run(config: RunConfig, data: DataConfig, number: int) -> RunConfig:
    count, training = config.levels.count, config.training
    minutes = None if training.minutes is None else training.minutes / count
    preset = config.model if number == 0 else finer_preset(config)
    if not family_class(find_preset(preset).family).predicts_noise:
        raise InputError(f"--levels: {preset} predicts no noise, which a level does; use a diffusion model")
    settings = config.model_dump(mode="json", exclude={"levels"})
    settings["data"] = data.model_dump(mode="json")
    settings["training"] = {**settings["training"], "minutes": minutes}
    if preset != config.model:  # with its own recipe
        budget = {"minutes": minutes} if minutes is not None else {"steps": training.steps}
        own = {name: settings["training"][name] for name in ("seed", "saving", "devices")}
        flags = {"model": preset, "recipe": config.recipe, "data": settings["data"], "training": {**budget, **own}}
        flags["autoencoder"] = PIXELS
        settings = resolve(flags, where="levels").model_dump(mode="json", exclude={"levels"})
    if number > 0:
        image = ImageConfig(channels=data.channels)
        told = ConditionConfig.of_picture(image, config.levels.factor)
        settings["condition"] = told.settings()
        settings["architecture"] = widened(find_preset(preset), settings["architecture"], told.channels)
    return validate(RunConfig, settings, "levels")


def _level_data(
    config: RunConfig, fitting: Fitting, sizes: list[tuple[float, float]], scale: int, images: int
) -> tuple[DataConfig, float]:
    """The images of a level, and how many of them (or of their patches) are independent."""
    data, (height, width) = config.data, config.data.size
    named = f"--levels {config.levels.count} with --factor {config.levels.factor}"
    if fitting.fit != "random":
        if height % scale or width % scale or min(height, width) // scale < SMALLEST // 2:
            raise InputError(
                f"{named}: the coarsest level of images of {height}x{width} is 1/{scale} of them, which should be "
                f"whole pixels and at least {SMALLEST // 2}x{SMALLEST // 2}; use fewer levels or another --size"
            )
        return data.model_copy(update={"size": (height // scale, width // scale)}), float(images)
    if not sizes:
        return data, 0.0
    smallest = [min(size[axis] for size in sizes) / scale for axis in (0, 1)]
    if min(smallest) < SMALLEST:
        raise InputError(
            f"{named}: at 1/{scale} the smallest image of {data.source} is {smallest[0]:.0f}x{smallest[1]:.0f} "
            f"(height x width), and a level needs {SMALLEST}x{SMALLEST}; use fewer levels, a smaller factor, or larger "
            "images"
        )
    size = tuple(int(min(side, most // 8 * 8)) for side, most in zip((height, width), smallest, strict=True))
    area = sum(high * wide for high, wide in sizes) / scale**2 / len(sizes) * images
    scaled: dict[str, object] = {"size": size}
    if scale > 1:
        scaled |= {"mpp": data.mpp * scale} if data.mpp is not None else {"downscale": data.downscale * scale}
    return data.model_copy(update=scaled), area / (size[0] * size[1])


def _picture_sizes(source: Source, fitting: Fitting) -> list[tuple[float, float]]:
    """Height and width at the finest level of images at even distances; those that cannot be read are left out."""
    found, count = [], min(len(source), _LOOKED_AT)
    for k in range(count):
        i = k * len(source) // count
        try:
            if isinstance(source, PatchSource):
                (rows, columns), (down, right) = source.size(i, b""), source.shrinking(i)
                found.append((rows / down, columns / right))
            else:
                height, width = fitting.shrunk_size(source.size(i, source.content(i)))
                found.append((float(height), float(width)))
        except BadImage:
            continue
    return found


def finish(
    config: RunConfig, folder: RunFolder, facts: TrainingFacts, data: ImageDataset, device: torch.device
) -> None:
    """Save the pyramid of the levels that were trained, with its card and a grid of samples.

    facts: of the finest level, with the steps' time of all. data: of the coarsest.
    """
    ladder = assemble(config, folder)
    export(folder, config, ladder, facts, data)
    count = min(_GRID, config.training.saving.sample_images)
    if not count:
        return
    ladder.to(device).compute_in("auto" if config.training.devices.kernel == "auto" else None)
    largest = max(ladder.minimum_size, _GRID_SIDE)
    size = (min(ladder.image.height, largest), min(ladder.image.width, largest))
    rows = data.spread_labels(count).to(device) if len(ladder.labels) else None
    with torch.no_grad():
        painted = ladder.generate(Key.of(range(count)), size, labels=rows)
    name = f"step-{facts['step']:08d}.png"
    folder.samples.mkdir(exist_ok=True)
    save_png(folder.samples / name, sample_grid(to_pil(painted)), {"step": facts["step"], "seeds": list(range(count))})
