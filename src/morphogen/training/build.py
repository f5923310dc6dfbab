"""A run's model, fresh from the run's seed, and its fast form."""

from __future__ import annotations

import torch

from morphogen.core.condition import Classes
from morphogen.core.model import LabelConfig, Model
from morphogen.core.notices import say_once
from morphogen.diffusion.latents import Autoencoder, OwnAutoencoder
from morphogen.diffusion.predictor import NoisePredictor
from morphogen.models import build_model
from morphogen.training.config import RunConfig
from morphogen.training.devices import Devices, resolve_precision


def build(
    config: RunConfig,
    devices: Devices,
    labels: LabelConfig | None = None,
    autoencoder: Autoencoder | None = None,
    classes: Classes | None = None,
) -> Model:
    """The model of a run with fresh weights, on this process's device. labels, classes: those of the data.

    Says once if there is no fast form of it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        model = build_model(config.model_settings(labels, autoencoder, classes), f"model '{config.model}'")
    if isinstance(autoencoder, OwnAutoencoder) and isinstance(model, NoisePredictor) and model.autoencoder is not None:
        model.autoencoder.load_state_dict(autoencoder.model.state_dict())
    model = model.to(devices.device)
    precision = resolve_precision(config.training.devices.precision, devices.device.type)
    reason = model.compute_in(precision) if config.training.devices.kernel == "auto" else None
    if reason is not None:
        say_once(f"note: training without the fast kernel: {reason}")
    return model
