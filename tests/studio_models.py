"""Models for the tests of the studio."""

from __future__ import annotations

import torch

from morphogen.core.model import Model
from morphogen.models import create_model

SMALL = {"channels": 8, "hidden": 16, "nca_steps": 3}


def steady(name: str, **settings: object) -> Model:
    """An untrained model whose output stays of the size of noise, as a trained one's does."""
    torch.manual_seed(0)
    model = create_model(name, diffusion={"timesteps": 20}, **{**SMALL, **settings})  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter, weight in model.named_parameters():
            if parameter.endswith("output.weight_g"):
                weight.mul_(0.6)
    return model.eval()
