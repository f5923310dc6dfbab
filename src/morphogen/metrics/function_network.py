"""Feature networks from Python: any module or function of images, such as a model of torchvision or of timm."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from morphogen.core.errors import InputError
from morphogen.metrics.feature_network import FeatureNetwork, identify, resize
from morphogen.metrics.timm_models import create_timm_model, preprocessing_of

FeatureFunction = Callable[[Tensor], Tensor]


class FunctionNetwork(FeatureNetwork):
    """Features by a module or a function: float32 (B, 3, H, W) -> (B, D), or (B, D, H, W), averaged over space.

    It is given images in [0, 1], or, with mean and deviation, standardised ones; a module is put into eval mode and
    moved to the device. name: for labels and tables. size: (height, width) that images are resized to, None for their
    own. identity: what its features are kept under from one evaluation to the next; None does not keep them, because
    nothing says when a function has changed.
    """

    def __init__(
        self,
        function: FeatureFunction,
        name: str | None = None,
        *,
        size: tuple[int, int] | None = None,
        mean: tuple[float, float, float] = (0.0, 0.0, 0.0),
        deviation: tuple[float, float, float] = (1.0, 1.0, 1.0),
        identity: str | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        if isinstance(function, nn.Module):
            function = function.eval().to(self.device)
        self._function, self._size, self.identity = function, size, identity
        self.name = name or str(getattr(function, "__name__", type(function).__name__))
        self._mean = torch.tensor(mean, device=self.device).view(1, 3, 1, 1)
        self._deviation = torch.tensor(deviation, device=self.device).view(1, 3, 1, 1)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> NDArray[np.float32]:
        x = resize(images.to(self.device), self._size or (images.shape[-2], images.shape[-1]))
        features = self._function((x - self._mean) / self._deviation)
        if not isinstance(features, Tensor) or features.ndim < 2 or len(features) != len(images):
            shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise InputError(
                f"the feature network {self.name} gave {shape} for {len(images)} images; it should be a tensor "
                "(B, D) or (B, D, H, W)"
            )
        if features.ndim > 2:
            features = features.flatten(2).mean(2)
        found: NDArray[np.float32] = features.float().cpu().numpy()
        return found


def timm_network(reference: str, device: torch.device | str = "cpu") -> FunctionNetwork:
    """`NAME` or `NAME:FILE`: a model of timm without its classifier, with its published weights or those of a
    safetensors file, and the size, mean and deviation that it was trained with.
    """
    name, _, file = reference.partition(":")
    path = Path(file).expanduser()
    if file and (path.suffix != ".safetensors" or not path.is_file()):
        raise InputError(f"--network timm:{reference}: {file} should be a safetensors file that is there")
    model = create_timm_model(name, pretrained=True, file=str(path) if file else None)
    size, mean, deviation = preprocessing_of(model)
    total = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        total.update(key.encode() + tensor.contiguous().numpy().tobytes())
    how = f"{size} {mean} {deviation} bicubic"
    identity = identify("timm", name, total.hexdigest(), how)
    return FunctionNetwork(model, name, size=size, mean=mean, deviation=deviation, identity=identity, device=device)
