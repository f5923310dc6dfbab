"""The results of an evaluation as typed records: the content of results.json, of tables and reports."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer


class Record(BaseModel):
    """Base of what is written as JSON and read again. Keys that are not known are left out."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)
    omitted: ClassVar[frozenset[str]] = frozenset()
    """The fields that are not written where they are None; others are written as null."""

    @model_serializer(mode="wrap")
    def _omit(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        written: dict[str, object] = handler(self)
        return {key: value for key, value in written.items() if value is not None or key not in self.omitted}

    def as_json(self) -> dict[str, object]:
        """The record as values for json.dumps. Names may hold raw bytes, which pydantic's own JSON mode refuses."""
        return self.model_dump(by_alias=True)


class Counts(Record):
    """How many images a figure is of."""

    generated: int
    real: int


class FrechetFigure(Record):
    """The Fréchet distance, under the name that its network allows."""

    label: str
    value: float


class KernelSubsets(Record):
    """Mean and deviation over random subsets, as published tables give KID."""

    mean: float
    deviation: float
    size: int
    subsets: int


class KernelFigure(Record):
    """The kernel distance of all images. standard_error: None with too few of them."""

    label: str
    value: float
    standard_error: float | None
    subsets: KernelSubsets


class ManifoldFigures(Record):
    """Shares in 0..1 by nearest neighbours (density may exceed 1)."""

    precision: float
    recall: float
    density: float
    coverage: float


class DistanceFigures(Record):
    """Two sets of images compared by one network. manifold: None with too few images."""

    omitted = frozenset({"manifold"})

    images: Counts
    frechet: FrechetFigure
    kernel: KernelFigure
    manifold: ManifoldFigures | None = None


class Gap(Record):
    """The generalisation gap and its standard error."""

    gap: float
    standard_error: float


class Memorisation(Gap):
    """The gap of generated images. floor: of held-out images in their place."""

    test_nll: float
    train_nll: float
    floor: Gap
    memorises: bool
    train_images: int


class NetworkFigures(DistanceFigures):
    """All figures of one network. floor: the same with real images in the place of the generated ones."""

    omitted = frozenset({"manifold", "floor", "memorisation"})

    network: str
    dimensions: int
    floor: DistanceFigures | None = None
    memorisation: Memorisation | None = None


class DiversityFigures(Record):
    """LPIPS over pairs of images; None if there are too few."""

    mean: float | None
    deviation: float | None
    standard_error: float | None
    pairs: int


class LPIPSFigures(DiversityFigures):
    """The diversity of generated images, and of the real ones."""

    network: str
    real: DiversityFigures


class NearestImage(Record):
    """The training image that is nearest to a generated one; numbers are places in their sets."""

    image: str
    number: int
    training_image: str
    training_number: int
    distance: float
    is_copy: bool = Field(alias="copy")


class Copies(Record):
    """How many generated images are copies of training images, and how many held-out ones are."""

    training_images: int
    copies: int
    held_out_copies: int
    held_out_images: int
    copy_limit: float
    distance_quantiles: dict[str, float]
    held_out_quantiles: dict[str, float]
    nearest: tuple[NearestImage, ...]

    def suspects(self, count: int) -> Copies:
        """The same with only the `count` generated images that are nearest to a training image, nearest first."""
        return self.model_copy(update={"nearest": tuple(sorted(self.nearest, key=lambda n: n.distance)[:count])})


class GeneratedFacts(Record):
    """Where the measured images lie; of generated ones also all settings that made them, under their own names."""

    omitted = frozenset({"seconds_per_image"})

    model_config = ConfigDict(frozen=True, extra="allow")

    folder: str
    images: int
    seconds_per_image: float | None = None


class ModelFacts(Record):
    """Which model was measured. folder: None of one that was made in Python. The last three: of a run."""

    omitted = frozenset({"preset", "recipe", "training_seed"})

    folder: str | None
    family: str
    parameters: int
    preset: str | None = None
    recipe: str | None = None
    training_seed: int | None = None


class EvaluationResults(Record):
    """The content of results.json. remarks: what a reader must know of the figures."""

    morphogen: str | None = None
    model: ModelFacts | None = None
    generated: GeneratedFacts
    data: dict[str, object]
    figures: tuple[NetworkFigures, ...]
    lpips: LPIPSFigures | None = None
    copies: Copies | None = None
    remarks: tuple[str, ...] = ()
