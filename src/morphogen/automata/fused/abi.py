"""The arguments of the compiled kernels: the structures of abi.h, and holding them against a library's when it is
loaded.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

from torch import Tensor

_INT, _LONG, _REAL, _POINTER = ctypes.c_int32, ctypes.c_int64, ctypes.c_double, ctypes.c_void_p


class _Structure(ctypes.Structure):
    """A structure of which abi.h has the other copy, with a word on each field."""

    def point(self, tensors: Mapping[str, Tensor]) -> None:
        """Let the fields of these names point to tensors, contiguous ones, which must live as long as this is used."""
        for name, tensor in tensors.items():
            setattr(self, name, tensor.data_ptr())


class RuleWeights(_Structure):
    """A rule's widths and weights."""

    _fields_ = (
        *((name, _INT) for name in ("channels", "hidden", "embedding", "group", "mapping_hidden", "embed_hidden")),
        *((name, _REAL) for name in ("norm_epsilon", "leaky_slope")),
        *((name, _POINTER) for name in ("perceive", "into_hidden", "output", "perceive_bias", "hidden_bias")),
        *((name, _POINTER) for name in ("output_bias", "norm_weight", "norm_bias")),
        *((f"scale1_{name}", _POINTER) for name in ("first", "first_bias", "second", "second_bias")),
        *((f"scale2_{name}", _POINTER) for name in ("first", "first_bias", "second", "second_bias")),
        *((name, _POINTER) for name in ("embed_out", "embed_out_bias")),
    )


class RunArguments(_Structure):
    """A run of some steps over a batch."""

    _fields_ = (
        *((name, _INT) for name in ("batch", "height", "width", "reflect", "steps", "images", "cell_count", "threads")),
        *((name, _POINTER) for name in ("state", "step_perceive_bias", "step_hidden_bias", "step_scale1")),
        *((name, _POINTER) for name in ("step_scale2", "by_x", "by_y", "fire", "cells", "history", "statistics")),
    )


class RuleGradients(_Structure):
    """Where gradients are added to."""

    _fields_ = (
        *((name, _POINTER) for name in ("perceive", "into_hidden", "output", "output_bias", "norm_weight")),
        *((name, _POINTER) for name in ("norm_bias", "perceive_bias", "hidden_bias", "step_perceive_bias")),
        *((name, _POINTER) for name in ("step_hidden_bias", "step_scale1", "step_scale2")),
        *((f"scale1_{name}", _POINTER) for name in ("first", "first_bias", "second", "second_bias")),
        *((f"scale2_{name}", _POINTER) for name in ("first", "first_bias", "second", "second_bias")),
        *((name, _POINTER) for name in ("embed_out", "embed_out_bias", "by_x", "by_y")),
    )


class FireArguments(_Structure):
    """Which cells fire."""

    _fields_ = (
        ("threshold", ctypes.c_uint64),
        *((name, _POINTER) for name in ("keys", "origins", "active", "fire")),
        *((name, _INT) for name in ("batch", "height", "width", "steps", "threads")),
    )


class AttentionArguments(_Structure):
    """Attention of chosen cells to their neighbours, and its gradients."""

    _fields_ = (
        *((name, _POINTER) for name in ("queries", "keys", "values")),
        ("stride", _LONG),
        ("cells", _POINTER),
        ("count", _LONG),
        *((name, _INT) for name in ("height", "width", "heads", "deep", "masked", "threads")),
        *((name, _POINTER) for name in ("out", "weights", "d_out", "d_queries", "d_keys", "d_values")),
    )


_STRUCTURES = (RuleWeights, RunArguments, RuleGradients, FireArguments, AttentionArguments)


def description() -> str:
    """Sizes, and each field's name, offset and size, in the words of `kernel_abi`."""
    lines = []
    for structure in _STRUCTURES:
        fields = []
        for name, *_ in structure._fields_:
            field: Any = getattr(structure, name)
            fields.append(f"{name}@{field.offset}+{field.size}")
        lines.append(" ".join((f"{structure.__name__}+{ctypes.sizeof(structure)}", *fields)))
    return "".join(f"{line}\n" for line in lines)


_FUNCTIONS: dict[str, tuple[type, ...]] = {
    "nca_rule": (ctypes.POINTER(RuleWeights), ctypes.POINTER(_POINTER)),
    "nca_run": (_POINTER, ctypes.POINTER(RunArguments)),
    "nca_forward": (_POINTER, ctypes.POINTER(RunArguments)),
    "nca_history": (_POINTER, ctypes.POINTER(RunArguments), ctypes.POINTER(_LONG)),
    "nca_backward": (_POINTER, ctypes.POINTER(RunArguments), ctypes.POINTER(RuleGradients)),
    "nca_fire": (ctypes.POINTER(FireArguments),),
    "neighbours_attend": (ctypes.POINTER(AttentionArguments),),
    "neighbours_gradients": (ctypes.POINTER(AttentionArguments),),
}


def declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """Give a library's functions their types; what they return with is checked from then on.

    Raises OSError where its structures are not these.
    """
    library.kernel_abi.restype = library.kernel_error.restype = ctypes.c_char_p
    if library.kernel_abi().decode() != description():
        raise OSError("its structures are not those of this version")

    def check(status: int, function: object, arguments: object) -> None:
        if status:
            reason = library.kernel_error().decode(errors="replace")
            raise (
                MemoryError("the fast kernel ran out of memory")
                if "bad_alloc" in reason
                else RuntimeError(f"the fast kernel failed: {reason}")
            )

    for name, types in _FUNCTIONS.items():
        if hasattr(library, name):
            function = getattr(library, name)
            function.argtypes, function.restype, function.errcheck = types, ctypes.c_int, check
    if hasattr(library, "nca_free"):
        library.nca_free.argtypes, library.nca_free.restype = (_POINTER,), None
    return library
