"""The specification of a comparison: models and settings, one budget, and how they are measured, out of a YAML file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from morphogen.core.errors import InputError
from morphogen.core.files import json_bytes, read_json
from morphogen.core.request import PrecisionChoice
from morphogen.core.validation import validate
from morphogen.data.source import Part
from morphogen.experiments.classifier import DEFAULT_MIX, Schedule
from morphogen.experiments.classifier import DEFAULT_NETWORK as DEFAULT_CLASSIFIER
from morphogen.metrics.networks import DEFAULT_NETWORK
from morphogen.models import build_model
from morphogen.training.config import RunConfig, regroup
from morphogen.training.latent_choice import PIXELS
from morphogen.training.recipes import resolve
from morphogen.training.settings import merge, read_config_file

SPECS = Path(__file__).parent / "specs"
PUBLISHED = Path(__file__).parent / "published.json"
_FIGURES = 2  # counts changes of what is measured, after which figures of before are measured again
_FORBID = ConfigDict(frozen=True, extra="forbid")


class TrainingBudget(BaseModel):
    """The budget of every model's training: exactly one of the three."""

    model_config = _FORBID

    steps: int | None = Field(None, ge=1, description="training steps")
    images: int | None = Field(None, ge=1, description="images learnt from: steps times batch size")
    minutes: float | None = Field(None, gt=0, description="minutes of training")

    @model_validator(mode="after")
    def _one(self) -> TrainingBudget:
        if sum(v is not None for v in (self.steps, self.images, self.minutes)) != 1:
            raise ValueError("give one of steps, images and minutes")
        return self


class Measured(BaseModel):
    """How every model is measured."""

    model_config = _FORBID

    images: int = Field(2048, ge=2, description="generated images")
    real_images: int | None = Field(None, ge=2, description="real images compared with; null: all of the part")
    train_images: int = Field(10_000, ge=2, description="at most this many training images, for the gap")
    networks: tuple[str, ...] = Field((DEFAULT_NETWORK,), description="feature networks, as for evaluate --network")
    lpips: str = Field("auto", description="as for evaluate --lpips")
    part: Part = Field("test", description="the part of the split that is compared with")
    pairs: int = Field(256, ge=1, description="pairs of images for the LPIPS diversity")
    sampler: str | None = Field(None, description="null: the model's default")
    sampling_steps: int | None = Field(None, ge=1, description="null: the sampler's default")
    guidance: float = Field(1.0, ge=0, description="scale of classifier-free guidance; 1 is none")
    batch_size: int = Field(32, ge=1, description="images sampled at once")
    precision: PrecisionChoice = Field("auto", description="of sampling")


class Classified(BaseModel):
    """How training sets are measured instead: for every fold a model is trained, its training part expanded, and a
    classifier trained on both.
    """

    model_config = _FORBID

    baseline: str | None = Field(None, description="the line that the others are compared with")
    test: Literal["t", "wilcoxon"] = Field("t", description="the paired test: Student's t or Wilcoxon's")
    folds: int = Field(5, ge=3, description="if the data's settings name no split file")
    size: int = Field(64, ge=8, description="side of the classifier's images")
    steps: int | None = Field(None, ge=1, description="training steps of the classifier")
    epochs: float | None = Field(None, gt=0, description="instead of steps: passes over the real images")
    batch_size: int = Field(32, ge=2, description="of the classifier")
    learning_rate: float = Field(1e-3, gt=0, le=1, description="of the classifier")
    precision: PrecisionChoice = Field("float32", description="of the classifier")
    times: int = Field(5, ge=1, description="generated images for each real one")
    guidance: float = Field(1.5, ge=0, description="scale of classifier-free guidance")
    sampler: str | None = Field(None, description="null: the model's default")
    sampling_steps: int | None = Field(None, ge=1, description="null: the sampler's default")
    sampling_batch: int = Field(32, ge=1, description="images sampled at once")
    copies_in: str = Field("pixels", description="where copies are looked for: pixels, or a feature network")
    agree: float | None = Field(None, ge=0, le=1, description="as for expand --agree; none asks no classifier")
    network: str = Field(DEFAULT_CLASSIFIER, description="as for classify --network")
    weights: str | None = Field(None, description="as for classify --weights")
    mix: float = Field(DEFAULT_MIX, ge=0, le=1, description="as for classify --mix")
    schedule: Schedule = Field("choose", description="as for classify --schedule")

    @model_validator(mode="after")
    def _one_end(self) -> Classified:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give one of steps and epochs")
        return self


class Entry(BaseModel):
    """One line of the table."""

    model_config = _FORBID

    name: str = Field(pattern=r"^[\w.=+ -]{1,60}$", description="in the table; 1 to 60 letters, digits and . = + -")
    model: str | None = Field(None, description="a preset; null: the training set as it is")
    augment: Literal["geometric", "none"] = Field("geometric", description="of the classifier")
    recipe: Literal["default", "paper"] = Field("default", description="as for train --recipe")
    set: dict[str, Any] = Field({}, description="settings by their dotted names, as for train --set")
    sampler: str | None = Field(None, description="instead of the common one")
    published: str | None = Field(None, description="its row among the published figures")


class Spec(BaseModel):
    """A whole comparison."""

    model_config = _FORBID

    title: str = Field("Comparison", description="of the report")
    data: dict[str, Any] = Field({}, description="settings of `data`, for all models")
    budget: TrainingBudget
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="each model is trained once for each seed")
    evaluate: Measured = Measured()
    training: dict[str, Any] = Field({}, description="settings of `training`, for all models")
    models: tuple[Entry, ...] = Field(min_length=1)
    classify: Classified | None = Field(None, description="measure by a classifier, instead of by evaluate")
    published: str | None = Field(None, description="the table of published figures that rows are of")

    @model_validator(mode="after")
    def _names(self) -> Spec:
        slugs = [slug(entry.name) for entry in self.models]
        for name in slugs:
            if slugs.count(name) > 1:
                raise ValueError(f"two models are called '{name}'; give each a name of its own")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("a seed is listed twice")
        if self.classify is None and any(entry.model is None for entry in self.models):
            raise ValueError("a line without a model is only for a comparison that classifies")
        wanted = None if self.classify is None else self.classify.baseline
        if wanted is not None and wanted not in [entry.name for entry in self.models]:
            raise ValueError(f"the baseline '{wanted}' is none of the lines")
        return self


@dataclass(frozen=True)
class Trial:
    """One model with one seed: how it is trained, and where it lies."""

    entry: Entry
    seed: int
    config: RunConfig
    folder: Path

    @property
    def label(self) -> str:
        """For messages."""
        return f"{self.entry.name}, seed {self.seed}"


def slug(name: str) -> str:
    """A name as part of a path."""
    return "".join(c if c.isalnum() or c in ".-" else "-" for c in name).lower()


def spec_names() -> list[str]:
    """The names of the specs that come with the package."""
    return sorted(p.stem for p in SPECS.glob("*.yaml"))


def read_spec(reference: str, changes: Mapping[str, Any] | None = None) -> Spec:
    """A spec of the package by its name, or a YAML or JSON file. changes: nested values that replace the file's.

    Raises InputError for a missing or wrong file, or settings that are not known.
    """
    path = SPECS / f"{reference}.yaml" if reference in spec_names() else Path(reference)
    if not path.is_file():
        raise InputError(f"there is no spec '{reference}'; name a YAML file or one of {', '.join(spec_names())}")
    values = regroup(read_config_file(path), str(path))
    changes = regroup(changes or {}, "the command line")
    if "budget" in changes:
        values["budget"] = changes.pop("budget")
    return validate(Spec, merge(values, changes), str(path))


def trials(spec: Spec, out: Path) -> list[Trial]:
    """Every model with every seed, seed after seed, so that what is done early is a whole comparison.

    Raises InputError, naming the model, where its settings are wrong, or where no data is named.
    """
    need_data(spec)
    return [
        Trial(entry, seed, config_of(spec, entry, spec.data, seed), out / "runs" / slug(entry.name) / f"seed-{seed}")
        for seed in spec.seeds
        for entry in spec.models
    ]


def need_data(spec: Spec) -> None:
    """Raise InputError where a spec names no images."""
    if not spec.data.get("source"):
        raise InputError("--data is needed: this spec names no images to train on")


def config_of(spec: Spec, entry: Entry, data: Mapping[str, Any], seed: int) -> RunConfig:
    """How the model of a line is trained on data. Raises InputError, naming it, where its settings are wrong."""
    training = {**spec.training, "seed": seed}
    flags = {"model": entry.model, "recipe": entry.recipe, "data": dict(data), "training": training}
    flags["autoencoder"] = PIXELS  # unless the line says otherwise, so that all lines are alike
    assignments = [f"{name}={_yaml(value)}" for name, value in entry.set.items()]
    try:
        config = resolve(_with_budget(flags, spec.budget, None), None, assignments)
        if spec.budget.images is not None:
            steps = -(-spec.budget.images // config.training.batch_size)
            config = resolve(_with_budget(flags, spec.budget, steps), None, assignments)
        with torch.device("meta"):  # only to see whether it can be built
            build_model(config.model_settings(), "its settings")
    except InputError as error:
        raise InputError(f"model '{entry.name}': {error}") from None
    return config


def _with_budget(flags: dict[str, Any], budget: TrainingBudget, steps: int | None) -> dict[str, Any]:
    end = {"minutes": budget.minutes} if budget.minutes is not None else {"steps": steps or budget.steps or 1}
    return merge(flags, {"training": end})


def _yaml(value: object) -> str:
    import json

    return json.dumps(value)  # JSON is YAML


def fingerprint(trial: Trial, measured: Measured) -> str:
    """A hash of everything that decides a trial's figures."""
    return hashlib.sha256(
        json_bytes(
            {
                "figures": _FIGURES,
                "config": trial.config.model_dump(mode="json"),
                "measured": measured.model_dump(mode="json"),
                "sampler": trial.entry.sampler,
            }
        )
    ).hexdigest()


def published_rows(name: str | None) -> dict[str, dict[str, JsonValue]]:
    """The published figures of a table by row. Raises InputError for an unknown table."""
    if name is None:
        return {}
    tables = read_json(PUBLISHED)
    if name not in tables or "rows" not in tables[name]:
        raise InputError(f"there is no published table '{name}'")
    return dict(tables[name]["rows"])


def published_source(name: str | None) -> str:
    """Where a table of published figures is from."""
    return str(read_json(PUBLISHED)[name]["source"]) if name is not None else ""
