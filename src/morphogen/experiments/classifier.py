"""A classifier that is trained on images with labels for a fixed number of steps: what `classify` measures with."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from morphogen.core.errors import InputError, NonFiniteError, missing_extra
from morphogen.core.images import to_float
from morphogen.core.model_files import read_tensors
from morphogen.core.progress import Progress
from morphogen.core.random import Purpose, integers, mix
from morphogen.data.dataset import permutation
from morphogen.data.fitting import Fitting

Schedule = Literal["choose", "mix", "pretrain", "both"]
DEFAULT_NETWORK = "resnet34"
DEFAULT_MIX = 0.25  # of 0.5 and 0.25 the less harmful (benchmarks/NOTES.md)
_ORDER, _AUGMENT, _EXTRA_ORDER = 0xC1A501, 0xC1A502, 0xC1A503  # keep these draws apart from others of this purpose
_TILT, _ZOOM, _SHIFT = 15.0, 0.15, 0.1  # degrees, and shares of the size
_FIRST = 0.5  # share of the steps before a schedule turns to real images alone


@dataclass(frozen=True)
class ClassifierSettings:
    """How a classifier is trained. geometric: mirrored and turned as the data allows, tilted, shifted and zoomed.

    network: `resnet34`, or `timm:NAME`. weights: what it begins with, None for random ones: `imagenet`, which timm
    fetches, or the path of a safetensors file. mix: the largest share of generated images in a batch. schedule: `mix`,
    that share in every step; `pretrain`, generated images alone in the first half of the steps and real ones alone in
    the second; `both`, that share in the first half and real ones alone in the second; `choose`, as `both`, for whoever
    then chooses between this classifier and one that saw no generated image.
    """

    steps: int
    batch_size: int = 32
    learning_rate: float = 1e-3
    augment: Literal["geometric", "none"] = "geometric"
    precision: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    network: str = DEFAULT_NETWORK
    weights: str | None = None
    mix: float = DEFAULT_MIX
    schedule: Schedule = "choose"

    def generated_share(self, step: int, real: int, generated: int) -> float:
        """The share of generated images in the batch of a step. real, generated: images in the whole set.

        Never more than they have in the set, so that a small expansion is not repeated more often than the real images.
        """
        if not generated:
            return 0.0
        first = step < round(_FIRST * self.steps)
        if self.schedule == "pretrain":
            return float(first)
        return min(self.mix, generated / (real + generated)) if first or self.schedule == "mix" else 0.0


def check_schedule(mix: float, schedule: str) -> None:
    """Raise InputError for a share outside 0..1 or an unknown schedule."""
    if not 0 <= mix <= 1:
        raise InputError(
            f"--mix {mix:g}: it should be between 0 and 1, the largest share of generated images in a batch"
        )
    if schedule not in get_args(Schedule):
        raise InputError(f"--schedule {schedule}: it should be one of {', '.join(get_args(Schedule))}")


@dataclass(frozen=True)
class Examples:
    """Images uint8 (N, 3, H, W) and the rows of their labels float (N, K)."""

    images: Tensor
    rows: Tensor

    def __len__(self) -> int:
        return len(self.images)


def build_network(labels: int, seed: int, name: str = DEFAULT_NETWORK, weights: str | None = None) -> nn.Module:
    """A classifier with `labels` outputs whose random weights are fixed by a seed.

    name: `resnet34`, torchvision's, or `timm:NAME`. weights: see ClassifierSettings. Raises InputError for an unknown
    network, one that takes images of one size only, weights that cannot be had or fit another network, and where the
    library is missing.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _resnet34(labels) if name == DEFAULT_NETWORK else _timm_network(name, labels, weights == "imagenet")
    if weights == "imagenet" and name == DEFAULT_NETWORK:
        raise InputError("--weights imagenet: torchvision has no safe file of them; give --network timm:resnet34")
    if weights not in (None, "imagenet"):
        _load(network, Path(str(weights)).expanduser())
    return network


def _resnet34(labels: int) -> nn.Module:
    try:
        from torchvision.models import resnet34
    except ImportError:
        raise missing_extra("metrics", "torchvision") from None
    network: nn.Module = resnet34(weights=None, num_classes=labels)
    return network


def _timm_network(name: str, labels: int, pretrained: bool) -> nn.Module:
    if not name.startswith("timm:"):
        raise InputError(f"--network {name}: it should be {DEFAULT_NETWORK} or timm:NAME, such as timm:resnet50")
    from morphogen.metrics.timm_models import create_timm_model

    return create_timm_model(name.removeprefix("timm:"), pretrained, num_classes=labels)


def _load(network: nn.Module, file: Path) -> None:
    """Load weights, but for those of another shape or name: the last layer's, which counts other labels."""
    from safetensors import SafetensorError

    if not file.is_file():
        raise InputError(f"--weights {file}: there is no such file; give a safetensors file, or imagenet")
    try:
        found = read_tensors(file)
    except (SafetensorError, OSError) as error:
        raise InputError(f"--weights {file} cannot be read as safetensors: {error}") from None
    own = network.state_dict()
    fitting = {name: tensor for name, tensor in found.items() if name in own and tensor.shape == own[name].shape}
    missing = [name for name in own if name not in fitting]
    if not all(name.rpartition(".")[0] == missing[0].rpartition(".")[0] for name in missing):
        raise InputError(
            f"--weights {file} is of another network: it has no fitting {missing[0]}; name its own with --network"
        )
    network.load_state_dict({**own, **fitting})


def train_classifier(
    real: Examples,
    generated: Examples | None,
    exclusive: bool,
    fitting: Fitting,
    settings: ClassifierSettings,
    seed: int,
    quiet: bool = False,
) -> nn.Module:
    """Train a fresh network on real examples, and generated ones as the settings say; it is returned ready to predict.

    Adam, its rate falling to zero as half a cosine; real and generated examples are each taken in a random order, each
    once an epoch. All of it is a function of the seed. Raises NonFiniteError where the loss is not finite.
    """
    device = torch.device(settings.device)
    network = build_network(real.rows.shape[1], seed, settings.network, settings.weights)
    network.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(network.parameters(), settings.learning_rate)
    batches = _batches(real, generated, settings, seed)
    with Progress("classifier", settings.steps, "steps", quiet=quiet) as progress:
        for step, (batch, rows) in enumerate(batches):
            images = to_float(batch.to(device))
            if settings.augment == "geometric":
                first = step * settings.batch_size
                keys = [mix(seed, Purpose.SAMPLE, _AUGMENT, first + i) for i in range(len(rows))]
                images = geometric(images, keys, fitting)
            wanted = rows.to(device)
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * (1 + math.cos(math.pi * step / settings.steps)) / 2
            with torch.autocast(device.type, torch.bfloat16, settings.precision == "bfloat16"):
                logits = network(images.contiguous(memory_format=torch.channels_last)).float()
            loss = F.cross_entropy(logits, wanted) if exclusive else F.binary_cross_entropy_with_logits(logits, wanted)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise NonFiniteError(f"the classifier's loss became {value:g} at step {step + 1}")
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            progress.advance(note=f"loss {value:.3f}")
    return network.eval()


def _batches(
    real: Examples, generated: Examples | None, settings: ClassifierSettings, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The images and label rows of every step, real ones first."""
    reals, extras = _order(len(real), seed, _ORDER), _order(len(generated or ()), seed, _EXTRA_ORDER)
    owed = 0.0  # of a generated image, carried to the next batch so that shares are exact over all steps
    for step in range(settings.steps):
        owed += settings.generated_share(step, len(real), len(generated or ())) * settings.batch_size
        count = math.floor(owed + 1e-9)
        owed -= count
        chosen = [next(reals) for _ in range(settings.batch_size - count)]
        images, rows = real.images[chosen], real.rows[chosen]
        if count and generated is not None:
            more = [next(extras) for _ in range(count)]
            images, rows = torch.cat([images, generated.images[more]]), torch.cat([rows, generated.rows[more]])
        yield images, rows


def _order(count: int, seed: int, purpose: int) -> Iterator[int]:
    """Numbers below `count` without end: every epoch all of them, in an order of its own."""
    epoch = 0
    while count:
        yield from map(int, permutation(mix(seed, Purpose.SAMPLE, purpose, epoch), count))
        epoch += 1


@torch.no_grad()
def predict(
    network: nn.Module, images: Tensor, exclusive: bool, precision: Literal["float32", "bfloat16"] = "float32"
) -> NDArray[np.float64]:
    """A trained network's prediction for images uint8 (M, 3, H, W): probabilities (M, K), of classes that exclude one
    another (softmax) or of labels that don't (sigmoid).
    """
    device = next(network.parameters()).device
    with torch.autocast(device.type, torch.bfloat16, precision == "bfloat16"):
        logits = torch.cat([network(to_float(part.to(device))).float() for part in torch.split(images, 64)])
    probabilities = logits.softmax(1) if exclusive else logits.sigmoid()
    return np.asarray(probabilities.double().cpu().numpy())


def geometric(images: Tensor, keys: list[int], fitting: Fitting) -> Tensor:
    """Images float (B, C, H, W), each mirrored, turned, tilted, zoomed and shifted as its key says; what comes in from
    outside is the image mirrored at its border.
    """
    height, width = images.shape[-2:]
    matrices = []
    for key in keys:
        draws = [n / 2**64 for n in integers(key, 6)]
        angle = (2 * draws[0] - 1) * (180.0 if fitting.turns else _TILT)
        zoom = 1 + (2 * draws[1] - 1) * _ZOOM
        mirror_x = -1 if fitting.flip_x and draws[2] < 0.5 else 1
        mirror_y = -1 if fitting.flip_y and draws[3] < 0.5 else 1
        cos, sin = math.cos(math.radians(angle)) * zoom, math.sin(math.radians(angle)) * zoom
        shift = [2 * _SHIFT * (2 * d - 1) for d in draws[4:]]
        across = [cos * mirror_x, -sin * height / width * mirror_y, shift[0]]
        down = [sin * width / height * mirror_x, cos * mirror_y, shift[1]]
        matrices.append([across, down])
    theta = torch.tensor(matrices, dtype=images.dtype, device=images.device)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
