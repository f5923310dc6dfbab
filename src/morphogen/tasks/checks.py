"""Checks of the model and the input for the tasks that begin with an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from morphogen.core.errors import InputError
from morphogen.core.keys import Key
from morphogen.core.model import Callback, Model, StepInfo
from morphogen.diffusion.denoiser import Denoiser
from morphogen.diffusion.ladder import Ladder


def need_denoiser(model: Model, task: str, pixels: bool = False) -> Denoiser:
    """The model as a denoiser. Raises InputError, naming its family and the task, where it predicts no noise, and where
    it works in latents but the task is about `pixels`.
    """
    if not model.predicts_noise or not isinstance(model, Denoiser):
        raise InputError(f"{model.family} predicts no noise, which {task} needs; use a diffusion model")
    if pixels and model.latents is not None:
        raise InputError(f"{task} needs a model of pixels; this {model.family} works in latents")
    return model


def need_painting(model: Model, task: str) -> Denoiser:
    """The denoiser that paints at full resolution: a pyramid's finest level, or the model itself. Raises InputError as
    `need_denoiser`.
    """
    return model[len(model) - 1] if isinstance(model, Ladder) else need_denoiser(model, task)


def need_painter(model: Model, task: str) -> Denoiser:
    """The model as a denoiser whose pictures can be painted in parts. Raises InputError as `need_denoiser`, and for one
    in the latents of an autoencoder whose reach is not known.
    """
    denoiser = need_denoiser(model, task)
    if denoiser.latents is not None and denoiser.autoencoder is None:
        raise InputError(
            f"{task} needs a model of pixels, or of latents that Morphogen has learnt (--autoencoder learn:4); this "
            f"{model.family} works in latents of {denoiser.latents.autoencoder}"
        )
    return denoiser


def check_images(model: Model, images: Tensor, seeds: Sequence[int] | Key) -> None:
    """Raise InputError unless images are (B, C, H, W) of the model's channels and of a size it can work at, with a
    seed for each.
    """
    if images.ndim != 4 or images.shape[1] != model.picture.channels:
        raise InputError(
            f"the images have the shape {tuple(images.shape)}; it should be (images, {model.picture.channels}, height, "
            "width)"
        )
    check_size(model, (images.shape[-2], images.shape[-1]))
    if len(seeds) != len(images):
        raise InputError(f"there are {len(seeds)} seeds for {len(images)} images")


def check_size(model: Model, size: tuple[int, int]) -> None:
    """Raise InputError unless a model can work at a size (height, width) in pixels."""
    height, width = size
    if min(height, width) < model.minimum_picture:
        raise InputError(
            f"the size {height}x{width} is too small: {model.family} needs at least {model.minimum_picture} on each "
            "side"
        )


def check_share(value: float, name: str) -> None:
    """Raise InputError unless a number lies in 0..1 (and is one)."""
    if not 0 <= value <= 1:
        raise InputError(f"{name} is {value:g}; it should be between 0 and 1")


def with_known(callback: Callback | None, images: Tensor, free: Tensor) -> Callback | None:
    """A callback that is told the known images wherever they are not free, boolean (B, 1, H, W)."""
    if callback is None:
        return None

    def report(now: StepInfo) -> None:
        shown, clean = (part.where(free, images) for part in (now.images, now.clean))
        check_unchanged(callback(replace(now, images=shown, clean=clean)))

    return report


def check_unchanged(changed: Tensor | None) -> None:
    """Raise InputError where a callback returned other images although what is known of them is put back."""
    if changed is not None:
        raise InputError(
            "the callback returned other images, which inpainting and upscaling cannot take: they put back what is "
            "known; return None"
        )
