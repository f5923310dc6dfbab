"""The average of the weights: what share each past step has in it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from morphogen import create_model
from morphogen.core.model import Model
from morphogen.training.config import AveragingConfig
from morphogen.training.ema import EMA, relative_exponent


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return create_model("diff-nca-small", size=16, channels=8, hidden=16)


def shares(ema: EMA, steps: int) -> np.ndarray:
    """The weight of each step 1..steps in the average after the last, by the decays alone; [0] is the start's."""
    found = np.zeros(steps + 1)
    found[0] = 1.0
    for step in range(1, steps + 1):
        found *= ema.decay(step)
        found[step] = 1 - ema.decay(step)
    return found


def test_constant_decay(model: Model) -> None:
    ema = EMA(model, AveragingConfig(kind="constant", decay=0.75))
    values = [float(k**2) for k in range(1, 6)]
    start = next(iter(model.parameters())).detach().clone()
    for step, value in enumerate(values, 1):
        with torch.no_grad():
            for weight in model.parameters():
                weight.fill_(value)
        ema.update(model, step)
    wanted = 0.75**5 * start.double() + sum(0.25 * 0.75 ** (5 - k) * v for k, v in enumerate(values, 1))
    # 1e-6: five interpolations in float32.
    torch.testing.assert_close(next(iter(ema.model.parameters())).double(), wanted, rtol=1e-6, atol=1e-6)


def test_the_published_average_spans_about_a_hundred_steps(model: Model) -> None:
    found = shares(EMA(model, AveragingConfig(kind="constant", decay=0.99)), 2000)[1:]
    assert float((found * np.arange(1999, -1, -1)).sum()) == pytest.approx(99, rel=1e-6)


@pytest.mark.parametrize("width", [0.01, 0.05, 0.1, 0.2, 0.25])
def test_relative_width_is_the_standard_deviation_asked_for(model: Model, width: float) -> None:
    steps = 20_000
    found = shares(EMA(model, AveragingConfig(kind="relative", width=width)), steps)
    assert found[0] == 0  # nothing of the random start
    assert found.sum() == pytest.approx(1, rel=1e-9)
    time = np.arange(steps + 1) / steps
    mean = (found * time).sum()
    deviation = np.sqrt((found * (time - mean) ** 2).sum())
    # 1 %: the steps are a sum where the formula is an integral.
    assert deviation == pytest.approx(width, rel=0.01)


def test_the_exponent_of_a_published_width() -> None:
    """Karras et al. give the exponents of two widths (section 3.1): 6.94 for 0.10 and 16.97 for 0.05."""
    assert relative_exponent(0.10) == pytest.approx(6.94, abs=0.005)
    assert relative_exponent(0.05) == pytest.approx(16.97, abs=0.005)


def test_it_is_a_separate_model_to_use_not_to_train(model: Model) -> None:
    ema = EMA(model.train(), AveragingConfig())
    assert not ema.model.training
    assert model.training
    assert not any(w.requires_grad for w in ema.model.parameters())
    pairs = zip(ema.model.parameters(), model.parameters(), strict=True)
    assert all(a.data_ptr() != b.data_ptr() and torch.equal(a, b) for a, b in pairs)


def test_the_first_relative_average_is_the_weights(model: Model) -> None:
    ema = EMA(model, AveragingConfig(kind="relative"))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1)
    ema.update(model, 1)
    assert all(torch.equal(a, b) for a, b in zip(ema.model.parameters(), model.parameters(), strict=True))
