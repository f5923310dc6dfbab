"""The families of models, the presets known by name, and getting a model from a name, a folder or the hub."""

from __future__ import annotations

import hashlib
import importlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from morphogen.core.errors import InputError, first_line
from morphogen.core.files import read_json, sha256
from morphogen.core.model import Model
from morphogen.core.model_files import (
    CONFIG_FILE,
    PICKLE_SUFFIXES,
    WEIGHTS_FILE,
    load_weights,
    pickle_refusal,
    without_header,
)

FAMILIES = {
    "diff-nca": "morphogen.automata.diff_nca:DiffNCA",
    "fourier-diff-nca": "morphogen.automata.fourier_diff_nca:FourierDiffNCA",
    "geca": "morphogen.automata.geca:GeCA",
    "unet": "morphogen.baselines.unet:UNet",
    "dit": "morphogen.baselines.dit:DiT",
    "ldm": "morphogen.baselines.ldm:LDM",
    "vnca": "morphogen.baselines.vnca:VNCA",
    "autoencoder": "morphogen.diffusion.learned_autoencoder:LearnedAutoencoder",
    "pyramid": "morphogen.diffusion.ladder:Ladder",
}
BUNDLED = Path(__file__).parent / "bundled"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_CACHE = re.compile(r"models--(.+?)--(.+)")  # the folder of a model in the hub's cache


@dataclass(frozen=True)
class Preset:
    """A model known by name: its family, its settings, and the parameter count of its publication."""

    family: str
    summary: str
    architecture: Mapping[str, object] = field(default_factory=dict)
    published_parameters: int | None = None
    recipes: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """Its own settings in each recipe, as nested tables."""
    in_latents: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """The same for a model in latents, where that differs: there a cell holds many pixels, and there are few cells."""
    diffusion: Mapping[str, object] = field(default_factory=dict)
    """The diffusion it is made for, where `create_model` is given none."""


# Kalkhof et al. train the U-Nets with `paper`. `default` holds for the small ones: Muon, and the best of 1e-3, 2e-3,
# 4e-3 and 8e-3 after 400 steps (docs/measuring.md); for the published sizes it is Adam, 1e-3, and not tuned.
_UNET_PAPER: dict[str, object] = {
    "training": {
        "optimizer": {"learning_rate": 3e-5, "betas": (0.5, 0.999), "epsilon": 1e-6},
        "batch_size": 32,
        "schedule": {"decay": "constant"},
    }
}
_UNET_DIFFUSION: dict[str, object] = {
    "timesteps": 1000,
    "schedule": "cosine",
    "output": "v",
    "loss_on": "v",
    "loss": "mse",
}


def _unet_recipes(**optimizer: object) -> dict[str, dict[str, object]]:
    return {"paper": _UNET_PAPER, "default": {"diffusion": _UNET_DIFFUSION, "training": {"optimizer": optimizer}}}


_VNCA_TRAINING: dict[str, object] = {"optimizer": {"learning_rate": 1e-4, "betas": (0.9, 0.999)}, "batch_size": 32}
_VNCA_RECIPES: dict[str, dict[str, object]] = {
    "paper": {"training": {**_VNCA_TRAINING, "schedule": {"decay": "constant"}}},
    "default": {"training": _VNCA_TRAINING},
}


# By Muon, after two minutes on faces: held-out error 2.3 levels where Adam (2e-3) leaves 3.9 (benchmarks/NOTES.md).
_AUTOENCODER_TRAINING: dict[str, object] = {
    "optimizer": {"name": "muon", "learning_rate": 4e-3, "betas": (0.9, 0.99), "clip_gradient": 1.0},
    "schedule": {"warmup": 100, "decay": "constant", "cooldown": 0.3},
    "averaging": {"kind": "relative", "width": 0.1},
}
_AUTOENCODER_RECIPES = {recipe: {"training": _AUTOENCODER_TRAINING} for recipe in ("default", "paper")}


# Elbatel et al.: AdamW in the text, without weight decay in the released code, which is Adam. `default` learns faster;
# by Muon it learnt no more in a step, and a step took twice the time (geca-xs, latents of 8x8, on a processor).
_GECA_DIFFUSION: dict[str, object] = {
    "timesteps": 1000,
    "schedule": "linear",
    "output": "noise",
    "loss_on": "noise",
    "loss": "mse+vb",
    "variance": "learned",
}
_GECA_PAPER: dict[str, object] = {
    "optimizer": {"learning_rate": 1e-4, "betas": (0.9, 0.999)},
    "batch_size": 128,
    "schedule": {"decay": "constant"},
    "averaging": {"decay": 0.9999},
}
_GECA_RECIPES: dict[str, dict[str, object]] = {
    "paper": {"diffusion": _GECA_DIFFUSION, "training": _GECA_PAPER, "architecture": {"heredity": "hidden"}},
    "default": {"diffusion": _GECA_DIFFUSION, "training": {"optimizer": {"learning_rate": 5e-4, "betas": (0.9, 0.99)}}},
}


def _labelled(family: str, summary: str, published: int | None = None, **architecture: object) -> Preset:
    """A model that takes labels: GeCA, and the baselines it is compared with, trained by the same recipes."""
    recipes = _GECA_RECIPES
    if family != "geca":  # which alone inherits anything
        paper = {k: v for k, v in recipes["paper"].items() if k != "architecture"}
        recipes = {**recipes, "paper": paper}
    return Preset(family, summary, architecture, published, recipes, diffusion=_GECA_DIFFUSION)


def _unet(summary: str, published: int | None, *widths: int, **architecture: object) -> Preset:
    small = published is None
    recipes = _unet_recipes(name="muon" if small else "adam", learning_rate=8e-3 if small else 1e-3)
    return Preset("unet", summary, {"widths": widths, **architecture}, published, recipes)


# What `default` gives the small automata, measured at 32x32 on equal processor time (docs/recipes.md).
_SMALL: dict[str, object] = {"patch": 2, "nca_steps": 6, "sampling_fire_rate": 1.0, "output_gain": 0.1}
_SMALL_FOURIER: dict[str, object] = {**_SMALL, "window": 8, "fourier_steps": 8, "embedding_hidden": 32}


# In latents, where cells of one latent each see far and there are few of them, wider cells pay. FourierDiff-NCA, which
# is for layouts, is better with cells of 2x2 latents still: a quarter of the cost, and the image in reach.
_SMALL_LATENT: dict[str, object] = {**_SMALL, "patch": 1, "channels": 96, "hidden": 192}
_SMALL_FOURIER_LATENT: dict[str, object] = {
    **_SMALL,
    "channels": 128,
    "hidden": 256,
    "window": 4,
    "fourier_steps": 4,
    "embedding_hidden": 32,
}


_FOURIER_TRAINING: dict[str, object] = {
    "optimizer": {"name": "muon"}
}  # Diff-NCA learns as well or better by Adam (docs/recipes.md)


def _fourier(summary: str, published: int | None, **architecture: object) -> Preset:
    recipes = {"default": {"training": _FOURIER_TRAINING}}
    return Preset("fourier-diff-nca", summary, {"norm": "group", **architecture}, published, recipes)


PRESETS: dict[str, Preset] = {
    "diff-nca": Preset("diff-nca", "local, exact in tiles, any size"),
    "diff-nca-small": Preset(
        "diff-nca",
        "the same in minutes on a CPU",
        {"channels": 48, "hidden": 128, "nca_steps": 10},
        recipes={"default": {"architecture": _SMALL, "training": {"batch_size": 8}}},
        in_latents={"default": {"architecture": _SMALL_LATENT}},
    ),
    "diff-nca-paper": Preset("diff-nca", "Diff-NCA as published", {"norm": "group"}, 331_000),
    "fourier-diff-nca": _fourier("sees the whole image, as published", 1_101_216),
    "fourier-diff-nca-1.85m": _fourier("the largest published one", 1_849_632, channels=128, hidden=640),
    "fourier-diff-nca-h256": _fourier("published ablation: half the hidden width", 737_184, hidden=256),
    "fourier-diff-nca-c48": _fourier("published ablation: half the channels", 525_792, channels=48),
    "fourier-diff-nca-small": Preset(
        "fourier-diff-nca",
        "sees the whole image, for a CPU",
        {"norm": "cell", "channels": 32, "hidden": 128, "nca_steps": 10},
        recipes={"default": {"architecture": _SMALL_FOURIER, "training": {**_FOURIER_TRAINING, "batch_size": 8}}},
        in_latents={"default": {"architecture": _SMALL_FOURIER_LATENT, "training": _FOURIER_TRAINING}},
    ),
    "geca-s": _labelled("geca", "attends to neighbours, takes labels, as published", 13_300_000),
    "geca-xs": _labelled("geca", "the same, smaller", width=384, heads=6, mlp=64, hidden=32),
    "unet-s": _unet("baseline: the smallest published U-Net", 652_195, 32, 64),
    "unet-m": _unet("baseline: the second published U-Net", 3_940_547, 32, 64, 128, layers=2, attention=(2,)),
    "unet-b": _unet("baseline: the third published U-Net", 17_217_923, 64, 128, 128, 256, layers=2, attention=(2,)),
    "unet-l": _unet(
        "baseline: the largest published U-Net",
        111_051_779,
        *(128, 128, 256, 256, 512, 512),
        layers=2,
        attention=(2, 3),
    ),
    "unet-50k": _unet("baseline: as many parameters as diff-nca-small", None, 8, 8, 12, layers=2, groups=4),
    "unet-200k": _unet("baseline: four times as many", None, 20, 20, 28, groups=4),
    "unet-116k": _unet("baseline: as many as fourier-diff-nca-small", None, 16, 16, 20, groups=4),
    "unet-465k": _unet("baseline: four times as many", None, 28, 32, 44, groups=4),
    "dit-s": _labelled("dit", "baseline: a diffusion transformer, takes labels", 32_700_000),
    "ldm-b": _labelled(
        "ldm", "baseline: a U-Net that takes labels", 17_300_000, widths=(64, 128, 128, 256), layers=2, attention=(2,)
    ),
    "vnca": Preset("vnca", "baseline: a variational automaton, square images only", {}, 9_732_416, _VNCA_RECIPES),
    "autoencoder": Preset(
        "autoencoder", "learns latents for the others: --autoencoder learn:4", recipes=_AUTOENCODER_RECIPES
    ),
}


def find_preset(name: str) -> Preset:
    """A preset by its name. Raises InputError, listing the names, for an unknown one."""
    if name not in PRESETS:
        raise InputError(f"there is no model '{name}'; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


def family_class(family: str) -> Any:
    """The class of a family."""
    module, name = FAMILIES[family].split(":")
    return getattr(importlib.import_module(module), name)


def build_model(config: Mapping[str, object], where: str) -> Model:
    """Build a model, with fresh weights, from what `config.json` holds.

    where: named in errors. Raises InputError for an unknown family or setting, or one out of range.
    """
    family = config.get("family")
    if not isinstance(family, str) or family not in FAMILIES:
        raise InputError(f"{where}: there is no model family '{family}'; known are {', '.join(FAMILIES)}")
    levels = config.get("levels")
    for level in levels if isinstance(levels, list) else []:
        if isinstance(level, dict) and level.get("family") in FAMILIES:
            family_class(level["family"])  # imported, so that the pyramid finds it
    return family_class(family).from_config(config, where)  # type: ignore[no-any-return]


def create_model(
    name: str,
    *,
    size: int | tuple[int, int] = 64,
    image_channels: int = 3,
    diffusion: Mapping[str, object] | None = None,
    labels: Sequence[str] = (),
    exclusive: bool = True,
    **architecture: object,
) -> Model:
    """A model with fresh weights, from a preset's name; a plain `nn.Module`.

    size: height and width in pixels that it is made for. architecture: settings that differ from the preset's, such as
    `nca_steps=30`. diffusion: settings of the diffusion, such as `{"timesteps": 1000}`. labels: their names, for a
    family that takes any. exclusive: an image has exactly one of them.
    Raises InputError for an unknown name or setting, or a size that the model cannot do.
    """
    preset = find_preset(name)
    height, width = (size, size) if isinstance(size, int) else size
    config: dict[str, object] = {
        "family": preset.family,
        "image": {"height": height, "width": width, "channels": image_channels},
        "architecture": {**preset.architecture, **architecture},
    }
    if diffusion is not None or preset.diffusion:
        config["diffusion"] = {**preset.diffusion, **(diffusion or {})}
    if labels:
        config["labels"] = {"names": list(labels), "exclusive": exclusive}
    return build_model(config, f"model '{name}'")


def bundled_names() -> list[str]:
    """The names of the trained models that come with the package."""
    return sorted(p.parent.name for p in BUNDLED.glob(f"*/{CONFIG_FILE}"))


def find_model(reference: str | Path) -> Path:
    """The folder of a trained model: a run's, a bundled model's, or one fetched from the hub (`owner/name`).

    Raises InputError if there is none.
    """
    path = Path(reference)
    if path.suffix.lower() in PICKLE_SUFFIXES and path.is_file():
        raise InputError(pickle_refusal(path))
    if path.is_file():
        raise InputError(f"{path} is a file; name the folder that holds {CONFIG_FILE} and {WEIGHTS_FILE}")
    if path.is_dir():
        if not (path / WEIGHTS_FILE).is_file():
            pickles = sorted(p for p in path.iterdir() if p.suffix.lower() in PICKLE_SUFFIXES)
            if pickles:
                raise InputError(pickle_refusal(pickles[0]))
            if (path / "run.json").is_file():
                raise InputError(f"the run {path} has not saved a model yet; let `morphogen train` reach a checkpoint")
            raise InputError(f"the folder {path} holds no {WEIGHTS_FILE}, so it is neither a run nor a model")
        return path
    name = str(reference)
    if name in bundled_names():
        return BUNDLED / name
    if name in PRESETS:
        raise InputError(f"'{name}' is an untrained model; train one with `morphogen train DATA --model {name}`")
    if _HUB_ID.fullmatch(name):
        return _fetch(name)
    raise InputError(
        f"there is no run folder '{name}', and no bundled model of that name (bundled: {', '.join(bundled_names())})"
    )


def _fetch(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE]))
    except Exception as error:  # the hub's client raises many kinds; all mean that the model is not to be had
        reason = first_line(error)
        raise InputError(
            f"there is no folder '{hub_id}', and it could not be fetched as a model of the hub: {reason}"
        ) from None


def public_model(folder: Path) -> dict[str, object]:
    """What published files say of a model in a folder: its name, but not where it lies on this machine; of one of the
    hub its id and revision.
    """
    place = folder.resolve()
    if place.parent.name == "snapshots" and (found := _HUB_CACHE.fullmatch(place.parents[1].name)):
        return {"model": "/".join(found.groups()), "revision": place.name}
    return {"model": place.name}


def model_facts(folder: Path) -> dict[str, object]:
    """What the metadata of a picture say of its model: its public name, a hash of where it lies, which tells folders of
    one name apart, and that of its weights.
    """
    facts = public_model(folder)
    if "revision" not in facts and folder.parent != BUNDLED:
        facts["model_place"] = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:12]
    return {**facts, "weights": sha256(folder / WEIGHTS_FILE)}


def load_model(reference: str | Path) -> Model:
    """A trained model in evaluation mode: from a run or model folder, a bundled name, or a hub id.

    Raises InputError where it cannot be found, or its files are damaged, inconsistent or of an unsafe kind.
    """
    folder = find_model(reference)
    config = read_json(folder / CONFIG_FILE)
    if not isinstance(config, dict):
        raise InputError(f"{folder / CONFIG_FILE} should hold one table of settings")
    where = str(folder / CONFIG_FILE)
    model = build_model(without_header(config, where), where)
    load_weights(model, model.family, folder / WEIGHTS_FILE)
    return model.eval()
