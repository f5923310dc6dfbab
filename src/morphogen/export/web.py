"""`export --to web`: a folder of static files that paints the endless slide of a model in the visitor's browser.

The page (`page/`, built from `web/`) is the same for every model. What belongs to the model is
`manifest.json` (sizes, the sampler's coefficients, a self-check) and `weights.bin` (float32, little-endian).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from morphogen._version import VERSION
from morphogen.automata.diff_nca import DiffNCA
from morphogen.automata.embedding import Inputs
from morphogen.core.errors import InputError
from morphogen.core.evaluation import Evaluation
from morphogen.core.files import read_json, replace_file
from morphogen.core.keys import Key
from morphogen.core.model import Model
from morphogen.core.output_files import differences
from morphogen.core.random import Purpose, fire_threshold
from morphogen.core.request import SamplingRequest
from morphogen.diffusion.ladder import Ladder
from morphogen.diffusion.request import ON_CANVAS, resolve
from morphogen.diffusion.sampling import Stepper
from morphogen.diffusion.solvers import CLEAN, NoiseLevel
from morphogen.models import find_model, load_model

FORMAT = 1
PAGE = Path(__file__).parent / "page"
MANIFEST, WEIGHTS = "manifest.json", "weights.bin"
_CHANNELS = (1, 3, 4)
_CHECK_SIDE = 12
_CHECK_PLACE = (-(2**40) - 5, 2**40 + 3)  # where a mistake in either half of a position shows
_CHECK_SEED = 2**63 + 12345
Floats = NDArray[np.float32]


def export_web(reference: str, out: Path, sampling_steps: int | None = None, overwrite: bool = False) -> int:
    """Write the page of a trained model into a folder; the bytes written.

    reference: a run's folder, a bundled model or a hub id. sampling_steps: of `dpm++`, 12 by default as of `slide`.
    Raises InputError for a model that the page cannot paint with, saying why, and for a folder that holds other files
    or an export with other settings.
    """
    folder = find_model(reference)
    model = paintable(load_model(folder))
    stepper = Stepper(model, resolve(SamplingRequest("dpm++", sampling_steps), model, ON_CANVAS))
    title = Path(reference).name or reference
    now: dict[str, object] = {"title": title, "sampling_steps": stepper.steps}
    files = {path.name: path.read_bytes() for path in sorted(PAGE.glob("*")) if path.is_file()}
    _check_folder(out, {*files, MANIFEST, WEIGHTS}, now, overwrite)
    tensors = {**rule_tensors(model), **step_tables(model, stepper)}
    described, weights = _packed(tensors)
    manifest = {
        "format": FORMAT,
        "morphogen": VERSION,
        **now,
        "mpp": model.picture.mpp,
        "levels": [  # one today; a pyramid model's, coarsest first, each told the picture of the one before it
            {
                "channels": model.image.channels,
                "patch": model.cell_size,
                "nca_steps": model.architecture.nca_steps,
                "cell_channels": model.architecture.channels,
                "hidden": model.architecture.hidden,
                "fire_threshold": fire_threshold(model.fire_rate),
                "steps": sampler_steps(stepper),
                "tensors": described,
                "weights": {"file": WEIGHTS, "bytes": len(weights), "sha256": hashlib.sha256(weights).hexdigest()},
                "check": self_check(model, stepper),
            }
        ],
    }
    files |= {WEIGHTS: weights, MANIFEST: (json.dumps(manifest, separators=(",", ":")) + "\n").encode()}
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():  # the manifest last: it says that the rest is there
        replace_file(out / name, content)
    return sum(map(len, files.values()))


def paintable(model: Model) -> DiffNCA:
    """The model, in evaluation mode and plain float32. Raises InputError, with the reason, for one that the page cannot
    paint with.
    """
    refusal = f"this {model.family} cannot be exported to the web: "
    if isinstance(model, Ladder):
        raise InputError(refusal + "the page paints with single models; name one, such as RUN/levels/0")
    if not isinstance(model, DiffNCA):
        raise InputError(
            refusal + "the page paints endless slides, which only Diff-NCA can; others see the whole image"
        )
    if model.inexact_in_tiles is not None:
        raise InputError(refusal + f"it cannot be painted in parts, since {model.inexact_in_tiles}")
    if model.latents is not None:
        raise InputError(refusal + "it works in latents, and the page has no decoder; use a model of pixels")
    if model.condition_channels:
        raise InputError(refusal + "it is told a condition, which the page does not have; use a model without one")
    if model.image.channels not in _CHANNELS:
        raise InputError(refusal + f"its images have {model.image.channels} channels, and a page shows 1, 3 or 4")
    model.eval().compute_in(None)
    return model


def rule_tensors(model: DiffNCA) -> dict[str, Floats]:
    """The update rule as the page's kernels read it, gains folded in.

    perceive (c, 3, 3, c) by output, row, column, input. hidden (h, 2c) over [state, perceived], its mean over the
    outputs taken off, so that the hidden layer of every cell has mean 0 and the normalisation only divides. output
    (c, h) and output_bias (c), zero for channels that never change.
    """
    with torch.no_grad():
        w = model.rule.weights()
        hidden = w.hidden.flatten(1).double()
        found = {
            "perceive": w.perceive_state.permute(0, 2, 3, 1),
            "hidden": hidden - hidden.mean(dim=0),
            "output": w.output.flatten(1),
            "output_bias": w.output_bias,
        }
    return {name: _floats(tensor) for name, tensor in found.items()}


def step_tables(model: DiffNCA, stepper: Stepper) -> dict[str, Floats]:
    """The conditioning of every NCA step of every evaluation, the first axes of each table.

    state_scale, perceived_scale (evaluations, steps, c); hidden_bias (evaluations, steps, h), which holds perceive's
    bias too and has mean 0; hidden_scale (evaluations, steps, h).
    """
    c, steps = model.architecture.channels, model.architecture.nca_steps
    rows: dict[str, list[torch.Tensor]] = {
        name: [] for name in ("state_scale", "perceived_scale", "hidden_bias", "hidden_scale")
    }
    with torch.no_grad():
        weights = model.rule.weights()
        by_perceived = weights.hidden.flatten(1)[:, c:].double()
        for timestep in stepper.timesteps:
            time = model.time_fraction(torch.tensor([float(timestep)]))
            inputs = Inputs(time, steps, model.architecture.encoding, labels=model.label_inputs(None))
            for step in range(steps):
                found = model.rule.condition(inputs.at(step), weights, inputs.labels)
                scale = found.perceived_scale.flatten().double()
                bias = by_perceived @ (scale * found.perceive_bias.flatten().double())
                bias = bias + found.hidden_bias.flatten().double()
                rows["state_scale"].append(found.state_scale.flatten())
                rows["perceived_scale"].append(scale)
                rows["hidden_bias"].append(bias - bias.mean())
                rows["hidden_scale"].append(found.hidden_scale.flatten())
    return {name: _floats(torch.stack(parts).view(len(stepper), steps, len(parts[0]))) for name, parts in rows.items()}


def sampler_steps(stepper: Stepper) -> list[dict[str, float]]:
    """The coefficients of every evaluation and of the step of DPM-Solver++ 2M that follows (`dpmpp_2m`).

    The network reads input * x; noise = by_output * output + by_x * x; clean = (x - sigma * noise) / alpha, clipped to
    [-1, 1]; the next x = keep * x + mean * (clean + ahead * (clean - the clean of the evaluation before)).
    """
    found, config = [], stepper.denoiser.diffusion
    for i, level in enumerate(stepper.levels):
        after = stepper.levels[i + 1] if i + 1 < len(stepper) else CLEAN
        ahead = 0.0
        if i > 0 and after != CLEAN:
            ahead = (after.log_snr - level.log_snr) / (level.log_snr - stepper.levels[i - 1].log_snr) / 2
        seen, by_output, by_x = _as_noise(config.output, level, config.sigma_data)
        found.append(
            {
                "input": seen,
                "by_output": by_output,
                "by_x": by_x,
                "alpha": level.alpha,
                "sigma": level.sigma,
                "keep": after.sigma / level.sigma,
                "mean": after.alpha * (1.0 - _growth(level, after)),
                "ahead": ahead,
            }
        )
    return found


def _growth(level: NoiseLevel, after: NoiseLevel) -> float:
    """exp(lambda - next lambda): the ratio of sigma / alpha after a step and before it."""
    return after.ratio / level.ratio


def _as_noise(output: str, level: NoiseLevel, sigma_data: float) -> tuple[float, float, float]:
    """The scale of the network's input, and the noise by its output and by x (`objective.as_noise`)."""
    alpha, sigma = level.alpha, level.sigma
    match output:
        case "v":
            return 1.0, alpha, sigma
        case "clean":
            return 1.0, -alpha / sigma, 1 / sigma
        case "edm":
            deviation = (sigma**2 + (sigma_data * alpha) ** 2) ** 0.5
            return 1 / deviation, -alpha * sigma_data / deviation, sigma / deviation**2
    return 1.0, 1.0, 0.0


def self_check(model: DiffNCA, stepper: Stepper) -> dict[str, object]:
    """Numbers that a kernel of the page must come to before it is used: a square of the slide after evaluation
    `evaluation`, taken from pure noise without history. values (channels, side, side) are the predicted clean image's.
    """
    reach, cell = model.architecture.nca_steps * model.cell_size, model.cell_size
    place = [p // cell * cell for p in _CHECK_PLACE]
    side = -(-_CHECK_SIDE // cell) * cell
    outer = (place[0] - reach, place[1] - reach)
    evaluation = len(stepper) // 2
    key = Key((_CHECK_SEED,), 0, (outer,), (2**62, 2**62))
    x = key.normals(Purpose.INITIAL_NOISE, model.image.channels, (side + 2 * reach,) * 2, "cpu")
    after = stepper.step(evaluation, x, Evaluation(key.at(evaluation)))
    values = after.clean[0, :, reach : reach + side, reach : reach + side]
    return {
        "seed": str(_CHECK_SEED),
        "y": place[0],
        "x": place[1],
        "side": side,
        "evaluation": evaluation,
        "values": [round(value, 6) for value in values.flatten().tolist()],
    }


def _floats(tensor: torch.Tensor) -> Floats:
    return np.ascontiguousarray(tensor.numpy(), "<f4")


def _packed(tensors: Mapping[str, Floats]) -> tuple[dict[str, Any], bytes]:
    """Where each tensor lies in the file of weights (in numbers, not bytes) and of which shape; and that file."""
    described: dict[str, Any] = {}
    offset = 0
    for name, values in tensors.items():
        described[name] = {"offset": offset, "shape": list(values.shape)}
        offset += values.size
    return described, b"".join(values.tobytes() for values in tensors.values())


def _check_folder(out: Path, names: set[str], now: Mapping[str, object], overwrite: bool) -> None:
    """Raise InputError where a folder is none, holds files of others, or an export with other settings."""
    if out.is_symlink() and not out.exists():
        raise InputError(f"{out} is a link to something that is not there; name another folder")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; name a folder for the page")
    there = {path.name for path in out.iterdir()} if out.is_dir() else set()
    others = sorted(there - names)
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise InputError(f"the folder {out} holds other files ({others[0]}{more}); name an empty or a new one")
    if not there or overwrite:
        return
    found: object = None
    if MANIFEST in there:
        try:
            found = read_json(out / MANIFEST)
        except InputError:
            found = None
    if not isinstance(found, dict) or "levels" not in found:
        raise InputError(
            f"the folder {out} holds files that export did not write; name another one, or give --overwrite"
        )
    said = differences({key: found.get(key) for key in now}, now)
    if said:
        raise InputError(f"{out} was exported with other settings ({said}); name another folder, or give --overwrite")
