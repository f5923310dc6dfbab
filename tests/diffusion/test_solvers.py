"""The steps of the samplers against diffusers' schedulers, and what a canvas rests on: they are pointwise and pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from morphogen.core.evaluation import Evaluation
from morphogen.core.keys import Key
from morphogen.core.random import Purpose
from morphogen.core.request import SamplingRequest
from morphogen.diffusion.config import DiffusionConfig, ScheduleName
from morphogen.diffusion.samplers import SAMPLERS
from morphogen.diffusion.sampling import Stepper
from morphogen.diffusion.schedule import alpha_bar, betas
from morphogen.diffusion.solvers import CLEAN, History

# diffusers makes numpy arrays of tensors in ways that numpy 2 deprecates: `__array__` without copy, `__array_wrap__`.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
SCHEDULES: list[ScheduleName] = ["cosine", "linear", "scaled_linear", "sigmoid"]
TRAILING = {"timestep_spacing": "trailing"}
ORACLES: dict[str, tuple[str, dict[str, Any]]] = {
    "dpm++": ("DPMSolverMultistepScheduler", TRAILING),
    "dpm++-single": ("DPMSolverSinglestepScheduler", {"lower_order_final": True}),
    "dpm++-sde": ("DPMSolverMultistepScheduler", {**TRAILING, "algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", TRAILING),
    "euler": ("EulerDiscreteScheduler", TRAILING),
    "euler-a": ("EulerAncestralDiscreteScheduler", TRAILING),
    "heun": ("HeunDiscreteScheduler", TRAILING),
}
SCALED = ("euler", "euler-a", "heun")  # whose x in diffusers is image + sigma * noise
SIZE = (6, 5)
Gaussian = Callable[..., Any]


def oracle(name: str, stepper: Stepper) -> Any:
    """diffusers' scheduler, set to the very timesteps and noise levels of a stepper."""
    config = stepper.denoiser.diffusion
    scheduler_name, settings = ORACLES[name]
    scheduler = getattr(diffusers, scheduler_name)(
        num_train_timesteps=config.timesteps, trained_betas=betas(config), prediction_type="epsilon", **settings
    )
    scheduler.set_timesteps(len(dict.fromkeys(stepper.timesteps)))
    scheduler.timesteps = torch.tensor(stepper.timesteps).to(scheduler.timesteps.dtype)
    share = alpha_bar(config, torch.tensor(stepper.timesteps))
    scheduler.sigmas = torch.cat([((1 - share) / share).sqrt().float(), scheduler.sigmas[-1:]])
    return scheduler


def predictions(stepper: Stepper) -> list[Tensor]:
    """A noise prediction for every evaluation: fixed numbers that change smoothly from one to the next."""
    first, change = (torch.randn(1, 1, *SIZE, generator=torch.Generator().manual_seed(k)) for k in (1, 2))
    return [torch.sin(first + change * i / len(stepper)) for i in range(len(stepper))]


# Where noise falls to less than a quarter in a step, as in the first of few, our Heun's step is Euler's.
CASES = [(name, steps) for name in ORACLES for steps in (1, 2, 3, 10, 25, 40) if name != "heun" or steps in (1, 10, 25)]


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("name", "steps"), CASES)
def test_the_trajectory_is_that_of_diffusers(
    gaussian: Gaussian, monkeypatch: pytest.MonkeyPatch, name: str, schedule: ScheduleName, steps: int
) -> None:
    """For given noise predictions and noises: within 1e-5 of x, wherever that is of the size of images.

    diffusers computes coefficients in float32. x - sigma * noise, which all solvers of data prediction divide by alpha,
    loses 6e-8 / alpha to rounding, and what is left of that is the tolerance where the signal vanishes.
    """
    stepper = Stepper(
        gaussian(DiffusionConfig(schedule=schedule), 0.2, 0.3).eval(),
        SamplingRequest(name, steps),
        clip=False,
    )
    scheduler, key = oracle(name, stepper), Key.of([3])
    given = iter(predictions(stepper))
    x = stepper.begin(key, SIZE)
    theirs = x / stepper.levels[0].alpha if name in SCALED else x
    module = diffusers.schedulers.scheduling_euler_ancestral_discrete
    history: History | None = None
    for i, t in enumerate(scheduler.timesteps):
        level, fresh = stepper.levels[i], key.at(i).normals(Purpose.SAMPLER_NOISE, 1, SIZE, "cpu")
        monkeypatch.setattr(module, "randn_tensor", lambda *_, fresh=fresh, **__: fresh)
        extra = {"variance_noise": fresh} if name == "dpm++-sde" else {}
        noise = next(given)
        theirs = scheduler.step(noise, t, theirs, **extra, return_dict=False)[0]
        following = stepper.levels[i + 1] if i + 1 < len(stepper) else None
        clean = (x - level.sigma * noise) / level.alpha
        if stepper.sampler.pairs and i % 2 == 0:
            history = None
        x, history = stepper.sampler.step(x, clean, noise, level, following or CLEAN, history, fresh)
        scale = following.alpha if following is not None and name in SCALED else 1.0
        largest = max(1.0, float(x.abs().max()))
        torch.testing.assert_close(x / largest, theirs * scale / largest, rtol=0, atol=1e-5 + 1e-7 / level.alpha)


def evaluate(stepper: Stepper, key: Key, x: Tensor, i: int, history: History | None = None) -> Any:
    return stepper.step(i, x, Evaluation(key.at(i)), history)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_step_is_pointwise_and_can_be_taken_from_a_canvas(gaussian: Gaussian, name: str) -> None:
    """Of what is kept between steps, any part can be stepped alone, in any order, and comes out bit for bit."""
    stepper = Stepper(
        gaussian(DiffusionConfig(schedule="linear"), 0.2, 0.3, channels=2).eval(),
        SamplingRequest(name, 7),
    )
    key, size = Key.of([5]), (9, 11)
    whole, history = stepper.begin(key, size), None
    canvas = whole
    for i in range(len(stepper)):
        output = evaluate(stepper, key, whole, i, history)
        whole, history = output.x, output.history
        following = torch.full((1, stepper.kept_channels, *size), torch.nan)
        for rows, columns in ((slice(4, 9), slice(0, 11)), (slice(0, 4), slice(7, 11)), (slice(0, 4), slice(0, 7))):
            x, before = (canvas[..., rows, columns], None) if i == 0 else stepper.resume(i, canvas[..., rows, columns])
            part = evaluate(stepper, key.moved(rows.start, columns.start), x, i, before)
            following[..., rows, columns] = stepper.keep(part)
        canvas = following
        assert torch.equal(canvas, stepper.keep(output))
        assert canvas.dtype == torch.float32
    assert torch.equal(canvas[:, :2], whole)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_step_changes_nothing_that_it_is_given(gaussian: Gaussian, name: str) -> None:
    """Taken twice it gives the same bits, and x and history are as they were."""
    stepper = Stepper(gaussian(DiffusionConfig(), 0.2, 0.3).eval(), SamplingRequest(name, 6))
    key = Key.of([5])
    x, history = stepper.begin(key, SIZE), None
    for i in range(len(stepper)):
        before = [part.clone() for part in (x, *(history.tensors if history else ()))]
        once, again = (evaluate(stepper, key, x, i, history) for _ in range(2))
        assert all(map(torch.equal, before, (x, *(history.tensors if history else ()))))
        assert torch.equal(once.x, again.x) and (once.history is None) == (again.history is None)
        x, history = once.x, once.history
    assert stepper.kept_channels == 1 + stepper.sampler.history


def test_history_counts(gaussian: Gaussian) -> None:
    """A solver with history steps otherwise without it."""
    for name, sampler in SAMPLERS.items():
        stepper, key = (
            Stepper(gaussian(DiffusionConfig(), 0.2, 0.3).eval(), SamplingRequest(name, 150)),
            Key.of([5]),
        )
        first = evaluate(stepper, key, stepper.begin(key, SIZE), 0)
        with_it, without = (evaluate(stepper, key, first.x, 1, history) for history in (first.history, None))
        assert torch.equal(with_it.x, without.x) == (sampler.history == 0), name


def test_a_long_step_of_heun_is_euler_s(gaussian: Gaussian) -> None:
    """Over a step that leaves less than a quarter of the noise, half the difference of two slopes is more than what is
    left: the second evaluation changes nothing there.
    """
    stepper, key = Stepper(gaussian(DiffusionConfig(), 0.2, 0.3).eval(), SamplingRequest("heun", 4)), Key.of([5])
    assert stepper.levels[1].ratio < stepper.levels[0].ratio / 4
    first = evaluate(stepper, key, stepper.begin(key, SIZE), 0)
    second = evaluate(stepper, key, first.x, 1, first.history)
    assert torch.equal(second.x, first.x)
