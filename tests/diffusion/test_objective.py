"""The training objective: what is asked of the network, and how its error is weighed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from morphogen.core.evaluation import Evaluation
from morphogen.core.keys import Key
from morphogen.core.model import Batch
from morphogen.core.random import Purpose
from morphogen.diffusion import objective
from morphogen.diffusion.config import DiffusionConfig, Loss, ScheduleName
from morphogen.models import create_model

SCHEDULES: list[ScheduleName] = ["cosine", "linear", "scaled_linear", "sigmoid"]


OUTPUTS = ("noise", "v", "clean", "edm")


def network_output(config: DiffusionConfig, images: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """What a perfect network puts out, by the definitions: v of Salimans and Ho, F of Karras et al. (equation 8)."""
    alpha, sigma = objective.alpha_sigma(config, t)
    sd = config.sigma_data
    edm_sigma = sigma / alpha  # of EDM's image + edm_sigma * noise
    c_skip = sd**2 / (edm_sigma**2 + sd**2)
    c_out = edm_sigma * sd / (edm_sigma**2 + sd**2).sqrt()
    wanted = {
        "noise": noise,
        "v": alpha * noise - sigma * images,
        "clean": images,
        "edm": (images - c_skip * (images + edm_sigma * noise)) / c_out,
    }
    return wanted[config.output]


@settings(deadline=None)  # the first example loads much
@given(
    t=st.floats(0, 290),
    schedule=st.sampled_from(SCHEDULES),
    output=st.sampled_from(OUTPUTS),
    loss_on=st.sampled_from(["noise", "v", "clean"]),
    sigma_data=st.floats(0.1, 2),
)
def test_a_perfect_output_means_the_noise_and_the_image(
    t: float, schedule: ScheduleName, output: Any, loss_on: Any, sigma_data: float
) -> None:
    """A network that puts out exactly what it is asked for has predicted exactly the noise and the image, and no loss
    finds an error. A float32 rounding of 1e-7 is enlarged by the ratio of the two scales, here at most 2,000.
    """
    config = DiffusionConfig(schedule=schedule, output=output, loss_on=loss_on, loss="l1", sigma_data=sigma_data)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 4, 5, generator=generator) * 2 - 1
    noise = torch.randn(2, 3, 4, 5, generator=generator)
    times = torch.tensor([t, 290 - t])
    x = objective.add_noise(config, images, noise, times)
    found = network_output(config, images, noise, times)
    torch.testing.assert_close(objective.as_noise(config, found, x, times), noise, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(objective.as_clean(config, found, x, times), images, rtol=1e-4, atol=1e-3)
    assert objective.prediction_error(config, found, images, noise, x, times) < 1e-3


def test_v_by_its_definition() -> None:
    """v = sqrt(a) noise - sqrt(1 - a) image: the noise where there is no noise yet, minus the image where all is."""
    config = DiffusionConfig(output="v", loss_on="v", loss="l1")
    images, noise = torch.full((1, 1, 1, 1), 0.7), torch.full((1, 1, 1, 1), -0.4)
    for t, v in ((0.0, -0.4), (299.0, -0.7)):
        times = torch.full((1,), t)
        x = objective.add_noise(config, images, noise, times)
        output = torch.full((1, 1, 1, 1), v)
        assert objective.prediction_error(config, output, images, noise, x, times) < 0.01


@pytest.mark.parametrize("output", ["v", "clean", "edm"])
def test_an_error_of_the_output_stays_bounded_where_the_signal_vanishes(output: Any) -> None:
    """At the noisiest timestep the clean image that a noise prediction means is its error divided by the signal; of the
    other outputs it is at most the error times the largest of 1 and sigma_data.
    """
    config = DiffusionConfig(timesteps=1000, output=output)
    t = torch.full((1,), 999.0)
    x, found = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    assert objective.as_clean(config, found, x, t).abs() <= 1.0
    assert objective.as_clean(DiffusionConfig(timesteps=1000), found, x, t).abs() > 1000


def test_edm_scales_the_input_to_unit_variance() -> None:
    config = DiffusionConfig(timesteps=1000, output="edm", sigma_data=0.25)
    images = torch.randn(1, 1, 200, 200, generator=torch.Generator().manual_seed(1)) * 0.25
    noise = torch.randn(1, 1, 200, 200, generator=torch.Generator().manual_seed(2))
    for t in (0.0, 300.0, 700.0, 999.0):
        times = torch.full((1,), t)
        x = objective.add_noise(config, images, noise, times)
        # The deviation of 40,000 normals is within 2 % of its expectation (five standard errors of 0.35 %).
        assert objective.network_input(config, x, times).std() == pytest.approx(1.0, abs=0.02)
    assert objective.network_input(DiffusionConfig(), x, times) is x


@pytest.mark.parametrize("predict", ["noise", "v"])
def test_the_old_name_for_both_is_read(predict: str) -> None:
    """Version 0.1 wrote `predict`, for the output and for what the error is taken on."""
    config = DiffusionConfig.model_validate({"predict": predict, "loss": "mse"})
    assert (config.output, config.loss_on, config.loss) == (predict, predict, "mse")
    assert "predict" not in config.model_dump()


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
    wanted = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 2, 2)
    output = wanted + torch.tensor([0.0, 0.05, -1.0, 3.0]).view(1, 1, 2, 2)
    error = objective.prediction_error(DiffusionConfig(loss=loss), output, wanted, wanted, wanted, torch.zeros(1))
    assert error.item() == pytest.approx(value, rel=1e-5)


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


@pytest.mark.parametrize("loss_on", ["noise", "v", "clean"])
@pytest.mark.parametrize("output", OUTPUTS)
def test_training_loss_is_the_loss_of_the_prediction(output: str, loss_on: str) -> None:
    """What training minimises is the error of what sampling will be told, on the quantity chosen."""
    chosen = {"output": output, "loss_on": loss_on, "loss": "l1"}
    model = create_model("diff-nca-small", size=8, channels=8, hidden=8, nca_steps=2, diffusion=chosen).eval()
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(3)) * 2 - 1
    key = Key.of([5, 6])
    config = model.diffusion  # type: ignore[attr-defined]
    t = objective.draw_timesteps(config, key, torch.device("cpu"))
    noise = key.normals(Purpose.TRAINING_NOISE, 3, (8, 8), "cpu")
    x = objective.add_noise(config, images, noise, t)
    found = model(x, t, Evaluation(key)).noise
    alpha, sigma = objective.alpha_sigma(config, t)
    clean = (x - sigma * found) / alpha
    errors = {"noise": found - noise, "clean": clean - images}
    errors["v"] = alpha * errors["noise"] - sigma * errors["clean"]
    # The clean image is found here by way of the noise, whose rounding the signal's inverse enlarges.
    assert model.training_loss(Batch(images), key).item() == pytest.approx(
        errors[loss_on].abs().mean().item(), rel=1e-4
    )


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
