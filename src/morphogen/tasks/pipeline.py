"""A trained model ready to use, with the calling conventions of a diffusers pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from morphogen.core.errors import InputError
from morphogen.core.images import to_pil, with_scale
from morphogen.core.model import Callback, Model
from morphogen.core.model_files import save_model
from morphogen.core.request import PrecisionChoice, SamplingRequest
from morphogen.diffusion.known import Resampling
from morphogen.diffusion.ladder import Ladder
from morphogen.diffusion.projection import Input
from morphogen.models import load_model
from morphogen.tasks.arguments import (
    OutputType,
    StepEndCallback,
    choose_seeds,
    combined,
    convert,
    one_of,
    optional_number,
    real_number,
    whole_number,
)
from morphogen.tasks.batch import InpaintSettings, Job, change, enlarge, fill, in_batches
from morphogen.tasks.generate import generate, label_rows
from morphogen.tasks.hub import push_to_hub
from morphogen.tasks.maps import as_map
from morphogen.tasks.masks import hole_of
from morphogen.tasks.pictures import Picture, as_pictures
from morphogen.tasks.precision import use_precision
from morphogen.tasks.scale import other_scale, rescaled_size
from morphogen.tasks.superresolution import Scheme, find_way


@dataclass(frozen=True)
class PipelineOutput:
    """images: by `output_type` a list of PIL images, uint8 numpy (B, H, W, C), or float torch (B, C, H, W) in [-1, 1];
    of a task that was given images, such as these were, stacked where they are arrays or tensors of one shape.

    seeds: the seed of each image.
    """

    images: object
    seeds: list[int]


class Pipeline:
    """A model and what one does with it. `Pipeline(model)` takes any model; `from_pretrained` finds one.

    precision: what the model computes in; auto is bfloat16 where the processor multiplies in it and float32 elsewhere.
    The model's fast form is used where this machine can run it; where it cannot, that is said once.
    """

    def __init__(self, model: Model, precision: PrecisionChoice = "auto", sampler: str | None = None) -> None:
        if not isinstance(model, Model):
            raise InputError(
                f"the model is a {type(model).__name__}; it should be a model, or use Pipeline.from_pretrained"
            )
        self.model = model.eval()
        self.precision: PrecisionChoice = one_of(precision, "precision", PrecisionChoice)
        self.sampler = sampler
        use_precision(self.model, self.precision)

    @property
    def sampler(self) -> str | None:
        """The sampler of calls that name none; None leaves it to the task. Set it as one sets a scheduler of diffusers:
        `pipeline.sampler = "dpm++"`. Raises InputError for one that the model does not have.
        """
        return self._sampler

    @sampler.setter
    def sampler(self, name: str | None) -> None:
        self._sampler = self._request(name, None).sampler if name is not None else None

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors` into a folder that `from_pretrained` opens.

        Raises InputError where it cannot be written.
        """
        try:
            save_model(self.model, self.model.config_dict(), Path(folder))
        except OSError as error:
            raise InputError(f"{folder} cannot be written: {error.strerror or error}") from None

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Put the model on the Hugging Face hub; see `morphogen.tasks.hub.push_to_hub` for the options."""
        return push_to_hub(self.model, repo_id, **options)

    @classmethod
    def from_pretrained(
        cls,
        reference: str | Path,
        device: str | torch.device = "cpu",
        precision: PrecisionChoice = "auto",
        sampler: str | None = None,
        level: int | None = None,
    ) -> Pipeline:
        """From a run or model folder, the name of a bundled model, or a hub id (`owner/name`).

        level: of a pyramid, paint only the levels up to this one; 0 is the coarsest.
        Raises InputError if there is none, or its files are damaged, inconsistent or of an unsafe kind, or it has no
        such level.
        """
        model = load_model(reference)
        if level is not None:
            if not isinstance(model, Ladder):
                raise InputError(f"level {level}: {reference} is no pyramid and has no levels; leave it out")
            model = model.up_to(level)
        return cls(model.to(device), precision, sampler)

    def to(self, device: str | torch.device) -> Pipeline:
        """Move the model to a device."""
        self.model.to(device)
        use_precision(self.model, self.precision)
        return self

    def __call__(
        self,
        num_images: int | None = None,
        *,
        seeds: int | Iterable[int] | None = None,
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
        callback_on_step_end: StepEndCallback | None = None,
    ) -> PipelineOutput:
        """Generate images.

        num_images: how many, with seeds drawn from `generator`, or at random; 1 by default. seeds: the seed of each
        image instead, or the first one's, which the others follow; a seed gives the same image whatever else is
        computed with it. height, width: in pixels, the model's own by default. num_inference_steps, sampler: see
        `morphogen.diffusion.samplers.SAMPLERS`. batch_size: images computed at once. labels: of a model that was
        trained with them: a name for all images, or for each image a name or several, or float rows (images, K).
        guidance_scale: of classifier-free guidance; 1 is none. nca_steps: NCA steps of an evaluation instead of the
        model's own. callback: told a `StepInfo` after every sampling step. callback_on_step_end: as diffusers calls it,
        with the pipeline, the number of the step, its timestep, and the noisy images as {"latents": ...}; other
        "latents" of their shape that it returns take their place, here and in `vary`.
        Raises InputError for a seed, size, sampler, number of steps, label or guidance that cannot be.
        """
        one_of(output_type, "output_type", OutputType)
        chosen = choose_seeds(num_images, seeds, generator)
        image = self.model.picture
        size = (
            image.height if height is None else whole_number(height, "height"),
            image.width if width is None else whole_number(width, "width"),
        )
        batches = generate(
            self.model,
            chosen,
            size,
            self._request(sampler, num_inference_steps, guidance_scale, nca_steps),
            batch_size=optional_number(batch_size, "batch_size"),
            labels=label_rows(self.model, labels, len(chosen)),
            callback=combined(self, callback, callback_on_step_end),
        )
        images = torch.cat([batch.cpu() for batch in batches])
        return PipelineOutput(convert(images, output_type, image.mpp), chosen)

    def inpaint(
        self,
        image: object,
        mask: object = None,
        *,
        mask_value: int | None = None,
        num_images: int | None = None,
        seeds: int | Iterable[int] | None = None,
        generator: torch.Generator | None = None,
        context: int | None = None,
        resampling: Resampling | None = None,
        num_inference_steps: int | None = None,
        sampler: str | None = None,
        labels: str | Sequence[str] | None = None,
        guidance_scale: float = 1.0,
        batch_size: int = 16,
        callback: Callback | None = None,
        callback_on_step_end: StepEndCallback | None = None,
    ) -> PipelineOutput:
        """Fill holes; all other pixels stay exactly as they are.

        image: a PIL image of any mode; a numpy array uint8 or uint16 (H, W) or (H, W, C); a torch tensor float (C, H,
        W) of the scale [-1, 1]; or a sequence of these. What comes back is of the same kind. mask: a PIL image (white
        is filled), a boolean or integer array, or a boolean tensor, (H, W), one for all images or a sequence of one
        each; without it, pixels that are less than half opaque are filled. mask_value: what to fill instead of white,
        a level of gray or a label of a palette. context, resampling: see
        `morphogen.tasks.inpaint.inpaint`. num_images: predictions an image; their seeds, and all else, as in
        `__call__`; the images come image by image, and for each of them seed by seed. labels: a name or several, which
        all images have. A PIL image of a model of known scale says it in `info["mpp"]`, micrometres a pixel.
        Raises InputError for a model that predicts no noise, for images of another scale than the model's, and for
        images, masks, seeds or settings that cannot be.
        """
        pictures = self._of_own_scale(as_pictures(image))
        masks = list(mask) if isinstance(mask, list | tuple) else [mask] * len(pictures)
        if len(masks) != len(pictures):
            raise InputError(f"there are {len(masks)} masks for {len(pictures)} images")
        holes = [hole_of(picture, given, mask_value) for picture, given in zip(pictures, masks, strict=True)]
        request = self._request(sampler, num_inference_steps, guidance_scale)
        every_step = combined(self, callback, callback_on_step_end)
        settings: InpaintSettings = {"context": context, "resampling": resampling, "request": request}

        def run_batch(jobs: Sequence[Job]) -> list[object]:
            return fill(self.model, jobs, callback=every_step, **settings)

        own = choose_seeds(num_images, seeds, generator)
        return self._run_batches(pictures, holes, own, labels, run_batch, batch_size)

    def upscale(
        self,
        image: object,
        factor: int = 2,
        *,
        num_images: int | None = None,
        seeds: int | Iterable[int] | None = None,
        generator: torch.Generator | None = None,
        scheme: Scheme = "auto",
        mean: int = 1,
        input: Input = "area",
        noise: float | None = None,
        blend: float = 0.02,
        clean: bool = False,
        added_only: bool = False,
        num_inference_steps: int | None = None,
        sampler: str | None = None,
        labels: str | Sequence[str] | None = None,
        guidance_scale: float = 1.0,
        batch_size: int = 16,
        callback: Callback | None = None,
        callback_on_step_end: StepEndCallback | None = None,
    ) -> PipelineOutput:
        """Make images 2 to 8 times as large. Shrunk again they are the given ones, to one of 256 levels.

        scheme: trained, by a level that was told pictures `factor` times as coarse; projection, by any model of pixels;
        published, where the pixels given stay at [::factor, ::factor] (2, 4 or 8); auto, the first that can be. mean,
        input: see `morphogen.tasks.superresolution.superresolve`. noise: the share of all timesteps to start from, by
        default 1 (trained), 0.3 (projection) or 0.9 (published). blend, clean, added_only: of the published scheme, see
        `morphogen.tasks.upscale.upscale`. image, num_images and all else: as in `inpaint`.
        Raises InputError for a model that predicts no noise, and for images, seeds or settings that cannot be.
        """
        request = self._request(sampler, num_inference_steps, guidance_scale)
        every_step = combined(self, callback, callback_on_step_end)
        find_way(self.model, factor, scheme)

        def run_batch(jobs: Sequence[Job]) -> list[object]:
            return enlarge(
                self.model,
                jobs,
                factor,
                scheme=scheme,
                mean=mean,
                input=input,
                noise=noise,
                blend=blend,
                clean=clean,
                added_only=added_only,
                request=request,
                callback=every_step,
            )

        pictures = as_pictures(image)
        own = choose_seeds(num_images, seeds, generator)
        return self._run_batches(pictures, None, own, labels, run_batch, batch_size)

    def vary(
        self,
        image: object,
        strength: float = 0.4,
        *,
        num_images: int | None = None,
        seeds: int | Iterable[int] | None = None,
        generator: torch.Generator | None = None,
        num_inference_steps: int | None = None,
        sampler: str | None = None,
        labels: str | Sequence[str] | None = None,
        guidance_scale: float = 1.0,
        batch_size: int = 16,
        callback: Callback | None = None,
        callback_on_step_end: StepEndCallback | None = None,
    ) -> PipelineOutput:
        """Other images like the given ones: noised to a level and denoised.

        strength: the level, as a share of all timesteps, from 0 (the image itself) to 1 (next to nothing of it). image,
        num_images and all else: as in `inpaint`. An alpha channel stays.
        Raises InputError for a model that predicts no noise, and for images, seeds or settings that cannot be.
        """
        request = self._request(sampler, num_inference_steps, guidance_scale)
        every_step = combined(self, callback, callback_on_step_end)

        def run_batch(jobs: Sequence[Job]) -> list[object]:
            return change(self.model, jobs, real_number(strength, "strength"), request=request, callback=every_step)

        pictures = self._of_own_scale(as_pictures(image))
        own = choose_seeds(num_images, seeds, generator)
        return self._run_batches(pictures, None, own, labels, run_batch, batch_size)

    def paint(
        self,
        map: object,
        *,
        num_images: int | None = None,
        seeds: int | Iterable[int] | None = None,
        generator: torch.Generator | None = None,
        num_inference_steps: int | None = None,
        sampler: str | None = None,
        batch_size: int | None = None,
        labels: str | Sequence[str | Sequence[str]] | Tensor | None = None,
        guidance_scale: float = 1.0,
        nca_steps: int | None = None,
        callback: Callback | None = None,
        callback_on_step_end: StepEndCallback | None = None,
    ) -> PipelineOutput:
        """Images of a map that says which class each pixel is of, by a model that was trained with maps.

        map: a PIL image, an integer array or a tensor, (H, W), of the values (or, (H, W, 3), of the colours) of
        `model.classes`; or a sequence of these. num_images: of each map; all else as in `__call__`. The images, of the
        maps' sizes, come map by map as PIL images.
        Raises InputError for a model without maps, values that are no class of it, and settings that cannot be.
        """
        maps = [as_map(self.model, each) for each in (list(map) if isinstance(map, list | tuple) else [map])]
        own = choose_seeds(num_images, seeds, generator)
        request = self._request(sampler, num_inference_steps, guidance_scale, nca_steps)
        every_step, rows = combined(self, callback, callback_on_step_end), label_rows(self.model, labels, len(own))
        most = optional_number(batch_size, "batch_size")
        images: list[Image.Image] = []
        for each in maps:
            for batch in generate(
                self.model, own, None, request, batch_size=most, labels=rows, callback=every_step, maps=each
            ):
                images += [with_scale(image, self.model.picture.mpp) for image in to_pil(batch)]
        return PipelineOutput(images, own * len(maps))

    def _of_own_scale(self, pictures: list[Picture]) -> list[Picture]:
        """The pictures. Raises InputError where one is known to be of another scale than the model's."""
        own = self.model.picture.mpp
        for picture in pictures:
            other = other_scale(picture.mpp, own)
            if other is not None:
                height, width = rescaled_size(picture.size, *other)
                raise InputError(
                    f"an image has {picture.mpp:g} micrometres a pixel, but this model paints at {own:g}; resize it "
                    f"to {width}x{height} pixels (width x height) and drop image.info['mpp']"
                )
        return pictures

    def _request(
        self, sampler: object, steps: object, guidance_scale: object = 1.0, nca_steps: object = None
    ) -> SamplingRequest:
        """The sampling request of a call's keywords. Raises InputError for what the model does not have."""
        named = sampler if sampler is not None else getattr(self, "_sampler", None)
        if named is not None and not isinstance(named, str):
            raise InputError(f"sampler is a {type(named).__name__}; it should be a name, such as ddim")
        request = SamplingRequest(
            named,
            optional_number(steps, "num_inference_steps"),
            real_number(guidance_scale, "guidance_scale"),
            optional_number(nca_steps, "nca_steps"),
            self.precision,
        )
        self.model.resolve(request)
        return request

    def _run_batches(
        self,
        pictures: list[Picture],
        holes: list[Tensor] | None,
        seeds: list[int],
        labels: str | Sequence[str] | None,
        run_batch: Callable[[Sequence[Job]], list[object]],
        batch_size: int,
    ) -> PipelineOutput:
        row = None
        if labels is not None:
            names = [labels] if isinstance(labels, str) else labels
            found = label_rows(self.model, [names] if isinstance(names, list | tuple) else names, 1)
            row = None if found is None else found[0]
        jobs = [Job(p, seed, holes[i] if holes else None, row) for i, p in enumerate(pictures) for seed in seeds]
        batches = in_batches(jobs, whole_number(batch_size, "batch_size"), lambda job: job.picture.size)
        images: Any = [image for batch in batches for image in run_batch(batch)]
        if all(p.kind == "np" for p in pictures) and len({(i.shape, i.dtype) for i in images}) == 1:
            images = np.stack(images)
        elif all(p.kind == "pt" for p in pictures) and len({i.shape for i in images}) == 1:
            images = torch.stack(images)
        return PipelineOutput(images, seeds * len(pictures))
