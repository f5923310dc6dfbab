"""A model on the Hugging Face hub: its files, a card that a stranger can use, and pictures that it has painted."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

import torch

from morphogen._version import VERSION
from morphogen.core.condition import class_names
from morphogen.core.errors import InputError, first_line
from morphogen.core.images import sample_grid, save_png, to_pil
from morphogen.core.keys import Key
from morphogen.core.model import Model
from morphogen.core.model_files import save_model
from morphogen.diffusion.denoiser import Denoiser

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SAMPLES = 8


def push_to_hub(
    model: Model,
    repo_id: str,
    *,
    license: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str = "Add a model of Morphogen",
) -> str:
    """Put a model on the hub as `owner/name`: config.json, model.safetensors, README.md (its card) and samples.png; the
    address of the commit. What is there of these names is replaced.

    license: of the weights, such as cc0-1.0, for the card. token: of the hub; by default the one that is logged in.
    Raises InputError for a name that cannot be, and where the hub refuses.
    """
    from huggingface_hub import HfApi

    if not isinstance(repo_id, str) or not _ID.fullmatch(repo_id):
        raise InputError(f"repo_id is {repo_id!r}; it should be owner/name, such as jane/tissue")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_model(model, model.config_dict(), folder)
        painted = _samples(model, folder)
        (folder / "README.md").write_text(card(model, repo_id, license, painted), "utf-8")
        try:
            api = HfApi(token=token)
            api.create_repo(repo_id, private=private, exist_ok=True)
            done = api.upload_folder(
                repo_id=repo_id, folder_path=folder, commit_message=commit_message, revision=revision
            )
        except Exception as error:  # the hub's client raises many kinds
            raise InputError(f"{repo_id} could not be put on the hub: {first_line(error)}") from None
    return str(done.commit_url)


def _samples(model: Model, folder: Path) -> bool:
    """Put pictures of the seeds 0 to 7 beside the model; not of a level that paints nothing by itself."""
    if isinstance(model, Denoiser) and model.condition is not None and model.condition.has_picture:
        return False
    rows = None
    if len(model.labels):
        rows = torch.stack([torch.eye(len(model.labels))[k % len(model.labels)] for k in range(_SAMPLES)])
    with torch.no_grad():
        labels = None if rows is None else rows.to(model.device)
        images = model.generate(Key.of(range(_SAMPLES)), labels=labels)
    save_png(folder / "samples.png", sample_grid(to_pil(images)), {"seeds": list(range(_SAMPLES))})
    return True


def card(model: Model, repo_id: str, license: str | None, painted: bool) -> str:
    """The card of a model (Markdown with the hub's metadata header): what it is, and how to use it."""
    image = model.picture
    header = ["library_name: morphogen", "tags: [neural-cellular-automata, diffusion, image-generation]"]
    header += [f"license: {license}"] if license else []
    colours = {1: "gray", 3: "RGB", 4: "RGBA"}.get(image.channels, f"{image.channels}-channel")
    facts = [
        f"family: {model.family}, {model.parameter_count():,} parameters",
        f"made for {colours} pictures of {image.height}x{image.width}; at least {model.minimum_picture} pixels a side",
    ]
    facts += [f"a pixel covers {image.mpp:g} micrometres"] if image.mpp else []
    facts += ["exact in tiles, so it paints slides of any size"] if model.exact_in_tiles else []
    facts += [f"labels: {', '.join(model.labels.names)}"] if len(model.labels) else []
    classes = class_names(dict(model.classes))
    values = ", ".join(f"{value} {name}" for value, name in model.classes.items() if name is not None)
    facts += [f"paints from label maps: {values}"] if classes else []
    if model.latents is not None:
        facts.append(f"works in latents of {model.latents.autoencoder}")
    label = f", labels={model.labels.names[0]!r}" if len(model.labels) else ""
    commands = [f"morphogen sample {repo_id} -n 16"]
    commands += [f"morphogen paint {repo_id} MAP.png -n 4"] if classes else []
    commands += [f"morphogen slide {repo_id} --size 4096 --out slide.ome.tif"] if model.exact_in_tiles else []
    lines = "\n".join(f"    {command}" for command in commands)
    listed = "\n".join(f"- {fact}" for fact in facts)
    picture = "![Pictures of the seeds 0 to 7](samples.png)\n\n" if painted else ""
    top = "\n".join(header)
    return f"""---
{top}
---

# {repo_id.partition("/")[2]}

{picture}A model of Morphogen {VERSION}: image diffusion with neural cellular automata.

{listed}

## Use

    pip install morphogen

{lines}

```python
from morphogen import Pipeline

pipeline = Pipeline.from_pretrained({json.dumps(repo_id)})
images = pipeline(seeds=range(4){label}).images
```

The files are `config.json` and `model.safetensors`; nothing of them is code. A seed fixes a picture.

## Data, licence and limits

What the weights may be used for follows from the images that they learnt from, which their author knows and should
name here. Painted pictures are plausible, not real: not for diagnosis.
"""
