"""A trained model ready to use, with the calling conventions of a diffusers pipeline."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from morphogen.core.errors import InputError
from morphogen.core.images import to_bytes, to_pil
from morphogen.core.model import Callback, Model, Wanted
from morphogen.core.notices import say_once
from morphogen.models import load_model
from morphogen.tasks.generate import generate

OutputType = Literal["pil", "np", "pt"]


@dataclass(frozen=True)
class PipelineOutput:
    """images: by `output_type` a list of PIL images, uint8 numpy (B, H, W, C), or float torch (B, C, H, W) in [-1, 1].

    seeds: the seed of each image.
    """

    images: Any
    seeds: list[int]


class Pipeline:
    """A model and what one does with it. `Pipeline(model)` takes any model; `from_pretrained` finds one.

    precision: what the model computes in; auto is bfloat16 where the processor multiplies in it and float32 elsewhere.
    The model's fast form is used where this machine can run it; where it cannot, that is said once.
    """

    def __init__(self, model: Model, precision: Wanted = "auto") -> None:
        if precision not in get_args(Wanted):
            raise InputError(f"precision is '{precision}'; it should be one of {', '.join(get_args(Wanted))}")
        self.model = model.eval()
        self.precision: Wanted = precision
        self._accelerate()

    @classmethod
    def from_pretrained(
        cls, reference: str | Path, device: str | torch.device = "cpu", precision: Wanted = "auto"
    ) -> Pipeline:
        """From a run or model folder, the name of a bundled model, or a hub id (`owner/name`).

        Raises InputError where there is none, or its files are damaged, inconsistent or of an unsafe kind.
        """
        return cls(load_model(reference).to(device), precision)

    def to(self, device: str | torch.device) -> Pipeline:
        """Move the model to a device."""
        self.model.to(device)
        self._accelerate()
        return self

    def _accelerate(self) -> None:
        reason = self.model.accelerate(self.precision)
        if reason is not None:
            say_once(f"note: sampling without the fast kernel: {reason}")

    def __call__(
        self,
        num_images: int | None = None,
        *,
        seeds: Iterable[int] | None = None,
        generator: torch.Generator | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        sampler: str | None = None,
        batch_size: int | None = None,
        output_type: OutputType = "pil",
        callback: Callback | None = None,
    ) -> PipelineOutput:
        """Generate images.

        num_images: how many, with seeds drawn from `generator`, or at random; 1 by default. seeds: the seed of each
        image instead; a seed gives the same image whatever else is computed with it. height, width: in pixels, the
        model's own by default. num_inference_steps, sampler: see `morphogen.diffusion.samplers.SAMPLERS`.
        batch_size: images computed at once. callback: told after every sampling step.
        Raises InputError for a seed, size, sampler or number of steps that cannot be.
        """
        if output_type not in ("pil", "np", "pt"):
            raise InputError(f"output_type is '{output_type}'; it should be pil, np or pt")
        chosen = list(seeds) if seeds is not None else draw_seeds(1 if num_images is None else num_images, generator)
        if num_images is not None and len(chosen) != num_images:
            raise InputError(f"num_images is {num_images}, but there are {len(chosen)} seeds")
        if not chosen:
            raise InputError("there are no seeds; give at least one")
        image = self.model.image
        size = (image.height if height is None else height, image.width if width is None else width)
        batches = generate(
            self.model,
            chosen,
            size,
            sampler=sampler,
            steps=num_inference_steps,
            batch_size=batch_size,
            callback=callback,
        )
        images = torch.cat([batch.cpu() for batch in batches])
        return PipelineOutput(_convert(images, output_type), chosen)


def draw_seeds(count: int, generator: torch.Generator | None = None) -> list[int]:
    """Seeds from a torch generator, or new ones from the system where there is none."""
    if count < 1:
        raise InputError(f"the number of images is {count}; it should be at least 1")
    if generator is None:
        generator = torch.Generator()
        generator.seed()
    device = generator.device
    return [int(s) for s in torch.randint(2**31, (count,), generator=generator, device=device)]


def _convert(images: Tensor, output_type: OutputType) -> list[Image.Image] | np.ndarray | Tensor:
    match output_type:
        case "pil":
            return to_pil(images)
        case "np":
            return to_bytes(images)
        case "pt":
            return images.clamp(-1, 1)
