"""The manifest of a slide, which fixes its pixels. It lies beside the canvas, so that the same command goes on."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from morphogen._version import VERSION
from morphogen.core.errors import InputError
from morphogen.core.files import json_bytes, read_json, replace_file, sha256
from morphogen.core.model_files import CONFIG_FILE, WEIGHTS_FILE
from morphogen.core.validation import validate
from morphogen.models import public_model
from morphogen.pyramids.ome_zarr_versions import DEFAULT_VERSION
from morphogen.slides.computation import Computation

FILE = "manifest.json"
WORK_FORMAT = 3
"""Of the folder of a work: raised whenever what lies in it changes. The first one's manifest was called job.json."""
_FIRST_FORMATS_FILE = "job.json"
# What each setting is called on the command line.
_OPTIONS = {
    "seed": "--seed",
    "sampler": "--sampler",
    "sampling_steps": "--sampling-steps",
    "tile": "--tile",
    "approximate": "--approximate",
    "jpeg": "--jpeg",
    "zarr": "--zarr",
    "pixel_size": "--pixel-size",
    "rescale": "--rescale",
    "size": "--size",
    "model": "the model",
    "revision": "the model's revision",
    "model_sha256": "the model's weights",
    "config_sha256": "the model's configuration",
    "computed_in": "--precision or the machine",
    "device": "--device",
    "source": "--inpaint",
    "source_state": "the slide that --inpaint names",
    "mask_sha256": "--mask",
    "classes": "--class",
    "mask_value": "--mask-value",
    "context": "--context",
    "map_sha256": "--map",
    "level": "the level",
    "format": "--out",
    "morphogen": "Morphogen's version",
    "work_format": "the format of the work",
}


def fingerprints(model: Path) -> tuple[str, str]:
    """The SHA-256 of a model folder's weights and of its configuration."""
    return sha256(model / WEIGHTS_FILE), sha256(model / CONFIG_FILE)


def _name_only(settings: dict[str, object]) -> dict[str, object]:
    """The source of settings, which can be a path on this machine, as a name."""
    source = settings.get("source")
    return {"source": Path(source).name} if isinstance(source, str) else {}


class SlideManifest(BaseModel):
    """Everything that the painted pixels and their file depend on.

    size: (height, width). model: a folder. jpeg: quality, or None (lossless). zarr: the version of OME-Zarr, or None.
    pixel_size: micrometres a pixel. source, source_state, mask_sha256, classes, mask_value, context: of a slide that is
    inpainted; rescale: the micrometres a pixel that it is brought to first, or None. level: of a pyramid model, whose
    seed is made of the slide's. map_sha256: of the map that it is painted from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    work_format: int = WORK_FORMAT
    model: str
    model_sha256: str
    config_sha256: str
    size: tuple[int, int]
    seed: int
    sampler: str
    sampling_steps: int
    device: str
    computation: Computation
    tile: int
    format: str
    approximate: bool = False
    jpeg: int | None = None
    zarr: str | None = None
    pixel_size: float | None = None
    rescale: float | None = None
    source: str | None = None
    source_state: str | None = None
    mask_sha256: str | None = None
    classes: tuple[str, ...] | None = None
    mask_value: int | None = None
    context: int | None = None
    map_sha256: str | None = None
    level: int | None = None
    morphogen: str = VERSION

    def save(self, folder: Path) -> None:
        """Write the manifest into the folder of its work."""
        replace_file(folder / FILE, json_bytes(self.model_dump(mode="json")))

    @classmethod
    def load(cls, folder: Path) -> SlideManifest:
        """The manifest of a folder. Raises InputError, naming the folder to delete, for one that cannot be used."""
        try:
            if (folder / _FIRST_FORMATS_FILE).is_file():
                raise InputError(f"{folder / _FIRST_FORMATS_FILE} was written by an earlier Morphogen")
            found = read_json(folder / FILE)
            if isinstance(found, dict) and found.get("work_format") != WORK_FORMAT:
                raise InputError(f"{folder / FILE} was written by another Morphogen ({found.get('morphogen')})")
            return validate(cls, found, str(folder / FILE))
        except InputError as error:
            raise InputError(
                f"{error}, so that the slide in work there cannot be gone on with; delete {folder} and run the command "
                "again"
            ) from None

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether a folder holds a manifest."""
        return (folder / FILE).is_file() or (folder / _FIRST_FORMATS_FILE).is_file()

    def _settings(self) -> dict[str, object]:
        found = self.model_dump(mode="json", exclude={"computation"})
        return {**found, "computed_in": str(self.computation)}

    def _public_names(self) -> dict[str, object]:
        """The settings that are paths on this machine, as what published files may tell of them."""
        return {**public_model(Path(self.model)), **_name_only({"source": self.source})}

    def metadata(self) -> dict[str, object]:
        """The metadata of the painted file."""
        found = self._settings()
        found["exact"] = "no: approximate, with frozen statistics and blended overlaps" if self.approximate else "yes"
        found["compression"] = "lossless" if self.jpeg is None else f"JPEG tiles of quality {self.jpeg}"
        del found["work_format"]
        found |= self._public_names()
        return {k: v for k, v in found.items() if v is not None}

    def check_same(self, other: SlideManifest | dict[str, object], where: str) -> None:
        """Raise InputError, naming them, where settings differ from those of existing work: a manifest, or the metadata
        of a finished slide.
        """
        mine, theirs = self._settings(), other
        if isinstance(theirs, SlideManifest):
            theirs = theirs._settings()
        else:
            del mine["work_format"]
            mine |= self._public_names()  # what they are is in their checksums
            theirs = {**theirs, **_name_only(theirs)}
            if mine["format"] == ".ome.zarr" and self.source is None:  # finished before there was a choice
                theirs = {"zarr": DEFAULT_VERSION, **theirs}
        differing = [
            f"{_OPTIONS[name]} ({theirs.get(name)} there, {mine[name]} now)"
            for name in mine
            if mine[name] != theirs.get(name)
        ]
        if differing:
            raise InputError(
                f"{where} was begun with other settings: {'; '.join(differing)}; use the same ones, another --out, or "
                "--overwrite"
            )
