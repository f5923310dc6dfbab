"""The record of an expansion: how its images were made, and which images and patients its generator saw."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from morphogen.core.condition import Classes
from morphogen.core.errors import InputError
from morphogen.core.files import json_bytes, read_json, replace_file
from morphogen.core.model import LabelConfig
from morphogen.core.validation import table, validate

FILE = "expansion.json"
LABELS = "labels.csv"


class TrainedOn(BaseModel):
    """images: names of all images that the run learnt from, with the sha256 of their content.
    patients: those of them, where known. unknown: what else went into the weights, whose images are not known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    fingerprint: str
    images: dict[str, str]
    patients: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


class ExpansionQuality(BaseModel):
    """An expansion against the real training images. precision, recall: in the named features. lpips, lpips_real: mean
    LPIPS of pairs of generated and of real images; None where its network was not at hand.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    features: str
    precision: float
    recall: float
    lpips: float | None = None
    lpips_real: float | None = None


class Expansion(BaseModel):
    """The content of `expansion.json`. replaced: images made anew, having been copies; None until all are there.
    classes, maps: of pairs of an image and its map, what these mean and where they are from.
    unrecognised: by their labels, images that a classifier never took for what they should be, where one was asked.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["morphogen-expansion-1"] = "morphogen-expansion-1"
    run: str
    settings: dict[str, object]
    labels: LabelConfig = LabelConfig()
    classes: Classes | None = None
    maps: str | None = None
    times: int
    images: int
    trained_on: TrainedOn
    replaced: int | None = None
    unrecognised: dict[str, int] | None = None
    quality: ExpansionQuality | None = None

    def check_unseen(
        self, where: Path, test: Mapping[str, str], own: Mapping[str, str], patients: Mapping[str, str]
    ) -> None:
        """Raise InputError, naming one, where the run saw an image of a test part or another image of its patients.

        test, own: names and sha256 of the test images, and of those that the classifier itself learns from; what is in
        both is a fault of the data, which no run could avoid. patients: by the name of the image, where they are known.
        """
        digests = set(test.values()) - set(own.values())
        leaked = [name for name, digest in self.trained_on.images.items() if digest in digests]
        if leaked:
            raise InputError(
                f"{where} is refused: its run {self.run} was trained on {len(leaked)} images of this test part, such "
                f"as {leaked[0]}; expand a run that was trained with the same --split and --fold"
            )
        both = sorted(set(self.trained_on.patients) & {patients[name] for name in test if name in patients})
        if both:
            raise InputError(
                f"{where} is refused: its run {self.run} was trained on images of {len(both)} patients of this test "
                f"part, such as {both[0]}; expand a run that was trained with the same --split and --fold"
            )


def read_expansion(folder: Path) -> Expansion:
    """The record of the expansion in a folder. Raises InputError if there is none, or an unfinished one."""
    file = folder / FILE
    if not file.is_file():
        raise InputError(
            f"{folder} holds no {FILE}, so nothing says what its generator saw; make it by morphogen expand"
        )
    found = validate(Expansion, table(read_json(file), str(file)), str(file))
    if found.replaced is None:
        raise InputError(f"the expansion {folder} is not finished; give the same morphogen expand again")
    return found


def write_expansion(folder: Path, expansion: Expansion) -> None:
    """Write it at once."""
    replace_file(folder / FILE, json_bytes(expansion.model_dump()))
