"""The output of a training: logs, checkpoints, the averaged model, sample grids, progress."""

from __future__ import annotations

from morphogen.core.console import say
from morphogen.core.errors import MorphogenError, NonFiniteError
from morphogen.core.model import StepInfo
from morphogen.core.progress import Progress
from morphogen.data.dataset import ImageDataset
from morphogen.diffusion.denoiser import Denoiser
from morphogen.diffusion.learned_autoencoder import LearnedAutoencoder
from morphogen.training.config import RunConfig
from morphogen.training.devices import Devices
from morphogen.training.export import export, sampling_seconds, write_samples
from morphogen.training.logs import Log, LogRecord
from morphogen.training.run_folder import RunFolder
from morphogen.training.state import TrainingState
from morphogen.training.tensorboard import TensorBoard
from morphogen.training.validation import noise_error, reconstruction_error

_GRID_SHARE = 0.25  # of a time budget may be spent on the samples at the end
_MEASURE_SHARE = 0.02  # and on finding out how long they take


class Recorder:
    """Only the main process writes and speaks; in the others nothing happens.

    log_length: bytes of the metrics log that the checkpoint knew which the training goes on from.
    """

    def __init__(
        self,
        folder: RunFolder,
        config: RunConfig,
        state: TrainingState,
        data: ImageDataset,
        held_out: ImageDataset | None,
        devices: Devices,
        log_length: int,
        quiet: bool,
    ) -> None:
        self.folder, self.config, self.state, self.data, self.held_out = folder, config, state, data, held_out
        self.is_main, self.quiet = devices.is_main_process, quiet
        self.grid_images = config.training.saving.sample_images if self.is_main else 0
        self.drawn: int | None = None
        """The step of the last sample grid."""
        self._tensorboard: TensorBoard | None = None
        if self.is_main:
            if config.training.saving.tensorboard:
                self._tensorboard = TensorBoard(folder.path / "tensorboard", state.step)
            folder.write_config(config, data.split_file())
            self._metrics, self._timing = Log(folder.metrics, state.step), Log(folder.timing, state.step)
            gone = self._metrics.what_is_gone(log_length)
            if gone:
                self.say(f"warning: {gone}")
        settings = config.training
        total = settings.steps * settings.batch_size if settings.steps else None
        hidden = quiet or not self.is_main
        self.progress = Progress(f"training {config.model}", total, "images", state.images, hidden)

    def say(self, text: str) -> None:
        """A line for the user; of a quiet training, warnings only."""
        if self.is_main and (not self.quiet or text.startswith("warning")):
            say(text, error=True)

    def step(self, rate: float, gradient: float, spent: float) -> None:
        """Log this step. metrics.jsonl is the same wherever a run was interrupted; times have a log of their own."""
        if not self.is_main:
            return
        state, saving, average = self.state, self.config.training.saving, self.state.ema.model
        record: LogRecord = {
            "step": state.step,
            "images": state.images,
            "loss": state.last_loss,
            "gradient_norm": gradient,
            "learning_rate": rate,
        }
        if self.held_out and state.step % saving.validate_every == 0:
            if isinstance(average, Denoiser):
                batch, count = self.config.training.batch_size, saving.validation_images

                def tell(measured: int) -> None:
                    self.progress.update(state.images, f"measuring on held-out images, {measured}/{count}")

                state.last_error = noise_error(average, self.held_out, count, batch, tell)
                record["held_out_noise_error"] = state.last_error
            elif isinstance(average, LearnedAutoencoder):
                state.last_error = reconstruction_error(average, self.held_out, saving.validation_images)
                record["held_out_reconstruction_error"] = state.last_error
        try:
            self._metrics.write(record)
            if state.step % 50 == 0:
                self._timing.write({"step": state.step, "elapsed_s": round(state.elapsed_s, 3)})
        except FileNotFoundError:
            self._check_folder()
            raise
        if self._tensorboard is not None:
            self._tensorboard.write(record, state.step)
        error = f", held out {state.last_error:.4f}" if state.last_error is not None else ""
        timed = self.config.training.minutes is not None
        total = max(state.images, round(state.images / max(spent, 1e-9))) if timed else None
        self.progress.update(state.images, f"step {state.step}, loss {state.last_loss:.4f}{error}", total=total)

    def save(self) -> bool:
        """Save a checkpoint and the averaged model; False, with a warning, where the disk does not take them."""
        if not self.is_main:
            return True
        self._check_folder()
        try:
            self._metrics.flush(durably=True)
            self.state.save(self.folder, self._metrics.length)
            export(self.folder, self.config, self.state.ema.model, self.state.facts(), self.data)
        except OSError as error:
            self._check_folder()
            self.say(
                f"warning: step {self.state.step} could not be saved ({error.strerror or error}); training goes on, "
                "and the next checkpoint tries again"
            )
            return False
        return True

    def _check_folder(self) -> None:
        """Raise an error where the run's folder is gone: nothing can be kept any more."""
        if not self.folder.config_file.exists():
            raise MorphogenError(
                f"the folder {self.folder.path} was removed or renamed while it was trained into; "
                f"step {self.state.step} could not be saved"
            )

    def fit_grid(self, seconds: float) -> float:
        """Make the sample grid so small that it takes little of a time budget, or leave it out where one sample would
        take half of that; about how many seconds it takes.
        """
        if not self.grid_images:
            return 0.0
        wanted, most = self.grid_images, _GRID_SHARE * seconds
        takes = sampling_seconds(self.state.ema.model, wanted, self.data, _MEASURE_SHARE * seconds)
        if takes <= most:
            return takes
        each = takes / wanted
        self.grid_images = max(int(most / each), int(each < seconds / 2))
        grids = (
            f"grids of {self.grid_images} samples instead of {wanted}" if self.grid_images else "no grids of samples"
        )
        self.say(f"note: {grids}, each of which takes about {each:.0f} s")
        return each * self.grid_images

    def grid(self, progress: Progress | None = None) -> None:
        """Draw a grid of samples of the averaged model. progress: of its own, instead of a note in the training's."""
        self.drawn = self.state.step
        if not self.grid_images:
            return

        def show(info: StepInfo) -> None:
            if progress is None:
                self.progress.update(self.state.images, f"drawing samples, sampling step {info.step}/{info.steps}")
            else:
                progress.update(info.step, total=info.steps)

        try:
            write_samples(self.folder, self.state.ema.model, self.state.step, self.grid_images, self.data, show)
        except (OSError, NonFiniteError) as error:  # a grid is no loss, and no reason to stop
            self.say(f"warning: no samples of step {self.state.step}: {error}")

    def last_grid(self) -> None:
        """The grid at the end, unless it has been drawn, with progress of its own."""
        if self.drawn != self.state.step:
            with Progress("drawing samples", None, "sampling steps", quiet=self.quiet or not self.grid_images) as shown:
                self.grid(shown)

    def close(self) -> None:
        """Finish what is open."""
        if self._tensorboard is not None:
            self._tensorboard.close()
