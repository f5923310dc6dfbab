"""A run's numbers as TensorBoard files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from morphogen.core.errors import InputError


class TensorBoard:
    """Writes into a folder, which forgets all that came after step `step`. Raises InputError without tensorboard."""

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise InputError(
                'training.saving.tensorboard needs TensorBoard; install it with pip install "morphogen[tensorboard]"'
            ) from None
        self._writer: Any = SummaryWriter(folder, purge_step=step + 1)

    def write(self, record: Mapping[str, float], step: int) -> None:
        """Write the numbers of a step."""
        for name, value in record.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Finish the files."""
        self._writer.close()
