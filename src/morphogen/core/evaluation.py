"""The conditioning of an evaluation, beside the noisy images and their timesteps."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from morphogen.core.keys import Key


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One evaluation of a denoiser: all its inputs but x and t.

    key: one seed an image; its counter is at this evaluation. labels: float (B, K), 1 for each label of an image; None
    where they are not known. memory: of the last evaluation's prediction, or None. active: boolean (B, 1, H, W), the
    cells that may update; None for all. nca_steps: NCA steps to run instead of the model's own. condition: float
    (B, K, H, W), the condition of each pixel, for a model that was trained with one.
    """

    key: Key
    labels: Tensor | None = None
    memory: Tensor | None = None
    active: Tensor | None = None
    nca_steps: int | None = None
    condition: Tensor | None = None
