"""The results of a run: the averaged model ready to use, sample grids, and a model card."""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from pathlib import Path

import torch
from torch import Tensor

from morphogen._version import VERSION
from morphogen.core.errors import InputError
from morphogen.core.files import read_bytes, replace_file
from morphogen.core.images import sample_grid, save_png, to_float, to_pil
from morphogen.core.keys import Key
from morphogen.core.model import Callback, Model
from morphogen.core.model_files import save_model
from morphogen.core.notices import say_once
from morphogen.core.request import SamplingRequest
from morphogen.data.dataset import ImageDataset
from morphogen.diffusion.condition import of_images
from morphogen.diffusion.denoiser import Denoiser
from morphogen.diffusion.ladder import Ladder
from morphogen.diffusion.latents import OwnAutoencoder
from morphogen.diffusion.learned_autoencoder import LearnedAutoencoder
from morphogen.diffusion.sampling import sample
from morphogen.training.config import RunConfig
from morphogen.training.paths import public_name
from morphogen.training.run_folder import RunFolder
from morphogen.training.state import TrainingFacts

_MARK = re.compile(rb"# written by Morphogen \(([0-9a-f]{16})\)[^\n]*\n")  # in a card; a hash of all the rest of it


def export(folder: RunFolder, config: RunConfig, model: Model, facts: TrainingFacts, data: ImageDataset) -> None:
    """Put the averaged model and its card into the run folder, each file at once; a README of the user's own stays, and
    so does a card that was edited.
    """
    save_model(model, model.config_dict(), folder.path)
    if folder.card.exists() and not _is_as_written(folder.card):
        say_once(f"note: {folder.card} is not as Morphogen wrote it and stays as it is; delete it to have a new card")
    else:
        replace_file(folder.card, _marked(model_card(config, model, facts, data)))


def _marked(card: str) -> bytes:
    """A card with a line in its header that says whether it is still as it was written."""
    content = card.encode()
    digest = hashlib.sha256(content).hexdigest()[:16]
    return content.replace(b"---\n", f"---\n# written by Morphogen ({digest}); once edited, it is kept\n".encode(), 1)


def _is_as_written(path: Path) -> bool:
    with contextlib.suppress(OSError, InputError):
        content = read_bytes(path)
        mark = _MARK.search(content)
        own = hashlib.sha256(_MARK.sub(b"", content, count=1)).hexdigest()[:16]
        return mark is not None and own == mark[1].decode()
    return False


def write_samples(
    folder: RunFolder, model: Model, step: int, count: int, data: ImageDataset, callback: Callback | None = None
) -> None:
    """A grid of `count` samples, of the seeds from 0 on, as samples/step-N.png; with the labels of as many training
    images where the model has labels. Of an autoencoder, and of a level that is told a coarser picture: training
    images, and what becomes of them.
    """
    images = _generated(model, count, data, None, callback)
    name = f"step-{step:08d}.png"
    save_png(folder.samples / name, sample_grid(to_pil(images)), {"step": step, "seeds": list(range(count))})


def sampling_seconds(model: Model, count: int, data: ImageDataset, worth: float) -> float:
    """About how long a grid of `count` samples takes, measured.

    worth: where measuring that would take more seconds than this, it is told from one sample, and rather too long.
    """

    def timed(images: int, steps: int | None) -> float:
        started = time.perf_counter()
        _generated(model, images, data, steps, None)
        return time.perf_counter() - started

    if not model.predicts_noise:
        return timed(count, None)
    _generated(model, 1, data, 1, None)  # whatever happens once only
    steps, one = model.resolve(SamplingRequest()).steps or 1, timed(1, 1)
    if 3 * count * one > worth:
        return one * steps * count
    first = timed(count, 1)
    if steps == 1:
        return first
    second = timed(count, 2)
    # What comes once (decoding latents) is in both; on a busy machine a difference alone may be nothing.
    return second + (steps - 2) * max(second - first, second / 4)


def _generated(
    model: Model, count: int, data: ImageDataset, steps: int | None, callback: Callback | None
) -> torch.Tensor:
    if isinstance(model, LearnedAutoencoder):
        autoencoder = OwnAutoencoder(model, model.family, identity="")
        images = torch.stack([to_float(data.fixed(i % len(data))[0]) for i in range(count)]).to(model.device)
        return torch.cat([images, autoencoder.decode(autoencoder.encode(images))])
    rows = data.spread_labels(count).to(model.device) if len(model.labels) else None
    if isinstance(model, Denoiser) and model.condition is not None:
        endless = data.fitting.fit == "random"  # crops of its own for every number
        shown = [i if endless else i % len(data) for i in range(count)]
        images = to_float(torch.stack([data.fixed(i)[0] for i in shown])).to(model.device)
        maps = torch.stack([data.fixed_map(i) for i in shown]) if model.classes else None
        painted = told_samples(model, images, SamplingRequest(steps=steps), rows, callback, maps)
        return model.to_pixels(torch.cat([images, painted]))
    with torch.no_grad():
        return model.generate(
            Key.of(range(count)), request=SamplingRequest(steps=steps), labels=rows, callback=callback
        )


def told_samples(
    model: Denoiser,
    images: Tensor,
    request: SamplingRequest,
    labels: Tensor | None,
    callback: Callback | None,
    maps: Tensor | None,
) -> Tensor:
    """What a model paints where it is told how images (B, C, H, W) look from afar, or their maps uint8 (B, H, W)."""
    assert model.condition is not None
    key, size = Key.of(range(len(images))), (images.shape[2], images.shape[3])
    told = of_images(model.condition, images, key, None if maps is None else model.grid_maps(maps))
    clip = model.latents is None
    return sample(model, key, size, request, labels=labels, condition=told, callback=callback, clip=clip)


def model_card(config: RunConfig, model: Model, facts: TrainingFacts, data: ImageDataset) -> str:
    """The card (Markdown with the hub's metadata header): data, split, settings, figures."""
    summary = {name: public_name(v) if isinstance(v, str) else v for name, v in data.summary().items()}
    settings = config.training
    error, use = facts["noise_error"], "morphogen sample FOLDER_OF_THIS_FILE -n 16"
    diffusion, measure = "none", "bits a dimension"
    about = "mean squared error of the predicted noise on held-out images"
    if isinstance(model, LearnedAutoencoder):
        use = "morphogen train DATA --autoencoder FOLDER_OF_THIS_FILE --out RUN"
        measure, about = "L1 and gradients", "mean absolute error of decoded held-out images, in levels of 0 to 255"
    if isinstance(model, Ladder):
        use += " --size 1024"
        summary = {name: value for name, value in summary.items() if name != "size"}
    if model.predicts_noise or isinstance(model, Ladder):
        d = config.diffusion
        diffusion = f"{d.timesteps} timesteps, {d.schedule}, puts out {d.output}"
        measure = f"{d.loss} over {d.loss_on}"
    figures = f"- training loss of the last step ({measure}): {facts['loss']:.4f}\n"
    if error is not None:
        figures += f"- {about}: {error:.4f}\n"
    facts_of_data = "\n".join(
        f"- {name.replace('_', ' ')}: {value}" for name, value in summary.items() if value is not None
    )
    coder = model.autoencoder_parameters()
    size = f"{model.parameter_count():,} parameters" + (f" (and {coder:,} of its autoencoder)" if coder else "")
    kind = f"{'An' if model.family[0] in 'aeio' else 'A'} {model.family}"
    height, width = config.data.size
    return f"""---
library_name: morphogen
tags: [neural-cellular-automata, diffusion, image-generation]
---

# {config.model} on {summary["source"]}

{kind} of {size}, made for {height}x{width} images by Morphogen {VERSION}.
These are averaged (EMA) weights after {facts["step"]:,} steps of {settings.batch_size} images.

    {use}

## Data

{facts_of_data}

## Training

- recipe: {config.recipe}, seed {settings.seed}
- time: {facts["elapsed_s"] / 60:.1f} minutes
- diffusion: {diffusion}
- everything else: `run.json`

## Figures

{figures}
## Licence and use

The weights' licence follows from that of the images above, which the author of this run knows and should state here.
"""
