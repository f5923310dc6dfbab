"""The training loop: one for all models, on one device or many, resumable bit for bit on a CPU."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from morphogen.core import random
from morphogen.core.errors import InputError, Interrupted, NonFiniteError
from morphogen.data.dataset import ImageDataset, build_dataset
from morphogen.data.latents import LatentDataset
from morphogen.training.autoencoder import begin
from morphogen.training.batches import Sample, batches
from morphogen.training.clock import Clock
from morphogen.training.config import RunConfig, TrainingConfig
from morphogen.training.devices import Devices
from morphogen.training.levels import find_levels, finish, say_levels
from morphogen.training.recorder import Recorder
from morphogen.training.run_folder import RunFolder
from morphogen.training.schedule import learning_rate
from morphogen.training.setup import set_up
from morphogen.training.signals import StopSignals
from morphogen.training.state import TrainingState

_STREAM = 0x747261696E  # keeps the training images' seeds apart from those of samples


@dataclass(frozen=True)
class Result:
    """The facts of a finished training."""

    path: Path
    step: int
    images: int
    loss: float
    noise_error: float | None
    is_main_process: bool
    """Whether this is the process that speaks for all."""


def train(config: RunConfig, out: Path, *, quiet: bool = False) -> Result:
    """Train, or go on training, the run in the folder `out`.

    Image number n of the run, its augmentation, noise and timestep are functions of (seed, n), so an interrupted and
    resumed training gives what an uninterrupted one gives. SIGTERM and Ctrl-C save and raise Interrupted. Raises
    InputError where the data, the settings or the folder are not usable, NonFiniteError, before the step is taken,
    where the loss or the gradient is not finite, and MorphogenError where the folder is removed meanwhile.
    """
    RunFolder(out).check_not_inside(config.data.source)
    with Devices(config.training.devices) as devices, RunFolder(out).locked(devices.is_main_process) as folder:
        main = devices.is_main_process
        if config.levels.count > 1:
            state, images = _run_levels(config, folder, devices, quiet)
            return Result(folder.path, state.step, images, state.last_loss, state.last_error, main)
        data, minutes = None, 0.0
        if config.learns_autoencoder:
            data, first = begin(config, folder, devices, quiet)
            if first is not None:
                with RunFolder(folder.autoencoder).locked(main) as own:
                    _run(first, own, devices, quiet, data)
                minutes = first.training.minutes or 0.0
        state = _run(config, folder, devices, quiet, data, 60 * minutes)
        return Result(folder.path, state.step, state.images, state.last_loss, state.last_error, main)


def _run(
    config: RunConfig,
    folder: RunFolder,
    devices: Devices,
    quiet: bool,
    data: ImageDataset | None = None,
    spent_s: float = 0.0,
) -> TrainingState:
    """Train a run. data: its images, where they have been opened. spent_s: of its time budget, on what came before;
    what it took to encode its images counts too.
    """
    state, images, recorder = set_up(config, folder, devices, quiet, data)
    encoding_s = images.seconds if isinstance(images, LatentDataset) else 0.0
    try:
        _learn(config.training, state, images, devices, recorder, spent_s + encoding_s)
        recorder.last_grid()
    finally:
        recorder.close()
    return state


def _run_levels(config: RunConfig, folder: RunFolder, devices: Devices, quiet: bool) -> tuple[TrainingState, int]:
    """Train the levels of a pyramid, each a run of its own, and put them together: the state of the finest, and how
    many images all have learnt from.
    """
    main = devices.is_main_process
    if main:
        folder.check(config)
    levels = find_levels(config)
    data = build_dataset(levels[0].config.data, "train", seed=config.training.seed, progress=main and not quiet)
    if main:
        folder.write_config(config, data.split_file())
        say_levels(levels, quiet)
    state: TrainingState | None = None
    images, elapsed_s = 0, 0.0
    for number, level in enumerate(levels):
        with RunFolder(folder.level(number)).locked(main) as own:
            state = _run(level.config, own, devices, quiet, None if number else data)
        images, elapsed_s = images + state.images, elapsed_s + state.elapsed_s
    assert state is not None
    if main:
        finish(config, folder, {**state.facts(), "elapsed_s": elapsed_s}, data, devices.device)
    return state, images


def _learn(
    settings: TrainingConfig,
    state: TrainingState,
    data: ImageDataset,
    devices: Devices,
    recorder: Recorder,
    spent_s: float,
) -> None:
    """Take steps until the budget is used up, and leave the run saved."""
    share = settings.batch_size // devices.count  # the images of a step that this process learns from
    offset, saving = devices.index * share, settings.saving
    stream = batches(data, state.images + offset, share, settings.batch_size, settings.devices.workers)
    loss_of = devices.loss_function(state.model)
    clock = Clock(settings, state, devices)
    if settings.minutes is not None:
        clock.reserve(spent_s + recorder.fit_grid(60 * settings.minutes - spent_s))
    state.cooldown.begin(state.step, clock.spent)
    state.model.train()
    saved: bool | None = None
    with StopSignals() as stop, recorder.progress:
        done = clock.is_over(stop.received)
        while not done:
            clock.begin_step()
            images, labels, maps = _next(stream, recorder).on(devices.device)
            first_image = state.images + offset
            seeds = tuple(random.mix(settings.seed, _STREAM, first_image + i) for i in range(share))

            rate = learning_rate(settings, state.step) * state.cooldown.factor(state.step, clock.spent)
            for group in state.optimizer.param_groups:
                group["lr"] = rate
            loss = loss_of(images, labels, seeds, maps)
            devices.backward(loss)
            gradient = _clipped_gradient_norm(state.model, settings.optimizer.clip_gradient)
            mean_loss = devices.mean(loss)
            if not (math.isfinite(mean_loss) and math.isfinite(gradient)):
                raise _not_finite(state.step, mean_loss, gradient, [data.name(first_image + i) for i in range(share)])
            state.optimizer.step()
            state.optimizer.zero_grad()
            state.step += 1
            state.ema.update(state.model, state.step)

            state.last_loss = mean_loss
            clock.tick()
            state.cooldown.begin(state.step, clock.spent)
            recorder.step(rate, gradient, clock.spent)
            done = clock.is_over(stop.received)
            if state.step % saving.sample_every == 0 and not stop.received:
                recorder.grid()
            if done or state.step % saving.checkpoint_every == 0 or state.step == state.cooldown.start:
                saved = recorder.save()
        if saved is None:  # there was nothing left to do: what a killed run may not have written out
            saved = recorder.save()
    if devices.any(stop.received):
        if not saved:
            raise Interrupted(f"stopped at step {state.step}, which could not be saved; see the warnings above")
        raise Interrupted(f"stopped at step {state.step} and saved; the same command goes on from there")
    if not saved:
        raise InputError(
            f"the training reached step {state.step}, which could not be saved; see the warnings above, free some "
            "space and give the same command again"
        )


def _next(stream: Iterator[Sample], recorder: Recorder) -> Sample:
    """The next batch; an image that has become unreadable ends the training, but not before it is saved."""
    try:
        return next(stream)
    except InputError:
        recorder.save()
        raise


def _clipped_gradient_norm(model: nn.Module, limit: float | None) -> float:
    """The norm of the whole gradient, which is then clipped where that was asked for."""
    parameters = list(model.parameters())
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if limit is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return float(norm)


def _not_finite(step: int, loss: float, gradient: float, names: list[str]) -> NonFiniteError:
    return NonFiniteError(
        f"step {step + 1} was not taken: the loss is {loss:g} and the gradient's norm {gradient:g} on the batch of "
        f"{', '.join(names)}; the last good checkpoint is kept, and a lower training.optimizer.learning_rate may help"
    )
