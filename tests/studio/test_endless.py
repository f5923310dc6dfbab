"""Any region of an endless slide is that region of the whole, whatever was looked at before."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from latent_helpers import save_latent_model
from studio_models import steady

from morphogen.core.errors import InputError
from morphogen.core.images import to_bytes
from morphogen.core.keys import Key
from morphogen.core.model import Model
from morphogen.core.request import SamplingRequest
from morphogen.diffusion.denoiser import Denoiser
from morphogen.diffusion.sampling import sample
from morphogen.models import create_model, load_model
from morphogen.pyramids.region import Region
from morphogen.studio.blocks import Block
from morphogen.studio.endless import EndlessSlide, Stopped

STEPS, HALO, SEED = 9, 3, 5  # 9 steps: 2, then the 7 that reach as far as a block of 21 cells is wide
SIZE = (110, 121)
MARGIN = STEPS * HALO  # so far the lower and right edges of the whole are felt, which the endless slide hasn't
FAR = 2**33 + 17


@pytest.fixture(scope="module")
def whole(local: Model) -> dict[str, np.ndarray]:
    """A large run of each sampler."""
    assert isinstance(local, Denoiser)
    samplers = ("ddim", "ddpm", "euler-a", "dpm++", "dpm++-sde", "unipc")
    return {s: to_bytes(sample(local, Key.of([SEED]), SIZE, SamplingRequest(s, STEPS)))[0] for s in samplers}


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_region_alone_is_that_of_a_large_run(local: Model, whole: dict[str, np.ndarray], data: st.DataObject) -> None:
    sampler = data.draw(st.sampled_from(sorted(whole)))
    blocks = data.draw(st.sampled_from([0, 3, 10**4]))
    slide = EndlessSlide(local, SEED, sampler, STEPS, blocks * 21 * 21 * 3 * 4)
    for _ in range(data.draw(st.integers(1, 3))):
        y, x = (data.draw(st.integers(0, side - MARGIN - 1)) for side in SIZE)
        height = data.draw(st.integers(1, SIZE[0] - MARGIN - y))
        width = data.draw(st.integers(1, SIZE[1] - MARGIN - x))
        (found,) = slide.pictures([Region(y, x, height, width)])
        expected = whole[sampler][y : y + height, x : x + width]
        # A convolution may add up in another order where its grid is of another shape: one grey level at most.
        assert np.abs(found.astype(int) - expected).max() <= 1
        assert len(slide.cache) <= blocks


@pytest.mark.parametrize("sampler", ["ddpm", "dpm++"])
def test_the_kernel_gives_the_same_bits_wherever_it_is_cut(local: Model, sampler: str) -> None:
    model = copy.deepcopy(local)
    if (reason := model.compute_in("float32")) is not None:
        pytest.skip(reason)
    assert isinstance(model, Denoiser)
    expected = to_bytes(sample(model, Key.of([SEED]), SIZE, SamplingRequest(sampler, STEPS)))[0]
    slide = EndlessSlide(model, SEED, sampler, STEPS)
    first, second = slide.pictures([Region(0, 0, 40, 50), Region(33, 45, 50, 40)])
    assert np.array_equal(first, expected[:40, :50])
    assert np.array_equal(second, expected[33:83, 45:85])


def test_cells_of_several_pixels() -> None:
    """A cell of 2x2 pixels, four steps that reach 6 pixels around: in one of them what isn't aligned was refused."""
    model = steady("diff-nca-small", size=16, patch=2, channels=36)
    assert isinstance(model, Denoiser)
    whole = to_bytes(sample(model, Key.of([SEED]), (90, 100), SamplingRequest("ddpm", 4)))[0]
    slide = EndlessSlide(model, SEED, "ddpm", 4)
    for y, x, height, width in ((0, 0, 21, 33), (31, 17, 30, 21), (7, 55, 11, 19)):
        (found,) = slide.pictures([Region(y, x, height, width)])
        assert np.abs(found.astype(int) - whole[y : y + height, x : x + width]).max() <= 1


def test_cells_of_latents(tmp_path: Path) -> None:
    """Decoded block by block: the pixels of one run of the whole, wherever one looks first."""
    model = load_model(save_latent_model(tmp_path / "tiny"))
    assert isinstance(model, Denoiser)
    latents = sample(model, Key.of([SEED]), (90, 100), SamplingRequest("ddpm", 4), clip=False)
    whole = to_bytes(model.to_pixels(latents))[0]
    slide = EndlessSlide(model, SEED, "ddpm", 4)
    side = 2 * slide.side
    for y, x, height, width in ((0, 0, 41, 63), (31, 47, 30, 21), (7, 75, 11, side + 9)):
        (found,) = slide.pictures([Region(y, x, height, width)])
        assert found.shape == (height, width, 3)
        assert np.abs(found.astype(int) - whole[y : y + height, x : x + width]).max() <= 1
    far = Region(FAR, 3 * FAR, 2 * side, side)
    first, second = EndlessSlide(model, SEED, "ddpm", 4), EndlessSlide(model, SEED, "ddpm", 4)
    second.pictures([Region(FAR + 5, 3 * FAR - side, side, 2 * side)])
    assert np.array_equal(first.pictures([far])[0], second.pictures([far])[0])


@pytest.mark.slow
def test_the_order_of_looking_changes_nothing(local: Model) -> None:
    places = [Region(FAR + 40 * k, 3 * FAR - 25 * k, 30, 35) for k in range(5)]
    one, other = (EndlessSlide(local, SEED, "ddpm", STEPS) for _ in range(2))
    forwards = [one.pictures([place])[0] for place in places]
    together = other.pictures(places[::-1])[::-1]
    for k, (a, b) in enumerate(zip(forwards, together, strict=True)):
        assert np.abs(a.astype(int) - b).max() <= 1, k
    assert not np.array_equal(forwards[0], EndlessSlide(local, SEED + 1, "ddpm", STEPS).pictures(places[:1])[0])


@pytest.mark.slow
def test_what_lies_beside_a_known_region_takes_less(local: Model) -> None:
    model = copy.deepcopy(local)
    cells: list[int] = []
    model.register_forward_pre_hook(lambda _, given: cells.append(given[0][0, 0].numel()))
    slide = EndlessSlide(model, SEED, "ddim", 20)

    def cost(region: Region) -> int:
        cells.clear()
        slide.pictures([region])
        return sum(cells)

    y = x = FAR // slide.side * slide.side  # as tiles lie
    first = cost(Region(y, x, 63, 63))
    assert cost(Region(y, x, 63, 63)) == 0
    assert 0 < cost(Region(y, x + 63, 63, 63)) < 0.7 * first
    assert 0 < cost(Region(y + 63, x, 63, 63)) < 0.7 * first
    assert 0 < cost(Region(y + 63, x + 63, 63, 63)) < 0.5 * first


def test_what_is_no_longer_wanted_stops_and_keeps_what_was_finished(local: Model) -> None:
    slide = EndlessSlide(local, SEED, "ddim", STEPS)
    asked = iter([False, True])
    with pytest.raises(Stopped):
        slide.pictures([Region(FAR, FAR, 21, 21)], lambda: next(asked))
    assert len(slide.cache) > 0 and Block(2, FAR // 21, FAR // 21) in slide.cache
    assert slide.pictures([Region(FAR, FAR, 21, 21)])[0].shape == (21, 21, 3)


@pytest.mark.parametrize(
    ("name", "sampler", "steps", "says"),
    [
        ("fourier-diff-nca-small", None, 5, "cannot be painted in tiles exactly"),
        ("diff-nca-paper", None, 5, "group normalisation"),
        ("vnca", None, 5, "predicts no noise"),
        ("diff-nca-small", "ddimm", 5, "no sampler 'ddimm'"),
        ("diff-nca-small", None, 301, "timesteps for 1 to 300"),
    ],
)
def test_what_cannot_be_endless_is_refused(name: str, sampler: str | None, steps: int, says: str) -> None:
    with pytest.raises(InputError, match=says):
        EndlessSlide(create_model(name), 0, sampler, steps)
