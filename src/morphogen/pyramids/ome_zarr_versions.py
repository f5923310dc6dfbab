"""The versions of OME-Zarr, a class for each: where an image's description stands and how it names axes and scales.

Sources: https://ngff.openmicroscopy.org/0.1/, /0.2/, /0.3/, /0.4/ and /0.5/. All are read, 0.4 and 0.5 are written.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from morphogen.core.errors import InputError
from morphogen.core.files import JsonObject

# Micrometres in a unit of length; the names are those of UDUNITS-2, which the specification recommends.
MICROMETRES = {
    "angstrom": 1e-4, "picometer": 1e-6, "nanometer": 1e-3, "micrometer": 1.0, "millimeter": 1e3, "centimeter": 1e4,
    "meter": 1e6, "inch": 25400.0,
}  # fmt: skip


class OmeZarrV01:
    """0.1 and 0.2: in Zarr 2, always five axes, no scales."""

    versions: ClassVar[tuple[str, ...]] = ("0.1", "0.2")

    def ome(self, attributes: JsonObject) -> JsonObject:
        """The description of the image in a group, out of its attributes."""
        return attributes

    def axes(self, multiscale: JsonObject) -> list[str]:
        """The names of the arrays' axes."""
        return list("tczyx")

    def mpp(self, multiscale: JsonObject) -> tuple[float | None, float | None]:
        """Micrometres a pixel of the largest level, down and across; None where they are not said."""
        return None, None


class OmeZarrV03(OmeZarrV01):
    """0.3: the axes are named, by strings."""

    versions = ("0.3",)

    def axes(self, multiscale: JsonObject) -> list[str]:
        return [str(axis) for axis in multiscale["axes"]]


class OmeZarrV04(OmeZarrV03):
    """0.4: axes with types and units, and a scale for each level."""

    versions = ("0.4",)
    zarr_format: ClassVar[int] = 2

    def axes(self, multiscale: JsonObject) -> list[str]:
        return [str(axis["name"]) for axis in multiscale["axes"]]

    def mpp(self, multiscale: JsonObject) -> tuple[float | None, float | None]:
        axes = {str(axis["name"]): (i, axis.get("unit")) for i, axis in enumerate(multiscale["axes"])}
        # A level's own transformations, then those of all levels ("multiscales" metadata).
        both = (multiscale["datasets"][0].get("coordinateTransformations"), multiscale.get("coordinateTransformations"))
        scales = [step["scale"] for steps in both for step in steps or () if step.get("type") == "scale"]

        def along(name: str) -> float | None:
            at, unit = axes[name]
            micrometres = MICROMETRES.get(str(unit)) if scales else None
            for scale in scales:
                micrometres = micrometres and micrometres * float(scale[at])
            return micrometres

        return along("y"), along("x")

    def attributes(self, ome: JsonObject) -> JsonObject:
        """The attributes of a group whose image is described by `ome`."""
        for part in (ome["multiscales"][0], ome["omero"]):
            part["version"] = self.versions[0]
        return ome

    def array_options(self) -> dict[str, object]:
        """How zarr makes an array: the names of its chunks, their compression."""
        from numcodecs import Zstd

        return {"compressors": Zstd(level=3), "chunk_key_encoding": {"name": "v2", "separator": "/"}}


class OmeZarrV05(OmeZarrV04):
    """0.5: in Zarr 3, and all that was beside other attributes now within `ome`."""

    versions = ("0.5",)
    zarr_format = 3

    def ome(self, attributes: JsonObject) -> JsonObject:
        return dict(attributes["ome"])

    def attributes(self, ome: JsonObject) -> JsonObject:
        return {"ome": {"version": self.versions[0], **ome}}

    def array_options(self) -> dict[str, object]:
        from zarr.codecs import ZstdCodec

        return {"compressors": ZstdCodec(level=3), "chunk_key_encoding": {"name": "default", "separator": "/"}}


WRITTEN = {"0.4": OmeZarrV04(), "0.5": OmeZarrV05()}
DEFAULT_VERSION = "0.4"


def version_of(attributes: JsonObject, path: Path) -> OmeZarrV01:
    """The version of a group by its attributes. Raises InputError for a version that is not known."""
    if "ome" in attributes:
        said = attributes["ome"].get("version", "0.5")
    else:
        said = (attributes.get("multiscales") or [{}])[0].get("version")
        if said is None:  # a SHOULD of the specification; by its axes then
            axes = (attributes.get("multiscales") or [{}])[0].get("axes")
            said = "0.1" if axes is None else "0.3" if isinstance(axes[0], str) else "0.4"
    for version in (OmeZarrV01(), OmeZarrV03(), OmeZarrV04(), OmeZarrV05()):
        if str(said) in version.versions:
            return version
    raise InputError(f"{path} is OME-Zarr {said}; versions 0.1 to 0.5 can be read")
