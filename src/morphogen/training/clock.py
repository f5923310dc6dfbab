"""When a training ends: after its steps, or when its time is over."""

from __future__ import annotations

import statistics
import time
from collections import deque

from morphogen.training.config import TrainingConfig
from morphogen.training.devices import Devices
from morphogen.training.state import TrainingState

_REMEMBERED = 5  # steps, so that a single slow one ends nothing


class Clock:
    """The time of a training, which goes on from what `state` has taken before.

    spent: the share of the time budget that is over, the same in all processes; 0 for a budget of steps.
    """

    def __init__(self, settings: TrainingConfig, state: TrainingState, devices: Devices) -> None:
        self.settings, self.state, self.devices = settings, state, devices
        self._started, self._before_s = time.monotonic(), state.elapsed_s
        self._step_started: float | None = None
        self._steps: deque[float] = deque(maxlen=_REMEMBERED)
        self._limit_s = None if settings.minutes is None else 60 * settings.minutes
        self.spent = 0.0

    def reserve(self, seconds: float) -> None:
        """Leave time for what follows the last step."""
        if self._limit_s is not None:
            self._limit_s = max(1e-3, self._limit_s - self.devices.from_main(seconds))
        self.tick()

    def begin_step(self) -> None:
        """A step begins; the next `tick` is its end."""
        self._step_started = time.monotonic()

    def tick(self) -> None:
        """Look at the time. All of a budget is spent where another step, as long as the median of the last ones, would
        go beyond it.
        """
        now = time.monotonic()
        if self._step_started is not None:
            self._steps.append(now - self._step_started)
        self.state.elapsed_s = self._before_s + now - self._started
        if self._limit_s is not None:
            over = self.state.elapsed_s + (statistics.median(self._steps) if self._steps else 0.0) > self._limit_s
            self.spent = self.devices.from_main(1.0 if over else self.state.elapsed_s / self._limit_s)

    def is_over(self, stopped: bool) -> bool:
        """Whether the training ends here, for all processes alike; not before its first step, however short its time.

        stopped: whether this process was asked to stop.
        """
        settings, state = self.settings, self.state
        spent = self.spent >= 1 and state.step > 0
        if settings.minutes is not None and (spent or settings.minutes <= (state.spent_minutes or 0)):
            state.spent_minutes = max(settings.minutes, state.spent_minutes or 0)
            return True
        return self.devices.any(stopped or (settings.steps is not None and state.step >= settings.steps))
