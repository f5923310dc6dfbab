"""Everything that a training changes and a checkpoint must hold, and going back to a checkpoint."""

from __future__ import annotations

import math
from typing import TypedDict

from morphogen.core.errors import InputError
from morphogen.core.files import JsonObject
from morphogen.core.model import Model
from morphogen.core.model_files import WEIGHTS_FILE
from morphogen.training.checkpoint import Checkpoint, newest_checkpoint, save_checkpoint
from morphogen.training.config import RunConfig
from morphogen.training.ema import EMA
from morphogen.training.optimizer import load_optimizer_tensors, make_optimizer, optimizer_tensors
from morphogen.training.run_folder import RunFolder
from morphogen.training.schedule import Cooldown, CooldownFacts
from morphogen.training.warm_start import start_from


class TrainingFacts(TypedDict):
    """The facts of a checkpoint and of the model card beside the tensors; see `TrainingState`."""

    step: int
    images: int
    elapsed_s: float
    loss: float
    noise_error: float | None
    spent_minutes: float | None
    cooldown: CooldownFacts | None
    data: str


class TrainingState:
    """The model, its average, the optimiser, the cooldown, and how far they have come.

    step: batches learnt from. elapsed_s: seconds of training. last_loss: of the last step. last_error: the last
    measurement on held-out images. spent_minutes: the time budget that is used up, if there was one. data: identifies
    the images and their split.
    """

    def __init__(self, model: Model, config: RunConfig, data: str) -> None:
        self.model, self.config, self.data = model, config, data
        self.ema = EMA(model, config.training.averaging)
        self.optimizer = make_optimizer(model, config.training.optimizer)
        self.cooldown = Cooldown(config.training)
        self.step = 0
        self.elapsed_s = 0.0
        self.last_loss = math.nan
        self.last_error: float | None = None
        self.spent_minutes: float | None = None

    @property
    def images(self) -> int:
        """Images learnt from."""
        return self.step * self.config.training.batch_size

    def facts(self) -> TrainingFacts:
        """The facts of a checkpoint and of the model card beside the tensors."""
        return {
            "step": self.step,
            "images": self.images,
            "elapsed_s": self.elapsed_s,
            "loss": self.last_loss,
            "noise_error": self.last_error,
            "spent_minutes": self.spent_minutes,
            "cooldown": self.cooldown.facts(self.step),
            "data": self.data,
        }

    def save(self, folder: RunFolder, metrics_length: int) -> None:
        """Write a checkpoint. metrics_length: what the log is to be cut back to. Raises OSError, as on a full disk."""
        tensors = {
            "model": dict(self.model.state_dict()),
            "ema": dict(self.ema.model.state_dict()),
            "optimizer": optimizer_tensors(self.model, self.optimizer),
        }
        checkpoint = Checkpoint(self.step, tensors, {**self.facts(), "metrics_length": metrics_length})
        keep, start = self.config.training.saving.keep_checkpoints, self.cooldown.start
        save_checkpoint(folder.checkpoints, checkpoint, keep, start)

    def resume(self, folder: RunFolder, owner: bool) -> tuple[int, list[str]]:
        """Go back to the newest undamaged checkpoint that suits the budget, or start: how long the metrics log was, and
        remarks.

        owner: whether this process may tidy up the folder. Raises InputError if there is something to go on from,
        but it is damaged, of another budget, or was trained on other images.
        """
        passed: list[int] = []

        def suits(step: int, facts: JsonObject) -> bool:
            fits = self.cooldown.suits(step, facts.get("cooldown"))
            passed.extend([] if fits else [step])
            return fits

        checkpoint, remarks = newest_checkpoint(folder.checkpoints, owner, suits)
        said = [f"warning: {remark}" for remark in remarks]
        if checkpoint is None:
            if passed:
                raise self.cooldown.refuse(folder.path)
            if remarks:
                raise InputError(f"every checkpoint of {folder.path} is damaged; name another --out to start anew")
            if (folder.path / WEIGHTS_FILE).exists():
                raise InputError(
                    f"{folder.path} holds a trained model but no checkpoint to go on from; give --init "
                    f"{folder.path} and another --out to train it further"
                )
            if self.config.init is not None:
                start_from(self.model, self.config.init)
                self.ema = EMA(self.model, self.config.training.averaging)
            return 0, said
        facts = checkpoint.facts
        if facts["data"] != self.data:
            raise InputError(
                f"the images of {self.config.data.source}, their split or labels are not those that {folder.path} was "
                "trained on; give the same data to resume, or another --out"
            )
        self.model.load_state_dict(checkpoint.tensors["model"])
        self.ema.model.load_state_dict(checkpoint.tensors["ema"])
        load_optimizer_tensors(self.model, self.optimizer, checkpoint.tensors["optimizer"])
        self.step, self.elapsed_s = checkpoint.step, facts["elapsed_s"]
        self.last_loss, self.last_error = facts["loss"], facts["noise_error"]
        self.spent_minutes = facts.get("spent_minutes")
        if passed:
            said.append(f"going back from step {max(passed)}: the learning rate fell on the way there")
        return facts["metrics_length"], [*said, f"resuming {folder.path} at step {self.step}"]
