"""GeCA's attention by the Triton kernels against the plain form: on the GPU where there is one, else interpreted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from triton_interpreter import DEVICE, GPU, surroundings  # noqa: F401 (a fixture)

import morphogen
from morphogen.automata.fused.compiler import Unavailable
from morphogen.automata.fused.triton_attention import TritonAttention
from morphogen.automata.neighbours import CellGrid, attend
from morphogen.core.evaluation import Evaluation
from morphogen.core.keys import Key
from morphogen.core.model import Batch
from morphogen.models import create_model

# Relative errors (Euclidean norm) against float64: of float32 sums of 9 * 200 terms at most, and of results that are
# rounded to bfloat16's eight bits once (the inputs are rounded before either form sees them).
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 4e-3}


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the kernels take tensors of this device, in the interpreter too."""
    monkeypatch.setattr(TritonAttention, "device_type", DEVICE.type)


def relative(actual: Tensor, expected: Tensor) -> float:
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).norm() / expected.norm().clamp(min=1e-12))


def compare(
    grid: CellGrid,
    heads: int,
    deep: int,
    masked: bool,
    dtype: torch.dtype,
    share: float,
    seed: int = 0,
    size: float = 1.0,
) -> None:
    """What the neighbours tell, and all gradients, against the plain form in float64."""
    generator, wide = torch.Generator().manual_seed(seed), heads * deep
    cells = torch.randperm(grid.cells, generator=generator)[: round(share * grid.cells)].to(DEVICE)
    q, kv, back = (
        (size * torch.randn(*shape, generator=generator)).to(DEVICE, dtype)
        for shape in ((len(cells), wide), (grid.cells, 2 * wide), (len(cells), wide))
    )
    found = []
    for kernel, leaves in ((TritonAttention(), [q, kv]), (None, [q.double(), kv.double()])):
        leaves = [leaf.clone().requires_grad_() for leaf in leaves]
        keys, values = leaves[1].chunk(2, dim=1)  # rows that lie apart, as in the model
        out = attend(leaves[0], keys, values, cells, grid, heads, masked, kernel)
        assert out.dtype == leaves[0].dtype
        d_q, d_kv = torch.autograd.grad(out, leaves, back.to(out.dtype))
        assert d_q.dtype == d_kv.dtype == out.dtype
        found.append([out.detach(), d_q, *d_kv.chunk(2, dim=1)])
    for ours, theirs in zip(*found, strict=True):
        assert relative(ours, theirs) < TOLERANCE[dtype]


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True], ids=["zero", "masked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_told_and_its_gradients(masked: bool, dtype: torch.dtype) -> None:
    compare(CellGrid(2, 5, 7), 2, 16, masked, dtype, 0.6)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    batch=st.integers(1, 2),
    heads=st.integers(1, 3),
    deep=st.sampled_from([1, 5, 19, 32, 64]),
    masked=st.booleans(),
    seed=st.integers(0, 100),
)
def test_any_grid_heads_and_widths(
    size: tuple[int, int], batch: int, heads: int, deep: int, masked: bool, seed: int
) -> None:
    compare(CellGrid(batch, *size), heads, deep, masked, torch.float32, 0.7, seed)


def test_a_head_wider_than_a_block() -> None:
    compare(CellGrid(1, 3, 4), 1, 200, True, torch.float32, 1.0)


def test_all_cells_and_large_logits() -> None:
    """Logits in the hundreds, whose exponentials overflow unless the largest is taken off first."""
    torch.manual_seed(0)
    grid, q, k, v = CellGrid(1, 4, 5), *(30 * torch.randn(20, 8, device=DEVICE) for _ in range(3))
    cells = torch.arange(20, device=DEVICE)
    ours = attend(q, k, v, cells, grid, 1, False, TritonAttention())
    # A logit of some thousands is known to 1e-4 in float32, and so are its exponential and the weights.
    assert relative(ours, attend(q.double(), k.double(), v.double(), cells, grid, 1)) < 1e-3


def test_no_cell_at_all() -> None:
    grid, kv = CellGrid(1, 3, 3), torch.randn(9, 8, device=DEVICE, requires_grad=True)
    none, q = torch.zeros(0, dtype=torch.int64, device=DEVICE), torch.zeros(0, 8, device=DEVICE, requires_grad=True)
    out = attend(q, kv, kv, none, grid, 2, False, TritonAttention())
    out.sum().backward()
    assert out.shape == (0, 8) and kv.grad is not None and not kv.grad.any()


def test_images_are_apart_and_batches_do_not_matter() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(24, 8, device=DEVICE) for _ in range(3))
    together = attend(q, k, v, torch.arange(24, device=DEVICE), CellGrid(2, 3, 4), 2, False, TritonAttention())
    alone = attend(
        q[12:], k[12:], v[12:], torch.arange(12, device=DEVICE), CellGrid(1, 3, 4), 2, False, TritonAttention()
    )
    assert torch.equal(together[12:], alone)


def test_other_devices_and_types_take_the_plain_form(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = TritonAttention()
    assert kernel.takes(torch.zeros(1, device=DEVICE)) and not kernel.takes(torch.zeros(1, device="meta"))
    assert not kernel.takes(torch.zeros(1, device=DEVICE, dtype=torch.float64))
    monkeypatch.undo()
    assert kernel.takes(torch.zeros(1, device=DEVICE)) == GPU  # never on a CPU


# --------------------------------------------------------------------------------------------------- as models use it


def make(off_grid: str = "zero") -> Any:
    torch.manual_seed(0)
    small: dict[str, Any] = {"width": 16, "heads": 2, "mlp": 12, "hidden": 5, "nca_steps": 2, "size": (4, 5)}
    model: Any = create_model("geca-xs", image_channels=2, off_grid=off_grid, **small)
    for weight in model.parameters():
        weight.data = 0.3 * torch.randn_like(weight)
    return model.to(DEVICE)


@pytest.mark.slow
@pytest.mark.parametrize(("off_grid", "recompute"), [("zero", False), ("masked", True)])
def test_a_model_predicts_and_learns_the_same(off_grid: str, recompute: bool) -> None:
    model, x, found = make(off_grid), torch.randn(2, 2, 4, 5).to(DEVICE), []
    model.recompute = recompute
    for kernel in (None, TritonAttention()):
        model.attention = kernel
        with torch.no_grad():
            noise = model.eval()(x, torch.full((2,), 400.0, device=DEVICE), Evaluation(Key.of([1, 2]))).noise
        model.train().zero_grad()
        model.training_loss(Batch(x.clamp(-1, 1)), Key.of([1, 2])).backward()
        found.append((noise, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
    assert relative(found[1][0], found[0][0]) < 1e-5  # float32 sums in another order, through two steps
    assert relative(found[1][1], found[0][1]) < 1e-4


def test_the_check_passes_what_is_right_and_names_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(gradients: bool) -> None:
        TritonAttention().check(DEVICE, torch.float32, 12, 2, True, gradients)

    check(gradients=True)
    right, back = TritonAttention.attend, TritonAttention.gradients

    def louder(*given: Any) -> Any:
        out, kept = right(*given)
        return 1.1 * out, kept

    monkeypatch.setattr(TritonAttention, "attend", louder)
    with pytest.raises(Unavailable, match=r"wrong on this device, by 0\.1"):
        check(gradients=False)
    monkeypatch.setattr(TritonAttention, "attend", right)
    monkeypatch.setattr(TritonAttention, "gradients", lambda *given: [1.1 * g for g in back(*given)])
    check(gradients=False)
    with pytest.raises(Unavailable, match=r"wrong on this device, by 0\.1"):
        check(gradients=True)

    def broken(*given: object) -> Any:
        raise RuntimeError("out of resource: shared memory\nmore")

    monkeypatch.setattr(TritonAttention, "attend", broken)
    with pytest.raises(Unavailable, match=r"do not run here: out of resource: shared memory$"):
        check(gradients=False)


def test_a_model_on_a_gpu_tries_its_attention_first(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("masked").eval()
    assert isinstance(model._on_gpu(), TritonAttention)
    monkeypatch.setattr(type(model), "device", torch.device("cuda"))  # as accelerate sees it
    monkeypatch.setattr(TritonAttention, "check", lambda *given, **named: None)
    assert model.compute_in("float32") is None and isinstance(model.attention, TritonAttention)
    assert model.acceleration is None
    assert model.compute_in(None) is None and model.attention is None
    monkeypatch.setitem(
        sys.modules, "morphogen.automata.fused.triton_attention", None
    )  # as if it could not be imported
    assert model.compute_in("float32") == "Triton is not installed" and model.attention is None


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from morphogen.automata.fused import triton_neighbours as kernels

whole = {"count": "i32", "keys_apart": "i32", "values_apart": "i32", "height": "i32", "width": "i32", "scale": "fp32"}
plain = {"cells": "*i64", "places": "*i32", "spread": "*fp32", "mean": "*fp32"}
for kernel, kind, heads, deep in (
    (kernels.attend_kernel, "bf16", 12, 64),
    (kernels.queries_kernel, "fp32", 2, 19),
    (kernels.keys_values_kernel, "bf16", 12, 64),
):
    block = 64 if deep == 64 else 32
    fixed = {"WIDE": heads * deep, "HEADS": heads, "D": deep, "BM": 256 // block, "BD": block, "MASKED": True}
    known = {name: value for name, value in fixed.items() if name in kernel.arg_names}
    names = [name for name in kernel.arg_names if name not in known]
    signature = {name: whole.get(name) or plain.get(name) or "*" + kind for name in names}
    source = ASTSource(kernel, {**signature, **dict.fromkeys(known, "constexpr")}, known)
    made = triton.compile(source, GPUTarget("cuda", 90, 32), {"num_warps": 4, "enable_fp_fusion": True})
    print(kernel.__name__, len(made.asm["cubin"]))
"""


def test_they_compile_for_hopper(tmp_path: Path) -> None:
    """To machine code of sm_90, by Triton's own assembler, which needs no GPU."""
    named = {"PYTHONPATH": str(Path(morphogen.__file__).parents[1]), "TRITON_CACHE_DIR": str(tmp_path)}
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | named
    ran = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    made = [line.split() for line in ran.stdout.splitlines()]
    assert len(made) == 3 and all(int(size) > 1000 for _, size in made)


# ------------------------------------------------------------------------------------------------------------ on a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("masked", [False, True], ids=["zero", "masked"])
@pytest.mark.parametrize(("side", "heads", "deep"), [(64, 12, 64), (33, 6, 64), (16, 3, 200)])
def test_published_widths_on_a_gpu(side: int, heads: int, deep: int, masked: bool, dtype: torch.dtype) -> None:
    compare(CellGrid(4, side, side + 1), heads, deep, masked, dtype, 0.5)


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_model_is_accelerated_on_a_gpu(precision: Any) -> None:
    model = make().train()
    assert model.compute_in(precision) is None and isinstance(model.attention, TritonAttention)
