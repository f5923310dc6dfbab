"""What `slide --overwrite` may replace: slides, and nothing that one is only inside of."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from morphogen.core.errors import InputError
from morphogen.core.images import METADATA_KEY
from morphogen.pyramids import formats

_ZARR = (".zattrs", ".zgroup", ".zarray", ".zmetadata", "zarr.json")


def check_replaceable(out: Path, needed: Iterable[Path]) -> None:
    """Raise InputError where an output is in the place of more than a slide, or of something that is needed to paint
    it: a folder that is no slide is never replaced.
    """
    for place in formats.parts(out):
        if place.is_dir() and not place.is_symlink():
            _check_slide(place)
        for path in needed:
            if place.resolve() in (path.resolve(), *path.resolve().parents):
                raise InputError(f"--out {out}: {path} is in its place and is needed to paint it; name another --out")


def _check_slide(folder: Path) -> None:
    for path in folder.iterdir():
        level = path.is_dir() and (path.name.isdigit() or path.name in ("labels", "OME", METADATA_KEY))
        if not level and path.name not in (*_ZARR, f"{METADATA_KEY}.json", ".DS_Store"):
            raise InputError(
                f"--out {folder} is a folder that holds other files than a slide's ({path.name}), which is not "
                "replaced; name another --out"
            )


def remove(out: Path) -> None:
    """Remove an output, what its readers open first."""
    for place in reversed(formats.parts(out)):
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)
