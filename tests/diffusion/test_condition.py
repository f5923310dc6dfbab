"""A coarser picture as a condition: the fixed filter, its reach, the noise, and every family that takes one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from morphogen.core.condition import ConditionConfig
from morphogen.core.errors import InputError
from morphogen.core.evaluation import Evaluation
from morphogen.core.keys import Key
from morphogen.core.model import Batch, ImageConfig
from morphogen.diffusion.condition import enlarge, in_sampling, in_training, reads, shrink
from morphogen.models import PRESETS, build_model, create_model


def picture(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@settings(deadline=None)  # the first example imports
@given(factor=st.integers(2, 8), high=st.integers(1, 7), wide=st.integers(1, 7))
def test_enlarges_as_pytorch_does(factor: int, high: int, wide: int) -> None:
    coarse = picture(2, 3, high, wide)
    found = enlarge(coarse, factor, (factor * high, factor * wide))
    wanted = F.interpolate(coarse, scale_factor=factor, mode="bilinear", align_corners=False)
    torch.testing.assert_close(found, wanted, atol=4e-6, rtol=0)  # rounding of the weights, in float32


@settings(max_examples=200, deadline=None)
@given(
    factor=st.integers(2, 8),
    size=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    data=st.data(),
)
def test_a_part_is_told_what_the_whole_is(factor: int, size: tuple[int, int], data: st.DataObject) -> None:
    """At every offset within a coarser pixel, from exactly the coarser pixels that `reads` names."""
    config = ConditionConfig(factor=factor)
    coarse = picture(1, 3, *config.coarse(size))
    spans = []
    for side in size:
        first = data.draw(st.integers(0, side - 1))
        spans.append((first, data.draw(st.integers(first + 1, side))))
    (top, bottom), (left, right) = spans
    needed = [reads(span, factor, -(-side // factor)) for span, side in zip(spans, size, strict=True)]
    (first_row, last_row), (first_column, last_column) = needed
    key = Key.of([5])
    whole = in_sampling(config, coarse, key, size)
    part = in_sampling(
        config,
        coarse[..., first_row:last_row, first_column:last_column],
        replace(key, origins=((top, left),), canvas=size),
        (bottom - top, right - left),
        at=(first_row, first_column),
    )
    assert torch.equal(part, whole[..., top:bottom, left:right])


@settings(deadline=None)
@given(factor=st.integers(2, 8), high=st.integers(1, 30), wide=st.integers(1, 30))
def test_shrinks_by_area(factor: int, high: int, wide: int) -> None:
    images = picture(1, 2, high, wide)
    found = shrink(images, factor)
    for row in range(found.shape[2]):
        for column in range(found.shape[3]):
            square = images[..., row * factor : (row + 1) * factor, column * factor : (column + 1) * factor]
            torch.testing.assert_close(found[..., row, column], square.mean(dim=(2, 3)), atol=1e-5, rtol=0)


def test_training_noises_by_a_random_amount_that_it_tells() -> None:
    config, images = ConditionConfig(factor=4, noise=0.5), torch.zeros(64, 3, 16, 16)
    told = in_training(config, images, Key.of(range(64)))
    amounts = told[:, 3, 0, 0]
    assert told.shape == (64, 4, 16, 16)
    assert float(amounts.min()) < 0.05
    assert 0.4 < float(amounts.max()) <= 0.5
    torch.testing.assert_close(told[:, 3], amounts.view(-1, 1, 1).expand(-1, 16, 16), atol=1e-7, rtol=0)  # one rounding
    loud = amounts > 0.1
    # 48 coarse numbers an image, smoothed by the filter to about 0.7 of their deviation
    ratio = told[loud, :3].std(dim=(1, 2, 3)) / amounts[loud]
    assert 0.5 < float(ratio.mean()) < 0.95
    again = in_training(config, images[:3], Key.of([7, 8, 9]))
    assert torch.equal(again, told[7:10])  # by the seed alone, whatever the batch


FAMILIES = {
    "diff-nca": ("diff-nca-small", {"channels": 16, "hidden": 16, "nca_steps": 2}),
    "fourier-diff-nca": (
        "fourier-diff-nca-small",
        {"channels": 16, "hidden": 16, "nca_steps": 2, "window": 4, "fourier_steps": 2},
    ),
    "geca": ("geca-xs", {"width": 16, "heads": 2, "mlp": 16, "hidden": 4, "nca_steps": 2}),
    "unet": ("unet-50k", {}),
    "dit": ("dit-s", {"width": 16, "depth": 1, "heads": 2}),
    "ldm": ("ldm-b", {"widths": (8, 8), "layers": 1, "attention": (), "groups": 4}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_denoiser_takes_a_condition(family: str) -> None:
    name, architecture = FAMILIES[family]
    plain = create_model(name, size=16, **architecture)
    image = ImageConfig(height=16, width=16)
    told = ConditionConfig.of_picture(image, 4)
    model = build_model({**plain.config_dict(), "condition": told.model_dump()}, "test")
    assert PRESETS[name].family == model.family == family
    assert model.config_dict()["condition"] == told.settings()
    loss = model.training_loss(Batch(picture(2, 3, 16, 16)), Key.of([1, 2]))
    loss.backward()
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in model.parameters())
    with torch.no_grad():
        for parameter in model.parameters():  # many begin at zero, and would put out nothing
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    model.eval()
    x, t = picture(1, 3, 16, 16, seed=1), torch.tensor([100.0])
    conditions = [in_sampling(told, picture(1, 3, 4, 4, seed=s), Key.of([0]), (16, 16)) for s in (1, 2)]
    with torch.no_grad():
        first, second = (model(x, t, Evaluation(Key.of([0]), condition=c)).noise for c in conditions)
    assert not torch.equal(first, second)
    with pytest.raises(InputError, match="was trained with a condition"):
        model(x, t)
    with pytest.raises(InputError, match="name the run of all levels"):
        model.generate(Key.of([0]))
