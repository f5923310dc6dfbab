"""Diversity: the mean LPIPS distance (Zhang et al., "The unreasonable effectiveness of deep features") between pairs.

VGG-16 trunk, version 0.1's heads out of the `lpips` package. Written so that two images' distance is the squared
Euclidean distance of their embeddings.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from morphogen.core.errors import InputError, missing_extra
from morphogen.core.files import sha256
from morphogen.core.model_files import read_tensors
from morphogen.metrics.feature_network import identify
from morphogen.metrics.image_sets import ImageSet
from morphogen.metrics.weights import FILES, require

MIN_SIDE = 16
_CONVOLUTIONS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))  # torchvision's numbers, between poolings
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of images on [-1, 1]
_EPSILON = 1e-10


class LPIPS:
    """name: `lpips-vgg`, or with the file's name where the user gave other VGG-16 weights. identity: of the weights."""

    def __init__(self, file: Path | None = None, device: torch.device | str = "cpu") -> None:
        """file: a safetensors file of VGG-16's convolutions under torchvision's names, instead of torchvision's own.

        Raises InputError where a file or the lpips package is missing, or the file is something else.
        """
        package = find_spec("lpips")
        if package is None or package.origin is None:
            raise missing_extra("metrics", "lpips")
        heads = Path(package.origin).parent / "weights" / "v0.1" / "vgg.pth"
        path = file or require("lpips-vgg")
        self.device = torch.device(device)
        self.name = "lpips-vgg" if file is None else f"lpips-vgg with {file.stem}"
        self.identity = identify("lpips-vgg-0.1", sha256(path) if file else FILES["lpips-vgg"].sha256)
        loaded = torch.load(heads, map_location="cpu", weights_only=True)
        self._heads = [loaded[f"lin{i}.model.1.weight"].float().to(self.device) for i in range(len(_CONVOLUTIONS))]
        weights = _read(path)
        self._layers: list[list[tuple[Tensor, Tensor]]] = []
        for numbers in _CONVOLUTIONS:
            try:
                pairs = [(weights[f"features.{n}.weight"], weights[f"features.{n}.bias"]) for n in numbers]
            except KeyError as error:
                raise InputError(f"{path} lacks {error} of VGG-16's convolutions") from None
            self._layers.append([(w.float().to(self.device), b.float().to(self.device)) for w, b in pairs])

    @torch.no_grad()
    def embed(self, images: Tensor) -> list[Tensor]:
        """One tensor a level, (B, C, H, W): the squared distance over all of them together is LPIPS.

        images: uint8 (B, 3, H, W), at least 16 on a side.
        """
        x = images.to(self.device).float() / 127.5 - 1
        shift, scale = (torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in (_SHIFT, _SCALE))
        x = (x - shift) / scale
        found: list[Tensor] = []
        for level, (layers, head) in enumerate(zip(self._layers, self._heads, strict=True)):
            x = F.max_pool2d(x, 2) if level else x
            for weight, bias in layers:
                x = F.relu(F.conv2d(x, weight, bias, padding=1))
            unit = x / (x.square().sum(dim=1, keepdim=True).sqrt() + _EPSILON)
            found.append(unit * (head / (x.shape[-2] * x.shape[-1])).sqrt())
        return found

    def distances(self, a: Tensor, b: Tensor) -> Tensor:
        """LPIPS (B,) between uint8 images (B, 3, H, W)."""
        pairs = zip(self.embed(a), self.embed(b), strict=True)
        return torch.stack([(x - y).square().sum(dim=(1, 2, 3)) for x, y in pairs]).sum(dim=0).cpu()


def _read(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, or of a checked .pth file without running code. Raises InputError."""
    from safetensors import SafetensorError

    try:
        if path.suffix == ".pth":
            return dict(torch.load(path, map_location="cpu", weights_only=True))
        return read_tensors(path)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} is damaged or no safetensors file ({error})") from None


class Diversity(NamedTuple):
    """Mean, standard deviation and standard error of the distance over pairs."""

    mean: float
    deviation: float
    standard_error: float
    pairs: int


def draw_pairs(count: int, pairs: int, seed: int) -> list[tuple[int, int]]:
    """At most `pairs` different pairs of different images out of `count`, the same for the same seed."""
    generator = np.random.default_rng(seed)
    possible = count * (count - 1) // 2
    if possible <= 4 * pairs:
        listed = [(i, j) for i in range(count) for j in range(i)]
        return [listed[k] for k in generator.permutation(possible)[:pairs]]
    chosen: dict[tuple[int, int], None] = {}
    while len(chosen) < pairs:
        i, j = (int(n) for n in generator.integers(0, count, 2))
        if i != j:
            chosen[max(i, j), min(i, j)] = None
    return list(chosen)


def diversity(network: LPIPS, images: ImageSet, pairs: int = 256, seed: int = 0) -> Diversity:
    """The mean distance over seeded pairs of a set. Raises InputError below two images, or for too small ones.

    Pairs of different sizes are compared at the size of the smaller.
    """
    if len(images) < 2:
        raise InputError("LPIPS diversity needs at least two images")
    found: list[float] = []
    for i, j in draw_pairs(len(images), pairs, seed):
        a, b = images[i][None], images[j][None]
        size = (min(a.shape[-2], b.shape[-2]), min(a.shape[-1], b.shape[-1]))
        if min(size) < MIN_SIDE:
            raise InputError(f"LPIPS needs images of at least {MIN_SIDE} pixels on a side, not {size[0]}x{size[1]}")
        a, b = (x if x.shape[-2:] == size else _shrink(x, size) for x in (a, b))
        found.append(float(network.distances(a, b)))
    values = np.asarray(found)
    spread = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
    return Diversity(float(values.mean()), spread, spread / len(values) ** 0.5, len(values))


def _shrink(images: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(images.float(), size=size, mode="area").round().to(torch.uint8)
