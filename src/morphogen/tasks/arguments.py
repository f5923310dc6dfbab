"""Checks of the arguments of `Pipeline` in Python: a wrong type becomes one sentence that says what would be right."""

from __future__ import annotations

import numbers
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from morphogen.core.errors import InputError
from morphogen.core.images import to_bytes, to_pil, with_scale
from morphogen.core.keys import Key
from morphogen.core.model import Callback, StepInfo

OutputType = Literal["pil", "np", "pt"]
StepEndCallback = Callable[[Any, int, int | None, dict[str, object]], Any]


def whole_number(value: Any, name: str) -> int:
    """A whole number. Raises InputError, naming it, for anything else; whether it can be is asked where it is used."""
    try:
        found = operator.index(value)
    except TypeError:
        found = None
    if found is None or isinstance(value, bool):
        raise InputError(f"{name} is {value!r}; it should be a whole number")
    return found


def optional_number(value: object, name: str) -> int | None:
    """A whole number, or None. Raises InputError, naming it, for anything else."""
    return None if value is None else whole_number(value, name)


def real_number(value: object, name: str) -> float:
    """A number. Raises InputError, naming it, for anything else."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InputError(f"{name} is {value!r}; it should be a number")
    return float(value)


def one_of(value: object, name: str, choices: object) -> Any:
    """One of the values of a Literal. Raises InputError, naming it and listing them, for anything else."""
    known = get_args(choices)
    if not isinstance(value, str) or value not in known:
        raise InputError(f"{name} is {value!r}; it should be {', '.join(known[:-1])} or {known[-1]}")
    return value


def choose_seeds(num_images: object, seeds: object, generator: object) -> list[int]:
    """The seed of every image: those given; as many as images from one on; or drawn. Raises InputError for others."""
    count = None if num_images is None else whole_number(num_images, "num_images")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise InputError(f"generator is a {type(generator).__name__}; it should be a torch.Generator, or use seeds")
    if seeds is None:
        return draw_seeds(1 if count is None else count, generator)
    if isinstance(seeds, str) or not isinstance(seeds, Iterable):
        first = whole_number(seeds, "seeds")
        seeds = range(first, first + (1 if count is None else count))
    chosen = list(Key.of(seeds).seeds)
    if count is not None and len(chosen) != count:
        raise InputError(f"num_images is {count}, but there are {len(chosen)} seeds")
    if not chosen:
        raise InputError("there are no seeds; give at least one")
    return chosen


def draw_seeds(count: int, generator: torch.Generator | None = None) -> list[int]:
    """Seeds from a torch generator, or new ones from the system if there is none."""
    if count < 1:
        raise InputError(f"the number of images is {count}; it should be at least 1")
    if generator is None:
        generator = torch.Generator()
        generator.seed()
    device = generator.device
    return [int(s) for s in torch.randint(2**31, (count,), generator=generator, device=device)]


def combined(pipeline: Any, callback: Any, at_step_end: Any) -> Callback | None:
    """Our callback and one of diffusers' kind as one. Raises InputError for what cannot be called."""
    for name, given in (("callback", callback), ("callback_on_step_end", at_step_end)):
        if given is not None and not callable(given):
            raise InputError(f"{name} is a {type(given).__name__}; it should be a function")
    if at_step_end is None:
        return callback  # type: ignore[no-any-return]

    def report(now: StepInfo) -> torch.Tensor | None:
        changed: torch.Tensor | None = None if callback is None else callback(now)
        images = now.images if changed is None else changed
        found = at_step_end(pipeline, now.step - 1, now.timestep, {"latents": images})
        if found is not None and not isinstance(found, Mapping):
            raise InputError(f"callback_on_step_end returned a {type(found).__name__}; it should be a dict or None")
        latents = None if found is None else found.get("latents")
        return changed if latents is None or latents is images else latents

    return report


def convert(images: Tensor, output_type: OutputType, mpp: float | None) -> list[Image.Image] | np.ndarray | Tensor:
    """Images float (B, C, H, W) as the user wants them. mpp: their micrometres a pixel, which PIL images say."""
    match output_type:
        case "pil":
            return [with_scale(image, mpp) for image in to_pil(images)]
        case "np":
            return to_bytes(images)
        case "pt":
            return images.clamp(-1, 1)
