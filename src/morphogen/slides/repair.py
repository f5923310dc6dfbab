"""Finding what a power cut or a bad disk has changed in the folder of a work, and computing that again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from morphogen.core.console import say
from morphogen.core.errors import InputError
from morphogen.pyramids.arrays import is_array_of
from morphogen.slides.canvas import Canvas
from morphogen.slides.overlap_blend import BlendedCanvas
from morphogen.slides.progress import TileProgress
from morphogen.slides.tile_worker import open_worker


def begin_anew(folder: Path, reason: str) -> InputError:
    """The message on a work that cannot be gone on with."""
    return InputError(f"{folder} holds a slide in work, but {reason}; delete {folder} and run the command again")


def repair(canvas: Canvas, progress: TileProgress, tiles: Sequence[int], evaluations: int) -> None:
    """Compare everything that will be read with its checksum, say what differs, and compute it again.

    tiles: their numbers in the grid, in the order of `progress`. Raises InputError, naming the folder to delete, where
    a tile cannot be computed alone.
    """
    folder, numbers = canvas.folder, range(len(tiles))
    believed = [n for n in numbers if n not in set(progress.damaged)]
    if not believed:
        raise begin_anew(folder, "its progress is damaged")
    done = progress.done
    now = int(done[believed].min())  # evaluation number `now` is being taken
    unknown = [n for n in numbers if n not in believed or not now <= done[n] <= min(now + 1, evaluations)]
    if now == 0 and not unknown and not done.any():
        return
    _check_arrays(canvas, now, evaluations)
    undone = [
        n
        for n in numbers
        if n not in unknown
        and done[n] == now + 1
        and canvas.checksum_left(now, tiles[n], now + 1 == evaluations) != progress.left_by(n, now)
    ]
    lost = [
        n
        for n in numbers
        if now > 0
        and (
            n in unknown or canvas.checksum_left(now - 1, tiles[n], now == evaluations) != progress.left_by(n, now - 1)
        )
    ]
    if not (unknown or undone or lost):
        return
    damaged = sorted({*unknown, *undone, *lost})
    named = _places(canvas, [tiles[n] for n in damaged])
    say(f"{folder}: {len(damaged)} of {len(tiles)} tiles are damaged ({named}) and computed again", error=True)
    for n in undone:
        canvas.forget(now, tiles[n], now + 1 == evaluations)
        progress.set(n, now, progress.left_by(n, now - 1))
    for n in unknown:
        progress.set(n, now)
    if lost:
        _replay(canvas, progress, tiles, lost, now, evaluations)


def _replay(
    canvas: Canvas, progress: TileProgress, tiles: Sequence[int], lost: Sequence[int], now: int, evaluations: int
) -> None:
    """Write anew what evaluation number `now - 1` left of tiles."""
    if isinstance(canvas, BlendedCanvas):
        raise begin_anew(canvas.folder, "tiles of it are damaged, which --approximate cannot compute alone")
    worker = open_worker(canvas.folder)
    if not worker.manifest.computation.any_shape:
        raise begin_anew(
            canvas.folder, f"tiles of it are damaged; {worker.manifest.computation} gives single tiles other bits"
        )
    for n in lost:
        canvas.forget(now - 1, tiles[n], now == evaluations)
        try:
            left = worker.replay(now - 1, tiles[n])
        except InputError as error:
            raise begin_anew(canvas.folder, f"tiles of it are damaged, and {error}") from None
        if int(progress.done[n]) == now + 1:
            progress.set(n, now + 1, progress.left_by(n, now), left)
        else:
            progress.set(n, now, left)


def _check_arrays(canvas: Canvas, now: int, evaluations: int) -> None:
    """Raise InputError where an array that will be read or written has lost its metadata, or has others."""
    for name in canvas.names(now, evaluations):
        try:
            whole = is_array_of(canvas.folder / name, *canvas.layout(name))
        except Exception:  # zarr raises errors of many types
            whole = False
        if not whole:
            raise begin_anew(canvas.folder, f"{name} in it cannot be read")


def _places(canvas: Canvas, tiles: Sequence[int]) -> str:
    places = [canvas.grid.region(index).scaled(canvas.factor) for index in tiles[:3]]
    first = ", ".join(f"row {r.y} column {r.x}" for r in places)
    return first + (", ..." if len(tiles) > 3 else "")
