"""The folder of the work on a slide: one process at a time holds it, and it goes once the slide is in place."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from morphogen.core.errors import InputError
from morphogen.slides.manifest import FILE, SlideManifest
from morphogen.slides.progress import TileProgress


@contextlib.contextmanager
def hold_work(folder: Path, manifest: SlideManifest, out: Path, overwrite: bool = False) -> Iterator[None]:
    """The folder of the work, held by one process at a time; it goes once its output is in place.

    overwrite: begin anew where it was begun with other settings, or cannot be gone on with.
    """
    lock, begun, done = FileLock(folder / "lock", timeout=0), True, False
    try:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            if (
                folder.exists()
                and not SlideManifest.exists(folder)
                and not all(_is_leftover(p) for p in folder.iterdir())
            ):
                raise InputError(f"{folder} holds no work of Morphogen's; move it away, or use another --out")
            folder.mkdir(exist_ok=True)
            lock.acquire()
            begun = SlideManifest.exists(folder)
            if begun:
                try:
                    manifest.check_same(SlideManifest.load(folder), str(folder))
                except InputError:
                    if not overwrite:
                        raise
                    _remove_content(folder)
                    begun = False
            manifest.save(folder)
        except Timeout:
            raise InputError(f"another process is painting {out}; let it end, or use another --out") from None
        except OSError as error:
            raise InputError(f"--out {out} cannot be written: {error.strerror or error}") from None
        yield
        done = True
    except InputError:
        done = not begun and not TileProgress.exists(folder)  # refused before anything was painted
        raise
    finally:
        with contextlib.suppress(OSError):  # what cannot be removed now is with the next start
            if done:
                _clear(folder)
        lock.release()
        with contextlib.suppress(OSError):
            folder.rmdir()


def _is_leftover(path: Path) -> bool:
    """Whether a kill before the manifest is written, or after the end, leaves such a file in a work folder."""
    return path.name == "lock" or path.name.startswith(f".{FILE}-")


def _remove_content(folder: Path) -> None:
    """Remove all of a work but its lock: the manifest last, so that what a kill leaves is known for what it is."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in (FILE, "lock"):
            path.unlink()
    (folder / FILE).unlink(missing_ok=True)


def _clear(folder: Path) -> None:
    """Remove a work that is done."""
    _remove_content(folder)
    (folder / "lock").unlink(missing_ok=True)
