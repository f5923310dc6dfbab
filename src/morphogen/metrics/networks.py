"""The feature networks that a user can name.

Known are fid-inception, dinov2, dinov2-small, timm:NAME and onnx:FILE. Only the first one is called FID and KID.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from morphogen.core.errors import InputError, missing_extra
from morphogen.core.files import sha256
from morphogen.metrics.feature_network import FeatureNetwork, identify, resize
from morphogen.metrics.function_network import FeatureFunction, FunctionNetwork, timm_network
from morphogen.metrics.onnx import ONNXNetwork
from morphogen.metrics.weights import FILES, require

DEFAULT_NETWORK = "fid-inception"
_IMAGENET_MEAN, _IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class FIDInception(FeatureNetwork):
    """The network that FID is defined by, as torch-fidelity carries it: 2048 numbers, resized as TensorFlow 1 does."""

    name = "fid-inception"
    is_fid = True

    def __init__(self, file: Path | None = None, device: torch.device | str = "cpu") -> None:
        """file: other weights of the same architecture, for tests; by default the checked file of the network."""
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError:
            raise missing_extra("metrics", "torch-fidelity") from None
        path = file or require("fid-inception")
        digest = FILES["fid-inception"].sha256 if file is None else sha256(path)
        self.device = torch.device(device)
        self._net: Any = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path)
        ).to(self.device)
        self.identity = identify("fid-inception", digest, "tf1-bilinear-299")

    @torch.no_grad()
    def __call__(self, images: Tensor) -> NDArray[np.float32]:
        features: Tensor = self._net(images.to(self.device))[0]
        return features.float().cpu().numpy()


class DINOv2(FeatureNetwork):
    """DINOv2's class token (Oquab et al.) through timm: images bicubically resized to 224x224."""

    _ARCHITECTURES: ClassVar[dict[str, str]] = {
        "dinov2": "vit_base_patch14_dinov2.lvd142m",
        "dinov2-small": "vit_small_patch14_dinov2.lvd142m",
    }

    def __init__(self, name: str, file: Path | None = None, device: torch.device | str = "cpu") -> None:
        """file: other weights of the same architecture, for tests; by default the checked file of the network."""
        try:
            import timm
        except ImportError:
            raise missing_extra("metrics", "timm") from None
        path = file or require(name)
        digest = FILES[name].sha256 if file is None else sha256(path)
        self.name, self.device = name, torch.device(device)
        # timm's own loader translates the names of the published file and resizes its position embedding to 224x224.
        self._net: Any = timm.create_model(
            self._ARCHITECTURES[name],
            pretrained=True,
            pretrained_cfg_overlay={"file": str(path)},
            img_size=224,
            num_classes=0,
        ).eval()
        self._net.to(self.device)
        self.identity = identify(name, digest, "bicubic-224-imagenet")

    @torch.no_grad()
    def __call__(self, images: Tensor) -> NDArray[np.float32]:
        x = resize(images.to(self.device), (224, 224))
        mean, deviation = (
            torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in (_IMAGENET_MEAN, _IMAGENET_DEVIATION)
        )
        features: Tensor = self._net((x - mean) / deviation)
        return features.float().cpu().numpy()


def open_network(network: str | FeatureNetwork | FeatureFunction, device: torch.device | str = "cpu") -> FeatureNetwork:
    """A network by its name; or, from Python, one of your own: a module or function (see FunctionNetwork).

    Raises InputError for an unknown name, or where its file or library is missing.
    """
    if isinstance(network, FeatureNetwork):
        return network
    if not isinstance(network, str):
        return FunctionNetwork(network, device=device)
    if network == "fid-inception":
        return FIDInception(device=device)
    if network in DINOv2._ARCHITECTURES:
        return DINOv2(network, device=device)
    if network.startswith("onnx:"):
        return ONNXNetwork(Path(network.removeprefix("onnx:")).expanduser())
    if network.startswith("timm:"):
        return timm_network(network.removeprefix("timm:"), device)
    known = ", ".join(["fid-inception", *DINOv2._ARCHITECTURES, "timm:NAME", "onnx:FILE"])
    raise InputError(f"there is no feature network '{network}'; choose one of {known}")
