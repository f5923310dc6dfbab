"""The dataset is a pure function of (seed, n), counts what is bad, and fits and augments as asked."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from morphogen.core.errors import InputError
from morphogen.core.model import LabelConfig
from morphogen.data.config import DataConfig
from morphogen.data.dataset import ImageDataset, build_dataset

Save = Callable[..., Path]


def build(source: object, part: Any = "train", seed: int = 0, **settings: Any) -> ImageDataset:
    return build_dataset(DataConfig(source=str(source), **{"size": 32, **settings}), part, seed, progress=False)


def pixels(dataset: ImageDataset, n: int) -> bytes:
    return dataset[n][0].numpy().tobytes()


def test_what_an_item_is(folder: Path) -> None:
    dataset = build(folder, split="none")
    image, label = dataset[0]
    assert image.dtype == torch.uint8 and image.shape == (3, 32, 32) and image.is_contiguous()
    assert label.tolist() == [dataset.name(0)[0] == "a", dataset.name(0)[0] == "b"] and label.dtype == torch.float32
    assert dataset.labels == LabelConfig(names=("a", "b"), exclusive=True)
    assert build(folder, split="none", labels="none")[0][1].shape == (0,)
    assert len(dataset) == 12 and len(list(dataset)) == 12
    assert build(folder, colour="gray")[0][0].shape == (1, 32, 32)
    with pytest.raises(IndexError):
        dataset[-1]


def test_an_item_is_the_callers_own(folder: Path) -> None:
    for colour in ("rgb", "gray"):
        dataset, fresh = (build(folder, colour=colour, domain="icons", fit="crop") for _ in range(2))
        dataset[3][0].zero_()
        dataset.fixed(0)[0].zero_()
        assert all(pixels(dataset, n) == pixels(fresh, n) for n in range(30))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("large")
    for k in range(5):
        data = np.random.default_rng(k).integers(0, 256, (48, 40 + k, 3), dtype=np.uint8)
        Image.fromarray(data).save(root / f"{k}.png")
    return root


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**64 - 1),
    order=st.lists(st.integers(0, 10**12) | st.integers(0, 20), min_size=1, max_size=8),
    fit=st.sampled_from(["crop", "stretch", "pad", "random"]),
    domain=st.sampled_from(["photo", "icons", "texture"]),
    cache=st.sampled_from([0, 2048]),
    verify=st.sampled_from(["full", "headers"]),
)
def test_items_are_pure(
    large: Path, seed: int, order: list[int], fit: Any, domain: Any, cache: int, verify: Any
) -> None:
    one = build(large, seed=seed, fit=fit, domain=domain)
    other = build(large, seed=seed, fit=fit, domain=domain, cache_mb=cache, verify=verify)
    copied = pickle.loads(pickle.dumps(one))
    first = [pixels(one, n) for n in order]
    state = torch.get_rng_state()
    assert [pixels(other, n) for n in reversed(order)] == first[::-1]
    assert [pixels(copied, n) for n in sorted(order)] == [pixels(one, n) for n in sorted(order)]
    assert torch.equal(state, torch.get_rng_state())


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 10**9))
def test_an_epoch_shows_every_image_once(large: Path, seed: int, epoch: int) -> None:
    dataset = build(large, seed=seed)
    count = len(dataset)
    assert sorted(dataset.index(epoch * count + k) for k in range(count)) == list(range(count))


def test_seeds_and_epochs_differ(folder: Path) -> None:
    orders = {
        tuple(build(folder, seed=seed, split="none").index(12 * epoch + k) for k in range(12))
        for seed in range(5)
        for epoch in range(5)
    }
    assert len(orders) == 25
    crops = {pixels(build("builtin:tissue", seed=seed), 0) for seed in range(5)}
    assert len(crops) == 5


def test_the_order_is_fair(folder: Path) -> None:
    dataset = build(folder, split="none")
    firsts = np.bincount([dataset.index(12 * epoch) for epoch in range(2400)], minlength=12)
    assert firsts.min() > 140 and firsts.max() < 260  # 200 each, 14 the standard deviation


LOADERS = """
import multiprocessing, sys, torch
from morphogen.data.config import DataConfig
from morphogen.data.dataset import build_dataset

if __name__ == "__main__":
    dataset = build_dataset(DataConfig(source=sys.argv[1], size=32), progress=False)
    for how in {"fork", "spawn"} & set(multiprocessing.get_all_start_methods()):
        loader = torch.utils.data.DataLoader(dataset, batch_size=4, num_workers=2, multiprocessing_context=how)
        images = torch.cat([batch for batch, _ in loader])
        assert torch.equal(images, torch.stack([dataset[n][0] for n in range(len(dataset))])), how
        print(how)
"""


def test_loader_workers_give_the_same(folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "loaders.py"
    script.write_text(LOADERS)
    out = subprocess.run([sys.executable, script, folder], capture_output=True, text=True, timeout=120, check=False)
    assert "spawn" in out.stdout.split(), out.stderr


def ramp(height: int, width: int) -> np.ndarray:
    """Every pixel different: red is the row, green the column."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y, x, 0 * x], axis=2).astype(np.uint8)


def variants(square: np.ndarray, flips: str, turns: bool) -> set[bytes]:
    out = {square.tobytes()}
    for turned in [np.rot90(square, k) for k in (range(4) if turns else [0])]:
        for a in [turned] + ([turned[:, ::-1]] if flips != "none" else []):
            out |= {a.tobytes(), a[::-1].tobytes()} if flips == "both" else {a.tobytes()}
    return out


@pytest.mark.parametrize(
    ("domain", "flips", "turns"),
    [("photo", "horizontal", False), ("faces", "horizontal", False), ("icons", "none", False),
     ("texture", "both", True), ("pathology", "both", True), ("microscopy", "both", True), ("satellite", "both", True)],
)  # fmt: skip
def test_each_domain_flips_and_turns(tmp_path: Path, domain: str, flips: str, turns: bool) -> None:
    Image.fromarray(ramp(16, 16)).save(tmp_path / "x.png")
    dataset = build(tmp_path, size=16, domain=domain)
    seen = {dataset[n][0].permute(1, 2, 0).numpy().tobytes() for n in range(200)}
    assert seen == variants(ramp(16, 16), flips, turns)
    assert dataset.fixed(0)[0].permute(1, 2, 0).numpy().tobytes() == ramp(16, 16).tobytes()


def test_flips_and_turns_overrule_the_domain_and_half_turns_keep_the_shape(tmp_path: Path) -> None:
    Image.fromarray(ramp(16, 24)).save(tmp_path / "x.png")
    plain = build(tmp_path, size="16x24", domain="texture", flips="none", turns=False)
    assert len({pixels(plain, n) for n in range(50)}) == 1
    turned = build(tmp_path, size="16x24", domain="icons", flips="none", turns=True)
    assert {pixels(turned, n) for n in range(50)} == {
        a.transpose(2, 0, 1).tobytes() for a in (ramp(16, 24), ramp(16, 24)[::-1, ::-1])
    }


def test_random_crops_reach_every_place_and_nothing_else(tmp_path: Path) -> None:
    Image.fromarray(ramp(20, 18)).save(tmp_path / "x.png")
    dataset = build(tmp_path, size=16, domain="icons", fit="random")
    corners = {tuple(dataset[n][0][:2, 0, 0].tolist()) for n in range(400)}
    assert corners == {(y, x) for y in range(5) for x in range(3)}
    y, x = dataset[7][0][:2, 0, 0].tolist()
    np.testing.assert_array_equal(dataset[7][0].permute(1, 2, 0).numpy(), ramp(20, 18)[y : y + 16, x : x + 16])


def test_fixed_images_are_the_same_for_every_seed(large: Path) -> None:
    a, b = build(large, seed=1, fit="random"), build(large, seed=2, fit="random")
    assert all(torch.equal(a.fixed(i)[0], b.fixed(i)[0]) for i in range(20))
    first = np.asarray(Image.open(large / "0.png"))
    np.testing.assert_array_equal(a.fixed(0)[0].permute(1, 2, 0).numpy(), first[8:40, 4:36])
    assert len({a.fixed(i)[0].numpy().tobytes() for i in range(0, 50, 5)}) > 5  # further crops of one image
    with pytest.raises(IndexError):
        build(large, fit="crop").fixed(5)
    with pytest.raises(IndexError):
        a.fixed(-1)


def test_builtin_tissue_is_cropped_at_random() -> None:
    dataset = build("builtin:tissue", size=64)
    assert len(dataset) == 1 and dataset.fitting.fit == "random" and dataset.fitting.domain == "pathology"
    assert len({pixels(dataset, n) for n in range(20)}) == 20
    assert len({dataset.fixed(i)[0].numpy().tobytes() for i in range(20)}) == 20


def test_crop_stretch_and_pad(tmp_path: Path) -> None:
    image = np.zeros((32, 64, 3), np.uint8)
    image[:, 16:48] = 255
    Image.fromarray(image).save(tmp_path / "x.png")
    crop = build(tmp_path, size=16, fit="crop").fixed(0)[0]
    assert (crop == 255).float().mean() > 0.85
    stretch = build(tmp_path, size=16, fit="stretch").fixed(0)[0]
    assert (stretch[:, :, 5:11] == 255).all() and (stretch[:, :, :3] == 0).all()
    pad = build(tmp_path, size=16, fit="pad", background="#010203").fixed(0)[0]
    edge = torch.tensor([1, 2, 3], dtype=torch.uint8)[:, None, None]
    assert (pad[:, :4] == edge).all() and (pad[:, 12:] == edge).all() and (pad[:, 4:12, 6:10] == 255).all()
    gray = build(tmp_path, size=16, fit="pad", background="white", colour="gray").fixed(0)[0]
    assert gray.shape == (1, 16, 16) and (gray[:, :4] == 255).all()


def test_an_image_of_the_right_size_is_untouched(folder: Path) -> None:
    for fit in ("crop", "stretch", "pad", "random"):
        got = build(folder, fit=fit, split="none").fixed(0)[0].permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(got, np.asarray(Image.open(folder / "a" / "00.png")))


def test_downscale_averages_areas(save: Save, tmp_path: Path) -> None:
    path = save("one/x.png", 64, 64)
    small = build(tmp_path / "one", size=16, downscale=4, fit="crop").fixed(0)[0].permute(1, 2, 0).numpy()
    mean = np.asarray(Image.open(path)).reshape(16, 4, 16, 4, 3).mean((1, 3))
    np.testing.assert_allclose(small, mean, atol=1)


def test_bad_images_are_named_skipped_and_counted(folder: Path, save: Save, capsys: pytest.CaptureFixture[str]) -> None:
    good = build(folder, split="none")
    (folder / "a" / "broken.png").write_bytes((folder / "a" / "00.png").read_bytes()[:900])
    save("set/b/small.png", 16, 64)
    dataset = build_dataset(DataConfig(source=str(folder), size=32, split="none"))
    assert [name for name, _ in dataset.bad] == ["a/broken.png", "b/small.png"]
    assert "truncated" in dataset.bad[0][1] and "16x64 (height x width) is smaller than 32x32" in dataset.bad[1][1]
    assert len(dataset) == 12 and dataset.summary()["bad"] == 2
    assert [pixels(dataset, n) for n in range(12)] == [pixels(good, n) for n in range(12)]
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 2 and shown[0].startswith("skipped a/broken.png: ")
    with pytest.raises(InputError, match=r"2 of 14 images cannot be used, at most 1 may be \(--max-bad\): a/broken"):
        build(folder, split="none", max_bad=1)


def test_all_too_small_says_what_would_work(folder: Path, save: Save) -> None:
    save("set/a/wide.png", 30, 90)
    with pytest.raises(
        InputError, match=r"all 13 images are smaller than --size 64x64, such as .*; --size 30 takes them all"
    ):
        build(folder, size=64, split="none", fit="crop")
    assert len(build(folder, size=30, split="none")) == 13
    assert len(build(folder, size=64, split="none", fit="pad", max_bad=12)) == 1  # 30x90 shrinks to 21x64


def test_one_small_image_and_one_broken(save: Save, tmp_path: Path) -> None:
    path = save("only.png", 16, 16)
    with pytest.raises(InputError, match="its only image is smaller than --size 32x32"):
        build(path)
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"its only image cannot be used: only\.png: not an image"):
        build(path)


def test_headers_only_finds_damage_when_it_is_met(folder: Path) -> None:
    cut = folder / "a" / "00.png"
    cut.write_bytes(cut.read_bytes()[:900])
    dataset = build(folder, split="none", verify="headers")
    assert not dataset.bad
    with pytest.raises(InputError, match=r"^a/00\.png: the file is truncated"):
        list(dataset)


def test_a_bomb_among_good_images(folder: Path) -> None:
    with pytest.raises(
        InputError, match=r"all 10 images cannot be used: a/00\.png: 32x32 is 1,024 pixels; the limit is 1,000"
    ):
        build(folder, size=16, max_pixels=1000)


def test_the_automatic_split(folder: Path) -> None:
    parts = {part: build(folder, part) for part in ("train", "val", "test")}
    names = {part: {d.source.records[i].name for i in d.indices} for part, d in parts.items()}
    assert sorted(map(len, names.values())) == [1, 1, 10] and len(set().union(*names.values())) == 12
    again = build(folder, "test", seed=99)
    assert {again.source.records[i].name for i in again.indices} == names["test"]
    assert len({d.fingerprint for d in parts.values()}) == 1
    assert parts["val"].labels.names == ("a", "b")
    (folder / "b" / "11.png").unlink()
    (folder / "b" / "09.png").unlink()
    (folder / "b" / "07.png").unlink()
    few = build(folder)
    assert len(few) == 9 and few.counts == {"train": 9, "val": 0, "test": 0}
    with pytest.raises(InputError, match="has no val part"):
        build(folder, "val")


def test_the_summary_is_json(folder: Path) -> None:
    summary = build(folder).summary()
    assert json.loads(json.dumps(summary)) == summary
    assert summary["labels"] == {"a": 5, "b": 5} and summary["parts"] == {"train": 10, "val": 1, "test": 1}


def test_the_fingerprint_tells_content(folder: Path, save: Save) -> None:
    before = build(folder).fingerprint
    assert build(folder, seed=5, size=16).fingerprint == before
    save("set/a/00.png", 32, 32, seed=77)
    assert build(folder).fingerprint != before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count"), [("faces64.zip", 17952), ("colon64.zip", 10000), ("emoji64.zip", 3486), ("fundus128.zip", 3584)]
)
def test_real_sets(shared: Path, name: str, count: int) -> None:
    dataset = build(shared / name, "val", size=64)
    assert sum(dataset.counts.values()) == count and not dataset.bad
    assert dataset[0][0].shape == (3, 64, 64)
    assert len(dataset.labels) == (4 if name == "fundus128.zip" else 0)


@pytest.mark.slow
def test_real_emoji_are_composited(shared: Path) -> None:
    white, red = (build(shared / "emoji64.zip", "val", size=64, background=colour) for colour in ("white", "red"))
    corners = [(d.fixed(0)[0][:, 0, 0]).tolist() for d in (white, red)]
    assert corners == [[255, 255, 255], [255, 0, 0]]
