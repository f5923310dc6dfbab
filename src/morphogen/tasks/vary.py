"""Other images like a given one: noise it to a level and denoise it (Meng et al., "SDEdit", section 3)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from morphogen.core.keys import Key
from morphogen.core.model import Callback, Model
from morphogen.core.request import SamplingRequest
from morphogen.diffusion.ladder import Ladder
from morphogen.diffusion.request import FROM_IMAGE, resolve
from morphogen.diffusion.sampling import sample
from morphogen.tasks.checks import check_images, check_share, need_painting
from morphogen.tasks.climb import vary_levels


def vary(
    model: Model,
    images: Tensor,
    seeds: Sequence[int],
    strength: float = 0.4,
    *,
    request: SamplingRequest = SamplingRequest(),
    labels: Tensor | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Variations float (B, C, H, W), about [-1, 1], of images of that shape, one for each seed.

    strength: how noisy the images are made, as a share of all timesteps: 0 gives them back as they are, 1 leaves next
    to nothing of them. request: its steps are those of strength 1; a lower one takes its share of them.
    labels: float (B, K), a row an image, of a model that has any.
    Raises InputError for a model that predicts no noise, and for images, seeds or settings that cannot be.
    """
    denoiser = need_painting(model, "varying an image")
    check_share(strength, "strength")
    check_images(model, images, seeds)
    if isinstance(model, Ladder) and strength > 0:
        rows = None if labels is None else labels.to(denoiser.device)
        return vary_levels(model, images.to(denoiser.device), Key.of(seeds), strength, request, rows, callback)
    request = resolve(request, denoiser, FROM_IMAGE)
    height, width = images.shape[-2:]
    size = denoiser.grid_size((height, width))
    if strength == 0:
        return images.to(denoiser.device).clone()
    varied = sample(
        denoiser,
        Key.of(seeds),
        size,
        request,
        labels=None if labels is None else labels.to(denoiser.device),
        image=denoiser.from_pixels(images.to(denoiser.device)),
        strength=strength,
        clip=denoiser.latents is None,
        callback=callback,
    )
    return denoiser.to_pixels(varied)
