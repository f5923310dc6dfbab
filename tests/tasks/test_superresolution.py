"""Upscaling that shrinks to what was given, by told levels and by projection; pyramids in the other tasks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ladder_helpers import make_ladder, save_ladder
from PIL import Image
from run_helpers import Outcome, pixels

from morphogen.core.errors import InputError
from morphogen.core.request import SamplingRequest
from morphogen.diffusion.condition import shrink
from morphogen.diffusion.ladder import Ladder
from morphogen.diffusion.projection import Input, Projection
from morphogen.models import create_model
from morphogen.tasks.pipeline import Pipeline
from morphogen.tasks.superresolution import find_way, superresolve

FEW = SamplingRequest("ddpm", 4)


@pytest.fixture(scope="module")
def ladder() -> Ladder:
    return make_ladder(levels=2)


def as_tensor(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


def levels_off(result: Image.Image, given: np.ndarray, factor: int) -> float:
    """How far, in grey levels, the result shrunk by area is from the given picture, at most."""
    large = torch.from_numpy(np.array(result, np.float64).transpose(2, 0, 1).copy())[None]
    return float(
        (shrink(large, factor)[0].permute(1, 2, 0) - torch.from_numpy(np.array(given, np.float64))).abs().max()
    )


@settings(max_examples=30, deadline=None)
@given(factor=st.integers(2, 8), high=st.integers(1, 5), wide=st.integers(1, 5), extreme=st.booleans())
def test_projecting_reaches_the_given_picture(factor: int, high: int, wide: int, extreme: bool) -> None:
    """Also where it is black or white, and clipping undoes a part of every projection."""
    generator = torch.Generator().manual_seed(high * 10 + wide)
    small = torch.rand(1, 3, high, wide, generator=generator) * 2 - 1
    small = small.sign() if extreme else small
    clean = torch.randn(1, 3, factor * high, factor * wide, generator=generator)
    for way in ("area", "sample"):
        given_picture = Projection(small, factor, way)  # type: ignore[arg-type]
        found = given_picture.onto(clean, clip=True)
        assert float(found.abs().max()) <= 1
        torch.testing.assert_close(given_picture.small_of(found), small, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("factor", "way"), [(2, "area"), (3, "area"), (4, "area"), (2, "sample")])
def test_the_projection_is_that_of_deepinv(factor: int, way: Input) -> None:
    """Equation 10 of DDNM by another library's operator and its pseudo-inverse (deepinv, BSD)."""
    physics = pytest.importorskip("deepinv").physics
    size, generator = (3, 8 * factor, 6 * factor), torch.Generator().manual_seed(factor)
    truth, clean = (torch.rand(2, *size, generator=generator) * 2 - 1 for _ in range(2))
    kernel = torch.full((1, 1, factor, factor), 1 / factor**2) if way == "area" else None
    operator = physics.Downsampling(img_size=size, filter=kernel, factor=factor, padding="valid")
    small = operator.A(truth)
    ours = Projection(small, factor, way)
    # float32: sums of at most 16 values in another order
    torch.testing.assert_close(ours.small_of(truth), small, atol=1e-6, rtol=0)
    theirs = clean + operator.A_dagger(small - operator.A(clean))
    torch.testing.assert_close(ours.onto(clean, clip=False), theirs, atol=2e-6, rtol=0)


@pytest.mark.parametrize(("scheme", "factor"), [("trained", 3), ("projection", 2), ("projection", 5)])
@pytest.mark.parametrize("mean", [1, 3])
def test_shrunk_it_is_the_given_picture(ladder: Ladder, scheme: str, factor: int, mean: int) -> None:
    pipeline, picture = Pipeline(ladder, "float32"), pixels(9, 13, 4)
    options: dict[str, object] = {"scheme": scheme, "mean": mean, "num_inference_steps": 12}
    made = pipeline.upscale(Image.fromarray(picture), factor, seeds=[1, 2], **options)  # type: ignore[arg-type]
    first, second = made.images  # type: ignore[misc]
    assert first.size == (13 * factor, 9 * factor)
    for image in (first, second):
        assert levels_off(image, picture, factor) <= 1
    assert not np.array_equal(np.asarray(first), np.asarray(second))
    alone = pipeline.upscale(Image.fromarray(picture), factor, seeds=2, **options).images[0]  # type: ignore[arg-type, index]
    assert np.abs(np.asarray(alone).astype(int) - np.asarray(second)).max() <= 1  # sums in a batch


def test_a_mean_of_samples_is_smoother(ladder: Ladder) -> None:
    way, small = find_way(ladder, 3), as_tensor(pixels(8, 8, 5))
    one = superresolve(way, small, [3], 3, request=FEW)
    many = superresolve(way, small, [3], 3, request=FEW, mean=8)
    detail = [float((x - torch.nn.functional.avg_pool2d(x, 3, 1, 1)).square().mean()) for x in (one, many)]
    assert detail[1] < 0.8 * detail[0]


def test_sampled_pixels_stay(ladder: Ladder) -> None:
    small = as_tensor(pixels(8, 8, 6))
    large = superresolve(find_way(ladder, 2), small, [3], 2, request=SamplingRequest("ddpm", 12), input="sample")
    torch.testing.assert_close(large[..., ::2, ::2], small, atol=1e-5, rtol=0)


def test_the_way_is_the_first_that_can_be(ladder: Ladder) -> None:
    assert (find_way(ladder, 3).scheme, find_way(ladder, 3).denoiser) == ("trained", ladder[1])
    assert (find_way(ladder, 2).scheme, find_way(ladder, 2).denoiser) == ("projection", ladder[0])
    assert find_way(ladder, 2, "published").denoiser is ladder[0]
    assert find_way(ladder[1], 3).scheme == "trained"
    with pytest.raises(InputError, match="it has levels for 3, and the factor is 4; use --scheme projection"):
        find_way(ladder, 4, "trained")
    with pytest.raises(InputError, match="told pictures 3 times as coarse; use that factor"):
        find_way(ladder[1], 2)
    with pytest.raises(InputError, match="it should be from 2 to 8"):
        find_way(ladder, 9)
    with pytest.raises(InputError, match="vnca predicts no noise"):
        find_way(create_model("vnca", size=32), 2)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_ladder(tmp_path_factory.mktemp("pyramid") / "tiny")


def test_the_command_takes_a_pyramid(cli: Callable[..., Outcome], run: Path, tmp_path: Path) -> None:
    """upscale, vary and inpaint of a picture whose size no factor divides."""
    photo = pixels(31, 40, 3)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    common = (run, tmp_path / "photo.png", "--sampling-steps", 6, "--precision", "float32", "--out")
    ended = cli("upscale", *common, tmp_path / "up", "--factor", 3, "--mean", 2)
    assert ended.code == 0, ended.err
    with Image.open(tmp_path / "up" / "photo.png") as large:
        assert large.size == (120, 93)
        assert levels_off(large, photo, 3) <= 1
        said = json.loads(large.text["morphogen"])  # type: ignore[attr-defined]
    assert said.items() >= {"factor": 3, "scheme": "auto", "mean": 2, "input_by": "area"}.items()
    ended = cli("inpaint", *common, tmp_path / "in", "--box", "10,12,9,7")
    assert ended.code == 0, ended.err
    with Image.open(tmp_path / "in" / "photo.png") as filled:
        changed = (np.asarray(filled) != photo).any(axis=2)
    assert changed.any()
    rows, columns = np.nonzero(changed)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 18, 12, 18)
    far = []
    for strength in (0, 0.3, 1):
        ended = cli("vary", *common, tmp_path / f"vary-{strength}", "--strength", strength)
        assert ended.code == 0, ended.err
        with Image.open(tmp_path / f"vary-{strength}" / "photo.png") as varied:
            far.append(float(np.abs(np.asarray(varied).astype(int) - photo).mean()))
    assert far[0] == 0 < far[1] < far[2]
