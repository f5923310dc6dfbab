"""The U-Nets: published counts, any size, any batch, the contract of denoisers."""

from __future__ import annotations

import pytest
import torch

from morphogen.core.errors import InputError
from morphogen.core.evaluation import Evaluation
from morphogen.core.keys import Key
from morphogen.core.model import Batch, Model
from morphogen.core.request import SamplingRequest
from morphogen.models import PRESETS, create_model
from morphogen.training.recipes import resolve

PUBLISHED = {"unet-s": 652_195, "unet-m": 3_940_547, "unet-b": 17_217_923, "unet-l": 111_051_779}
SMALL = {"unet-50k": (50_103, "diff-nca-small", 1), "unet-200k": (199_643, "diff-nca-small", 4)}
SMALL |= {
    "unet-116k": (115_523, "fourier-diff-nca-small", 1),
    "unet-465k": (465_151, "fourier-diff-nca-small", 4),
}


def tiny(size: int | tuple[int, int] = 16, **settings: object) -> Model:
    torch.manual_seed(0)
    return create_model("unet-50k", size=size, **settings).eval()


def count(name: str) -> int:
    with torch.device("meta"):
        return create_model(name).parameter_count()


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_are_exactly_the_published_ones(name: str) -> None:
    assert count(name) == PUBLISHED[name] == PRESETS[name].published_parameters


@pytest.mark.parametrize("name", SMALL)
def test_the_small_ones_match_an_automaton(name: str) -> None:
    wanted, automaton, times = SMALL[name]
    assert count(name) == wanted == pytest.approx(times * count(automaton), rel=0.02)


@pytest.mark.parametrize("size", [(2, 2), (5, 16), (17, 23), (32, 48)])
def test_any_size_goes_in_and_comes_out(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size)
    found = tiny()(x, torch.tensor([3.0, 250.5]), Evaluation(Key.of([1, 2])))
    assert found.noise.shape == x.shape
    assert found.noise.isfinite().all()


def test_padding_changes_nothing_where_none_is_needed() -> None:
    model, x, t = tiny(), torch.randn(1, 3, 16, 16), torch.tensor([5.0])
    direct = model.net(x, t, return_dict=False)[0]  # type: ignore[attr-defined]
    assert torch.equal(model.evaluate(x, t, Evaluation(Key.of([0]))).noise, direct)  # type: ignore[attr-defined]


def test_padding_is_at_the_far_sides_and_is_cut_off() -> None:
    model, t = tiny(), torch.tensor([5.0])
    x = torch.randn(1, 3, 14, 15)
    wide = torch.cat([x, x[..., -1:]], dim=3)
    wide = torch.cat([wide, wide[..., -1:, :], wide[..., -1:, :]], dim=2)
    direct = model.net(wide, t, return_dict=False)[0]  # type: ignore[attr-defined]
    assert torch.equal(model.evaluate(x, t, Evaluation(Key.of([0]))).noise, direct[..., :14, :15])  # type: ignore[attr-defined]


def test_an_image_depends_on_its_seed_alone() -> None:
    model = tiny(diffusion={"timesteps": 20})
    three = model.generate(Key.of([4, 5, 6]), (12, 20), request=SamplingRequest(steps=4))
    one = model.generate(Key.of([5]), (12, 20), request=SamplingRequest(steps=4))
    torch.testing.assert_close(three[1:2], one, rtol=0, atol=1e-4)  # float32 in another batch


def test_recomputation_gives_the_same_gradients() -> None:
    batch, key = Batch(torch.rand(2, 3, 16, 16) * 2 - 1), Key.of([1, 2])
    gradients = []
    for recompute in (False, True):
        model = tiny().train()
        model.recompute = recompute
        model.training_loss(batch, key).backward()
        gradients.append([p.grad for p in model.parameters()])
        assert model.net.is_gradient_checkpointing == recompute  # type: ignore[attr-defined]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)  # the same float32 arithmetic


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(InputError, match="groups is 4, which does not divide the width 10"):
        tiny(widths=(8, 10))
    with pytest.raises(InputError, match="attention names the level 3, but there are levels 0 to 2"):
        tiny(attention=(3,))
    with pytest.raises(InputError, match="has no NCA steps"):
        tiny()(torch.zeros(1, 3, 16, 16), torch.zeros(1), Evaluation(Key.of([0]), nca_steps=3))


def test_the_published_training_is_a_recipe() -> None:
    paper = resolve({"model": "unet-m", "recipe": "paper", "data": {"source": "x"}}).training
    optimizer = paper.optimizer
    assert (optimizer.learning_rate, optimizer.betas, optimizer.epsilon) == (3e-5, (0.5, 0.999), 1e-6)
    assert (paper.batch_size, paper.schedule.decay, paper.averaging.decay) == (32, "constant", 0.99)
    own = resolve({"model": "unet-m", "recipe": "paper", "data": {"source": "x"}, "training": {"batch_size": 7}})
    assert own.training.batch_size == 7
    assert resolve({"model": "diff-nca", "recipe": "paper", "data": {"source": "x"}}).training.batch_size == 16
