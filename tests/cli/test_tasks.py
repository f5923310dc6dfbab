"""`morphogen inpaint`, `upscale` and `vary`: files, kinds, folders, skipping what is done, and refusals."""

from __future__ import annotations

import json
import re
import shutil
import signal
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms
from run_helpers import ForkServer, Outcome, RealCommand, pixels, snapshot, until

import morphogen
from morphogen._version import VERSION
from morphogen.core.images import METADATA_KEY, save_png
from morphogen.models import create_model

Cli = Callable[..., Outcome]
Refused = Callable[..., str]
TASKS: dict[str, tuple[str, ...]] = {
    "inpaint": ("--box", "2,3,4,5"),
    "upscale": ("--scheme", "published"),
    "vary": (),
}
BOX = np.zeros((15, 18), bool)
BOX[2:6, 3:8] = True


def array(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def metadata(path: Path) -> dict[str, Any]:
    with Image.open(path) as image:
        return dict(json.loads(image.info[METADATA_KEY]))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """An image of 15x18."""
    Image.fromarray(pixels(15, 18, 5)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images of several sizes and kinds, one in a sub-folder, two with one stem, and a file that is none."""
    found = tmp_path / "pictures"
    (found / "more").mkdir(parents=True)
    Image.fromarray(pixels(12, 14, 1)).save(found / "a.png")
    Image.fromarray(pixels(12, 14, 2)).save(found / "a.bmp")
    Image.fromarray(pixels(9, 11, 3)).convert("L").save(found / "gray.png")
    Image.fromarray(np.dstack([pixels(12, 14, 4), pixels(12, 14, 5)[..., 0]])).save(found / "clear.png")
    Image.fromarray(pixels(12, 14, 6)).save(found / "more" / "b.jpg")
    (found / "notes.txt").write_text("no image")
    return found


def test_inpaint(cli: Cli, run: Path, photo: Path, tmp_path: Path) -> None:
    before = snapshot(run)
    ended = cli("inpaint", run, photo, "--box", "2,3,4,5", "-n", 3, "--seed", 7, "--out", tmp_path / "out")
    assert ended == Outcome(0, f"3 images in {tmp_path / 'out'}\n", "")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"photo-7.png", "photo-8.png", "photo-9.png"}
    original, results = array(photo), [array(tmp_path / "out" / f"photo-{k}.png") for k in (7, 8, 9)]
    for result in results:
        np.testing.assert_array_equal(result[~BOX], original[~BOX])
        assert (result[BOX] != original[BOX]).mean() > 0.5
    assert (results[0] != results[1]).any()
    wanted = {"task": "inpainting", "model": run.name, "seed": 7, "boxes": [[2, 3, 4, 5]], "input": "photo.png"}
    settings = {"sampler": "ddpm", "sampling_steps": 10, "context": None, "resample": 1, "morphogen": VERSION}
    assert metadata(tmp_path / "out" / "photo-7.png").items() >= {**wanted, **settings}.items()
    assert snapshot(run) == before


def test_masks_boxes_and_transparency_mean_the_same(cli: Cli, run: Path, photo: Path, tmp_path: Path) -> None:
    original = array(photo)
    Image.fromarray(BOX).save(tmp_path / "mask.png")
    clear = np.dstack([original, np.where(BOX, 0, 255).astype(np.uint8)])
    (tmp_path / "rgba").mkdir()
    Image.fromarray(clear).save(tmp_path / "rgba" / "photo.png")
    given = {
        "box": (photo, "--box", "2,3,4,5"),
        "boxes": (photo, "--box", "2,3,2,5", "--box", " 4, 3,2,5"),
        "mask": (photo, "--mask", tmp_path / "mask.png"),
        "both": (photo, "--mask", tmp_path / "mask.png", "--box", "3,4,1,1"),
        "alpha": (tmp_path / "rgba" / "photo.png",),
    }
    for name, arguments in given.items():
        assert cli("inpaint", run, *arguments, "--out", tmp_path / name).code == 0
    filled = array(tmp_path / "box" / "photo.png")
    for name in ("boxes", "mask", "both"):
        np.testing.assert_array_equal(array(tmp_path / name / "photo.png"), filled)
    assert array(tmp_path / "alpha" / "photo.png").shape == (15, 18, 4)
    np.testing.assert_array_equal(array(tmp_path / "alpha" / "photo.png")[..., :3], filled)
    assert (array(tmp_path / "alpha" / "photo.png")[..., 3] == 255).all()


def test_label_masks_profiles_and_resolutions(cli: Cli, refused: Refused, run: Path, tmp_path: Path) -> None:
    """What other programs save: labels instead of white, a colour profile, dots an inch."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes().replace(b"sRGB", b"mine")
    image, labels = tmp_path / "photo.png", tmp_path / "labels.png"
    Image.fromarray(pixels(15, 18, 5)).save(image, icc_profile=profile, dpi=(300, 300))
    Image.fromarray(np.where(BOX, 3, 1).astype(np.uint8)).save(labels)
    says = refused("inpaint", run, image, "--mask", labels, "--out", tmp_path / "out")
    assert "its highest value is 3 of 255" in says and "--mask-value 3" in says
    cli("inpaint", run, image, "--mask", labels, "--mask-value", 3, "--out", tmp_path / "out")
    result = array(tmp_path / "out" / "photo.png")
    assert (result == array(image))[~BOX].all() and not (result == array(image))[BOX].all()
    assert metadata(tmp_path / "out" / "photo.png")["mask_value"] == 3
    for task in ("upscale", "vary"):
        cli(task, run, image, "--out", tmp_path / task)
    for folder in ("out", "upscale", "vary"):
        with Image.open(tmp_path / folder / "photo.png") as shown:
            assert shown.info["icc_profile"] == profile and shown.info["dpi"] == pytest.approx((300, 300), abs=0.01)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_upscale(cli: Cli, run: Path, photo: Path, tmp_path: Path, factor: int) -> None:
    options = ("--scheme", "published", "--noise", 0.8, "--blend", 0.1, "--sampling-steps", 3)
    assert cli("upscale", run, photo, "--factor", factor, "--out", tmp_path / "out", *options).code == 0
    result = array(tmp_path / "out" / "photo.png")
    assert result.shape == (15 * factor, 18 * factor, 3)
    np.testing.assert_array_equal(result[::factor, ::factor], array(photo))
    said = metadata(tmp_path / "out" / "photo.png")
    assert said.items() >= {"factor": factor, "noise": 0.8, "blend": 0.1, "sampling_steps": 3}.items()


def test_vary(cli: Cli, run: Path, photo: Path, tmp_path: Path) -> None:
    original, far = array(photo).astype(int), []
    for strength in (0, 0.2, 1):
        assert cli("vary", run, photo, "--strength", strength, "--out", tmp_path / f"s{strength}").code == 0
        far.append(np.abs(array(tmp_path / f"s{strength}" / "photo.png") - original).mean())
    assert far[0] == 0 and far[0] < far[1] < far[2]


@pytest.mark.slow
def test_the_command_and_the_pipeline_agree(cli: Cli, run: Path, photo: Path, tmp_path: Path) -> None:
    pipeline = morphogen.Pipeline.from_pretrained(run)
    with Image.open(photo) as image:
        image.load()
    made = {
        "inpaint": pipeline.inpaint(image, BOX, seeds=[4]).images[0],
        "upscale": pipeline.upscale(image, scheme="published", seeds=[4]).images[0],
        "vary": pipeline.vary(image, seeds=[4]).images[0],
    }
    for task, options in TASKS.items():
        assert cli(task, run, photo, "--seed", 4, "--out", tmp_path / task, *options).code == 0
        np.testing.assert_array_equal(np.asarray(made[task]), array(tmp_path / task / "photo.png"))


@pytest.mark.parametrize("task", TASKS)
def test_a_folder(cli: Cli, run: Path, folder: Path, tmp_path: Path, task: str) -> None:
    before, out = snapshot(folder), tmp_path / "out"
    ended = cli(task, run, folder, "--out", out, *TASKS[task], "--json")
    assert ended.code == 0 and ended.err == ""
    names = {"a-png.png", "a-bmp.png", "gray.png", "clear.png", "more/b.png"}
    assert {p.relative_to(out).as_posix() for p in out.rglob("*.png")} == names
    said = json.loads(ended.out)
    assert {(Path(r["output"]).relative_to(out).as_posix(), r["seed"], r["skipped"]) for r in said} == {
        (name, 0, False) for name in names
    }
    factor = 2 if task == "upscale" else 1
    assert array(out / "gray.png").shape == (9 * factor, 11 * factor)
    assert array(out / "clear.png").shape == (12 * factor, 14 * factor, 4)
    np.testing.assert_array_equal(array(out / "clear.png")[::factor, ::factor, 3], array(folder / "clear.png")[..., 3])
    assert snapshot(folder) == before
    # Alone, each is the same, but for the order of sums in a batch.
    assert cli(task, run, folder / "a.bmp", "--out", tmp_path / "alone", *TASKS[task]).code == 0
    difference = array(tmp_path / "alone" / "a.png").astype(int) - array(out / "a-bmp.png")
    assert np.abs(difference).max() <= 1


def test_what_is_done_is_skipped(cli: Cli, refused: Refused, run: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    vary = ("vary", run, folder, "--out", out)
    assert cli(*vary).code == 0
    before = snapshot(out)
    assert cli(*vary).out == f"5 images in {out} (5 were there already)\n"
    assert snapshot(out) == before
    (out / "gray.png").unlink()
    ended = json.loads(cli(*vary, "--json").out)
    assert [Path(r["input"]).name for r in ended if not r["skipped"]] == ["gray.png"]
    after = snapshot(out)
    assert {k: v[0] for k, v in after.items() if isinstance(v, tuple)} == {
        k: v[0] for k, v in before.items() if isinstance(v, tuple)
    }
    line = refused(*vary, "--strength", 0.5, says=["strength was 0.4, is 0.5", "--overwrite"], keeps=[out])
    assert str(out) in line
    vary = (*vary, "--strength", 0.5, "--overwrite")
    assert "already" not in cli(*vary).out, "other settings are another picture"
    assert "(5 were there already)" in cli(*vary).out
    Image.fromarray(pixels(12, 14, 9)).save(folder / "a.bmp")
    vary = vary[:-1]
    assert "(4 were there already)" in cli(*vary).out, "another image of the same name is done, without being told"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_and_resumed(forks: ForkServer, run: Path, images: Path, tmp_path: Path, how: int) -> None:
    """Killed in the middle, it leaves whole images only, keeps them, and ends in what an undisturbed run gives."""
    args = ("--batch-size", 1, "-n", 8, "--strength", 0.9)
    out = tmp_path / "out"
    process = forks.start("vary", run, images, "--out", out, *args)
    until(lambda: len(list(out.glob("*.png"))) >= 5)
    process.send(how)
    code = process.wait()
    done = {p: p.stat().st_mtime_ns for p in out.glob("*.png")}
    assert 5 <= len(done) < 96
    if how == signal.SIGINT:
        assert code == 3
        assert process.err.splitlines()[-1] == "morphogen: interrupted; what was finished is kept"
    for path in done:
        assert array(path).shape == (20, 20, 3)
    ended = forks.run("vary", run, images, "--out", out, *args)
    assert ended.code == 0 and f"({len(done)} were there already)" in ended.out
    assert all(path.stat().st_mtime_ns == then for path, then in done.items())
    assert forks.run("vary", run, images, "--out", tmp_path / "whole", *args).code == 0
    for path in (tmp_path / "whole").glob("*.png"):
        assert path.read_bytes() == (out / path.name).read_bytes()
    assert len(list(out.glob("*.png"))) == 96


@pytest.mark.parametrize("task", TASKS)
def test_film(cli: Cli, run: Path, photo: Path, tmp_path: Path, task: str) -> None:
    film = (task, run, photo, "--film", "-n", 2, "--out", tmp_path / "out", *TASKS[task])
    assert cli(*film).code == 0
    for seed in (0, 1):
        with Image.open(tmp_path / "out" / f"photo-{seed}.webp") as shown:
            assert shown.n_frames == {"inpaint": 10, "upscale": 9, "vary": 4}[task]
            assert shown.size == ((36, 30) if task == "upscale" else (18, 15))
    assert "(2 were there already)" in cli(*film).out
    (tmp_path / "out" / "photo-1.webp").unlink()
    assert "(1 were there already)" in cli(*film).out


def test_a_mask_for_each_image(cli: Cli, refused: Refused, run: Path, folder: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    shutil.copytree(folder, masks)
    for path in [p for p in masks.rglob("*") if p.suffix in (".png", ".bmp", ".jpg")]:
        with Image.open(path) as image:
            size = image.size
        mask = Image.new("L", size)
        mask.paste(255, (1, 2, 3, 4))
        mask.save(path)
    assert cli("inpaint", run, folder, "--mask", masks, "--out", tmp_path / "out").code == 0
    same = array(tmp_path / "out" / "gray.png") == array(folder / "gray.png")
    assert same[4:].all() and same[:, 4:].all() and not same[2:4, 1:3].all()
    with Image.open(masks / "more" / "b.jpg") as mask:
        mask.save(masks / "more" / "b.png")
    (masks / "more" / "b.jpg").unlink()
    assert cli("inpaint", run, folder / "more", "--mask", masks / "more", "--out", tmp_path / "png").code == 0
    (masks / "gray.png").unlink()
    out = tmp_path / "other"
    refused("inpaint", run, folder, "--mask", masks, "--out", out, says=["--mask", "gray.png does not exist"])
    assert not out.exists(), "all is checked before anything is painted"


@pytest.mark.parametrize("kind", ["jpg", "gif", "tiff", "16 bits", "turned", "palette"])
def test_files_of_many_kinds(cli: Cli, run: Path, tmp_path: Path, kind: str) -> None:
    image, path = Image.fromarray(pixels(12, 14, 1)), tmp_path / f"in.{kind if len(kind) < 5 else 'png'}"
    exif = Image.Exif()
    exif[0x0112] = 6
    if kind == "16 bits":
        image = Image.fromarray(pixels(12, 14, 1)[..., 0].astype(np.uint16) * 250)
    elif kind == "palette":
        image = image.convert("P")
    image.save(path, **({"exif": exif} if kind == "turned" else {}))
    assert cli("inpaint", run, path, "--box", "0,0,2,3", "--out", tmp_path / "out").code == 0
    result = array(tmp_path / "out" / "in.png")
    if kind == "turned":
        assert result.shape == (14, 12, 3)
        np.testing.assert_array_equal(result[2:], np.rot90(np.asarray(image), -1)[2:])
    else:
        with Image.open(path) as read:
            wanted = np.asarray(read if kind == "16 bits" else read.convert("RGB"))
        assert result.dtype == wanted.dtype
        np.testing.assert_array_equal(result[2:], wanted[2:])


def test_no_result_takes_the_place_of_an_image_given(cli: Cli, refused: Refused, run: Path, tmp_path: Path) -> None:
    """Not even of one that Morphogen made, nor does a film of one, or of a stranger's."""
    out = tmp_path / "made"
    assert cli("sample", run, "-n", 1, "--size", "12x14", "--out", out).code == 0
    refused("vary", run, out / "0.png", "--out", out, says=["would replace", "0.png"], keeps=[out])
    Image.fromarray(pixels(12, 14, 1)).save(out / "film.webp")
    refused("vary", run, out / "film.webp", "--film", "--out", out, says=["would replace", "film.webp"], keeps=[out])
    Image.fromarray(pixels(12, 14, 1)).save(out / "film.jpg")
    says = ["film.webp is there and was not made by this command"]
    refused("vary", run, out / "film.jpg", "--film", "--out", out, says=says, keeps=[out])
    assert cli("vary", run, out / "film.jpg", "--out", out).code == 0


def test_results_in_the_folder_above_and_names_that_meet(cli: Cli, run: Path, tmp_path: Path) -> None:
    """The results of a.png, a.bmp and a-png.jpg are three, and lie where --out says, above the images too."""
    (folder := tmp_path / "pictures").mkdir()
    for name in ("a.png", "a.bmp", "a-png.jpg"):
        Image.fromarray(pixels(12, 14, 1)).save(folder / name)
    ended = cli("vary", run, folder, "--out", tmp_path)
    assert ended.code == 0, ended.err
    assert {p.name for p in tmp_path.glob("*.png")} == {"a.png.png", "a-bmp.png", "a-png.png"}
    assert "(3 were there already)" in cli("vary", run, folder, "--out", tmp_path).out


def test_what_cannot_be_written_is_said_before_painting(
    refused: Refused, run: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("morphogen.tasks.batch.change", lambda *_, **__: pytest.fail("it painted"))
    refused("vary", run, photo, "--out", photo / "below", says=["--out", "cannot be written"], keeps=[tmp_path])


@pytest.mark.parametrize("kind", ["png", "png with alpha", "tif", "ppm"])
def test_colours_of_16_bits_are_refused_not_cut(refused: Refused, run: Path, tmp_path: Path, kind: str) -> None:
    """Pillow reads them as 8 bits, so that known pixels could not come out as they were."""
    wide = pixels(12, 14, 1).astype(">u2") * 250 + 7
    path = tmp_path / f"in.{kind[:3]}"
    if kind == "tif":
        tifffile.imwrite(path, wide.astype(np.uint16), photometric="rgb")
    elif kind == "ppm":
        path.write_bytes(b"P6 14 12 65535\n" + wide.tobytes())
    else:
        alpha = kind.endswith("alpha")
        planes = np.dstack([wide, np.full((12, 14), 65535, ">u2")]) if alpha else wide
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in planes)
        parts = (
            (b"IHDR", struct.pack(">IIBBBBB", 14, 12, 16, 6 if alpha else 2, 0, 0, 0)),
            (b"IDAT", zlib.compress(rows)),
        )
        chunks = [
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
            for name, body in (*parts, (b"IEND", b""))
        ]
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    says = [f"in.{kind[:3]}", "more than 8 bits", "save it with 8 bits"]
    for task, options in TASKS.items():
        refused(task, run, path, "--out", tmp_path / "out", *options, says=says, keeps=[tmp_path])


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("inpaint",), ["--mask", "--box", "no transparent pixels"]),
        (("inpaint", "--box", "0,0,16,1"), ["--box 0,0,16,1", "outside", "15x18"]),
        (("inpaint", "--box", "0,18,1,1"), ["--box 0,18,1,1", "outside"]),
        (("inpaint", "--box", "0,0,0,4"), ["--box 0,0,0,4", "at least 1"]),
        (("inpaint", "--box", "1,2,3"), ["--box 1,2,3", "Y,X,HEIGHT,WIDTH"]),
        (("inpaint", "--box", "-1,0,2,2"), ["--box -1,0,2,2"]),
        (("inpaint", "--box", "0,0,15,18"), ["--box", "every pixel"]),
        (("inpaint", "--mask", "nowhere.png"), ["--mask nowhere.png does not exist"]),
        (("inpaint", "--mask", "small.png"), ["--mask small.png is 4x4", "15x18"]),
        (("inpaint", "--mask", "black.png"), ["--mask black.png is empty"]),
        (("inpaint", "--mask", "white.png"), ["--mask white.png marks every pixel"]),
        (("inpaint", "--mask", "notes.txt"), ["--mask notes.txt", "not an image"]),
        (("inpaint", "--mask", "."), ["--mask . is a folder"]),
        (("inpaint", "--box", "0,0,1,1", "--context", "-1"), ["--context"]),
        (("inpaint", "--box", "0,0,1,1", "--resample", "0"), ["--resample"]),
        (("upscale", "--factor", "9"), ["--factor 9", "from 2 to 8"]),
        (("upscale", "--scheme", "published", "--factor", "3"), ["the factor is 3", "2, 4 or 8"]),
        (("upscale", "--scheme", "trained"), ["no level is told a picture", "--scheme projection"]),
        (("upscale", "--scheme", "best"), ["--scheme best", "auto, trained, projection, published"]),
        (("upscale", "--input", "mean"), ["--input mean", "area, sample"]),
        (("upscale", "--blend", "0.5"), ["--blend, --clean and --added-only are of --scheme published"]),
        (("upscale", "--scheme", "published", "--mean", "2"), ["--mean and --input are not of the published scheme"]),
        (("upscale", "--factor", "0"), ["--factor 0"]),
        (("upscale", "--noise", "1.5"), ["--noise 1.5", "between 0 and 1"]),
        (("upscale", "--blend", "-1"), ["--blend -1", "between 0 and 1"]),
        (("vary", "--strength", "1.01"), ["--strength 1.01", "between 0 and 1"]),
        (("vary", "--strength", "-0.5"), ["--strength -0.5", "between 0 and 1"]),
        (("vary", "--strength", "nan"), ["--strength nan", "between 0 and 1"]),
        (("vary", "--sampler", "magic"), ["there is no sampler 'magic'"]),
        (("vary", "--sampling-steps", "11"), ["sampling steps is 11", "1 to 10"]),
        (("vary", "--device", "tpu"), ["--device tpu"]),
        (("vary", "--precision", "int8"), ["--precision int8"]),
        (("vary", "--positions", "stretch"), ["--positions stretch", "diff-nca"]),
        (("vary", "--seed", str(2**64)), ["seed"]),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, tuple) else "",
)
def test_wrong_use(
    refused: Refused,
    run: Path,
    photo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    says: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("L", (4, 4), 255).save("small.png")
    Image.new("L", (18, 15), 0).save("black.png")
    Image.new("L", (18, 15), 255).save("white.png")
    Path("notes.txt").write_text("text")
    refused(arguments[0], run, photo, "--out", "out", *arguments[1:], says=says, keeps=[run, tmp_path])


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_wrong_images(refused: Refused, run: Path, photo: Path, tmp_path: Path, task: str) -> None:
    out, options = tmp_path / "out", TASKS[task]
    (empty := tmp_path / "empty").mkdir()
    refused(task, run, empty, "--out", out, *options, says=[f"the folder {empty} holds no images"])
    refused(task, run, tmp_path / "nothing.png", "--out", out, *options, says=["nothing.png does not exist"])
    (empty / "bad.png").write_bytes(photo.read_bytes()[:200])
    Image.fromarray(pixels(15, 18, 1)).save(empty / "a.png")
    refused(task, run, empty, "--out", out, *options, says=["bad.png"])
    (empty / "bad.png").unlink()
    Image.new("RGB", (9, 1)).save(empty / "flat.png")
    refused(task, run, empty, "--out", out, *options, says=["flat.png"])
    assert not out.exists(), "all is checked before anything is painted"
    refused(task, run, photo, "--out", photo, *options, says=["is a file"])
    refused(task, run, empty, "--out", empty, *options, says=["--out", "the folder of the images"])
    refused(task, "diff-nca", photo, "--out", out, *options, says=["untrained model"])


@pytest.mark.parametrize("task", TASKS)
def test_foreign_files_stay(refused: Refused, run: Path, photo: Path, tmp_path: Path, task: str) -> None:
    (out := tmp_path / "out").mkdir()
    Image.fromarray(pixels(15, 18, 6)).save(out / "photo.png")
    refused(
        task,
        run,
        photo,
        "--out",
        out,
        *TASKS[task],
        says=["photo.png is there", "was not made by this command"],
        keeps=[tmp_path],
    )


@pytest.mark.parametrize("task", TASKS)
def test_a_model_that_predicts_no_noise(
    refused: Refused, run: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    monkeypatch.setattr("morphogen.automata.diff_nca.DiffNCA.predicts_noise", False)
    refused(task, run, photo, "--out", tmp_path / "out", *TASKS[task], says=["diff-nca predicts no noise"])


def test_ctrl_c_in_the_real_command(command: RealCommand, run: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    args = ("--box", "1,1,9,9", "-n", 10_000, "--batch-size", 1)
    process = command.start("inpaint", run, images, "--out", out, *args)
    until(lambda: out.exists() and any(out.glob("*.png")), seconds=180)  # a busy machine takes long to start it
    process.send(signal.SIGINT)
    assert process.wait() == 3
    assert "Traceback" not in process.err
    assert not [p for p in out.iterdir() if p.name.startswith(".")]


@pytest.mark.slow
def test_a_fourier_model_at_other_sizes(cli: Cli, refused: Refused, tmp_path: Path) -> None:
    """Its options matter only at sizes other than the training size, and too small images are refused by name."""
    small: dict[str, Any] = {"channels": 8, "hidden": 16, "nca_steps": 2, "diffusion": {"timesteps": 5}}
    create_model("fourier-diff-nca-small", size=32, **small).save_pretrained(tmp_path / "model")
    made: dict[tuple[str, str], np.ndarray] = {}
    for size in ("32", "40x36"):
        for name, options in {
            "published": ("--positions", "stretch", "--spectrum", "forward"),
            "continue": ("--positions", "continue"),
            "ortho": ("--spectrum", "ortho"),
            "plain": (),
        }.items():
            out = tmp_path / size / name
            assert cli("sample", tmp_path / "model", "-n", 1, "--size", size, "--out", out, *options).code == 0
            made[size, name] = array(out / "0.png")
    for name in ("continue", "ortho", "plain"):
        np.testing.assert_array_equal(made["32", name], made["32", "published"])
    np.testing.assert_array_equal(made["40x36", "plain"], made["40x36", "published"])
    for name in ("continue", "ortho"):
        assert (made["40x36", name] != made["40x36", "plain"]).any()
    save_png(tmp_path / "tiny.png", Image.new("RGB", (40, 31)))
    says = ["tiny.png is too small, 31x40", "at least 32"]
    refused("vary", tmp_path / "model", tmp_path / "tiny.png", "--out", tmp_path / "out", says=says)
    says = ["--spectrum loud", "'forward' or 'ortho'"]
    refused("sample", tmp_path / "model", "--spectrum", "loud", "--out", tmp_path / "out", says=says)


def test_what_a_large_picture_takes_is_said_beforehand(
    cli: Cli, run: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("morphogen.tasks.batch.LARGE_PIXELS", 200)
    monkeypatch.setattr("morphogen.core.notices._said", set())
    for task, options in TASKS.items():
        ended = cli(task, run, photo, "-n", 2, "--out", tmp_path / task, *options)
        assert re.fullmatch(r"2 pictures of 15x18: about \d+ s and 0\.0 GB of memory\n", ended.err), task
        assert cli(task, run, photo, "-n", 2, "--out", tmp_path / task, *options).err == "", "nothing is left to do"
        monkeypatch.setattr("morphogen.core.notices._said", set())


@pytest.mark.parametrize("task", TASKS)
def test_labels(cli: Cli, refused: Refused, run: Path, photo: Path, tmp_path: Path, task: str) -> None:
    settings: dict[str, Any] = {"width": 16, "heads": 2, "mlp": 8, "hidden": 4, "nca_steps": 2}
    model = create_model("geca-xs", size=8, labels=("cat", "dog"), diffusion={"timesteps": 5}, **settings)
    generator = torch.Generator().manual_seed(2)
    for weight in model.parameters():
        weight.data = 0.1 * torch.randn(weight.shape, generator=generator)
    model.save_pretrained(tmp_path / "model")
    asked = (task, tmp_path / "model", photo, *TASKS[task])
    made = {}
    for name, options in {
        "none": (),
        "cat": ("--label", "cat"),
        "dog": ("--label", "dog"),
        "more": ("--label", "cat", "--guidance", 3),
    }.items():
        assert cli(*asked, *options, "--out", tmp_path / name).code == 0
        made[name] = array(tmp_path / name / "photo.png").tobytes()
    assert len(set(made.values())) == 4
    assert metadata(tmp_path / "more" / "photo.png").items() >= {"labels": ["cat"], "guidance": 3}.items()
    pipeline = morphogen.Pipeline.from_pretrained(tmp_path / "model")
    with Image.open(photo) as image:
        arguments = (image, BOX) if task == "inpaint" else (image,)
        more = {"scheme": "published"} if task == "upscale" else {}
        one = getattr(pipeline, task)(*arguments, seeds=0, labels="cat", guidance_scale=3.0, **more).images[0]
    assert np.asarray(one).tobytes() == made["more"]
    refused(*asked, "--label", "cow", "--out", tmp_path / "out", says=["no label 'cow'; known are cat, dog"])
    refused(*asked, "--guidance", 2, "--out", tmp_path / "out", says=["--guidance 2 needs labels"])
    refused(task, run, photo, *TASKS[task], "--label", "cat", "--out", tmp_path / "out", says=["takes no labels"])
