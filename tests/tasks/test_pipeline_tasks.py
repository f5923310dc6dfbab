"""The Pipeline's inpaint, upscale and vary: kinds, seeds and lists."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from run_helpers import pixels

import morphogen
from morphogen.core.errors import InputError
from morphogen.core.model import Model

QUICK: dict[str, Any] = {"num_inference_steps": 4}
MASK = np.zeros((12, 10), bool)
MASK[3:6, 4:9] = True


def given(kind: str) -> Any:
    array = pixels(12, 10, 1)
    match kind:
        case "pil":
            return Image.fromarray(array)
        case "gray":
            return Image.fromarray(array).convert("L")
        case "np":
            return array.copy()
        case _:
            return torch.from_numpy(array.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)


@pytest.mark.parametrize("model", ["local", "gray"])
@pytest.mark.parametrize("kind", ["pil", "gray", "np", "pt"])
def test_each_task_gives_back_the_kind_it_was_given(request: pytest.FixtureRequest, kind: str, model: str) -> None:
    pipeline, image = morphogen.Pipeline(request.getfixturevalue(model)), given(kind)
    for images, factor in (
        (pipeline.inpaint(image, MASK, seeds=[1, 2], **QUICK).images, 1),
        (pipeline.upscale(image, seeds=[1, 2], **QUICK).images, 2),
        (pipeline.vary(image, seeds=[1, 2], **QUICK).images, 1),
    ):
        assert len(images) == 2
        if kind == "np":
            assert images.dtype == np.uint8 and images.shape == (2, 12 * factor, 10 * factor, 3)
        elif kind == "pt":
            assert images.dtype == torch.float32 and images.shape == (2, 3, 12 * factor, 10 * factor)
        else:
            assert all(i.mode == image.mode and i.size == (10 * factor, 12 * factor) for i in images)
        assert (np.asarray(images[0]) != np.asarray(images[1])).any(), "another seed is another picture"


def test_kinds_agree(local: Model) -> None:
    """The same pixels, whatever holds them, give the same pixels."""
    pipeline = morphogen.Pipeline(local)
    pil, array, tensor = (
        pipeline.inpaint(given(kind), MASK, seeds=[1], **QUICK).images[0] for kind in ("pil", "np", "pt")
    )
    np.testing.assert_array_equal(np.asarray(pil), array)
    np.testing.assert_array_equal(((tensor + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy(), array)
    np.testing.assert_array_equal(array[~MASK], given("np")[~MASK])


def test_lists_of_images_of_several_sizes(local: Model) -> None:
    pipeline = morphogen.Pipeline(local)
    images = [Image.fromarray(pixels(h, w, k)) for k, (h, w) in enumerate([(8, 8), (8, 8), (6, 9)])]
    result = pipeline.vary(images, seeds=[5, 6], **QUICK)
    assert result.seeds == [5, 6] * 3
    assert [i.size for i in result.images] == [(8, 8)] * 4 + [(9, 6)] * 2
    for k, image in enumerate(images):
        for j, seed in enumerate((5, 6)):
            alone = pipeline.vary(image, seeds=[seed], **QUICK).images[0]
            difference = np.asarray(alone).astype(int) - np.asarray(result.images[2 * k + j])
            assert np.abs(difference).max() <= 1, "the order of sums"
    assert len(pipeline.vary(images, seeds=[5], batch_size=1, **QUICK).images) == 3


def test_one_mask_for_all_or_one_each(local: Model) -> None:
    pipeline = morphogen.Pipeline(local)
    images = [given("pil"), given("pil")]
    shared = pipeline.inpaint(images, MASK, seeds=[1], **QUICK).images
    own = pipeline.inpaint(images, [MASK, ~MASK], seeds=[1], **QUICK).images
    assert np.abs(np.asarray(shared[0]).astype(int) - np.asarray(own[0])).max() <= 1
    np.testing.assert_array_equal(np.asarray(own[1])[MASK], np.asarray(images[1])[MASK])
    with pytest.raises(InputError, match="1 masks for 2 images"):
        pipeline.inpaint(images, [MASK], seeds=[1])


def test_transparent_pixels_are_filled(local: Model) -> None:
    array = np.dstack([pixels(12, 10, 1), np.where(MASK, 0, 255).astype(np.uint8)])
    filled = np.asarray(morphogen.Pipeline(local).inpaint(Image.fromarray(array), seeds=[1], **QUICK).images[0])
    assert (filled[..., 3] == 255).all()
    np.testing.assert_array_equal(filled[~MASK], array[~MASK])
    with pytest.raises(InputError, match="there is no mask"):
        morphogen.Pipeline(local).inpaint(given("pil"), seeds=[1])


def test_seeds_and_numbers(local: Model) -> None:
    pipeline = morphogen.Pipeline(local)
    one = pipeline.vary(given("pil"), num_images=2, generator=torch.Generator().manual_seed(3), **QUICK)
    again = pipeline.vary(given("pil"), seeds=one.seeds, **QUICK)
    assert len(one.seeds) == 2
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(one.images, again.images, strict=True))
    for wrong in ({"num_images": 0}, {"seeds": []}, {"seeds": [1], "num_images": 2}, {"seeds": [1], "batch_size": 0}):
        with pytest.raises(InputError):
            pipeline.vary(given("pil"), **wrong)
    with pytest.raises(InputError, match="there are no images"):
        pipeline.vary([], seeds=[1])


def test_a_model_that_predicts_no_noise(local: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(local), "predicts_noise", False)
    pipeline = morphogen.Pipeline(local)
    for task, args in ((pipeline.inpaint, (MASK,)), (pipeline.upscale, ()), (pipeline.vary, ())):
        with pytest.raises(InputError, match=r"diff-nca predicts no noise, which .* needs"):
            task(given("pil"), *args, seeds=[1])  # type: ignore[operator]
