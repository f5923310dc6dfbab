"""Cells of several pixels: the same model on a coarser grid, at any size, in tiles and in part."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from morphogen.core.errors import InputError
from morphogen.core.evaluation import Evaluation
from morphogen.core.keys import Key
from morphogen.models import create_model

SMALL = {"channels": 36, "hidden": 12, "nca_steps": 3}
FOURIER = {**SMALL, "window": 4, "fourier_steps": 4}


def make(family: str, size: tuple[int, int], **options: Any) -> Any:
    torch.manual_seed(0)
    given = FOURIER if family.startswith("fourier") else SMALL
    return create_model(family, size=size, norm="cell", **{**given, **options}).eval()


@torch.no_grad()
def predict(model: Any, x: Tensor, **options: Any) -> Tensor:
    return model(
        x, torch.full((len(x),), 100.0), Evaluation(options.pop("key", Key.of(range(len(x)))), **options)
    ).noise


def image(size: tuple[int, int], batch: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family", ["diff-nca", "fourier-diff-nca"])
def test_it_is_the_model_of_the_gathered_pixels(family: str) -> None:
    """Cells of 2x2 pixels in RGB are cells of one pixel with 12 channels."""
    model = make(family, (16, 24), patch=2)
    other = make(family, (8, 12), image_channels=12)
    other.load_state_dict(model.state_dict())
    x = image((16, 24), 2)
    found = predict(other, torch.nn.functional.pixel_unshuffle(x, 2))
    assert torch.equal(predict(model, x), torch.nn.functional.pixel_shuffle(found, 2))


@settings(max_examples=20, deadline=None)
@given(height=st.integers(3, 13), width=st.integers(3, 13), patch=st.integers(2, 3))
def test_any_size(height: int, width: int, patch: int) -> None:
    """Where cells reach beyond the image, it is mirrored: so the image with its mirrored edge gives the same."""
    model = make("diff-nca", (12, 12), patch=patch, channels=60)
    size = (max(height, model.minimum_size), max(width, model.minimum_size))
    x = image(size)
    found = predict(model, x)
    assert found.shape == x.shape
    rows, columns = (-(-n // patch) * patch for n in size)
    whole = torch.nn.functional.pad(x, (0, columns - size[1], 0, rows - size[0]), mode="reflect")
    assert torch.equal(predict(model, whole)[..., : size[0], : size[1]], found)


@settings(max_examples=20, deadline=None)
@given(top=st.integers(0, 18), left=st.integers(0, 20), patch=st.integers(1, 3), steps=st.integers(1, 3))
def test_a_tile_equals_the_region_of_the_whole(top: int, left: int, patch: int, steps: int) -> None:
    """The tile begins with a whole cell and reads as far as the receptive range, or to the canvas's edge. Equal up to
    rounding: kernels may sum in another order.
    """
    height, width, canvas = 5, 4, (24, 25)
    model = make("diff-nca", (12, 12), patch=patch, channels=60, nca_steps=steps)
    x, halo = image(canvas), model.receptive_range
    assert halo == (steps + 1) * patch - 1
    first = [max(n - halo, 0) // patch * patch for n in (top, left)]
    rows = slice(first[0], min(top + height + halo, canvas[0]))
    columns = slice(first[1], min(left + width + halo, canvas[1]))
    whole = predict(model, x, key=Key((5,), 2, ((0, 0),), canvas))
    tile = predict(model, x[..., rows, columns], key=Key((5,), 2, ((first[0], first[1]),), canvas))
    inside = tile[..., top - first[0] : top - first[0] + height, left - first[1] : left - first[1] + width]
    torch.testing.assert_close(inside, whole[..., top : top + height, left : left + width])


def test_a_tile_begins_with_a_whole_cell() -> None:
    model = make("diff-nca", (12, 12), patch=2)
    assert model.cell_size == 2
    with pytest.raises(InputError, match="multiples of 2 pixels"):
        predict(model, image((12, 12)), key=Key((5,), 0, ((3, 0),), (24, 24)))


@pytest.mark.parametrize("family", ["diff-nca", "fourier-diff-nca"])
@pytest.mark.parametrize("precision", [None, "float32"])
def test_only_cells_with_active_pixels_change(family: str, precision: Any) -> None:
    model = make(family, (16, 16), patch=2)
    assert model.compute_in(precision) is None
    active = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    active[..., 5, 8:11] = True  # in the cells of rows 4 and 5, columns 8 to 11
    x = image((16, 16))
    found, none = predict(model, x, active=active), torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    none[..., :2, :2] = True
    changed = (found != predict(model, x, active=none)).any(dim=1)[0]
    changed[:2, :2] = False
    assert changed[4:6, 8:12].all()
    assert changed.sum() == 8


@pytest.mark.parametrize("family", ["diff-nca", "fourier-diff-nca"])
def test_the_kernel_computes_the_same(family: str) -> None:
    """Values and gradients, to the rounding of float32 sums in another order over a few steps."""
    model = make(family, (15, 17) if family == "diff-nca" else (17, 19), patch=2)
    x, found = image((model.image.height, model.image.width), 2), []
    for precision in (None, "float32"):
        assert model.compute_in(precision) is None
        model.zero_grad()
        noise = model(x, torch.tensor([30.0, 200.0]), Evaluation(Key.of([1, 2]))).noise
        noise.square().mean().backward()
        found.append((noise.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])))
    for plain, fast in zip(*found, strict=True):
        assert (plain - fast).norm() / plain.norm() < 1e-4


def test_channels_hold_the_pixels_and_their_noise() -> None:
    with pytest.raises(InputError, match="cells of 2x2 pixels of 3 channels need at least 24"):
        make("diff-nca", (12, 12), patch=2, channels=23)
    with pytest.raises(InputError, match="needs at least 16 on each side"):
        make("fourier-diff-nca", (15, 16), patch=2)


@pytest.mark.parametrize("family", ["diff-nca", "fourier-diff-nca"])
def test_output_gain_scales_what_an_untrained_rule_adds(family: str) -> None:
    x, options = image((16, 16)), {"fire_rate": 1.0, "nca_steps": 1, "fourier_steps": 1}
    if family == "diff-nca":
        del options["fourier_steps"]
    whole, half, none = (predict(make(family, (16, 16), output_gain=g, **options), x) for g in (1.0, 0.5, 0.0))
    assert whole.abs().max() > 0 and not none.any()
    if family == "diff-nca":  # one step from the same seed state: the change is linear in the output's weights
        torch.testing.assert_close(half, whole / 2)


def test_a_condition_is_cut_into_cells_like_the_image() -> None:
    torch.manual_seed(0)
    plain: Any = create_model("diff-nca", size=(8, 8), channels=40, hidden=12, nca_steps=2, patch=2)
    model = type(plain)(plain.image, plain.architecture, plain.diffusion, 2).eval()
    assert model.fixed_channels == 20  # (3 + 2) numbers of each of 2x2 pixels
    x, condition, t = torch.randn(1, 3, 7, 10), torch.randn(1, 2, 7, 10), torch.full((1,), 50.0)
    with torch.no_grad():
        whole = model(x, t, Evaluation(Key.of([1]), condition=condition)).noise
        condition[..., 0, 9] += 5.0  # a change is seen two cells and the rest of its own away, and no further
        other = model(x, t, Evaluation(Key.of([1]), condition=condition)).noise
    seen = (whole != other).any(dim=1)[0]
    assert seen[:, 4:].any() and not seen[6:].any() and not seen[:, :4].any()
    with pytest.raises(InputError, match=r"condition of the shape \(1, 2, 7, 10\); there is none"):
        model(x, t)
    with pytest.raises(InputError, match="trained without a condition"):
        plain.eval()(x, t, Evaluation(Key.of([1]), condition=condition))
    with pytest.raises(ValueError, match="need at least 32: the noisy image and the predicted noise and the condition"):
        type(plain)(plain.image, plain.architecture.model_copy(update={"channels": 30}), plain.diffusion, 2)
