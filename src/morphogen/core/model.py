"""The contract of every model: what training, sampling, tasks and the command line may rely on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, Self

import torch
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor, nn

from morphogen.core.errors import InputError
from morphogen.core.files import read_json
from morphogen.core.keys import Key
from morphogen.core.model_files import CONFIG_FILE, WEIGHTS_FILE, load_weights, save_model, without_header
from morphogen.core.request import Precision, PrecisionChoice, SamplingRequest
from morphogen.core.validation import table, validate


class ImageConfig(BaseModel):
    """The images a model was made for: height and width in pixels, the number of channels (3 RGB, 1 gray), and how many
    micrometres a pixel covers, where that is known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    height: int = Field(64, ge=2, le=16384)
    width: int = Field(64, ge=2, le=16384)
    channels: int = Field(3, ge=1, le=64)
    mpp: float | None = Field(None, gt=0, le=1e6)

    def scaled(self, factor: float, channels: int) -> ImageConfig:
        """The same images with `factor` times as many pixels a side, in other channels."""
        return ImageConfig(
            height=round(self.height * factor),
            width=round(self.width * factor),
            channels=channels,
            mpp=None if self.mpp is None else self.mpp / factor,
        )

    def settings(self) -> dict[str, object]:
        """Their table in `config.json`, without what is not known."""
        return self.model_dump(mode="json", exclude_none=True)


class LabelConfig(BaseModel):
    """The labels a model was trained with, in the order of the columns of its rows; none where it takes no labels.

    exclusive: an image has exactly one of them (classes); otherwise any number (a multi-label table).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    names: tuple[str, ...] = ()
    exclusive: bool = True

    @field_validator("names")
    @classmethod
    def _are_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not name.strip():
                raise ValueError("a label's name is empty")
            if names.count(name) > 1:
                raise ValueError(f"the label '{name}' is named twice")
        return names

    def __len__(self) -> int:
        return len(self.names)

    def row(self, names: Sequence[str]) -> Tensor:
        """The row float (K,) of an image with these labels: 1 for each of them, 0 elsewhere.

        Raises InputError, listing the labels there are, for an unknown one, and for several of exclusive ones.
        """
        row = torch.zeros(len(self))
        for name in names:
            if name not in self.names:
                known = f"known are {', '.join(self.names)}" if self.names else "this model takes no labels"
                raise InputError(f"there is no label '{name}'; {known}")
            row[self.names.index(name)] = 1.0
        if self.exclusive and len(set(names)) > 1:
            raise InputError(f"an image has one of the labels {', '.join(self.names)}, not {' and '.join(names)}")
        return row


class LatentConfig(BaseModel):
    """The latents that a model works in instead of pixels.

    autoencoder: a folder of diffusers, a hub id, onnx:ENCODER,DECODER, or one of our own. sha256: of its weights.
    factor: pixels a side of a latent cell. pixels: channels of the images. shift, scale: of each latent channel; what
    the model sees is (latent - shift) * scale. learned: the settings of an autoencoder of our own, whose weights lie
    among the model's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    autoencoder: str = Field(min_length=1)
    sha256: str
    factor: int = Field(ge=1, le=256)
    pixels: int = Field(3, ge=1, le=64)
    shift: tuple[float, ...]
    scale: tuple[Annotated[float, Field(gt=0)], ...]
    learned: dict[str, object] | None = None

    def settings(self) -> dict[str, object]:
        """What `config.json` says of them: what is known."""
        return self.model_dump(mode="json", exclude_none=True)


class ArchitectureConfig(BaseModel):
    """Base of every model's own settings; a subclass lists them with their ranges."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def check(self, image: ImageConfig) -> None:
        """Raise ValueError where these settings cannot work with such images."""


class Batch(NamedTuple):
    """Training images float (B, C, H, W) on the scale [-1, 1], their labels float (B, K) or None, and their maps uint8
    (B, H, W), in pixels, or None.
    """

    images: Tensor
    labels: Tensor | None = None
    maps: Tensor | None = None


class Prediction(NamedTuple):
    """A denoiser's prediction for a noisy image."""

    noise: Tensor
    """Predicted noise (B, C, H, W), like the input; a model trained on v has converted it."""
    variance: Tensor | None = None
    """Learned log-variance interpolation (B, C, H, W), or None."""
    memory: Tensor | None = None
    """State that may be carried to the next evaluation, or None."""


@dataclass(frozen=True)
class StepInfo:
    """The argument of the `callback` of `generate`, after each sampling step."""

    step: int
    """Steps done, from 1 to `steps`."""
    steps: int
    """Steps in all."""
    images: Tensor
    """The images as they are now, float (B, C, H, W), noise included."""
    clean: Tensor
    """The clean images that the model predicts now, float (B, C, H, W), about [-1, 1]."""
    timestep: int | None = None
    """The diffusion timestep that the step began at; None of models without any."""


Callback = Callable[[StepInfo], Tensor | None]
"""Told after every step. Where nothing is known beforehand (`sample`, `vary`), images of the same shape that it returns
take the place of the step's.
"""


class Model(nn.Module, PyTorchModelHubMixin, ABC):
    """A generative image model, a plain `nn.Module` that can be saved, loaded and pushed to the hub.

    A subclass takes its whole configuration in the constructor and builds itself.
    """

    families: ClassVar[dict[str, type[Model]]] = {}
    """The families that have been imported, by their names; `morphogen.models` knows all."""
    family: ClassVar[str]
    """The name under which files and the command line know this kind of model."""
    predicts_noise: ClassVar[bool] = False
    """Whether the model is a denoiser, which inpainting, upscaling and varying need."""

    takes_labels: ClassVar[bool] = False
    """Whether models of this family can be trained with labels."""

    config_class: ClassVar[type[ArchitectureConfig]]
    """What `architecture` is, for models that are built from it and from `image`."""
    architecture: ArchitectureConfig
    image: ImageConfig
    labels: LabelConfig = LabelConfig()
    """The labels this model was trained with, if any; `config.json` holds them under "labels"."""
    latents: LatentConfig | None = None
    """The latents that `image` is about, or None for a model of pixels; `config.json` holds them under "latents"."""
    recompute: bool = False
    """Whether the backward pass computes activations again instead of keeping them."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "family" in cls.__dict__:
            Model.families[cls.family] = cls

    @classmethod
    def from_config(cls, config: Mapping[str, object], where: str) -> Self:
        """A model with fresh weights from what `config.json` holds.

        where: named in errors. Raises InputError for an unknown setting, or one out of range.
        """
        image, architecture = cls.read_config(config, where)
        build: Any = cls
        try:
            model: Self = build(image, architecture)
        except ValueError as error:
            raise InputError(f"{where}: {error}") from None
        return model

    @classmethod
    def read_config(cls, config: Mapping[str, object], where: str, *more: str) -> tuple[ImageConfig, Any]:
        """The image and the architecture in what `config.json` holds. more: the tables that it may have beside them.

        Raises InputError as `from_config` does.
        """
        table(config, where, ("family", "image", "architecture", *more))
        image = validate(ImageConfig, config.get("image", {}), f"{where}: image")
        return image, validate(cls.config_class, config.get("architecture", {}), f"{where}: architecture")

    def config_dict(self) -> dict[str, object]:
        """Everything needed to build this model again, as JSON types: what `config.json` holds."""
        architecture = self.architecture.model_dump(mode="json")
        return {"family": self.family, "image": self.image.settings(), "architecture": architecture}

    @abstractmethod
    def training_loss(self, batch: Batch, key: Key) -> Tensor:
        """The loss of a batch, a mean over its images, as a tensor without dimensions.

        The key has one seed an image; noise, timesteps and fire masks follow from it alone.
        """

    @abstractmethod
    def generate(
        self,
        key: Key,
        size: tuple[int, int] | None = None,
        request: SamplingRequest = SamplingRequest(),
        labels: Tensor | None = None,
        callback: Callback | None = None,
        maps: Tensor | None = None,
    ) -> Tensor:
        """Images float (B, C, height, width), about [-1, 1], one for each seed of the key.

        request: how to sample. labels: float (B, K), a row an image, where the model has labels. maps: uint8 (B,
        height, width), the class of each pixel, where the model paints from maps.
        """

    @abstractmethod
    def resolve(self, request: SamplingRequest) -> SamplingRequest:
        """The request that `generate` will follow: with sampler and steps filled in where the user named none.

        Raises InputError for what this model cannot do.
        """

    @property
    @abstractmethod
    def minimum_size(self) -> int:
        """The smallest height and width that the model can work at: of its images, which may be latents."""

    @property
    def classes(self) -> Mapping[str, str | None]:
        """The classes of the maps that the model can paint from, by the values of their pixels; empty for none."""
        return {}

    def check_maps(self, maps: Tensor, count: int, size: tuple[int, int] | None) -> None:
        """Raise InputError unless maps are what this model paints `count` images of a size from."""
        if not self.classes:
            raise InputError(f"this {self.family} was trained without maps; leave the map out")
        wanted = (count, *(size or (self.picture.height, self.picture.width)))
        if tuple(maps.shape) != wanted or maps.dtype != torch.uint8:
            raise InputError(f"the maps are {maps.dtype} {tuple(maps.shape)}; they should be uint8 {wanted}")

    @property
    def picture(self) -> ImageConfig:
        """The images in pixels that the model was made for, which `generate` gives; `image`, but for latents."""
        if self.latents is None:
            return self.image
        return self.image.scaled(self.latents.factor, self.latents.pixels)

    @property
    def minimum_picture(self) -> int:
        """The smallest height and width in pixels that `generate` can make."""
        return self.minimum_size * (1 if self.latents is None else self.latents.factor)

    def from_pixels(self, images: Tensor) -> Tensor:
        """Images in pixels (B, C, H, W) as the model sees them: the same, but for latents."""
        return images

    def to_pixels(self, images: Tensor) -> Tensor:
        """Images or latents of the model, as images in pixels."""
        return images

    @property
    @abstractmethod
    def receptive_range(self) -> int | None:
        """How many pixels away one evaluation reads at most, or None where it reads the whole image."""

    @property
    def cell_size(self) -> int:
        """Pixels on a side of a cell; a tile should begin at a multiple of it."""
        return 1

    @property
    @abstractmethod
    def inexact_in_tiles(self) -> str | None:
        """Why a tile with a halo differs from the same region of the whole, or None where it does not."""

    @property
    def exact_in_tiles(self) -> bool:
        """Whether a tile with a halo of `receptive_range` equals the same region of the whole."""
        return self.inexact_in_tiles is None

    def compute_in(self, precision: PrecisionChoice | None = "auto") -> str | None:
        """Compute in a precision from now on, by the fast kernel if there is one; it follows the weights.

        precision: auto is bfloat16 where the hardware has it; None goes back to the plain form in float32. Returns why
        there is no fast kernel here, in words for the user, or None if there is or the family has none.
        """
        return None

    @property
    def precision(self) -> Precision:
        """The precision that products are computed in now."""
        return "float32"

    @property
    def uses_kernel(self) -> bool:
        """Whether the fast kernel computes every cell, whose bits then depend on no batch and no tile."""
        return False

    @property
    def computed_in(self) -> str:
        """In words what computes now, and in which precision: two pictures of a seed are alike where this is."""
        return f"{self.precision} by {'the fast kernel' if self.uses_kernel else 'PyTorch'} on {self.device.type}"

    def kept_bytes(self, batch: int, size: tuple[int, int]) -> int | None:
        """Bytes that a training step on images (height, width) keeps for its gradients; None if unknown."""
        return None

    def compile_steps(self) -> None:
        """Compile, with torch.compile, what an evaluation runs many times; by default there is nothing."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def parameter_count(self) -> int:
        """Numbers that training changes."""
        return sum(p.numel() for p in self.parameters())

    def autoencoder_parameters(self) -> int:
        """Numbers of the autoencoder that lies among the weights, which training does not change; often 0."""
        return 0

    def deployed_parameter_count(self) -> int:
        """Numbers left when what can be folded into others has been."""
        return self.parameter_count()

    def _save_pretrained(self, save_directory: Path) -> None:
        save_model(self, self.config_dict(), Path(save_directory))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """From a folder or a hub id; `options` are the mixin's (`revision`, `token`, `cache_dir`, …).

        Raises InputError where the files are damaged, inconsistent or another family's.
        """
        if Path(pretrained_model_name_or_path).is_dir():  # before the mixin, which reads the file without checking it
            cls._read_config(Path(pretrained_model_name_or_path) / CONFIG_FILE)
        return super().from_pretrained(pretrained_model_name_or_path, **options)

    @classmethod
    def _read_config(cls, file: Path) -> dict[str, object]:
        config = read_json(file)
        if not isinstance(config, dict) or config.get("family") != cls.family:
            raise InputError(f"{file} describes no {cls.family}")
        return without_header(config, str(file))

    @classmethod
    def _from_pretrained(cls, *, model_id: str, revision: str | None, **options: Any) -> Self:
        """Strict, unlike the mixin's own: every weight must be there, and none may be left over."""
        files = [Path(model_id) / name for name in (CONFIG_FILE, WEIGHTS_FILE)]
        if not Path(model_id).is_dir():
            kept = {k: options[k] for k in ("cache_dir", "force_download", "local_files_only", "token") if k in options}
            files = [Path(hf_hub_download(model_id, f.name, revision=revision, **kept)) for f in files]
        model = cls.from_config(cls._read_config(files[0]), str(files[0]))
        load_weights(model, cls.family, files[1])
        return model.eval()
