"""Pairs of an image and its map, and what they are worth to a segmenter."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from map_helpers import draw_map
from PIL import Image
from run_helpers import Outcome, snapshot

from morphogen.core.condition import UNKNOWN
from morphogen.experiments.pair_expansion import another_map
from morphogen.metrics.segmentation import dice, object_f1
from morphogen.training.loop import train
from morphogen.training.recipes import resolve

COLOURS = np.array([[250, 240, 245], [90, 40, 140], [200, 120, 160]], np.uint8)
TINY = (
    *("--maps", "maps", "--size", "16", "--batch-size", "2", "--precision", "float32", "--steps", "2"),
    *("--set", "architecture.hidden=16", "--set", "architecture.nca_steps=2", "--set", "architecture.channels=14"),
    *("--set", "architecture.patch=1", "--set", "training.saving.sample_images=0", "--domain", "pathology"),
)


@pytest.fixture(scope="module")
def annotated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve fields whose pixels have the colours of their classes, a little noisy."""
    folder = tmp_path_factory.mktemp("annotated") / "set"
    draw = np.random.default_rng(0)
    for name in ("images", "maps"):
        (folder / name).mkdir(parents=True)
    for k in range(12):
        values = draw_map(folder / "maps" / f"{k:02d}.png", (64, 72), k)
        noisy = COLOURS[values] + draw.normal(0, 12, (64, 72, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{k:02d}.png")
    (folder.parent / "classes.json").write_text(json.dumps({"0": "background", "1": "nucleus", "2": "rim"}))
    return folder


@pytest.fixture(scope="module")
def run(annotated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    data = {"source": str(annotated), "maps": "maps", "classes": str(annotated.parent / "classes.json"), "size": 16}
    small = ("architecture.channels=14", "architecture.hidden=16", "architecture.nca_steps=2", "architecture.patch=1")
    training = {"steps": 2, "batch_size": 2, "sample_images": 0}
    train(resolve({"data": {**data, "domain": "pathology"}, "training": training}, None, small), out, quiet=True)
    return out


def test_dice_and_objects_of_maps_that_one_can_count() -> None:
    true, found = np.zeros((20, 20), np.uint8), np.zeros((20, 20), np.uint8)
    true[2:6, 2:6] = true[10:14, 10:14] = 1  # two squares of 16 pixels
    found[2:6, 3:7] = 1  # one of them, shifted by one: 12 of 20 pixels in common
    found[0, 15] = 1  # a speck
    assert dice([(true, found)], 1) == pytest.approx(2 * 12 / (32 + 17))
    assert object_f1([(true, found)], 1) == pytest.approx(2 * 1 / (2 + 1))
    true[:, 15] = UNKNOWN  # where nothing is known nothing counts
    assert dice([(true, found)], 1) == pytest.approx(2 * 12 / (32 + 16))
    assert dice([(true, found)], 2) == 1 and object_f1([(true, found)], 2) == 1


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_scores_are_shares_and_one_for_the_truth(seed: int, other: int) -> None:
    maps = [np.random.default_rng(s).integers(0, 3, (9, 11), np.uint8).repeat(3, 0).repeat(3, 1) for s in (seed, other)]
    for score in (dice, object_f1):
        assert score([(maps[0], maps[0])], 1) == 1
        assert 0 <= score([(maps[0], maps[1])], 1) <= 1
        assert score([(maps[0], maps[1])], 1) == pytest.approx(score([(maps[1], maps[0])], 1))


def test_other_maps_made_of_training_maps(tmp_path: Path) -> None:
    maps = [draw_map(tmp_path / f"{k}.png", (50 + 9 * k, 80), k) for k in range(3)]
    made = [another_map(maps, key) for key in range(12)]
    again = [another_map(maps, key) for key in reversed(range(12))]
    for one, other in zip(made, reversed(again), strict=True):
        np.testing.assert_array_equal(one, other)  # a function of the key
    assert len({m.tobytes() for m in made}) == 12
    share = np.mean([(m == 1).mean() for m in maps])
    # Bends keep areas about; the mean of twelve maps is within a half of the training maps' share.
    assert 0.5 * share < np.mean([(m == 1).mean() for m in made]) < 1.5 * share
    assert all(set(np.unique(m)) <= {0, 1, 2} for m in made)


def test_pairs_are_resumed_and_their_maps_are_those_that_the_images_were_painted_from(
    cli: Callable[..., Outcome], run: Path, tmp_path: Path
) -> None:
    words = ("expand", run, "--times", 2, "--sampler", "ddim", "--sampling-steps", 2, "--precision", "float32")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert "20 of 20 images, each with its map" in cli(*words, "--out", whole).out
    assert "10 of 20" in cli(*words, "--shard", "2/2", "--out", parts).out
    assert "20 of 20" in cli(*words, "--out", parts).out
    for name in ("images", "maps"):
        assert [f.read_bytes() for f in sorted((whole / name).iterdir())] == [
            f.read_bytes() for f in sorted((parts / name).iterdir())
        ]
    again = cli("paint", run, whole / "maps" / "07.png", "--seed", 7, *words[4:], "--out", tmp_path / "again")
    assert again.code == 0, again.err
    painted, paired = (np.asarray(Image.open(f)) for f in (tmp_path / "again" / "07.png", whole / "images" / "07.png"))
    np.testing.assert_array_equal(painted, paired)
    before = snapshot(whole)
    assert (
        cli(*words, "--out", whole).code == 0
        and snapshot(whole)[str(whole / "images" / "03.png")] == before[str(whole / "images" / "03.png")]
    )
    given = cli(*words, "--maps", whole / "maps", "--out", tmp_path / "given")
    assert given.code == 0, given.err
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / "given" / "maps" / "03.png")),
        np.asarray(Image.open(whole / "maps" / "03.png")),
    )
    assert cli(*words, "--maps", tmp_path / "none", "--out", tmp_path / "never").code == 2


@pytest.mark.slow
def test_a_segmenter_learns_from_real_and_from_painted_pairs(
    cli: Callable[..., Outcome], annotated: Path, run: Path, tmp_path: Path
) -> None:
    pytest.importorskip("segmentation_models_pytorch")
    words = ("segment", annotated, "--classes", annotated.parent / "classes.json", "--steps", 12, "--batch-size", 4)
    alone = cli(*words, "--seeds", 2, "--out", tmp_path / "alone")
    assert alone.code == 0, alone.err
    found = json.loads((tmp_path / "alone" / "results.json").read_text())
    assert (found["real_images"], found["extra_images"], found["test_images"]) == (10, 0, 1)
    assert found["runs"][0]["dice"]["background"] > 0.7  # 12 steps; a segmenter that says nothing has 0
    assert found["runs"][0]["dice"] != found["runs"][1]["dice"]
    assert (tmp_path / "alone" / "report.html").read_text().count("<img") == 3
    before = snapshot(tmp_path / "alone")
    assert cli(*words, "--seeds", 2, "--out", tmp_path / "alone").code == 0
    kept = str(tmp_path / "alone" / "seed-1.json")
    assert snapshot(tmp_path / "alone")[kept] == before[kept]  # not trained again
    pairs = tmp_path / "pairs"
    assert cli("expand", run, "--times", 1, "--sampler", "ddim", "--sampling-steps", 2, "--out", pairs).code == 0
    both = cli(*words, "--seeds", 2, "--extra", pairs, "--baseline", tmp_path / "alone", "--out", tmp_path / "both")
    assert both.code == 0 and "against" in both.out and "p " in both.out, both.err
    painted = cli(*words, "--real", 0, "--extra", pairs, "--out", tmp_path / "painted")
    assert painted.code == 0
    found = json.loads((tmp_path / "painted" / "results.json").read_text())
    assert (found["real_images"], found["extra_images"]) == (0, 10)


def test_a_generator_that_saw_the_test_images_is_refused_and_so_is_the_rest(
    cli: Callable[..., Outcome], annotated: Path, run: Path, tmp_path: Path
) -> None:
    pairs, all_seen = tmp_path / "pairs", tmp_path / "seen"
    table = ("--classes", annotated.parent / "classes.json")
    assert cli("train", annotated, *TINY, *table, "--split", "none", "--out", all_seen).code == 0
    made = cli("expand", all_seen, "--times", 1, "--sampler", "ddim", "--sampling-steps", 1, "--out", pairs)
    assert made.code == 0, made.err
    words = ("segment", annotated, *table, "--steps", 1)
    for more, sentence in (
        (("--extra", pairs), "was trained on 1 images of this test part"),
        (("--mix", 0.3), "there are no painted images without --extra"),
        (("--mix", 1.5, "--extra", pairs), "--mix 1.5: it should be between 0 and 1"),
        (("--real", 99), "--real 99: there are 10 annotated training images"),
        (("--real", 0), "neither real images nor painted ones; give --extra"),
        (("--split", "none"), "there is nothing to test on"),
        (("--baseline", tmp_path), "there is no results.json of morphogen segment"),
        (("--extra", annotated), "holds no expansion.json"),
    ):
        done = cli(*words, *more, "--out", tmp_path / "out")
        assert done.code == 2 and sentence in done.err and "Traceback" not in done.err, (more, done.err)
    assert not (tmp_path / "out" / "results.json").exists()
