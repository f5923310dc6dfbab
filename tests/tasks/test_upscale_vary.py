"""Upscaling and varying: given pixels at their places, strengths and levels, and seeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from morphogen.core.errors import InputError
from morphogen.core.evaluation import Evaluation
from morphogen.core.keys import Key
from morphogen.core.model import Model, StepInfo
from morphogen.core.request import SamplingRequest
from morphogen.diffusion.projection import repeated
from morphogen.tasks.upscale import original_pixels, upscale
from morphogen.tasks.vary import vary

Images = Callable[..., Tensor]
QUICK: dict[str, Any] = {"request": SamplingRequest(steps=4)}


@pytest.mark.slow
@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize("size", [(8, 8), (5, 7), (2, 9)])
def test_given_pixels_stay_at_their_places(local: Model, image: Images, factor: int, size: tuple[int, int]) -> None:
    small = image(*size)
    large = upscale(local, small, [3], factor, **QUICK)
    assert large.shape == (1, 3, factor * size[0], factor * size[1])
    assert torch.equal(large[..., ::factor, ::factor], small)
    added = ~original_pixels(*size, factor).expand_as(large)
    assert int(added.sum()) == 3 * (factor**2 - 1) * size[0] * size[1]
    assert (large[added] != repeated(small, factor)[added]).float().mean() > 0.9
    other = upscale(local, small, [4], factor, **QUICK)
    assert (large[added] != other[added]).float().mean() > 0.5


def test_without_noise_it_repeats_pixels_and_with_full_blend_stays_near(local: Model, image: Images) -> None:
    small = image(6, 6)
    assert torch.equal(upscale(local, small, [3], noise=0.0), repeated(small, 2))
    free = upscale(local, small, [3], noise=0.5, blend=0.0)
    pulled = upscale(local, small, [3], noise=0.5, blend=1.0)
    away = [(x - repeated(small, 2)).abs().mean() for x in (free, pulled)]
    assert away[1] < away[0] / 2


def test_options_matter(local: Model, image: Images) -> None:
    small = image(6, 6)
    plain = upscale(local, small, [3], **QUICK)
    sampler = {"request": SamplingRequest("ddim", 4)}
    for options in ({"clean": True}, {"added_only": True}, {"blend": 0.2}, {"noise": 0.6}, sampler):
        assert (upscale(local, small, [3], **{**QUICK, **options}) - plain).abs().max() > 1e-3, options


def test_only_cells_of_added_pixels_run_on_request(
    local: Model, image: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    forward = local.forward

    def watched(x: Tensor, t: Tensor, evaluation: Evaluation) -> Any:
        seen.append(evaluation.active)
        return forward(x, t, evaluation)

    monkeypatch.setattr(local, "forward", watched)
    upscale(local, image(4, 5), [3], added_only=True, **QUICK)
    assert all(torch.equal(a[0, 0], ~original_pixels(4, 5, 2)) for a in seen)
    seen.clear()
    upscale(local, image(4, 5), [3], **QUICK)
    assert all(a is None for a in seen)


def test_the_noise_of_each_doubling_is_its_own(local: Model, image: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[Any, ...]] = []
    normals = Key.normals

    def watched(self: Key, purpose: Any, *args: Any) -> Tensor:
        drawn.append((self.seeds, self.evaluation, purpose))
        return normals(self, purpose, *args)

    monkeypatch.setattr(Key, "normals", watched)
    upscale(local, image(4, 4), [3], 8, **QUICK)
    assert len(set(drawn)) == len(drawn) > 12


@pytest.mark.slow
@pytest.mark.parametrize("task", [upscale, vary], ids=["upscale", "vary"])
@pytest.mark.parametrize("name", ["local", "fourier"])
def test_the_same_alone_and_in_a_batch(
    request: pytest.FixtureRequest, image: Images, task: Callable[..., Tensor], name: str
) -> None:
    """Only the order of sums may differ."""
    model: Model = request.getfixturevalue(name)
    images = torch.cat([image(33, 35, seed) for seed in range(2)])
    whole = task(model, images, [7, 8], **QUICK)
    for k in range(2):
        torch.testing.assert_close(task(model, images[k : k + 1], [7 + k], **QUICK)[0], whole[k], rtol=0, atol=1e-4)


def test_steps_are_told_over_all_doublings(local: Model, image: Images) -> None:
    told: list[StepInfo] = []
    upscale(local, image(4, 4), [3], 4, request=SamplingRequest(steps=10), callback=told.append)
    assert [(p.step, p.steps) for p in told] == [(i + 1, 18) for i in range(18)]
    assert told[0].images.shape[-1] == 8 and told[-1].images.shape[-1] == 16


def test_strengths(local: Model, image: Images) -> None:
    x = image(9, 11)
    assert torch.equal(vary(local, x, [3], 0.0), x)
    distances = [
        float((vary(local, x, [3], s, request=SamplingRequest(steps=20)) - x).abs().mean()) for s in (0.1, 0.4, 0.9)
    ]
    assert distances == sorted(distances) and distances[0] > 0
    plain = local.generate(Key.of([3]), (9, 11), request=SamplingRequest("ddpm", 20))
    # At the last of 20 levels of a cosine the signal is 3e-3; the update is not trained, so nothing damps it.
    torch.testing.assert_close(vary(local, x, [3], 1.0, request=SamplingRequest("ddpm", 20)), plain, rtol=0, atol=0.1)


@pytest.mark.parametrize("task", [upscale, vary], ids=["upscale", "vary"])
def test_refusals(local: Model, image: Images, task: Callable[..., Tensor]) -> None:
    x = image(8, 8)
    wrong: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        ("there are 0 seeds for 1 images", (x, []), {}),
        ("the shape", (x[0], [1]), {}),
        ("too small", (x[..., :1, :], [1]), {}),
        ("no sampler 'magic'", (x, [1]), {"request": SamplingRequest("magic")}),
        ("seed -1", (x, [-1]), {}),
    ]
    for says, args, options in wrong:
        with pytest.raises(InputError, match=says):
            task(local, *args, **options)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf")])
def test_shares_outside(local: Model, image: Images, value: float) -> None:
    with pytest.raises(InputError, match=r"strength is .* between 0 and 1"):
        vary(local, image(8, 8), [1], value)
    for name in ("noise", "blend"):
        with pytest.raises(InputError, match=f"{name} is .* between 0 and 1"):
            upscale(local, image(8, 8), [1], **{name: value})


@pytest.mark.parametrize("factor", [0, 1, 3, 6, 16, -2])
def test_factors(local: Model, image: Images, factor: int) -> None:
    with pytest.raises(InputError, match=f"factor is {factor}; it should be 2, 4 or 8"):
        upscale(local, image(8, 8), [1], factor)
