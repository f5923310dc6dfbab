"""One step of a region is that of the whole canvas, however the canvas is cut."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from morphogen.core.errors import InputError
from morphogen.core.keys import Key
from morphogen.core.request import SamplingRequest
from morphogen.diffusion.denoiser import Denoiser
from morphogen.diffusion.known import Known
from morphogen.diffusion.samplers import SAMPLERS
from morphogen.diffusion.sampling import Stepper, sample
from morphogen.models import create_model
from morphogen.pyramids.region import Region
from morphogen.slides.region import halo_of, step_region, with_halo


def tiny(steps: int = 2, precision: str | None = "auto", **settings: object) -> Denoiser:
    torch.manual_seed(0)
    model = create_model("diff-nca", size=16, nca_steps=steps, **{"channels": 8, "hidden": 16, **settings})  # type: ignore[arg-type]
    assert isinstance(model, Denoiser)
    model.eval().compute_in(precision)  # type: ignore[arg-type]
    return model


def in_tiles(stepper: Stepper, seed: int, size: tuple[int, int], tile: tuple[int, int], **given: Tensor) -> Tensor:
    """All steps, each of them tile by tile, from the last tile to the first."""
    now = None
    for i in range(len(stepper)):
        after = torch.full((1, stepper.kept_channels, *size), torch.nan)
        for y in reversed(range(0, size[0], tile[0])):
            for x in reversed(range(0, size[1], tile[1])):
                region = Region(y, x, min(tile[0], size[0] - y), min(tile[1], size[1] - x))
                outer = with_halo(stepper.denoiser, region, size)
                there = (..., outer.rows, outer.columns)
                cut = {k: v[there] for k, v in given.items()}
                known = Known(cut["known"], (~cut["hole"]).float()) if given else None
                kept = None if now is None else now[there]
                after[..., region.rows, region.columns] = step_region(
                    stepper, i, seed, region, size, kept, known, cut.get("active")
                )
        now = after
    assert now is not None
    return now[:, :3]


@pytest.mark.slow
@given(
    height=st.integers(2, 40),
    width=st.integers(2, 40),
    tile=st.tuples(st.integers(1, 17), st.integers(1, 17)),
    nca_steps=st.integers(1, 3),
    patch=st.integers(1, 3),
    sampler=st.sampled_from(list(SAMPLERS)),
    seed=st.integers(0, 2**64 - 1),
)
@settings(max_examples=30, deadline=None)
def test_steps_in_tiles_are_those_of_the_whole(
    height: int, width: int, tile: tuple[int, int], nca_steps: int, patch: int, sampler: str, seed: int
) -> None:
    model = tiny(nca_steps, patch=patch, channels=6 * patch**2 + 2)
    height, width = max(height, patch + 1), max(width, patch + 1)
    whole = sample(model, Key.of([seed]), (height, width), SamplingRequest(sampler, 4))
    assert torch.equal(in_tiles(Stepper(model, SamplingRequest(sampler, 4)), seed, (height, width), tile), whole)


def test_the_plain_form_agrees() -> None:
    """Without the kernel, convolutions of other shapes may sum in another order: far below a grey level (1/127)."""
    model = tiny(3, None)
    whole = sample(model, Key.of([7]), (30, 23), SamplingRequest("ddpm", 10))
    found = in_tiles(Stepper(model, SamplingRequest("ddpm", 10)), 7, (30, 23), (11, 7))
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-3)


@pytest.mark.parametrize("sampler", ["ddpm", "dpm++", "dpm++-sde", "heun"])
def test_known_content_and_active_cells(sampler: str) -> None:
    """A hole filled in tiles is the hole filled at once."""
    model = tiny(3)
    known = torch.rand(1, 3, 40, 31, generator=torch.Generator().manual_seed(1)) * 2 - 1
    hole = torch.zeros(1, 1, 40, 31, dtype=torch.bool)
    hole[..., 12:27, 9:20] = True
    active = torch.zeros_like(hole)
    active[..., 9:30, 6:23] = True
    whole = sample(
        model, Key.of([3]), (40, 31), SamplingRequest(sampler, 6), known=Known(known, (~hole).float()), active=active
    )
    found = in_tiles(
        Stepper(model, SamplingRequest(sampler, 6)), 3, (40, 31), (13, 7), known=known, hole=hole, active=active
    )
    assert torch.equal(found.where(hole, known), whole.where(hole, known))


@pytest.mark.parametrize("sampler", ["ddpm", "dpm++"])
def test_far_out_on_a_canvas(sampler: str) -> None:
    """Beyond 2**32 cells, a region has noise of its own and is the same wherever its edges are cut."""
    model, canvas = tiny(), (2**40, 2**36)
    stepper = Stepper(model, SamplingRequest(sampler, 5))

    def painted(region: Region) -> Tensor:
        halo = 2 * len(stepper)
        now, left = None, region.grown(halo - 2, canvas)
        for i in range(len(stepper)):
            now = step_region(stepper, i, 1, left, canvas, now)
            left = region.grown(halo - 2 * (i + 2), canvas) if i + 1 < len(stepper) else left
        assert now is not None
        return now[:, :3]

    y, x = 2**39 + 5, 2**35 + 11
    large, small = painted(Region(y, x, 12, 14)), painted(Region(y + 3, x + 4, 5, 6))
    assert torch.equal(large[..., 3:8, 4:10], small)
    assert not torch.equal(painted(Region(y % 2**32, x % 2**32, 5, 6)), painted(Region(y, x, 5, 6)))


def test_refusals() -> None:
    with pytest.raises(InputError, match="group normalisation"):
        halo_of(tiny(norm="group"))
