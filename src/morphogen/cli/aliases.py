"""Other words for options: those of diffusers become ours before a command reads them, and a wrong one its nearest."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from morphogen.core.errors import InputError

_ALIASES = {
    "--num-inference-steps": "--sampling-steps",
    "--guidance-scale": "--guidance",
    "--num-images": "--n",
    "--scheduler": "--sampler",
}
_SIZES = ("sample", "slide", "train")
_HOME = re.compile(r"^(--[a-z-]+=)~(?=/|$)")  # which a shell leaves as it is after an equals sign


def in_our_words(words: Sequence[str]) -> list[str]:
    """The arguments of a command with diffusers' options as ours: `--height 64 --width 96` as `--size 64x96`.

    Also puts the home folder for `~` after an equals sign. Raises InputError for one of height and width alone.
    """
    ours: list[str] = []
    sizes: dict[str, str] = {}
    waiting = iter(words)
    for word in waiting:
        if word == "--":
            return [*ours, word, *waiting]
        name, equals, value = word.partition("=")
        if name in ("--height", "--width") and words[0] in _SIZES:
            sizes[name] = value if equals else next(waiting, "")
        elif name in _ALIASES:
            ours.append(_ALIASES[name] + equals + value)
        else:
            ours.append(_HOME.sub(lambda found: found[1] + str(Path.home()), word))
    if len(sizes) == 1:
        given = next(iter(sizes))
        raise InputError(f"{given} needs {'--width' if given == '--height' else '--height'}; or give --size HxW")
    return [*ours, "--size", f"{sizes['--height']}x{sizes['--width']}"] if sizes else ours


def _settings(word: str, options: Sequence[str]) -> list[str]:
    """The settings of a training that a word may mean: their options where they have any of their own, else `--set`."""
    from morphogen.training.config import RunConfig
    from morphogen.training.settings import settings_called

    found = settings_called(word.lstrip("-").replace("-", "_"), RunConfig)
    own = {name: "--" + name.rpartition(".")[2].replace("_", "-") for name in found}
    return [option if option in options else f"--set {name}=..." for name, option in own.items()][:3]


def nearest_options(word: str, command: Any) -> list[str]:
    """The options of a command that a wrong one may mean: those that hold it or are held by it, or one that is like it,
    the most likely first.
    """
    known = [name for parameter in command.params for name in parameter.opts if name.startswith("--")]
    if command.name == "train" and (settings := _settings(word, known)):
        return settings
    others = [name for name, ours in _ALIASES.items() if ours in known]
    others += ["--height", "--width"] if command.name in _SIZES else []
    plain = word.lstrip("-").replace("_", "-")
    held = [name for name in known if min(len(plain), len(name) - 2) > 2 and (plain in name or name[2:] in plain)]
    like = difflib.get_close_matches(f"--{plain}", [*known, *others], n=1)
    return list(dict.fromkeys([*like, *held]))[:3]
