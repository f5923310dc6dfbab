"""Learning rates over time, and the optimiser's state by name."""

from __future__ import annotations

import math
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from morphogen.training.config import OptimizerConfig, ScheduleConfig, TrainingConfig
from morphogen.training.optimizer import load_optimizer_tensors, make_optimizer, optimizer_tensors, orthogonalised
from morphogen.training.schedule import learning_rate


def of(rate: float, **schedule: Any) -> TrainingConfig:
    """A configuration with a learning rate and a schedule."""
    return TrainingConfig(optimizer=OptimizerConfig(learning_rate=rate), schedule=ScheduleConfig(**schedule))


def test_exponential() -> None:
    config = of(1.6e-3, decay="exponential", decay_rate=0.9999)
    assert learning_rate(config, 0) == 1.6e-3
    assert learning_rate(config, 1) == pytest.approx(1.6e-3 * 0.9999, rel=1e-12)
    assert learning_rate(config, 60_000) == pytest.approx(1.6e-3 * math.exp(-6.0003), rel=1e-4)


def test_inverse_square_root() -> None:
    config = of(1e-2, decay="inverse_sqrt", decay_after=100)
    assert [learning_rate(config, step) for step in (0, 50, 100)] == [1e-2] * 3
    assert learning_rate(config, 400) == pytest.approx(5e-3, rel=1e-12)
    assert learning_rate(config, 10_000) == pytest.approx(1e-3, rel=1e-12)


def test_constant() -> None:
    config = of(0.5, decay="constant")
    assert {learning_rate(config, step) for step in (0, 1, 10**7)} == {0.5}


@pytest.mark.parametrize("decay", ["constant", "exponential", "inverse_sqrt"])
def test_warmup_rises_in_equal_steps_and_multiplies_the_decay(decay: str) -> None:
    plain = of(1.0, decay=decay, decay_after=3)
    warm = of(1.0, decay=decay, decay_after=3, warmup=10)
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
    schedule = ScheduleConfig(decay=decay, warmup=warmup)
    short = TrainingConfig(schedule=schedule, steps=steps)
    endless = TrainingConfig(schedule=schedule, minutes=5)
    assert learning_rate(short, step) == learning_rate(endless, step)
    assert 0 <= learning_rate(short, step) <= short.optimizer.learning_rate


def test_adam_by_its_own_formula() -> None:
    """Against Kingma and Ba, algorithm 1, in float64."""
    model = nn.Linear(3, 2, dtype=torch.float64)
    config = OptimizerConfig(learning_rate=0.1, betas=(0.5, 0.9), epsilon=1e-6)
    optimizer = make_optimizer(model, config)
    weight, m, v = model.weight.detach().clone(), torch.zeros(2, 3), torch.zeros(2, 3)
    for step in range(1, 6):
        gradient = torch.randn(2, 3, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        model.weight.grad, model.bias.grad = gradient, torch.zeros(2, dtype=torch.float64)
        optimizer.step()
        m, v = 0.5 * m + 0.5 * gradient, 0.9 * v + 0.1 * gradient**2
        weight -= 0.1 * (m / (1 - 0.5**step)) / ((v / (1 - 0.9**step)).sqrt() + 1e-6)
    torch.testing.assert_close(model.weight.detach(), weight, rtol=1e-12, atol=1e-12)


class _Mixed(nn.Module):
    """Weights of every kind: matrices wide and high, a convolution, a table, a thin one, vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.high = nn.Linear(24, 9), nn.Linear(8, 40)
        self.convolution = nn.Conv2d(5, 12, 3)
        self.table, self.thin, self.unused = nn.Embedding(10, 16), nn.Linear(7, 30), nn.Linear(9, 9)


MATRICES = ("wide.weight", "high.weight", "convolution.weight")


def _with_gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for name, weight in model.named_parameters():
        if not name.startswith("unused"):
            weight.grad = torch.randn(weight.shape, generator=generator)


def test_muon_is_pytorchs_for_matrices_and_adam_for_the_rest() -> None:
    """torch.optim.Muon takes plain matrices only, and rounds to bfloat16 within: hence 3 % of the way gone."""
    torch.manual_seed(0)
    model = _Mixed()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    like = {name: nn.Parameter(weight.clone()) for name, weight in before.items()}
    flat = {name: nn.Parameter(like[name].detach().flatten(1)) for name in MATRICES}
    ours = make_optimizer(model, OptimizerConfig(name="muon", learning_rate=0.02))
    muon = torch.optim.Muon(flat.values(), lr=0.02, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.Adam([w for name, w in like.items() if name not in MATRICES], lr=0.02, betas=(0.9, 0.99))
    for step in range(6):
        _with_gradients(model, step)
        for name, weight in model.named_parameters():
            like[name].grad = weight.grad
            if name in MATRICES:
                assert weight.grad is not None
                flat[name].grad = weight.grad.flatten(1)
        for optimizer in (ours, muon, adam):
            optimizer.step()
    for name, weight in model.named_parameters():
        if name in MATRICES:
            expected = flat[name].view_as(weight) - before[name]
            assert (weight - before[name] - expected).norm() < 0.03 * expected.norm(), name
        else:
            torch.testing.assert_close(weight, like[name], rtol=1e-5, atol=1e-6, msg=name)
    assert torch.equal(model.unused.weight, before["unused.weight"])


@given(rows=st.integers(1, 40), columns=st.integers(1, 40), seed=st.integers(0, 2**32), scale=st.floats(1e-8, 1e8))
def test_what_is_orthogonalised_keeps_its_directions(rows: int, columns: int, seed: int, scale: float) -> None:
    """Singular values of a random matrix that are not a thousandth of the largest come to 0.5 to 1.3."""
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    u, values, v = torch.linalg.svd(matrix, full_matrices=False)
    inner = u.T @ orthogonalised(scale * matrix) @ v.T
    assert (inner - inner.diag().diag()).abs().max() < 1e-8  # the same singular vectors
    big = values > 0.05 * values.norm()
    assert ((inner.diag()[big] > 0.5) & (inner.diag()[big] < 1.3)).all()
    assert orthogonalised(torch.zeros(rows, columns)).count_nonzero() == 0


@pytest.mark.parametrize("name", ["adam", "muon"])
def test_the_state_goes_out_and_in_by_name(name: Literal["adam", "muon"]) -> None:
    def steps(model: nn.Module, optimizer: torch.optim.Optimizer, numbers: range) -> None:
        for k in numbers:
            for weight in model.parameters():
                weight.grad = torch.full_like(weight, float(k + 1)).cos()
            optimizer.step()

    config = OptimizerConfig(name=name)
    first, second = nn.Linear(9, 8), nn.Linear(9, 8)
    one, two = make_optimizer(first, config), make_optimizer(second, config)
    assert optimizer_tensors(first, one) == {}  # before the first step there is nothing
    steps(first, one, range(3))
    names = set(optimizer_tensors(first, one))
    adam = {"step", "exp_avg", "exp_avg_sq"}
    assert names == {f"bias/{k}" for k in adam} | {f"weight/{k}" for k in (adam if name == "adam" else {"momentum"})}
    second.load_state_dict(first.state_dict())
    load_optimizer_tensors(second, two, {k: v.clone() for k, v in optimizer_tensors(first, one).items()})
    steps(first, one, range(3, 6))
    steps(second, two, range(3, 6))
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)
