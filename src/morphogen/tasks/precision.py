"""The precision that a model computes in."""

from __future__ import annotations

from morphogen.automata.fused.compiler import native
from morphogen.core.model import Model
from morphogen.core.notices import say_once
from morphogen.core.request import PrecisionChoice


def use_precision(model: Model, precision: PrecisionChoice) -> None:
    """Compute in a precision, by the fast kernel from now on; say once if there is none and what that changes."""
    reason = model.compute_in(precision)
    if reason is None:
        return
    note = f"note: sampling without the fast kernel: {reason}"
    if precision == "auto" and model.precision == "float32" and model.device.type == "cpu" and native().bfloat16:
        note += (
            "; it computes in float32 then instead of bfloat16, so a seed gives another picture than with the kernel "
            "(--precision float32 gives the same with and without)"
        )
    say_once(note)
