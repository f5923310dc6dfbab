"""Labels of Diff-NCA and FourierDiff-NCA: what they add, that the kernel agrees, and runs that had none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import TINY, Outcome, draw_images
from torch import Tensor

from morphogen.automata.diff_nca import DiffNCA
from morphogen.automata.fused.build import load_kernel
from morphogen.automata.fused.compiler import Unavailable
from morphogen.core.evaluation import Evaluation
from morphogen.core.keys import Key
from morphogen.core.model import Batch
from morphogen.core.request import SamplingRequest
from morphogen.models import create_model, load_model
from morphogen.training.checkpoint import list_checkpoints

KINDS = ["diff-nca", "diff-nca-paper", "fourier-diff-nca-small"]
NAMES = ("cat", "dog", "owl")
ROWS = torch.tensor([[1.0, 0, 0], [0, 1, 1], [-1, -1, -1], [0, 0, 0]])
WITHOUT_NCA = ("--set", "architecture.window=4", "--set", "architecture.fourier_steps=2")
Cli = Callable[..., Outcome]


def make(kind: str, trained: bool = True, **options: Any) -> Any:
    """A labelled automaton; trained: with vectors for its labels that can be seen, since fresh ones are zeros."""
    torch.manual_seed(0)
    small: dict[str, Any] = {"channels": 16, "hidden": 20, "nca_steps": 3, **options}
    if kind.startswith("fourier"):
        small |= {"window": 8, "fourier_steps": 4}
    model: Any = create_model(kind, size=(16, 18), labels=NAMES, **small).eval()
    if trained:
        with torch.no_grad():
            for rule in model.rules():
                rule.label_vectors.weight.normal_()
    return model


def noise(model: Any, rows: Tensor | None, images: int = 4, active: Tensor | None = None) -> Tensor:
    x = torch.randn(images, 3, 16, 18, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found: Tensor = model(
            x, torch.full((images,), 170.0), Evaluation(Key.of(range(images)), rows, active=active)
        ).noise
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_without_labels_nothing_is_added(kind: str) -> None:
    plain: Any = create_model(kind, size=(16, 18), **({"window": 8} if kind.startswith("fourier") else {}))
    assert not any("label" in name for name in plain.state_dict()) and plain.rule.label_vectors is None
    e = 4 if kind.startswith("fourier") else 2
    assert plain.rule.embedding == e and "labels" not in plain.config_dict()
    told = make(kind)
    assert told.rule.embedding == e + 4 and told.config_dict()["labels"]["names"] == list(NAMES)
    assert tuple(told.rule.label_vectors.weight.shape) == (6, 256)
    assert make(kind, embedding=3).rule.embedding == 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_label_and_its_absence_and_not_knowing_are_three_things(kind: str) -> None:
    model = make(kind)
    found = [noise(model, row[None].expand(4, -1)) for row in ROWS]
    assert all(not torch.allclose(a, b, atol=1e-3) for i, a in enumerate(found) for b in found[:i])
    assert torch.equal(noise(model, None), found[2])  # nothing said is nothing known
    assert torch.equal(found[3], noise(model, torch.zeros(4, 3)))
    each = noise(model, ROWS)
    errors = [float((each[i] - found[i][i]).norm() / found[i][i].norm()) for i in range(4)]
    assert max(errors) < 1e-5  # whatever the others are
    fresh = make(kind, trained=False)
    assert torch.allclose(noise(fresh, ROWS), noise(fresh, None), rtol=1e-4, atol=1e-2)  # of numbers of 10 to 100


@pytest.mark.parametrize("kind", KINDS)
def test_the_kernel_agrees(kind: str) -> None:
    """Values, active cells, any batch, and gradients, those of the labels' vectors among them."""
    try:
        load_kernel("float32")
    except Unavailable as reason:
        pytest.skip(str(reason))
    model = make(kind)
    active = torch.zeros(1, 1, 16, 18, dtype=torch.bool)
    active[..., 3:9, 2:11] = True
    found = {}
    for precision in (None, "float32"):
        assert model.compute_in(precision) is None and model.uses_kernel is (precision is not None)
        alone = torch.cat([noise(model, ROWS[[0]], 1), noise(model, ROWS[:2], 2)])
        found[precision] = noise(model, ROWS), noise(model, ROWS, active=active), alone
    assert torch.equal(found["float32"][2][1:], found["float32"][0][:2])
    for plain, fast in zip(found[None], found["float32"], strict=True):
        assert float((plain - fast).norm() / plain.norm()) < 3e-5  # sums in another order
    model.train()
    gradients = []
    rows = torch.where(ROWS < 0, torch.nan, ROWS)  # as data gives what it does not know
    images = torch.rand(4, 3, 16, 18, generator=torch.Generator().manual_seed(2))
    for precision in (None, "float32"):
        model.compute_in(precision)
        model.zero_grad()
        model.training_loss(Batch(images, rows), Key.of(range(4))).backward()
        assert all(rule.label_vectors.weight.grad.norm() > 0 for rule in model.rules())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) < 1e-4


@pytest.mark.slow
def test_it_learns_what_a_label_means_and_guidance_exaggerates_it() -> None:
    """Dark images under one label, bright ones under the other: 200 steps tell them apart."""
    model = make("diff-nca", trained=False, output_gain=0.1)
    model.compute_in("auto")
    optimizer = torch.optim.Adam(model.parameters(), 4e-3)
    model.train()
    for step in range(200):
        key = Key.of(range(8 * step, 8 * step + 8))
        levels = torch.tensor([-0.6, 0.6] * 4).view(-1, 1, 1, 1)
        images = levels + 0.1 * torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        rows = torch.eye(3)[[0, 1] * 4]
        optimizer.zero_grad()
        model.training_loss(Batch(images, rows), key).backward()
        optimizer.step()
    model.eval()
    means = {}
    for guidance in (1.0, 2.0):
        for label in (0, 1):
            made = model.generate(
                Key.of(range(6)), (8, 8), SamplingRequest("ddim", 8, guidance), labels=torch.eye(3)[[label] * 6]
            )
            means[guidance, label] = float(made.mean())
    assert means[1.0, 0] < -0.15 and means[1.0, 1] > 0.15, means
    assert means[2.0, 1] - means[2.0, 0] > means[1.0, 1] - means[1.0, 0], means


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["diff-nca-small", "fourier-diff-nca-small"])
def test_training_sampling_and_expanding_by_the_command_line(kind: str, tmp_path: Path, cli: Cli) -> None:
    for first, name in enumerate(("round", "square")):
        draw_images(tmp_path / "set" / name, 6, 20, 20 * first)
    more = draw_images(tmp_path / "more", 20, 20, 100)
    words = [*TINY, *(WITHOUT_NCA if kind.startswith("fourier") else ())]
    run = tmp_path / "run"
    made = cli("train", tmp_path / "set", "--unlabelled", more, "--model", kind, *words, "--steps", 2, "--out", run)
    assert made.code == 0, made.err
    assert json.loads((run / "config.json").read_text())["labels"]["names"] == ["round", "square"]
    fast = ("--sampling-steps", 1, "--precision", "float32", "--device", "cpu")
    sample = ("sample", run, "-n", 2, "--label", "square", "--guidance", 1.5, *fast)
    assert cli(*sample, "--out", tmp_path / "samples").code == 0
    assert cli("expand", run, "--times", 1, *fast, "--out", tmp_path / "expanded").code == 0
    assert len(list((tmp_path / "expanded").glob("*/*.png"))) == 10  # the labelled ones of the training part


def test_a_run_that_was_begun_without_labels_goes_on_so(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    for first, name in enumerate(("round", "square")):
        draw_images(tmp_path / "set" / name, 6, 20, 20 * first)
    run = tmp_path / "run"
    words = ("train", tmp_path / "set", "--model", "diff-nca-small", *TINY)
    with monkeypatch.context() as earlier:
        earlier.setattr(DiffNCA, "takes_labels", False)  # as before automata took labels
        assert cli(*words, "--steps", 1, "--out", run).code == 0
    said = cli(*words, "--steps", 2, "--out", run)
    assert said.code == 0 and "trained without labels and goes on so" in said.err, said.err
    assert not load_model(run).labels.names and len(list_checkpoints(run / "checkpoints")) >= 1
    started = cli(*words, "--init", run, "--steps", 1, "--out", tmp_path / "started")
    assert started.code == 0, started.err  # the note is said once a process
    assert not load_model(tmp_path / "started").labels.names
    anew = cli(*words, "--steps", 1, "--out", tmp_path / "anew")
    assert anew.code == 0 and load_model(tmp_path / "anew").labels.names == ("round", "square")
