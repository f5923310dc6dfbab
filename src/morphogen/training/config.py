"""A run's whole configuration as one tree of frozen, validated tables: what `run.json` holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from morphogen.core.condition import LARGEST_FACTOR, SMALLEST_FACTOR, Classes, ConditionConfig
from morphogen.core.errors import InputError
from morphogen.core.model import ImageConfig, LabelConfig
from morphogen.core.validation import validate
from morphogen.data.config import DataConfig
from morphogen.data.labels import checked_labels
from morphogen.data.sources import open_source
from morphogen.diffusion.config import DiffusionConfig
from morphogen.diffusion.latents import LEARN, Autoencoder, OwnAutoencoder, learned_factor, open_autoencoder
from morphogen.diffusion.learned_autoencoder import AutoencoderConfig, AutoencoderSettings, LearnedAutoencoder
from morphogen.models import Preset, family_class, find_preset

Recipe = Literal["default", "paper"]
DEFAULT_MODEL = "diff-nca-small"
Beta = Annotated[float, Field(ge=0, lt=1)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class OptimizerConfig(_Table):
    """How a gradient changes the weights."""

    name: Literal["adam", "muon"] = Field("adam", description="muon: for matrices, and Adam for all else")
    learning_rate: float = Field(1.6e-3, gt=0, le=1, description="its largest value")
    betas: tuple[Beta, Beta] = Field((0.9, 0.99), description="Adam's two decay rates")
    epsilon: float = Field(1e-8, gt=0, le=1, description="Adam's epsilon")
    clip_gradient: float | None = Field(None, gt=0, description="largest norm of the whole gradient")


class ScheduleConfig(_Table):
    """How the learning rate changes over the steps."""

    warmup: int = Field(0, ge=0, description="steps over which the learning rate rises from zero")
    decay: Literal["constant", "exponential", "inverse_sqrt"] = Field(
        "exponential", description="exponential: times decay_rate each step; inverse_sqrt: from decay_after on"
    )
    decay_rate: float = Field(0.9999, gt=0, le=1, description="of exponential decay: the factor of each step")
    decay_after: int = Field(2000, ge=1, description="of inverse_sqrt decay: the step at which it begins")
    cooldown: float = Field(
        0.0, ge=0, le=0.9, description="share of the budget, at its end, over which the learning rate falls to zero"
    )


class AveragingConfig(_Table):
    """The average of the weights (EMA) that a run hands out."""

    kind: Literal["constant", "relative"] = Field(
        "constant", description="constant: decay a step; relative: over a share `width` of all steps so far"
    )
    decay: float = Field(0.99, ge=0, lt=1, description="of the kind constant: the average's factor in each step")
    width: float = Field(0.1, gt=0.005, le=0.25, description="standard deviation of the average, relative to time")


class SavingConfig(_Table):
    """Logs, samples and checkpoints. Intervals count steps."""

    checkpoint_every: int = Field(500, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(2, ge=1, le=10_000, description="newest checkpoints that are kept")
    validate_every: int = Field(500, ge=1, description="steps between measurements on held-out images")
    validation_images: int = Field(64, ge=1, le=65_536, description="held-out images that are measured on")
    sample_every: int = Field(1000, ge=1, description="steps between sample grids")
    sample_images: int = Field(8, ge=0, le=256, description="samples in a grid; 0 for none")
    tensorboard: bool = Field(False, description="also write TensorBoard files; needs morphogen[tensorboard]")


class DevicesConfig(_Table):
    """The devices of a run, and its precision."""

    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="auto: a GPU if there is one")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "float32", description="what products are computed in; auto: bfloat16 where the device has it"
    )
    kernel: Annotated[Literal["auto", "off"], BeforeValidator(lambda v: "off" if v is False else v)] = Field(
        "auto", description="auto: run the automaton by the fast kernel where this machine can; off: by PyTorch"
    )
    compile: bool = Field(False, description="where the kernel does not run, compile the NCA step with PyTorch")
    recompute: Literal["auto", "always", "never"] = Field(
        "auto", description="compute activations again in the backward pass instead of keeping them, to save memory"
    )
    workers: int = Field(0, ge=0, le=256, description="processes that load data; 0 loads in the training process")


class TrainingConfig(_Table):
    """How the weights are found. One step is one batch."""

    steps: int | None = Field(None, ge=1, le=100_000_000, description="stop after this many steps")
    minutes: float | None = Field(None, gt=0, le=1_000_000, description="stop after this many minutes of training")
    batch_size: int = Field(16, ge=1, le=65_536, description="images in a step, over all devices together")
    seed: int = Field(0, ge=0, le=2**64 - 1, description="fixes initial weights, data order and noise")
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    averaging: AveragingConfig = AveragingConfig()
    saving: SavingConfig = SavingConfig()
    devices: DevicesConfig = DevicesConfig()

    @model_validator(mode="after")
    def _has_an_end(self) -> TrainingConfig:
        if self.steps is not None and self.minutes is not None:
            raise ValueError("give either steps or minutes, not both")
        return self


class LatentsConfig(AutoencoderSettings):
    """The autoencoder of `--autoencoder learn:4`, and its training, which comes first."""

    share: float = Field(
        0.25,
        gt=0,
        le=0.9,
        description="of training.minutes, or how many steps in relation to training.steps, which then follow",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="what training computes products in; the latents and the images are always in float32"
    )


class LevelsConfig(_Table):
    """A pyramid: a level paints the whole coarsely, and every further one is told what the one before has painted."""

    count: int = Field(1, ge=1, le=6, description="levels; 1 is a single model")
    factor: int = Field(
        4, ge=SMALLEST_FACTOR, le=LARGEST_FACTOR, description="pixels, on a side, that are one of the level before"
    )
    finer: str | None = Field(
        None,
        description="the preset of all levels but the coarsest: by default the model's own, or the Diff-NCA of its "
        "size where that is a FourierDiff-NCA",
    )


class RunConfig(_Table):
    """Everything that decides a run."""

    model: str = Field(DEFAULT_MODEL, description="the preset")
    recipe: Recipe = Field("default", description="default: ours; paper: the published training")
    init: str | None = Field(None, description="the run or model that the weights start from")
    architecture: dict[str, object] = Field({}, description="settings that differ from the preset's")
    diffusion: DiffusionConfig = DiffusionConfig()
    autoencoder: str | None = Field(
        None,
        description="work in latents: learn:2, learn:4 or learn:8 (learnt on the images first), the folder of one that "
        "was, a folder of diffusers, a hub id, or onnx:ENCODER,DECODER",
    )
    latents: LatentsConfig = LatentsConfig()
    levels: LevelsConfig = LevelsConfig()
    condition: ConditionConfig | None = Field(
        None, description="be told a coarser picture of each image: the run of a level, or a trained super-resolution"
    )
    data: DataConfig
    training: TrainingConfig = TrainingConfig()

    @model_validator(mode="after")
    def _learns_latents(self) -> RunConfig:
        if not self.learns_autoencoder and self.latents != LatentsConfig():
            raise ValueError(f"settings of latents are those of --autoencoder {LEARN}4; give it, or leave them out")
        return self

    @model_validator(mode="after")
    def _is_pyramid(self) -> RunConfig:
        if self.levels.count == 1 and self.levels != LevelsConfig():
            raise ValueError("settings of levels are those of --levels 2 or more; give it, or leave them out")
        if self.levels.count > 1 or (self.condition is not None and self.condition.has_picture):
            asked = f"--levels {self.levels.count}" if self.levels.count > 1 else "condition"
            for name, value in (("--autoencoder", self.autoencoder), ("--init", self.init)):
                if value is not None:
                    raise ValueError(f"{asked} works in pixels, from the beginning; leave {name} out")
        if self.condition is not None and not self.condition.has_picture and self.data.maps is None:
            raise ValueError("condition.kind is map, but there are no maps; give them with --maps")
        if self.levels.count > 1 and (self.data.maps or "").startswith("auto"):
            raise ValueError(f"maps are {self.data.maps}, which levels would find differently; leave --levels out")
        if self.levels.finer is not None:
            find_preset(self.levels.finer)
        if self.levels.count > 1 and self.condition is not None:
            raise ValueError("levels and condition are given both; a pyramid's levels have conditions of their own")
        return self

    @property
    def learns_autoencoder(self) -> bool:
        """Whether the run learns an autoencoder first."""
        return self.autoencoder is not None and self.autoencoder.startswith(LEARN)

    def on_device(self, device: str) -> RunConfig:
        """The same settings for a device: auto, cpu, cuda or mps."""
        devices = self.training.devices.model_copy(update={"device": device})
        return self.model_copy(update={"training": self.training.model_copy(update={"devices": devices})})

    def architecture_settings(self) -> dict[str, object]:
        """Every setting of the architecture, spelt out or not."""
        preset = find_preset(self.model)
        settings: BaseModel = validate(
            family_class(preset.family).config_class, {**preset.architecture, **self.architecture}, "architecture"
        )
        return settings.model_dump(mode="json")

    def read_labels(self) -> LabelConfig:
        """The labels of the data, for a family that takes any. Raises InputError where not all images have theirs, and
        where images without labels have no use.
        """
        family, unlabelled = find_preset(self.model).family, self.data.unlabelled
        takes_labels = family_class(family).takes_labels
        if unlabelled is not None and not takes_labels and family != LearnedAutoencoder.family:
            raise InputError(
                f"--unlabelled {unlabelled}: {self.model} takes no labels, so that all images are alike to it; put "
                "these among the others, or use a model that takes labels, such as geca-xs"
            )
        if self.data.labels == "none" or not takes_labels:
            return LabelConfig()
        labels = checked_labels(open_source(self.data))
        if unlabelled is not None and not labels.names:
            raise InputError(
                f"--unlabelled {unlabelled}: the images of {self.data.source} have no labels either; put all into one "
                "folder, or those with labels into a folder a class"
            )
        return labels

    def read_classes(self) -> Classes | None:
        """The classes of the maps of the data; None without maps. Raises InputError where the maps are not usable."""
        maps = None if self.data.maps is None else open_source(self.data).maps
        return None if maps is None else dict(maps.table)

    def open_autoencoder(self) -> Autoencoder | None:
        """The autoencoder of a run in latents, None for one in pixels; one that the run learns itself is as before the
        first step. Raises InputError where it cannot be had.
        """
        factor = learned_factor(self.autoencoder)
        if self.autoencoder is None or factor is None:
            return None if self.autoencoder is None else open_autoencoder(self.autoencoder)
        given = self.latents.model_dump(include=set(AutoencoderSettings.model_fields))
        own = AutoencoderConfig(factor=factor, **given)
        image = ImageConfig(height=8, width=8, channels=self.data.channels)  # it suits every factor; `grid` checks
        return OwnAutoencoder(LearnedAutoencoder(image, own), self.autoencoder)

    def model_settings(
        self,
        labels: LabelConfig | None = None,
        autoencoder: Autoencoder | None = None,
        classes: Classes | None = None,
    ) -> dict[str, object]:
        """The content of `config.json`. labels, classes: those of the data, of which a family that takes no labels, and
        the autoencoder that a run learns first, are not told.

        Raises InputError for a model or a size that cannot be with the autoencoder.
        """
        preset = find_preset(self.model)
        height, width = self.data.size
        image = ImageConfig(height=height, width=width, channels=self.data.channels)
        if not family_class(preset.family).predicts_noise:
            if autoencoder is not None:
                raise InputError(f"--autoencoder: {preset.family} works in pixels only; use a diffusion model")
            if self.condition is not None:
                raise InputError(f"condition: {preset.family} takes none; use a diffusion model")
            if classes and family_class(preset.family) is not LearnedAutoencoder:
                raise InputError(f"--maps: {preset.family} paints from none; use a diffusion model")
            classes = None
        settings: dict[str, object] = {
            "family": preset.family,
            "image": (image if autoencoder is None else autoencoder.grid(image)).settings(),
            "architecture": {**preset.architecture, **self.architecture},
        }
        if family_class(preset.family).predicts_noise:
            settings["diffusion"] = self.diffusion.model_dump(mode="json")
        if labels is not None and labels.names and family_class(preset.family).takes_labels:
            settings["labels"] = labels.model_dump(mode="json")
        if autoencoder is not None:
            settings["latents"] = autoencoder.config().settings()
        told = self.condition
        if classes:
            if told is None or not told.has_picture:
                told = ConditionConfig.of_map(classes, **({} if told is None else {"dropout": told.dropout}))
            else:
                told = told.with_map(classes)
            settings["architecture"] = widened(preset, self.architecture, told.map_channels)
        if told is not None:
            settings["condition"] = told.settings()
        return settings


def widened(preset: Preset, architecture: Mapping[str, object], told: int) -> dict[str, object]:
    """The settings of an architecture, of an NCA with as many more channels in a cell as it is told a pixel."""
    settings = {**preset.architecture, **architecture}
    if preset.family not in ("diff-nca", "fourier-diff-nca"):
        return settings
    whole: Any = validate(family_class(preset.family).config_class, settings, "architecture")
    return {**settings, "channels": whole.channels + told * whole.patch**2}


# Settings under which the same run may go on: how long it runs and where things lie, not what it computes. (The
# cooldown is one: what it has changed is taken back, see schedule.py.)
MAY_CHANGE = {
    "training.steps",
    "training.minutes",
    "training.schedule.cooldown",
    "training.saving.checkpoint_every",
    "training.saving.keep_checkpoints",
    "training.saving.sample_every",
    "training.saving.sample_images",
    "training.saving.tensorboard",
    "training.devices.device",
    "training.devices.recompute",
    "training.devices.workers",
    "data.source",
    "data.cache_mb",
    "data.verify",
    "data.split",
    "data.labels",
    "data.maps",
    "data.classes",
    "data.unlabelled",
    "data.strict_ids",
}

# Where the settings of `training` lie that were one flat table before format 2: old run.json files, and fingers.
_MOVED = {
    **{name: ("optimizer", name) for name in ("learning_rate", "betas", "epsilon", "clip_gradient")},
    **{name: ("schedule", name) for name in ("warmup", "decay", "decay_rate", "decay_after")},
    "ema": ("averaging", "kind"),
    "ema_decay": ("averaging", "decay"),
    "ema_width": ("averaging", "width"),
    **{name: ("saving", name) for name in SavingConfig.model_fields},
    **{name: ("devices", name) for name in DevicesConfig.model_fields},
}


def regroup(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A table of settings with those that are spelt as before format 2 (`training.learning_rate`, `diffusion.predict`)
    where they lie now. Raises InputError where one is given in both places.
    """
    diffusion = values.get("diffusion")
    if isinstance(diffusion, Mapping) and "predict" in diffusion:
        both = dict.fromkeys(("output", "loss_on"), diffusion["predict"])
        values = {**values, "diffusion": {**both, **{k: v for k, v in diffusion.items() if k != "predict"}}}
    if not isinstance(values.get("training"), Mapping):
        return dict(values)
    training: dict[str, Any] = {}
    old: list[tuple[str, str, Any]] = []
    for key, value in values["training"].items():
        if key == "optimizer" and isinstance(value, str):
            old.append(("optimizer", "name", value))
        elif key in _MOVED:
            old.append((*_MOVED[key], value))
        else:
            training[key] = dict(value) if isinstance(value, Mapping) else value
    for group, name, value in old:
        table = training.setdefault(group, {})
        if not isinstance(table, dict) or name in table:
            raise InputError(f"{where}: training.{group}.{name} is given twice; give it once")
        table[name] = value
    return {**values, "training": training}


def flatten(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested tables as one, keys joined with dots."""
    flat: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def differences(before: RunConfig, now: RunConfig) -> list[str]:
    """Settings that differ and may not, each as `name was OLD, is NEW`."""
    tables = [config.model_dump(mode="json") for config in (before, now)]
    if before.model == now.model:  # a preset's own setting may be spelt out
        for values, config in zip(tables, (before, now), strict=True):
            values["architecture"] = config.architecture_settings()
    old, new = map(flatten, tables)
    names = sorted((old.keys() | new.keys()) - MAY_CHANGE)
    return [f"{n} was {old.get(n)!r}, is {new.get(n)!r}" for n in names if old.get(n) != new.get(n)]
