"""The Triton kernels against the plain rule: on the GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import copy
import pickle
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from triton_interpreter import DEVICE, GPU, surroundings  # noqa: F401 (a fixture)

from morphogen.automata.embedding import Inputs, positions
from morphogen.automata.fused.compiler import Unavailable
from morphogen.automata.fused.triton_autograd import TritonAcceleration, _Graphs
from morphogen.automata.fused.triton_launch import ConditioningInputs, Fire, Folded, Step
from morphogen.automata.update_rule import Norm, Padding, UpdateRule
from morphogen.core.evaluation import Evaluation
from morphogen.core.keys import Key
from morphogen.core.model import Batch
from morphogen.models import create_model

KEY = Key((1, 2**64 - 1), evaluation=7, origins=((-3, 2**33 - 2), (2**40, 5)))
# Relative errors (Euclidean norm) of the change and of whole gradients against float64, as for the CPU's kernel.
TOLERANCE = {"float32": 3e-6, "bfloat16": 1e-2}
GRADIENT_TOLERANCE = {"float32": 2e-5, "bfloat16": 0.15}


def make_rule(c: int, h: int, norm: Norm, padding: Padding, per_cell_embedding: bool, labels: int = 0) -> UpdateRule:
    torch.manual_seed(0)
    published = 4 if per_cell_embedding else 2
    e = published + (4 if labels else 0)
    rule = UpdateRule(c, h, published**2, e, norm, padding, fixed=[0, 2], labels=labels)
    if rule.label_vectors is not None:
        torch.nn.init.normal_(rule.label_vectors.weight)
    if rule.norm is not None:  # as trained, not as it starts
        with torch.no_grad():
            rule.norm.weight.add_(0.3 * torch.randn(h))
            rule.norm.bias.add_(0.3 * torch.randn(h))
    return rule.to(DEVICE)


def make_inputs(size: tuple[int, int], per_cell_embedding: bool, images: int = 2, labels: int = 0) -> Inputs:
    x, y = positions(size, DEVICE) if per_cell_embedding else (None, None)
    told = torch.eye(2 * labels, device=DEVICE)[:2] if labels else None
    return Inputs(torch.tensor([0.3, 0.8], device=DEVICE)[:images].view(-1, 1, 1, 1), 2, "released", x, y, told)


def relative(actual: Tensor, expected: Tensor) -> float:
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).norm() / expected.norm())


def compare(
    rule: UpdateRule, size: tuple[int, int], per_cell_embedding: bool, precision: Any, rate: float, steps: int
) -> None:
    """States and gradients, of the run by the kernels and of the plain one in float64."""
    labels = 0 if rule.label_vectors is None else len(rule.label_vectors.weight) // 2
    fast, inputs = TritonAcceleration(precision), make_inputs(size, per_cell_embedding, labels=labels)
    generator = torch.Generator().manual_seed(1)
    state, wanted = (torch.randn(2, rule.channels, *size, generator=generator).to(DEVICE) for _ in range(2))
    masks: Any = KEY.fire_masks(steps, rate, size, DEVICE)
    fire = fast.fire(KEY, steps, rate, size, None)

    exact, exact_state = copy.deepcopy(rule).double(), state.double().requires_grad_()
    expected = exact.run(exact_state, lambda i: inputs.at(i).double(), masks, labels=inputs.labels)
    expected.backward(wanted.double())

    own_state = state.clone().requires_grad_()
    found = fast.run(rule, own_state, inputs, steps, fire)
    assert relative(found - state, expected - state) < TOLERANCE[precision]
    if GPU:  # the interpreter is slow, and the tests of models infer too
        with torch.no_grad():
            assert relative(fast.run(rule, state, inputs, steps, fire), found) < TOLERANCE[precision]
    found.backward(wanted)
    assert own_state.grad is not None and exact_state.grad is not None
    assert relative(own_state.grad, exact_state.grad) < GRADIENT_TOLERANCE[precision]
    largest = max(float(p.grad.norm()) for p in exact.parameters() if p.grad is not None)
    for (name, own), other in zip(rule.named_parameters(), exact.parameters(), strict=True):
        assert own.grad is not None and other.grad is not None
        # Beside the gradient itself, one that is nearly nothing is measured against the whole.
        error, scale = float((own.grad - other.grad).norm()), max(float(other.grad.norm()), 1e-3 * largest)
        assert error <= GRADIENT_TOLERANCE[precision] * scale, name


@pytest.mark.slow
@pytest.mark.parametrize("per_cell_embedding", [False, True], ids=["vectors", "maps"])
@pytest.mark.parametrize("padding", ["reflect", "zeros"])
@pytest.mark.parametrize("norm", ["cell", "group"])
def test_states_and_gradients_are_the_plain_rules(norm: Norm, padding: Padding, per_cell_embedding: bool) -> None:
    compare(make_rule(10, 20, norm, padding, per_cell_embedding), (5, 7), per_cell_embedding, "float32", 0.6, 2)


@pytest.mark.slow
@pytest.mark.parametrize("c, h, size", [(8, 12, (2, 3)), (20, 36, (3, 2)), (17, 16, (5, 6))])
@pytest.mark.parametrize("norm", ["cell", "group"])
def test_widths_that_fill_no_block_and_the_smallest_grids(norm: Norm, c: int, h: int, size: tuple[int, int]) -> None:
    compare(make_rule(c, h, norm, "reflect", False), size, False, "float32", 1.0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("per_cell_embedding", [False, True], ids=["vectors", "maps"])
def test_labels(per_cell_embedding: bool) -> None:
    rule = make_rule(10, 20, "cell", "reflect", per_cell_embedding, labels=2)
    compare(rule, (5, 7), per_cell_embedding, "float32", 0.6, 2)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["cell", "group"])
def test_products_in_bfloat16(norm: Norm) -> None:
    compare(make_rule(12, 24, norm, "reflect", True), (5, 5), True, "bfloat16", 0.9, 2)


@pytest.mark.parametrize("rate", [0.0, 0.35, 0.9, 1.0])
def test_the_same_cells_fire(rate: float) -> None:
    found = Fire.of(KEY, 6, rate, DEVICE).masks(6, (5, 9))
    assert all(torch.equal(a, b) for a, b in zip(found, KEY.fire_masks(6, rate, (5, 9), DEVICE), strict=True))


@pytest.mark.slow
def test_a_cell_fires_in_its_own_step() -> None:
    rule, size = make_rule(8, 12, "cell", "reflect", False), (3, 4)
    inputs, state = make_inputs(size, False, images=1), torch.randn(2, 8, *size, device=DEVICE)
    fast, masks = TritonAcceleration("float32"), KEY.fire_masks(6, 0.5, size, DEVICE)
    with torch.no_grad():  # the sixth step takes the second word of the second block
        found = fast.run(rule, state, inputs, 6, fast.fire(KEY, 6, 0.5, size, None))
        assert relative(found - state, rule.run(state, inputs.at, masks) - state) < TOLERANCE["float32"]


@pytest.mark.slow
def test_a_state_in_bfloat16_stays_in_it() -> None:
    rule, size = make_rule(8, 12, "cell", "zeros", False), (3, 4)
    inputs, state = make_inputs(size, False), torch.randn(2, 8, *size, device=DEVICE).bfloat16()
    w = rule.weights()
    with torch.no_grad():
        cells = state.permute(0, 2, 3, 1).flatten(1, 2).contiguous()
        conditioning = ConditioningInputs.of(rule.condition(inputs.at(0), w), size)
        found = Step(Folded.of(rule, w, bf16=False), conditioning, cells, size).forward(None, 0)
        expected = rule.run(state.float(), inputs.at, [None]).permute(0, 2, 3, 1).flatten(1, 2)
    assert found.dtype == torch.bfloat16
    assert relative(found, expected) < 2**-8
    own = state.clone().requires_grad_()
    result = TritonAcceleration("float32").run(rule, own, inputs, 2)
    result.float().square().sum().backward()
    plain = state.float().requires_grad_()
    rule.run(plain, inputs.at, [None] * 2).square().sum().backward()
    assert result.dtype == own.grad.dtype == torch.bfloat16
    assert relative(own.grad, plain.grad) < 0.02


# --------------------------------------------------------------------------------------------------- as models use it


class Replayed:
    """What a CUDA graph does, without one: the same work on the same places, into the same results."""

    def __init__(self, work: Any, places: list[Tensor]) -> None:
        self.work, self.places, self.results = work, places, work(places)

    def replay(self) -> None:
        for old, new in zip(self.results, self.work(self.places), strict=True):
            if old is not None:
                old.copy_(new)


def use_here(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a model use the kernels, and what keeps graphs, in the interpreter on the CPU too."""
    model.acceleration = TritonAcceleration("float32")
    if not GPU:
        monkeypatch.setattr(TritonAcceleration, "device_type", "cpu")

        def capture(work: Any, tensors: list[Tensor]) -> Any:
            places = [t.detach().clone() for t in tensors]
            graph = Replayed(work, places)
            return graph, places, graph.results

        monkeypatch.setattr(_Graphs, "_capture", staticmethod(capture))


@pytest.mark.slow
def test_graphs_follow_their_tensors_and_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model: Any = create_model("diff-nca", size=(4, 5), channels=8, hidden=12, nca_steps=2).to(DEVICE).eval()
    use_here(model, monkeypatch)
    fast, graphs = model.acceleration, model.acceleration._graphs
    kept = []
    for i, steps in enumerate((1, 1, 2, 1)):
        x, t = torch.randn(2, 3, 4, 5, device=DEVICE), torch.full((2,), 100.0 * (i % 3) + 7, device=DEVICE)
        arguments: Any = {"key": Key.of([i, 9]), "nca_steps": steps}
        with torch.no_grad():
            model.acceleration = None
            plain = model(x, t, Evaluation(**arguments)).noise
            model.acceleration = fast
            kept.append((model(x, t, Evaluation(**arguments)).noise, plain))
            for weight in model.parameters():
                weight.mul_(1.02)
    assert len(graphs._made) == 2
    assert all(relative(found, plain) < 1e-5 for found, plain in kept)  # no later call wrote into an earlier result


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["diff-nca", "diff-nca-paper"])
def test_models_predict_and_learn_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model: Any = create_model(kind, size=(6, 7), channels=8, hidden=12, nca_steps=2).to(DEVICE)
    x, t = torch.randn(2, 3, 6, 7, device=DEVICE), torch.full((2,), 170.0, device=DEVICE)
    key, losses, noises, gradients = Key.of([1, 2]), [], [], []
    for fast in (False, True):
        if fast:
            use_here(model, monkeypatch)
        model.eval()
        with torch.no_grad():
            noises.append(model(x, t, Evaluation(key)).noise)
        model.train().zero_grad()
        loss = model.training_loss(Batch(x.clamp(-1, 1)), key)
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert relative(noises[1], noises[0]) < 1e-5
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert relative(gradients[1], gradients[0]) < 1e-4


def test_a_condition_is_perceived_and_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    plain: Any = create_model("diff-nca", size=(6, 7), channels=12, hidden=12, nca_steps=3)
    model = type(plain)(plain.image, plain.architecture, plain.diffusion, 4).to(DEVICE).eval()
    x, t = torch.randn(2, 3, 6, 7, device=DEVICE), torch.full((2,), 170.0, device=DEVICE)
    condition, found = torch.randn(2, 4, 6, 7, device=DEVICE), []
    for fast in (False, True):
        if fast:
            use_here(model, monkeypatch)
        with torch.no_grad():
            for told in (condition, -condition):
                found.append(model(x, t, Evaluation(Key.of([1, 2]), condition=told)).noise)
    assert relative(found[2], found[0]) < 1e-5 and relative(found[3], found[1]) < 1e-5
    assert relative(found[1], found[0]) > 1e-2


def test_active_cells_take_the_plain_path_on_a_gpu() -> None:
    fast = TritonAcceleration("float32")
    assert fast.device_type == "cuda"
    model: Any = create_model("diff-nca", size=(6, 7), channels=8, hidden=12, nca_steps=2).to(DEVICE)
    model.acceleration = fast
    assert model.fast() is (fast if GPU else None)
    assert model.fast(torch.ones(1, 1, 6, 7, dtype=torch.bool)) is None


@pytest.mark.slow
@pytest.mark.parametrize("gradients", [False, True], ids=["inference", "training"])
def test_the_check_passes_what_is_right_and_names_what_is_wrong(
    gradients: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule, fast = make_rule(8, 12, "group", "zeros", True), TritonAcceleration("float32")
    fast.check(rule, per_cell_embedding=True, gradients=gradients)
    right = TritonAcceleration.run
    monkeypatch.setattr(TritonAcceleration, "run", lambda *a: 1.1 * right(*a))
    with pytest.raises(Unavailable, match="wrong on this device"):
        fast.check(rule, per_cell_embedding=True, gradients=gradients)

    def broken(*arguments: object) -> Tensor:
        raise RuntimeError("out of resource: shared memory\nmore")

    monkeypatch.setattr(TritonAcceleration, "run", broken)
    with pytest.raises(Unavailable, match=r"do not run here: out of resource: shared memory$"):
        fast.check(rule, per_cell_embedding=True, gradients=gradients)


def test_a_model_on_a_gpu_tries_its_rules_first(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = create_model("diff-nca", size=(6, 7), channels=8, hidden=12, nca_steps=2).to(DEVICE).eval()
    assert model._accelerated("cuda", "float32").precision == "float32"
    monkeypatch.setitem(sys.modules, "morphogen.automata.fused.triton_autograd", None)  # as if it could not be imported
    with pytest.raises(Unavailable, match=r"^Triton is not installed$"):
        model._accelerated("cuda", "float32")


def test_it_survives_a_copy_and_a_pickle() -> None:
    fast = TritonAcceleration("float32")
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert other.precision == "float32"


# ------------------------------------------------------------------------------------------------------------ on a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("norm", ["cell", "group"])
@pytest.mark.parametrize(
    "c, padding, per_cell_embedding, size",
    [(96, "reflect", True, (64, 64)), (192, "zeros", True, (16, 16)), (96, "reflect", False, (33, 50))],
)
def test_published_widths_on_a_gpu(
    c: int, padding: Padding, per_cell_embedding: bool, size: tuple[int, int], norm: Norm, precision: str
) -> None:
    compare(make_rule(c, 512, norm, padding, per_cell_embedding), size, per_cell_embedding, precision, 0.9, 3)


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_graphs_follow_the_weights_and_the_keys_on_a_gpu(precision: Any) -> None:
    model: Any = create_model("fourier-diff-nca", size=64).to(DEVICE).eval()
    x, t = torch.randn(2, 3, 64, 64, device=DEVICE), torch.full((2,), 170.0, device=DEVICE)
    for seed in range(3):  # the first call captures, the others replay
        with torch.no_grad():
            model.compute_in(None)
            plain = model(x, t, Evaluation(Key.of([seed, 9]))).noise
            if seed == 0:
                assert model.compute_in(precision) is None
                fast = model.acceleration
            model.acceleration = fast
            assert relative(model(x, t, Evaluation(Key.of([seed, 9]))).noise, plain) < 4 * TOLERANCE[precision]
            for weight in model.parameters():
                weight.mul_(1.02)
