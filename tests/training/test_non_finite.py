"""A loss or gradient that is not finite stops before the step, names the batch, and spoils nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from run_helpers import TINY, ForkServer, assert_same_run, contents, snapshot
from torch.optim.optimizer import register_optimizer_step_post_hook

from morphogen.core.errors import NonFiniteError
from morphogen.data.dataset import build_dataset
from morphogen.models import load_model
from morphogen.training.checkpoint import find_corruption, list_checkpoints, load_checkpoint, save_checkpoint
from morphogen.training.config import RunConfig
from morphogen.training.loop import Result, train

# The models normalise too well for a learning rate of at most 1 to blow them up in a few steps: the tests put into the
# newest checkpoint what an explosion would have left there.
EXPLODED = {"nan": math.nan, "inf": math.inf, "too large to square": 1e30}


def spoil(checkpoints: Path, value: float) -> None:
    """Put a checkpoint of step 3 on top, with a value in every bias of the model."""
    spoilt = load_checkpoint(list_checkpoints(checkpoints)[0])
    for name, tensor in spoilt.tensors["model"].items():
        if name.endswith("bias"):
            tensor.fill_(value)
    spoilt.step = 3
    spoilt.facts["step"] = 3
    save_checkpoint(checkpoints, spoilt, keep=2)


@pytest.mark.parametrize("kind", EXPLODED)
def test_it_stops_before_the_step_and_spoils_nothing(trained: Callable[..., Result], tmp_path: Path, kind: str) -> None:
    run = tmp_path / "run"
    trained("run", steps=2)
    spoil(run / "checkpoints", EXPLODED[kind])
    before = snapshot(run / "checkpoints")
    published = (run / "model.safetensors").read_bytes()
    messages = []
    for _ in range(2):  # and again in the same way
        with pytest.raises(NonFiniteError, match="step 4 was not taken") as stopped:
            trained("run", steps=9, checkpoint_every=1)
        messages.append(str(stopped.value))
        assert stopped.value.exit_code == 2
        assert snapshot(run / "checkpoints") == before
        assert all(find_corruption(p) is None for p in list_checkpoints(run / "checkpoints"))
        assert (run / "model.safetensors").read_bytes() == published
        last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
        assert last["step"] == 2  # the refused step left nothing in the log
    assert messages[0] == messages[1]
    load_model(run)


def test_the_batch_that_is_named_is_the_batch(
    trained: Callable[..., Result], config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    trained("run", steps=2)
    spoil(tmp_path / "run" / "checkpoints", math.nan)
    data = build_dataset(config().data, "train", seed=0, progress=False)
    batch = ", ".join(data.name(4 * 3 + i) for i in range(4))
    with pytest.raises(NonFiniteError, match=f"on the batch of {batch};"):
        trained("run", steps=9)


def test_one_that_goes_bad_on_the_way_keeps_what_was_before(
    trained: Callable[..., Result], config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """One weight of the whole run becomes infinite between two steps, while this process trains."""
    run = tmp_path / "run"
    trained("whole", steps=5, checkpoint_every=5)

    def spoil_later(step: torch.optim.Optimizer, *_: object) -> None:
        if int(step.state[step.param_groups[0]["params"][0]]["step"]) == 6:
            with torch.no_grad():
                step.param_groups[0]["params"][0].view(-1)[0] = math.inf

    hook = register_optimizer_step_post_hook(spoil_later)
    try:
        with pytest.raises(NonFiniteError, match="step 7 was not taken"):
            trained("run", steps=10, checkpoint_every=5)
    finally:
        hook.remove()
    for name, value in contents(tmp_path / "whole").items():
        if name != "metrics.jsonl":
            assert contents(run)[name] == value, name
    assert trained("run", steps=10, checkpoint_every=5).step == 10  # the fault gone, it goes on
    trained("whole", steps=10, checkpoint_every=5)
    assert_same_run(run, tmp_path / "whole")


def test_the_command_exits_with_2_and_no_traceback(forks: ForkServer, images: Path, tmp_path: Path) -> None:
    options = [*("train", images, *TINY, "--out", tmp_path / "run", "--steps")]
    assert forks.run(*options, 2).code == 0
    spoil(tmp_path / "run" / "checkpoints", math.nan)
    ended = forks.run(*options, 9)
    assert ended.code == 2
    assert ended.out == ""
    *_, resumed, last = ended.err.splitlines()
    assert resumed.startswith("resuming")
    assert last.startswith("morphogen: step 4 was not taken")
    assert last.count(".png") == 4


def test_a_gradient_that_is_not_finite_under_a_finite_loss(
    config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
