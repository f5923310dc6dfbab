"""Wrong input: exit code 2, one clear sentence, no traceback, and nothing lost or changed."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tifffile
from PIL import Image
from run_helpers import TINY, Outcome, RealCommand, draw_images, pixels, snapshot
from safetensors.torch import load_file, save_file

Refused = Callable[..., str]


@pytest.fixture
def train(refused: Refused, images: Path, tmp_path: Path) -> Callable[..., str]:
    """train(*options, source=..., out=..., says=[...]): a training that must be refused and leave no run behind."""

    def run(*options: object, source: object = images, out: Path | None = None, **wanted: object) -> str:
        folder = out or tmp_path / "never"
        line = refused("train", source, "--out", folder, *TINY, "--steps", 1, *options, **wanted)
        if out is None:
            assert not folder.exists() or [p.name for p in folder.iterdir()] in ([], [".lock"])
        return line

    return run


@pytest.fixture
def trained(cli: Callable[..., Outcome], images: Path, tmp_path: Path) -> Path:
    """A run of two steps that a test may spoil."""
    assert cli("train", images, "--out", tmp_path / "run", *TINY, "--steps", 2).code == 0
    return tmp_path / "run"


def jpeg(size: int = 20, seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(size, size, seed)).save(buffer, "JPEG")
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bomb(side: int) -> bytes:
    """A small PNG that claims to be side x side."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(10_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


# --- data ---


def test_a_missing_folder(train: Callable[..., str], tmp_path: Path) -> None:
    train(source=tmp_path / "nowhere", says=[f"{tmp_path / 'nowhere'} does not exist"])


def test_an_empty_folder(train: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    train(source=tmp_path / "empty", says=["is an empty folder"], keeps=[tmp_path / "empty"])


def test_a_folder_without_images(train: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "readme.txt").write_text("no image")
    train(source=tmp_path / "texts", says=["1 files but no image"])


def test_a_file_that_is_no_image(train: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    train(source=tmp_path / "notes.txt", says=["notes.txt is not an image"])


def test_an_unknown_builtin(train: Callable[..., str]) -> None:
    train(source="builtin:tisue", says=["tisue", "tissue"])


def test_a_broken_jpeg_among_good_ones_is_named_skipped_and_counted(
    cli: Callable[..., Outcome], tmp_path: Path
) -> None:
    source = draw_images(tmp_path / "mixed", 4)
    (source / "cut.jpg").write_bytes(jpeg()[:200])
    (source / "noise.jpeg").write_bytes(b"not a picture at all")
    before = snapshot(source)
    ended = cli("train", source, "--out", tmp_path / "run", *TINY, "--steps", 2)
    assert ended.code == 0
    for name in ("cut.jpg", "noise.jpeg"):
        assert f"skipped {name}: " in ended.err
    card = (tmp_path / "run" / "README.md").read_text()
    assert "- images: 4" in card
    assert "- bad: 2" in card
    assert snapshot(source) == before


def test_more_broken_ones_than_max_bad(cli: Callable[..., Outcome], tmp_path: Path) -> None:
    source = draw_images(tmp_path / "mixed", 4)
    (source / "cut.jpg").write_bytes(jpeg()[:200])
    (source / "empty.jpg").touch()
    ended = cli("train", source, "--out", tmp_path / "run", *TINY, "--steps", 2, "--max-bad", 1)
    assert ended.code == 2
    *skipped, last = ended.err.splitlines()
    assert all(line.startswith("skipped ") for line in skipped)
    assert last.startswith("morphogen: ")
    for word in ("2 of 6 images cannot be used", "at most 1", "--max-bad", "cut.jpg", "empty.jpg"):
        assert word in last
    assert not (tmp_path / "run" / "run.json").exists()


def test_nothing_but_broken_ones(cli: Callable[..., Outcome], tmp_path: Path) -> None:
    (source := tmp_path / "broken").mkdir()
    for k in range(3):
        (source / f"{k}.jpg").write_bytes(b"x")
    ended = cli("train", source, "--out", tmp_path / "run", *TINY, "--steps", 2)
    assert ended.code == 2
    assert "all 3 images cannot be used" in ended.err.splitlines()[-1]


@pytest.mark.parametrize("side", [20_000, 2_000_000])
def test_a_decompression_bomb(cli: Callable[..., Outcome], tmp_path: Path, side: int) -> None:
    source = draw_images(tmp_path / "mixed", 3)
    (source / "bomb.png").write_bytes(bomb(side))
    options = ("train", source, "--out", tmp_path / "run", *TINY, "--steps", 1)
    refused = cli(*options, "--max-bad", 0)
    assert refused.code == 2
    last = refused.err.splitlines()[-1]
    assert f"bomb.png: {side}x{side} is " in last
    assert "pixels; the limit is " in last
    skipped = cli(*options)
    assert skipped.code == 0
    assert "skipped bomb.png" in skipped.err


@pytest.mark.parametrize(
    "name", ["../evil.png", "a/../../evil.png", "/etc/evil.png", "..\\evil.png", "C:\\evil.png", "C:/evil.png"]
)
def test_a_zip_that_leads_out(train: Callable[..., str], tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(path := tmp_path / "evil.zip", "w") as archive:
        archive.writestr("good.png", jpeg())
        archive.writestr(zipfile.ZipInfo(name), jpeg())
    train(source=path, says=["evil.zip", "leads out of the archive"], keeps=[])
    assert not list(tmp_path.rglob("evil.png"))


@pytest.mark.parametrize(("size", "name"), [(2**21, "a.png"), (2**20, "notes.txt")])
def test_a_zip_bomb(train: Callable[..., str], tmp_path: Path, size: int, name: str) -> None:
    with zipfile.ZipFile(path := tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("good.jpg", jpeg())
        archive.writestr(name, bytes(size))
        assert archive.infolist()[1].file_size / archive.infolist()[1].compress_size > 900
    train(source=path, says=["bomb.zip", "zip bomb", name])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and nothing more", b"hello"])
def test_a_broken_zip(train: Callable[..., str], tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.zip").write_bytes(content)
    train(source=tmp_path / "broken.zip", says=["broken.zip"])


def test_a_zip_without_images(train: Callable[..., str], tmp_path: Path) -> None:
    with zipfile.ZipFile(path := tmp_path / "texts.zip", "w") as archive:
        archive.writestr("a.txt", "hello")
    train(source=path, says=["texts.zip holds no image"])


def test_images_smaller_than_the_size(cli: Callable[..., Outcome], images: Path, tmp_path: Path) -> None:
    ended = cli("train", images, "--out", tmp_path / "run", *TINY[2:], "--size", 64, "--steps", 1)
    assert ended.code == 2
    last = ended.err.splitlines()[-1]
    for word in ("smaller than --size 64x64", "--size 20 takes them all"):
        assert word in last


@pytest.mark.parametrize("size", ["16", "31", "32x31", "64x20"])
def test_fourier_below_32(cli: Callable[..., Outcome], tmp_path: Path, size: str) -> None:
    source = draw_images(tmp_path / "large", 3, 70)
    options = ("--model", "fourier-diff-nca-small", "--size", size, "--steps", 1)
    ended = cli("train", source, "--out", tmp_path / "run", *options)
    assert ended.code == 2
    assert len(ended.err.splitlines()) == 1
    assert "32" in ended.err
    assert not (tmp_path / "run" / "run.json").exists()
    assert cli("train", source, "--out", tmp_path / "run", *options, "--dry-run").code == 2


# --- settings ---


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            ("--set", "training.learning_rat=1"),
            ["training.learning_rat'", "did you mean 'training.optimizer.learning_rate'"],
        ),
        (("--set", "architecture.chanels=9"), ["chanels", "did you mean 'architecture.channels'"]),
        (("--set", "architecture.channels=5"), ["channels", "6"]),
        (("--set", "architecture.channels=1e9"), ["channels", "1024"]),
        (("--set", "architecture.fire_rate=0"), ["fire_rate"]),
        (("--set", "traning.steps=9"), ["traning", "training"]),
        (("--set", "steps=9"), ["there is no setting 'steps'"]),
        (("--set", "training.steps"), ["--set training.steps", "KEY=VALUE"]),
        (
            ("--set", "training.optimizer.learning_rate=7"),
            ["training.optimizer.learning_rate", "less than or equal to 1"],
        ),
        (("--set", "training.optimizer.betas=[2, 0.9]"), ["training.optimizer.betas"]),
        (("--model", "diff-nsa"), ["there is no model 'diff-nsa'", "diff-nca-small"]),
        (("--model", "unet-xxl"), ["there is no model 'unet-xxl'"]),
        (("--recipe", "best"), ["there is no recipe 'best'", "paper"]),
        (("--device", "tpu"), ["device", "tpu", "cuda"]),
        (("--precision", "float16"), ["precision", "float16", "bfloat16"]),
        (("--minutes", "1"), ["either steps or minutes"]),
        (("--minutes", "-1"), ["training.minutes"]),
        (("--steps", "0"), ["training.steps"]),
        (("--steps", "-5"), ["training.steps"]),
        (("--batch-size", "0"), ["training.batch_size"]),
        (("--seed", "-1"), ["training.seed", "greater than or equal to 0"]),
        (("--seed", str(2**64)), ["training.seed"]),
        (("--size", "big"), ["size 'big'"]),
        (("--size", "16x16x3"), ["size '16x16x3'"]),
        (("--size", "4"), ["data.size", "8"]),
        (("--size", "99999"), ["data.size", "4096"]),
        (("--fit", "fill"), ["data.fit", "fill"]),
        (("--domain", "cats"), ["data.domain", "cats"]),
        (("--background", "zebra"), ["zebra", "#rrggbb"]),
        (("--downscale", "0"), ["data.downscale"]),
        (("--max-bad", "-1"), ["data.max_bad"]),
        (("--fold", "0"), ["fold 0 needs a split file"]),
        (("--split", "nowhere.json"), ["nowhere.json cannot be read"]),
        (("--config", "nowhere.yaml"), ["nowhere.yaml cannot be read"]),
        (("--init", "nowhere"), ["'nowhere'"]),
        (("--init", "diff-nca"), ["'diff-nca' is an untrained model"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_settings(
    train: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    says: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    train(*options, says=says)


@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="there is a GPU")
def test_a_device_that_is_not_there(train: Callable[..., str], refused: Refused, run: Path, tmp_path: Path) -> None:
    train("--device", "cuda", says=["--device cuda", "--device cpu"])
    refused("sample", run, "--device", "cuda", "--out", tmp_path / "s", says=["--device cuda"])


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("c.yaml", "training: [", "is not valid YAML"),
        ("c.json", "{", "is not valid JSON"),
        (
            "c.yaml",
            "training: {stepz: 3}",
            "line 1: there is no setting 'training.stepz'; did you mean 'training.steps'",
        ),
        ("c.yaml", "colour: blue", "'colour'"),
        ("c.yaml", "just words", "should be a table"),
    ],
)
def test_wrong_configuration_files(
    train: Callable[..., str], tmp_path: Path, name: str, content: str, says: str
) -> None:
    (tmp_path / name).write_text(content)
    train("--config", tmp_path / name, says=[says])


@pytest.mark.parametrize(
    ("fold", "says"),
    [(("--fold", 3), ["--fold 3", "0..2"]), (("--fold", -1), ["data.fold"]), ((), ["3 folds", "--fold"])],
)
def test_wrong_folds(
    cli: Callable[..., Outcome],
    train: Callable[..., str],
    images: Path,
    tmp_path: Path,
    fold: tuple[object, ...],
    says: list[str],
) -> None:
    assert cli("data", "split", images, "--folds", 3, "--out", tmp_path / "split.json").code == 0
    train("--split", tmp_path / "split.json", *fold, says=says)


def test_a_split_of_other_images(
    cli: Callable[..., Outcome], train: Callable[..., str], images: Path, tmp_path: Path
) -> None:
    assert cli("data", "split", images, "--out", tmp_path / "split.json").code == 0
    others = draw_images(tmp_path / "others", 12, first=1)
    train("--split", tmp_path / "split.json", source=others, says=["split.json names 1 images", "00.png"])


# --- the run folder ---


def test_out_is_a_file(train: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    train(out=tmp_path / "file", says=["is a file; name a folder"], keeps=[tmp_path])
    train(out=tmp_path / "file" / "below", says=["cannot be written"], keeps=[tmp_path])


def test_out_holds_something_else(train: Callable[..., str], images: Path, tmp_path: Path) -> None:
    train(out=images, says=["holds other files and no run"], keeps=[images])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / ".hidden").touch()
    train(out=tmp_path / "full", says=["holds other files and no run"], keeps=[tmp_path / "full"])


def test_out_inside_the_images(
    train: Callable[..., str], refused: Refused, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sheets would be images to train on, and the data another one when it resumes."""
    source = Path(shutil.copytree(images, tmp_path / "images"))
    train(source=source, out=source / "runs" / "first", says=["lies inside", "outside"], keeps=[source])
    monkeypatch.chdir(source)
    train(source=".", out=Path("run"), says=["lies inside"], keeps=[source])
    refused("train", ".", "--out", "run", *TINY, "--dry-run", says=["lies inside"], keeps=[source])


def test_changed_settings_are_each_named_and_nothing_changes(train: Callable[..., str], trained: Path) -> None:
    changes = (
        "--seed",
        3,
        "--batch-size",
        2,
        "--size",
        17,
        "--set",
        "training.optimizer.learning_rate=0.5",
        "--recipe",
        "paper",
    )
    names = [
        "training.seed was 0, is 3",
        "training.batch_size was 4, is 2",
        "training.optimizer.learning_rate was 0.004, is 0.5",
    ]
    names += [
        "data.size was [16, 16], is [17, 17]",
        "recipe was 'default', is 'paper'",
        "training.schedule.warmup was 100, is 0",
    ]
    train(*changes, out=trained, says=[*names, "another --out"], keeps=[trained])


def test_another_model_is_refused(train: Callable[..., str], trained: Path) -> None:
    train("--model", "diff-nca", out=trained, says=["model was 'diff-nca-small', is 'diff-nca'"], keeps=[trained])
    train(
        "--set", "architecture.channels=10", out=trained, says=["architecture.channels was 8, is 10"], keeps=[trained]
    )


def test_what_may_change_resumes(cli: Callable[..., Outcome], images: Path, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "moved")
    ended = cli(
        "train", tmp_path / "moved", "--out", trained, *TINY, "--steps", 3, "--set", "training.devices.workers=0"
    )
    assert ended.code == 0
    assert json.loads((trained / "run.json").read_text())["data"]["source"] == str(tmp_path / "moved")
    assert cli("train", tmp_path / "moved", "--out", trained, *TINY, "--minutes", 0.0001).code == 0


def other_content(folder: Path) -> None:
    draw_images(folder, 1, 21)


def one_more(folder: Path) -> None:
    draw_images(folder, 1, first=12)


def one_less(folder: Path) -> None:
    (folder / "03.png").unlink()


def another_name(folder: Path) -> None:
    (folder / "03.png").rename(folder / "33.png")


@pytest.mark.parametrize("change", [other_content, one_more, one_less, another_name])
def test_data_that_changed_since(
    cli: Callable[..., Outcome],
    train: Callable[..., str],
    images: Path,
    tmp_path: Path,
    change: Callable[[Path], None],
) -> None:
    source = Path(shutil.copytree(images, tmp_path / "images"))
    run = tmp_path / "run"
    assert cli("train", source, "--out", run, *TINY, "--steps", 2).code == 0
    change(source)
    train("--steps", 3, source=source, out=run, says=["are not those that", str(run)], keeps=[run, source])


def test_a_run_without_its_checkpoints(train: Callable[..., str], trained: Path) -> None:
    """It would start anew, and overwrite the model that is there."""
    shutil.rmtree(trained / "checkpoints")
    train("--steps", 3, out=trained, says=["no checkpoint", "--init"], keeps=[trained])


def test_an_image_that_turns_out_bad_on_the_way(cli: Callable[..., Outcome], tmp_path: Path) -> None:
    """Found when it is met, if only headers were looked at: it is named, and what was done is saved."""
    source = draw_images(tmp_path / "images", 9)
    whole = (source / "05.png").read_bytes()
    (source / "05.png").write_bytes(whole[:-200])
    options = ("train", source, "--out", tmp_path / "run", *TINY, "--batch-size", 1, "--set", "data.verify=headers")
    ended = cli(*options, "--steps", 9)
    assert ended.code == 2
    assert ended.err.splitlines()[-1].startswith("morphogen: 05.png: the file is truncated")
    saved = int(max((tmp_path / "run" / "checkpoints").iterdir()).name.removeprefix("step-"))
    assert saved == len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) < 9
    assert cli(*options, "--steps", 9).code == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"model": 1}', b"\xff\xfe"])
def test_a_damaged_run_json(train: Callable[..., str], trained: Path, content: bytes) -> None:
    (trained / "run.json").write_bytes(content)
    train(out=trained, says=["run.json"], keeps=[trained])


# --- weights ---


class Malice:
    """Unpickling it leaves a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.trace,))


@pytest.fixture
def trace(tmp_path: Path) -> Iterator[Path]:
    """The file that appears if a pickle is opened."""
    yield tmp_path / "opened"
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize("name", ["x.pt", "x.pth", "x.ckpt", "x.bin", "x.pkl", "X.PT"])
def test_a_pickle_as_weights(
    train: Callable[..., str], refused: Refused, tmp_path: Path, trace: Path, name: str
) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Malice(trace)))
    says = [name, "is a pickle", "safetensors"]
    train("--init", tmp_path / name, says=says)
    refused("sample", tmp_path / name, "--out", tmp_path / "s", says=says, keeps=[])
    refused("info", tmp_path / name, says=says)


def test_a_folder_with_pickled_weights(
    train: Callable[..., str], refused: Refused, run: Path, tmp_path: Path, trace: Path
) -> None:
    (folder := tmp_path / "downloaded").mkdir()
    shutil.copy(run / "config.json", folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Malice(trace)))
    for arguments in (("sample", folder, "--out", tmp_path / "s"), ("info", folder)):
        refused(*arguments, says=["pytorch_model.bin is a pickle"], keeps=[folder])
    train("--init", folder, says=["pytorch_model.bin is a pickle"])
    assert not (tmp_path / "s").exists()


def test_a_pickle_in_disguise(refused: Refused, run: Path, tmp_path: Path, trace: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    (copy / "model.safetensors").write_bytes(pickle.dumps(Malice(trace)))
    refused("sample", copy, "--out", tmp_path / "s", says=["model.safetensors", "damaged or not"], keeps=[copy])


def edited(run: Path, folder: Path, **changes: object) -> Path:
    """A copy of a run whose config.json says something else."""
    copy = Path(shutil.copytree(run, folder))
    config = json.loads((copy / "config.json").read_text())
    for path, value in changes.items():
        *parents, last = path.split("__")
        table = config
        for parent in parents:
            table = table[parent]
        table[last] = value
    (copy / "config.json").write_text(json.dumps(config))
    return copy


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"image__height": 10**12}, "image: height"),
        ({"image__width": -5}, "image: width"),
        ({"image__channels": 10**9}, "channels"),
        ({"architecture__channels": 10**9}, "architecture: channels"),
        ({"architecture__hidden": 10**15}, "architecture: hidden"),
        ({"architecture__nca_steps": 10**9}, "architecture: nca_steps"),
        ({"architecture__fire_rate": 1e300}, "architecture: fire_rate"),
        ({"architecture__channels": "many"}, "architecture: channels"),
        ({"architecture__depth": 3}, "depth"),
        ({"diffusion__timesteps": 10**9}, "diffusion: timesteps"),
        ({"diffusion__schedule": "magic"}, "diffusion: schedule"),
        ({"family": "resnet"}, "there is no model family 'resnet'"),
        ({"family": None}, "family"),
        ({"family": ["diff-nca"]}, "family"),
        ({"image": 5}, "image"),
        ({"architecture": None}, "architecture"),
        ({"architecture__channels": 16}, "shape"),
        ({"architecture__norm": "group"}, "lacks the weight"),
    ],
    ids=str,
)
def test_a_config_json_that_cannot_be(
    refused: Refused, run: Path, tmp_path: Path, changes: dict[str, object], says: str
) -> None:
    copy = edited(run, tmp_path / "copy", **changes)
    for arguments in (("sample", copy, "--out", tmp_path / "s"), ("info", copy)):
        refused(*arguments, says=[says], keeps=[copy])
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"null", b"\xff", b"[" * 100_000])
def test_a_config_json_that_is_none(refused: Refused, run: Path, tmp_path: Path, content: bytes) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    (copy / "config.json").write_bytes(content)
    refused("sample", copy, "--out", tmp_path / "s", says=["config.json"], keeps=[copy])
    (copy / "config.json").unlink()
    refused("sample", copy, "--out", tmp_path / "s", says=["config.json"], keeps=[copy])


def test_damaged_weights(refused: Refused, run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    file = copy / "model.safetensors"
    whole = file.read_bytes()
    for content in (b"", whole[:100], whole[:-1], bytes(50)):
        file.write_bytes(content)
        refused("sample", copy, "--out", tmp_path / "s", says=["model.safetensors"], keeps=[copy])
    weights = load_file(run / "model.safetensors")
    save_file({**weights, "extra": weights["rule.output.bias"].clone()}, file)
    refused("sample", copy, "--out", tmp_path / "s", says=["a weight 'extra'"], keeps=[copy])
    file.unlink()
    refused("sample", copy, "--out", tmp_path / "s", says=["has not saved a model yet"], keeps=[copy])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--set", "architecture.hidden=20"), ["architecture.hidden is 16", "20"]),
        (("--set", "architecture.nca_steps=3"), ["architecture.nca_steps is 2", "3"]),
        (("--set", "data.colour=gray"), ["image.channels is 3", "1"]),
        (("--set", "diffusion.output=clean"), ["diffusion.output is v", "clean"]),
        (("--model", "fourier-diff-nca-small", "--size", 32), ["family is diff-nca", "fourier-diff-nca"]),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_init_from_a_model_of_another_kind(
    train: Callable[..., str], run: Path, tmp_path: Path, options: tuple[object, ...], says: list[str]
) -> None:
    same = ("--set", "diffusion.timesteps=10", "--init", run)
    train(*same, *options, source=draw_images(tmp_path / "large", 3, 40), says=["--init", *says], keeps=[run])


# --- sample ---


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--size", "nonsense"), ["--size", "'nonsense'"]),
        (("--size", "64x"), ["--size"]),
        (("--size", "-64"), ["--size"]),
        (("--size", "0"), ["0x0 is too small"]),
        (("--size", "1x64"), ["1x64 is too small"]),
        (("--size", ""), ["--size"]),
        (("--size", "1e3"), ["--size"]),
        (("--size", "12345678"), ["--size"]),
        (("--size", "999999"), ["not enough memory", "--size"]),
        (("--sampler", "magic"), ["there is no sampler 'magic'", "ddim"]),
        (("--sampling-steps", "11"), ["sampling steps is 11", "1 to 10"]),
        (("--device", "tpu"), ["--device tpu"]),
        (("--seed", str(2**64)), ["seed", str(2**64)]),
        (("--seed", str(2**64 - 1), "-n", "2"), ["seed", str(2**64)]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_sampling(refused: Refused, run: Path, tmp_path: Path, options: tuple[str, ...], says: list[str]) -> None:
    refused("sample", run, "--out", tmp_path / "s", *options, says=says, keeps=[run])
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize("name", ["tisue", "no/such/folder", "", "../..", "unet-b", "http://example.org/x"])
def test_sampling_what_is_not_there(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "in" / "side").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "in" / "side")
    refused("sample", name, "--out", tmp_path / "s", says=[name])


def test_sampling_an_untrained_model(refused: Refused, tmp_path: Path) -> None:
    line = refused("sample", "diff-nca", "--out", tmp_path / "s", says=["'diff-nca' is an untrained model"])
    assert "morphogen train" in line


def test_sampling_a_run_that_has_saved_nothing(refused: Refused, trained: Path, tmp_path: Path) -> None:
    (trained / "model.safetensors").unlink()
    refused("sample", trained, "--out", tmp_path / "s", says=["has not saved a model yet"], keeps=[trained])


def test_samples_that_cannot_be_written(refused: Refused, run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    refused("sample", run, "-n", 1, "--out", tmp_path / "file", says=["is a file"], keeps=[tmp_path])
    refused("sample", run, "-n", 1, "--out", tmp_path / "file" / "x", says=["cannot be written"], keeps=[tmp_path])


# --- as real processes ---


def test_the_real_command_refuses_alike(command: RealCommand, tmp_path: Path) -> None:
    """Started together, as starting takes most of the time; the model of a hub is out of reach (offline)."""
    (tmp_path / "x.pt").write_bytes(pickle.dumps({}))
    wanted = {
        ("train", tmp_path / "nowhere", "--out", tmp_path / "a"): "does not exist",
        ("sample", "somebody/some-model", "--out", tmp_path / "b"): "somebody/some-model",
        ("sample", tmp_path / "x.pt", "--out", tmp_path / "c"): "is a pickle",
    }
    started = {arguments: command.start(*arguments) for arguments in wanted}
    for arguments, process in started.items():
        assert process.wait() == 2, process.err
        assert process.out == ""
        (line,) = process.err.splitlines()
        assert line.startswith("morphogen: ")
        assert wanted[arguments] in line


# --- only ordinary files are read ---


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "device"])
def test_pipes_and_devices_are_not_read(
    refused: Refused, run: Path, images: Path, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    """A pipe would wait for ever, a device fill the memory."""
    bad, folder, here = tmp_path / "bad.geojson", tmp_path / "folder", images / "00.png"
    make(bad)
    folder.mkdir()
    make(folder / "bad.png")
    says = ["not an ordinary file"]
    refused("vary", run, folder, "--out", tmp_path / "out", says=says)
    (tmp_path / "out").mkdir()
    make(tmp_path / "out" / "0.png")
    refused("sample", run, "-n", 1, "--out", tmp_path / "out", says=["0.png", "was not made by this command"])
    refused("inpaint", run, here, "--mask", bad, "--out", tmp_path / "new", says=["--mask", *says])
    refused("vary", run, bad, "--out", tmp_path / "new", says=says)
    tifffile.imwrite(tmp_path / "slide.tif", pixels(64, 64, 0), tile=(16, 16))
    for name in ("bad.geojson", "folder/bad.png"):
        options = ("--inpaint", tmp_path / "slide.tif", "--mask", tmp_path / name, "--out", tmp_path / "filled.tif")
        refused("slide", run, *options, says=["--mask", *says])
