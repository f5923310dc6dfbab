"""The interface of a feature network: images in, numbers out."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F


class FeatureNetwork(ABC):
    """Turns images into features.

    name: as the user typed it, shortened. identity: a hash of the weights and the preprocessing, under which features
    are kept; None where they cannot be.
    """

    name: str
    identity: str | None
    is_fid: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, images: Tensor) -> NDArray[np.float32]:
        """Features float32 (B, D) of RGB images uint8 (B, 3, H, W), all of one size."""

    @property
    def frechet_label(self) -> str:
        """The name of the Fréchet distance of these features."""
        return "FID" if self.is_fid else f"FD ({self.name})"

    @property
    def kernel_label(self) -> str:
        """The name of the kernel distance of these features."""
        return "KID" if self.is_fid else f"KD ({self.name})"


def identify(*parts: str) -> str:
    """A hash over strings, for identities."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 images (B, 3, H, W) as floats in [0, 1] of another size: bicubic, averaging where it shrinks."""
    x = images.float() / 255
    if x.shape[-2:] != size:
        x = F.interpolate(x, size=size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    return x
