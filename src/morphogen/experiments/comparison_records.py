"""The results of a comparison as typed records: figures.json of a trial, and the rows of results.json."""

from __future__ import annotations

from pydantic import JsonValue

from morphogen.metrics.records import Counts, EvaluationResults, Record


class TrialRecord(Record):
    """The content of figures.json: one model with one seed, trained and measured."""

    fingerprint: str
    name: str
    seed: int
    parameters: int
    steps: int
    training_images: int
    seconds_per_step: float | None
    held_out_noise_error: float | None
    results: EvaluationResults


class Estimate(Record):
    """A figure over seeds: its mean, and half the width of the 95 % interval, None with one value."""

    mean: float
    interval: float | None
    values: tuple[float, ...]


class CopyShares(Record):
    """Shares of copies among generated and among held-out images, means over seeds."""

    share: float
    held_out_share: float


class ComparisonRow(Record):
    """One model over its seeds. published: its row of the published table, if there is one."""

    name: str
    model: str | None
    recipe: str
    parameters: int
    runs: int
    steps: float
    training_images: float
    seconds_per_image: float
    copies: CopyShares | None
    images: Counts
    figures: dict[str, Estimate]
    published: dict[str, JsonValue] | None

    def published_figure(self, name: str) -> float | None:
        """A single published number of this row, if there is one."""
        value = (self.published or {}).get(name)
        return float(value) if isinstance(value, int | float) else None


class ComparisonSummary(Record):
    """The content of results.json."""

    title: str
    budget: dict[str, float | int]
    seeds: tuple[int, ...]
    published_source: str
    rows: tuple[ComparisonRow, ...]
