"""A small model with random weights in the latents of an autoencoder with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from morphogen.core.condition import ConditionConfig
from morphogen.core.model import ImageConfig
from morphogen.core.model_files import save_model
from morphogen.diffusion.latents import OwnAutoencoder
from morphogen.diffusion.learned_autoencoder import AutoencoderConfig, LearnedAutoencoder
from morphogen.diffusion.predictor import NoisePredictor
from morphogen.models import build_model


def save_latent_model(folder: Path, classes: dict[str, str | None] | None = None) -> Path:
    """A Diff-NCA in latents of 2x2 pixels a cell, which is told maps of these classes, if any."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        learned = AutoencoderConfig(factor=2, width=8, blocks=1)
        autoencoder = LearnedAutoencoder(ImageConfig(height=32, width=32), learned)
        for weight in autoencoder.parameters():
            torch.nn.init.normal_(weight, std=0.1)
        own = OwnAutoencoder(autoencoder, "learn:2")
        config: dict[str, Any] = {
            "family": "diff-nca",
            "image": {"height": 16, "width": 16, "channels": 4},
            "architecture": {"channels": 12 if classes is None else 20, "hidden": 16, "nca_steps": 2},
            "latents": own.config((0.1,) * 4, (0.5,) * 4).settings(),
        }
        if classes is not None:
            config["condition"] = ConditionConfig.of_map(classes).settings()
        model = build_model(config, "tiny")
        assert isinstance(model, NoisePredictor) and model.autoencoder is not None
        if classes is not None:  # so that a map changes what is painted
            for weight in model.parameters():
                weight.data.add_(0.2 * torch.randn(weight.shape))
    model.autoencoder.load_state_dict(autoencoder.state_dict())
    save_model(model, model.config_dict(), folder)
    return folder
