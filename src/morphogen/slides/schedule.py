"""Painting a whole slide: evaluation after evaluation over the canvas on disk, then the file that was asked for."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from morphogen.core.errors import InputError
from morphogen.core.images import read_metadata, save_png
from morphogen.core.progress import Progress
from morphogen.slides.canvas import Canvas
from morphogen.slides.executors import Executor, wait_for_others
from morphogen.slides.progress import TileProgress
from morphogen.slides.repair import repair
from morphogen.slides.tile_worker import TilePreview, preview_scale

_PREVIEW_EVERY_S = 5.0
_PREVIEW_OF = {"task": "preview of a slide"}
MakeExecutor = Callable[[Path], Executor]


def work_folder(out: Path) -> Path:
    """Where the work on an output lies until it is done."""
    return out.with_name(out.name + ".painting")


def preview_file(out: Path) -> Path:
    """The preview of an output."""
    return out.with_name(out.name + ".preview.png")


def check_preview(out: Path) -> None:
    """Raise InputError where the preview of an output would replace a file that is no preview."""
    path = preview_file(out)
    if path.exists() and read_metadata(path) != _PREVIEW_OF:
        raise InputError(
            f"{path} is there and is no preview of a slide; move it, name another --out, or replace it with --overwrite"
        )


class Preview:
    """A small picture of the canvas that sharpens while it is painted. size: of the canvas. path: a PNG."""

    def __init__(self, path: Path, size: tuple[int, int], channels: int) -> None:
        scale = preview_scale(size)
        shape = (-(-size[0] // scale), -(-size[1] // scale), 3 if channels >= 3 else 1)
        self.path, self._pixels = path, np.full(shape, 255, np.uint8)
        self._before = 0.0
        if path.is_file():  # of the same work, begun earlier
            try:
                found = np.asarray(Image.open(path))
            except (OSError, ValueError):
                return
            if found.size == self._pixels.size:
                self._pixels = found.reshape(shape).copy()

    def show(self, tile: TilePreview, now: float) -> None:
        """Put a tile in; written now and then. now: in seconds."""
        part = tile.pixels[..., : self._pixels.shape[2]]
        self._pixels[tile.y : tile.y + part.shape[0], tile.x : tile.x + part.shape[1]] = part
        if now - self._before >= _PREVIEW_EVERY_S:
            self._before = now
            self.save()

    def save(self) -> None:
        """Write the file."""
        shown = self._pixels if self._pixels.shape[2] == 3 else self._pixels[..., 0]
        save_png(self.path, Image.fromarray(shown), _PREVIEW_OF)


def free_bytes(folder: Path) -> int:
    """Bytes free on the disk of a folder, or of the nearest one above it that exists."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def stored_bytes(path: Path) -> int:
    """Bytes of a file, or of the files in a folder; those that go meanwhile are left out."""
    total = 0
    for file in path.rglob("*") if path.is_dir() else [path]:
        with contextlib.suppress(FileNotFoundError):
            total += file.stat().st_size if file.is_file() else 0
    return total


def in_words(count: float) -> str:
    """Bytes for people."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def disk_needed(canvas: Canvas, evaluations: int, tiles: int) -> int:
    """Bytes of the work on the disk at most: the canvas, and beside the painted image the file made of it.

    When the file is written, the buffers of noisy images are gone; it and its levels take up to 8/3 of the pixels.
    """
    pixels = tiles * canvas.channels * canvas.grid.chunk[0] * canvas.grid.chunk[1] * canvas.factor**2
    return max(canvas.bytes_needed(evaluations, tiles), pixels + pixels * 8 // 3)


def run_schedule(
    canvas: Canvas, evaluations: int, tiles: Sequence[int], executor: MakeExecutor, preview: Preview
) -> None:
    """Take every evaluation of every tile of a slide that is not done yet.

    canvas: in the folder of the work, where the manifest is too.
    """
    folder, grid = canvas.folder, canvas.grid
    wait_for_others(folder)
    tiles_done = TileProgress(folder, len(tiles))
    places = {index: number for number, index in enumerate(tiles)}
    areas = np.array([grid.region(index).height * grid.region(index).width for index in tiles])
    areas = areas * canvas.factor**2 / 1e6
    total = float(areas.sum())

    def done() -> float:
        return float((areas * np.minimum(tiles_done.done, evaluations)).sum()) / evaluations

    workers: Executor | None = None
    try:
        repair(canvas, tiles_done, tiles, evaluations)
        if int(tiles_done.done.min()) >= evaluations:
            return
        workers = executor(folder)
        with Progress("painting", total, "Mpx", done()) as progress:
            for i in range(int(tiles_done.done.min()), evaluations):
                if i == evaluations - 1 and i > 0:
                    canvas.drop(i)  # nobody reads it any more
                left = [index for number, index in enumerate(tiles) if tiles_done.done[number] == i]
                for index, stepped in workers.run(i, left):
                    tiles_done.mark(places[index], stepped.checksum)
                    preview.show(stepped.preview, time.monotonic())
                    progress.advance(areas[places[index]] / evaluations, f"step {i + 1} of {evaluations}")
                preview.save()
        canvas.drop(evaluations - 2)
    finally:
        if workers is not None:
            workers.close()
        tiles_done.close()


def disk_full(folder: Path, needed: int, error: OSError) -> InputError:
    """The message on a disk that became full. needed: bytes, or 0 where that is not known yet."""
    missing = max(0, needed - stored_bytes(folder) - free_bytes(folder))
    more = f", {in_words(missing)} more than there is" if missing else ""  # a quota may be full where the disk is not
    needs = f"the work needs {in_words(needed)} in all{more}; " if needed else ""
    return InputError(
        f"the disk of {folder.parent} is full ({error.strerror}): {needs}what is painted is kept, so make room and run "
        "the same command again"
    )
