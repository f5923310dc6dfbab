"""GeCA: its counts, its attention and gradients, its fast form, and what it carries from one evaluation to the next.

That it computes the published formulas is in tests/parity/test_geca_parity.py.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from morphogen.automata import neighbours
from morphogen.automata.fused.build import has_bfloat16, load_attention
from morphogen.automata.fused.compiler import Unavailable
from morphogen.automata.geca import GeCA
from morphogen.automata.neighbours import CellGrid, attend
from morphogen.core.errors import InputError
from morphogen.core.evaluation import Evaluation
from morphogen.core.keys import Key
from morphogen.core.model import Batch
from morphogen.core.request import SamplingRequest
from morphogen.models import PRESETS, create_model

NAMES = tuple(f"label {i}" for i in range(11))
# By the layers: DESIGN's counts for S; XS follows from width 384, MLP 64 and 32 hidden channels.
COUNTS = {("geca-s", 11): 13_312_584, ("geca-s", 5): 13_307_976, ("geca-xs", 11): 2_255_720, ("geca-xs", 5): 2_253_416}


def shaken(model: Any, scale: float = 0.3) -> Any:
    """The model with random weights, none of which is zero: fresh ones update nothing."""
    generator = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        weight.data = (scale * torch.randn(weight.shape, generator=generator)).to(weight)
    return model.eval()


def make(size: tuple[int, int] = (6, 5), **options: Any) -> GeCA:
    small = {"width": 16, "heads": 2, "mlp": 12, "hidden": 5, "nca_steps": 3, "labels": NAMES[:3], **options}
    return shaken(create_model("geca-xs", size=size, image_channels=2, **small))  # type: ignore[no-any-return]


def noisy(batch: int, size: tuple[int, int] = (6, 5), seed: int = 0) -> Tensor:
    return torch.randn(batch, 2, *size, generator=torch.Generator().manual_seed(seed))


def times(batch: int) -> Tensor:
    return torch.full((batch,), 400.0)


@pytest.mark.parametrize(("name", "labels"), COUNTS)
def test_published_counts(name: str, labels: int) -> None:
    model = create_model(name, size=32, image_channels=4, labels=NAMES[:labels])
    assert model.parameter_count() == model.deployed_parameter_count() == COUNTS[name, labels]


@pytest.mark.slow
def test_what_is_drawn_and_hidden_does_not_change_the_count() -> None:
    options: list[dict[str, Any]] = [
        {"seed": "printed"}, {"heredity": "none"}, {"off_grid": "masked"}, {"places": "2d"}, {"null_label": "zeros"},
        {"drop_labels": "label"}, {"nca_steps": 30},
    ]  # fmt: skip
    for option in options:
        model = create_model("geca-s", size=32, image_channels=4, labels=NAMES, **option)
        assert model.parameter_count() == COUNTS["geca-s", 11]
    # As printed, without a learned variance: four output channels fewer, in and out.
    printed = create_model(
        "geca-s", size=32, image_channels=4, labels=NAMES, diffusion={"variance": "fixed", "loss": "mse"}
    )
    assert printed.parameter_count() == COUNTS["geca-s", 11] - 4 * (2 * 768 + 1)


# ------------------------------------------------------------------------------------------------ attention


def literally(q: Tensor, k: Tensor, v: Tensor, cells: Tensor, grid: CellGrid, heads: int, masked: bool) -> Tensor:
    """With nine copies of all keys and values."""
    wide = k.shape[1]

    def copies(rows: Tensor) -> Tensor:  # (cells, 9, heads, wide / heads)
        maps = rows.view(grid.batch, grid.height, grid.width, wide).permute(0, 3, 1, 2)
        around = F.unfold(maps, 3, padding=1).view(grid.batch, wide, 9, -1)
        return around.permute(0, 3, 2, 1).reshape(grid.cells, 9, heads, -1)[cells]

    logits = torch.einsum("fhd,fjhd->fhj", q.view(len(q), heads, -1), copies(k)) * (wide // heads) ** -0.5
    if masked:
        inside = copies(torch.ones_like(k))[..., 0] > 0
        logits = logits.masked_fill(~inside.transpose(1, 2), -torch.inf)
    return torch.einsum("fhj,fjhd->fhd", logits.softmax(dim=-1), copies(v)).flatten(1)


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    batch=st.integers(1, 2),
    heads=st.integers(1, 3),
    deep=st.sampled_from([1, 5, 16, 19, 64]),
    masked=st.booleans(),
    plain=st.booleans(),
    seed=st.integers(0, 100),
)
def test_attention_and_its_gradients(
    size: tuple[int, int], batch: int, heads: int, deep: int, masked: bool, plain: bool, seed: int
) -> None:
    """Ours, in float64 by PyTorch and in float32 by the kernel, against autograd through the literal form."""
    grid, wide = CellGrid(batch, *size), heads * deep
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randperm(grid.cells, generator=generator)[: 1 + grid.cells // 2]
    dtype = torch.float64 if plain else torch.float32
    q, kv, back = (
        torch.randn(rows, columns, generator=generator, dtype=dtype)
        for rows, columns in ((len(cells), wide), (grid.cells, 2 * wide), (len(cells), wide))
    )
    found = []
    for form, values in ((attend, (q, kv)), (literally, (q.double(), kv.double()))):
        leaves = [t.clone().requires_grad_() for t in values]
        keys, values = leaves[1].chunk(2, dim=1)
        out = form(leaves[0], keys, values, cells, grid, heads, masked)
        found.append([out.detach(), *torch.autograd.grad((out * back).sum(), leaves)])
    # Sums of at most 9 * 64 terms in another order.
    tolerance = 1e-12 if plain else 2e-5
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).abs().max() <= tolerance * (1 + theirs.abs().max())


def test_attention_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    grid, q, k, v = CellGrid(1, 4, 4), *(torch.randn(16, 8) for _ in range(3))
    cells = torch.arange(16)
    by_kernel = attend(q, k, v, cells, grid, 2)

    def unavailable() -> None:
        raise Unavailable("there is no C++ compiler")

    monkeypatch.setattr(neighbours, "load_attention", unavailable)
    monkeypatch.setattr(neighbours, "say_once", lambda text: None)
    assert torch.allclose(attend(q, k, v, cells, grid, 2), by_kernel, atol=1e-6)


def test_a_cell_sees_its_neighbours_alone() -> None:
    """One step changes a cell by what lies at most one cell away, on the image's own side of a border."""
    model = make(nca_steps=1, fire_rate=1.0, size=(6, 6))
    x = noisy(1, (6, 6))
    base = model(x, times(1)).memory
    for y, x_ in ((2, 3), (0, 5), (3, 0)):
        other = x.clone()
        other[..., y, x_] += 1
        moved = (model(other, times(1)).memory - base).abs().amax(dim=1)[0] > 0
        expected = torch.zeros(6, 6, dtype=torch.bool)
        expected[max(y - 1, 0) : y + 2, max(x_ - 1, 0) : x_ + 2] = True
        assert torch.equal(moved, expected)


# ------------------------------------------------------------------------------------------------ gradients


@pytest.mark.parametrize("off_grid", ["zero", "masked"])
def test_recomputing_gives_the_gradients_of_autograd(off_grid: str) -> None:
    """In float64, where the loss's own sums are all that may differ: nothing."""
    found = []
    for recompute in (False, True):
        model = make(off_grid=off_grid).double().train()
        model.recompute = recompute
        batch = Batch(noisy(2).double(), torch.eye(3, dtype=torch.float64)[:2])
        model.training_loss(batch, Key.of([4, 5])).backward()
        found.append({name: weight.grad for name, weight in model.named_parameters()})
        assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in found[-1].values())
    for name, gradient in found[0].items():
        assert torch.allclose(found[1][name], gradient, rtol=1e-12, atol=1e-14), name


def test_recomputing_keeps_less() -> None:
    kept = []
    for recompute in (False, True):
        model = make(nca_steps=8, size=(12, 12)).train()
        model.recompute = recompute
        sizes: dict[int, int] = {}

        def count(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            model.training_loss(Batch(noisy(2, (12, 12))), Key.of([1, 2]))
        kept.append(sum(sizes.values()))
    assert kept[1] < kept[0] / 3


# ------------------------------------------------------------------------------------------------ the fast form


@pytest.mark.parametrize("precision", ["float32", *(["bfloat16"] if has_bfloat16() else [])])
@pytest.mark.parametrize("off_grid", ["zero", "masked"])
def test_the_fast_form_computes_the_same(precision: Any, off_grid: str) -> None:
    try:
        load_attention()
    except Unavailable as reason:
        pytest.skip(str(reason))
    model = make(off_grid=off_grid, nca_steps=5, width=64, mlp=48, size=(7, 6))
    shaken(model, 0.1)
    key, x = Key.of([3, 4]), noisy(2, (7, 6))
    rows = torch.tensor([[0.0, 1, 0], [0, 0, 0]])
    active = torch.rand(2, 1, 7, 6, generator=torch.Generator().manual_seed(0)) < 0.6
    with torch.no_grad():
        for labels, alive in ((None, None), (rows, None), (rows, active)):
            assert model.compute_in(None) is None
            plain = model(x, times(2), Evaluation(key, labels, active=alive)).memory
            assert model.compute_in(precision) is None and model.acceleration is not None
            fast = model(x, times(2), Evaluation(key, labels, active=alive)).memory
            start = model.start(key, CellGrid(2, 7, 6), None)
            error = (fast - plain).norm() / (plain - start).norm()
            assert error < {"float32": 1e-5, "bfloat16": 2e-2}[precision]  # eight bits of every factor


def test_the_fast_form_follows_the_weights() -> None:
    model, x = make(), noisy(1)
    if model.compute_in("float32") is not None:
        pytest.skip("no compiler")
    with torch.no_grad():
        before = model(x, times(1)).noise
        model.last.weight.mul_(2)
        after = model(x, times(1)).noise
        other = copy.deepcopy(model)
        assert not torch.equal(before, after)
        assert torch.equal(other(x, times(1)).noise, after)


@pytest.mark.parametrize("precision", [None, "float32", *(["bfloat16"] if has_bfloat16() else [])])
def test_an_image_does_not_depend_on_its_batch(precision: Any) -> None:
    model = make(width=64, mlp=96, size=(9, 9))
    model.compute_in(precision)
    rows = torch.eye(3)
    with torch.no_grad():
        together = model(noisy(3, (9, 9)), times(3), Evaluation(Key.of([7, 8, 9]), rows)).noise
        alone = model(noisy(3, (9, 9))[1:2], times(1), Evaluation(Key.of([8]), rows[1:2])).noise
    # The plain form multiplies all rows of a batch at once, in blocks that depend on how many there are.
    assert torch.equal(alone[0], together[1]) if precision else torch.allclose(alone[0], together[1], atol=1e-6)


# ------------------------------------------------------------------------------------------------ seed and heredity


def test_seeds() -> None:
    key = Key.of([1, 2])
    for seed, first in (("released", 4), ("printed", 9)):
        start = make(seed=seed).start(key, CellGrid(2, 6, 5), None)
        assert start.shape == (2, 9, 6, 5)
        centre = start[:, :, 3, 2].clone()
        assert (centre[:, :first] != 0).all() and (centre[:, first:] == 0).all()
        start[:, :, 3, 2] = 0
        assert not start.any()
        assert not torch.equal(centre[0], centre[1])
    fresh = make().start(key.at(1), CellGrid(2, 6, 5), None)
    assert not torch.equal(fresh, make().start(key, CellGrid(2, 6, 5), None))  # every evaluation has a seed of its own


@pytest.mark.parametrize("heredity", ["none", "out", "both", "hidden"])
def test_what_is_inherited(heredity: str) -> None:
    model, key, grid = make(heredity=heredity), Key.of([1]).at(3), CellGrid(1, 6, 5)
    memory = torch.randn(1, 9, 6, 5)
    start, fresh = model.start(key, grid, memory), model.start(key, grid, None)
    own = {"none": (), "out": (0,), "both": (0, 1), "hidden": (1,)}[heredity]
    for i, part in enumerate((slice(0, 4), slice(4, 9))):
        assert torch.equal(start[:, part], (memory if i in own else fresh)[:, part])


SAMPLERS = ["ddpm", "ddim", "dpm++", "dpm++-single", "dpm++-sde", "unipc", "euler", "euler-a", "heun"]


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_every_sampler_carries_the_memory(sampler: str, guidance: float) -> None:
    """With and without heredity the images differ, from the second evaluation on."""
    rows = torch.eye(3)[:2]
    made = {}
    for heredity in ("none", "hidden", "both", "out"):
        model = make(heredity=heredity)
        shaken(model, 0.05)
        made[heredity] = model.generate(Key.of([1, 2]), request=SamplingRequest(sampler, 4, guidance), labels=rows)
        assert torch.isfinite(made[heredity]).all()
    for one, other in (("none", "hidden"), ("hidden", "both"), ("none", "out"), ("out", "both")):
        assert (made[one] - made[other]).abs().max() > 1e-5
    model = make(heredity="hidden")
    shaken(model, 0.05)
    alone = model.generate(Key.of([2]), request=SamplingRequest(sampler, 4, guidance), labels=rows[1:])
    assert torch.allclose(alone[0], made["hidden"][1], atol=1e-4)


def test_steps_can_be_changed() -> None:
    model, x = make(), noisy(1)
    with torch.no_grad():
        three, other, five = (model(x, times(1), Evaluation(Key.of([0]), nca_steps=n)).noise for n in (3, None, 5))
    assert torch.equal(three, other) and not torch.equal(three, five)
    images = [model.generate(Key.of([0]), request=SamplingRequest(steps=2, nca_steps=n)) for n in (None, 3, 1)]
    assert torch.equal(images[0], images[1]) and not torch.equal(images[0], images[2])


def test_only_active_cells_change() -> None:
    model, key = make(), Key.of([5])
    active = torch.zeros(1, 1, 6, 5, dtype=torch.bool)
    active[..., 1:3, 2:] = True
    found = model(noisy(1), times(1), Evaluation(key, active=active)).memory
    start = model.start(key, CellGrid(1, 6, 5), None)
    changed = (found != start).any(dim=1, keepdim=True)
    assert changed.any() and not (changed & ~active).any()


@pytest.mark.parametrize(
    ("options", "says"),
    [({"heads": 3}, "heads is 3"), ({"width": 18, "heads": 3}, "multiple of 4"), ({"heredity": "some"}, "heredity")],
)
def test_settings_that_cannot_be(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        make(**options)


def test_the_presets_learn_as_published() -> None:
    for name in ("geca-s", "geca-xs"):
        paper = PRESETS[name].recipes["paper"]
        assert paper["diffusion"] == {
            "timesteps": 1000, "schedule": "linear", "output": "noise", "loss_on": "noise", "loss": "mse+vb",
            "variance": "learned",
        }  # fmt: skip
        assert paper["training"]["optimizer"]["learning_rate"] == 1e-4 and paper["training"]["batch_size"] == 128
        assert paper["training"]["averaging"]["decay"] == 0.9999
        assert paper["architecture"] == {"heredity": "hidden"}
        assert create_model(name).architecture.heredity == "none"  # type: ignore[attr-defined]
