"""The recipes' settings, and how all settings of a run come together: `resolve`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from morphogen.core.errors import InputError
from morphogen.core.files import read_json
from morphogen.core.model import ImageConfig
from morphogen.core.model_files import CONFIG_FILE, without_header
from morphogen.core.validation import explain, table, validate
from morphogen.data.config import DataConfig
from morphogen.diffusion.config import DiffusionConfig
from morphogen.models import PRESETS, Preset, family_class, find_model
from morphogen.training.colour import settle_colour
from morphogen.training.config import DEFAULT_MODEL, RunConfig, regroup
from morphogen.training.latent_choice import latent_factor, settle_latents
from morphogen.training.paths import absolute_path
from morphogen.training.settings import Layer, assignment_layer, check_names, merge, read_layer

# `paper` is the published training: the diffusion from the released code, the optimiser from the text. `default` is
# ours; docs/recipes.md has the measurements behind it. Presets (models.py) may set more.
_PUBLISHED_ADAM = {"betas": (0.9, 0.99), "epsilon": 1e-8}
RECIPES: dict[str, dict[str, dict[str, object]]] = {
    "paper": {
        "diffusion": {"timesteps": 300, "schedule": "cosine", "output": "noise", "loss_on": "noise", "loss": "mse+l1"},
        "training": {
            "steps": 200_000,
            "optimizer": {**_PUBLISHED_ADAM, "learning_rate": 1.6e-3},
            "schedule": {"decay": "exponential", "decay_rate": 0.9999},
            "averaging": {"kind": "constant", "decay": 0.99},
        },
    },
    "default": {
        "diffusion": {"timesteps": 1000, "schedule": "cosine", "output": "v", "loss_on": "noise", "loss": "l1"},
        "training": {
            "steps": 10_000,
            "optimizer": {**_PUBLISHED_ADAM, "learning_rate": 4e-3, "clip_gradient": 1.0},
            "schedule": {"warmup": 100, "decay": "inverse_sqrt", "decay_after": 2000},
            "averaging": {"kind": "relative", "width": 0.1},
        },
    },
}
# The diffusion of `default` up to version 0.1: a run that was begun with it goes on with it.
_EARLIER_DEFAULT = {**RECIPES["default"]["diffusion"], "output": "noise"}
Config = TypeVar("Config", bound=BaseModel)
# What a written configuration says beside its settings.
_FACTS = ("estimate", "relative_to_run")


def resolve(
    flags: Mapping[str, object],
    config_file: Path | None = None,
    assignments: Sequence[str] = (),
    before: RunConfig | None = None,
    where: str = "the command line",
) -> RunConfig:
    """The configuration of a run. Later wins: the defaults of the fields, the recipe, the preset (or the model that the
    run starts from), the configuration file, flags, assignments (`a.b=c`).

    flags: nested tables, without what the user left out. before: of the run that is to go on, if there is one; the
    model that it started from need not be there any more. where: what the flags are from, for messages.

    Raises InputError naming the wrong file, flag or setting.
    """
    layers = _layers(flags, config_file, assignments, where)
    chosen: dict[str, object] = {}
    for layer in layers:
        chosen = _with_one_end(chosen, layer.values)
    recipe = _recipe(chosen, layers, config_file)
    name = chosen.get("model", DEFAULT_MODEL)
    preset = PRESETS.get(name) if isinstance(name, str) else None
    for layer in layers:
        fields = family_class(preset.family).config_class.model_fields if preset else {}
        check_names(layer, RunConfig, {"architecture": list(fields)})

    data = _validated(DataConfig, chosen.get("data", {}), layers, ("data",)) if "data" in chosen else None
    if data is None and config_file is not None:
        raise InputError(f"the images are not named: name them as DATA, or as data.source in {config_file}")
    if data is not None:
        data = settle_colour(data, chosen, preset, None if before is None else before.data)
    chosen = settle_latents(chosen, preset, recipe, data, before)
    own: dict[str, Any] = dict(_own(preset, recipe, chosen.get("autoencoder") is not None)) if preset else {}
    started = _as_started(chosen, before, preset) if preset else {}
    if preset and "architecture" in own and not _suits(preset, own["architecture"], chosen, data):
        if chosen.get("autoencoder") is None:
            del own["architecture"]
        elif "patch" in own["architecture"]:
            own["architecture"] = {**own["architecture"], "patch": 1}
    base: dict[str, Any] = merge(RECIPES[recipe], {**own, **started})
    if recipe == "default" and before is not None and before.diffusion == DiffusionConfig(**_EARLIER_DEFAULT):
        base["diffusion"] = before.diffusion.model_dump(mode="json")
    training = chosen.get("training", {})
    if isinstance(training, Mapping):
        ends = {k: v for k, v in training.items() if k in ("steps", "minutes") and v is not None}
        if ends:
            base["training"] = {k: v for k, v in base["training"].items() if k != "steps"}
        rest = {k: v for k, v in training.items() if k not in ("steps", "minutes")}
        chosen = {**chosen, "training": {**rest, **ends}}
    return _validated(RunConfig, merge(base, {**chosen, **({} if data is None else {"data": data})}), layers)


def _layers(
    flags: Mapping[str, object], config_file: Path | None, assignments: Sequence[str], where: str
) -> list[Layer]:
    """The user's settings, the strongest last, in today's spelling."""
    found: list[Layer] = []
    if config_file is not None:
        layer = read_layer(config_file)
        values = without_header(layer.values, layer.where)
        found.append(Layer(layer.where, {k: v for k, v in values.items() if k not in _FACTS}, layer.node))
    found.append(Layer(where, dict(flags)))
    found += [assignment_layer(text) for text in assignments]
    return [Layer(x.where, regroup(dict(table(x.values, x.where)), x.where), x.node) for x in found]


def _recipe(chosen: Mapping[str, object], layers: Sequence[Layer], config_file: Path | None) -> str:
    recipe = chosen.get("recipe", "default")
    if not isinstance(recipe, str) or recipe not in RECIPES:
        raise InputError(f"there is no recipe '{recipe}'; choose one of {', '.join(RECIPES)}")
    written = layers[0].values if config_file else {}
    if written.get("recipe", recipe) != recipe and "diffusion" in written:
        raise InputError(
            f"{config_file} is of the recipe '{written['recipe']}', and its settings would hide those of '{recipe}'; "
            "remove them from the file, or give the same --recipe"
        )
    return recipe


def _validated(cls: type[Config], values: object, layers: Sequence[Layer], prefix: tuple[str, ...] = ()) -> Config:
    """Raises InputError naming the layer that gave the first wrong setting."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        path, message = explain(error)
        path = (*prefix, *path)
        by = next((layer.named(path) for layer in reversed(layers) if path and layer.holds(path)), "configuration")
        raise InputError(f"{by}: {'.'.join(path) + ': ' if path else ''}{message}") from None


def _own(preset: Preset, recipe: str, in_latents: bool) -> Mapping[str, object]:
    """What a recipe gives a preset, which some have another one of in latents."""
    own = preset.recipes.get(recipe, {})
    return preset.in_latents.get(recipe, own) if in_latents else own


def _suits(preset: Preset, own: Mapping[str, object], chosen: Mapping[str, object], data: DataConfig | None) -> bool:
    """Whether the architecture that a recipe gives a preset (cells of several pixels) can be: cells with few channels
    hold no patch, and the size, in latents that of their grid, must be divisible and large enough.
    """
    given = chosen.get("architecture", {})
    if data is None or not isinstance(given, Mapping):
        return True
    image = ImageConfig(height=data.size[0], width=data.size[1], channels=data.channels)
    autoencoder = chosen.get("autoencoder")
    try:
        if isinstance(autoencoder, str):
            image = image.scaled(1 / latent_factor(autoencoder), 1)
        family_class(preset.family).config_class(**{**preset.architecture, **own, **given}).check(image)
    except ValueError:
        return False
    return True


def _as_started(chosen: Mapping[str, object], before: RunConfig | None, preset: Preset) -> dict[str, object]:
    """The architecture and the diffusion of the trained model of the same family that a run starts from, which it goes
    on with; nothing of another family, or if there is none, which the start itself says.
    """
    init = chosen.get("init")
    if not isinstance(init, str):
        return {}
    same = before is not None and before.init in (init, absolute_path(init))
    if before is not None and same and before.model == chosen.get("model", DEFAULT_MODEL):
        return before.model_dump(mode="json", include={"architecture", "diffusion"})
    try:
        found = read_json(find_model(init) / CONFIG_FILE)
    except InputError:
        return {}
    if not isinstance(found, dict) or found.get("family") != preset.family:
        return {}
    settings = {name: found[name] for name in ("architecture", "diffusion") if isinstance(found.get(name), dict)}
    if "diffusion" in settings:  # under today's names
        settings["diffusion"] = validate(DiffusionConfig, settings["diffusion"], init).model_dump(mode="json")
    return settings


def _with_one_end(chosen: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Merge, letting a later `minutes` replace an earlier `steps` and the other way round."""
    training = values.get("training", {})
    if isinstance(training, Mapping) and isinstance(chosen.get("training"), dict):
        for given, replaced in (("steps", "minutes"), ("minutes", "steps")):
            if given in training and replaced not in training:
                chosen = {**chosen, "training": {k: v for k, v in chosen["training"].items() if k != replaced}}
    return merge(chosen, values)
