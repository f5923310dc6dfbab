"""The training loop: one for all models, on one device or many, resumable bit for bit on a CPU."""

from __future__ import annotations

import contextlib
import hashlib
import math
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from morphogen.core import random
from morphogen.core.errors import InputError, Interrupted, NonFiniteError
from morphogen.core.images import to_float
from morphogen.core.keys import Key
from morphogen.core.model import Batch, Model
from morphogen.core.model_files import WEIGHTS_FILE
from morphogen.core.progress import Progress
from morphogen.data.dataset import ImageDataset, build_dataset
from morphogen.diffusion.denoiser import Denoiser
from morphogen.training.checkpoint import Checkpoint, newest_checkpoint, save_checkpoint
from morphogen.training.config import RunConfig
from morphogen.training.devices import Devices
from morphogen.training.ema import EMA
from morphogen.training.estimate import wants_recompute
from morphogen.training.initial import start_from
from morphogen.training.optimizer import learning_rate, load_optimizer_tensors, make_optimizer, optimizer_tensors
from morphogen.training.publish import publish, write_samples
from morphogen.training.run_folder import Log, RunFolder
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


class _Objective(nn.Module):
    """The loss as a forward pass, which is what data parallelism can wrap."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, seeds: tuple[int, ...]) -> Tensor:
        return self.model.training_loss(Batch(to_float(images)), Key(seeds))


def train(config: RunConfig, out: Path, *, quiet: bool = False) -> Result:
    """Train, or go on training, the run in the folder `out`.

    Image number n of the run, its augmentation, noise and timestep are functions of (seed, n), so an interrupted and
    resumed training gives what an uninterrupted one gives. SIGTERM and Ctrl-C save and raise Interrupted. Raises
    InputError where the data, the settings or the folder are not usable, and NonFiniteError, before the step is taken,
    where the loss or the gradient is not finite.
    """
    RunFolder(out).refuse_inside(config.data.source)
    with Devices(config.training) as devices, _folder(out, devices) as folder:
        return _Training(config, folder, devices, quiet).run()


@contextlib.contextmanager
def _folder(out: Path, devices: Devices) -> Iterator[RunFolder]:
    """The run folder, locked by the first process only."""
    if not devices.first:
        yield RunFolder(out)
        return
    with RunFolder(out) as folder:
        yield folder


class _Training:
    def __init__(self, config: RunConfig, folder: RunFolder, devices: Devices, quiet: bool) -> None:
        self.config, self.folder, self.devices, self.quiet = config, folder, devices, quiet
        settings = config.training
        if settings.batch_size % devices.count:
            raise InputError(f"--batch-size {settings.batch_size} cannot be shared evenly by {devices.count} processes")
        if devices.first:
            folder.check(config)  # before the data is read, which may take long
        self.model = devices.build(config)
        self.data = build_dataset(config.data, "train", seed=settings.seed, progress=devices.first and not quiet)
        self.held_out = self._open_held_out()
        self.model.recompute = wants_recompute(config, self.model, devices)
        self.ema = EMA(self.model, settings)
        self.optimizer = make_optimizer(self.model, settings)
        self.step, self.elapsed_s, self.stop_signal = 0, 0.0, 0
        self.last_loss = math.nan
        self.last_error: float | None = None
        log_length = self._resume()
        if settings.compile:
            self.model.compile_steps()
        if devices.first:
            folder.write_config(config)
            self.metrics, self.timing = Log(folder.metrics, log_length), Log(folder.timing)
            if settings.tensorboard:
                devices.log_to(folder.path / "tensorboard")
        self.objective = devices.wrap(_Objective(self.model))

    def _open_held_out(self) -> ImageDataset | None:
        """The images that the first process measures on; None where there are none that can be used."""
        if not self.devices.first or not self.data.counts["val"]:
            return None
        try:
            images = build_dataset(self.config.data, "val", seed=self.config.training.seed, progress=False)
        except InputError as error:
            self._say(f"warning: training goes on without held-out images: {error}")
            return None
        for name, reason in images.bad:
            self._say(f"skipped {name}: {reason}")
        return images

    def _resume(self) -> int:
        """Go back to the newest undamaged checkpoint; how long the metrics log was then."""
        checkpoint, remarks = newest_checkpoint(self.folder.checkpoints, owner=self.devices.first)
        for remark in remarks:
            self._say(f"warning: {remark}")
        if checkpoint is None:
            if remarks:
                raise InputError(f"every checkpoint of {self.folder.path} is damaged; name another --out to start anew")
            if (self.folder.path / WEIGHTS_FILE).exists():
                raise InputError(
                    f"{self.folder.path} holds a trained model but no checkpoint to go on from; give --init "
                    f"{self.folder.path} and another --out to train it further"
                )
            if self.config.init is not None:
                start_from(self.model, self.config.init)
                self.ema = EMA(self.model, self.config.training)
            return 0
        if checkpoint.facts["data"] != self._data_identity():
            raise InputError(
                f"the images of {self.config.data.source} are not those that {self.folder.path} was trained on; "
                "give the same data to resume, or another --out"
            )
        self.model.load_state_dict(checkpoint.tensors["model"])
        self.ema.model.load_state_dict(checkpoint.tensors["ema"])
        load_optimizer_tensors(self.model, self.optimizer, checkpoint.tensors["optimizer"])
        self.step, self.elapsed_s = checkpoint.step, checkpoint.facts["elapsed_s"]
        self.last_loss, self.last_error = checkpoint.facts["loss"], checkpoint.facts["noise_error"]
        self._say(f"resuming {self.folder.path} at step {self.step}")
        return int(checkpoint.facts["metrics_length"])

    def run(self) -> Result:
        settings = self.config.training
        share = settings.batch_size // self.devices.count
        batches = self._batches(share)
        started = time.monotonic()
        before_s = self.elapsed_s
        saved = drawn = -1  # the step of the last checkpoint and of the last sheet that this process made
        self.model.train()
        with self._signals(), self._progress() as progress:
            while not self._finished():
                images = self._next(batches)
                first_image = self.step * settings.batch_size + self.devices.index * share
                seeds = tuple(random.mix(settings.seed, _STREAM, first_image + i) for i in range(share))

                rate = learning_rate(settings, self.step)
                for group in self.optimizer.param_groups:
                    group["lr"] = rate
                loss = self.objective(images, seeds)
                self.devices.backward(loss)
                gradient = self._gradient_norm()
                mean_loss = self.devices.mean(loss)
                if not (math.isfinite(mean_loss) and math.isfinite(gradient)):
                    self._refuse_step(mean_loss, gradient, first_image, share)
                self.optimizer.step()
                self.optimizer.zero_grad()
                self.step += 1
                self.ema.update(self.model, self.step)

                self.last_loss = mean_loss
                self.elapsed_s = before_s + time.monotonic() - started
                if self.devices.first:
                    self._record(rate, gradient)
                    self._show(progress)
                if self.step % settings.sample_every == 0 and not self.stop_signal:
                    self._sheet()
                    drawn = self.step
                if self.step % settings.checkpoint_every == 0 and self._save():
                    saved = self.step
            if saved != self.step and self._save():
                saved = self.step
        if self.devices.any(bool(self.stop_signal)):
            if saved != self.step:
                raise Interrupted(f"stopped at step {self.step}, which could not be saved; see the warnings above")
            raise Interrupted(f"stopped at step {self.step} and saved; the same command goes on from there")
        if saved != self.step:
            raise InputError(
                f"the training reached step {self.step}, which could not be saved; see the warnings above, free some "
                "space and give the same command again"
            )
        if drawn != self.step:
            self._sheet()
        seen = self.step * settings.batch_size
        return Result(self.folder.path, self.step, seen, self.last_loss, self.last_error, self.devices.first)

    def _batches(self, share: int) -> Iterator[Tensor]:
        """This process's share of every batch from here on, uint8 (share, C, H, W) on its device."""
        batch_size, workers = self.config.training.batch_size, self.config.training.workers
        start = self.step * batch_size + self.devices.index * share

        def numbers() -> Iterator[list[int]]:
            first = start
            while True:
                yield list(range(first, first + share))
                first += batch_size

        loader: DataLoader[Tensor] = DataLoader(
            self.data,  # type: ignore[arg-type]
            batch_sampler=numbers(),
            num_workers=workers,
            collate_fn=_stack,
        )
        for images in loader:
            yield images.to(self.devices.device, non_blocking=True)

    def _next(self, batches: Iterator[Tensor]) -> Tensor:
        """The next batch; an image that has become unreadable ends the training, but not before it is saved."""
        try:
            return next(batches)
        except InputError:
            self._save()
            raise

    def _gradient_norm(self) -> float:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.config.training.clip_gradient is not None:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), self.config.training.clip_gradient, norm)
        return float(norm)

    def _finished(self) -> bool:
        settings = self.config.training
        done = settings.steps is not None and self.step >= settings.steps
        late = settings.minutes is not None and self.elapsed_s >= 60 * settings.minutes
        return self.devices.any(done or late or bool(self.stop_signal))

    def _refuse_step(self, loss: float, gradient: float, first_image: int, share: int) -> None:
        names = ", ".join(self.data.name(first_image + i) for i in range(share))
        raise NonFiniteError(
            f"step {self.step + 1} was not taken: the loss is {loss:g} and the gradient's norm {gradient:g} on the "
            f"batch of {names}; the last good checkpoint is kept, and a lower training.learning_rate may help"
        )

    def _record(self, rate: float, gradient: float) -> None:
        """Log this step. metrics.jsonl is the same wherever a run was interrupted; times have a log of their own."""
        settings = self.config.training
        record: dict[str, Any] = {
            "step": self.step,
            "images": self.step * settings.batch_size,
            "loss": self.last_loss,
            "gradient_norm": gradient,
            "learning_rate": rate,
        }
        if (
            self.held_out is not None
            and self.step % settings.validate_every == 0
            and isinstance(self.ema.model, Denoiser)
        ):
            self.last_error = noise_error(
                self.ema.model, self.held_out, settings.validation_images, settings.batch_size
            )
            record["held_out_noise_error"] = self.last_error
        self.metrics.write(record)
        if self.step % 50 == 0:
            self.timing.write({"step": self.step, "elapsed_s": round(self.elapsed_s, 3)})
        self.devices.log(record, self.step)

    def _facts(self) -> dict[str, Any]:
        return {
            "elapsed_s": self.elapsed_s,
            "loss": self.last_loss,
            "noise_error": self.last_error,
            "metrics_length": self.metrics.length,
            "data": self._data_identity(),
            "step": self.step,
            "images": self.step * self.config.training.batch_size,
        }

    def _data_identity(self) -> str:
        """A hash of which images there are and which of them are trained on."""
        names = sorted({self.data.source.records[i].name for i in self.data.indices})
        return hashlib.sha256("\n".join([self.data.fingerprint, *names]).encode("utf-8", "surrogateescape")).hexdigest()

    def _save(self) -> bool:
        """Save a checkpoint and the averaged model; False, with a warning, where the disk does not take them."""
        if not self.devices.first:
            return True
        tensors = {
            "model": dict(self.model.state_dict()),
            "ema": dict(self.ema.model.state_dict()),
            "optimizer": optimizer_tensors(self.model, self.optimizer),
        }
        try:
            self.metrics.flush(durably=True)
            checkpoint = Checkpoint(self.step, tensors, self._facts())
            save_checkpoint(self.folder.checkpoints, checkpoint, self.config.training.keep_checkpoints)
            publish(self.folder, self.config, self.ema.model, self._facts(), self.data)
        except OSError as error:
            self._say(
                f"warning: step {self.step} could not be saved ({error.strerror or error}); training goes on, "
                "and the next checkpoint tries again"
            )
            return False
        return True

    def _sheet(self) -> None:
        if self.config.training.sample_images and self.devices.first:
            try:
                write_samples(self.folder, self.ema.model, self.step, self.config.training.sample_images)
            except (OSError, NonFiniteError) as error:  # a sheet is no loss, and no reason to stop
                self._say(f"warning: no samples of step {self.step}: {error}")

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM end the loop after the step in hand; a second one ends it at once."""

        def note(received: int, _frame: object) -> None:
            self.stop_signal = received
            signal.signal(received, before[received])

        before: dict[int, Any] = {}
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                before[number] = signal.signal(number, note)
        except ValueError:
            pass  # not in the main thread: the caller handles signals
        try:
            yield
        finally:
            for restored, handler in before.items():
                signal.signal(restored, handler)

    def _progress(self) -> Progress:
        settings = self.config.training
        total = settings.steps * settings.batch_size if settings.steps else None
        done = self.step * settings.batch_size
        return Progress(f"training {self.config.model}", total, "images", done, self.quiet or not self.devices.first)

    def _show(self, progress: Progress) -> None:
        settings = self.config.training
        total = progress.total
        if settings.minutes is not None:
            total = progress.done * 60 * settings.minutes / max(self.elapsed_s, 1e-9)
        error = f", held out {self.last_error:.4f}" if self.last_error is not None else ""
        progress.update(
            self.step * settings.batch_size, f"step {self.step}, loss {self.last_loss:.4f}{error}", total=total
        )

    def _say(self, text: str) -> None:
        if self.devices.first and (not self.quiet or text.startswith("warning")):
            print(text, file=sys.stderr, flush=True)


def _stack(samples: list[tuple[Tensor, int]]) -> Tensor:
    return torch.stack([image for image, _ in samples])
