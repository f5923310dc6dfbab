"""Filling holes: what is known stays, what is filled depends on the seed alone, and only cells around holes run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from morphogen.core.errors import InputError
from morphogen.core.evaluation import Evaluation
from morphogen.core.model import Model, StepInfo
from morphogen.core.request import SamplingRequest
from morphogen.diffusion.known import Resampling
from morphogen.tasks.inpaint import dilate, inpaint

Images = Callable[..., Tensor]
QUICK: dict[str, Any] = {"request": SamplingRequest("ddpm", 4)}


def holes(height: int, width: int) -> dict[str, Tensor]:
    """Holes of many shapes, boolean (1, 1, H, W)."""
    found = {name: torch.zeros(1, 1, height, width, dtype=torch.bool) for name in ("pixel", "corner", "edge", "boxes")}
    found["pixel"][..., height // 2, width // 2] = True
    found["corner"][..., 0, 0] = True
    found["edge"][..., :, -2:] = True
    found["boxes"][..., 1:4, 2:5] = True
    found["boxes"][..., -3:, -4:-1] = True
    found["boxes"][..., height // 2, :] = True
    checker = (torch.arange(height).view(-1, 1) + torch.arange(width)) % 2 == 0
    found["checkerboard"] = checker.expand(1, 1, -1, -1).clone()
    found["all but one"] = ~found["pixel"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("size", [(16, 16), (7, 13), (5, 30)])
@pytest.mark.parametrize("name", holes(16, 16))
def test_known_pixels_stay_and_the_hole_is_filled(
    local: Model, image: Images, size: tuple[int, int], name: str
) -> None:
    given_, hole = image(*size), holes(*size)[name]
    filled = inpaint(local, given_, hole, [3], **QUICK)
    known = ~hole.expand_as(filled)
    assert torch.equal(filled[known], given_[known])
    assert torch.isfinite(filled).all()
    assert (filled[~known] != given_[~known]).float().mean() > 0.9
    other = inpaint(local, given_, hole, [4], **QUICK)
    assert (filled[~known] != other[~known]).any(), "another seed is another fill"


def test_what_lay_in_the_hole_is_never_seen(local: Model, image: Images) -> None:
    given_, hole = image(12, 12), holes(12, 12)["boxes"]
    other = torch.where(hole, -given_, given_)
    assert torch.equal(*(inpaint(local, x, hole, [3], **QUICK) for x in (given_, other)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["local", "fourier"])
def test_the_same_alone_and_in_a_batch(request: pytest.FixtureRequest, image: Images, name: str) -> None:
    """Different images with different holes; only the order of sums may differ."""
    model: Model = request.getfixturevalue(name)
    side = 34
    images = torch.cat([image(side, side, seed) for seed in range(3)])
    hole = torch.cat([holes(side, side)[n] for n in ("pixel", "edge", "boxes")])
    whole = inpaint(model, images, hole, [7, 8, 9], **QUICK)
    for k in range(3):
        alone = inpaint(model, images[k : k + 1], hole[k : k + 1], [7 + k], **QUICK)
        torch.testing.assert_close(alone[0], whole[k], rtol=0, atol=1e-4)


def test_the_default_context_changes_nothing_but_the_cost(local: Model, image: Images) -> None:
    """Three steps read three cells away, so cells further from the hole need not run; with fewer it does differ."""
    given_, hole = image(24, 24), holes(24, 24)["boxes"]
    everything = inpaint(local, given_, hole, [3], context=100, **QUICK)
    torch.testing.assert_close(inpaint(local, given_, hole, [3], **QUICK), everything, rtol=0, atol=1e-6)
    torch.testing.assert_close(inpaint(local, given_, hole, [3], context=3, **QUICK), everything, rtol=0, atol=1e-6)
    for context in (0, 1):
        assert (inpaint(local, given_, hole, [3], context=context, **QUICK) - everything).abs().max() > 1e-4


@pytest.mark.parametrize("context", [0, 2, None])
def test_which_cells_run(local: Model, image: Images, monkeypatch: pytest.MonkeyPatch, context: int | None) -> None:
    seen: list[Tensor] = []
    forward = local.forward

    def watched(x: Tensor, t: Tensor, evaluation: Evaluation) -> Any:
        assert evaluation.active is not None
        seen.append(evaluation.active)
        return forward(x, t, evaluation)

    monkeypatch.setattr(local, "forward", watched)
    hole = holes(16, 16)["corner"]
    inpaint(local, image(16, 16), hole, [3], context=context, **QUICK)
    assert len(seen) == 4
    around = 3 if context is None else context
    wanted = torch.zeros(16, 16, dtype=torch.bool)
    wanted[: around + 1, : around + 1] = True
    assert all(torch.equal(a[0, 0], wanted) for a in seen)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(height=st.integers(1, 12), width=st.integers(1, 12), cells=st.integers(0, 14), seed=st.integers(0, 99))
def test_dilation(height: int, width: int, cells: int, seed: int) -> None:
    mask = torch.rand(1, 1, height, width, generator=torch.Generator().manual_seed(seed)) < 0.15
    grown = dilate(mask, cells)
    marked = mask[0, 0].nonzero()
    for y in range(height):
        for x in range(width):
            near = any(max(abs(y - int(a)), abs(x - int(b))) <= cells for a, b in marked)
            assert bool(grown[0, 0, y, x]) == near


def test_resampling_takes_more_evaluations_and_keeps_what_is_known(local: Model, image: Images) -> None:
    told: list[StepInfo] = []
    given_, hole = image(12, 12), holes(12, 12)["boxes"]
    args: dict[str, Any] = {"request": SamplingRequest("ddpm", 10), "callback": told.append}
    filled = inpaint(local, given_, hole, [3], resampling=Resampling(3, 2), **args)
    assert [p.step for p in told] == list(range(1, 20)) and told[0].steps == 19
    known = ~hole.expand_as(filled)
    assert torch.equal(filled[known], given_[known])
    assert all(torch.equal(p.images[known], given_[known]) for p in told), "the film shows what is known"


@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
@pytest.mark.parametrize("sampler", ["ddim", "dpm++", "dpm++-single", "dpm++-sde", "unipc", "euler", "euler-a", "heun"])
def test_every_sampler(local: Model, image: Images, sampler: str) -> None:
    given_, hole = image(12, 12), holes(12, 12)["boxes"]
    filled = inpaint(local, given_, hole, [3], request=SamplingRequest(sampler, 5), resampling=Resampling(2, 2))
    known = ~hole.expand_as(filled)
    assert torch.equal(filled[known], given_[known]) and torch.isfinite(filled).all()


def test_refusals(local: Model, image: Images) -> None:
    given_, hole = image(8, 8), holes(8, 8)["pixel"]
    wrong: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        ("the hole is empty", (given_, hole & False, [1]), {}),
        ("the hole is the whole image", (given_, hole | True, [1]), {}),
        ("the hole is torch.float32", (given_, hole.float(), [1]), {}),
        ("it should be boolean of the shape", (given_, hole[..., :4], [1]), {}),
        ("there are 2 seeds for 1 images", (given_, hole, [1, 2]), {}),
        ("context is -1", (given_, hole, [1]), {"context": -1}),
        ("no sampler 'magic'", (given_, hole, [1]), {"request": SamplingRequest("magic")}),
        ("sampling steps is 21", (given_, hole, [1]), {"request": SamplingRequest(steps=21)}),
        ("the shape", (given_[:, :1], hole, [1]), {}),
        ("too small", (given_[..., :1], hole[..., :1], [1]), {}),
    ]
    for says, args, options in wrong:
        with pytest.raises(InputError, match=says):
            inpaint(local, *args, **options)


def test_one_empty_hole_in_a_batch_is_refused(local: Model, image: Images) -> None:
    hole = torch.cat([holes(8, 8)["pixel"], holes(8, 8)["pixel"] & False])
    with pytest.raises(InputError, match="the hole is empty"):
        inpaint(local, image(8, 8).expand(2, -1, -1, -1), hole, [1, 2])
