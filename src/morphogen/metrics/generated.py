"""Generated images as files that an interruption leaves behind and a second start takes up."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import torch
from PIL import Image

from morphogen.core.errors import InputError
from morphogen.core.files import json_bytes, read_json, replace_file
from morphogen.core.images import save_png, to_pil
from morphogen.core.keys import Key
from morphogen.core.model import Model
from morphogen.core.progress import Progress
from morphogen.core.request import SamplingRequest
from morphogen.metrics.image_sets import ImageSet, of_files


def weights_hash(model: Model) -> str:
    """A hash of the model's configuration and weights."""
    total = hashlib.sha256(json_bytes(model.config_dict()))
    for name, tensor in sorted(model.state_dict().items()):
        total.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def generate_images(
    model: Model,
    count: int,
    folder: Path,
    *,
    first_seed: int = 0,
    size: tuple[int, int] | None = None,
    request: SamplingRequest = SamplingRequest(),
    labels: torch.Tensor | None = None,
    batch_size: int = 32,
    quiet: bool = False,
) -> tuple[ImageSet, dict[str, object]]:
    """Images of `count` consecutive seeds as PNGs, and the settings that made them. labels: float (count, K).

    They lie in a folder below `folder` that is named by a hash of model and settings, so that images of an interrupted
    run are taken up and those of another model never are. Raises InputError where they cannot be written.
    """
    request = model.resolve(request)
    model.eval().compute_in(request.precision)
    height, width = size or (model.picture.height, model.picture.width)
    settings: dict[str, object] = {
        "weights": weights_hash(model),
        "sampler": request.sampler,
        "sampling_steps": request.steps,
        "height": height,
        "width": width,
        "precision": model.precision,
    }
    if labels is not None:
        rows_hash = hashlib.sha256(labels.cpu().numpy().tobytes()).hexdigest()
        settings |= {"labels": rows_hash, "labels_from_seed": first_seed, "guidance": request.guidance}
    if request.nca_steps is not None:
        settings["nca_steps"] = request.nca_steps
    below = folder / hashlib.sha256(json_bytes(settings)).hexdigest()[:12]
    seeds = list(range(first_seed, first_seed + count))
    try:
        below.mkdir(parents=True, exist_ok=True)
        for leftover in below.glob(".*.png-*"):
            leftover.unlink(missing_ok=True)
        replace_file(below / "settings.json", json_bytes(settings))
        missing = [seed for seed in seeds if not _whole(below / f"{seed}.png", (width, height))]
        timing = (
            read_json(below / "timing.json") if (below / "timing.json").is_file() else {"images": 0, "seconds": 0.0}
        )
        with Progress("sampling", count, "images", done=count - len(missing), quiet=quiet) as progress:
            for start in range(0, len(missing), batch_size):
                part, started = missing[start : start + batch_size], time.perf_counter()
                rows = None if labels is None else labels[[seed - first_seed for seed in part]].to(model.device)
                images = model.generate(Key.of(part), (height, width), request, rows)
                for seed, picture in zip(part, to_pil(images), strict=True):
                    save_png(below / f"{seed}.png", picture, {**settings, "seed": seed})
                timing["images"] += len(part)
                timing["seconds"] += time.perf_counter() - started
                replace_file(below / "timing.json", json_bytes(timing))
                progress.advance(len(part))
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror or error}") from None

    facts = {**settings, "first_seed": first_seed, "folder": str(below)}
    facts |= {"seconds_per_image": timing["seconds"] / max(timing["images"], 1)}
    return of_files("the generated images", [below / f"{seed}.png" for seed in seeds]), facts


def _whole(path: Path, size: tuple[int, int]) -> bool:
    """Whether a PNG is there, whole and of a size (width, height)."""
    try:
        with Image.open(path) as image:
            image.load()
            return image.size == size
    except (OSError, SyntaxError, ValueError):
        return False
