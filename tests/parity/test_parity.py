"""Our models against a literal reference, and against numbers computed with the authors' released code.

The reference below is written from the formulas of the paper alone: maps are concatenated and convolved, nothing is
folded, shared or cached, and it runs in float64.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from morphogen.automata.diff_nca import DiffNCA, NCAConfig
from morphogen.automata.fourier_diff_nca import FourierDiffNCA, FourierNCAConfig
from morphogen.automata.update_rule import UpdateRule
from morphogen.core.evaluation import Evaluation
from morphogen.core.keys import Key
from morphogen.core.model import ImageConfig
from morphogen.diffusion.config import DiffusionConfig

ROOT = Path(__file__).resolve().parents[2]
BENCHMARK = ROOT / "benchmarks" / "parity.py"
T = 300
# Both sides compute the same sums in float64, in another order: a few hundred terms of rounding 1e-16 each, grown over
# the steps by the automaton itself.
TOLERANCE_64 = 1e-10
# Float32 against float64: rounding of 6e-8 over a few hundred terms and 32 + s steps, of the change and of the state
# that it is added to. The limit over the change alone is 1e-4.
TOLERANCE_32, TOLERANCE_STATE_32 = 2e-5, 1e-6

Weights = dict[str, Tensor]
Module = TypeVar("Module", bound=torch.nn.Module)


# ------------------------------------------------------------------------------------------------ the reference


def conv(w: Weights, name: str, x: Tensor) -> Tensor:
    """A weight-normalised convolution without padding: the gain times the direction."""
    v, g = w[f"{name}.weight_v"], w[f"{name}.weight_g"]
    weight = torch.stack([g[i] * v[i] / v[i].pow(2).sum().sqrt() for i in range(len(v))])
    return F.conv2d(x, weight, w[f"{name}.bias"])


def two_layers(w: Weights, name: str, x: Tensor) -> Tensor:
    return conv(w, f"{name}.2", F.silu(conv(w, f"{name}.0", x)))


def encode(inputs: list[Tensor], encoding: str) -> Tensor:
    """Maps (B, 1, H, W), one an input, to (B, n * n, H, W)."""
    maps = []
    for i, value in enumerate(inputs):
        if encoding == "sinusoidal":
            for frequency in [1.0] if len(inputs) == 2 else [1.0, 0.01]:
                maps += [torch.sin(frequency * value), torch.cos(frequency * value)]
        elif len(inputs) == 2:
            maps += [value * math.cos(i), value * math.sin(i)]
        else:
            maps += [value * math.cos(i), value * math.cos(0.01 * i), value * math.sin(i), value * math.sin(0.01 * i)]
    return torch.cat(maps, dim=1)


def step(w: Weights, state: Tensor, inputs: Tensor, padding: str, fixed: list[int], fire: Tensor | None) -> Tensor:
    """One NCA step: state (B, c, H, W), inputs (B, n, H, W)."""
    e = two_layers(w, "embed", inputs)
    wide = torch.cat([state, e], dim=1)
    mode = "reflect" if padding == "reflect" else "constant"
    perceived = conv(w, "perceive", F.pad(wide, (1, 1, 1, 1), mode=mode))
    z = torch.cat([state, e, perceived], dim=1) * two_layers(w, "condition_perception", e)
    hidden = conv(w, "hidden", z)
    if "norm.weight" in w:  # over all cells and channels of an image
        hidden = torch.stack([(h - h.mean()) / (h.var(correction=0) + 1e-5).sqrt() for h in hidden])
        hidden = hidden * w["norm.weight"].view(1, -1, 1, 1) + w["norm.bias"].view(1, -1, 1, 1)
    else:  # over the channels of a cell
        mean, variance = hidden.mean(dim=1, keepdim=True), hidden.var(dim=1, correction=0, keepdim=True)
        hidden = (hidden - mean) / (variance + 1e-5).sqrt()
    hidden = torch.where(hidden > 0, hidden, 0.01 * hidden) * two_layers(w, "condition_hidden", e)
    change = conv(w, "output", hidden)
    change[:, fixed] = 0
    return state + (change if fire is None else change * fire)


def fill(value: float | Tensor, like: Tensor) -> Tensor:
    """A map (B, 1, H, W) of one number, or of one an image."""
    values = torch.as_tensor(value, dtype=torch.float64).reshape(-1, 1, 1, 1)
    return values.expand(len(like), 1, *like.shape[-2:])


def positions(like: Tensor) -> tuple[Tensor, Tensor]:
    """x and y as maps (B, 1, H, W), each from 1 at the first cell to 0 at the last."""
    batch, _, height, width = like.shape
    x, y = (torch.zeros(batch, 1, height, width, dtype=torch.float64) for _ in "xy")
    for j in range(width):
        x[..., j] = 1 - j / (width - 1)
    for i in range(height):
        y[:, :, i, :] = 1 - i / (height - 1)
    return x, y


def diff_nca(
    w: Weights, x: Tensor, t: Tensor, c: int, colours: int, steps: int, encoding: str, fire: list[Tensor]
) -> Tensor:
    """The predicted noise. x: noisy images of so many colours, and what else is fixed. t: as a fraction of T."""
    state = torch.cat([x, x.new_zeros(len(x), c - x.shape[1], *x.shape[-2:])], dim=1)
    for i in range(steps):
        inputs = encode([fill(t, x), fill(i / steps, x)], encoding)
        state = step(w, state, inputs, "reflect", list(range(x.shape[1])), fire[i])
    return state[:, x.shape[1] : x.shape[1] + colours]


def fourier_stage(w: Weights, x: Tensor, t: Tensor, c: int, encoding: str) -> Tensor:
    """The state that the image stage starts from."""
    batch, colours, height, width = x.shape
    padded = np.zeros((batch, c, height, width))
    padded[:, :colours] = x.numpy()
    spectrum = np.fft.fftshift(np.fft.fft2(padded, norm="forward"), axes=(2, 3))
    rows, columns = slice(height // 2, height // 2 + 16), slice(width // 2, width // 2 + 16)
    window = spectrum[:, :, rows, columns]
    cells = torch.from_numpy(np.concatenate([window.real, window.imag], axis=1))
    fixed = [*range(colours), *range(c, c + colours)]
    for i in range(32):
        inputs = encode([*positions(cells), fill(t, cells), fill(i / 16, cells)], encoding)
        cells = step(w, cells, inputs, "zeros", fixed, None)
    real, imaginary = cells.numpy()[:, :c], cells.numpy()[:, c:]
    spectrum[:, colours:, rows, columns] = (real + 1j * imaginary)[:, colours:]
    image = np.fft.ifft2(np.fft.ifftshift(spectrum, axes=(2, 3)), norm="forward").real
    return torch.cat([x, torch.from_numpy(image[:, colours:])], dim=1)


def image_stage(
    w: Weights, state: Tensor, t: Tensor, colours: int, steps: int, encoding: str, fire: list[Tensor] | list[None]
) -> Tensor:
    """The last state."""
    for i in range(steps):
        inputs = encode([*positions(state), fill(t, state), fill(i / steps, state)], encoding)
        state = step(w, state, inputs, "reflect", list(range(colours)), fire[i])
    return state


# ------------------------------------------------------------------------------------------------ what is compared


def shaken(model: Module, seed: int) -> Module:
    """The model with random gains, biases and norms, so that none is at the value it starts from."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model.eval()


def calm(model: FourierDiffNCA) -> FourierDiffNCA:
    """The model with a Fourier stage that writes little, so that states are of the size of an image's.

    Random weights otherwise lead to states of thousands, of which float32 itself keeps 1e-4 and no better.
    """
    with torch.no_grad():
        model.fourier.output.weight_g *= 0.01
        assert model.fourier.output.bias is not None
        model.fourier.output.bias *= 0.01
    return model


def double(module: torch.nn.Module) -> Weights:
    return {name: weight.detach().double() for name, weight in module.state_dict().items()}


def relative(actual: Tensor, expected: Tensor, before: Tensor | float) -> float:
    return float((actual.double() - expected).abs().max() / (expected - before).abs().max())


def assert_close_32(actual: Tensor, expected: Tensor, before: Tensor | float) -> None:
    allowed = TOLERANCE_32 * (expected - before).abs().max() + TOLERANCE_STATE_32 * expected.abs().max()
    assert (actual.double() - expected).abs().max() <= allowed


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    c=st.integers(4, 9),
    h=st.sampled_from([4, 7, 16]),
    height=st.integers(2, 7),
    width=st.integers(2, 7),
    four=st.booleans(),
    maps=st.booleans(),
    norm=st.sampled_from(["cell", "group"]),
    padding=st.sampled_from(["reflect", "zeros"]),
    fixed=st.lists(st.integers(0, 3), max_size=3, unique=True),
    fires=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_update_rule(
    c: int,
    h: int,
    height: int,
    width: int,
    four: bool,
    maps: bool,
    norm: str,
    padding: str,
    fixed: list[int],
    fires: bool,
    seed: int,
) -> None:
    inputs, e = (16, 4) if four else (4, 2)
    rule = shaken(UpdateRule(c, h, inputs, e, norm, padding, fixed), seed).double()  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    state = torch.randn(2, c, height, width, generator=generator, dtype=torch.float64)
    # Maps, or one value an image, which the rule is given without expanding it: without positions there is no border to
    # pad with zeros.
    space = (height, width) if maps or padding == "zeros" else (1, 1)
    encoded = [torch.randn(2, inputs, *space, generator=generator, dtype=torch.float64) for _ in range(3)]
    fire = [torch.rand(2, 1, height, width, generator=generator) < 0.7 if fires else None for _ in range(3)]
    expected = state
    for i in range(3):
        expected = step(double(rule), expected, encoded[i].expand(-1, -1, height, width), padding, fixed, fire[i])
    with torch.no_grad():
        actual = rule.run(state, lambda i: encoded[i], fire)
    assert relative(actual, expected, state) < TOLERANCE_64


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(
    colours=st.integers(1, 4),
    extra=st.integers(0, 5),
    h=st.sampled_from([4, 10]),
    height=st.integers(2, 9),
    width=st.integers(2, 9),
    steps=st.integers(1, 6),
    norm=st.sampled_from(["cell", "group"]),
    encoding=st.sampled_from(["released", "sinusoidal"]),
    told=st.integers(0, 2),
    seed=st.integers(0, 1000),
)
def test_diff_nca(
    colours: int,
    extra: int,
    h: int,
    height: int,
    width: int,
    steps: int,
    norm: str,
    encoding: str,
    told: int,
    seed: int,
) -> None:
    c = max(2 * colours + told + extra, 4)
    config = NCAConfig(channels=c, hidden=h, nca_steps=steps, norm=norm, encoding=encoding)  # type: ignore[arg-type]
    image = ImageConfig(height=height, width=width, channels=colours)
    model = shaken(DiffNCA(image, config, DiffusionConfig(timesteps=T), told), seed).double()
    generator = torch.Generator().manual_seed(seed)
    fixed = torch.randn(2, colours + told, height, width, generator=generator, dtype=torch.float64)
    x, condition = fixed[:, :colours], fixed[:, colours:] if told else None
    t = torch.tensor([17.5, 250.0], dtype=torch.float64)
    key = Key.of([seed, seed + 1])
    evaluation = Evaluation(key, condition=condition)
    fire = key.fire_masks(steps, config.fire_rate, (height, width), "cpu")
    expected = diff_nca(double(model.rule), fixed, t / T, c, colours, steps, encoding, fire)
    with torch.no_grad():
        actual = model.evaluate(x, t, evaluation).noise
        assert relative(actual, expected, 0) < TOLERANCE_64
        # The contract's own call gives float32, and shares one t where all are equal.
        shared = model(x, t[:1].expand(2), evaluation).noise
    expected = diff_nca(double(model.rule), fixed, t[:1].expand(2) / T, c, colours, steps, encoding, fire)
    assert_close_32(shared, expected, 0)


@pytest.mark.slow
@settings(max_examples=6, deadline=None)
@given(
    colours=st.integers(1, 4),
    extra=st.integers(0, 5),
    h=st.sampled_from([4, 10]),
    height=st.integers(32, 41),
    width=st.integers(32, 41),
    steps=st.integers(1, 4),
    norm=st.sampled_from(["cell", "group"]),
    encoding=st.sampled_from(["released", "sinusoidal"]),
    told=st.integers(0, 2),
    seed=st.integers(0, 1000),
)
def test_fourier_diff_nca(
    colours: int,
    extra: int,
    h: int,
    height: int,
    width: int,
    steps: int,
    norm: str,
    encoding: str,
    told: int,
    seed: int,
) -> None:
    c = max(2 * colours + told + extra, 4)
    config = FourierNCAConfig(channels=c, hidden=h, nca_steps=steps, norm=norm, encoding=encoding)  # type: ignore[arg-type]
    image = ImageConfig(height=height, width=width, channels=colours)
    model = calm(shaken(FourierDiffNCA(image, config, DiffusionConfig(timesteps=T), told), seed))
    generator = torch.Generator().manual_seed(seed)
    fixed = torch.randn(2, colours + told, height, width, generator=generator)
    x, condition = fixed[:, :colours], fixed[:, colours:] if told else None
    t = torch.tensor([17.5, 250.0])
    key = Key.of([seed, seed + 1])
    fire = key.fire_masks(steps, config.fire_rate, (height, width), "cpu")

    expected = fourier_stage(double(model.fourier), fixed.double(), t.double() / T, c, encoding)
    before = torch.zeros_like(expected)
    before[:, : colours + told] = fixed
    final = image_stage(double(model.rule), expected, t.double() / T, colours + told, steps, encoding, fire)
    noise = slice(colours + told, 2 * colours + told)
    with torch.no_grad():
        seed_state = model.image_seed_state(fixed, t)
        assert_close_32(seed_state, expected, before)
        assert_close_32(model.run_image(seed_state, model.inputs((height, width), t, steps), key), final, expected)
        assert_close_32(model(x, t, Evaluation(key, condition=condition)).noise, final[:, noise], expected[:, noise])


# ------------------------------------------------------------------------------------------------ the benchmark


def run(*files: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", str(BENCHMARK), *map(str, files)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}  # one thread: see conftest.py
    return subprocess.run(command, capture_output=True, encoding="utf-8", cwd=ROOT, env=environment)


def resize(weights: Weights, seed: int, e: int, inner: int) -> Weights:
    """Random weights for an embedding of other widths than the models here have."""
    generator = torch.Generator().manual_seed(seed)
    resized = {}
    for name, weight in weights.items():
        layer = name.rpartition(".")[0]
        shape = list(weight.shape)
        if weight.ndim == 4 and name.endswith("weight_v"):
            shape[1] += e - 4 if layer in ("perceive", "hidden") else 0
            if layer in ("condition_perception.0", "condition_hidden.0"):
                shape[1] = e
            if layer == "embed.2":
                shape[1] = inner
        if layer == "embed.0":
            shape[0] = inner
        if layer == "embed.2":
            shape[0] = e
        if layer == "condition_perception.2":
            shape[0] += e - 4
        resized[name] = 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return resized


def parity_arrays(
    colours: int = 3,
    c: int = 8,
    h: int = 12,
    size: tuple[int, int] = (32, 36),
    steps: int = 3,
    norm: str = "group",
    batch: int = 2,
    seed: int = 0,
    embedding: tuple[int, int] | None = None,
) -> dict[str, np.ndarray]:
    """A parity file's arrays, made by the reference from random weights. embedding: e, and the width before it."""
    config = FourierNCAConfig(channels=c, hidden=h, nca_steps=steps, norm=norm)  # type: ignore[arg-type]
    image = ImageConfig(height=size[0], width=size[1], channels=colours)
    model = calm(shaken(FourierDiffNCA(image, config, DiffusionConfig()), seed))
    stages = {"fourier": double(model.fourier), "image": double(model.rule)}
    if embedding is not None:
        stages = {stage: resize(w, seed, *embedding) for stage, w in stages.items()}
        for name in ("output.weight_g", "output.bias"):
            stages["fourier"][name] *= 0.01  # see `calm`
    rng = np.random.default_rng(seed)
    noisy = rng.standard_normal((batch, colours, *size)).astype(np.float32)
    t = rng.random(batch).astype(np.float32)
    x, fraction = torch.from_numpy(noisy).double(), torch.from_numpy(t).double()
    seed_state = fourier_stage(stages["fourier"], x, fraction, c, "released")
    final = image_stage(stages["image"], seed_state, fraction, colours, steps, "released", [None] * steps)
    arrays = {f"weight/{stage}.{name}": w.numpy() for stage, ws in stages.items() for name, w in ws.items()}
    arrays |= {"noisy": noisy, "t": t, "image_seed_state": seed_state.numpy(), "final_state": final.numpy()}
    arrays["predicted_noise"] = final[:, colours : 2 * colours].numpy()
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    return arrays | {"steps": np.array(steps), "channels": np.array(c), "hidden": np.array(h)}


@pytest.mark.slow
def test_released_numbers(released: Callable[[str], list[Path]]) -> None:
    files = released("fourier_*.npz")
    done = run(*files)
    assert done.returncode == 0, done.stdout + done.stderr
    for file in files:
        for array in ("image_seed_state", "final_state", "predicted_noise"):
            assert any(str(file) in line and array in line for line in done.stdout.splitlines())


@pytest.mark.slow
def test_other_sizes_channels_and_steps(tmp_path: Path) -> None:
    cases = [
        parity_arrays(colours=1, c=5, h=4, size=(32, 32), steps=1, norm="cell", batch=1, seed=1),
        parity_arrays(colours=4, c=11, h=9, size=(33, 47), steps=7, norm="group", batch=3, seed=2),
        parity_arrays(colours=3, c=6, h=20, size=(40, 32), steps=4, norm="cell", seed=3),
        parity_arrays(colours=3, c=7, h=8, size=(34, 32), steps=2, norm="group", seed=4, embedding=(6, 40)),
        parity_arrays(colours=2, c=7, h=8, size=(32, 33), steps=2, norm="cell", seed=5, embedding=(2, 300)),
    ]
    del cases[0]["channels"], cases[0]["hidden"]  # which the weights show too
    files = [tmp_path / f"{i}.npz" for i in range(len(cases))]
    for file, arrays in zip(files, cases, strict=True):
        np.savez(file, **arrays)
    done = run(*files)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sum(".npz" in line for line in done.stdout.splitlines()) == 3 * len(files)


@pytest.mark.slow
def test_perturbed_file_fails(tmp_path: Path) -> None:
    arrays = parity_arrays()
    arrays["weight/image.hidden.bias"][0] += 0.05
    np.savez(tmp_path / "perturbed.npz", **arrays)
    done = run(tmp_path / "perturbed.npz")
    assert done.returncode == 1, done.stdout + done.stderr
    failed = [line for line in done.stdout.splitlines() if "TOO LARGE" in line]
    assert len(failed) == 2 and not any("image_seed_state" in line for line in failed)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["image_seed_state", "final_state", "predicted_noise"])
@pytest.mark.parametrize("change", ["above", "below", "nan"])
def test_every_expected_array_is_checked(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, change: str
) -> None:
    """An error just above the limit of 1e-4 fails, one just below passes, and one that is no number fails."""
    arrays = parity_arrays(steps=2)
    colours = arrays["noisy"].shape[1]
    start = {
        "image_seed_state": np.concatenate([arrays["noisy"], 0 * arrays["image_seed_state"][:, colours:]], axis=1),
        "final_state": arrays["image_seed_state"],
        "predicted_noise": arrays["image_seed_state"][:, colours : 2 * colours],
    }
    span = np.abs(arrays[name] - start[name]).max()
    by = {"above": 1.3e-4 * span, "below": 0.5e-4 * span, "nan": np.nan}[change]
    arrays[name][0, -1, 3, 3] += by
    np.savez(tmp_path / "a.npz", **arrays)
    code = benchmark.main([str(tmp_path / "a.npz")])
    out = capsys.readouterr().out
    assert code == (0 if change == "below" else 1), out
    assert any(name in line and "TOO LARGE" in line for line in out.splitlines()) == (change != "below")


def test_not_of_this_form(benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = parity_arrays(steps=1)

    def refused(name: str, arrays: dict[str, np.ndarray] | None, *words: str) -> None:
        file = tmp_path / f"{name}.npz"
        if arrays is not None:
            np.savez(file, **arrays)
        assert benchmark.main([str(file)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and str(file) in error and "Traceback" not in error
        for word in words:
            assert word in error, error

    def without(*names: str) -> dict[str, np.ndarray]:
        return {name: array for name, array in good.items() if name not in names}

    refused("nowhere", None, "No such file")
    refused("empty", {}, "noisy")
    refused("lacks-noisy", without("noisy"), "noisy")
    refused("lacks-weight", without("weight/image.output.bias"), "weight/image.output.bias")
    refused("lacks-width", without("weight/image.embed.2.weight_v"), "weight/image.embed.2.weight_v")
    refused("half-normed", without("weight/image.norm.weight", "weight/image.norm.bias"), "norm")
    refused("extra", good | {"weight/image.third": np.zeros(3)}, "weight/image.third")
    refused("stage", good | {"weight/latent.bias": np.zeros(3)}, "weight/latent.bias")
    refused("shape", good | {"final_state": good["final_state"][:, :-1]}, "final_state")
    refused("t", good | {"t": good["t"][:1]}, "'t'")
    refused("no-steps", good | {"steps": np.array(0)}, "steps")
    refused("channels", good | {"channels": np.array(9)}, "channels")
    refused("text", good | {"noisy": np.array(["a"])}, "noisy")
    refused("pickled", good | {"noisy": np.array([{}], dtype=object)}, "plain arrays")
    small = parity_arrays(steps=1, size=(32, 32))
    for name in ("noisy", "image_seed_state", "final_state", "predicted_noise"):
        small[name] = small[name][..., :31]
    refused("small", small, "32")
    np.savez(tmp_path / "cut.npz", **good)
    whole = (tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    refused("cut", None, "plain arrays")
    (tmp_path / "damaged.npz").write_bytes(whole[:2000] + bytes(100) + whole[2100:])
    refused("damaged", None, "plain arrays")
    (tmp_path / "other.npz").write_bytes(b"not an archive")
    refused("other", None, "plain arrays")
    assert benchmark.main([]) == 2


@pytest.mark.slow
def test_a_bad_file_does_not_hide_a_wrong_one(benchmark: ModuleType, tmp_path: Path) -> None:
    arrays = parity_arrays(steps=1)
    np.savez(tmp_path / "good.npz", **arrays)
    arrays["predicted_noise"][0, 0, 0, 0] += 1
    np.savez(tmp_path / "wrong.npz", **arrays)
    good, wrong, missing = (str(tmp_path / f"{name}.npz") for name in ("good", "wrong", "missing"))
    assert benchmark.main([good]) == 0
    assert benchmark.main([missing, good]) == 2
    assert benchmark.main([missing, wrong, good]) == 1
