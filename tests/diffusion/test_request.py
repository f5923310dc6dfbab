"""Requests of sampling: what is filled in, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from morphogen.core.errors import InputError
from morphogen.core.request import SamplingRequest
from morphogen.core.sizes import parse_size
from morphogen.diffusion.config import DiffusionConfig
from morphogen.diffusion.request import FROM_IMAGE, FROM_NOISE, ON_CANVAS, ON_SCREEN, SamplingDefaults, resolve

Gaussian = Callable[..., Any]


@pytest.mark.parametrize(
    ("default", "asked", "found"),
    [
        (FROM_NOISE, (None, None), ("ddim", 50)),
        (FROM_NOISE, ("dpm++", None), ("dpm++", 25)),
        (FROM_NOISE, ("ddpm", None), ("ddpm", 300)),
        (FROM_NOISE, (None, 7), ("ddim", 7)),
        (FROM_IMAGE, (None, None), ("ddpm", 50)),
        (FROM_IMAGE, (None, 7), ("ddpm", 7)),
        (FROM_IMAGE, ("ddpm", None), ("ddpm", 300)),
        (FROM_IMAGE, ("heun", None), ("heun", 25)),
        (ON_CANVAS, (None, None), ("dpm++", 12)),
        (ON_CANVAS, ("dpm++", None), ("dpm++", 12)),
        (ON_CANVAS, (None, 7), ("dpm++", 7)),
        (ON_CANVAS, ("ddim", None), ("ddim", 50)),
        (ON_SCREEN, ("dpm++", None), ("dpm++", 12)),
        (ON_SCREEN, ("ddim", None), ("ddim", 20)),
        (ON_SCREEN, ("ddim", 9), ("ddim", 9)),
    ],
)
def test_what_is_left_open_is_filled_in_once(
    gaussian: Gaussian, default: SamplingDefaults, asked: tuple[Any, Any], found: tuple[str, int]
) -> None:
    model = gaussian(DiffusionConfig(timesteps=300), 0.0, 1.0)
    request = resolve(SamplingRequest(*asked, guidance=2.0, precision="float32"), model, default)
    assert request == SamplingRequest(*found, guidance=2.0, precision="float32")
    assert resolve(request, model) == request
    few = gaussian(DiffusionConfig(timesteps=4), 0.0, 1.0)
    assert asked[1] or resolve(SamplingRequest(*asked), few, default).steps == 4


def test_what_cannot_be_is_refused(gaussian: Gaussian) -> None:
    model = gaussian(DiffusionConfig(timesteps=300), 0.0, 1.0)
    for wrong, says in (
        ({"sampler": "magic"}, "there is no sampler 'magic'; choose one of ddpm, ddim"),
        ({"steps": 301}, "sampling steps is 301, but this model has timesteps for 1 to 300"),
        ({"steps": 0}, "sampling steps is 0"),
        ({"nca_steps": 3}, "gaussian has no NCA steps"),
        ({"guidance": -1.0}, "the guidance scale is -1"),
        ({"guidance": float("nan")}, "the guidance scale is nan"),
        ({"precision": "float16"}, "precision is 'float16'; it should be one of auto, bfloat16, float32"),
    ):
        with pytest.raises(InputError, match=says):
            resolve(SamplingRequest(**wrong), model)  # type: ignore[arg-type]


def test_sizes() -> None:
    for text, size in (("64", (64, 64)), (" 64x96 ", (64, 96)), ("20000X30000", (20000, 30000)), ("8 × 9", (8, 9))):
        assert parse_size(text) == size
    for text in ("", "x", "64x", "-1", "6.4", "12,5", "1x2x3"):
        with pytest.raises(ValueError, match="should be one number or HEIGHTxWIDTH"):
            parse_size(text)
