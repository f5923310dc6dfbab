"""What fixes a painted slide: a manifest, kept beside the canvas, so that the same command can go on with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from morphogen._version import VERSION
from morphogen.core.errors import InputError
from morphogen.core.files import json_bytes, read_json, replace_file, sha256
from morphogen.core.model_files import CONFIG_FILE, WEIGHTS_FILE
from morphogen.core.validation import validate

_FILE = "job.json"
# What each setting is called on the command line.
_OPTIONS = {
    "seed": "--seed",
    "sampler": "--sampler",
    "sampling_steps": "--sampling-steps",
    "tile": "--tile",
    "approximate": "--approximate",
    "jpeg": "--jpeg",
    "pixel_size": "--pixel-size",
    "size": "--size",
    "model": "the model",
    "model_sha256": "the model's weights",
    "config_sha256": "the model's configuration",
    "computed_in": "--precision or the machine",
    "device": "--device",
    "source": "--inpaint",
    "source_state": "the slide that --inpaint names",
    "mask_sha256": "--mask",
    "context": "--context",
    "format": "--out",
    "morphogen": "Morphogen's version",
}


def fingerprints(model: Path) -> tuple[str, str]:
    """The SHA-256 of a model folder's weights and of its configuration."""
    return sha256(model / WEIGHTS_FILE), sha256(model / CONFIG_FILE)


class SlideManifest(BaseModel):
    """Everything that the painted pixels and their file depend on.

    size: (height, width). model: a folder. computed_in: see `tile_worker.prepare`. jpeg: quality, or None (lossless).
    pixel_size: micrometres a pixel. source, source_state, mask_sha256, context: of a slide that is inpainted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: str
    model_sha256: str
    config_sha256: str
    size: tuple[int, int]
    seed: int
    sampler: str
    sampling_steps: int
    device: str
    computed_in: str
    tile: int
    format: str
    approximate: bool = False
    jpeg: int | None = None
    pixel_size: float | None = None
    source: str | None = None
    source_state: str | None = None
    mask_sha256: str | None = None
    context: int | None = None
    morphogen: str = VERSION

    def save(self, folder: Path) -> None:
        """Write the manifest into the folder of its work."""
        replace_file(folder / _FILE, json_bytes(self.model_dump(mode="json")))

    @classmethod
    def load(cls, folder: Path) -> SlideManifest:
        """The manifest of a folder. Raises InputError where there is none."""
        return validate(cls, read_json(folder / _FILE), str(folder / _FILE))

    @staticmethod
    def there(folder: Path) -> bool:
        """Whether a folder holds a manifest."""
        return (folder / _FILE).is_file()

    def metadata(self) -> dict[str, Any]:
        """What the painted file says of itself."""
        found = self.model_dump(mode="json")
        found["size"] = list(self.size)
        found["exact"] = "no: approximate, with frozen statistics and blended overlaps" if self.approximate else "yes"
        found["compression"] = "lossless" if self.jpeg is None else f"JPEG tiles of quality {self.jpeg}"
        return {k: v for k, v in found.items() if v is not None}

    def check_same(self, other: dict[str, Any], where: str) -> None:
        """Raise InputError, naming them, where settings differ from those of existing work (manifest or metadata)."""
        mine = self.model_dump(mode="json")
        differing = [
            f"{_OPTIONS[name]} ({other.get(name)} there, {mine[name]} now)"
            for name in mine
            if mine[name] != other.get(name)
        ]
        if differing:
            raise InputError(
                f"{where} was begun with other settings: {'; '.join(differing)}; use the same ones, or another --out"
            )
