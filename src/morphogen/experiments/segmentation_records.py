"""The results of `segment` as typed records."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from morphogen.metrics.records import Record


class SegmentationRun(Record):
    """The figures of one training, each a mean over the test images: Dice of every class, and of the objects of every
    class but the first the F1 score at an intersection over union of 0.5.
    """

    seed: int
    identity: str
    dice: dict[str, float]
    object_f1: dict[str, float]


class SegmentationComparison(Record):
    """A baseline's runs beside these: the difference of the mean Dice and its p-value over seeds."""

    file: str
    dice: float
    difference: float
    p: float | None


class SegmentationResults(Record):
    """The content of results.json. dice, object_f1: means over the seeds and, of Dice, all classes but the first."""

    omitted = frozenset({"baseline"})

    format: Literal["morphogen-segmentation-1"] = "morphogen-segmentation-1"
    source: str
    classes: tuple[str, ...]
    real_images: int
    extra_images: int
    test_images: int
    settings: dict[str, object] = Field(default_factory=dict)
    dice: float
    object_f1: float
    runs: tuple[SegmentationRun, ...]
    baseline: SegmentationComparison | None = None
    remarks: tuple[str, ...] = ()
