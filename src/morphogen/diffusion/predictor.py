"""A model that predicts the noise in a noisy image: its inputs, its prediction, and its files."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from morphogen.core.condition import Classes, ConditionConfig
from morphogen.core.errors import InputError
from morphogen.core.evaluation import Evaluation
from morphogen.core.keys import Key
from morphogen.core.model import ArchitectureConfig, ImageConfig, LabelConfig, LatentConfig, Model, Prediction
from morphogen.core.request import Precision, PrecisionChoice
from morphogen.core.spatial_norm import SpatialNorm
from morphogen.core.validation import validate
from morphogen.diffusion import objective
from morphogen.diffusion.condition import of_map, shrink_map
from morphogen.diffusion.config import DiffusionConfig
from morphogen.diffusion.learned_autoencoder import AutoencoderConfig, LearnedAutoencoder

if TYPE_CHECKING:
    from morphogen.diffusion.latents import Codec


class NoisePredictor(Model):
    """The call of every denoiser, `predictor(x, t, evaluation)`: all that sampling, guidance and tiles know of one."""

    predicts_noise: ClassVar[bool] = True
    learns_variance: ClassVar[bool] = False
    """Whether the model can put out a variance beside the noise."""
    config_class: ClassVar[type[ArchitectureConfig]]
    """The settings under `architecture` in `config.json`."""
    autoencoder: LearnedAutoencoder | None
    """The autoencoder of its latents where Morphogen has learnt it, which then is a part of the model."""

    def __init__(
        self,
        image: ImageConfig,
        architecture: ArchitectureConfig,
        diffusion: DiffusionConfig,
        labels: LabelConfig = LabelConfig(),  # noqa: B008 (frozen)
        condition_channels: int = 0,
    ) -> None:
        super().__init__()
        self.register_module("autoencoder", None)
        architecture.check(image)
        if diffusion.variance == "learned" and not self.learns_variance:
            raise ValueError(f"diffusion.variance is learned, which {self.family} cannot; set it to fixed")
        self.image, self.architecture, self.diffusion, self.labels = image, architecture, diffusion, labels
        self.condition_channels = condition_channels

    _opened: tuple[LatentConfig, Codec] | None = None
    autocast: bool = False
    """Whether inference runs under bfloat16 autocast."""
    carries_memory: ClassVar[bool] = False
    """Whether an evaluation leaves a memory for the next one."""
    condition_channels: int
    """Channels of the condition that each pixel has beside the noisy image; 0 for a model without a condition."""
    condition: ConditionConfig | None = None
    """What the condition is; `config.json` holds it under "condition"."""

    def spatial_norms(self) -> list[SpatialNorm]:
        """The normalisations over the whole image whose statistics can be replaced, in the order of their use."""
        return []

    @abstractmethod
    def evaluate(self, x: Tensor, t: Tensor, evaluation: Evaluation) -> Prediction:
        """The network's own output for its input x (B, C, H, W), in `Prediction.noise`: what `diffusion.output` names.

        t: (B,), or (1,) where all are the same.
        """

    def forward(self, x: Tensor, t: Tensor, evaluation: Evaluation | None = None) -> Prediction:
        """Predict the noise in x.

        x: float (B, C, H, W), a noisy image of the scale [-1, 1]. t: float (B,), timesteps in 0..T-1, fractions
        allowed. evaluation: by default of the seeds 0 to B-1, and nothing else.

        Raises InputError where the size is below the model's minimum, the channels are not the model's, or nca_steps
        is below 1 or given to a model that is no automaton, and for labels or a condition that are not the model's.
        """
        evaluation = evaluation or Evaluation(Key.of(range(len(x))))
        if evaluation.condition is None and self.condition is not None and not self.condition.has_picture:
            evaluation = replace(evaluation, condition=of_map(self.condition, None, x))
        self._check(x, evaluation)
        shared = not self.training and bool((t == t[:1]).all())
        with torch.autocast(x.device.type, torch.bfloat16, self.autocast) if self.autocast else nullcontext():
            seen = objective.network_input(self.diffusion, x, t)
            output = self.evaluate(seen, t[:1] if shared else t, evaluation)
        if output.variance is not None:
            output = output._replace(variance=output.variance.float())
        return output._replace(noise=objective.as_noise(self.diffusion, output.noise.float(), x, t))

    def _check(self, x: Tensor, evaluation: Evaluation) -> None:
        if evaluation.labels is not None:
            self.check_labels(evaluation.labels, len(x))
        self._check_condition(x, evaluation.condition)
        if x.shape[1] != self.image.channels:
            raise InputError(f"the images have {x.shape[1]} channels, but this model's have {self.image.channels}")
        self.check_nca_steps(evaluation.nca_steps)
        if min(x.shape[-2:]) < self.minimum_size:
            raise InputError(
                f"the size {x.shape[-2]}x{x.shape[-1]} is too small: {self.family} needs at least "
                f"{self.minimum_size} on each side"
            )

    def _check_condition(self, x: Tensor, condition: Tensor | None) -> None:
        if not self.condition_channels and condition is not None:
            raise InputError(f"this {self.family} was trained without a condition; leave it out")
        wanted = (len(x), self.condition_channels, *x.shape[-2:])
        if self.condition_channels and (condition is None or condition.shape != wanted):
            given = "there is none" if condition is None else f"it has the shape {tuple(condition.shape)}"
            raise InputError(f"this {self.family} was trained with a condition of the shape {wanted}; {given}")

    def with_condition(self, x: Tensor, evaluation: Evaluation) -> Tensor:
        """The noisy images (B, C, H, W) and the condition, where there is one, (B, C + K, H, W)."""
        return x if evaluation.condition is None else torch.cat([x, evaluation.condition.to(x)], dim=1)

    def parameter_count(self) -> int:
        return sum(p.numel() for name, p in self.named_parameters() if not name.startswith("autoencoder."))

    def autoencoder_parameters(self) -> int:
        return 0 if self.autoencoder is None else self.autoencoder.parameter_count()

    def check_labels(self, labels: Tensor, count: int) -> None:
        """Raise InputError unless labels are rows (count, K) of this model's labels."""
        if not self.labels.names:
            raise InputError(f"this {self.family} takes no labels")
        if labels.shape != (count, len(self.labels)):
            raise InputError(
                f"the labels have the shape {tuple(labels.shape)}; it should be {(count, len(self.labels))}: a row for "
                f"each image, and a column for each of {', '.join(self.labels.names)}"
            )

    def check_nca_steps(self, nca_steps: int | None) -> None:
        """Raise InputError for a number below 1, and for any of a model that is no automaton."""
        if nca_steps is not None and not hasattr(self.architecture, "nca_steps"):
            raise InputError(f"{self.family} has no NCA steps; leave nca_steps out")
        if nca_steps is not None and nca_steps < 1:
            raise InputError(f"nca_steps is {nca_steps}; it should be at least 1")

    @property
    def classes(self) -> Classes:
        return {} if self.condition is None else self.condition.classes

    @property
    def null_label(self) -> float:
        """The value in a row of a label that is not known."""
        return -1.0

    def compute_in(self, precision: PrecisionChoice | None = "auto") -> str | None:
        on_gpu = self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        self.autocast = precision == "bfloat16" or (precision == "auto" and on_gpu)
        return None

    @property
    def precision(self) -> Precision:
        return "bfloat16" if self.autocast else "float32"

    @property
    def context(self) -> int | None:
        """How many cells around the ones in question should run with them: in an automaton as many as it has steps,
        since news travels by one cell a step; None for all.
        """
        return getattr(self.architecture, "nca_steps", None)

    def time_fraction(self, t: Tensor) -> Tensor:
        """t / T as (B, 1, 1, 1)."""
        return (t / self.diffusion.timesteps).view(-1, 1, 1, 1)

    def grid_size(self, size: tuple[int, int] | None = None) -> tuple[int, int]:
        """Height and width of the grid that makes images of a size in pixels, by default the model's own.

        Raises InputError where latents cannot be of that size.
        """
        if size is None:
            return self.image.height, self.image.width
        factor = 1 if self.latents is None else self.latents.factor
        if size[0] % factor or size[1] % factor:
            raise InputError(f"the size {size[0]}x{size[1]} is not divisible by {factor}, the autoencoder's factor")
        return size[0] // factor, size[1] // factor

    def grid_maps(self, maps: Tensor) -> Tensor:
        """Maps of images in pixels uint8 (B, H, W) as the model is told them."""
        return maps if self.latents is None else shrink_map(maps, self.latents.factor)

    def from_pixels(self, images: Tensor) -> Tensor:
        """As `Model.from_pixels`. Raises InputError where the autoencoder is not there any more, or is another one."""
        return images if self.latents is None else self._codec().encode(images)

    def to_pixels(self, images: Tensor) -> Tensor:
        """As `Model.to_pixels`. Raises InputError likewise."""
        return images if self.latents is None else self._codec().decode(images)

    def decode_part(
        self,
        latents: Tensor,
        begin: tuple[int, int],
        canvas: tuple[int, int],
        rows: tuple[int, int],
        columns: tuple[int, int],
        block: int | None = None,
    ) -> Tensor:
        """As `OwnAutoencoder.decode_part`, of latents as the model has them."""
        own = {} if block is None else {"block": block}
        return self._codec().decode_part(latents, begin, canvas, rows, columns, **own)

    def decoding_reads(self, cells: tuple[int, int], length: int, block: int | None = None) -> tuple[int, int]:
        """As `OwnAutoencoder.reads`."""
        return self._codec().own.reads(cells, length, **({} if block is None else {"block": block}))

    def _codec(self) -> Codec:
        from morphogen.diffusion.latents import Codec

        assert self.latents is not None
        if self.autoencoder is not None:
            return Codec(self.latents, self.autoencoder)
        if self._opened is None or self._opened[0] != self.latents:
            self._opened = self.latents, Codec(self.latents)
        return self._opened[1]

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str) -> Self:
        image, architecture = cls.read_config(config, where, "diffusion", "labels", "latents", "condition")
        diffusion = validate(DiffusionConfig, config.get("diffusion", {}), f"{where}: diffusion")
        labels = validate(LabelConfig, config.get("labels", {}), f"{where}: labels")
        if labels.names and not cls.takes_labels:
            raise InputError(f"{where}: {cls.family} takes no labels")
        latents = validate(LatentConfig, config["latents"], f"{where}: latents") if "latents" in config else None
        told = validate(ConditionConfig, config["condition"], f"{where}: condition") if "condition" in config else None
        try:
            if told is not None:
                told.check(image)
            more: dict[str, Any] = {"condition_channels": 0 if told is None else told.channels}
            if cls.takes_labels:
                more["labels"] = labels
            model = cls(image, architecture, diffusion, **more)
        except ValueError as error:
            of = f" (the latents of images {latents.factor} times as large)" if latents else ""
            raise InputError(f"{where}: {error}{of}") from None
        model.latents, model.condition = latents, told
        if latents is not None and latents.learned is not None:
            model.autoencoder = _own_autoencoder(latents, image, f"{where}: latents")
        return model

    def config_dict(self) -> dict[str, Any]:
        config = {**super().config_dict(), "diffusion": self.diffusion.model_dump(mode="json")}
        if self.labels.names:
            config["labels"] = self.labels.model_dump(mode="json")
        if self.latents is not None:
            config["latents"] = self.latents.settings()
        if self.condition is not None:
            config["condition"] = self.condition.settings()
        return config


def _own_autoencoder(latents: LatentConfig, image: ImageConfig, where: str) -> LearnedAutoencoder:
    """The autoencoder that a configuration tells of, with fresh weights. Raises InputError where it makes other latents
    than the model's.
    """
    settings = validate(AutoencoderConfig, latents.learned or {}, f"{where}: learned")
    model = LearnedAutoencoder(image.scaled(latents.factor, latents.pixels), settings)
    if (settings.factor, model.channels) != (latents.factor, image.channels):
        raise InputError(
            f"{where}: the autoencoder makes {model.channels} channels by the factor {settings.factor}, but the model "
            f"has {image.channels} by the factor {latents.factor}"
        )
    return model.eval().requires_grad_(False)
