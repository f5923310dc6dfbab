"""Learning rates over time, and the optimiser's state by name."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from morphogen.training.config import TrainingConfig
from morphogen.training.optimizer import learning_rate, load_optimizer_tensors, make_optimizer, optimizer_tensors


def test_exponential() -> None:
    config = TrainingConfig(learning_rate=1.6e-3, decay="exponential", decay_rate=0.9999)
    assert learning_rate(config, 0) == 1.6e-3
    assert learning_rate(config, 1) == pytest.approx(1.6e-3 * 0.9999, rel=1e-12)
    assert learning_rate(config, 60_000) == pytest.approx(1.6e-3 * math.exp(-6.0003), rel=1e-4)


def test_inverse_square_root() -> None:
    config = TrainingConfig(learning_rate=1e-2, decay="inverse_sqrt", decay_after=100)
    assert [learning_rate(config, step) for step in (0, 50, 100)] == [1e-2] * 3
    assert learning_rate(config, 400) == pytest.approx(5e-3, rel=1e-12)
    assert learning_rate(config, 10_000) == pytest.approx(1e-3, rel=1e-12)


def test_constant() -> None:
    config = TrainingConfig(learning_rate=0.5, decay="constant")
    assert {learning_rate(config, step) for step in (0, 1, 10**7)} == {0.5}


@pytest.mark.parametrize("decay", ["constant", "exponential", "inverse_sqrt"])
def test_warmup_rises_in_equal_steps_and_multiplies_the_decay(decay: str) -> None:
    plain = TrainingConfig(learning_rate=1.0, decay=decay, decay_after=3)
    warm = plain.model_copy(update={"warmup": 10})
    for step in range(30):
        share = min(1.0, (step + 1) / 10)
        assert learning_rate(warm, step) == pytest.approx(share * learning_rate(plain, step), rel=1e-12)
    assert learning_rate(warm, 0) > 0


@given(
    step=st.integers(0, 10**6),
    decay=st.sampled_from(["constant", "exponential", "inverse_sqrt"]),
    steps=st.integers(1, 10**6),
    warmup=st.integers(0, 1000),
)
def test_it_never_depends_on_the_length_of_the_run(step: int, decay: str, steps: int, warmup: int) -> None:
    short = TrainingConfig(decay=decay, steps=steps, warmup=warmup)
    endless = TrainingConfig(decay=decay, minutes=5, warmup=warmup)
    assert learning_rate(short, step) == learning_rate(endless, step)
    assert 0 <= learning_rate(short, step) <= short.learning_rate


def test_adam_by_its_own_formula() -> None:
    """Against Kingma and Ba, algorithm 1, in float64."""
    model = nn.Linear(3, 2, dtype=torch.float64)
    config = TrainingConfig(learning_rate=0.1, betas=(0.5, 0.9), epsilon=1e-6)
    optimizer = make_optimizer(model, config)
    weight, m, v = model.weight.detach().clone(), torch.zeros(2, 3), torch.zeros(2, 3)
    for step in range(1, 6):
        gradient = torch.randn(2, 3, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        model.weight.grad, model.bias.grad = gradient, torch.zeros(2, dtype=torch.float64)
        optimizer.step()
        m, v = 0.5 * m + 0.5 * gradient, 0.9 * v + 0.1 * gradient**2
        weight -= 0.1 * (m / (1 - 0.5**step)) / ((v / (1 - 0.9**step)).sqrt() + 1e-6)
    torch.testing.assert_close(model.weight.detach(), weight, rtol=1e-12, atol=1e-12)


def test_the_state_goes_out_and_in_by_name() -> None:
    def steps(model: nn.Module, optimizer: torch.optim.Optimizer, numbers: range) -> None:
        for k in numbers:
            for weight in model.parameters():
                weight.grad = torch.full_like(weight, float(k + 1)).cos()
            optimizer.step()

    config = TrainingConfig()
    first, second = nn.Linear(3, 2), nn.Linear(3, 2)
    one, two = make_optimizer(first, config), make_optimizer(second, config)
    assert optimizer_tensors(first, one) == {}  # before the first step there is nothing
    steps(first, one, range(3))
    names = set(optimizer_tensors(first, one))
    assert names == {f"{w}/{k}" for w in ("weight", "bias") for k in ("step", "exp_avg", "exp_avg_sq")}
    second.load_state_dict(first.state_dict())
    load_optimizer_tensors(second, two, {k: v.clone() for k, v in optimizer_tensors(first, one).items()})
    steps(first, one, range(3, 6))
    steps(second, two, range(3, 6))
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)
