"""A run's whole configuration as one tree: what `run.json` holds, and how the user's words become it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from morphogen.core.errors import InputError
from morphogen.core.files import read_json
from morphogen.core.model import ImageConfig, LabelConfig
from morphogen.core.model_files import CONFIG_FILE
from morphogen.core.validation import table, validate
from morphogen.data.config import DataConfig
from morphogen.data.labels import checked_labels
from morphogen.data.sources import open_source
from morphogen.diffusion.config import DiffusionConfig
from morphogen.diffusion.latents import Autoencoder, open_autoencoder
from morphogen.models import PRESETS, family_class, find_model, find_preset

Recipe = Literal["default", "paper"]
DEFAULT_MODEL = "diff-nca-small"
DEFAULT_STEPS = 10_000
Beta = Annotated[float, Field(ge=0, lt=1)]


class TrainingConfig(BaseModel):
    """How the weights are found. One step is one batch; rates and intervals count steps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int | None = Field(None, ge=1, le=100_000_000, description="stop after so many steps")
    minutes: float | None = Field(None, gt=0, le=1_000_000, description="stop after so many minutes of training")
    batch_size: int = Field(16, ge=1, le=65_536, description="images in a step, over all devices together")
    seed: int = Field(0, ge=0, le=2**64 - 1, description="fixes initial weights, data order and noise")
    optimizer: Literal["adam", "muon"] = Field("adam", description="muon: for matrices, and Adam for all else")
    learning_rate: float = Field(1.6e-3, gt=0, le=1)
    betas: tuple[Beta, Beta] = Field((0.9, 0.99), description="Adam's two decay rates")
    epsilon: float = Field(1e-8, gt=0, le=1, description="Adam's epsilon")
    warmup: int = Field(0, ge=0, description="steps over which the learning rate rises from zero")
    decay: Literal["constant", "exponential", "inverse_sqrt"] = Field(
        "exponential", description="exponential: times decay_rate each step; inverse_sqrt: from decay_after on"
    )
    decay_rate: float = Field(0.9999, gt=0, le=1)
    decay_after: int = Field(2000, ge=1)
    clip_gradient: float | None = Field(None, gt=0, description="largest norm of the whole gradient")
    ema: Literal["constant", "relative"] = Field(
        "constant", description="constant: decay ema_decay a step; relative: over a share ema_width of all steps so far"
    )
    ema_decay: float = Field(0.99, ge=0, lt=1)
    ema_width: float = Field(0.1, gt=0.005, le=0.25, description="standard deviation of the average, relative to time")
    recompute: Literal["auto", "always", "never"] = Field(
        "auto", description="compute activations again in the backward pass instead of keeping them, to save memory"
    )
    kernel: Annotated[Literal["auto", "off"], BeforeValidator(lambda v: "off" if v is False else v)] = Field(
        "auto", description="auto: run the automaton by the fast kernel where this machine can; off: by PyTorch"
    )
    compile: bool = Field(False, description="where the kernel does not run, compile the NCA step with PyTorch")
    checkpoint_every: int = Field(500, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(2, ge=1, le=10_000, description="newest checkpoints that are kept")
    validate_every: int = Field(500, ge=1, description="steps between measurements on held-out images")
    validation_images: int = Field(64, ge=1, le=65_536, description="held-out images that are measured on")
    sample_every: int = Field(1000, ge=1, description="steps between sample sheets")
    sample_images: int = Field(8, ge=0, le=256, description="samples on a sheet; 0 for none")
    workers: int = Field(0, ge=0, le=256, description="processes that load data; 0 loads in the training process")
    tensorboard: bool = Field(False, description="also write TensorBoard files; needs morphogen[tensorboard]")
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "float32", description="what products are computed in; auto: bfloat16 where the device has it"
    )

    @model_validator(mode="after")
    def _has_an_end(self) -> TrainingConfig:
        if self.steps is not None and self.minutes is not None:
            raise ValueError("give either steps or minutes, not both")
        return self


class RunConfig(BaseModel):
    """Everything that decides a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(DEFAULT_MODEL, description="the preset")
    recipe: Recipe = "default"
    init: str | None = Field(None, description="the run or model that the weights start from")
    architecture: dict[str, Any] = Field({}, description="settings that differ from the preset's")
    diffusion: DiffusionConfig = DiffusionConfig()
    autoencoder: str | None = Field(
        None, description="work in latents: a folder of diffusers, a hub id, or onnx:ENCODER,DECODER"
    )
    data: DataConfig
    training: TrainingConfig = TrainingConfig()

    def architecture_settings(self) -> dict[str, Any]:
        """Every setting of the architecture, spelt out or not."""
        preset = find_preset(self.model)
        settings: BaseModel = validate(
            family_class(preset.family).config_class, {**preset.architecture, **self.architecture}, "architecture"
        )
        return settings.model_dump(mode="json")

    def read_labels(self) -> LabelConfig:
        """The labels of the data, for a family that takes any. Raises InputError where not all images have theirs."""
        if self.data.labels == "none" or not family_class(find_preset(self.model).family).takes_labels:
            return LabelConfig()
        return checked_labels(open_source(self.data))

    def fits(self) -> bool:
        """Whether the architecture can work with the images."""
        preset = find_preset(self.model)
        height, width = self.data.size
        try:
            settings = family_class(preset.family).config_class(**{**preset.architecture, **self.architecture})
            settings.check(ImageConfig(height=height, width=width, channels=self.data.channels))
        except ValueError:
            return False
        return True

    def open_autoencoder(self) -> Autoencoder | None:
        """The autoencoder of a run in latents, None for one in pixels. Raises InputError where it cannot be had."""
        return None if self.autoencoder is None else open_autoencoder(self.autoencoder)

    def model_settings(
        self, labels: LabelConfig | None = None, autoencoder: Autoencoder | None = None
    ) -> dict[str, Any]:
        """What `config.json` will hold. labels: those of the data, which a family that takes none is not told of.

        Raises InputError for a model or a size that cannot be with the autoencoder.
        """
        preset = find_preset(self.model)
        height, width = self.data.size
        image = ImageConfig(height=height, width=width, channels=self.data.channels)
        if autoencoder is not None and not family_class(preset.family).predicts_noise:
            raise InputError(f"--autoencoder: {preset.family} works in pixels only; use a diffusion model")
        settings: dict[str, Any] = {
            "family": preset.family,
            "image": (image if autoencoder is None else autoencoder.grid(image)).model_dump(mode="json"),
            "architecture": {**preset.architecture, **self.architecture},
        }
        if family_class(preset.family).predicts_noise:
            settings["diffusion"] = self.diffusion.model_dump(mode="json")
        if labels is not None and labels.names and family_class(preset.family).takes_labels:
            settings["labels"] = labels.model_dump(mode="json")
        if autoencoder is not None:
            settings["latents"] = autoencoder.config().model_dump(mode="json")
        return settings


# What a recipe sets where the user doesn't. `paper` is the published training: the diffusion from the released code,
# the optimiser from the text. `default` is ours; docs/recipes.md has the measurements behind it. Presets may set more.
_PUBLISHED_DIFFUSION = {"timesteps": 300, "schedule": "cosine", "output": "noise", "loss_on": "noise", "loss": "mse+l1"}
_PUBLISHED_ADAM = {"betas": (0.9, 0.99), "epsilon": 1e-8}
RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "paper": {
        "diffusion": _PUBLISHED_DIFFUSION,
        "training": {
            **_PUBLISHED_ADAM,
            "learning_rate": 1.6e-3,
            "decay": "exponential",
            "decay_rate": 0.9999,
            "ema": "constant",
            "ema_decay": 0.99,
        },
    },
    "default": {
        "diffusion": {"timesteps": 1000, "schedule": "cosine", "output": "v", "loss_on": "noise", "loss": "l1"},
        "training": {
            **_PUBLISHED_ADAM,
            "learning_rate": 4e-3,
            "warmup": 100,
            "decay": "inverse_sqrt",
            "decay_after": 2000,
            "clip_gradient": 1.0,
            "ema": "relative",
            "ema_width": 0.1,
        },
    },
}
PAPER_STEPS = 200_000
# Settings under which the same run may go on: how long it runs and where things lie, not what it computes.
MAY_CHANGE = {
    "training.steps",
    "training.minutes",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.sample_every",
    "training.sample_images",
    "training.workers",
    "training.tensorboard",
    "training.recompute",
    "training.device",
    "data.source",
    "data.cache_mb",
    "data.verify",
    "data.split",
    "data.labels",
}


def read_config_file(path: Path) -> dict[str, Any]:
    """A configuration file, YAML or JSON, as nested tables. Raises InputError, naming it, where it is neither."""
    if path.suffix.lower() == ".json":
        return dict(table(read_json(path), str(path)))
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"the configuration file {path} cannot be read: {error.strerror or error}") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise InputError(f"the configuration file {path} is not valid YAML") from None
    return dict(table(values or {}, str(path)))


def parse_assignment(text: str) -> tuple[list[str], Any]:
    """`a.b=c` as a path and a value (parsed as YAML, so that numbers, true and null come out as such)."""
    path, equals, value = text.partition("=")
    if not equals or not all(path.split(".")):
        raise InputError(f"--set {text}: it should be KEY=VALUE, such as training.learning_rate=1e-3")
    value = value.strip()
    try:
        parsed = value if value.startswith("#") else yaml.safe_load(value)  # a colour, not a comment
    except (yaml.YAMLError, ValueError, RecursionError):
        raise InputError(f"--set {text}: '{value}' is not a valid value") from None
    if isinstance(parsed, str) and not value.startswith(("'", '"')):  # YAML 1.1 takes 1e-3 for a word
        try:
            parsed = float(parsed)
        except ValueError:
            parsed = value
    return path.split("."), parsed


def merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested tables with another's values on top."""
    merged = dict(base)
    for key, value in over.items():
        known = merged.get(key)
        merged[key] = merge(known, value) if isinstance(known, dict) and isinstance(value, Mapping) else value
    return merged


def resolve(
    flags: Mapping[str, Any],
    config_file: Path | None = None,
    assignments: Sequence[str] = (),
    before: RunConfig | None = None,
) -> RunConfig:
    """The configuration of a run. Later wins: recipe, configuration file, flags, assignments (`a.b=c`).

    flags: nested tables, without what the user left out. before: of the run that is to go on, if there is one; the
    model that it started from need not be there any more. Raises InputError naming the wrong file, flag or setting.
    """
    chosen: dict[str, Any] = {}
    sources = [(str(config_file), read_config_file(config_file))] if config_file else []
    sources.append(("the command line", dict(flags)))
    for text in assignments:
        path, value = parse_assignment(text)
        nested: Any = value
        for part in reversed(path):
            nested = {part: nested}
        sources.append((f"--set {text}", nested))
    for where, values in sources:
        table(values, where, tuple(RunConfig.model_fields))
        chosen = _with_one_end(chosen, values)
    in_file = sources[0][1].get("recipe") if config_file else None
    recipe = chosen.get("recipe", "default")
    if in_file is not None and in_file != recipe and "diffusion" in sources[0][1]:
        raise InputError(
            f"{config_file} is of the recipe '{in_file}', and its settings would hide those of '{recipe}'; "
            "remove them from the file, or give the same --recipe"
        )
    if not isinstance(recipe, str) or recipe not in RECIPES:
        raise InputError(f"there is no recipe '{recipe}'; choose one of {', '.join(RECIPES)}")
    training = chosen.get("training", {})
    if isinstance(training, Mapping) and training.get("steps") is None and training.get("minutes") is None:
        chosen = merge(chosen, {"training": {"steps": PAPER_STEPS if recipe == "paper" else DEFAULT_STEPS}})
    model = chosen.get("model", DEFAULT_MODEL)
    own = PRESETS[model].recipes.get(recipe, {}) if isinstance(model, str) and model in PRESETS else {}
    start: dict[str, Any] = {}
    if isinstance(chosen.get("init"), str) and isinstance(model, str) and model in PRESETS:
        if before is not None and (before.init, before.model) == (chosen["init"], model):
            start = before.model_dump(mode="json", include={"architecture", "diffusion"})
        else:
            start = _as_trained(chosen["init"], PRESETS[model].family)
        own = {**own, **start}
    where = sources[-1][0] if len(sources) == 1 else "configuration"
    config = validate(RunConfig, merge(merge(RECIPES[recipe], own), chosen), where)
    if "architecture" in own.keys() - start.keys() and (config.autoencoder is not None or not config.fits()):
        # A latent is a patch already; and cells with few channels cannot hold patches.
        own = {key: value for key, value in own.items() if key != "architecture"}
        return validate(RunConfig, merge(merge(RECIPES[recipe], own), chosen), where)
    return config


def _as_trained(reference: str, family: str) -> dict[str, Any]:
    """The architecture and the diffusion of a trained model of a family, which a run that starts from it goes on with;
    nothing of another family, or where there is none, which the start itself says.
    """
    try:
        found = read_json(find_model(reference) / CONFIG_FILE)
    except InputError:
        return {}
    if not isinstance(found, dict) or found.get("family") != family:
        return {}
    settings = {name: found[name] for name in ("architecture", "diffusion") if isinstance(found.get(name), dict)}
    if "diffusion" in settings:  # under today's names
        settings["diffusion"] = validate(DiffusionConfig, settings["diffusion"], reference).model_dump(mode="json")
    return settings


def _with_one_end(chosen: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Merge, letting a later `minutes` replace an earlier `steps` and the other way round."""
    training = values.get("training", {})
    if isinstance(training, Mapping) and isinstance(chosen.get("training"), dict):
        for given, replaced in (("steps", "minutes"), ("minutes", "steps")):
            if given in training and replaced not in training:
                chosen = {**chosen, "training": {k: v for k, v in chosen["training"].items() if k != replaced}}
    return merge(chosen, values)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, keys joined with dots."""
    flat: dict[str, Any] = {}
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
