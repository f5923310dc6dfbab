"""Opening ONNX files, which users bring: as feature networks and as autoencoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from morphogen.core.errors import InputError, first_line, missing_extra


def open_onnx(file: Path) -> Any:
    """An onnxruntime session on the CPU, with as many threads as PyTorch has.

    Raises InputError without onnxruntime, and if there is no such file or it is damaged.
    """
    try:
        import onnxruntime
    except ImportError:
        raise missing_extra("onnx", "onnxruntime") from None
    import torch

    if not file.is_file():
        raise InputError(f"onnx:{file}: there is no such file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common base that is public
        raise InputError(f"onnx:{file} cannot be opened: {first_line(error)}") from None


def run_onnx(session: Any, file: Path, values: Any) -> Any:
    """The first output of a session for its one input. Raises InputError, naming the file, where it fails."""
    try:
        return session.run(None, {session.get_inputs()[0].name: values})[0]
    except Exception as error:
        reason = first_line(error)
        raise InputError(f"onnx:{file} failed on an input of {tuple(values.shape)}: {reason}") from None
