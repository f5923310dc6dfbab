"""How a grid of cells runs: what changes, how far it sees, and what its prediction depends on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from morphogen.core.errors import InputError
from morphogen.core.evaluation import Evaluation
from morphogen.core.keys import Key
from morphogen.core.model import Batch
from morphogen.models import create_model

KINDS = ["cell", "group", "fourier", "fourier-cell"]


def make(kind: str, size: int | tuple[int, int] = 8, weights: int = 0, **settings: Any) -> Any:
    """A small automaton whose updates are strong enough to be seen."""
    torch.manual_seed(weights)
    name = {
        "cell": "diff-nca",
        "group": "diff-nca-paper",
        "fourier": "fourier-diff-nca",
        "fourier-cell": "fourier-diff-nca-small",
    }[kind]
    if kind.startswith("fourier") and size == 8:
        size = 32
    options = {"channels": 8, "hidden": 12, "nca_steps": 3} | settings
    return create_model(name, size=size, **options).eval()


def image(model: Any, batch: int = 1, size: tuple[int, int] | None = None, seed: int = 0) -> Tensor:
    size = size or (model.image.height, model.image.width)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, model.image.channels, *size, generator=generator)


@torch.no_grad()
def predict(model: Any, x: Tensor, t: float = 100.0, seeds: Any = None, **options: Any) -> Tensor:
    key = Key.of(seeds if seeds is not None else range(len(x)))
    noise: Tensor = model(x, torch.full((len(x),), t), Evaluation(key, **options)).noise
    return noise


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Equal up to rounding: 6e-8 of the largest number at each of some steps, and the automaton carries it on. Kernels
    sum in another order for another shape. (A random Fourier stage puts thousands into its first cell.)
    """
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5 + 2e-6 * float(expected.abs().max()))


def differ(actual: Tensor, expected: Tensor) -> bool:
    """By several times what `assert_close` allows."""
    return float((actual - expected).abs().max()) > 5e-4 * float(expected.abs().max())


# ------------------------------------------------------------------------------------------------ what changes


@pytest.mark.parametrize("kind", ["cell", "group"])
def test_image_channels_never_change(kind: str) -> None:
    model = make(kind)
    state = torch.randn(2, 8, 6, 7)
    with torch.no_grad():
        last = model.rule.run(state, lambda i: torch.full((1, 4, 1, 1), 0.1 * i), [None] * 4)
    assert torch.equal(last[:, :3], state[:, :3])
    assert (last[:, 3:] != state[:, 3:]).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fourier", "fourier-cell"])
def test_image_channels_never_change_in_either_stage(kind: str) -> None:
    model = make(kind, size=(33, 36))
    x, t = image(model, 2), torch.tensor([10.0, 200.0])
    with torch.no_grad():
        seed = model.image_seed_state(x, t)
        last = model.run_image(seed, model.inputs((33, 36), t, 3), Key.of([1, 2]))
        window = torch.randn(2, 16, 16, 16)
        encoded = torch.zeros(1, 16, 16, 16)
        spectrum = model.fourier.run(window, lambda i: encoded, [None] * 3)
    assert torch.equal(seed[:, :3], x) and torch.equal(last[:, :3], x)
    assert (last[:, 3:] != seed[:, 3:]).float().mean() > 0.95
    real, imaginary = slice(0, 3), slice(8, 11)
    assert torch.equal(spectrum[:, real], window[:, real])
    assert torch.equal(spectrum[:, imaginary], window[:, imaginary])
    assert (spectrum[:, 3:8] != window[:, 3:8]).all() and (spectrum[:, 11:] != window[:, 11:]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_cells_that_do_not_fire_keep_their_state(kind: str) -> None:
    model = make(kind)
    state = torch.randn(2, 8, 5, 6)
    fire = torch.rand(2, 1, 5, 6) < 0.5
    inputs = 16 if kind.startswith("fourier") else 4
    with torch.no_grad():
        after = model.rule.run(state, lambda i: torch.ones(1, inputs, 5, 6), [fire])
    changed = (after != state).any(dim=1, keepdim=True)
    assert torch.equal(changed, fire)


@pytest.mark.parametrize("kind", KINDS)
def test_inactive_cells_keep_their_seed_state(kind: str) -> None:
    model = make(kind)
    x = image(model, 2)
    active = torch.zeros(2, 1, *x.shape[-2:], dtype=torch.bool)
    active[0, :, 1:4, 2:7] = True
    active[1, :, 0, :] = True
    noise = predict(model, x, active=active)
    seed = torch.zeros_like(noise)
    if kind.startswith("fourier"):
        with torch.no_grad():
            seed = model.image_seed_state(x, torch.full((1,), 100.0))[:, 3:6]
    inactive = ~active.expand_as(noise)
    assert torch.equal(noise[inactive], seed[inactive])
    # Nearly all: a cell misses all three updates with probability 0.001.
    assert (noise[~inactive] != seed[~inactive]).float().mean() > 0.95
    assert torch.equal(predict(model, x, active=torch.ones_like(active)), predict(model, x))


@pytest.mark.parametrize("kind", KINDS)
def test_resting_cells_around_the_active_ones_are_no_cut(kind: str) -> None:
    """A canvas of the image's own size has no cuts, though the rectangle that is computed ends inside it."""
    model = make(kind)
    reason = model.compute_in("float32")  # the kernel alone lets cells near a cut rest
    if reason is not None:
        pytest.skip(reason)
    x = image(model)
    height, width = x.shape[-2:]
    active = torch.zeros(1, 1, height, width, dtype=torch.bool)
    active[..., 2:5, 3:6] = True
    key, t = Key.of([0]), torch.full((1,), 100.0)
    with torch.no_grad():
        alone = model(x, t, Evaluation(key, active=active)).noise
        on_canvas = model(x, t, Evaluation(replace(key, canvas=(height, width)), active=active)).noise
    assert torch.equal(alone, on_canvas)


def test_inactive_cells_are_perceived() -> None:
    model = make("cell", fire_rate=1.0)
    x = image(model)
    active = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    active[..., 4, 4] = True
    other = x.clone()
    other[..., 4, 5] += 1.0
    beyond = x.clone()
    beyond[..., 4, 6] += 1.0  # two cells away: only through a neighbour, which does not update
    assert (predict(model, other, active=active) != predict(model, x, active=active))[0, :, 4, 4].all()
    assert torch.equal(predict(model, beyond, active=active), predict(model, x, active=active))


def test_sampling_may_have_a_fire_rate_of_its_own() -> None:
    models = [make("cell", fire_rate=rate, **more) for rate, more in ((0.5, {"sampling_fire_rate": 1.0}), (0.5, {}))]
    every, x = make("cell", fire_rate=1.0), image(models[0])
    assert torch.equal(predict(models[0], x), predict(every, x))
    assert differ(predict(models[1], x), predict(every, x))
    batch, key = Batch(x.clamp(-1, 1)), Key.of([3])
    losses = [model.train().training_loss(batch, key) for model in models]
    assert torch.equal(*losses)


# ------------------------------------------------------------------------------------------------ how far it sees


@settings(max_examples=25, deadline=None)
@given(
    steps=st.integers(1, 4),
    row=st.integers(0, 10),
    column=st.integers(0, 12),
    rate=st.sampled_from([0.9, 1.0]),
    encoding=st.sampled_from(["released", "sinusoidal"]),
    weights=st.integers(0, 20),
)
def test_a_pixel_is_felt_as_far_as_the_receptive_range_and_no_farther(
    steps: int, row: int, column: int, rate: float, encoding: str, weights: int
) -> None:
    """Bit for bit: of cells farther away, not one bit of the prediction changes. At the range itself some do, where
    every cell fires.
    """
    model = make("cell", (11, 13), weights, nca_steps=steps, fire_rate=rate, encoding=encoding)
    assert model.receptive_range == steps
    x = image(model)
    other = x.clone()
    other[..., row, column] += 2.0
    changed = (predict(model, x) != predict(model, other)).any(dim=1)[0]
    distance = torch.maximum((torch.arange(11) - row).abs().view(-1, 1), (torch.arange(13) - column).abs())
    assert not changed[distance > steps].any()
    if rate == 1.0:
        for reach in range(steps + 1):
            if (distance == reach).any():
                assert changed[distance == reach].any(), f"a cell {reach} away feels nothing"


@pytest.mark.parametrize("kind", ["group", "fourier", "fourier-cell"])
def test_others_feel_a_pixel_everywhere(kind: str) -> None:
    model = make(kind, (40, 40), nca_steps=2, fire_rate=1.0)
    assert model.receptive_range is None
    x = image(model)
    other = x.clone()
    other[..., 3, 3] += 5.0
    changed = (predict(model, x) != predict(model, other)).any(dim=1)[0]
    assert changed[30:, 30:].float().mean() > 0.9


@settings(max_examples=20, deadline=None)
@given(
    top=st.integers(0, 10),
    left=st.integers(0, 12),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    y=st.sampled_from([0, -7, 2**40]),
    x=st.sampled_from([0, 5, -(2**40)]),
    steps=st.integers(1, 4),
)
def test_a_tile_with_a_halo_equals_the_region_of_the_whole(
    top: int, left: int, height: int, width: int, y: int, x: int, steps: int
) -> None:
    """The same masks by absolute position; reflection only where the canvas ends. Equal up to rounding: a tile has
    another shape, and kernels may sum in another order.
    """
    model = make("cell", (16, 18), nca_steps=steps)
    assert model.exact_in_tiles and model.inexact_in_tiles is None
    canvas, t = image(model, 2), torch.tensor([30.0, 200.0])
    whole_key = Key((5, 6), 3, ((y, x), (y, x)), (16, 18))
    halo = model.receptive_range
    rows = slice(max(top - halo, 0), min(top + height + halo, 16))
    columns = slice(max(left - halo, 0), min(left + width + halo, 18))
    origin = (y + rows.start, x + columns.start)
    tile_key = Key((5, 6), 3, (origin, origin), (16, 18))
    with torch.no_grad():
        whole = model(canvas, t, Evaluation(whole_key)).noise
        tile = model(canvas[..., rows, columns], t, Evaluation(tile_key)).noise
    inside = tile[
        ..., top - rows.start : top - rows.start + height, left - columns.start : left - columns.start + width
    ]
    wanted = whole[..., top : top + height, left : left + width]
    assert_close(inside, wanted)


def test_a_tile_with_a_smaller_halo_does_not() -> None:
    """So that the property above is known to be able to fail."""
    model = make("cell", (16, 18), nca_steps=3, fire_rate=1.0)
    canvas = image(model)
    whole = predict(model, canvas)[..., 8, 9]
    tile = predict(model, canvas[..., 8 - 1 : 8 + 2, 9 - 1 : 9 + 2])[..., 1, 1]
    assert differ(tile, whole)
    # And with the halo, but masks that do not know where the tile lies.
    model = make("cell", (16, 18), nca_steps=3, fire_rate=0.5)
    whole = predict(model, canvas)
    tile = predict(model, canvas[..., 4:13, 4:13])
    assert differ(tile[..., 3:6, 3:6], whole[..., 7:10, 7:10])


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("group", "group normalisation"), ("fourier", "Fourier stage"), ("fourier-cell", "Fourier stage")],
)
def test_what_is_not_exact_in_tiles_says_why(kind: str, reason: str) -> None:
    model = make(kind)
    assert not model.exact_in_tiles and model.receptive_range is None
    assert reason in model.inexact_in_tiles


# ------------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize("kind", KINDS)
def test_recomputing_changes_no_bit_of_loss_and_gradients(kind: str) -> None:
    model = make(kind).train()
    batch, key = Batch(image(model, 2).clamp(-1, 1)), Key.of([3, 4])
    results = []
    for recompute in (False, True):
        model.recompute = recompute
        model.zero_grad()
        loss = model.training_loss(batch, key)
        loss.backward()
        results.append((loss.detach(), [p.grad.clone() for p in model.parameters()]))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


def test_recomputing_keeps_less() -> None:
    """What autograd saves for the backward pass, in bytes, of 12 steps: states and little else."""
    model = make("cell", (16, 16), channels=16, hidden=64, nca_steps=12).train()

    def saved(recompute: bool) -> int:
        model.recompute = recompute
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model.training_loss(Batch(image(model, 2)), Key.of([3, 4]))
        loss.backward()
        return sum(kept.values())

    assert saved(True) < saved(False) / 3


# ------------------------------------------------------------------------------------------------ what it depends on


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_deterministic_and_follow_the_key(kind: str) -> None:
    model = make(kind)
    x = image(model).expand(2, -1, -1, -1)
    first = predict(model, x, seeds=[1, 2])
    assert torch.equal(first, predict(model, x, seeds=[1, 2]))
    assert not torch.equal(first[0], first[1]), "one image, two seeds, two sets of masks"
    assert_close(predict(model, x, seeds=[2, 1]).flip(0), first)
    with torch.no_grad():
        later = model(x, torch.full((2,), 100.0), Evaluation(Key.of([1, 2]).at(1))).noise
        default = model(x, torch.full((2,), 100.0)).noise
    assert not torch.equal(later, first)
    assert torch.equal(default, predict(model, x, seeds=[0, 1]))


@pytest.mark.parametrize("kind", KINDS)
def test_without_chance_the_key_does_not_matter(kind: str) -> None:
    model = make(kind, fire_rate=1.0)
    x = image(model)
    assert torch.equal(predict(model, x, seeds=[1]), predict(model, x, seeds=[2]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_shared_timestep_is_that_of_each(kind: str) -> None:
    """In evaluation, one embedding serves a batch of one t; it is the same, up to rounding, as one an image."""
    model = make(kind)
    x, key = image(model, 3), Key.of([1, 2, 3])
    with torch.no_grad():
        for t in ([70.0, 70.0, 70.0], [70.0, 71.0, 0.5], [299.0, 299.0, 0.0]):
            times = torch.tensor(t)
            together = model(x, times, Evaluation(key)).noise
            unshared = model.train()(x, times, Evaluation(key)).noise
            model.eval()
            assert_close(together, unshared)
            for i in range(3):
                alone = model(x[i : i + 1], times[i : i + 1], Evaluation(Key.of([1 + i]))).noise
                assert_close(together[i : i + 1], alone)


@pytest.mark.parametrize("kind", KINDS)
def test_the_timestep_matters_and_may_be_fractional(kind: str) -> None:
    model = make(kind)
    x = image(model)
    at = {t: predict(model, x, t) for t in (0.0, 100.0, 100.5, 101.0, 299.0)}
    assert len({tuple(noise.flatten().tolist()) for noise in at.values()}) == len(at)
    middle = (at[100.0] + at[101.0]) / 2
    assert (at[100.5] - middle).abs().max() < 0.3 * (at[101.0] - at[100.0]).abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_nca_steps_may_be_other_than_the_model_s(kind: str) -> None:
    model, longer = make(kind, nca_steps=3), make(kind, nca_steps=5)
    x = image(model)
    assert torch.equal(predict(model, x, nca_steps=5), predict(longer, x))
    assert not torch.equal(predict(model, x, nca_steps=5), predict(model, x))
    for steps in (0, -1):
        with pytest.raises(InputError, match=f"nca_steps is {steps}; it should be at least 1"):
            predict(model, x, nca_steps=steps)


@pytest.mark.parametrize("kind", KINDS)
def test_v_is_converted_to_noise(kind: str) -> None:
    from morphogen.diffusion.schedule import alpha_sigma

    model = make(kind)
    trained_on_v = make(kind, diffusion={"output": "v"})
    x = image(model)
    signal, sigma = alpha_sigma(model.diffusion, torch.tensor([100.0]))
    assert_close(predict(trained_on_v, x), signal * predict(model, x) + sigma * x)


# ------------------------------------------------------------------------------------------------ sizes and misuse


@pytest.mark.parametrize(
    ("kind", "size"),
    [("cell", (2, 2)), ("cell", (2, 31)), ("group", (5, 3)), ("fourier", (32, 45)), ("fourier", (33, 32))],
)
def test_any_size_from_the_smallest_up(kind: str, size: tuple[int, int]) -> None:
    model = make(kind)
    noise = predict(model, image(model, 2, size))
    assert noise.shape == (2, 3, *size) and noise.dtype == torch.float32 and torch.isfinite(noise).all()


@pytest.mark.parametrize(
    ("kind", "size", "smallest"),
    [("cell", (1, 9), 2), ("cell", (9, 1), 2), ("fourier", (31, 64), 32), ("fourier", (64, 31), 32)],
)
def test_sizes_below_the_smallest_are_refused(kind: str, size: tuple[int, int], smallest: int) -> None:
    model = make(kind)
    assert model.minimum_size == smallest
    with pytest.raises(InputError, match=rf"the size {size[0]}x{size[1]} is too small: .* at least {smallest} on each"):
        predict(model, image(model, 1, size))


def test_labels_and_other_channels_are_refused() -> None:
    model = make("cell")
    with pytest.raises(InputError, match="diff-nca takes no labels"):
        predict(model, image(model), labels=torch.ones(1, 2))
    with pytest.raises(InputError, match="the images have 1 channels, but this model's have 3"):
        predict(model, image(model)[:, :1])


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("kind", ["cell", "fourier"])
def test_images_of_any_number_of_channels(kind: str, channels: int) -> None:
    model = make(kind, image_channels=channels)
    assert predict(model, image(model)).shape[1] == channels
