"""Where a training runs: one device or several processes, through accelerate."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from morphogen.automata.fused.build import has_bfloat16
from morphogen.core.errors import InputError
from morphogen.core.images import to_float
from morphogen.core.keys import Key
from morphogen.core.model import Batch, Model
from morphogen.training.config import DevicesConfig
from morphogen.training.processes import join_processes


def pick_device(name: str) -> torch.device:
    """The device for `auto`, `cpu`, `cuda` or `mps`. Raises InputError where it is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if there[kind])
    if not there.get(name, False):
        raise InputError(f"--device {name}: this machine or this PyTorch has none; use --device cpu")
    return torch.device(name)


def resolve_precision(precision: str, device_type: str) -> Literal["bfloat16", "float32"]:
    """The meaning of `auto`, `bfloat16` or `float32` in training on a type of device."""
    if precision == "auto":
        on_cuda = device_type == "cuda" and torch.cuda.is_bf16_supported()
        return "bfloat16" if on_cuda or (device_type == "cpu" and has_bfloat16()) else "float32"
    return "bfloat16" if precision == "bfloat16" else "float32"


class _Loss(nn.Module):
    """The loss as a forward pass, which is what data parallelism can wrap."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, labels: Tensor, seeds: tuple[int, ...], maps: Tensor | None) -> Tensor:
        told = maps if self.model.classes else None
        batch = Batch(to_float(images), labels if len(self.model.labels) else None, told)
        return self.model.training_loss(batch, Key(seeds))


class Devices:
    """The processes of a training and their devices. One process unless started by torchrun or `accelerate launch`.

    Raises InputError where the environment speaks of processes that do not come.
    """

    def __init__(self, config: DevicesConfig) -> None:
        from accelerate import Accelerator

        kind = pick_device(config.device).type
        self.precision = resolve_precision(config.precision, kind)
        join_processes(kind)
        mixed = "bf16" if self.precision == "bfloat16" else "no"
        self._accelerator: Any = Accelerator(cpu=kind == "cpu", mixed_precision=mixed)
        self.device: torch.device = self._accelerator.device
        self.count: int = self._accelerator.num_processes
        self.index: int = self._accelerator.process_index

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        from accelerate.state import AcceleratorState

        if self.count > 1:
            torch.distributed.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)  # so that a next training may have another precision

    @property
    def is_main_process(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.index == 0

    def loss_function(self, model: Model) -> Callable[[Tensor, Tensor, tuple[int, ...], Tensor | None], Tensor]:
        """The loss of images uint8 (B, C, H, W), the rows of their labels (B, K), their seeds, and their maps uint8 (B,
        H, W), labels and maps only of a model that takes any; its gradients are averaged over all processes.
        """
        return self._accelerator.prepare(_Loss(model))  # type: ignore[no-any-return]

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients."""
        self._accelerator.backward(loss)

    def mean(self, value: Tensor) -> float:
        """The mean of a number over all processes."""
        return float(self._accelerator.reduce(value.detach().float(), reduction="mean"))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.count == 1:
            return flag
        return bool(self._accelerator.reduce(torch.tensor(float(flag), device=self.device), reduction="sum") > 0)

    def from_main(self, value: float) -> float:
        """A number of the main process, the same in all."""
        if self.count == 1:
            return value
        own = value if self.is_main_process else 0.0
        return float(self._accelerator.reduce(torch.tensor(own, device=self.device), reduction="sum"))
