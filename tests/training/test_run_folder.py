"""The run folder: what lies in it, who may write to it, and its log."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from run_helpers import TINY, ForkServer, contents, draw_images, snapshot, until

from morphogen.core.errors import InputError
from morphogen.core.images import METADATA_KEY
from morphogen.models import load_model
from morphogen.training.config import RunConfig
from morphogen.training.logs import Log, last_record
from morphogen.training.loop import Result, train
from morphogen.training.run_folder import RunFolder, read_run


def test_what_a_run_holds(trained: Callable[..., Result], config: Callable[..., RunConfig], tmp_path: Path) -> None:
    settings = {"steps": 6, "checkpoint_every": 4, "sample_every": 3, "sample_images": 3, "validate_every": 5}
    result = trained("run", "diffusion.timesteps=5", **settings)
    run = tmp_path / "run"
    names = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
    checkpoint = {"model.safetensors", "ema.safetensors", "optimizer.safetensors", "facts.json", "manifest.json"}
    wanted = {f"checkpoints/step-0000000{n}/{name}" for n in (4, 6) for name in checkpoint}
    wanted |= {"run.json", "split.json", "config.json", "model.safetensors", "metrics.jsonl", "README.md"}
    wanted |= {"samples/step-00000003.png", "samples/step-00000006.png"}
    assert names - {".lock"} == wanted
    assert read_run(run) == config("diffusion.timesteps=5", **settings)
    assert not {p.suffix for p in run.rglob("*")} & {".pt", ".pth", ".pkl", ".bin", ".ckpt"}  # no pickle anywhere

    with Image.open(run / "samples" / "step-00000006.png") as sheet:
        assert sheet.size == (2 * 16 + 2, 2 * 16 + 2)
        assert json.loads(sheet.info[METADATA_KEY]) == {"step": 6, "seeds": [0, 1, 2]}

    model = load_model(run)
    assert model.family == "diff-nca"
    card = (run / "README.md").read_text()
    for fact in ("diff-nca-small", f"{model.parameter_count():,} parameters", "16x16", "after 6 steps of 4 images"):
        assert fact in card
    for fact in ("- images: 10", "- bad: 0", "80/10/10 by image", "fingerprint: ", "seed 0", "licence"):
        assert fact in card
    assert f"{result.loss:.4f}" in card
    assert f"{result.noise_error:.4f}" in card


def test_sheets_come_when_asked_for_whatever_the_checkpoints_do(trained: Callable[..., Result], tmp_path: Path) -> None:
    trained("run", "diffusion.timesteps=4", steps=5, sample_every=2, sample_images=1, checkpoint_every=100)
    names = sorted(p.name for p in (tmp_path / "run" / "samples").iterdir())
    assert names == ["step-00000002.png", "step-00000004.png", "step-00000005.png"]


def test_the_model_in_the_folder_is_the_average(trained: Callable[..., Result], tmp_path: Path) -> None:
    trained("run", steps=5)
    found = contents(tmp_path / "run")
    assert found["model.safetensors"] == found["checkpoint's ema.safetensors"]
    assert found["model.safetensors"] != found["checkpoint's model.safetensors"]


def test_two_processes_never_train_into_one_folder(forks: ForkServer, images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ("train", images, *TINY, "--steps", 100_000, "--out", run)
    first = forks.start(*options)
    try:
        until(lambda: (run / "metrics.jsonl").exists() or (first.err and pytest.fail(first.err)))
        second = forks.run(*options)
        assert second.code == 2
        assert second.err == f"morphogen: another process is training into {run}; wait for it or name another folder\n"
    finally:
        assert first.kill() == -9
    third = forks.run("train", images, *TINY, "--steps", 1, "--out", run)  # the lock died with its owner
    assert third.code == 0, third.err


def test_two_trainings_in_one_process(trained: Callable[..., Result], tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run").locked(True), pytest.raises(InputError, match="another process is training into"):
        trained("run", steps=1)
    assert trained("run", steps=1).step == 1


def test_trainings_of_different_precision_one_after_the_other(trained: Callable[..., Result], tmp_path: Path) -> None:
    first = trained("a", steps=2)
    other = trained("b", steps=2, precision="bfloat16")
    again = trained("c", steps=2)
    assert again.loss == first.loss
    # bfloat16 has 8 bits: three digits at most agree.
    assert other.loss != first.loss
    assert other.loss == pytest.approx(first.loss, rel=0.05)


@pytest.mark.parametrize("name", [f"{k:02d}.png" for k in range(12)])
def test_a_broken_image_in_any_part_is_named_and_skipped(
    config: Callable[..., RunConfig],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    source = draw_images(tmp_path / "images")
    (source / name).write_bytes((source / name).read_bytes()[:100])
    resolved = config("training.saving.validate_every=1", source=source, steps=1)
    assert train(resolved, tmp_path / "run").step == 1
    said = capsys.readouterr().err
    parts = {part: set(names) for part, names in parts_of(resolved).items()}
    if name in parts["test"]:  # which training doesn't look at
        assert name not in said
    else:
        assert f"{name}: the file is truncated" in said
    assert ("- bad: 1" in (tmp_path / "run" / "README.md").read_text()) == (name in parts["train"])


def parts_of(config: RunConfig) -> dict[str, list[str]]:
    from morphogen.data.sources import open_source
    from morphogen.data.splits import assign_parts

    source = open_source(config.data)
    parts, *_ = assign_parts(config.data, source)
    found: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for record, part in zip(source.records, parts, strict=True):
        found[part].append(record.name)
    return found


def test_half_written_files_are_swept_up(trained: Callable[..., Result], tmp_path: Path) -> None:
    run = tmp_path / "run"
    trained("run", steps=2)
    leftovers = [run / ".model.safetensors-ab12", run / ".README.md-x_y", run / "samples" / ".step-00000002.png-q"]
    own = [run / ".notes-of-mine", run / ".keep"]
    for path in (*leftovers, *own):
        path.write_text("half")
    trained("run", steps=3)
    assert not any(path.exists() for path in leftovers)
    assert all(path.exists() for path in own)


# --- refusals ---


def test_a_file_or_a_foreign_folder_is_refused(trained: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="is a file; name a folder"):
        trained("file", steps=1)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match="holds other files and no run"):
        trained("full", steps=1)
    with pytest.raises(InputError, match="cannot be written"):
        trained("file/below", steps=1)
    with pytest.raises(InputError, match="cannot be written"):
        trained("n" * 300, steps=1)
    assert snapshot(tmp_path) == before


def test_a_damaged_run_json_is_named(trained: Callable[..., Result], tmp_path: Path) -> None:
    trained("run", steps=1)
    (tmp_path / "run" / "run.json").write_text('{"model": ')
    before = snapshot(tmp_path / "run")
    with pytest.raises(InputError, match=r"run\.json is not valid JSON"):
        trained("run", steps=2)
    assert snapshot(tmp_path / "run") == before


# --- the log ---


@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.integers(0, 30))
def test_a_log_is_cut_back_to_what_a_checkpoint_knew(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[int], last: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    log = Log(path)
    for number in sorted(numbers):
        log.write({"step": number})
    assert path.stat().st_size == log.length
    path.write_bytes(path.read_bytes() + b'{"step": 1')  # half a line of an interrupted write
    again = Log(path, last)
    assert again.what_is_gone(again.length) is None
    again.write({"step": -1})
    kept = [number for number in sorted(numbers) if number <= last]
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [*kept, -1]


def test_the_last_record(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    assert last_record(path) is None
    path.write_text("")
    assert last_record(path) is None
    path.write_text('{"step": 1')
    assert last_record(path) is None
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert last_record(path) == {"step": 2}
    path.write_text("".join(f'{{"step": {k}}}\n' for k in range(5000)))
    assert last_record(path) == {"step": 4999}


def test_a_refused_start_leaves_nothing(trained: Callable[..., Result], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        trained("new", "data.source=nowhere", steps=1)
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    with pytest.raises(InputError, match="does not exist"):
        trained("old", "data.source=nowhere", steps=1)
    assert list((tmp_path / "old").iterdir()) == []


# --- the split ---


def test_the_run_keeps_its_split_and_the_split_can_be_given_again(
    trained: Callable[..., Result], config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    trained("run", steps=1)
    kept = tmp_path / "run" / "split.json"
    parts = parts_of(config())
    assert {part: sorted(names) for part, names in parts.items()} == {
        part: sorted(n for n, p in json.loads(kept.read_text())["assignment"].items() if p == part) for part in parts
    }
    assert parts_of(config(f"data.split={kept}")) == parts


def test_a_resumed_run_refuses_an_image_that_has_changed_its_part(
    trained: Callable[..., Result], tmp_path: Path
) -> None:
    trained("run", steps=1)
    split = json.loads((tmp_path / "run" / "split.json").read_text())
    parts = split["assignment"]
    held_out = next(name for name, part in parts.items() if part == "test")
    parts[held_out] = "val"
    other = tmp_path / "other.json"
    other.write_text(json.dumps(split))
    with pytest.raises(InputError, match="are not those that"):
        trained("run", f"data.split={other}", steps=2)


def test_the_timing_log_is_cut_back_to_the_checkpoint(trained: Callable[..., Result], tmp_path: Path) -> None:
    trained("run", steps=100)
    log = tmp_path / "run" / "timing.jsonl"
    with log.open("a") as file:  # what a killed run had written after its last checkpoint
        file.write('{"step": 150, "elapsed_s": 9.0}\n{"step": 200, "elap')
    trained("run", steps=150)
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [50, 100, 150]


def test_a_readme_that_the_user_wrote_or_edited_stays(trained: Callable[..., Result], tmp_path: Path) -> None:
    trained("run", steps=1)
    card = tmp_path / "run" / "README.md"
    trained("run", steps=2)
    assert "after 2 steps" in card.read_text()
    assert card.read_text().splitlines()[2] == "library_name: morphogen", "a header that the hub reads"
    mine = card.read_text().replace("and should state here", "and states here: CC BY 4.0")
    for text in (mine, "what I found with this model"):
        card.write_text(text)
        trained("run", steps=3)
        assert card.read_text() == text
    card.unlink()
    trained("run", steps=4)
    assert "after 4 steps" in card.read_text()
