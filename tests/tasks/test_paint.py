"""Painting from maps: what a map changes and where, guidance by it, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from map_helpers import CLASSES, draw_map, map_level, save_map_model
from PIL import Image
from run_helpers import Outcome

from morphogen import Pipeline
from morphogen.core.condition import UNKNOWN, ConditionConfig
from morphogen.core.errors import InputError
from morphogen.core.evaluation import Evaluation
from morphogen.core.images import read_metadata
from morphogen.core.keys import Key
from morphogen.core.model import Batch
from morphogen.core.request import SamplingRequest
from morphogen.diffusion.condition import in_training, of_map, shrink_map
from morphogen.models import load_model

STEPS = {"sampler": "ddim", "num_inference_steps": 3}


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_map_model(tmp_path_factory.mktemp("maps") / "single", 1)


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_map_model(tmp_path_factory.mktemp("maps") / "pyramid", 2)


def painted(folder: Path, values: np.ndarray, seed: int = 0, **settings: object) -> np.ndarray:
    pipeline = Pipeline.from_pretrained(folder, precision="float32")
    image = pipeline.paint(values, seeds=[seed], **{**STEPS, **settings}).images[0]  # type: ignore[arg-type,index]
    assert isinstance(image, Image.Image)
    return np.asarray(image)


@pytest.mark.parametrize("folder", ["single", "pyramid"])
def test_a_map_changes_the_picture_where_it_differs_and_nowhere_far_from_there(
    folder: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    run: Path = request.getfixturevalue(folder)
    values = draw_map(tmp_path / "map.png", (40, 160))
    other = values.copy()
    other[16:24, 8:16] = 1 - np.minimum(other[16:24, 8:16], 1)
    before, after = painted(run, values), painted(run, other)
    changed = (before != after).any(axis=2)
    assert changed[16:24, 8:16].any()
    reach = load_model(run).receptive_range
    assert reach is not None
    far = 16 + 3 * reach  # three evaluations
    assert far < 160 and not changed[:, far:].any()


def test_unknown_everywhere_is_the_picture_without_a_map(single: Path) -> None:
    model = load_model(single)
    nothing = torch.full((2, 14, 15), UNKNOWN, dtype=torch.uint8)
    with torch.no_grad():
        told = model.generate(Key.of([0, 1]), (14, 15), SamplingRequest("ddim", 3), maps=nothing)
        plain = model.generate(Key.of([0, 1]), (14, 15), SamplingRequest("ddim", 3))
    assert torch.equal(told, plain)


def test_guidance_goes_from_the_prediction_without_a_map_through_that_with_it(single: Path, tmp_path: Path) -> None:
    model = load_model(single)
    assert isinstance(model.classes, dict) and model.classes == CLASSES
    values = draw_map(tmp_path / "map.png", (14, 15))
    plain = painted(single, np.zeros((14, 15), int) + 0, guidance_scale=0.0)
    assert (painted(single, values, guidance_scale=0.0) == plain).all()  # of whatever map
    assert not (painted(single, values) == plain).all()
    assert not (painted(single, values, guidance_scale=3.0) == painted(single, values)).all()
    with pytest.raises(InputError, match="guidance 2 needs a map or labels"):
        Pipeline(model, "float32")(seeds=[0], guidance_scale=2.0, **STEPS)  # type: ignore[arg-type]


def test_an_image_does_not_depend_on_those_painted_with_it(single: Path, tmp_path: Path) -> None:
    maps = [draw_map(tmp_path / f"{k}.png", size, k) for k, size in enumerate([(20, 30), (20, 30), (13, 17)])]
    pipeline = Pipeline.from_pretrained(single, precision="float32")
    together = pipeline.paint(maps, num_images=None, seeds=[4, 9], **STEPS)  # type: ignore[arg-type]
    assert together.seeds == [4, 9] * 3
    for k, image in enumerate(together.images):  # type: ignore[arg-type,var-annotated]
        np.testing.assert_array_equal(np.asarray(image), painted(single, maps[k // 2], seed=[4, 9][k % 2]))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_kernel_paints_what_pytorch_paints(precision: str, tmp_path: Path) -> None:
    model = map_level(1, patch=2)
    maps = torch.from_numpy(draw_map(tmp_path / "map.png", (22, 26)))[None]
    x, t, key = torch.randn(1, 3, 22, 26), torch.tensor([300.0]), Key.of([0])
    assert model.condition is not None
    told = torch.cat([torch.randn(1, 4, 22, 26), of_map(model.condition, maps, x)], dim=1)
    with torch.no_grad():
        plain = model(x, t, Evaluation(key, condition=told)).noise
        if model.compute_in(precision) is not None:  # type: ignore[arg-type]
            pytest.skip("there is no kernel here")
        fast = model(x, t, Evaluation(key, condition=told)).noise
    # float32: another order of sums; bfloat16: 8 bits of the state's neighbours.
    limit = 1e-4 if precision == "float32" else 0.05
    assert (plain - fast).abs().max() < limit * plain.abs().max()


def test_training_hides_the_map_of_as_many_images_as_asked_for_and_learns_from_it(tmp_path: Path) -> None:
    config = ConditionConfig(kind="map", channels=3, classes=CLASSES, dropout=0.25)
    count = 2000
    maps = torch.ones(count, 2, 2, dtype=torch.uint8)
    told = in_training(config, torch.zeros(count, 3, 2, 2), Key.of(range(count)), maps)
    shown = told.sum(dim=(1, 2, 3))
    assert set(shown.tolist()) == {0.0, 4.0}  # all of a map, or none of it
    # The share of 2,000 is within four standard errors (0.0097 each) of what was asked for.
    assert abs(float((shown == 0).float().mean()) - 0.25) < 4 * 0.0097
    model = map_level(0).train()
    values = torch.from_numpy(draw_map(tmp_path / "map.png", (12, 12)))[None].repeat(4, 1, 1)
    model.training_loss(Batch(torch.zeros(4, 3, 12, 12), maps=values), Key.of(range(4))).backward()
    gradient = model.rule.perceive.weight_v.grad  # type: ignore[union-attr]
    assert gradient is not None and bool((gradient[:, 3:6] != 0).any())


def test_a_shrunk_map_holds_the_class_of_most_pixels_and_of_none_where_none_is_known() -> None:
    maps = torch.tensor([[[0, 0, 2, 255], [0, 1, 255, 255], [1, 1, 255, 255]]], dtype=torch.uint8)
    assert shrink_map(maps, 2).tolist() == [[[0, 2], [1, 255]]]
    assert shrink_map(maps, 1) is maps


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (np.full((20, 20), 7), "the map given has the value 7; the classes are 0, 1, 2"),
        (np.zeros((20, 20), float), "it should be a PIL image, or integers"),
        (np.zeros((20, 20, 4), int), "it should be a PIL image, or integers"),
        (np.zeros((20, 20, 3), int), "the map given is in colours; give a table"),
        (np.full((20, 20), -1), "the map has values of -1 to -1; they should be 0 to 65535"),
        (np.zeros((1, 20), int), "1x20 is too small"),
    ],
)
def test_what_is_no_map(single: Path, given: np.ndarray, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        painted(single, given)


def test_the_command(cli: Callable[..., Outcome], single: Path, tmp_path: Path) -> None:
    (tmp_path / "maps").mkdir()
    values = [draw_map(tmp_path / "maps" / f"{k}.png", (20 + k, 30), k) for k in range(2)]
    arguments = ("paint", single, tmp_path / "maps", "-n", 2, "--sampler", "ddim", "--sampling-steps", 3)
    arguments = (*arguments, "--precision", "float32", "--out", tmp_path / "out")
    done = cli(*arguments)
    assert done.code == 0 and "4 images in" in done.out
    for k in range(2):
        for seed in range(2):
            file = tmp_path / "out" / f"{k}-{seed}.png"
            np.testing.assert_array_equal(np.asarray(Image.open(file)), painted(single, values[k], seed))
            found = read_metadata(file) or {}
            assert found["map"] == f"{k}.png" and len(str(found["map_sha256"])) == 64
    assert "(4 were there already)" in cli(*arguments).out
    draw_map(tmp_path / "maps" / "0.png", (20, 30), 8)
    assert cli(*arguments).code == 2  # its results are of another map
    wrong = cli("paint", "tissue-texture", tmp_path / "maps", "--out", tmp_path / "never")
    assert wrong.code == 2 and "tissue-texture was trained without maps" in wrong.err
    assert not (tmp_path / "never").exists()
