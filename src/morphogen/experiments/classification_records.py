"""The results of `classify` as typed records: the files of folds, and the content of results.json."""

from __future__ import annotations

from pydantic import JsonValue

from morphogen.core.model import LabelConfig
from morphogen.metrics.records import Record
from morphogen.metrics.scores import Average


class FoldFacts(Record):
    """The settings that decide the predictions of one fold and seed; with the same facts it is not trained again."""

    fold: int | None
    seed: int
    budget: dict[str, JsonValue]
    pixels: dict[str, JsonValue]
    data: str
    extra: str | None


class FoldRecord(FoldFacts):
    """The content of FOLD-seed-N.json: what the classifier says of every test image, and what is true.

    validation: mAP of the validation images `without` generated images and `with` them, where the better one was to be
    chosen.
    """

    omitted = frozenset({"validation"})

    train_images: int
    extra_images: int
    images: tuple[str, ...]
    eyes: tuple[str, ...] | None
    truth: tuple[tuple[int, ...], ...]
    probabilities: tuple[tuple[float, ...], ...]
    validation: dict[str, float] | None = None

    @property
    def chose_without(self) -> bool:
        """Whether the validation images spoke against the generated ones."""
        return self.validation is not None and self.validation["with"] <= self.validation["without"]


class Scores(Record):
    """Scores in 0..1, None where one is not defined; the names are those of `metrics.scores.SCORES`."""

    sensitivity: float | None
    specificity: float | None
    auc: float | None
    f1: float | None
    f1_sen_spe: float | None
    map: float | None

    def __getitem__(self, name: str) -> float | None:
        value: float | None = getattr(self, name)
        return value


class LevelScores(Scores):
    """Means over labels, those of every label, and how many images or eyes were tested."""

    labels: tuple[Scores, ...]
    count: int


class RunScores(Record):
    """One fold and seed. eye: None where eyes are not known."""

    omitted = frozenset({"eye"})

    fold: int | None
    seed: int
    train_images: int
    extra_images: int
    image: LevelScores
    eye: LevelScores | None = None

    def level(self, name: str) -> LevelScores:
        """The scores of images or of eyes."""
        found = self.eye if name == "eye" else self.image
        if found is None:
            raise KeyError(name)
        return found


class ComparedAverage(Average):
    """The baseline's average, with our mean difference to it and the p-value of the paired test."""

    difference: float | None
    p: float | None


class BaselineComparison(Record):
    """The baseline's figures by level and score."""

    file: str
    name: str
    test: str
    figures: dict[str, dict[str, ComparedAverage]]


class ExpansionFacts(Record):
    """Which expansion a fold was trained on."""

    folder: str
    run: str
    images: int
    replaced: int | None


class ClassificationResults(Record):
    """The content of results.json. fingerprint: of the line, in a comparison of training sets."""

    omitted = frozenset({"fingerprint"})

    format: str
    morphogen: str
    name: str
    data: dict[str, object]
    labels: LabelConfig
    test_sets: dict[str, str]
    settings: dict[str, JsonValue]
    network: str
    seeds: tuple[int, ...]
    extra: dict[str, ExpansionFacts] | None
    level: str
    over: str
    units: tuple[int | None, ...]
    figures: dict[str, dict[str, Average | None]]
    runs: tuple[RunScores, ...]
    baseline: BaselineComparison | None = None
    remarks: tuple[str, ...] = ()
    fingerprint: str | None = None


class FoldComparisonRow(Record):
    """One line of a comparison of training sets. published: its row of the published table, if there is one."""

    name: str
    level: str
    figures: dict[str, dict[str, Average | None]]
    baseline: BaselineComparison | None
    published: dict[str, JsonValue] | None
    over: str
    units: tuple[int | None, ...]
    extra: dict[str, ExpansionFacts] | None
    runs: tuple[RunScores, ...]
    remarks: tuple[str, ...]
    settings: dict[str, JsonValue]

    @classmethod
    def of(cls, results: ClassificationResults, name: str, published: dict[str, JsonValue] | None) -> FoldComparisonRow:
        """The row of a line's results."""
        kept = {k: v for k, v in results if k in cls.model_fields and k not in ("name", "published")}
        return cls(name=name, published=published, **kept)

    def published_figure(self, name: str) -> str:
        """A published mean and deviation as text; nothing if there is none."""
        value = (self.published or {}).get(name)
        return f"{value[0]} ± {value[1]}" if isinstance(value, list) else ""


class FoldComparison(Record):
    """The content of results.json of a comparison of training sets."""

    title: str
    level: str
    seeds: tuple[int, ...]
    baseline: str | None
    published_source: str
    rows: tuple[FoldComparisonRow, ...]
