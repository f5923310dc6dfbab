"""SteppedTile slides: the untiled image whatever the tiles, the workers and the kills."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from run_helpers import ForkServer, Outcome, RealCommand, until
from slide_helpers import pixels, save_tiny, untiled

from morphogen.core.errors import InputError
from morphogen.core.model import LatentConfig
from morphogen.core.request import SamplingRequest
from morphogen.models import load_model
from morphogen.pyramids import formats
from morphogen.slides import executors
from morphogen.slides import render as render_module
from morphogen.slides.executors import GuardedWorker, InProcessExecutor, ProcessExecutor
from morphogen.slides.manifest import SlideManifest
from morphogen.slides.render import render
from morphogen.slides.request import SlideRequest
from morphogen.slides.schedule import work_folder
from morphogen.slides.tile_worker import TASK, SteppedTile, TileWorker, default_tile, overhead
from morphogen.tasks.checks import need_denoiser


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("slides") / "tiny")


class Shuffled(InProcessExecutor):
    """One that paints in another order, and each tile twice, as after the loss of a worker."""

    def __init__(self, folder: Path, order: np.random.Generator) -> None:
        super().__init__(folder)
        self._order = order

    def run(self, i: int, tiles: Sequence[int]) -> Iterator[tuple[int, SteppedTile]]:
        for index in self._order.permutation(tiles):
            self._worker.step(i, int(index))
            yield int(index), self._worker.step(i, int(index))


@pytest.mark.slow
@given(
    size=st.tuples(st.integers(2, 20), st.integers(2, 20)),
    tile=st.sampled_from([7, 8, 13, 31]),
    sampler=st.sampled_from(["ddpm", "ddim", "euler-a", "dpm++", "dpm++-sde", "unipc"]),
    seed=st.integers(0, 2**64 - 1),
)
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_fifty_timesteps_in_tiles_are_the_untiled_image(
    tiny: Path,
    tmp_path_factory: pytest.TempPathFactory,
    size: tuple[int, int],
    tile: int,
    sampler: str,
    seed: int,
) -> None:
    """Bit for bit, in any order of the tiles, after 50 timesteps."""
    out = tmp_path_factory.mktemp("exact") / "a.ome.zarr"
    order = np.random.default_rng(seed)
    request = SlideRequest(str(tiny), size, out, seed, SamplingRequest(sampler, 50), tile)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SlideRequest, "executor", lambda self, folder: Shuffled(folder, order))
        render(request)
    assert np.array_equal(pixels(out), untiled(tiny, seed, size, sampler, 50))
    assert not work_folder(out).exists()


@pytest.mark.parametrize("size", [(2, 1501), (401, 33)])
def test_odd_sizes(tiny: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    out = tmp_path / "a.ome.zarr"
    render(SlideRequest(str(tiny), size, out, 3, SamplingRequest("ddpm", 3), 97))
    assert np.array_equal(pixels(out), untiled(tiny, 3, size, "ddpm", 3))


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["ddpm", "dpm++"])
def test_workers_and_one_that_is_killed(tiny: Path, tmp_path: Path, sampler: str) -> None:
    """Two processes, one of them killed with a tile in hand: another takes its place, and nothing changes."""
    killed = []

    class Deadly(ProcessExecutor):
        def run(self, i: int, tiles: Sequence[int]) -> Iterator[tuple[int, SteppedTile]]:
            for number, done in enumerate(super().run(i, tiles)):
                if i == 1 and number == 2:
                    killed.append(self._workers[0][0].pid)
                    os.kill(killed[0], signal.SIGKILL)
                yield done

    out = tmp_path / "a.ome.zarr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SlideRequest, "executor", lambda self, folder: Deadly(folder, self.workers))
        render(SlideRequest(str(tiny), (60, 50), out, 4, SamplingRequest(sampler, 3), 13, workers=2))
    assert killed
    assert np.array_equal(pixels(out), untiled(tiny, 4, (60, 50), sampler, 3))


def contents(out: Path) -> dict[str, bytes]:
    files = out.rglob("*") if out.is_dir() else [out]
    return {str(p.relative_to(out)): p.read_bytes() for p in files if p.is_file()}


@pytest.mark.parametrize("suffix", [".ome.zarr", ".ome.tif"])
def test_killed_at_any_moment_it_goes_on(forks: ForkServer, tiny: Path, tmp_path: Path, suffix: str) -> None:
    """SIGKILL at moments all over the work, then the same command: the same bytes, and no tile painted twice for
    nothing.
    """

    def options(out: Path) -> tuple[object, ...]:
        rest = ("--size", "90x70", "--sampling-steps", 6, "--tile", 17, "--seed", 9, "--pixel-size", 0.5)
        return ("slide", tiny, "--out", out, *rest)

    there, out = tmp_path / "one" / f"a{suffix}", tmp_path / "two" / f"a{suffix}"
    assert forks.run(*options(there)).code == 0
    work, far = work_folder(out), 0
    for share in (0.05, 0.3, 0.55, 0.8, 0.97):
        process = forks.start(*options(out))
        until(lambda share=share: progress(work) >= share or out.exists())
        process.kill()
        if not out.exists():
            assert progress(work) >= far
            far = progress(work)
    outcome = forks.run(*options(out))
    assert outcome.code == 0, outcome.err
    assert contents(out) == contents(there)
    assert sorted(p.name for p in out.parent.iterdir()) == sorted(p.name for p in there.parent.iterdir())


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_is_one_line_and_goes_on(command: RealCommand, tiny: Path, tmp_path: Path, workers: int) -> None:
    out = tmp_path / "a.ome.zarr"
    options = ("slide", tiny, "--out", out, "--size", "90x70", "--sampling-steps", 6, "--tile", 17)
    process = command.start(*options, "--workers", workers)
    until(lambda: progress(work_folder(out)) > 0.1, 100)
    process.send(signal.SIGTERM)
    assert process.wait() == 3
    last = process.err.splitlines()[-1]
    assert (
        last
        == f"morphogen: stopped; what is painted is kept in {work_folder(out)}, and the same command goes on with it"
    )
    assert "Traceback" not in process.err
    assert progress(work_folder(out)) > 0.1
    assert command.run(*options).code == 0
    assert np.array_equal(pixels(out), untiled(tiny, 0, (90, 70), "dpm++", 6))


def progress(work: Path) -> float:
    """The share of a work's 30 tiles and 6 steps that are done."""
    try:
        return float(np.frombuffer((work / "progress").read_bytes(), "<u4")[::4].sum()) / 180
    except OSError:
        return 0.0


def test_a_killed_giver_of_orders_leaves_no_workers(command: RealCommand, tiny: Path, tmp_path: Path) -> None:
    """With worker processes too; those that were left end by themselves, and the same command gives the same image."""
    out = tmp_path / "a.ome.zarr"
    options = ("slide", tiny, "--out", out, "--size", "90x70", "--sampling-steps", 6, "--tile", 17, "--workers", 2)
    process = command.start(*options)
    until(lambda: progress(work_folder(out)) > 0.2, 100)
    process.kill()
    assert command.run(*options).code == 0
    assert np.array_equal(pixels(out), untiled(tiny, 0, (90, 70), "dpm++", 6))


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".ome.zarr", ".dzi"])
def test_killed_between_any_two_renames_and_removals_it_ends(tiny: Path, tmp_path: Path, suffix: str) -> None:
    """From the moment the file is written to the removal of the work: the same command ends with the same files."""

    def run(folder: Path, most: float = float("inf")) -> int:
        made: list[str] = []
        written = [False]

        def counted(function: Any) -> Any:
            def call(*given: Any, **options: Any) -> Any:
                if written[0] and len(made) >= most:
                    raise Killed
                made.extend([function.__name__] * written[0])
                return function(*given, **options)

            return call

        def write(*given: Any) -> None:
            original(*given)
            written[0] = True

        original = formats.write
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(formats, "write", write)
            for owner, name in ((Path, "replace"), (Path, "unlink"), (shutil, "rmtree")):
                patch.setattr(owner, name, counted(getattr(owner, name)))
            render(SlideRequest(str(tiny), (20, 30), folder / f"a{suffix}", 1, SamplingRequest("ddim", 1), 16))
        return len(made)

    (whole := tmp_path / "whole").mkdir()
    count = run(whole)
    assert count > 5
    for most in range(count):
        (folder := tmp_path / f"killed-{most}").mkdir()
        with pytest.raises(Killed):
            run(folder, most)
        run(folder)
        assert contents(folder) == contents(whole)


def test_names_of_the_work_are_free(tiny: Path, tmp_path: Path) -> None:
    """An output may be called what a file of the work is called."""
    out = tmp_path / "painted.ome.zarr"
    render(SlideRequest(str(tiny), (20, 30), out, 1, SamplingRequest("ddim", 1), 16))
    assert np.array_equal(pixels(out), untiled(tiny, 1, (20, 30), "ddim", 1))
    source, mask, filled = tmp_path / "b.zarr", tmp_path / "mask.png", tmp_path / "painted.zarr"
    shutil.copytree(out, source)
    marked = np.zeros((20, 30), np.uint8)
    marked[5:9, 5:9] = 255
    Image.fromarray(marked).save(mask)
    render(SlideRequest(str(tiny), (0, 0), filled, 2, source=source, mask=mask, sampling=SamplingRequest(steps=2)))
    assert ((pixels(filled) != pixels(source)).any(axis=2) <= (marked > 0)).all()
    assert (pixels(filled) != pixels(source)).any()


def test_a_part_of_an_output_is_not_there_already(tiny: Path, tmp_path: Path) -> None:
    request = SlideRequest(str(tiny), (20, 30), tmp_path / "a.dzi", 1, SamplingRequest("ddim", 1), 16)
    render(request)
    before = contents(tmp_path)
    request.out.unlink()
    assert render(request) == (request.out, True)
    assert contents(tmp_path) == before
    assert render(request) == (request.out, False)


def test_another_process_ends_while_this_one_starts(tiny: Path, tmp_path: Path) -> None:
    """Between the look at what there is and the lock: it is not painted once more."""
    request = SlideRequest(str(tiny), (20, 30), tmp_path / "a.dzi", 1, SamplingRequest("ddim", 1), 16)
    acquire, before = FileLock.acquire, dict[str, bytes]()

    def late(self: FileLock, *given: Any) -> Any:
        if not before:
            before["begun"] = b""
            assert render(request)[1]
            before.update(contents(tmp_path))
        return acquire(self, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileLock, "acquire", late)
        assert render(request) == (request.out, False)
    before.pop("begun")
    assert contents(tmp_path) == before


def test_a_full_disk(cli: Callable[..., Outcome], tiny: Path, tmp_path: Path) -> None:
    """Before the start it says what it needs; in the middle it stops with that, and goes on when there is room."""
    (disk := tmp_path / "disk").mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"cannot mount a small file system ({error}); only root can")
    try:
        out = disk / "a.ome.zarr"
        options = ("slide", tiny, "--out", out, "--sampling-steps", 4, "--tile", 64)
        outcome = cli(*options, "--size", 600)
        assert outcome.code == 2 and "takes 19.7 MB on the disk" in outcome.err and "more than is free" in outcome.err
        assert list(disk.iterdir()) == []
        original, taken = render_module.Preview.show, []

        def fill(self: object, *given: object) -> None:
            if not taken:  # someone else fills the disk once painting has begun
                taken.append(disk / "ballast")
                free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
                taken[0].write_bytes(bytes(free - 100_000))
            original(self, *given)  # type: ignore[arg-type]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(render_module.Preview, "show", fill)
            outcome = cli(*options, "--size", 150)
        assert outcome.code == 2
        assert "is full (No space left on device): the work needs 1.8 MB" in outcome.err
        taken[0].unlink()
        assert cli(*options, "--size", 150).code == 0
        assert np.array_equal(pixels(out), untiled(tiny, 0, (150, 150), "dpm++", 4))
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_again_and_with_other_settings(
    cli: Callable[..., Outcome], refused: Callable[..., str], tiny: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a.ome.tif"
    options = ("slide", tiny, "--size", "40x30", "--sampling-steps", 2, "--out", out)
    assert cli(*options).code == 0
    before = contents(out)
    assert "was there already" in cli(*options, "--workers", 2).out
    assert contents(out) == before
    refused(*options, "--seed", 1, says=["--seed (0 there, 1 now)", str(out)], keeps=[tmp_path])
    refused(*options, "--jpeg", 80, "--tile", 64, says=["--jpeg", "--tile"], keeps=[tmp_path])
    out.write_bytes(b"mine")
    refused(*options, says=[str(out), "not painted by Morphogen"], keeps=[tmp_path])


@pytest.mark.slow
def test_refusals(refused: Callable[..., str], tiny: Path, tmp_path: Path) -> None:
    def wrong(*given: object, says: Sequence[str], model: Path = tiny) -> None:
        named = {str(g) for g in given}
        rest = [] if "--size" in named else ["--size", 40]
        rest += [] if "--out" in named else ["--out", tmp_path / "a.ome.zarr"]
        refused("slide", model, *given, *rest, says=says, keeps=[tmp_path])

    wrong("--size", 1, says=["1x1", "at least 2"])
    wrong("--size", "1x500", says=["1x500", "at least 2"])
    for size in ("0x5x2", "12,5", "-3", "a", "9999999999999"):
        wrong(f"--size={size}", "--size", size, says=["--size"])
    wrong("--size", "5000000000", says=["5000000000", "at most"])
    wrong("--out", tmp_path / "a.png", says=["a.png", ".ome.zarr", ".ome.tif", ".dzi"])
    wrong("--out", tmp_path / ".dzi", says=[".dzi"])
    wrong("--tile", 0, says=["--tile 0", "between 1 and"])
    wrong("--workers", 0, says=["--workers"])
    wrong("--jpeg", 101, "--out", tmp_path / "a.dzi", says=["--jpeg 101"])
    wrong("--jpeg", 90, says=["--jpeg", "OME-Zarr"])
    for size in (0, 2_000_000):
        wrong("--pixel-size", size, says=["--pixel-size", "above 0 and below 1,000,000"])
    wrong("--sampler", "no", says=["no sampler 'no'"])
    wrong("--sampling-steps", 100_000, says=["sampling steps is 100000"])
    wrong(says=["no run folder"], model=tmp_path / "nothing")
    wrong(says=["group normalisation", "--approximate"], model=save_tiny(tmp_path / "group", norm="group"))
    (folder := work_folder(tmp_path / "b.ome.zarr")).mkdir()
    (folder / "letter.txt").write_text("dear")
    wrong("--out", tmp_path / "b.ome.zarr", says=["holds no work of Morphogen's"])


def test_latents_are_refused(tiny: Path) -> None:
    model = load_model(tiny)
    model.latents = LatentConfig.model_construct(autoencoder="somewhere", factor=8)
    with pytest.raises(InputError, match="latents"):
        need_denoiser(model, TASK, pixels=True)


def test_the_default_tile_costs_little() -> None:
    assert default_tile(10) == 256
    for halo in (1, 2, 10, 20, 40, 100):
        assert overhead(default_tile(halo), halo) < 0.15


def test_a_changed_model_is_noticed(tiny: Path, tmp_path: Path) -> None:
    """Its weights and its configuration, by whoever goes on and by each worker."""
    model, out = tmp_path / "model", tmp_path / "a.ome.zarr"
    shutil.copytree(tiny, model)
    request = SlideRequest(str(model), (40, 30), out, sampling=SamplingRequest(steps=2))

    def stop(*_: object) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(render_module.Preview, "show", stop)
        with pytest.raises(Killed):
            render(request)
    TileWorker(work_folder(out))
    for change, named in (
        (lambda: save_tiny(model, fire_rate=0.5), "the model's configuration"),
        (lambda: save_tiny(model, hidden=32), "the model's weights"),
    ):
        change()
        with pytest.raises(InputError, match=named):
            render(request)
        with pytest.raises(InputError, match="no more, the one"):
            TileWorker(work_folder(out))


def test_a_quota_is_a_full_disk(cli: Callable[..., Outcome], tiny: Path, tmp_path: Path) -> None:
    def stop(*_: object) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    options = ("slide", tiny, "--out", tmp_path / "a.ome.zarr", "--size", 20, "--sampling-steps", 1)
    for owner, name, says in (
        (SlideManifest, "save", "cannot be written: Disk quota exceeded"),
        (render_module.Canvas, "create", "is full (Disk quota exceeded): the work needs 4.4 kB in all; what"),
        (formats, "write", "is full (Disk quota exceeded): the work needs"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, stop)
            outcome = cli(*options)
        assert outcome.code == 2 and says in outcome.err
    assert cli(*options).code == 0


def test_a_worker_hands_bugs_back(tiny: Path, tmp_path: Path) -> None:
    """As what they are, with the traceback, not as its death; and what a user can mend as it is."""
    assert isinstance(GuardedWorker(str(tmp_path), 1).step(0, 0), InputError)
    worker = GuardedWorker(str(tmp_path), 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("morphogen.slides.executors.open_worker", lambda *_: 1 // 0)
        found = worker.step(0, 0)
    assert isinstance(found, RuntimeError)
    assert "ZeroDivisionError" in str(pickle.loads(pickle.dumps(found)))


def test_no_order_before_the_folder_is_held(tmp_path: Path) -> None:
    """Or a worker whose orders came from a killed process could begin beside those of the next one."""
    fcntl = pytest.importorskip("fcntl")
    here, there = multiprocessing.Pipe()
    with pytest.MonkeyPatch.context() as patch, (tmp_path / "workers.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        patch.setattr(signal, "signal", lambda *_: None)  # which only a process's first thread may call
        thread = threading.Thread(target=executors._work, args=(str(tmp_path), 1, there), daemon=True)
        thread.start()
        assert not here.poll(0.3)
        fcntl.flock(file, fcntl.LOCK_UN)
        assert here.poll(10)
    here.close()
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize("suffix", [".ome.tif", ".ome.zarr", ".dzi"])
def test_a_slide_tells_no_path_of_this_machine(tiny: Path, tmp_path: Path, suffix: str) -> None:
    """Nor does it need one to be known for what it is: where its model has been moved to makes no difference."""
    asked = SlideRequest(str(tiny), (20, 20), tmp_path / f"a{suffix}", sampling=SamplingRequest("ddim", 2))
    render(asked)
    places = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert places
    for path in places:
        assert os.fsencode(tiny.parent) not in path.read_bytes(), path
    assert formats.read_metadata(asked.out, suffix)["model"] == tiny.name
    assert render(asked) == (asked.out, False)
    moved = tmp_path / "elsewhere" / tiny.name
    shutil.copytree(tiny, moved)
    assert render(replace(asked, model=str(moved))) == (asked.out, False)
