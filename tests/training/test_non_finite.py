"""A loss or gradient that is not finite stops before the step, names the batch, and spoils nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from run_helpers import ForkServer, snapshot
from safetensors.torch import load_file

from morphogen.core.errors import NonFiniteError
from morphogen.models import load_model
from morphogen.training.checkpoint import damage, list_checkpoints, load_checkpoint, save_checkpoint
from morphogen.training.config import RunConfig
from morphogen.training.loop import Result, train

EXPLODE = ("training.learning_rate=1", "training.clip_gradient=null", "training.warmup=0", "architecture.nca_steps=60")


def explode(trained: Callable[..., Result], name: str) -> NonFiniteError:
    with pytest.raises(NonFiniteError) as stopped:
        trained(name, *EXPLODE, steps=400, checkpoint_every=1)
    return stopped.value


def test_an_exploding_learning_rate(trained: Callable[..., Result], tmp_path: Path) -> None:
    error = explode(trained, "run")
    run = tmp_path / "run"
    newest, *_ = list_checkpoints(run / "checkpoints")
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    step = int(newest.name.removeprefix("step-"))
    assert error.exit_code == 1
    assert f"step {step + 1} was not taken" in str(error)
    assert last["step"] == step  # the refused step left nothing in the log
    assert math.isfinite(last["loss"])
    assert all(damage(p) is None for p in list_checkpoints(run / "checkpoints"))
    checkpoint = load_checkpoint(newest)
    for group in checkpoint.tensors.values():
        assert all(bool(torch.isfinite(t).all()) for t in group.values())
    load_model(run)  # whole and in place
    assert all(bool(torch.isfinite(t).all()) for t in load_file(run / "model.safetensors").values())


def test_it_stops_at_the_same_step_each_time_and_spoils_nothing(trained: Callable[..., Result], tmp_path: Path) -> None:
    first = str(explode(trained, "run"))
    weights = snapshot(tmp_path / "run" / "checkpoints")
    assert str(explode(trained, "run")) == first
    assert snapshot(tmp_path / "run" / "checkpoints") == weights


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_that_is_not_finite(
    config: Callable[..., RunConfig], trained: Callable[..., Result], tmp_path: Path, value: float
) -> None:
    trained("run", steps=2)
    checkpoints = tmp_path / "run" / "checkpoints"
    spoilt = load_checkpoint(list_checkpoints(checkpoints)[0])
    next(iter(spoilt.tensors["model"].values())).view(-1)[0] = value
    spoilt.step = 3
    spoilt.facts["step"] = 3
    save_checkpoint(checkpoints, spoilt, keep=2)
    with pytest.raises(NonFiniteError) as stopped:
        trained("run", steps=9)
    assert "step 4 was not taken" in str(stopped.value)
    named = [f"{k:02d}.png" for k in range(12) if f"{k:02d}.png" in str(stopped.value)]
    assert 1 <= len(named) <= 4
    assert str(stopped.value).count(".png") == 4  # the batch
    assert [p.name for p in list_checkpoints(checkpoints)] == ["step-00000003", "step-00000002"]


def test_the_batch_that_is_named_is_the_batch(trained: Callable[..., Result], config: Callable[..., RunConfig]) -> None:
    from morphogen.data.dataset import build_dataset

    message = str(explode(trained, "run"))
    step = int(message.split()[1])
    data = build_dataset(config().data, "train", seed=0, progress=False)
    batch = ", ".join(data.name(4 * (step - 1) + i) for i in range(4))
    assert f"on the batch of {batch};" in message


def test_the_command_exits_with_1_and_no_traceback(forks: ForkServer, images: Path, tmp_path: Path) -> None:
    options = [*("train", images, "--out", tmp_path / "run", "--size", 16, "--batch-size", 4, "--steps", 400)]
    for setting in ("architecture.channels=8", "architecture.hidden=16", "training.sample_images=0", *EXPLODE):
        options += ["--set", setting]
    ended = forks.run(*options)
    assert ended.code == 1
    assert "Traceback" not in ended.err
    assert ended.out == ""
    last = ended.err.splitlines()[-1]
    assert last.startswith("morphogen: step ")
    assert "was not taken" in last
    assert ".png" in last


def test_a_gradient_that_is_not_finite_under_a_finite_loss(
    config: Callable[..., RunConfig], tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The square root's gradient is infinite at 0, where its value is not: such a loss must stop as well."""
    from morphogen.automata.diff_nca import DiffNCA
    from morphogen.core.keys import Key
    from morphogen.core.model import Batch

    def loss(self: DiffNCA, batch: Batch, key: Key) -> torch.Tensor:
        return sum((p.square().sum() * 0).sqrt() for p in self.parameters())  # type: ignore[return-value]

    monkeypatch.setattr(DiffNCA, "training_loss", loss)
    with pytest.raises(NonFiniteError, match="the loss is 0 and the gradient's norm nan"):
        train(config(steps=2), tmp_path / "run", quiet=True)
    assert not list_checkpoints(tmp_path / "run" / "checkpoints")
