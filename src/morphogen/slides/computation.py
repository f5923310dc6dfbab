"""The precision and kernel that a slide is computed in, so that every worker and every later start computes alike."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict

from morphogen.core.request import PrecisionChoice
from morphogen.diffusion.denoiser import Denoiser


class Backend(StrEnum):
    """Who does the arithmetic."""

    KERNEL = "kernel"
    PYTORCH = "pytorch"


class Computation(BaseModel):
    """Precision, backend and kind of device of a model's evaluations."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: Literal["float32", "bfloat16"]
    backend: Backend
    device_type: str

    @property
    def any_shape(self) -> bool:
        """Whether a cell's bits are the same in tiles of any shape: so it is with the kernel on a CPU, and nothing else
        promises it.
        """
        return self.backend is Backend.KERNEL and self.device_type == "cpu"

    def __str__(self) -> str:
        by = {Backend.KERNEL: "by the fast kernel on", Backend.PYTORCH: "by PyTorch on"}[self.backend]
        return f"{self.precision} {by} {self.device_type}"


def prepare(model: Denoiser, device: str, precision: PrecisionChoice, approximate: bool = False) -> Computation:
    """Put a model on a device in its fast form; what it then computes in. approximate: in overlapping windows,
    with frozen statistics, which the fast kernel does not know.
    """
    model.to(device)
    model.compute_in(None if approximate and model.spatial_norms() else precision)
    backend = Backend.KERNEL if model.uses_kernel else Backend.PYTORCH
    return Computation(precision=model.precision, backend=backend, device_type=model.device.type)
