"""The error on held-out images: one figure for any model, whichever way it is computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from run_helpers import draw_images

from morphogen import create_model
from morphogen.automata.diff_nca import DiffNCA
from morphogen.core.evaluation import Evaluation
from morphogen.core.model import Prediction
from morphogen.data.config import DataConfig
from morphogen.data.dataset import ImageDataset, build_dataset
from morphogen.diffusion.config import DiffusionConfig
from morphogen.diffusion.denoiser import Denoiser
from morphogen.diffusion.schedule import alpha_bar
from morphogen.training.validation import common_timesteps, noise_error


@pytest.fixture
def held_out(tmp_path: Path) -> ImageDataset:
    source = draw_images(tmp_path / "many", 60, 18)
    return build_dataset(DataConfig(source=str(source), size=(16, 16)), "val", seed=0, progress=False)


@pytest.fixture
def model() -> Denoiser:
    torch.manual_seed(1)
    made = create_model("diff-nca-small", size=16, channels=8, hidden=16, nca_steps=2)
    assert isinstance(made, Denoiser)
    return made.eval()


@pytest.mark.parametrize("count", [1, 4, 6, 15])
def test_it_is_the_same_each_time_and_at_any_batch_size(model: Denoiser, held_out: ImageDataset, count: int) -> None:
    assert len(held_out) == 6  # fewer than the largest count: they come again
    found = [noise_error(model, held_out, count, batch_size) for batch_size in (6, 6, 1, 2, 4, 5, 50)]
    assert found[0] == found[1]
    # 1e-5: convolutions sum in another order at another batch size.
    assert found == pytest.approx([found[0]] * len(found), rel=1e-5)


def test_it_tells_how_far_it_is(model: Denoiser, held_out: ImageDataset) -> None:
    told: list[int] = []
    assert noise_error(model, held_out, 15, 4, told.append) == noise_error(model, held_out, 15, 4)
    assert told == [4, 8, 12, 15]


def test_it_neither_trains_nor_depends_on_the_random_state(model: Denoiser, held_out: ImageDataset) -> None:
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(3)
    first = noise_error(model, held_out, 6, 4)
    torch.manual_seed(4)
    assert noise_error(model, held_out, 6, 4) == first
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


class Nothing(DiffNCA):
    """Predicts no noise at all."""

    def evaluate(self, x: torch.Tensor, t: torch.Tensor, evaluation: Evaluation) -> Prediction:
        return Prediction(torch.zeros_like(x))


@pytest.mark.parametrize("count", [6, 64])
def test_predicting_nothing_costs_one(held_out: ImageDataset, count: int) -> None:
    config = {"image": {"height": 16, "width": 16}, "diffusion": {"output": "noise"}}
    nothing = Nothing.from_config(config, "a test").eval()
    # The mean of the squares of n normals, here 768 an image, has a standard deviation of sqrt(2 / n); five of them.
    assert noise_error(nothing, held_out, count, 5) == pytest.approx(1, abs=5 * (2 / (768 * count)) ** 0.5)


def test_few_images_are_seen_under_other_noise_each_time(model: Denoiser, held_out: ImageDataset) -> None:
    seen: list[torch.Tensor] = []

    class Watched(type(model)):  # type: ignore[misc]
        def evaluate(self, x: torch.Tensor, t: torch.Tensor, evaluation: Evaluation) -> Prediction:
            seen.extend(x)
            return super().evaluate(x, t, evaluation)  # type: ignore[no-any-return]

    model.__class__ = Watched
    noise_error(model, held_out, 18, 6)
    assert len(seen) == 18
    assert all(not torch.equal(seen[i], seen[j]) for i in range(18) for j in range(i))


SCHEDULES = [
    DiffusionConfig(timesteps=timesteps, schedule=schedule)
    for timesteps in (50, 300, 1000)
    for schedule in ("cosine", "linear", "sigmoid")
]


@pytest.mark.parametrize("config", SCHEDULES, ids=lambda c: f"{c.schedule}-{c.timesteps}")
def test_noise_levels_are_those_of_the_published_schedule(config: DiffusionConfig) -> None:
    published = DiffusionConfig(timesteps=300, schedule="cosine")
    wanted = alpha_bar(published, torch.linspace(0, 299, 16))
    times = common_timesteps(config, 16)
    assert times.shape == (16,)
    assert bool(((times >= 0) & (times <= config.timesteps - 1)).all())
    assert bool((times.diff() >= 0).all())
    found = alpha_bar(config, times)
    reachable = alpha_bar(config, torch.tensor([0.0, config.timesteps - 1.0]))
    clipped = wanted.clamp(reachable[1], reachable[0])
    # 0.01: between two timesteps the share is taken as a straight line.
    torch.testing.assert_close(found, clipped, atol=0.01, rtol=0)


def test_the_published_schedule_is_its_own_measure() -> None:
    times = common_timesteps(DiffusionConfig(timesteps=300, schedule="cosine"), 24)
    # 0.01 timesteps: the search for a level in float32 where levels are close together.
    torch.testing.assert_close(times, torch.linspace(0, 299, 24), atol=0.01, rtol=0)


@pytest.mark.slow
def test_training_lowers_it(trained: Callable[..., object], tmp_path: Path) -> None:
    source = draw_images(tmp_path / "many", 40, 18)
    settings = {"source": source, "validate_every": 10, "batch_size": 8}
    first = trained("run", "training.schedule.warmup=0", steps=10, **settings)
    last = trained("run", "training.schedule.warmup=0", steps=150, **settings)
    assert last.noise_error < 0.9 * first.noise_error  # type: ignore[attr-defined]
