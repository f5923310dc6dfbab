"""Keys: which seeds there are, and how often cells fire."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from morphogen.core.errors import InputError
from morphogen.core.keys import Key
from morphogen.core.random import MAX_SEED, Purpose


@pytest.mark.parametrize("seed", [-1, 2**64, -(2**70)])
def test_seeds_outside_the_range_are_refused(seed: int) -> None:
    with pytest.raises(InputError, match=rf"seed {seed} is outside 0\.\.{MAX_SEED}"):
        Key.of([3, seed])


@pytest.mark.parametrize("seed", [1.5, "7", None, 2.0])
def test_seeds_that_are_no_integers_are_refused(seed: object) -> None:
    with pytest.raises(InputError, match="seeds are integers"):
        Key.of([seed])  # type: ignore[list-item]


def test_all_kinds_of_integers_are_seeds() -> None:
    assert Key.of([np.int64(3), torch.tensor(4), 2**64 - 1]).seeds == (3, 4, 2**64 - 1)  # type: ignore[list-item]
    assert Key.of(range(3)).seeds == (0, 1, 2)
    assert len(Key.of(iter([5, 6]))) == 2


def test_at_changes_the_evaluation_only() -> None:
    key = Key((1, 2), 3, ((4, 5), (6, 7)), (8, 9))
    assert key.at(10) == Key((1, 2), 10, ((4, 5), (6, 7)), (8, 9))
    assert Key.of([1, 2]).placed() == ((0, 0), (0, 0))


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_fire_rate(rate: float) -> None:
    """Over 8 * 128 * 128 cells: within five standard errors; at 0 none and at 1 every cell updates."""
    masks = Key.of([1, 2]).fire_masks(4, rate, (128, 128), "cpu")
    assert len(masks) == 4 and all(m.shape == (2, 1, 128, 128) and m.dtype == torch.bool for m in masks)
    fired = torch.stack(masks).double().mean()
    assert abs(float(fired) - rate) <= 5 * (rate * (1 - rate) / (8 * 128 * 128)) ** 0.5


@pytest.mark.parametrize("steps", [0, 1, 3, 4, 5, 12])
def test_there_is_a_mask_for_each_step_and_the_first_do_not_depend_on_how_many(steps: int) -> None:
    masks = Key.of([1]).fire_masks(steps, 0.9, (6, 6), "cpu")
    assert len(masks) == steps
    for mask, longer in zip(masks, Key.of([1]).fire_masks(20, 0.9, (6, 6), "cpu"), strict=False):
        assert torch.equal(mask, longer)


@pytest.mark.parametrize("channels", [1, 2, 3, 5, 8])
def test_a_channel_does_not_depend_on_how_many_there_are(channels: int) -> None:
    whole = Key.of([1]).normals(Purpose.TRAINING_NOISE, 9, (3, 4), "cpu")
    assert torch.equal(Key.of([1]).normals(Purpose.TRAINING_NOISE, channels, (3, 4), "cpu"), whole[:, :channels])
