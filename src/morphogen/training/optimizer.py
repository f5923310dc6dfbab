"""Adam, its learning rate over time, and its state as named tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from morphogen.training.config import TrainingConfig


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Adam:
    """Adam over all weights of the model."""
    return torch.optim.Adam(
        model.parameters(), lr=config.learning_rate, betas=config.betas, eps=config.epsilon, foreach=True
    )


def learning_rate(config: TrainingConfig, step: int) -> float:
    """The learning rate of step number `step` (from 0). It never depends on how long the run will be."""
    rate = config.learning_rate
    if config.warmup:
        rate *= min(1.0, (step + 1) / config.warmup)
    if config.decay == "exponential":
        return rate * config.decay_rate**step
    if config.decay == "inverse_sqrt":
        return rate / math.sqrt(max(1.0, step / config.decay_after))
    return rate


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state, each tensor named by its weight: `NAME/exp_avg` and so on."""
    return {
        f"{name}/{key}": value
        for name, weight in model.named_parameters()
        for key, value in optimizer.state[weight].items()
    }


def load_optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave."""
    weights = dict(model.named_parameters())
    for full_name, value in tensors.items():
        name, _, key = full_name.rpartition("/")
        weight = weights[name]
        optimizer.state[weight][key] = value if key == "step" else value.to(weight.device)
