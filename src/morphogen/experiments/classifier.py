"""A ResNet-34 that is trained on images with labels for a fixed number of steps: the measuring rod of `classify`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from morphogen.core.errors import NonFiniteError, missing_extra
from morphogen.core.images import to_float
from morphogen.core.progress import Progress
from morphogen.core.random import Purpose, integers, mix
from morphogen.data.dataset import permutation
from morphogen.data.fitting import Recipe

_ORDER, _AUGMENT = 0xC1A501, 0xC1A502  # keep these draws apart from others for the same purpose
_TILT, _ZOOM, _SHIFT = 15.0, 0.15, 0.1  # degrees, and shares of the size


@dataclass(frozen=True)
class ClassifierSettings:
    """How a classifier is trained. geometric: mirrored and turned as the data allows, tilted, shifted and zoomed."""

    steps: int
    batch_size: int = 32
    learning_rate: float = 1e-3
    augment: Literal["geometric", "none"] = "geometric"
    precision: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"


@dataclass(frozen=True)
class Examples:
    """Images uint8 (N, 3, H, W) and the rows of their labels float (N, K)."""

    images: Tensor
    rows: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def with_more(self, other: Examples) -> Examples:
        """Both."""
        return Examples(torch.cat([self.images, other.images]), torch.cat([self.rows, other.rows]))


def build_network(labels: int, seed: int) -> Any:
    """torchvision's ResNet-34 with fresh weights from a seed. Raises InputError without torchvision."""
    try:
        from torchvision.models import resnet34
    except ImportError:
        raise missing_extra("metrics", "torchvision") from None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return resnet34(weights=None, num_classes=labels)


def train_and_predict(
    train: Examples,
    test: Tensor,
    exclusive: bool,
    recipe: Recipe,
    settings: ClassifierSettings,
    seed: int,
    quiet: bool = False,
) -> NDArray[np.float64]:
    """Train a fresh network on examples, and what it says of test images uint8 (M, 3, H, W): probabilities (M, K), of
    classes that exclude one another (softmax) or of labels that don't (sigmoid).

    Adam, its rate falling to zero as half a cosine; the examples are taken in random order, each once an epoch. All of
    it is a function of the seed. Raises NonFiniteError where the loss is not finite.
    """
    device = torch.device(settings.device)
    network = build_network(train.rows.shape[1], seed).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(network.parameters(), settings.learning_rate)
    narrow = settings.precision == "bfloat16"
    order, epoch = permutation(0, 1), -1
    with Progress("classifier", settings.steps, "steps", quiet=quiet) as progress:
        for step in range(settings.steps):
            rows = []
            for n in range(step * settings.batch_size, (step + 1) * settings.batch_size):
                if n // len(train) != epoch:
                    epoch = n // len(train)
                    order = permutation(mix(seed, Purpose.SAMPLE, _ORDER, epoch), len(train))
                rows.append(int(order[n % len(train)]))
            images = to_float(train.images[rows].to(device))
            if settings.augment == "geometric":
                first = step * settings.batch_size
                keys = [mix(seed, Purpose.SAMPLE, _AUGMENT, first + i) for i in range(len(rows))]
                images = geometric(images, keys, recipe)
            wanted = train.rows[rows].to(device)
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * (1 + math.cos(math.pi * step / settings.steps)) / 2
            with torch.autocast(device.type, torch.bfloat16, narrow):
                said = network(images.contiguous(memory_format=torch.channels_last)).float()
            loss = F.cross_entropy(said, wanted) if exclusive else F.binary_cross_entropy_with_logits(said, wanted)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise NonFiniteError(f"the classifier's loss became {value:g} at step {step + 1}")
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            progress.advance(note=f"loss {value:.3f}")
    network.eval()
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, narrow):
        said = torch.cat([network(to_float(part.to(device))).float() for part in torch.split(test, 64)])
    probabilities = said.softmax(1) if exclusive else said.sigmoid()
    return np.asarray(probabilities.double().cpu().numpy())


def geometric(images: Tensor, keys: list[int], recipe: Recipe) -> Tensor:
    """Images float (B, C, H, W), each mirrored, turned, tilted, zoomed and shifted as its key says; what comes in from
    outside is the image mirrored at its border.
    """
    height, width = images.shape[-2:]
    matrices = []
    for key in keys:
        draws = [n / 2**64 for n in integers(key, 6)]
        angle = (2 * draws[0] - 1) * (180.0 if recipe.turns else _TILT)
        zoom = 1 + (2 * draws[1] - 1) * _ZOOM
        mirror_x = -1 if recipe.flip_x and draws[2] < 0.5 else 1
        mirror_y = -1 if recipe.flip_y and draws[3] < 0.5 else 1
        cos, sin = math.cos(math.radians(angle)) * zoom, math.sin(math.radians(angle)) * zoom
        shift = [2 * _SHIFT * (2 * d - 1) for d in draws[4:]]
        across = [cos * mirror_x, -sin * height / width * mirror_y, shift[0]]
        down = [sin * width / height * mirror_x, cos * mirror_y, shift[1]]
        matrices.append([across, down])
    theta = torch.tensor(matrices, dtype=images.dtype, device=images.device)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
