"""Samplers, against diffusers' own steps and where the answer is known in closed form."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from morphogen.core.errors import InputError, NonFiniteError
from morphogen.core.evaluation import Evaluation
from morphogen.core.keys import Key
from morphogen.core.model import Model, StepInfo
from morphogen.core.random import Purpose
from morphogen.core.request import SamplingRequest
from morphogen.diffusion.config import DiffusionConfig, ScheduleName
from morphogen.diffusion.samplers import SAMPLERS, find_sampler, sampling_timesteps
from morphogen.diffusion.sampling import sample
from morphogen.diffusion.schedule import alpha_sigma, betas
from morphogen.models import create_model

# diffusers makes numpy arrays of tensors in ways that numpy 2 deprecates: `__array__` without copy, `__array_wrap__`.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
SCHEDULES: list[ScheduleName] = ["cosine", "linear", "scaled_linear", "sigmoid"]
FIRST_ORDER, ANCESTRAL = ("ddim", "euler"), ("ddpm", "euler-a")
Gaussian = Callable[..., Any]


# ------------------------------------------------------------------------------------------------ timesteps


@pytest.mark.parametrize("count", [2, 3, 10, 300])
@pytest.mark.parametrize("name", SAMPLERS)
def test_timesteps(name: str, count: int) -> None:
    """At every number of steps: as many as asked for, even, down from the noisiest, none twice, none below 0."""
    config = DiffusionConfig(timesteps=count)
    for steps in range(1, count + 1) if count < 300 else (1, 2, 7, 61, 97, 120, 150, 200, 298, 299, 300):
        found = sampling_timesteps(config, SAMPLERS[name], steps)
        once = list(dict.fromkeys(found))
        assert once == sorted(once, reverse=True) and once[-1] >= 0
        top = once[0] + 1
        # Solvers that extrapolate skip the last few levels of a cosine, where hardly any signal is left.
        assert top == count or (name in ("dpm++", "dpm++-single", "dpm++-sde", "heun") and top >= 0.8 * count)
        assert len(once) == min(steps, top)
        assert len(found) == (2 * len(once) - 1 if name == "heun" else len(once))
        for i, t in enumerate(once):
            assert abs(t + 1 - top * (1 - i / len(once))) <= 0.5 + 1e-9


@pytest.mark.parametrize("name", SAMPLERS)
def test_unclipped_noise_is_not_asked_for_where_hardly_any_signal_is(name: str) -> None:
    """Sampling in latents of a model that puts out noise begins where log(alpha / sigma) is at least -3."""
    config = DiffusionConfig(timesteps=300)
    alpha, sigma = (part.flatten() for part in alpha_sigma(config, torch.arange(300.0)))
    allowed = int(((alpha / sigma).log() >= -3.0).sum())
    assert 200 < allowed < 300
    assert sampling_timesteps(config, SAMPLERS[name], 12, clip=False)[0] == allowed - 1
    assert sampling_timesteps(config, SAMPLERS["ddim"], 12, clip=True)[0] == 299
    bounded = DiffusionConfig(timesteps=300, output="v", loss_on="noise")
    assert sampling_timesteps(bounded, SAMPLERS["ddim"], 12, clip=False)[0] == 299


# ------------------------------------------------------------------------------------------------ against diffusers


def fed(noises: Iterator[Tensor]) -> Callable[..., Tensor]:
    """What diffusers calls for noise, giving ours instead."""

    def randn_tensor(shape: Any, **_: Any) -> Tensor:
        noise = next(noises)
        assert tuple(shape) == noise.shape
        return noise

    return randn_tensor


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [300, 50, 40])
def test_ddpm_is_diffusers_ddpm(
    gaussian: Gaussian, monkeypatch: pytest.MonkeyPatch, schedule: ScheduleName, steps: int
) -> None:
    """The published ancestral step, by the posterior's own formula, given the same noises and the same timesteps.

    Theirs has float32 products of up to 300 factors where ours are float64; what is left of that is below a hundredth
    of a grey level where there is signal, and grows as the signal vanishes at a cosine's first timesteps.
    """
    config = DiffusionConfig(schedule=schedule)
    model = gaussian(config, 0.6, 0.5).eval()
    key, size = Key.of([3, 4]), (8, 8)
    reference = diffusers.DDPMScheduler(num_train_timesteps=300, trained_betas=betas(config), clip_sample=True)
    reference.set_timesteps(timesteps=list(sampling_timesteps(config, SAMPLERS["ddpm"], steps)))
    noises = (key.at(i).normals(Purpose.SAMPLER_NOISE, 1, size, "cpu") for i in range(steps))
    monkeypatch.setattr(diffusers.schedulers.scheduling_ddpm, "randn_tensor", fed(noises))

    ours: list[Tensor] = []
    result = sample(model, key, size, SamplingRequest("ddpm", steps), callback=lambda p: ours.append(p.images))
    x = key.normals(Purpose.INITIAL_NOISE, 1, size, "cpu")
    for i, t in enumerate(reference.timesteps):
        noise = model(x, t.float().expand(2)).noise
        x = reference.step(noise, t, x, return_dict=False)[0]
        torch.testing.assert_close(ours[i], x, rtol=0, atol=1e-3)
    torch.testing.assert_close(result, x, rtol=0, atol=1e-4)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ["ddpm", "ddim"])
def test_ddim_is_diffusers_ddim(gaussian: Gaussian, schedule: ScheduleName, name: str) -> None:
    """Where the number of steps divides T, as diffusers' DDIM needs it; tolerance as above."""
    config = DiffusionConfig(schedule=schedule)
    model = gaussian(config, 0.6, 0.5).eval()
    key, size = Key.of([3, 4]), (8, 8)
    reference = diffusers.DDIMScheduler(
        num_train_timesteps=300, trained_betas=betas(config), clip_sample=True, timestep_spacing="trailing"
    )
    reference.set_timesteps(50)
    x = key.normals(Purpose.INITIAL_NOISE, 1, size, "cpu")
    for i, t in enumerate(reference.timesteps):
        fresh = key.at(i).normals(Purpose.SAMPLER_NOISE, 1, size, "cpu")
        given = {"eta": 1.0, "variance_noise": fresh} if name == "ddpm" else {"eta": 0.0}
        noise = model(x, t.float().expand(2)).noise
        x = reference.step(noise, t, x, use_clipped_model_output=True, return_dict=False, **given)[0]
    torch.testing.assert_close(sample(model, key, size, SamplingRequest(name, 50)), x, rtol=0, atol=1e-4)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [30, 60])
def test_euler_ancestral_is_diffusers(
    gaussian: Gaussian, monkeypatch: pytest.MonkeyPatch, schedule: ScheduleName, steps: int
) -> None:
    """Given the same noises. At first x is as large as the noise, up to 6000 times the image, of which float32 keeps
    6e-8: hence a tolerance relative to it.
    """
    config = DiffusionConfig(schedule=schedule, output="v")  # all timesteps
    model = gaussian(config, 0.3, 0.2).eval()
    key, size = Key.of([3, 4]), (8, 8)
    reference = diffusers.EulerAncestralDiscreteScheduler(
        num_train_timesteps=300, trained_betas=betas(config), timestep_spacing="trailing"
    )
    reference.set_timesteps(steps)
    noises = (key.at(i).normals(Purpose.SAMPLER_NOISE, 1, size, "cpu") for i in range(steps))
    monkeypatch.setattr(diffusers.schedulers.scheduling_euler_ancestral_discrete, "randn_tensor", fed(noises))

    ours: list[Tensor] = []
    args: dict[str, Any] = {"request": SamplingRequest("euler-a", steps), "clip": False}
    result = sample(model, key, size, callback=lambda p: ours.append(p.images), **args)
    x = key.normals(Purpose.INITIAL_NOISE, 1, size, "cpu") * reference.init_noise_sigma
    for i, t in enumerate(reference.timesteps):
        noise = model(reference.scale_model_input(x, t), t.float().expand(2)).noise
        x = reference.step(noise, t, x, return_dict=False)[0]
        following = reference.timesteps[i + 1] if i + 1 < steps else None
        shown = x if following is None else reference.scale_model_input(x, following)
        torch.testing.assert_close(ours[i], shown, rtol=0, atol=2e-3)
    torch.testing.assert_close(result, x, rtol=0, atol=2e-3)


# ------------------------------------------------------------------------------------------------ solvable cases


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_distribution_of_gaussian_images_is_recovered(
    gaussian: Gaussian, name: str, schedule: ScheduleName
) -> None:
    """With the optimal denoiser of pixels N(0.2, 0.3^2), in 97 steps of 300, which 97 does not divide.

    16 * 1024 pixels: the standard error of the mean is 0.0023, that of the standard deviation 0.0055 of it. Beyond
    that, first-order solvers are off by their step size and end narrower (less so in twice the steps, asserted below).
    """
    model = gaussian(DiffusionConfig(schedule=schedule, output="v"), 0.2, 0.3).eval()
    x = sample(model, Key.of(range(16)), (32, 32), SamplingRequest(name, 97), clip=False).double()
    assert abs(float(x.mean()) - 0.2) < 0.01
    off = 0.12 if name in ANCESTRAL else 0.06 if name in FIRST_ORDER else 0.03
    assert abs(float(x.std()) / 0.3 - 1) < off
    skew, kurtosis = (((x - x.mean()) / x.std()) ** n for n in (3, 4))
    assert abs(float(skew.mean())) < 0.1 and abs(float(kurtosis.mean()) - 3) < 0.2  # five standard errors
    # Neighbours and images stay independent: within five standard errors.
    z = (x - x.mean()) / x.std()
    assert abs(float((z[..., 1:] * z[..., :-1]).mean())) < 5 / 16_384**0.5
    assert abs(float((z[1:] * z[:-1]).mean())) < 5 / 16_384**0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FIRST_ORDER, *ANCESTRAL])
def test_first_order_samplers_converge(gaussian: Gaussian, name: str) -> None:
    """Half the step leaves about half the error: T = 1000, so that there are timesteps enough."""
    model = gaussian(DiffusionConfig(timesteps=1000, schedule="linear"), 0.2, 0.3).eval()
    off = [
        1 - float(sample(model, Key.of(range(16)), (32, 32), SamplingRequest(name, n), clip=False).std()) / 0.3
        for n in (30, 60, 120)
    ]
    assert off[0] > 0.05
    assert 0.3 < off[1] / off[0] < 0.7 and 0.3 < off[2] / off[1] < 0.7


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(list(SAMPLERS)),
    steps=st.integers(1, 60),
    schedule=st.sampled_from(SCHEDULES),
    predict=st.sampled_from(["noise", "v"]),
    clip=st.booleans(),
    seed=st.integers(0, 100),
)
def test_one_known_image_is_found_in_any_number_of_steps(
    gaussian: Gaussian, name: str, steps: int, schedule: ScheduleName, predict: Any, clip: bool, seed: int
) -> None:
    """Of data that is one image, the denoiser knows that image at once: what is left is what a sampler leaves undone.

    2e-3 is a quarter of a grey level: rounding, where a cosine's sigma of 6000 has to be taken from as large an x.
    """
    config = DiffusionConfig(timesteps=60, schedule=schedule, output=predict)
    image = torch.linspace(-0.9, 0.9, 64).view(1, 1, 8, 8)
    model = gaussian(config, image, 0.0).eval()
    x = sample(model, Key.of([seed]), (8, 8), SamplingRequest(name, steps), clip=clip)
    torch.testing.assert_close(x, image, rtol=0, atol=2e-3)


@pytest.mark.parametrize("name", SAMPLERS)
def test_v_gives_the_images_of_noise(gaussian: Gaussian, name: str) -> None:
    """The same denoiser saying v instead: float32 rounding, divided by the small signal of the first steps."""
    a, b = (
        sample(gaussian(DiffusionConfig(output=p), 0.2, 0.3).eval(), Key.of([1]), (8, 8), SamplingRequest(name, 20))
        for p in ("noise", "v")
    )
    torch.testing.assert_close(a, b, rtol=0, atol=2e-3)


# ------------------------------------------------------------------------------------------------ seeds


@pytest.fixture(scope="module")
def tiny() -> dict[str, Model]:
    torch.manual_seed(0)
    return {
        "cell": create_model("diff-nca-small", size=8, channels=8, hidden=16, nca_steps=3).eval(),
        "group": create_model("diff-nca-paper", size=(8, 12), channels=8, hidden=16, nca_steps=3).eval(),
        "fourier": create_model("fourier-diff-nca-small", size=32, channels=8, hidden=16, nca_steps=2).eval(),
    }


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(
    family=st.sampled_from(["cell", "group", "fourier"]),
    name=st.sampled_from(list(SAMPLERS)),
    seeds=st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=5),
    order=st.randoms(use_true_random=False),
)
def test_a_seed_gives_the_same_image_in_any_company(
    tiny: dict[str, Model], family: str, name: str, seeds: list[int], order: Any
) -> None:
    """Noise and masks are the same bit for bit; kernels may sum in another order for another batch, and an automaton
    carries such rounding on. So: at most one grey level apart.
    """
    model = tiny[family]
    size = (model.image.height, model.image.width)
    shuffled = list(seeds)
    order.shuffle(shuffled)
    together = sample(model, Key.of(shuffled), size, SamplingRequest(name, 3))  # type: ignore[arg-type]
    for seed, image in zip(shuffled, together, strict=True):
        alone = sample(model, Key.of([seed]), size, SamplingRequest(name, 3))[0]  # type: ignore[arg-type]
        torch.testing.assert_close(image, alone, rtol=0, atol=1 / 127.5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_seed_gives_the_same_bits_again_and_others_give_others(tiny: dict[str, Model], name: str) -> None:
    model = tiny["cell"]
    a, b = (sample(model, Key.of([1, 2]), (8, 8), SamplingRequest(name, 3)) for _ in range(2))  # type: ignore[arg-type]
    assert torch.equal(a, b)
    assert (a[0] - a[1]).abs().mean() > 0.01


@pytest.mark.parametrize("name", SAMPLERS)
def test_stochastic_samplers_add_noise_and_others_none(gaussian: Gaussian, name: str) -> None:
    """Of the two halves of a canvas, the noise after the start differs where the sampler adds any."""
    model = gaussian(DiffusionConfig(), 0.0, 0.3).eval()

    class Twice(Key):  # the same initial noise for all seeds, all else by the seed
        def normals(self, purpose: Purpose, *args: Any) -> Tensor:
            key = Key((1,) * len(self.seeds)) if purpose == Purpose.INITIAL_NOISE else Key(self.seeds, self.evaluation)
            return key.normals(purpose, *args)

    a, b = sample(model, Twice((1, 2)), (8, 8), SamplingRequest(name, 10))
    assert torch.equal(a, b) == (not SAMPLERS[name].stochastic)


# ------------------------------------------------------------------------------------------------ use and misuse


def test_unknown_sampler(tiny: dict[str, Model]) -> None:
    with pytest.raises(InputError, match="there is no sampler 'dpm'; choose one of ddpm, ddim, dpm"):
        tiny["cell"].generate(Key.of([1]), request=SamplingRequest("dpm", 1))
    with pytest.raises(InputError):
        find_sampler("DDPM")
    assert find_sampler(None)[0] in SAMPLERS


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [0, -1, 301])
def test_impossible_numbers_of_steps(tiny: dict[str, Model], name: str, steps: int) -> None:
    with pytest.raises(InputError, match=f"sampling steps is {steps}, but this model has timesteps for 1 to 300"):
        tiny["cell"].generate(Key.of([1]), request=SamplingRequest(name, steps))


@pytest.mark.parametrize("name", SAMPLERS)
def test_steps_by_default(gaussian: Gaussian, name: str) -> None:
    """Never more than the model has timesteps."""
    model = gaussian(DiffusionConfig(timesteps=4), 0.0, 0.3).eval()
    told: list[StepInfo] = []
    sample(model, Key.of([1]), (4, 4), SamplingRequest(name), callback=told.append)
    assert 1 <= len({p.step for p in told}) <= 7


@pytest.mark.parametrize("name", SAMPLERS)
def test_callback(gaussian: Gaussian, name: str) -> None:
    model = gaussian(DiffusionConfig(), 0.2, 0.1, channels=2).eval()
    told: list[StepInfo] = []
    result = sample(model, Key.of([1, 2, 3]), (4, 6), SamplingRequest(name, 8), callback=told.append)
    count = 15 if name == "heun" else 8
    assert [(p.step, p.steps) for p in told] == [(i + 1, count) for i in range(count)]
    assert all(p.images.shape == p.clean.shape == (3, 2, 4, 6) for p in told)
    assert all(p.images.abs().max() < 10 for p in told), "images are on the scale of images, not of sigma"
    assert torch.equal(told[-1].images, result)
    assert result.shape == (3, 2, 4, 6) and result.dtype == torch.float32
    # Told in the end what the result is, but for what the last step adds.
    torch.testing.assert_close(told[-1].clean, result, rtol=0, atol=0.1)


@pytest.mark.parametrize("name", SAMPLERS)
def test_clipping(gaussian: Gaussian, name: str) -> None:
    """A denoiser that takes everything to be 3 leads there, or to 1 where clean images are held within [-1, 1]."""
    model = gaussian(DiffusionConfig(), 3.0, 0.0).eval()
    told: list[StepInfo] = []
    clipped = sample(model, Key.of([1]), (8, 8), SamplingRequest(name, 20), callback=told.append)
    free = sample(model, Key.of([1]), (8, 8), SamplingRequest(name, 20), clip=False)
    assert all(p.clean.abs().max() <= 1 for p in told)
    torch.testing.assert_close(clipped, torch.ones(1, 1, 8, 8), rtol=0, atol=0.06)  # DEIS leaves a little noise
    torch.testing.assert_close(free, torch.full((1, 1, 8, 8), 3.0), rtol=0, atol=0.06)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e30])
@pytest.mark.parametrize("name", ["ddpm", "dpm++", "euler-a"])
def test_overflow_says_so(value: float, name: str) -> None:
    model = create_model("diff-nca-small", size=8, channels=8, hidden=16, nca_steps=3).eval()
    with torch.no_grad():
        model.rule.output.weight_g *= value  # type: ignore[union-attr, operator]
    with pytest.raises(
        NonFiniteError, match=rf"sampling overflowed at step \d+ of \d+ \({name.replace('+', '.')}, tim"
    ):
        model.generate(Key.of([1]), request=SamplingRequest(name, 5))


def test_overflow_in_the_last_step_says_so(gaussian: Gaussian) -> None:
    """The prediction is finite, but what the last step makes of it is not."""

    class Wild(gaussian):  # type: ignore[valid-type, misc]
        def evaluate(self, x: Tensor, t: Tensor, evaluation: Evaluation) -> Any:
            return super().evaluate(x, t, evaluation)._replace(noise=torch.full_like(x, 3e38))

    model = Wild(DiffusionConfig(), 0.0, 0.1).eval()
    with pytest.raises(NonFiniteError, match=r"sampling overflowed at its last step \(ddim\)"):
        sample(model, Key.of([1]), (8, 8), SamplingRequest("ddim", 1), clip=False)


def test_sampling_keeps_no_graph(tiny: dict[str, Model]) -> None:
    assert not tiny["cell"].generate(Key.of([1]), (4, 4), request=SamplingRequest(steps=1)).requires_grad
