"""The cost of a training, estimated from one small measured step."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from morphogen.core.keys import Key
from morphogen.core.model import Batch, Model
from morphogen.training.autoencoder import autoencoder_run
from morphogen.training.build import build
from morphogen.training.config import RunConfig
from morphogen.training.devices import Devices

_PROBE_SIDE = 64
# Keeping only each step's state takes about a tenth of the memory and a third more time (measured).
_RECOMPUTE_MEMORY, _RECOMPUTE_TIME = 0.12, 1.35
_KEEP_SHARE = 0.3  # of the free memory may be spent on kept activations
_OPTIMIZER_COPIES = 5  # weights, gradients, two Adam moments, EMA


@dataclass(frozen=True)
class StepEstimate:
    """Of one training step, and of a checkpoint on disk."""

    seconds: float
    kept_bytes: int
    """Bytes that the backward pass needs, with everything kept."""
    checkpoint_bytes: int


def estimate_step(config: RunConfig, model: Model, devices: Devices, timed: bool = True) -> StepEstimate:
    """Measure the forward and backward pass of one image of at most 64x64, and scale it to a step.

    timed: run it twice and take the time of the second, instead of only counting what is kept.
    """
    height, width, channels = model.image.height, model.image.width, model.image.channels
    least = max(_PROBE_SIDE, model.minimum_size)
    side = (min(height, least), min(width, least))
    images = torch.zeros(1, channels, *side, device=devices.device)
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    recompute, model.recompute = model.recompute, False
    training = model.training
    model.train()
    try:
        seconds = 0.0
        for _ in range(2 if timed else 1):
            kept.clear()
            started = time.perf_counter()
            autocast = torch.autocast(devices.device.type, torch.bfloat16, devices.precision == "bfloat16")
            with autocast, torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
                loss = model.training_loss(Batch(images), Key.of([0]))
            total = sum(kept.values())
            loss.backward()  # type: ignore[no-untyped-call]
            seconds = time.perf_counter() - started
        model.zero_grad()
    finally:
        model.recompute = recompute
        model.train(training)
    known = model.kept_bytes(1, side)
    total = total if known is None else known
    scale = config.training.batch_size // devices.count * (height * width) / (side[0] * side[1])
    weights = 4 * model.parameter_count()
    return StepEstimate(seconds * scale, int(total * scale), weights * (_OPTIMIZER_COPIES - 1))


def wants_recompute(config: RunConfig, model: Model, devices: Devices) -> bool:
    """Whether to compute activations again in the backward pass: as configured, or by the free memory."""
    if config.training.devices.recompute != "auto":
        return config.training.devices.recompute == "always"
    kept = estimate_step(config, model, devices, timed=False).kept_bytes
    return kept > _KEEP_SHARE * free_memory(devices.device)


def free_memory(device: torch.device) -> int:
    """Bytes free for us on a device; 8 GiB where the system doesn't say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        return int(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):
        return 8 * 2**30


@dataclass(frozen=True)
class RunEstimate:
    """The figures of `train --dry-run`: counts, and estimates of time, memory and disk."""

    parameters: int
    deployed_parameters: int
    autoencoder_parameters: int
    """Of the autoencoder that is learnt first; 0 without one."""
    autoencoder_seconds: float
    recompute: bool
    steps: int
    seconds_per_step: float
    seconds: float
    memory_bytes: int
    disk_bytes: int


def estimate_run(config: RunConfig, model: Model, devices: Devices) -> RunEstimate:
    """Estimate a whole training from one small measured step, or two where it learns an autoencoder first."""
    first_seconds, first_disk = 0.0, 0
    if config.learns_autoencoder:
        first = autoencoder_run(config)
        learning = estimate_run(first, build(first, devices), devices)
        first_seconds, first_disk = learning.seconds, learning.disk_bytes
    measured = estimate_step(config, model, devices)
    recompute = wants_recompute(config, model, devices)
    time_factor, memory_factor = (_RECOMPUTE_TIME, _RECOMPUTE_MEMORY) if recompute else (1.0, 1.0)
    settings = config.training
    seconds = measured.seconds * time_factor
    left = max(0.0, 60 * settings.minutes - first_seconds) if settings.minutes else 0.0
    steps = settings.steps or int(left / seconds)
    return RunEstimate(
        parameters=model.parameter_count(),
        deployed_parameters=model.deployed_parameter_count(),
        autoencoder_parameters=model.autoencoder_parameters(),
        autoencoder_seconds=first_seconds,
        recompute=recompute,
        steps=steps,
        seconds_per_step=seconds,
        seconds=60 * settings.minutes if settings.minutes else first_seconds + seconds * steps,
        memory_bytes=int(measured.kept_bytes * memory_factor) + 4 * model.parameter_count() * _OPTIMIZER_COPIES,
        disk_bytes=first_disk + measured.checkpoint_bytes * (settings.saving.keep_checkpoints + 1) + 120 * steps,
    )
