"""How images are to be sampled, in one record that every command, task and model is handed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from morphogen.core.errors import InputError

PrecisionChoice = Literal["auto", "bfloat16", "float32"]
Precision = Literal["bfloat16", "float32"]


@dataclass(frozen=True)
class SamplingRequest:
    """A user's choices for sampling; None leaves it to the model, which `Model.resolve` asks.

    sampler: by its name. steps: sampling steps. guidance: the classifier-free guidance scale; 1 is none. nca_steps: NCA
    steps of an evaluation, instead of the model's own. precision: what the model computes in, from `compute_in` on.
    Raises InputError for what no model could do.
    """

    sampler: str | None = None
    steps: int | None = None
    guidance: float = 1.0
    nca_steps: int | None = None
    precision: PrecisionChoice = "auto"

    def __post_init__(self) -> None:
        if not 0 <= self.guidance < float("inf"):
            raise InputError(
                f"the guidance scale is {self.guidance:g}; it should be a number of at least 0, 1 for no guidance"
            )
        if self.precision not in get_args(PrecisionChoice):
            known = ", ".join(get_args(PrecisionChoice))
            raise InputError(f"precision is '{self.precision}'; it should be one of {known}")
