"""The training loop: one for all models, on one device or many, resumable bit for bit on a CPU."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from morphogen.core import random
from morphogen.core.console import say
from morphogen.core.errors import InputError, Interrupted, NonFiniteError
from morphogen.core.progress import Progress
from morphogen.data.dataset import ImageDataset, build_dataset
from morphogen.diffusion.denoiser import Denoiser
from morphogen.training.batches import batches
from morphogen.training.config import RunConfig
from morphogen.training.devices import Devices, use_kernel
from morphogen.training.estimate import wants_recompute
from morphogen.training.latents import into_latents
from morphogen.training.optimizer import learning_rate
from morphogen.training.publish import publish, write_samples
from morphogen.training.run_folder import Log, RunFolder, length_until
from morphogen.training.signals import StopSignals
from morphogen.training.state import TrainingState
from morphogen.training.validation import noise_error

_STREAM = 0x747261696E  # keeps the training images' seeds apart from those of samples


@dataclass(frozen=True)
class Result:
    """What a finished training says of itself."""

    path: Path
    step: int
    images: int
    loss: float
    noise_error: float | None
    first: bool
    """Whether this is the process that speaks for all."""


def train(config: RunConfig, out: Path, *, quiet: bool = False) -> Result:
    """Train, or go on training, the run in the folder `out`.

    Image number n of the run, its augmentation, noise and timestep are functions of (seed, n), so an interrupted and
    resumed training gives what an uninterrupted one gives. SIGTERM and Ctrl-C save and raise Interrupted. Raises
    InputError where the data, the settings or the folder are not usable, and NonFiniteError, before the step is taken,
    where the loss or the gradient is not finite.
    """
    RunFolder(out).refuse_inside(config.data.source)
    with Devices(config.training) as devices, RunFolder(out).locked(devices.first) as folder:
        return _Training(config, folder, devices, quiet).run()


class _Training:
    def __init__(self, config: RunConfig, folder: RunFolder, devices: Devices, quiet: bool) -> None:
        self.config, self.folder, self.devices, self.quiet = config, folder, devices, quiet
        settings = config.training
        if settings.batch_size % devices.count:
            raise InputError(f"--batch-size {settings.batch_size} cannot be shared evenly by {devices.count} processes")
        if devices.first:
            folder.check(config)  # before the data is read, which may take long
        autoencoder = config.open_autoencoder()
        model = devices.build(config, config.read_labels(), autoencoder)
        use_kernel(model, config.training)
        self.data = build_dataset(config.data, "train", seed=settings.seed, progress=devices.first and not quiet)
        if len(model.labels):
            self.data.refuse_empty_classes()
        self.held_out = self._open_held_out()
        if autoencoder is not None:
            self.data, self.held_out = into_latents(
                self.data, self.held_out, autoencoder, model, folder, devices, quiet
            )
        self.state = TrainingState(model, config, self.data.identity())
        model.recompute = wants_recompute(config, model, devices)
        log_length, remarks = self.state.resume(folder, owner=devices.first)
        for remark in remarks:
            self._say(remark)
        if settings.compile:
            model.compile_steps()
        if devices.first:
            folder.write_config(config, self.data.split_file())
            self.metrics = Log(folder.metrics, log_length)
            self.timing = Log(folder.timing, length_until(folder.timing, self.state.step))
            if settings.tensorboard:
                devices.log_to(folder.path / "tensorboard", self.state.step)
        self.objective = devices.objective(model)

    def run(self) -> Result:
        state, settings, devices = self.state, self.config.training, self.devices
        share = settings.batch_size // devices.count
        first_of_share = state.images + devices.index * share
        stream = batches(self.data, first_of_share, share, settings.batch_size, settings.workers)
        started, before_s = time.monotonic(), state.elapsed_s
        saved = drawn = -1  # the step of the last checkpoint and of the last sheet that this process made
        state.model.train()
        with StopSignals() as stop, self._progress() as progress:
            while not self._finished(stop):
                images, labels = (x.to(devices.device, non_blocking=True) for x in self._next(stream))
                first_image = state.images + devices.index * share
                seeds = tuple(random.mix(settings.seed, _STREAM, first_image + i) for i in range(share))

                rate = learning_rate(settings, state.step)
                for group in state.optimizer.param_groups:
                    group["lr"] = rate
                loss = self.objective(images, labels, seeds)
                devices.backward(loss)
                gradient = self._clipped_gradient_norm()
                mean_loss = devices.mean(loss)
                if not (math.isfinite(mean_loss) and math.isfinite(gradient)):
                    self._refuse_step(mean_loss, gradient, first_image, share)
                state.optimizer.step()
                state.optimizer.zero_grad()
                state.step += 1
                state.ema.update(state.model, state.step)

                state.last_loss = mean_loss
                state.elapsed_s = before_s + time.monotonic() - started
                if devices.first:
                    self._record(rate, gradient)
                    self._show(progress)
                if state.step % settings.sample_every == 0 and not stop.received:
                    self._sheet()
                    drawn = state.step
                if state.step % settings.checkpoint_every == 0 and self._save():
                    saved = state.step
            if saved != state.step and self._save():
                saved = state.step
        if devices.any(stop.received):
            if saved != state.step:
                raise Interrupted(f"stopped at step {state.step}, which could not be saved; see the warnings above")
            raise Interrupted(f"stopped at step {state.step} and saved; the same command goes on from there")
        if saved != state.step:
            raise InputError(
                f"the training reached step {state.step}, which could not be saved; see the warnings above, free some "
                "space and give the same command again"
            )
        if drawn != state.step:
            self._sheet()
        return Result(self.folder.path, state.step, state.images, state.last_loss, state.last_error, devices.first)

    def _open_held_out(self) -> ImageDataset | None:
        """The images that the first process measures on; None where there are none that can be used."""
        if not self.devices.first or not self.data.counts["val"]:
            return None
        try:
            images = self.data.other("val")
        except InputError as error:
            self._say(f"warning: training goes on without held-out images: {error}")
            return None
        for name, reason in images.bad:
            self._say(f"skipped {name}: {reason}")
        return images

    def _next(self, stream: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """The next batch; an image that has become unreadable ends the training, but not before it is saved."""
        try:
            return next(stream)
        except InputError:
            self._save()
            raise

    def _clipped_gradient_norm(self) -> float:
        """The norm of the whole gradient, which is then clipped where that was asked for."""
        parameters, limit = list(self.state.model.parameters()), self.config.training.clip_gradient
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if limit is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        return float(norm)

    def _finished(self, stop: StopSignals) -> bool:
        settings = self.config.training
        done = settings.steps is not None and self.state.step >= settings.steps
        late = settings.minutes is not None and self.state.elapsed_s >= 60 * settings.minutes
        return self.devices.any(done or late or stop.received)

    def _refuse_step(self, loss: float, gradient: float, first_image: int, share: int) -> None:
        names = ", ".join(self.data.name(first_image + i) for i in range(share))
        raise NonFiniteError(
            f"step {self.state.step + 1} was not taken: the loss is {loss:g} and the gradient's norm {gradient:g} on "
            f"the batch of {names}; the last good checkpoint is kept, and a lower training.learning_rate may help"
        )

    def _record(self, rate: float, gradient: float) -> None:
        """Log this step. metrics.jsonl is the same wherever a run was interrupted; times have a log of their own."""
        state, settings, average = self.state, self.config.training, self.state.ema.model
        record: dict[str, Any] = {
            "step": state.step,
            "images": state.images,
            "loss": state.last_loss,
            "gradient_norm": gradient,
            "learning_rate": rate,
        }
        if self.held_out and state.step % settings.validate_every == 0 and isinstance(average, Denoiser):
            count = settings.validation_images
            record["held_out_noise_error"] = noise_error(average, self.held_out, count, settings.batch_size)
            state.last_error = record["held_out_noise_error"]
        self.metrics.write(record)
        if state.step % 50 == 0:
            self.timing.write({"step": state.step, "elapsed_s": round(state.elapsed_s, 3)})
        self.devices.log(record, state.step)

    def _save(self) -> bool:
        """Save a checkpoint and the averaged model; False, with a warning, where the disk does not take them."""
        if not self.devices.first:
            return True
        try:
            self.metrics.flush(durably=True)
            self.state.save(self.folder, self.metrics.length)
            publish(self.folder, self.config, self.state.ema.model, self.state.facts(), self.data)
        except OSError as error:
            self._say(
                f"warning: step {self.state.step} could not be saved ({error.strerror or error}); training goes on, "
                "and the next checkpoint tries again"
            )
            return False
        return True

    def _sheet(self) -> None:
        if self.config.training.sample_images and self.devices.first:
            try:
                count = self.config.training.sample_images
                write_samples(self.folder, self.state.ema.model, self.state.step, count, self.data)
            except (OSError, NonFiniteError) as error:  # a sheet is no loss, and no reason to stop
                self._say(f"warning: no samples of step {self.state.step}: {error}")

    def _progress(self) -> Progress:
        settings = self.config.training
        total = settings.steps * settings.batch_size if settings.steps else None
        hidden = self.quiet or not self.devices.first
        return Progress(f"training {self.config.model}", total, "images", self.state.images, hidden)

    def _show(self, progress: Progress) -> None:
        state, minutes, total = self.state, self.config.training.minutes, progress.total
        if minutes is not None:
            total = progress.done * 60 * minutes / max(state.elapsed_s, 1e-9)
        error = f", held out {state.last_error:.4f}" if state.last_error is not None else ""
        progress.update(state.images, f"step {state.step}, loss {state.last_loss:.4f}{error}", total=total)

    def _say(self, text: str) -> None:
        if self.devices.first and (not self.quiet or text.startswith("warning")):
            say(text, error=True)
