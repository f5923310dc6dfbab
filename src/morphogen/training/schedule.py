"""The learning rate over time, and its fall to zero at the end of the budget."""

from __future__ import annotations

import math
from typing import TypedDict

from morphogen.core.errors import InputError
from morphogen.training.config import TrainingConfig


def learning_rate(config: TrainingConfig, step: int) -> float:
    """The learning rate of step number `step` (from 0), before any cooldown: whatever the run's length."""
    schedule, rate = config.schedule, config.optimizer.learning_rate
    if schedule.warmup:
        rate *= min(1.0, (step + 1) / schedule.warmup)
    if schedule.decay == "exponential":
        return rate * schedule.decay_rate**step
    if schedule.decay == "inverse_sqrt":
        return rate / math.sqrt(max(1.0, step / schedule.decay_after))
    return rate


class CooldownFacts(TypedDict):
    """The cooldown that a checkpoint lies in."""

    share: float
    steps: int | None
    minutes: float | None
    start: int


class Cooldown:
    """The last share of a budget, over which the learning rate falls linearly to zero (Zhai et al., "Scaling vision
    transformers", 2022; Hägele et al., "Scaling laws and compute-optimal training beyond fixed training durations",
    2024).

    Every step before it is the same for every budget, so a longer run goes on from the checkpoint at `start`.

    start: the step after which the rate falls; None where it does not, or where it falls by time and has not begun.
    """

    def __init__(self, config: TrainingConfig) -> None:
        self.share, self.steps, self.minutes = config.schedule.cooldown, config.steps, config.minutes
        self.start: int | None = None
        if self.share and self.steps is not None:
            self.start = self.steps - round(self.share * self.steps)

    def begin(self, step: int, spent: float) -> None:
        """Begin the fall by time after step number `step`. spent: the share of the time budget that is over."""
        if self.share and self.minutes is not None and self.start is None and spent >= 1 - self.share:
            self.start = step

    def factor(self, step: int, spent: float) -> float:
        """The factor of the learning rate in step number `step` (from 0). spent: as for `begin`."""
        if self.start is None or step < self.start:
            return 1.0
        if self.steps is None:
            return min(1.0, max(0.0, (1 - spent) / self.share))
        return max(0.0, (self.steps - step) / (self.steps - self.start)) if self.steps > self.start else 1.0

    def facts(self, step: int) -> CooldownFacts | None:
        """The facts of the fall for a checkpoint after `step` steps; None where it has not begun."""
        if self.start is None or step <= self.start:
            return None
        return {"share": self.share, "steps": self.steps, "minutes": self.minutes, "start": self.start}

    def suits(self, step: int, facts: CooldownFacts | None) -> bool:
        """Whether a run with this budget can go on from a checkpoint after `step` steps that says `facts`: the fall has
        not begun for either, or is the same.
        """
        if facts is None:
            return self.steps is None or self.start is None or step <= self.start
        same = (facts.get("share"), facts.get("steps"), facts.get("minutes")) == (self.share, self.steps, self.minutes)
        if same:
            self.start = int(facts["start"])
        return same

    def refuse(self, folder: object) -> InputError:
        """The error for a run of which no checkpoint suits."""
        return InputError(
            f"{folder} keeps no checkpoint up to step {self.start}, after which the learning rate of a run of "
            f"{self.steps} steps falls (training.schedule.cooldown); give more --steps"
        )
