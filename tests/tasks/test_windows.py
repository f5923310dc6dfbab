"""Filling a hole of a large picture costs what the hole costs, and gives what computing all of it gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from run_helpers import pixels

from morphogen.core.model import StepInfo
from morphogen.core.request import SamplingRequest
from morphogen.models import create_model
from morphogen.tasks import batch
from morphogen.tasks.batch import Job, fill
from morphogen.tasks.inpaint import dilate
from morphogen.tasks.pictures import as_picture
from morphogen.tasks.windows import Window, find_windows

SMALL: dict[str, Any] = {"channels": 60, "hidden": 16, "nca_steps": 3, "diffusion": {"timesteps": 10}}


def local(**architecture: Any) -> Any:
    torch.manual_seed(0)
    model = create_model("diff-nca", size=16, **SMALL, **architecture).eval()
    for parameter in model.parameters():  # fresh weights predict nothing
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(16, 300),
    width=st.integers(16, 300),
    boxes=st.lists(st.tuples(*[st.floats(0, 1)] * 4), min_size=1, max_size=4),
    patch=st.sampled_from([1, 2, 3]),
    context=st.sampled_from([None, 0, 7]),
)
def test_windows_hold_all_that_a_hole_needs(
    height: int, width: int, boxes: Any, patch: int, context: int | None
) -> None:
    model = local(patch=patch)
    hole = torch.zeros(height, width, dtype=torch.bool)
    for y, x, high, wide in boxes:
        top, left = int(y * (height - 1)), int(x * (width - 1))
        hole[top : top + 1 + int(high * 40), left : left + 1 + int(wide * 40)] = True
    found = find_windows(model, hole, context)
    count = torch.zeros(height, width, dtype=torch.int)
    for window in found:
        window.cut(count).add_(1)
        assert window.top % patch == window.left % patch == 0
        assert min(window.size) >= min(model.minimum_picture, height, width)
    assert count.max() == 1, "they are disjoint"
    reach = (model.context if context is None else context) + patch
    assert bool((count[dilate(hole[None, None], reach)[0, 0]] == 1).all())


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("alpha", [False, True])
def test_a_window_is_filled_as_in_the_whole(monkeypatch: pytest.MonkeyPatch, patch: int, alpha: bool) -> None:
    model, values = local(patch=patch), pixels(211, 305, 3)
    if alpha:
        values = np.dstack([values, pixels(211, 305, 4)[..., 0]])
    picture = as_picture(values)
    hole = torch.zeros(211, 305, dtype=torch.bool)
    hole[40:52, 30:41] = hole[200:, 290:] = hole[100:103, 160:190] = True
    jobs = [Job(picture, seed, hole) for seed in (3, 8)]
    told: list[StepInfo] = []
    filled = fill(model, jobs, request=SamplingRequest("ddpm", 4), callback=told.append)
    assert len(find_windows(model, hole)) == 3
    monkeypatch.setattr(batch, "find_windows", lambda *_: [Window(0, 0, 211, 305)])
    for one, other in zip(filled, fill(model, jobs, request=SamplingRequest("ddpm", 4)), strict=True):
        # One grey level: convolutions sum in another order at another size.
        assert np.abs(one.astype(int) - other).max() <= 1
        assert (one[~hole.numpy()] == values[~hole.numpy()]).all()
        assert (one[hole.numpy()] != values[hole.numpy()]).mean() > 0.5
    assert [info.step for info in told] == list(range(1, told[-1].steps + 1))
    assert told[-1].images.shape == (2, 3, 211, 305)


def test_models_that_read_the_whole_picture_get_it() -> None:
    hole = torch.zeros(400, 400, dtype=torch.bool)
    hole[5:9, 5:9] = True
    whole = [Window(0, 0, 400, 400)]
    assert find_windows(local(norm="group"), hole) == whole
    assert find_windows(create_model("fourier-diff-nca", size=32, **SMALL), hole) == whole
    assert find_windows(local(), hole) == [Window(0, 0, 64, 64)]
    assert find_windows(local(), torch.ones(400, 400, dtype=torch.bool)) == whole


def test_the_cost_follows_the_hole() -> None:
    """Random numbers and cells are drawn for the window alone, however large the picture is."""
    from morphogen.core import random

    drawn: list[int] = []
    words = random.words

    def counted(keys: Any, origins: Any, size: tuple[int, int], *more: Any) -> Any:
        drawn.append(len(keys) * size[0] * size[1])
        return words(keys, origins, size, *more)

    sums = []
    for side in (128, 1024):
        drawn.clear()
        hole = torch.zeros(side, side, dtype=torch.bool)
        hole[60:68, 60:68] = True
        picture = as_picture(np.zeros((side, side, 3), np.uint8))
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(random, "words", counted)
            fill(local(), [Job(picture, 1, hole)], request=SamplingRequest("ddpm", 2))
        sums.append(sum(drawn))
    assert sums[0] == sums[1]
