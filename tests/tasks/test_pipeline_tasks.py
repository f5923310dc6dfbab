"""The Pipeline's inpaint, upscale and vary: kinds, seeds and lists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from run_helpers import pixels

import morphogen
from morphogen import Pipeline
from morphogen.core.errors import InputError
from morphogen.core.model import Model
from morphogen.models import create_model

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


# ------------------------------------------------------------------------------------------------ diffusers' manners


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(create_model("diff-nca", size=16, channels=8, hidden=16, nca_steps=2, diffusion={"timesteps": 10}))


PICTURE = np.zeros((16, 16, 3), np.uint8)


def test_seeds_in_every_form(pipeline: Pipeline) -> None:
    assert pipeline(seeds=3, output_type="np").seeds == [3]
    assert pipeline(3, seeds=5).seeds == [5, 6, 7]
    assert pipeline(seeds=np.arange(2)).seeds == [0, 1]
    assert pipeline(seeds=iter([4])).seeds == [4]
    one = pipeline(seeds=3, output_type="np").images
    np.testing.assert_array_equal(pipeline(seeds=[3], output_type="np").images, one)
    assert pipeline.vary(PICTURE, seeds=2, num_images=2).seeds == [2, 3]


def test_saved_and_opened_again(pipeline: Pipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "model")
    again = Pipeline.from_pretrained(tmp_path / "model", sampler="euler")
    assert again.sampler == "euler"
    wanted = pipeline(seeds=1, sampler="euler", output_type="np").images
    np.testing.assert_array_equal(again(seeds=1, output_type="np").images, wanted)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        pipeline.save_pretrained(tmp_path / "file" / "below")


def test_the_sampler_is_chosen_by_name(pipeline: Pipeline) -> None:
    chosen = Pipeline(pipeline.model, sampler="ddpm")
    same = pipeline(seeds=1, sampler="ddpm", output_type="np").images
    np.testing.assert_array_equal(chosen(seeds=1, output_type="np").images, same)
    chosen.sampler = "dpm++"  # euler-a is ddpm's step written in another way
    assert (chosen(seeds=1, output_type="np").images != same).any()
    with pytest.raises(InputError, match="there is no sampler 'magic'"):
        chosen.sampler = "magic"
    assert chosen.sampler == "dpm++"


@pytest.mark.parametrize("task", ["sample", "vary", "inpaint"])
def test_a_callback_as_diffusers_has_it(pipeline: Pipeline, task: str) -> None:
    told: list[tuple[int, int | None]] = []

    def at_step_end(pipe: Any, step: int, timestep: int | None, kept: dict[str, Any]) -> dict[str, Any]:
        assert pipe is pipeline and kept["latents"].shape[-3:] == (3, 16, 16)
        told.append((step, timestep))
        return kept

    common: dict[str, Any] = {"seeds": 1, "num_inference_steps": 5, "callback_on_step_end": at_step_end}
    if task == "sample":
        pipeline(**common)
    elif task == "vary":
        pipeline.vary(PICTURE, 1.0, **common)
    else:
        pipeline.inpaint(PICTURE, np.eye(16, dtype=bool), **common)
    assert told == [(0, 9), (1, 7), (2, 5), (3, 3), (4, 1)]


def test_a_callback_may_change_the_images(pipeline: Pipeline) -> None:
    """As diffusers' may its latents; not where what is known is put back."""

    def darkest(pipe: Any, step: int, timestep: int | None, kept: dict[str, Any]) -> dict[str, Any]:
        return {"latents": torch.full_like(kept["latents"], -1.0)} if step == 4 else kept

    common: dict[str, Any] = {"seeds": [1, 2], "num_inference_steps": 5, "callback_on_step_end": darkest}
    assert (pipeline(output_type="np", **common).images == 0).all()
    assert (pipeline.vary(PICTURE, 1.0, **common).images == 0).all()
    with pytest.raises(InputError, match="returned other images, which inpainting and upscaling cannot take"):
        pipeline.inpaint(PICTURE, np.eye(16, dtype=bool), **common)
    with pytest.raises(InputError, match="returned other images, which inpainting"):
        pipeline.upscale(PICTURE, scheme="published", noise=1.0, **common)
    for wrong, says in (
        (
            lambda *_: {"latents": torch.zeros(1)},
            r"returned torch.float32 \(1,\); it should be None, or float images of",
        ),
        (lambda *_: "x", "callback_on_step_end returned a str; it should be a dict or None"),
    ):
        with pytest.raises(InputError, match=says):
            pipeline(seeds=1, num_inference_steps=2, callback_on_step_end=wrong)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"height": "64"}, "height is '64'; it should be a whole number"),
        ({"width": 16.0}, "width is 16.0; it should be a whole number"),
        ({"num_images": "3"}, "num_images is '3'"),
        ({"num_images": True}, "num_images is True"),
        ({"num_inference_steps": 2.5}, "num_inference_steps is 2.5"),
        ({"guidance_scale": "high"}, "guidance_scale is 'high'; it should be a number"),
        ({"generator": 5}, "generator is a int; it should be a torch.Generator"),
        ({"seeds": 3.5}, "seeds is 3.5; it should be a whole number"),
        ({"seeds": "abc"}, "seeds is 'abc'"),
        ({"seeds": [1.5]}, "seeds are integers"),
        ({"seeds": -1}, "seed -1 is outside"),
        ({"sampler": 7}, "sampler is a int; it should be a name"),
        ({"batch_size": "4"}, "batch_size is '4'"),
        ({"output_type": "latent"}, "output_type is 'latent'; it should be pil, np or pt"),
        ({"callback": 3}, "callback is a int; it should be a function"),
        ({"callback_on_step_end": "x"}, "callback_on_step_end is a str"),
        ({"labels": 3}, "trained without labels"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_wrong_types_get_a_sentence(pipeline: Pipeline, given: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=re.escape(says)):
        pipeline(**given)
    if not {"height", "width", "output_type"} & given.keys():
        with pytest.raises(InputError, match=re.escape(says)):
            pipeline.vary(PICTURE, **given)


def test_wrong_models_and_precisions(pipeline: Pipeline) -> None:
    with pytest.raises(InputError, match="the model is a str"):
        Pipeline("tissue-texture")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="precision is 'half'; it should be auto, bfloat16 or float32"):
        Pipeline(pipeline.model, "half")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"strength is '0\.5'; it should be a number"):
        pipeline.vary(PICTURE, "0.5")  # type: ignore[arg-type]
