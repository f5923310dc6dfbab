"""Beginning with an image, known content and resampling, where the answer is known in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from morphogen.core.errors import InputError
from morphogen.core.evaluation import Evaluation
from morphogen.core.keys import Key
from morphogen.core.model import Prediction, StepInfo
from morphogen.core.request import SamplingRequest
from morphogen.diffusion.config import DiffusionConfig
from morphogen.diffusion.known import Known, Resampling
from morphogen.diffusion.samplers import SAMPLERS, sampling_timesteps
from morphogen.diffusion.sampling import sample
from morphogen.diffusion.schedule import alpha_sigma

Gaussian = Callable[..., Any]
STOCHASTIC = tuple(name for name, sampler in SAMPLERS.items() if sampler.stochastic)


class Watched:
    """Of a denoiser, what it was given: `inputs` and `times`."""

    def __init__(self, gaussian: Gaussian, *args: Any, **kwargs: Any) -> None:
        outer = self
        self.inputs: list[Tensor] = []
        self.times: list[Tensor] = []

        class Model(gaussian):  # type: ignore[valid-type, misc]
            def evaluate(self, x: Tensor, t: Tensor, evaluation: Evaluation) -> Prediction:
                outer.inputs.append(x.clone())
                outer.times.append(t[:1].clone())
                return super().evaluate(x, t, evaluation)  # type: ignore[no-any-return]

        self.model = Model(*args, **kwargs).eval()


# ------------------------------------------------------------------------------------------------ resampling


def test_resampling_as_published() -> None:
    """RePaint's own schedule of 250 steps with its jumps: 2410 evaluations and 240 x 9 steps of noise."""
    visits = Resampling(10, 10).visits(250)
    assert len(visits) == 2410
    assert sum(before - after + 1 for before, after in pairwise(visits) if after <= before) == 2160
    assert visits[:21] == [*range(19), 9, 10], "from the 231st level back to the 241st"


@given(count=st.integers(1, 60), jump=st.integers(1, 20), times=st.integers(1, 4))
def test_resampling_walks_down_and_jumps_back(count: int, jump: int, times: int) -> None:
    visits = Resampling(jump, times).visits(count)
    assert visits[0] == 0 and visits[-1] == count - 1 and set(visits) == set(range(count))
    moves = [after - before for before, after in pairwise(visits)]
    assert set(moves) <= {1, 1 - jump} or jump == 1
    places = len(range(0, count - jump, jump))
    assert len(visits) == count + places * (times - 1) * jump
    if times == 1:
        assert visits == list(range(count))


# ------------------------------------------------------------------------------------------------ known content


@pytest.mark.parametrize("resampling", [None, Resampling(3, 2)], ids=["once", "resampled"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_known_content_enters_at_the_level_of_its_timestep(
    gaussian: Gaussian, name: str, resampling: Resampling | None
) -> None:
    """What the model sees at a known pixel is signal * value + sigma * noise, with fresh noise each time.

    Of 2048 pixels, the mean of the noise is 0 within 5 / sqrt(2048) and its standard deviation 1 within 0.08.
    """
    watched = Watched(gaussian, DiffusionConfig(), 0.0, 0.3)
    size, config = (32, 64), watched.model.diffusion
    image = torch.linspace(-1, 1, 2048).view(1, 1, *size)
    known = Known(image, torch.ones(1, 1, *size))
    sample(watched.model, Key.of([5]), size, SamplingRequest(name, 8), known=known, resampling=resampling)
    noises = []
    for x, t in zip(watched.inputs, watched.times, strict=True):
        signal, sigma = alpha_sigma(config, t)
        noises.append((x - signal * image) / sigma)
        assert abs(float(noises[-1].mean())) < 5 / math.sqrt(2048)
        assert abs(float(noises[-1].std()) - 1) < 0.08
    together = torch.corrcoef(torch.stack([n.flatten() for n in noises]))
    assert (together - torch.eye(len(noises))).abs().max() < 6 / math.sqrt(2048), "noise is used twice"


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_free_pixels_keep_their_level_when_going_back(gaussian: Gaussian, name: str) -> None:
    """Images of mean 0 and deviation 0.5 have at every level the variance signal^2 * 0.25 + sigma^2, going back too.

    4096 pixels of four images, twelve steps: the solver's error is below the tolerance of 8 %.
    """
    watched = Watched(gaussian, DiffusionConfig(), 0.0, 0.5)
    size, config = (32, 32), watched.model.diffusion
    known = Known(torch.zeros(4, 1, *size), torch.zeros(4, 1, *size))
    args: dict[str, Any] = {"request": SamplingRequest(name, 60), "clip": False, "known": known}
    sample(watched.model, Key.of([1, 2, 3, 4]), size, resampling=Resampling(10, 2), **args)
    times = torch.cat(watched.times)
    assert (times.diff() > 0).sum() >= 3, "it went back"
    for x, t in zip(watched.inputs, watched.times, strict=True):
        signal, sigma = alpha_sigma(config, t)
        wanted = float((signal**2 * 0.25 + sigma**2).sqrt())
        assert abs(float(x.std()) / wanted - 1) < 0.08, f"timestep {float(t)}"


def test_a_share_between_is_blended_in() -> None:
    x, image, noise = torch.full((1, 1, 1, 3), 2.0), torch.full((1, 1, 1, 3), 1.0), torch.full((1, 1, 1, 3), -1.0)
    share = torch.tensor([0.0, 0.25, 1.0]).view(1, 1, 1, 3)
    torch.testing.assert_close(
        Known(image, share).put(x, 0.6, 0.8, noise).flatten(), torch.tensor([2.0, 0.75 * 2 + 0.25 * -0.2, -0.2])
    )
    torch.testing.assert_close(
        Known(image, share, clean=True).put(x, 0.6, 0.8, noise).flatten(),
        torch.tensor([2.0, 0.75 * 2 + 0.25 * 1.0, -0.2]),
    )


class TwoPixels:
    """The best denoiser of images whose two halves are equal pixel by pixel but for independent normals.

    left = a, right = correlation * a + sqrt(1 - correlation^2) * b with normal a and b: of unit variance.
    """

    def __init__(self, gaussian: Gaussian, correlation: float) -> None:
        covariance = torch.tensor([[1.0, correlation], [correlation, 1.0]])

        class Model(gaussian):  # type: ignore[valid-type, misc]
            def evaluate(self, x: Tensor, t: Tensor, evaluation: Evaluation) -> Prediction:
                signal, sigma = (float(part.flatten()[0]) for part in alpha_sigma(self.diffusion, t))
                pairs = torch.stack(x.chunk(2, dim=-1))  # (2, B, 1, H, W / 2)
                gain = sigma * torch.linalg.inv(signal**2 * covariance + sigma**2 * torch.eye(2))
                return Prediction(torch.cat(list(torch.einsum("ij,j...->i...", gain, pairs)), dim=-1))

        self.model = Model(DiffusionConfig(), 0.0, 1.0).eval()

    def slope(self, **settings: Any) -> float:
        """How the filled right half follows the known left half: by regression; the truth is the correlation."""
        left = torch.randn(1, 1, 32, 64, generator=torch.Generator().manual_seed(0)).clamp(-2, 2)
        image = torch.cat([left, torch.zeros_like(left)], dim=-1)
        share = torch.cat([torch.ones_like(left), torch.zeros_like(left)], dim=-1)
        args: dict[str, Any] = {"request": SamplingRequest("ddpm", 40), "clip": False, **settings}
        right = sample(self.model, Key.of([3]), (32, 128), known=Known(image, share), **args)[..., 64:]
        return float((left * right).mean() / (left**2).mean())


def test_what_is_painted_follows_what_is_known_and_resampling_makes_it_follow_more(gaussian: Gaussian) -> None:
    """The conditional mean of the right half is 0.9 of the left. Putting the left one in at every level reaches most of
    it, resampling comes closer, and without any known content there is no relation.
    """
    two = TwoPixels(gaussian, 0.9)
    once, resampled = two.slope(), two.slope(resampling=Resampling(5, 5))
    assert 0.6 < once < 0.9
    assert once + 0.02 < resampled < 0.93  # 2048 pixels of deviation 0.44: a standard error of 0.01


# ----------------------------------------------------------------------------------------- beginning with an image


def after_noise(config: DiffusionConfig, strength: float) -> tuple[float, float]:
    """Signal and sigma of the timestep that a strength begins at."""
    signal, sigma = alpha_sigma(config, torch.tensor([float(round(strength * config.timesteps) - 1)]))
    return float(signal), float(sigma)


@pytest.mark.slow
@pytest.mark.parametrize("strength", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpm++", "dpm++-sde", "heun", "euler", "euler-a", "unipc"])
def test_varying_gives_the_posterior(gaussian: Gaussian, name: str, strength: float) -> None:
    """An image of constant value v, noised to x, of images that are normal with mean m and deviation d.

    A stochastic sampler draws from p(image | x), a deterministic one follows the flow; both give normals whose mean and
    deviation over x are known. 4096 pixels and the solver's error: within 0.03.
    """
    config, m, d, v = DiffusionConfig(), 0.2, 0.3, -0.4
    model = gaussian(config, m, d).eval()
    signal, sigma = after_noise(config, strength)
    total = signal**2 * d**2 + sigma**2
    if name in STOCHASTIC:
        gain = signal * d**2 / total  # of the posterior's mean over x - signal * m
        mean, variance = m + gain * signal * (v - m), (gain * sigma) ** 2 + d**2 * sigma**2 / total
    else:
        mean, variance = m + d * signal * (v - m) / math.sqrt(total), d**2 * sigma**2 / total
    image = torch.full((4, 1, 32, 32), v)
    args: dict[str, Any] = {"request": SamplingRequest(name, 300), "clip": False, "image": image}
    args["strength"] = strength
    found = sample(model, Key.of(range(4)), (32, 32), **args)
    assert abs(float(found.mean()) - mean) < 0.03
    assert abs(float(found.std()) - math.sqrt(variance)) < 0.03


@pytest.mark.parametrize("name", SAMPLERS)
def test_strength_0_and_1(gaussian: Gaussian, name: str) -> None:
    model = gaussian(DiffusionConfig(), 0.1, 0.3).eval()
    image = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    key, args = Key.of([4, 5]), {"request": SamplingRequest(name, 20)}
    same = sample(model, key, (8, 8), image=image, strength=0.0, **args)
    assert torch.equal(same, image) and same.data_ptr() != image.data_ptr()
    # At the last level of a cosine the signal is 2e-4 (for solvers that skip the last few, 6e-3).
    new = sample(model, key, (8, 8), image=image, strength=1.0, **args)
    plain = sample(model, key, (8, 8), **args)
    torch.testing.assert_close(new, plain, rtol=0, atol=0.03)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("strength", [0.004, 0.1, 0.5, 0.99])
def test_a_strength_takes_its_share_of_the_steps(gaussian: Gaussian, name: str, strength: float) -> None:
    config = DiffusionConfig()
    model = gaussian(config, 0.0, 0.3).eval()
    told: list[StepInfo] = []
    image = torch.zeros(1, 1, 8, 8)
    sample(model, Key.of([1]), (8, 8), SamplingRequest(name, 20), image=image, strength=strength, callback=told.append)
    wanted = max(1, round(20 * round(strength * 300) / 300))
    assert len(told) == told[-1].steps == (2 * wanted - 1 if name == "heun" else wanted)
    first = float(sampling_timesteps(config, SAMPLERS[name], 20, round(strength * 300))[0])
    skipped = name in ("dpm++", "dpm++-single", "dpm++-sde", "heun") and strength > 0.9
    assert first == round(strength * 300) - 1 or skipped


@pytest.mark.parametrize("steps", [0, 301])
def test_impossible_steps_are_refused_at_strength_0_too(gaussian: Gaussian, steps: int) -> None:
    model = gaussian(DiffusionConfig(), 0.0, 0.3).eval()
    with pytest.raises(InputError, match=f"sampling steps is {steps}"):
        sample(model, Key.of([1]), (8, 8), SamplingRequest(steps=steps), image=torch.zeros(1, 1, 8, 8), strength=0.0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_image_is_the_same_alone_and_in_a_batch(gaussian: Gaussian, name: str) -> None:
    model = gaussian(DiffusionConfig(), 0.0, 0.3).eval()
    image = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(2)) * 2 - 1
    share = (torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(3)) < 0.5).float()

    def run(chosen: list[int]) -> Tensor:
        key = Key.of([10 + k for k in chosen])
        args: dict[str, Any] = {"image": image[chosen], "known": Known(image[chosen], share[chosen]), "strength": 0.7}
        return sample(model, key, (8, 8), SamplingRequest(name, 9), resampling=Resampling(2, 2), **args)

    whole = run([0, 1, 2])
    for k in range(3):
        assert torch.equal(run([k])[0], whole[k])
