"""Classifier-free guidance (Ho and Salimans, "Classifier-free diffusion guidance", equation 6 with w = scale - 1)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from morphogen.core.errors import InputError
from morphogen.core.evaluation import Evaluation
from morphogen.core.model import Prediction
from morphogen.diffusion.condition import without_map
from morphogen.diffusion.predictor import NoisePredictor
from morphogen.diffusion.tiling import needs_tiles, predict_in_tiles


def guided(denoiser: NoisePredictor, x: Tensor, t: Tensor, evaluation: Evaluation, scale: float) -> Prediction:
    """The prediction without labels and map, and further on along the way from there to the one with the evaluation's.

    scale: 1 is the denoiser itself, 0 the one without them; above 1 they count for more. Below and above 1 the
    denoiser is evaluated once, on twice the batch, under the same keys, so that both halves see the same fire masks;
    the memory is that of both halves, and the variance that of the half that knows them.

    Large images are evaluated in tiles where that gives the same.

    Raises InputError for a scale that `check_guidance` refuses.
    """
    predict = partial(predict_in_tiles, denoiser) if needs_tiles(denoiser, x) else denoiser
    if scale == 1:
        return predict(x, t, evaluation)
    labels, key = evaluation.labels, evaluation.key
    active, condition = evaluation.active, evaluation.condition
    check_guidance(denoiser, scale, labels, condition)
    if condition is not None:
        assert denoiser.condition is not None
        condition = torch.cat([condition, without_map(denoiser.condition, condition)])
    with_and_without = replace(
        evaluation,
        key=replace(key, seeds=key.seeds * 2, origins=key.origins * 2),
        labels=None if labels is None else torch.cat([labels, torch.full_like(labels, denoiser.null_label)]),
        active=None if active is None else active.expand(len(x), -1, -1, -1).repeat(2, 1, 1, 1),
        condition=condition,
    )
    both = predict(torch.cat([x, x]), torch.cat([t, t]), with_and_without)
    conditional, unconditional = both.noise.chunk(2)
    variance = None if both.variance is None else both.variance.chunk(2)[0]
    return Prediction(torch.lerp(unconditional, conditional, scale), variance, both.memory)


def check_guidance(
    denoiser: NoisePredictor, scale: float, labels: Tensor | None, condition: Tensor | None = None
) -> None:
    """Raise InputError for a scale other than 1 without labels or a map, or of a model without any."""
    if scale == 1 or (denoiser.classes and condition is not None):
        return
    if denoiser.classes:
        raise InputError(f"guidance {scale:g} needs a map or labels; give one, or leave guidance out")
    if labels is None:
        raise InputError(f"guidance {scale:g} needs labels; name at least one, or leave guidance out")
    if not denoiser.labels.names:
        raise InputError(f"guidance needs a model that was trained with labels, which this {denoiser.family} is not")
