"""Latents of a data set, seen by training as if they were the images.

Of random crops and varied stains, of which there is no end, they are computed as they are asked for. All others are
computed once and kept in files: of the images as `ImageDataset.fixed` has them, and, for training, of each mirrored and
turned as training may see it, since an autoencoder makes something else of those than mirrored latents.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from morphogen.core.errors import InputError
from morphogen.core.files import json_bytes, read_json, replace_file
from morphogen.core.images import to_float
from morphogen.core.model import LatentConfig
from morphogen.core.progress import Progress
from morphogen.data.dataset import ImageDataset
from morphogen.diffusion.latents import Autoencoder

SHARD = 256  # images in a file
MEASURED = 512
"""Images of an endless data set by which its latents are shifted and scaled."""
_FACTS = "fingerprint.json"


class LatentDataset(ImageDataset):
    """An image data set whose images are latents, float32 (c, h, w), shifted and scaled.

    latents: as `latents_of` returns them, (images, orientations, c, h, w); the first orientation is the image as it is.
    seconds: that it took to compute them.
    """

    def __init__(self, images: ImageDataset, latents: Tensor, config: LatentConfig, seconds: float = 0.0) -> None:
        super().__init__(images.selection, images.images)
        shift, scale = (torch.tensor(values).view(-1, 1, 1) for values in (config.shift, config.scale))
        self.seconds = seconds
        self._orientations = self.fitting.orientations()
        self._latents, self._autoencoder = (latents - shift) * scale, config.sha256

    def __getitem__(self, n: int) -> tuple[Tensor, Tensor]:
        """The n-th training latent: float32 (c, h, w), and the row of its labels. Any n >= 0."""
        i = self.index(n)
        orientation = self._orientations.index(self.fitting.orientation(self._augmentation(n)))
        return self._latents[i, orientation].clone(), self._row(self.indices[i])

    def fixed(self, i: int) -> tuple[Tensor, Tensor]:
        """Image i and the row of its labels. Raises IndexError for one that is not there."""
        if not 0 <= i < len(self):
            raise IndexError(f"image {i} is outside 0..{len(self) - 1}")
        return self._latents[i, 0].clone(), self._row(self.indices[i])

    def identity(self) -> str:
        """As of the images, and of the autoencoder."""
        return hashlib.sha256(f"{super().identity()}\n{self._autoencoder}".encode()).hexdigest()


def fingerprint(images: ImageDataset, autoencoder: Autoencoder) -> str:
    """A hash of everything that the latents of these images follow from."""
    fitting = repr(images.fitting).replace("Fitting", "Recipe", 1)  # its name when the first latents were kept
    words = (images.identity(), autoencoder.identity, str(images.config.size), fitting)
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


def is_endless(images: ImageDataset) -> bool:
    """Whether training sees every image but once: random crops, and stains that vary."""
    return images.fitting.fit == "random" or images.fitting.stain_jitter > 0


class EncodedDataset(ImageDataset):
    """An endless image data set whose images are encoded when they are asked for: latents, float32 (c, h, w), shifted
    and scaled. config: of the latents, see `measured`.
    """

    def __init__(self, images: ImageDataset, autoencoder: Autoencoder, config: LatentConfig) -> None:
        super().__init__(images.selection, images.images)
        self._shift, self._scale = (torch.tensor(values).view(-1, 1, 1) for values in (config.shift, config.scale))
        self._autoencoder = autoencoder

    def __getitem__(self, n: int) -> tuple[Tensor, Tensor]:
        """The n-th training latent: float32 (c, h, w), and the row of its labels. Any n >= 0."""
        return self._coded(*super().__getitem__(n))

    def fixed(self, i: int) -> tuple[Tensor, Tensor]:
        """Latent i of those that never change, and the row of its labels, as `ImageDataset.fixed`."""
        return self._coded(*super().fixed(i))

    def identity(self) -> str:
        """As of the images, and of the autoencoder."""
        return hashlib.sha256(f"{super().identity()}\n{self._autoencoder.identity}".encode()).hexdigest()

    def _coded(self, image: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        latents = self._autoencoder.encode(to_float(image[None]))[0].cpu()
        if not torch.isfinite(latents).all():
            raise InputError(f"the autoencoder {self._autoencoder.name} makes latents that are not finite")
        return (latents - self._shift) * self._scale, row


def first_latents(images: ImageDataset, autoencoder: Autoencoder, count: int = MEASURED) -> Tensor:
    """The latents float32 (count, 1, c, h, w) of the first images that training sees of an endless data set."""
    shown = (images[n][0] for n in range(count))
    return torch.stack([autoencoder.encode(to_float(image[None])).cpu() for image in shown])


def latents_of(images: ImageDataset, autoencoder: Autoencoder, folder: Path, quiet: bool = False) -> Tensor:
    """The latents float32 (images, orientations, c, h, w) of a data set, from a folder's files or computed into them.

    Of the training part in every orientation that training may see, of another part as the images are. The data set is
    not endless.

    Files that are of other images or of another autoencoder, or damaged, are computed again.
    Raises InputError where the folder cannot be written.
    """
    from safetensors.torch import load, save

    orientations = images.fitting.orientations() if images.part == "train" else [(False, 0)]
    of = fingerprint(images, autoencoder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        facts = folder / _FACTS
        known = _recorded(facts)
        if known.get("fingerprint") != of or "sha256" not in known:
            for old in folder.glob("*.safetensors"):
                old.unlink()
            known = {"fingerprint": of, "sha256": {}, "seconds": 0.0}
            replace_file(facts, json_bytes(known))
        parts: list[Tensor] = []
        each = len(orientations)
        shown = f"encoding {images.part} images" + (f", {each} orientations each" if each > 1 else "")
        with Progress(shown, len(images) * each, quiet=quiet) as progress:
            for first in range(0, len(images), SHARD):
                count = min(SHARD, len(images) - first)
                file = folder / f"{first:08d}.safetensors"
                content = file.read_bytes() if file.is_file() else b""
                if hashlib.sha256(content).hexdigest() == known["sha256"].get(file.name):
                    part = load(content)["latents"]
                    progress.advance(count * each)
                else:
                    begun = time.monotonic()
                    part = _encoded(images, autoencoder, range(first, first + count), orientations, progress)
                    content = save({"latents": part})
                    replace_file(file, content)
                    known["seconds"] = known.get("seconds", 0.0) + time.monotonic() - begun
                    known["sha256"][file.name] = hashlib.sha256(content).hexdigest()
                    replace_file(facts, json_bytes(known))
                parts.append(part)
    except OSError as error:
        raise InputError(f"the latents cannot be written to {folder}: {error.strerror or error}") from None
    return torch.cat(parts)


def seconds_of(folder: Path) -> float:
    """How long it took to compute the latents in a folder, in all processes that have worked on them."""
    return float(_recorded(folder / _FACTS).get("seconds", 0.0))


def _recorded(facts: Path) -> dict[str, Any]:
    """The facts in a folder of latents; empty where the file is damaged."""
    try:
        found = read_json(facts) if facts.is_file() else None
    except InputError:
        return {}
    return dict(found) if isinstance(found, dict) else {}


def _encoded(
    images: ImageDataset, autoencoder: Autoencoder, chosen: range, orientations: list[tuple[bool, int]], progress: Any
) -> Tensor:
    found = []
    for start in range(chosen.start, chosen.stop, 16):
        batch = torch.stack([images.fixed(i)[0] for i in range(start, min(start + 16, chosen.stop))])
        seen_as = []
        for mirrored, turns in orientations:
            seen = torch.rot90(batch.flip(-1) if mirrored else batch, turns, (-2, -1))
            seen_as.append(autoencoder.encode(to_float(seen)).cpu())
            progress.advance(len(batch))
        found.append(torch.stack(seen_as, 1))
    latents = torch.cat(found).contiguous()
    if not torch.isfinite(latents).all():
        raise InputError(f"the autoencoder {autoencoder.name} makes latents that are not finite of some images")
    return latents


def measured(latents: Tensor, autoencoder: Autoencoder) -> LatentConfig:
    """The configuration by which latents (images, orientations, c, h, w) have mean 0 and variance 1 in each channel."""
    values = latents.double().movedim(2, 0).flatten(1)
    deviation, mean = values.std(dim=1, correction=0), values.mean(dim=1)
    if not (deviation > 0).all():
        raise InputError(f"the autoencoder {autoencoder.name} makes the same of every image; take another one")
    scale = [round(float(v), 6) for v in 1 / deviation]
    return autoencoder.config(tuple(round(float(v), 6) for v in mean), tuple(scale))
