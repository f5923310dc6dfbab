"""`export --to onnx`: one evaluation of a denoiser as an ONNX file, for other runtimes.

Inputs: `x` float (batch, C, height, width), the noisy images; `t` float (batch,), timesteps; and, of models that take
them, `condition` float (batch, K, height, width), `labels` float (batch, K), and `fire` float (batch, steps, rows,
columns), 1 where a cell updates and 0 where it rests. Output: `noise`, like x. The file's metadata has, under
"morphogen", what a sampler needs to know. Batch, height and width are free.
"""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from morphogen._version import VERSION
from morphogen.automata.fourier_diff_nca import FourierDiffNCA
from morphogen.automata.geca import GeCA
from morphogen.automata.nca import NCADenoiser
from morphogen.baselines.unet import UNet
from morphogen.core.errors import InputError, missing_extra
from morphogen.core.evaluation import Evaluation
from morphogen.core.files import replace_file
from morphogen.core.keys import Key
from morphogen.core.model import Model
from morphogen.core.onnx_files import open_onnx
from morphogen.diffusion.denoiser import Denoiser
from morphogen.diffusion.ladder import Ladder
from morphogen.diffusion.schedule import alpha_bar
from morphogen.models import find_model, load_model

OPSET = 20
_SIDE = 32  # pixels of the images that the export is traced with, at least
_TOLERANCE = 2e-4  # of the largest value: float32, whose sums a runtime orders otherwise


class _GivenMasks(Key):
    """A key whose fire masks are given, float (B, steps, rows, columns); None lets every cell update."""

    def __init__(self, fire: Tensor | None) -> None:
        super().__init__((0,))
        object.__setattr__(self, "fire", fire)

    def coarser(self, pixels: int) -> Key:
        return self

    def fire_masks(self, nca_steps: int, *_: object, **__: object) -> list[Any]:
        fire: Tensor | None = self.__dict__["fire"]
        return [None] * nca_steps if fire is None else [fire[:, k : k + 1] for k in range(nca_steps)]


class _Evaluation(nn.Module):
    """A denoiser as a function of tensors alone."""

    def __init__(self, model: Denoiser, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *values: Tensor) -> Tensor:
        from morphogen.diffusion.objective import as_noise, network_input

        given = dict(zip(self.names, values, strict=True))
        x, t = given["x"], given["t"]
        seen, condition = network_input(self.model.diffusion, x, t), given.get("condition")
        key, model = _GivenMasks(given.get("fire")), self.model
        if isinstance(model, NCADenoiser):
            told = torch.cat([seen] if condition is None else [seen, condition], 1)
            output = self._automaton(model, told, t, key, model.label_inputs(given.get("labels")))
        else:
            output = model.evaluate(seen, t, Evaluation(key, given.get("labels"), condition=condition)).noise
        return as_noise(model.diffusion, output.float(), x, t)

    def _automaton(self, model: NCADenoiser, told: Tensor, t: Tensor, key: Key, labels: Tensor | None) -> Tensor:
        """As `evaluate`, of images that are whole cells."""
        patch = model.cell_size
        images, condition = told[:, : model.image.channels], told[:, model.image.channels :]
        cells = [F.pixel_unshuffle(part, patch) for part in (images, condition) if part.shape[1]]
        noise = model.noise(torch.cat(cells, 1), t, key, None, model.architecture.nca_steps, labels)
        return F.pixel_shuffle(noise, patch)


def export_onnx(name: str, out: Path, level: int | None = None, overwrite: bool = False) -> tuple[list[str], float]:
    """Write the file; the names of its inputs, and how far its noise is from PyTorch's at other sizes and another
    batch, relative to the largest value.

    name: of a run, a bundled model, or a hub id. level: of a pyramid. Raises InputError for a model that cannot be
    exported, with the reason, and for a file that is there and not to be overwritten.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise missing_extra("onnx", error.name or "onnx") from None
    if out.suffix.lower() != ".onnx":
        raise InputError(f"{out}: the name of an ONNX file should end in .onnx")
    if out.exists() and (not overwrite or not out.is_file()):
        raise InputError(f"{out} exists; name another file, or replace it with --overwrite")
    model = _exportable(load_model(find_model(name)), name, level)
    unit = multiple_of(model)
    least = -(-model.minimum_size // unit)
    side = max(-(-_SIDE // unit), least)
    inputs = example(model, (side * unit, (side + 1) * unit), 2)
    function = _Evaluation(model, list(inputs)).eval()
    batch = torch.export.Dim("batch", min=1, max=4096)
    high, wide = (unit * torch.export.Dim(word, min=least, max=16384 // unit) for word in ("rows", "columns"))
    shapes = {name: _free(name, batch, high, wide) for name in inputs}
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of the exporter's own
            program: Any = torch.onnx.export(
                function,
                tuple(inputs.values()),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=["noise"],
                dynamic_shapes=(tuple(shapes.values()),),
                verbose=False,
            )
    except Exception as error:  # the exporter's errors have no common base that is public
        raise InputError(
            f"{name} cannot be exported: its {model.family} uses what ONNX has not ({type(error).__name__})"
        ) from error
    proto = program.model_proto
    onnx.helper.set_model_props(proto, {"morphogen": json.dumps(facts(model, list(inputs)))})
    content = proto.SerializeToString()
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        replace_file(out, content)
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror or error}") from None
    off = difference(model, out)
    if off > _TOLERANCE:
        out.unlink()
        how = "fails at other sizes" if math.isinf(off) else f"is off by {off:.1g} of the largest value"
        raise InputError(f"{name} cannot be exported to ONNX: in onnxruntime its {model.family} {how}")
    return list(inputs), off


def _exportable(model: Model, name: str, level: int | None) -> Denoiser:
    if isinstance(model, Ladder):
        if level is None:
            raise InputError(f"{name} has {len(model)} levels; name one with --level, 0 being the coarsest")
        if not 0 <= level < len(model):
            raise InputError(f"--level {level}: {name} has the levels 0 (coarsest) to {len(model) - 1}")
        model = model[level]
    elif level is not None:
        raise InputError(f"--level {level}: {name} is no pyramid; leave it out")
    if not isinstance(model, Denoiser):
        raise InputError(f"{name} is a {model.family}, which predicts no noise; only diffusion models are exported")
    if isinstance(model, FourierDiffNCA):
        raise InputError(
            f"{name} is a {model.family}, whose Fourier transforms ONNX has at one size only; it cannot be exported"
        )
    if isinstance(model, GeCA):
        raise InputError(
            f"{name} is a {model.family}, whose cells begin with random numbers of their own in every evaluation; "
            "it cannot be exported to ONNX"
        )
    model.compute_in(None)
    return model.eval()


def multiple_of(model: Denoiser) -> int:
    """What the height and the width of images must be multiples of: of a U-Net as often as it halves them."""
    if isinstance(model, UNet):
        return int(2 ** (len(model.architecture.widths) - 1))
    return model.cell_size


def example(model: Denoiser, size: tuple[int, int], batch: int) -> dict[str, Tensor]:
    """Inputs of a model's evaluation, drawn at random: images of a size (height, width), and all else that it takes."""
    draw = torch.Generator().manual_seed(0)
    inputs = {
        "x": torch.randn(batch, model.image.channels, *size, generator=draw),
        "t": torch.rand(batch, generator=draw) * (model.diffusion.timesteps - 1),
    }
    if model.condition_channels:
        inputs["condition"] = torch.rand(batch, model.condition_channels, *size, generator=draw)
    if model.labels.names:
        inputs["labels"] = torch.full((batch, len(model.labels)), model.null_label)
        inputs["labels"][:, 0] = 1.0
    if isinstance(model, NCADenoiser) and model.fire_rate < 1:
        cells = model.architecture.grid(size)
        fire = torch.rand(batch, model.architecture.nca_steps, *cells, generator=draw)
        inputs["fire"] = (fire < model.fire_rate).float()
    return inputs


def _free(name: str, batch: Any, high: Any, wide: Any) -> dict[int, Any]:
    if name in ("x", "condition"):
        return {0: batch, 2: high, 3: wide}
    if name == "fire":
        return {0: batch, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    return {0: batch}


def facts(model: Denoiser, inputs: list[str]) -> dict[str, object]:
    """What a sampler must know, for the file's metadata."""
    found: dict[str, object] = {
        "version": VERSION,
        "family": model.family,
        "inputs": inputs,
        "channels": model.image.channels,
        "height": model.image.height,
        "width": model.image.width,
        "minimum_size": model.minimum_size,
        "multiple": multiple_of(model),
        "latents": model.latents is not None,
        "alpha_bar": alpha_bar(model.diffusion, torch.arange(model.diffusion.timesteps)).tolist(),
    }
    if model.condition is not None:
        found["condition"] = model.condition.settings()
    if model.labels.names:
        found |= {"labels": list(model.labels.names), "null_label": model.null_label}
    if isinstance(model, NCADenoiser):
        settings = model.architecture
        found |= {"nca_steps": settings.nca_steps, "fire_rate": model.fire_rate, "patch": model.cell_size}
    return found


def difference(model: Denoiser, file: Path) -> float:
    """How far the noise of a file is from PyTorch's, at odd sizes and another batch, over the largest value."""
    session, worst = open_onnx(file), 0.0
    unit = multiple_of(model)
    least = -(-model.minimum_size // unit)
    for batch, cells in ((1, (least + 5, least + 12)), (3, (least + 22, least + 1))):
        size = (unit * cells[0], unit * cells[1])
        inputs = example(model, size, batch)
        with torch.no_grad():
            wanted = _Evaluation(model, list(inputs))(*inputs.values()).numpy()
        try:
            found = session.run(None, {name: value.numpy() for name, value in inputs.items()})[0]
        except Exception:  # onnxruntime's errors have no common base that is public
            return math.inf
        worst = max(worst, float(np.abs(found - wanted).max() / np.abs(wanted).max()))
    return worst
