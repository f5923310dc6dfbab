"""Classifier-free guidance (Ho and Salimans, "Classifier-free diffusion guidance", equation 6 with w = scale - 1)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from morphogen.core.errors import InputError
from morphogen.core.evaluation import Evaluation
from morphogen.core.model import Prediction
from morphogen.diffusion.predictor import NoisePredictor
from morphogen.diffusion.tiling import needs_tiles, predict_in_tiles


def guided(denoiser: NoisePredictor, x: Tensor, t: Tensor, evaluation: Evaluation, scale: float) -> Prediction:
    """The prediction without labels, and further on along the way from there to the one with the evaluation's labels.

    scale: 1 is the denoiser itself, 0 the one without labels; above 1 labels count for more. Below and above 1 the
    denoiser is evaluated once, on twice the batch, under the same keys, so that both halves see the same fire masks;
    the memory is that of both halves, and the variance that of the half that knows the labels.

    Large images are evaluated in tiles where that gives the same.

    Raises InputError for a scale that `check_guidance` refuses.
    """
    predict = partial(predict_in_tiles, denoiser) if needs_tiles(denoiser, x) else denoiser
    if scale == 1:
        return predict(x, t, evaluation)
    check_guidance(denoiser, scale, evaluation.labels)
    labels, key = evaluation.labels, evaluation.key
    assert labels is not None
    active, condition = evaluation.active, evaluation.condition
    with_and_without = replace(
        evaluation,
        key=replace(key, seeds=key.seeds * 2, origins=key.origins * 2),
        labels=torch.cat([labels, torch.full_like(labels, denoiser.null_label)]),
        active=None if active is None else active.expand(len(x), -1, -1, -1).repeat(2, 1, 1, 1),
        condition=None if condition is None else condition.repeat(2, 1, 1, 1),
    )
    both = predict(torch.cat([x, x]), torch.cat([t, t]), with_and_without)
    conditional, unconditional = both.noise.chunk(2)
    variance = None if both.variance is None else both.variance.chunk(2)[0]
    return Prediction(torch.lerp(unconditional, conditional, scale), variance, both.memory)


def check_guidance(denoiser: NoisePredictor, scale: float, labels: Tensor | None) -> None:
    """Raise InputError for a scale other than 1 without labels, or of a model without any."""
    if scale == 1:
        return
    if labels is None:
        raise InputError(f"guidance {scale:g} needs labels; name at least one, or leave guidance out")
    if not denoiser.labels.names:
        raise InputError(f"guidance needs a model that was trained with labels, which this {denoiser.family} is not")
