"""Do our models compute what the authors' released code computes?

python benchmarks/parity.py FILE…

Each FILE is an .npz with random weights, inputs, and what the released implementation made of them:
`weight/<fourier|image>.<layer>` (`weight_g`, `weight_v`, `bias`; a two-layer block has the indices 0 and 2; norm
weights mean group normalisation), `noisy` (B, C, H, W), `t` (B,) as a fraction of T, `steps`, every cell firing;
expected are `image_seed_state`, `final_state` and `predicted_noise`. Or, of a GeCA: `weight/…` under the released
names, `latent` (B, C, H, W), `t` (B,) in timesteps, `labels` (B, K), `initial_out_and_hidden`, `steps`, `heads`, every
cell firing; expected are `final_out_and_hidden` and `model_output`. Sizes and widths are read off the arrays.

The error of an array is its largest |difference| over the largest |expected - state before|, so that a stage that
changes little is checked as strictly as one that changes much.

Exit code: 0 all within the limit, 1 an error is above it, 2 a file is not of this form.
"""

from __future__ import annotations

import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import nn

from morphogen.automata.fourier_diff_nca import FourierDiffNCA, FourierNCAConfig
from morphogen.automata.geca import GeCA
from morphogen.automata.geca_block import GeCAConfig
from morphogen.core.evaluation import Evaluation
from morphogen.core.keys import Key
from morphogen.core.model import ImageConfig, LabelConfig
from morphogen.diffusion.config import DiffusionConfig

LIMIT = 1e-4
TIMESTEPS = 256  # a power of two: t * T / T is exactly t again
INPUTS = 16  # x, y, t and NCA step, encoded
ARRAYS = ("noisy", "t", "steps", "image_seed_state", "final_state", "predicted_noise")
GECA_ARRAYS = (
    *("latent", "t", "labels", "initial_out_and_hidden", "steps", "heads"),
    *("final_out_and_hidden", "model_output"),
)
GECA_LAYERS = {  # released name: ours
    "t_embedder.mlp.0": "conditioning.time.0",
    "t_embedder.mlp.2": "conditioning.time.2",
    "y_embedder.embedding_table.0": "conditioning.labels.0",
    "y_embedder.embedding_table.1": "conditioning.labels.1",
    "cell_to_embedding": "embed",
    "transformer.layers.0.0.norm": "attention_norm",
    "transformer.layers.0.0.fn.to_qkv": "qkv",
    "transformer.layers.0.0.fn.to_out.0": "attention_out",
    "transformer.layers.0.1.norm": "mlp_norm",
    "transformer.layers.0.1.fn.net.0": "mlp.0",
    "transformer.layers.0.1.fn.net.3": "mlp.2",
    "transformer.adaLN_modulation.1": "modulation",
    "final_layer.adaLN_modulation.1": "last_modulation",
    "final_layer.linear": "last",
}
Arrays = dict[str, np.ndarray]
Shapes = dict[str, tuple[int, ...]]


class NotParity(Exception):
    """The file is not of the form that this benchmark reads; the message says what is wrong with it."""


def read(file: Path) -> Arrays:
    """The arrays of an .npz, never unpickled."""
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except OSError as error:
        raise NotParity(f"cannot be read: {error.strerror or error}") from None
    except (ValueError, TypeError, AttributeError, EOFError, KeyError, zipfile.BadZipFile, zlib.error):
        raise NotParity("is no .npz of plain arrays") from None
    geca = is_geca(arrays)
    named, family = (GECA_ARRAYS, "GeCA") if geca else (ARRAYS, "FourierDiff-NCA")
    missing = [name for name in named if name not in arrays]
    if missing or not any(name.startswith("weight/") for name in arrays):
        raise NotParity(f"is no parity file of {family}: it lacks {', '.join(missing or ['its weights'])}")
    for name, array in arrays.items():
        if (name in named or name.startswith("weight/")) and array.dtype.kind not in "fiu":
            raise NotParity(f"holds '{name}' as {array.dtype}, not as numbers")
    return arrays


def is_geca(arrays: Arrays) -> bool:
    return "latent" in arrays or any(name.startswith("weight/transformer.") for name in arrays)


def whole_number(arrays: Arrays, name: str) -> int:
    """An array of one integer of at least 1."""
    if arrays[name].shape != ():
        raise NotParity(f"holds '{name}' in the shape {arrays[name].shape}, where the others ask for ()")
    if arrays[name].dtype.kind == "f" or int(arrays[name]) < 1:
        raise NotParity(f"says that '{name}' is {arrays[name]}, not an integer of at least 1")
    return int(arrays[name])


def width(arrays: Arrays, stage: str, layer: str) -> int:
    """How many outputs a layer has."""
    name = f"weight/{stage}.{layer}.weight_v"
    if name not in arrays or not arrays[name].ndim:
        raise NotParity(f"lacks '{name}'")
    return len(arrays[name])


def wanted_shapes(arrays: Arrays, stage: str, state: int) -> Shapes:
    """The shape of every weight of a stage whose state has `state` channels, by the widths that its layers show."""
    inner, e = width(arrays, stage, "embed.0"), width(arrays, stage, "embed.2")
    perception, h = width(arrays, stage, "condition_perception.0"), width(arrays, stage, "hidden")
    conditioned = width(arrays, stage, "condition_hidden.0")
    wide = 2 * state + e
    layers = {
        "embed.0": (inner, INPUTS, 1, 1),
        "embed.2": (e, inner, 1, 1),
        "perceive": (state, state + e, 3, 3),
        "condition_perception.0": (perception, e, 1, 1),
        "condition_perception.2": (wide, perception, 1, 1),
        "hidden": (h, wide, 1, 1),
        "condition_hidden.0": (conditioned, e, 1, 1),
        "condition_hidden.2": (h, conditioned, 1, 1),
        "output": (state, h, 1, 1),
    }
    shapes: Shapes = {}
    for layer, (outputs, *rest) in layers.items():
        prefix = f"weight/{stage}.{layer}"
        shapes |= {f"{prefix}.weight_v": (outputs, *rest), f"{prefix}.weight_g": (outputs, 1, 1, 1)}
        shapes[f"{prefix}.bias"] = (outputs,)
    if f"weight/{stage}.norm.weight" in arrays:
        shapes |= {f"weight/{stage}.norm.{part}": (h,) for part in ("weight", "bias")}
    return shapes


def need_shapes(arrays: Arrays, shapes: Shapes, family: str) -> None:
    """Every array must have its shape, and no weight may be left over."""
    for name, shape in shapes.items():
        if name not in arrays:
            raise NotParity(f"lacks '{name}'")
        if arrays[name].shape != shape:
            raise NotParity(f"holds '{name}' in the shape {arrays[name].shape}, where the others ask for {shape}")
    for name in arrays:
        if name.startswith("weight/") and name not in shapes:
            raise NotParity(f"has a weight '{name}' that {family} does not")


def check_shapes(arrays: Arrays) -> tuple[int, int]:
    """The channels and the hidden width, once every array is known to fit the others."""
    noisy = arrays["noisy"]
    if noisy.ndim != 4:
        raise NotParity(f"holds 'noisy' in the shape {noisy.shape}, not (B, C, H, W)")
    c, h = width(arrays, "image", "output"), width(arrays, "image", "hidden")
    state = (len(noisy), c, *noisy.shape[2:])
    shapes: Shapes = {"t": (len(noisy),), "steps": (), "image_seed_state": state, "final_state": state}
    shapes["predicted_noise"] = noisy.shape
    shapes |= wanted_shapes(arrays, "image", c) | wanted_shapes(arrays, "fourier", 2 * c)
    need_shapes(arrays, shapes, "FourierDiff-NCA")
    for name, value in (("channels", c), ("hidden", h)):
        if name in arrays and (arrays[name].shape or int(arrays[name]) != value):
            raise NotParity(f"says that '{name}' is {arrays[name]}, but its weights say {value}")
    if width(arrays, "fourier", "hidden") != h:
        raise NotParity("has two stages of different hidden widths")
    if ("weight/image.norm.weight" in arrays) != ("weight/fourier.norm.weight" in arrays):
        raise NotParity("has a norm with weights in one stage only")
    whole_number(arrays, "steps")
    return c, h


def build(arrays: Arrays) -> FourierDiffNCA:
    """Our model with the file's weights."""
    channels, hidden = check_shapes(arrays)
    _, colours, height, across = arrays["noisy"].shape
    try:
        model = FourierDiffNCA(
            ImageConfig(height=height, width=across, channels=colours),
            FourierNCAConfig(
                channels=channels,
                hidden=hidden,
                nca_steps=int(arrays["steps"]),
                fire_rate=1.0,
                norm="group" if "weight/image.norm.weight" in arrays else "cell",
            ),
            DiffusionConfig(timesteps=TIMESTEPS),
        )
    except ValueError as error:
        raise NotParity(f"describes a model that cannot be: {' '.join(str(error).split())}") from None
    ours = {"image": model.rule, "fourier": model.fourier}
    for stage, rule in ours.items():
        rule.embedding = width(arrays, stage, "embed.2")
    unset = {name for name, _ in model.named_parameters()}
    for name, array in arrays.items():
        if name.startswith("weight/"):
            stage, _, path = name.removeprefix("weight/").partition(".")
            layer, _, kind = path.rpartition(".")
            module = ours[stage].get_submodule(layer)
            setattr(module, kind, nn.Parameter(torch.from_numpy(array.astype(np.float32))))
            unset.discard(f"{'rule' if stage == 'image' else stage}.{path}")
    if unset:
        raise NotParity(f"lacks the weights {', '.join(sorted(unset))}")
    return model.eval()


def relative_error(actual: np.ndarray, expected: np.ndarray, before: np.ndarray) -> float:
    """The largest |difference| over the largest |expected - state before|; not a number where either is not."""
    difference = float(np.abs(actual - expected).max(initial=0))
    change = float(np.abs(expected - before).max(initial=0))
    if change == 0:
        return 0.0 if difference == 0 else float("inf")
    return difference / change


def build_geca(arrays: Arrays) -> GeCA:
    """Our GeCA with the file's weights, once every array is known to fit the others."""
    latent, labels = arrays["latent"], arrays["labels"]
    if latent.ndim != 4:
        raise NotParity(f"holds 'latent' in the shape {latent.shape}, not (B, C, H, W)")
    if labels.ndim != 2 or not labels.shape[1]:
        raise NotParity(f"holds 'labels' in the shape {labels.shape}, not (B, K)")
    for name in ("cell_to_embedding", "transformer.layers.0.1.fn.net.0", "final_layer.linear"):
        if arrays.get(f"weight/{name}.weight", np.zeros(0)).ndim != 2:
            raise NotParity(f"lacks 'weight/{name}.weight'")
    batch, channels, height, across = latent.shape
    own = len(arrays["weight/final_layer.linear.weight"])
    times = arrays["t"]
    if times.shape != (batch,) or not ((times >= 0) & (times < 10_000)).all():
        raise NotParity(f"holds 't' as {times}, not {batch} timesteps of 0 to 9999")
    try:
        model = GeCA(
            ImageConfig(height=height, width=across, channels=channels),
            GeCAConfig(
                width=len(arrays["weight/cell_to_embedding.weight"]),
                heads=whole_number(arrays, "heads"),
                mlp=len(arrays["weight/transformer.layers.0.1.fn.net.0.weight"]),
                hidden=own - 2 * channels,
                nca_steps=whole_number(arrays, "steps"),
                fire_rate=1.0,
                heredity="both",
            ),
            DiffusionConfig(timesteps=10_000, schedule="linear", loss="mse+vb", variance="learned"),
            LabelConfig(names=tuple(f"label {i}" for i in range(labels.shape[1])), exclusive=False),
        )
    except ValueError as error:
        raise NotParity(f"describes a model that cannot be: {' '.join(str(error).split())}") from None
    wanted = model.state_dict()
    released = {ours: f"weight/{theirs}" for theirs, ours in GECA_LAYERS.items()}
    shapes: Shapes = {"initial_out_and_hidden": (batch, own, height, across), "labels": (batch, labels.shape[1])}
    shapes |= {"final_out_and_hidden": shapes["initial_out_and_hidden"]}
    shapes["model_output"] = (batch, 2 * channels, height, across)
    names = {}
    for ours, tensor in wanted.items():
        layer, _, kind = ours.rpartition(".")
        names[ours] = f"{released[layer]}.{kind}"
        shapes[names[ours]] = tuple(tensor.shape)
    need_shapes(arrays, shapes, "GeCA")
    model.load_state_dict({ours: torch.from_numpy(arrays[name].astype(np.float32)) for ours, name in names.items()})
    return model.eval()


def geca_errors(arrays: Arrays) -> dict[str, float]:
    """The error of each expected array of a file with a GeCA."""
    model = build_geca(arrays)
    x, t, labels, memory = (
        torch.from_numpy(arrays[name].astype(np.float32))
        for name in ("latent", "t", "labels", "initial_out_and_hidden")
    )
    before = arrays["initial_out_and_hidden"].astype(np.float64)
    found = model(x, t, Evaluation(Key.of(range(len(x))), labels, memory))
    output = torch.cat([found.noise, found.variance], dim=1)
    return {
        "final_out_and_hidden": relative_error(
            found.memory.double().numpy(), arrays["final_out_and_hidden"].astype(np.float64), before
        ),
        "model_output": relative_error(
            output.double().numpy(), arrays["model_output"].astype(np.float64), before[:, : output.shape[1]]
        ),
    }


@torch.no_grad()
def errors(file: Path) -> dict[str, float]:
    """The error of each expected array of a file."""
    arrays = read(file)
    if is_geca(arrays):
        return geca_errors(arrays)
    model = build(arrays)
    noisy = torch.from_numpy(arrays["noisy"].astype(np.float32))
    t = torch.from_numpy(arrays["t"].astype(np.float32)) * TIMESTEPS
    key = Key.of(range(len(noisy)))
    seed = model.image_seed_state(noisy, t)
    size, steps = (noisy.shape[2], noisy.shape[3]), model.architecture.nca_steps
    final = model.run_image(seed, model.inputs(size, t, steps), key)
    noise = model(noisy, t, Evaluation(key)).noise

    colours = noisy.shape[1]
    given = np.zeros(arrays["image_seed_state"].shape)
    given[:, :colours] = arrays["noisy"]
    before = arrays["image_seed_state"].astype(np.float64)
    states = {
        "image_seed_state": (seed, given),
        "final_state": (final, before),
        "predicted_noise": (noise, before[:, colours : 2 * colours]),
    }
    return {
        name: relative_error(actual.double().numpy(), arrays[name].astype(np.float64), start)
        for name, (actual, start) in states.items()
    }


def main(files: list[str]) -> int:
    if not files:
        print("usage: python benchmarks/parity.py FILE…", file=sys.stderr)
        return 2
    too_large = unreadable = False
    print(f"{'error':>10}  {'array':22}file (errors of at most {LIMIT:g} pass)")
    for file in files:
        try:
            found = errors(Path(file))
        except NotParity as error:
            print(f"{file} {error}", file=sys.stderr)
            unreadable = True
            continue
        for name, error_of in found.items():
            passes = error_of <= LIMIT  # which "not a number" is not
            too_large |= not passes
            print(f"{error_of:10.2e}  {name:22}{file}{'' if passes else '  TOO LARGE'}")
    return 1 if too_large else 2 if unreadable else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
