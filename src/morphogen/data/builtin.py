"""Images that scikit-image ships inside its wheel: no download."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from morphogen.core.errors import InputError
from morphogen.data.config import DataConfig, Domain
from morphogen.data.files import FolderSource
from morphogen.data.source import Record

_FILES: dict[str, tuple[str, Domain]] = {
    "tissue": ("ihc.png", "pathology"),
    "brick": ("brick.png", "texture"),
    "grass": ("grass.png", "texture"),
    "gravel": ("gravel.png", "texture"),
    "hubble": ("hubble_deep_field.jpg", "texture"),
    "moon": ("moon.png", "texture"),
    "coins": ("coins.png", "photo"),
    "retina": ("retina.jpg", "photo"),
    "astronaut": ("astronaut.png", "photo"),
    "cat": ("chelsea.png", "photo"),
    "coffee": ("coffee.png", "photo"),
    "rocket": ("rocket.jpg", "photo"),
}


def _folder() -> Path:
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise InputError("built-in images need scikit-image: pip install scikit-image")
    return Path(spec.origin).parent / "data"


def builtin_names() -> list[str]:
    """Names of the built-in images that the installed scikit-image holds."""
    folder = _folder()
    return [name for name, (file, _) in _FILES.items() if (folder / file).is_file()]


class BuiltinSource(FolderSource):
    """One built-in image, `builtin:NAME`."""

    def __init__(self, config: DataConfig) -> None:
        name = config.source.partition(":")[2]
        if name not in builtin_names():
            raise InputError(f"there is no built-in image {name!r}; there are {', '.join(builtin_names())}")
        file, self.domain = _FILES[name]
        super().__init__(config, _folder(), [Record(file)])
