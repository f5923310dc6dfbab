"""The training objective: what is asked of the network, and how its error is weighed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from morphogen.core.keys import Key
from morphogen.core.model import Batch
from morphogen.core.random import Purpose
from morphogen.diffusion import objective
from morphogen.diffusion.config import DiffusionConfig, Loss, ScheduleName
from morphogen.models import create_model

SCHEDULES: list[ScheduleName] = ["cosine", "linear", "scaled_linear", "sigmoid"]


@given(t=st.floats(0, 290), schedule=st.sampled_from(SCHEDULES), predict=st.sampled_from(["noise", "v"]))
def test_the_target_means_the_noise(t: float, schedule: ScheduleName, predict: Any) -> None:
    """A network that puts out exactly what it is asked for is taken to have predicted exactly the noise."""
    config = DiffusionConfig(schedule=schedule, predict=predict)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 4, 5, generator=generator) * 2 - 1
    noise = torch.randn(2, 3, 4, 5, generator=generator)
    times = torch.tensor([t, 290 - t])
    x = objective.add_noise(config, images, noise, times)
    output = objective.target(config, images, noise, times)
    # The squares of two float32 numbers sum to one up to their rounding.
    torch.testing.assert_close(objective.as_noise(config, output, x, times), noise, rtol=1e-5, atol=1e-6)


def test_v_by_its_definition() -> None:
    """v = sqrt(a) noise - sqrt(1 - a) image: the noise where there is no noise yet, minus the image where all is."""
    config = DiffusionConfig(predict="v")
    images, noise = torch.full((1, 1, 1, 1), 0.7), torch.full((1, 1, 1, 1), -0.4)
    first = objective.target(config, images, noise, torch.zeros(1)).item()
    last = objective.target(config, images, noise, torch.full((1,), 299.0)).item()
    assert first == pytest.approx(-0.4, abs=0.01) and last == pytest.approx(-0.7, abs=0.001)


def test_noise_is_added_to_its_level() -> None:
    config = DiffusionConfig()
    images, noise = torch.ones(1, 1, 2, 2), torch.full((1, 1, 2, 2), 2.0)
    share = 1 - 1e-4
    assert objective.add_noise(config, images, noise, torch.zeros(1)).mean() == pytest.approx(1.0, abs=0.05)
    assert objective.add_noise(config, images, noise, torch.full((1,), 299.0)).mean() == pytest.approx(2.0, abs=0.01)
    middle = torch.full((1,), 150.0)
    signal, sigma = (s.item() for s in objective.alpha_sigma(config, middle))
    assert objective.add_noise(config, images, noise, middle)[0, 0, 0, 0] == pytest.approx(signal + 2 * sigma)
    assert 0.5 < signal < share


@pytest.mark.parametrize(
    ("loss", "value"),
    [
        # Errors of 0, 0.05, -1 and 3.
        ("mse", (0.0025 + 1 + 9) / 4),
        ("l1", (0.05 + 1 + 3) / 4),
        ("mse+l1", (0.0025 + 1 + 9) / 4 + (0.05 + 1 + 3) / 4),
        ("huber", (0.5 * 0.0025 / 0.1 + (1 - 0.05) + (3 - 0.05)) / 4),
    ],
)
def test_losses(loss: Loss, value: float) -> None:
    wanted = torch.tensor([1.0, 2.0, 3.0, 4.0])
    output = wanted + torch.tensor([0.0, 0.05, -1.0, 3.0])
    assert objective.loss(DiffusionConfig(loss=loss), output, wanted).item() == pytest.approx(value, rel=1e-5)


def test_timesteps_are_uniform() -> None:
    """20,000 draws of 10: chi-squared with 9 degrees of freedom, which passes 27.9 once in 1000; seeds are fixed."""
    t = objective.draw_timesteps(DiffusionConfig(timesteps=10), Key.of(range(20_000)), torch.device("cpu"))
    assert t.dtype == torch.float32 and t.shape == (20_000,)
    counts = torch.bincount(t.long(), minlength=10)
    assert len(counts) == 10
    assert ((counts - 2000.0) ** 2 / 2000).sum() < 27.9


def test_timesteps_follow_the_seed_and_the_evaluation() -> None:
    config = DiffusionConfig()

    def draw(key: Key) -> list[float]:
        return objective.draw_timesteps(config, key, torch.device("cpu")).tolist()

    assert draw(Key.of([3, 9]))[1] == draw(Key.of([9]))[0]
    assert draw(Key.of(range(20))) != draw(Key.of(range(20)).at(1))


@pytest.mark.parametrize("predict", ["noise", "v"])
def test_training_loss_is_the_loss_of_the_prediction(predict: str) -> None:
    model = create_model(
        "diff-nca-small", size=8, channels=8, hidden=8, nca_steps=2, diffusion={"predict": predict, "loss": "l1"}
    ).eval()
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    key = Key.of([5, 6])
    config = model.diffusion  # type: ignore[attr-defined]
    t = objective.draw_timesteps(config, key, torch.device("cpu"))
    noise = key.normals(Purpose.TRAINING_NOISE, 3, (8, 8), "cpu")
    x = objective.add_noise(config, images, noise, t)
    output = model.predict(x, t, key).noise  # type: ignore[attr-defined]
    wanted = (output - objective.target(config, images, noise, t)).abs().mean()
    assert model.training_loss(Batch(images), key).item() == pytest.approx(wanted.item(), rel=1e-6)


def test_the_loss_of_a_batch_is_the_mean_over_its_images() -> None:
    """To float32 rounding of a sum over a batch."""
    model = create_model("diff-nca-small", size=8, channels=8, hidden=8, nca_steps=2).train()
    images = torch.rand(3, 3, 8, 8) * 2 - 1
    whole = model.training_loss(Batch(images), Key.of([5, 6, 7]))
    parts = [model.training_loss(Batch(images[i : i + 1]), Key.of([5 + i])).item() for i in range(3)]
    assert whole.shape == () and whole.item() == pytest.approx(sum(parts) / 3, rel=1e-5)
    assert len(set(parts)) == 3
    assert model.training_loss(Batch(images), Key.of([5, 6, 7])).item() == whole.item()
    assert model.training_loss(Batch(images), Key.of([5, 6, 7]).at(1)).item() != whole.item()
