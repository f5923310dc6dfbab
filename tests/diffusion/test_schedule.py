"""Noise levels, against diffusers' own and against their definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st

from morphogen.diffusion.config import DiffusionConfig, ScheduleName
from morphogen.diffusion.schedule import alpha_bar, alpha_sigma, betas

SCHEDULES: list[ScheduleName] = ["cosine", "linear", "scaled_linear", "sigmoid"]


@pytest.mark.parametrize("count", [10, 300, 1000])
@pytest.mark.parametrize(
    ("ours", "theirs", "start", "end"),
    [
        ("cosine", "squaredcos_cap_v2", 0.0, 0.0),
        ("linear", "linear", 1e-4, 0.02),
        ("scaled_linear", "scaled_linear", 0.00085, 0.012),
        ("sigmoid", "sigmoid", 1e-4, 0.02),
    ],
)
def test_levels_are_diffusers(ours: ScheduleName, theirs: str, start: float, end: float, count: int) -> None:
    """The constants of all but cosine are for T = 1000, and grow as T shrinks, so that the last level stays the same.

    Theirs is a float32 product of up to 1000 factors, each rounded to 6e-8.
    """
    scale = 1000 / count
    reference = DDPMScheduler(
        num_train_timesteps=count, beta_schedule=theirs, beta_start=start * scale, beta_end=min(end * scale, 0.999)
    )
    shares = alpha_bar(DiffusionConfig(timesteps=count, schedule=ours), torch.arange(count))
    np.testing.assert_allclose(shares, reference.alphas_cumprod, rtol=2e-4 if ours == "cosine" else 1e-4, atol=1e-9)


def test_cosine_by_its_definition() -> None:
    """Nichol and Dhariwal, equation 17: all but the last, where the largest beta of 0.999 cuts in."""

    def f(t: float) -> float:
        return math.cos((t / 300 + 0.008) / 1.008 * math.pi / 2) ** 2

    shares = alpha_bar(DiffusionConfig(timesteps=300), torch.arange(299))
    np.testing.assert_allclose(shares, [f(t + 1) / f(0) for t in range(299)], rtol=1e-9)
    assert betas(DiffusionConfig(timesteps=300))[-1] == 0.999


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("count", [2, 3, 50, 300, 10_000])
def test_noise_grows(schedule: ScheduleName, count: int) -> None:
    config = DiffusionConfig(timesteps=count, schedule=schedule)
    variances = betas(config)
    assert variances.shape == (count,) and ((variances > 0) & (variances < 0.9991)).all()
    shares = alpha_bar(config, torch.arange(count))
    assert shares.dtype == torch.float64
    assert (shares.diff() < 0).all() and shares[-1] > 0 and shares[0] < 1


@given(t=st.floats(0, 299), schedule=st.sampled_from(SCHEDULES))
def test_between_timesteps_the_noise_to_signal_ratio_is_linear(t: float, schedule: ScheduleName) -> None:
    config = DiffusionConfig(timesteps=300, schedule=schedule)
    whole = alpha_bar(config, torch.arange(300)).numpy()
    ratio = np.interp(t, np.arange(300), np.sqrt((1 - whole) / whole))
    share = float(alpha_bar(config, torch.tensor(t, dtype=torch.float64)))
    assert math.isclose(math.sqrt((1 - share) / share), ratio, rel_tol=1e-9)


def test_outside_the_ends_the_levels_are_those_of_the_ends() -> None:
    config = DiffusionConfig(timesteps=300)
    ends = alpha_bar(config, torch.tensor([0.0, 299.0]))
    assert torch.equal(alpha_bar(config, torch.tensor([-5.0, 1000.0])), ends)


def test_scales_are_of_unit_variance_and_broadcast() -> None:
    signal, sigma = alpha_sigma(DiffusionConfig(), torch.tensor([0.0, 77.25, 299.0]))
    assert signal.shape == sigma.shape == (3, 1, 1, 1) and signal.dtype == torch.float32
    torch.testing.assert_close(signal**2 + sigma**2, torch.ones(3, 1, 1, 1), rtol=0, atol=2e-7)  # float32 rounding
