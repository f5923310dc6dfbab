"""Evaluating a large noisy image tile by tile, so that memory does not grow with it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from morphogen.core.evaluation import Evaluation
from morphogen.core.model import Prediction
from morphogen.diffusion.predictor import NoisePredictor

TILE = 512
LARGE_PIXELS = 4 * TILE**2


def needs_tiles(denoiser: NoisePredictor, x: Tensor) -> bool:
    """Whether noisy images (B, C, H, W) are better evaluated in tiles, and the model gives the same in them."""
    return x.shape[-2] * x.shape[-1] > LARGE_PIXELS and denoiser.exact_in_tiles and not torch.is_grad_enabled()


def predict_in_tiles(denoiser: NoisePredictor, x: Tensor, t: Tensor, evaluation: Evaluation) -> Prediction:
    """The predicted noise of noisy images (B, C, H, W): each tile is read with a halo of the model's range around it,
    under the key of its place, and equals the same region of the whole. Tiles without active cells are not computed.
    """
    cell, halo = denoiser.cell_size, denoiser.receptive_range
    assert halo is not None
    height, width = x.shape[-2:]
    canvas = evaluation.key.canvas or (height, width)
    if evaluation.nca_steps is not None:  # news travels by one cell a step
        halo += max(0, evaluation.nca_steps - (denoiser.context or 0) // cell) * cell
    side, reach = -(-TILE // cell) * cell, -(-halo // cell) * cell  # in whole cells
    noise = torch.zeros_like(x)
    for top in range(0, height, side):
        for left in range(0, width, side):
            first_row, last_row = max(0, top - reach), min(height, top + side + reach)
            first_column, last_column = max(0, left - reach), min(width, left + side + reach)
            outer = (..., slice(first_row, last_row), slice(first_column, last_column))
            active = None if evaluation.active is None else evaluation.active[outer]
            if active is not None and not bool(active.any()):
                continue
            key = replace(evaluation.key.moved(first_row, first_column), canvas=canvas)
            condition = None if evaluation.condition is None else evaluation.condition[outer]
            part = denoiser(x[outer], t, replace(evaluation, key=key, active=active, condition=condition)).noise
            rows, columns = slice(top, min(top + side, height)), slice(left, min(left + side, width))
            noise[..., rows, columns] = part[
                ...,
                rows.start - first_row : rows.stop - first_row,
                columns.start - first_column : columns.stop - first_column,
            ]
    return Prediction(noise)
