"""VNCA: its count, its likelihood, its training and sampling behind the contract of models."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from morphogen.baselines import vnca
from morphogen.baselines.vnca import VNCA
from morphogen.core.errors import InputError
from morphogen.core.keys import Key
from morphogen.core.model import Batch, StepInfo
from morphogen.core.request import SamplingRequest
from morphogen.models import PRESETS, create_model
from morphogen.training.recipes import resolve


def tiny(size: int = 16, **settings: Any) -> VNCA:
    torch.manual_seed(0)
    model = create_model("vnca", size=size, **({"latent": 16, "nca_steps": 2} | settings)).eval()
    assert isinstance(model, VNCA)
    return model


def lively(size: int = 16, **settings: Any) -> VNCA:
    """A model whose update rule is not zero, as it is at first."""
    model = tiny(size, **settings)
    generator = torch.Generator().manual_seed(1)
    model.output.weight.data = torch.randn(model.output.weight.shape, generator=generator) * 0.3
    return model


def test_count_is_the_published_one() -> None:
    with torch.device("meta"):
        model = create_model("vnca", size=64)
    assert model.parameter_count() == 9_732_416 == PRESETS["vnca"].published_parameters
    assert not model.predicts_noise


def test_growth_is_five_doublings_with_eight_steps_each() -> None:
    model = tiny(64, latent=16, nca_steps=8)
    sides: list[int] = []
    step = model.step
    model.step = lambda cells: sides.append(cells.shape[-1]) or step(cells)  # type: ignore[assignment,func-returns-value]
    model.generate(Key.of([0]))
    assert sides == [2] * 8 + [4] * 8 + [8] * 8 + [16] * 8 + [32] * 8 + [64] * 8


@given(st.integers(0, 10**6), st.floats(-3, 3))
@settings(max_examples=30, deadline=None)
def test_the_256_values_of_a_channel_have_probability_one(seed: int, log_scale: float) -> None:
    """The likelihood is one of discrete values: it sums to one over them, whatever the mean."""
    cells = torch.randn(1, 16, 1, 1, generator=torch.Generator().manual_seed(seed)).double()
    cells[:, 2] = log_scale
    values = (torch.arange(256).double() / 127.5 - 1).view(256, 1, 1, 1)
    logs = vnca.log_likelihood(cells.expand(256, -1, -1, -1), values)
    assert float(logs.exp().sum()) == pytest.approx(1, abs=2e-3)  # the tails' densities stand for their bins


def test_colours_depend_on_earlier_ones_as_they_are_drawn() -> None:
    cells = torch.zeros(1, 16, 1, 1)
    cells[:, 1:4] = torch.tensor([0.2, 0.1, -0.3]).view(1, 3, 1, 1)
    cells[:, 7:10] = torch.atanh(torch.tensor([0.5, -0.4, 0.25])).view(1, 3, 1, 1)
    cells[:, 4:7] = -7  # hardly any spread
    red, green = 0.2, 0.1 + 0.5 * 0.2
    wanted = torch.tensor([red, green, -0.3 - 0.4 * red + 0.25 * green])
    torch.testing.assert_close(vnca.means(cells, 3).flatten(), wanted, rtol=1e-5, atol=1e-6)
    drawn = vnca.draws(cells, torch.randn(1, 3, 1, 1, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(drawn.flatten(), wanted, rtol=0, atol=0.02)  # 1e-3 of scale, a few of them
    likely = vnca.log_likelihood(cells, wanted.view(1, 3, 1, 1))
    unlikely = vnca.log_likelihood(cells, wanted.flip(0).view(1, 3, 1, 1))
    assert float(likely.min()) > -1 > float(unlikely.min())


def test_draws_follow_the_logistic_distribution() -> None:
    """Their mean and deviation: mean, and scale times pi over the root of three."""
    cells = torch.zeros(1, 16, 100, 100)
    cells[:, 1], cells[:, 2] = 0.1, math.log(0.05)
    drawn = vnca.draws(cells, Key.of([3]).normals(2, 1, (100, 100), "cpu"))  # type: ignore[arg-type]
    assert float(drawn.mean()) == pytest.approx(0.1, abs=0.004)  # four errors of the mean of 10,000
    assert float(drawn.std()) == pytest.approx(0.05 * math.pi / 3**0.5, rel=0.05)


def test_the_loss_is_the_negative_bound_in_bits() -> None:
    model, images = tiny(), torch.rand(2, 3, 16, 16) * 2 - 1
    model.encoder[-1].bias.data += 0.5  # means and variances away from the prior's
    key = Key.of([5, 6])
    mean, log_variance = model.encode(images)
    noise = key.normals(3, 16, (1, 1), "cpu").flatten(1)  # type: ignore[arg-type]
    cells = model.decode(mean + noise * (log_variance / 2).exp())
    variance = log_variance.exp()
    posterior, prior = torch.distributions.Normal(mean, variance.sqrt()), torch.distributions.Normal(0.0, 1.0)
    divergence = torch.distributions.kl_divergence(posterior, prior).sum()
    wanted = (divergence - vnca.log_likelihood(cells, images).sum()) / (2 * 3 * 16 * 16 * math.log(2))
    torch.testing.assert_close(model.training_loss(Batch(images), key), wanted, rtol=1e-5, atol=1e-6)


def test_recomputation_gives_the_same_gradients() -> None:
    batch, key = Batch(torch.rand(2, 3, 16, 16) * 2 - 1), Key.of([1, 2])
    gradients = []
    for recompute in (False, True):
        model = lively().train()
        model.recompute = recompute
        model.training_loss(batch, key).backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)  # the same float32 arithmetic


def test_means_and_draws_depend_on_the_seed_alone() -> None:
    model = lively()
    for sampler in ("mean", "draw"):
        three = model.generate(Key.of([4, 5, 6]), request=SamplingRequest(sampler))
        alone = model.generate(Key.of([5]), request=SamplingRequest(sampler))
        torch.testing.assert_close(three[1:2], alone, rtol=0, atol=1e-5)
        assert three.abs().max() <= 1
    assert not torch.equal(
        model.generate(Key.of([4]), request=SamplingRequest("mean")),
        model.generate(Key.of([4]), request=SamplingRequest("draw")),
    )
    told: list[StepInfo] = []
    model.generate(Key.of([1]), callback=told.append)
    assert [p.step for p in told] == [1, 2, 3, 4]
    assert {tuple(p.images.shape) for p in told} == {(1, 3, 16, 16)}


@pytest.mark.slow
def test_it_learns() -> None:
    torch.manual_seed(0)
    model = tiny().train()
    images = (torch.rand(4, 3, 1, 1) * 2 - 1).expand(-1, -1, 16, 16).contiguous()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    losses = []
    for step in range(60):
        loss = model.training_loss(Batch(images), Key.of([step * 4 + i for i in range(4)]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-10:]) < losses[0] - 3  # bits a dimension


@pytest.mark.parametrize(
    ("size", "channels", "message"),
    [(48, 3, "grows by doubling"), ((32, 64), 3, "grows by doubling"), (8, 3, "grows by"), (16, 4, "1 or 3 channels")],
)
def test_sizes_that_cannot_grow_are_refused(size: Any, channels: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_model("vnca", size=size, image_channels=channels)


def test_what_it_does_not_do_is_refused_by_name() -> None:
    model = tiny()
    for arguments, message in (
        ({"size": (32, 32)}, "this vnca makes images of 16x16 only"),
        ({"request": SamplingRequest(steps=20)}, "vnca makes an image in one pass"),
        ({"request": SamplingRequest("ddim")}, "samplers mean and draw, not 'ddim'"),
        ({"labels": torch.zeros(1, 2)}, "vnca takes no labels"),
    ):
        with pytest.raises(InputError, match=message):
            model.generate(Key.of([1]), **arguments)
    with pytest.raises(InputError, match="no setting 'diffusion'"):
        create_model("vnca", diffusion={"timesteps": 10})


def test_gray_images() -> None:
    model = create_model("vnca", size=16, image_channels=1, latent=16, nca_steps=1)
    assert model.generate(Key.of([0, 1]), request=SamplingRequest("draw")).shape == (2, 1, 16, 16)
    assert model.training_loss(Batch(torch.zeros(2, 1, 16, 16)), Key.of([0, 1])).isfinite()


def test_its_training_is_a_recipe() -> None:
    training = resolve({"model": "vnca", "recipe": "paper", "data": {"source": "x"}}).training
    assert (training.optimizer.learning_rate, training.batch_size, training.schedule.decay) == (1e-4, 32, "constant")
