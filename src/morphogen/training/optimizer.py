"""Adam and Muon, and an optimiser's state as named tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from morphogen.training.config import OptimizerConfig

_SMALLEST = 8  # rows and columns of what Muon takes for a matrix
_MOMENTUM = 0.95
_LIKE_ADAM = 0.2  # Liu et al., "Muon is scalable for LLM training" (2025): the size of Adam's updates
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # of Jordan's; five times bring singular values to about 0.7 to 1.2


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al., 2024) for matrices, Adam for all else, at one learning rate.

    A matrix's update is its momentum with all singular values brought to about one. A convolution is a matrix of
    outputs by everything else. matrices, others: the weights, of which any may go without a gradient.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        lr: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        kinds = [{"params": list(matrices), "matrices": True}, {"params": list(others), "matrices": False}]
        super().__init__([kind for kind in kinds if kind["params"]], {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Change every weight that has a gradient. There is no closure."""
        for group in self.param_groups:
            change = self._muon if group["matrices"] else self._adam
            for weight in group["params"]:
                if weight.grad is not None:
                    change(weight, weight.grad, self.state[weight], group)

    @staticmethod
    def _muon(weight: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        ahead = gradient.lerp(state["momentum"].lerp_(gradient, 1 - _MOMENTUM), _MOMENTUM)  # Nesterov's
        update = orthogonalised(ahead.flatten(1)).view_as(weight)
        weight.add_(update, alpha=-group["lr"] * _LIKE_ADAM * math.sqrt(max(weight.flatten(1).shape)))

    @staticmethod
    def _adam(weight: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        if not state:
            zeros = {key: torch.zeros_like(weight) for key in ("exp_avg", "exp_avg_sq")}
            state.update(zeros, step=torch.tensor(0.0))
        state["step"] += 1
        (first, second), steps = group["betas"], float(state["step"])
        state["exp_avg"].lerp_(gradient, 1 - first)
        state["exp_avg_sq"].lerp_(gradient.square(), 1 - second)
        spread = (state["exp_avg_sq"] / (1 - second**steps)).sqrt_().add_(group["eps"])
        weight.addcdiv_(state["exp_avg"], spread, value=-group["lr"] / (1 - first**steps))


def orthogonalised(matrix: Tensor) -> Tensor:
    """A matrix (m, n) with the same singular vectors and all singular values at about one (0.7 to 1.2), by five
    Newton-Schulz iterations; nothing but zeros stays zeros.
    """
    a, b, c = _NEWTON_SCHULZ
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = x / x.norm().clamp_min(1e-12)
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.T


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimiser of a configuration, over all weights of the model that learn."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    if config.name == "adam":
        return torch.optim.Adam(weights, lr=config.learning_rate, betas=config.betas, eps=config.epsilon, foreach=True)
    tables = {id(table.weight) for table in model.modules() if isinstance(table, nn.Embedding)}
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for weight in weights:
        is_matrix = weight.ndim > 1 and min(weight.flatten(1).shape) >= _SMALLEST and id(weight) not in tables
        (matrices if is_matrix else others).append(weight)
    return Muon(matrices, others, config.learning_rate, config.betas, config.epsilon)


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state, each tensor named by its weight: `NAME/exp_avg` and so on."""
    return {
        f"{name}/{key}": value
        for name, weight in model.named_parameters()
        if weight.requires_grad
        for key, value in optimizer.state[weight].items()
    }


def load_optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave."""
    weights = dict(model.named_parameters())
    for full_name, value in tensors.items():
        name, _, key = full_name.rpartition("/")
        weight = weights[name]
        optimizer.state[weight][key] = value if key == "step" else value.to(weight.device)
