"""Estimates of what a training will take, against what it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from morphogen.core.keys import Key
from morphogen.core.model import Batch, Model
from morphogen.training.build import build
from morphogen.training.config import RunConfig
from morphogen.training.devices import Devices
from morphogen.training.estimate import RunEstimate, estimate_run, estimate_step, free_memory, wants_recompute
from morphogen.training.loop import train

# Enough channels for activations to outweigh the weights, as in every real model.
REAL = ("architecture.patch=1", "architecture.channels=24", "architecture.hidden=64", "architecture.nca_steps=3")


@pytest.fixture
def planned(config: Callable[..., RunConfig]) -> Callable[..., RunEstimate]:
    def run(*assignments: str, **settings: object) -> RunEstimate:
        resolved = config(*assignments, **{"steps": 10, **settings})
        with Devices(resolved.training.devices) as devices:
            return estimate_run(resolved, build(resolved, devices), devices)

    return run


def kept_by_the_graph(loss: torch.Tensor, model: Model) -> int:
    """The bytes of all tensors that the backward pass of a loss holds on to, found by walking its graph."""
    held = {p.untyped_storage().data_ptr(): 0 for p in model.parameters()}

    def nodes() -> Iterator[object]:
        waiting, seen = [loss.grad_fn], set()
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            yield node
            waiting += [following for following, _ in node.next_functions]

    for node in nodes():
        for name in (n for n in dir(node) if n.startswith("_saved_")):
            value = getattr(node, name)
            for tensor in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(tensor, torch.Tensor):
                    storage = tensor.untyped_storage()
                    held.setdefault(storage.data_ptr(), storage.nbytes())
    return sum(held.values())


@pytest.mark.parametrize(
    ("model", "size", "batch_size"),
    [("diff-nca-small", 16, 8), ("diff-nca-small", 96, 2), ("fourier-diff-nca-small", 32, 3)],
)
def test_kept_bytes_are_those_that_the_backward_pass_holds(
    config: Callable[..., RunConfig], model: str, size: int, batch_size: int
) -> None:
    plain = ("training.devices.kernel=off", f"data.size={size}")
    resolved = config(*REAL, *plain, model=model, batch_size=batch_size)
    with Devices(resolved.training.devices) as devices:
        network = build(resolved, devices).train()
        found = estimate_step(resolved, network, devices, timed=False).kept_bytes
        loss = network.training_loss(Batch(torch.zeros(batch_size, 3, size, size)), Key.of(range(batch_size)))
        wanted = kept_by_the_graph(loss, network)
    # 25 %: the probe is one image of at most 64x64, so that what is held once counts as often as there are images.
    assert found == pytest.approx(wanted, rel=0.25)


def test_it_leaves_the_model_as_it_was(config: Callable[..., RunConfig]) -> None:
    resolved = config()
    with Devices(resolved.training.devices) as devices:
        network = build(resolved, devices).eval()
        network.recompute = True
        before = {k: v.clone() for k, v in network.state_dict().items()}
        estimate_step(resolved, network, devices)
    assert network.recompute
    assert not network.training
    assert all(p.grad is None for p in network.parameters())
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


def test_disk(planned: Callable[..., RunEstimate], config: Callable[..., RunConfig], tmp_path: Path) -> None:
    settings = {"steps": 40, "checkpoint_every": 10, "keep_checkpoints": 3}
    found = planned(*REAL, **settings).disk_bytes
    train(config(*REAL, **settings), tmp_path / "run", quiet=True)
    size = sum(p.stat().st_size for p in (tmp_path / "run").rglob("*") if p.is_file())
    # The plan has room for one checkpoint more, which is there while it is written.
    one = sum(p.stat().st_size for p in (tmp_path / "run" / "checkpoints" / "step-00000040").iterdir())
    assert found == pytest.approx(size + one, rel=0.25)
    assert found > size


def test_counts_and_proportions(planned: Callable[..., RunEstimate]) -> None:
    short, long = planned(steps=10), planned(steps=1000)
    assert short.parameters == 3488
    assert short.deployed_parameters < short.parameters
    assert (short.steps, long.steps) == (10, 1000)
    assert long.seconds == pytest.approx(1000 * long.seconds_per_step, rel=1e-9)
    assert long.disk_bytes - short.disk_bytes == 990 * 120
    # 5: the clock of a busy machine.
    assert planned(batch_size=64).seconds_per_step > 5 * planned(batch_size=1).seconds_per_step


def test_minutes(planned: Callable[..., RunEstimate]) -> None:
    found = planned(steps=None, minutes=2)
    assert found.seconds == 120
    assert found.steps == pytest.approx(120 / found.seconds_per_step, abs=1)


def test_time_is_of_the_right_order(
    planned: Callable[..., RunEstimate], config: Callable[..., RunConfig], tmp_path: Path
) -> None:

    train(config(*REAL, batch_size=16, steps=1), tmp_path / "run", quiet=True)  # what is slow only at first
    found = planned(*REAL, batch_size=16, steps=30).seconds
    started = time.perf_counter()
    train(config(*REAL, batch_size=16, steps=31), tmp_path / "run", quiet=True)
    taken = time.perf_counter() - started
    # A factor of 8: a busy machine, and the probe knows no data, optimiser or average. It finds a wrong unit.
    assert taken / 8 < found < taken * 8


@pytest.mark.slow
def test_recompute(config: Callable[..., RunConfig], planned: Callable[..., RunEstimate]) -> None:
    plain, thrifty = planned(recompute="never"), planned(recompute="always")
    assert (plain.recompute, thrifty.recompute) == (False, True)
    assert thrifty.memory_bytes < plain.memory_bytes
    huge = config("data.size=4096", "architecture.nca_steps=500", batch_size=1024)
    with Devices(huge.training.devices) as devices:
        small = config()
        assert not wants_recompute(small, build(small, devices), devices)
        assert wants_recompute(huge, build(huge, devices), devices)


def test_free_memory_is_of_this_machine() -> None:
    psutil = pytest.importorskip("psutil")
    assert 0 < free_memory(torch.device("cpu")) <= psutil.virtual_memory().total
