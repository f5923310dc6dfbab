"""The settings of `classify`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from morphogen.experiments.classifier import (
    DEFAULT_MIX,
    DEFAULT_NETWORK,
    ClassifierSettings,
    Schedule,
)

Test = Literal["t", "wilcoxon"]


@dataclass(frozen=True)
class ClassificationSettings:
    """How to classify; the classifier's own settings are those of `ClassifierSettings`.

    epochs: instead of steps, times the real training images of a fold, so that an expansion gets no longer training
    than its baseline. fold: only this one. extra: the folder of an expansion, `{fold}` standing for the fold's number.
    schedule: `choose` trains with and without the generated images, and keeps what predicts the validation images
    better. baseline: a results.json to compare with.
    """

    steps: int | None = None
    epochs: float | None = None
    batch_size: int = 32
    learning_rate: float = 1e-3
    augment: Literal["geometric", "none"] = "geometric"
    seeds: tuple[int, ...] = (0,)
    fold: int | None = None
    extra: str | None = None
    baseline: Path | None = None
    test: Test = "t"
    name: str | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    network: str = DEFAULT_NETWORK
    weights: str | None = None
    mix: float = DEFAULT_MIX
    schedule: Schedule = "choose"
    device: str = "cpu"
    quiet: bool = False

    def classifier(self, real: int) -> ClassifierSettings:
        """How the classifier of a fold with `real` real training images is trained."""
        return ClassifierSettings(
            steps=self.steps or max(1, round((self.epochs or 0) * real / self.batch_size)),
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            augment=self.augment,
            precision=self.precision,
            device=self.device,
            network=self.network,
            weights=self.weights,
            mix=self.mix,
            schedule=self.schedule,
        )
