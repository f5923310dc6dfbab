"""Known content of an image while the rest of it is sampled, and going back in time to fit the rest to it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Known:
    """Content put into the noisy images before every evaluation, at the noise level of its timestep.

    images: float (B, C, H, W) of the scale [-1, 1]. share: float (B, 1, H, W) in [0, 1], how much of a noisy pixel it
    replaces: 1 where the pixel is known, 0 where it is free, and between to pull it gently. clean: content of a share
    below 1 enters without noise.
    """

    images: Tensor
    share: Tensor
    clean: bool = False

    def put(self, x: Tensor, alpha: float, sigma: float, noise: Tensor) -> Tensor:
        """Noisy images x (B, C, H, W) = alpha * image + sigma * noise with the content put in."""
        noisy = alpha * self.images + sigma * noise
        entering = torch.where(self.share < 1, self.images, noisy) if self.clean else noisy
        return torch.lerp(x, entering, self.share.expand_as(x))


@dataclass(frozen=True)
class Resampling:
    """Going back and forth in time, so that what is sampled comes to fit what is known (Lugmayr et al., "RePaint:
    Inpainting using denoising diffusion probabilistic models", section 4.2; the values are theirs).

    jump: how many sampling steps back. times: RePaint repeats, how often each `jump` steps are sampled.
    """

    jump: int = 10
    times: int = 10

    def visits(self, count: int) -> list[int]:
        """The numbers of the steps to take, of `count` from the noisiest; where one is not above the last, noise is
        added until there.
        """
        again = dict.fromkeys(range(0, count - self.jump, self.jump), self.times - 1)
        visits: list[int] = []
        left = count
        while left:
            visits.append(count - left)
            left -= 1
            if again.get(left - 1, 0) > 0:
                again[left - 1] -= 1
                left += self.jump
        return visits
