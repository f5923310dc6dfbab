"""A trained model ready to use, with the calling conventions of a diffusers pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from morphogen.automata.fused.compiler import native
from morphogen.core.errors import InputError
from morphogen.core.images import to_bytes, to_pil
from morphogen.core.model import Callback, Model
from morphogen.core.notices import say_once
from morphogen.core.request import PrecisionChoice, SamplingRequest
from morphogen.diffusion.known import Resampling
from morphogen.models import load_model
from morphogen.tasks.batch import Job, change, enlarge, fill, in_batches, transparent
from morphogen.tasks.generate import generate, label_rows
from morphogen.tasks.masks import as_mask
from morphogen.tasks.pictures import Picture, as_picture

OutputType = Literal["pil", "np", "pt"]


@dataclass(frozen=True)
class PipelineOutput:
    """images: by `output_type` a list of PIL images, uint8 numpy (B, H, W, C), or float torch (B, C, H, W) in [-1, 1];
    of a task that was given images, such as these were, stacked where they are arrays or tensors of one shape.

    seeds: the seed of each image.
    """

    images: Any
    seeds: list[int]


class Pipeline:
    """A model and what one does with it. `Pipeline(model)` takes any model; `from_pretrained` finds one.

    precision: what the model computes in; auto is bfloat16 where the processor multiplies in it and float32 elsewhere.
    The model's fast form is used where this machine can run it; where it cannot, that is said once.
    """

    def __init__(self, model: Model, precision: PrecisionChoice = "auto") -> None:
        self.model = model.eval()
        self.precision = SamplingRequest(precision=precision).precision
        use_precision(self.model, self.precision)

    @classmethod
    def from_pretrained(
        cls, reference: str | Path, device: str | torch.device = "cpu", precision: PrecisionChoice = "auto"
    ) -> Pipeline:
        """From a run or model folder, the name of a bundled model, or a hub id (`owner/name`).

        Raises InputError where there is none, or its files are damaged, inconsistent or of an unsafe kind.
        """
        return cls(load_model(reference).to(device), precision)

    def to(self, device: str | torch.device) -> Pipeline:
        """Move the model to a device."""
        self.model.to(device)
        use_precision(self.model, self.precision)
        return self

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
        labels: str | Sequence[str | Sequence[str]] | Tensor | None = None,
        guidance_scale: float = 1.0,
        nca_steps: int | None = None,
        output_type: OutputType = "pil",
        callback: Callback | None = None,
    ) -> PipelineOutput:
        """Generate images.

        num_images: how many, with seeds drawn from `generator`, or at random; 1 by default. seeds: the seed of each
        image instead; a seed gives the same image whatever else is computed with it. height, width: in pixels, the
        model's own by default. num_inference_steps, sampler: see `morphogen.diffusion.samplers.SAMPLERS`.
        batch_size: images computed at once. labels: of a model that was trained with them: a name for all images, or
        for each image a name or several, or float rows (images, K). guidance_scale: of classifier-free guidance; 1 is
        none. nca_steps: NCA steps of an evaluation instead of the model's own. callback: told after every sampling
        step.
        Raises InputError for a seed, size, sampler, number of steps, label or guidance that cannot be.
        """
        if output_type not in ("pil", "np", "pt"):
            raise InputError(f"output_type is '{output_type}'; it should be pil, np or pt")
        chosen = _choose_seeds(num_images, seeds, generator)
        image = self.model.picture
        size = (image.height if height is None else height, image.width if width is None else width)
        batches = generate(
            self.model,
            chosen,
            size,
            SamplingRequest(sampler, num_inference_steps, guidance_scale, nca_steps, self.precision),
            batch_size=batch_size,
            labels=label_rows(self.model, labels, len(chosen)),
            callback=callback,
        )
        images = torch.cat([batch.cpu() for batch in batches])
        return PipelineOutput(_convert(images, output_type), chosen)

    def inpaint(
        self,
        image: Any,
        mask: Any = None,
        *,
        mask_value: int | None = None,
        num_images: int | None = None,
        seeds: Iterable[int] | None = None,
        generator: torch.Generator | None = None,
        context: int | None = None,
        resampling: Resampling | None = None,
        num_inference_steps: int | None = None,
        sampler: str | None = None,
        batch_size: int = 16,
        callback: Callback | None = None,
    ) -> PipelineOutput:
        """Fill holes; all other pixels stay exactly as they are.

        image: a PIL image of any mode; a numpy array uint8 or uint16 (H, W) or (H, W, C); a torch tensor float (C, H,
        W) of the scale [-1, 1]; or a sequence of these. What comes back is of the same kind. mask: a PIL image (white
        is filled), a boolean or integer array, or a boolean tensor, (H, W), one for all images or a sequence of one
        each; without it, pixels that are less than half opaque are filled. mask_value: what to fill instead of white,
        a level of gray or a label of a palette. context, resampling: see
        `morphogen.tasks.inpaint.inpaint`. num_images: predictions an image; their seeds, and all else, as in
        `__call__`; the images come image by image, and for each of them seed by seed.
        Raises InputError for a model that predicts no noise, and for images, masks, seeds or settings that cannot be.
        """
        pictures = _pictures(image)
        masks = list(mask) if isinstance(mask, list | tuple) else [mask] * len(pictures)
        if len(masks) != len(pictures):
            raise InputError(f"there are {len(masks)} masks for {len(pictures)} images")
        holes = [_hole(picture, given, mask_value) for picture, given in zip(pictures, masks, strict=True)]
        request = SamplingRequest(sampler, num_inference_steps, precision=self.precision)
        settings = {"context": context, "resampling": resampling, "request": request}

        def paint(jobs: Sequence[Job]) -> list[Any]:
            return fill(self.model, jobs, callback=callback, **settings)

        return _paint(pictures, holes, _choose_seeds(num_images, seeds, generator), paint, batch_size)

    def upscale(
        self,
        image: Any,
        factor: int = 2,
        *,
        num_images: int | None = None,
        seeds: Iterable[int] | None = None,
        generator: torch.Generator | None = None,
        noise: float = 0.9,
        blend: float = 0.02,
        clean: bool = False,
        added_only: bool = False,
        num_inference_steps: int | None = None,
        sampler: str | None = None,
        batch_size: int = 16,
        callback: Callback | None = None,
    ) -> PipelineOutput:
        """Make images 2, 4 or 8 times as large; the pixels given are exactly at [::factor, ::factor].

        image, num_images and all else: as in `inpaint`. noise, blend, clean, added_only: see
        `morphogen.tasks.upscale.upscale`.
        Raises InputError for a model that predicts no noise, and for images, seeds or settings that cannot be.
        """
        request = SamplingRequest(sampler, num_inference_steps, precision=self.precision)
        settings = {"noise": noise, "blend": blend, "clean": clean, "added_only": added_only, "request": request}

        def paint(jobs: Sequence[Job]) -> list[Any]:
            return enlarge(self.model, jobs, factor, callback=callback, **settings)

        pictures = _pictures(image)
        return _paint(pictures, None, _choose_seeds(num_images, seeds, generator), paint, batch_size)

    def vary(
        self,
        image: Any,
        strength: float = 0.4,
        *,
        num_images: int | None = None,
        seeds: Iterable[int] | None = None,
        generator: torch.Generator | None = None,
        num_inference_steps: int | None = None,
        sampler: str | None = None,
        batch_size: int = 16,
        callback: Callback | None = None,
    ) -> PipelineOutput:
        """Other images like the given ones: noised to a level and denoised.

        strength: the level, as a share of all timesteps, from 0 (the image itself) to 1 (next to nothing of it). image,
        num_images and all else: as in `inpaint`. An alpha channel stays.
        Raises InputError for a model that predicts no noise, and for images, seeds or settings that cannot be.
        """
        request = SamplingRequest(sampler, num_inference_steps, precision=self.precision)

        def paint(jobs: Sequence[Job]) -> list[Any]:
            return change(self.model, jobs, strength, request=request, callback=callback)

        pictures = _pictures(image)
        return _paint(pictures, None, _choose_seeds(num_images, seeds, generator), paint, batch_size)


def _choose_seeds(num_images: int | None, seeds: Iterable[int] | None, generator: torch.Generator | None) -> list[int]:
    chosen = list(seeds) if seeds is not None else draw_seeds(1 if num_images is None else num_images, generator)
    if num_images is not None and len(chosen) != num_images:
        raise InputError(f"num_images is {num_images}, but there are {len(chosen)} seeds")
    if not chosen:
        raise InputError("there are no seeds; give at least one")
    return chosen


def _pictures(image: Any) -> list[Picture]:
    images = list(image) if isinstance(image, list | tuple) else [image]
    if not images:
        raise InputError("there are no images; give at least one")
    return [as_picture(given, f"image {i}" if len(images) > 1 else "the image") for i, given in enumerate(images)]


def _hole(picture: Picture, mask: Any, value: int | None) -> Tensor:
    if mask is not None:
        return as_mask(mask, picture.size, value=value)
    hole = transparent(picture)
    if hole is None:
        raise InputError("there is no mask, and the image has no transparent pixels; give one of the two")
    return hole


def _paint(
    pictures: list[Picture],
    holes: list[Tensor] | None,
    seeds: list[int],
    paint: Callable[[Sequence[Job]], list[Any]],
    batch_size: int,
) -> PipelineOutput:
    jobs = [Job(p, seed, holes[i] if holes else None) for i, p in enumerate(pictures) for seed in seeds]
    batches = in_batches(jobs, batch_size, lambda job: job.picture.size)
    images: Any = [image for batch in batches for image in paint(batch)]
    if all(p.kind == "np" for p in pictures) and len({(i.shape, i.dtype) for i in images}) == 1:
        images = np.stack(images)
    elif all(p.kind == "pt" for p in pictures) and len({i.shape for i in images}) == 1:
        images = torch.stack(images)
    return PipelineOutput(images, seeds * len(pictures))


def use_precision(model: Model, precision: PrecisionChoice) -> None:
    """Compute in a precision, by the fast kernel from now on; say once where there is none and what that changes."""
    reason = model.compute_in(precision)
    if reason is None:
        return
    note = f"note: sampling without the fast kernel: {reason}"
    if precision == "auto" and model.precision == "float32" and model.device.type == "cpu" and native().bfloat16:
        note += (
            "; it computes in float32 then instead of bfloat16, so a seed gives another picture than with the kernel "
            "(--precision float32 gives the same with and without)"
        )
    say_once(note)


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
