"""The segmenter of `segment`: a small U-Net of segmentation-models-pytorch, its training, and what it finds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from morphogen.core.condition import UNKNOWN
from morphogen.core.errors import InputError, NonFiniteError
from morphogen.core.progress import Progress
from morphogen.core.random import Purpose, integers, mix

_ENCODER, _DEPTH, _DECODER = "resnet18", 3, (64, 32, 16)
_MULTIPLE = 2**_DEPTH
_SIDE = 96  # pixels of a crop
_DRAW, _WEIGHTS = 0x5E62, 0x5E63


@dataclass(frozen=True)
class Examples:
    """Whole images uint8 (H, W, C), and the numbers of their pixels' classes, uint8 (H, W)."""

    images: Sequence[NDArray[np.uint8]]
    maps: Sequence[NDArray[np.uint8]]

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class SegmenterSettings:
    """The settings of a training. mix: the share of a batch that is drawn from painted pairs, where there are both."""

    steps: int = 400
    batch_size: int = 8
    learning_rate: float = 2e-3
    mix: float = 0.5
    precision: Literal["float32", "bfloat16"] = "float32"


def make_segmenter(classes: int, channels: int, seed: int) -> nn.Module:
    """A U-Net (Ronneberger et al., 2015) with a ResNet-18's first stages and fresh weights. Raises InputError where
    segmentation-models-pytorch is not installed.
    """
    try:
        import segmentation_models_pytorch as models
    except ImportError:
        raise InputError(
            'segment needs segmentation-models-pytorch; install it with pip install "morphogen[segment]"'
        ) from None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix(seed, Purpose.SAMPLE, _WEIGHTS) % 2**63)
        network: nn.Module = models.Unet(
            _ENCODER,
            encoder_depth=_DEPTH,
            encoder_weights=None,
            decoder_channels=_DECODER,
            in_channels=channels,
            classes=classes,
        )
    return network.to(memory_format=torch.channels_last)


def train_segmenter(
    real: Examples, extra: Examples | None, classes: int, settings: SegmenterSettings, seed: int, quiet: bool
) -> nn.Module:
    """A segmenter trained on crops, flipped and turned, by AdamW with a rate that falls to zero: cross-entropy and a
    soft Dice loss. extra: painted pairs to learn from as well.
    """
    steps, batch_size = settings.steps, settings.batch_size
    some = real if len(real) else extra
    assert some is not None
    network = make_segmenter(classes, some.images[0].shape[2], seed).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=1e-4)
    with Progress(f"training the segmenter, seed {seed}", steps, "steps", quiet=quiet) as progress:
        for step in range(steps):
            keys = [mix(seed, Purpose.SAMPLE, _DRAW, step * batch_size + i) for i in range(batch_size)]
            images, maps = zip(*(_draw(real, extra, settings.mix, key) for key in keys), strict=True)
            batch = _as_input(torch.from_numpy(np.stack(images)))
            wanted = torch.from_numpy(np.stack(maps)).long()
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * (1 + math.cos(math.pi * step / steps)) / 2
            with torch.autocast("cpu", torch.bfloat16, settings.precision == "bfloat16"):
                logits = network(batch)
            loss = _loss(logits.float(), wanted)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise NonFiniteError(f"the segmenter's loss became {value:g} at step {step + 1}")
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            progress.advance(note=f"loss {value:.3f}")
    return network.eval()


@torch.no_grad()
def find(network: nn.Module, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The numbers of the classes that a segmenter finds in an image (H, W, C): uint8 (H, W)."""
    x = _as_input(torch.from_numpy(image.copy())[None])
    height, width = x.shape[-2:]
    padded = F.pad(x, (0, -width % _MULTIPLE, 0, -height % _MULTIPLE), mode="reflect")
    found: Tensor = network(padded)[0, :, :height, :width].argmax(0)
    return found.to(torch.uint8).numpy()


def _as_input(images: Tensor) -> Tensor:
    """Images uint8 (B, H, W, C) as floats (B, C, H, W)."""
    return (images.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def _draw(
    real: Examples, extra: Examples | None, share: float, key: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A crop and its map: of which kind, of which image, where, and how it is flipped and turned, says the key."""
    kind, which, top, left, turns, mirrored = integers(key, 6)
    painted = extra is not None and (not len(real) or kind < share * 2**64)
    examples = extra if painted and extra is not None else real
    number = which % len(examples)
    image, found = examples.images[number], examples.maps[number]
    beyond = [max(0, _SIDE - n) for n in found.shape]
    if any(beyond):
        image = np.pad(image, ((0, beyond[0]), (0, beyond[1]), (0, 0)), mode="reflect")
        found = np.pad(found, ((0, beyond[0]), (0, beyond[1])), mode="reflect")
    y, x = (n % (side - _SIDE + 1) for n, side in zip((top, left), found.shape, strict=True))
    parts = (image[y : y + _SIDE, x : x + _SIDE], found[y : y + _SIDE, x : x + _SIDE])
    turned = (np.rot90(part[:, ::-1] if mirrored & 1 else part, turns % 4) for part in parts)
    return next(turned).copy(), next(turned).copy()


def _loss(logits: Tensor, wanted: Tensor) -> Tensor:
    known = wanted != UNKNOWN
    entropy = F.cross_entropy(logits, wanted.masked_fill(~known, -100), ignore_index=-100)
    shares = logits.softmax(1) * known[:, None]
    true = F.one_hot(wanted.masked_fill(~known, 0), logits.shape[1]).permute(0, 3, 1, 2) * known[:, None]
    both, each = (shares * true).sum(dim=(0, 2, 3)), (shares + true).sum(dim=(0, 2, 3))
    return entropy + 1 - ((2 * both + 1) / (each + 1)).mean()
