"""Where a training runs: one device or several processes, through accelerate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from morphogen.automata.fused.build import has_bfloat16
from morphogen.core.errors import InputError
from morphogen.core.images import to_float
from morphogen.core.keys import Key
from morphogen.core.model import Batch, LabelConfig, Model
from morphogen.core.notices import say_once
from morphogen.diffusion.latents import Autoencoder
from morphogen.models import build_model
from morphogen.training.config import RunConfig, TrainingConfig

_PATIENCE = timedelta(hours=24)  # how long processes wait for one that still encodes latents or reads a slow disk


def pick_device(name: str) -> torch.device:
    """The device for `auto`, `cpu`, `cuda` or `mps`. Raises InputError where it is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if there[kind])
    if not there.get(name, False):
        raise InputError(f"--device {name}: this machine or this PyTorch has none; use --device cpu")
    return torch.device(name)


def computed_in(config: TrainingConfig) -> Literal["bfloat16", "float32"]:
    """What `precision` means on the device of a training."""
    if config.precision != "auto":
        return config.precision
    kind = pick_device(config.device).type
    there = has_bfloat16() if kind == "cpu" else kind == "cuda" and torch.cuda.is_bf16_supported()
    return "bfloat16" if there else "float32"


def use_kernel(model: Model, config: TrainingConfig) -> None:
    """Use the model's fast form in training, as configured; say once where there is none."""
    reason = model.compute_in(computed_in(config)) if config.kernel == "auto" else None
    if reason is not None:
        say_once(f"note: training without the fast kernel: {reason}")


class _Objective(nn.Module):
    """The loss as a forward pass, which is what data parallelism can wrap."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, labels: Tensor, seeds: tuple[int, ...]) -> Tensor:
        batch = Batch(to_float(images), labels if len(self.model.labels) else None)
        return self.model.training_loss(batch, Key(seeds))


class Devices:
    """The processes of a training and their devices. One process unless started by torchrun or `accelerate launch`."""

    def __init__(self, config: TrainingConfig) -> None:
        from accelerate import Accelerator, InitProcessGroupKwargs

        kind = pick_device(config.device).type
        narrow = computed_in(config) == "bfloat16"
        patient = InitProcessGroupKwargs(timeout=_PATIENCE)
        self._accelerator: Any = Accelerator(
            cpu=kind == "cpu", mixed_precision="bf16" if narrow else "no", kwargs_handlers=[patient]
        )
        self.device: torch.device = self._accelerator.device
        self.count: int = self._accelerator.num_processes
        self.index: int = self._accelerator.process_index
        self._writer: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        from accelerate.state import AcceleratorState

        if self._writer is not None:
            self._writer.close()
        if self.count > 1:
            torch.distributed.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)  # so that a next training may have another precision

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.index == 0

    def build(
        self, config: RunConfig, labels: LabelConfig | None = None, autoencoder: Autoencoder | None = None
    ) -> Model:
        """The model of a run, fresh from the run's seed, on this process's device. labels: those of the data."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.training.seed)
            model = build_model(config.model_settings(labels, autoencoder), f"model '{config.model}'")
        return model.to(self.device)

    def objective(self, model: Model) -> Callable[[Tensor, Tensor, tuple[int, ...]], Tensor]:
        """The loss of images uint8 (B, C, H, W), the rows of their labels (B, K), which a model without labels is not
        told, and their seeds; its gradients are averaged over all processes.
        """
        return self._accelerator.prepare(_Objective(model))  # type: ignore[no-any-return]

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

    def log_to(self, folder: Path, step: int) -> None:
        """Also write what `log` is given to TensorBoard files in a folder, which forget all that came after `step`.

        Raises InputError without tensorboard.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise InputError(
                'training.tensorboard needs TensorBoard; install it with pip install "morphogen[tensorboard]"'
            ) from None
        self._writer = SummaryWriter(folder, purge_step=step + 1)

    def log(self, record: Mapping[str, float], step: int) -> None:
        """Write the numbers of a step to TensorBoard, where that was asked for."""
        if self._writer is not None:
            for name, value in record.items():
                self._writer.add_scalar(name, value, step)
