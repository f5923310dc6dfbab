"""The base of Diff-NCA and FourierDiff-NCA: their settings, and the image stage, plain or fast."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from morphogen.automata.active import run_active
from morphogen.automata.embedding import Encoding, Inputs
from morphogen.automata.update_rule import Norm, Padding, UpdateRule
from morphogen.core.evaluation import Evaluation
from morphogen.core.keys import Key
from morphogen.core.model import ImageConfig, LabelConfig, Prediction
from morphogen.core.request import Precision, PrecisionChoice
from morphogen.core.spatial_norm import SpatialNorm
from morphogen.diffusion.config import DiffusionConfig
from morphogen.diffusion.labels import LabelledConfig, LabelledDenoiser

if TYPE_CHECKING:
    from morphogen.automata.fused.protocol import RuleAcceleration


_MORE_EMBEDDING = 4  # numbers of the embedding of a model with labels beside those that time and place need


class NCAConfig(LabelledConfig):
    """The settings that Diff-NCA and FourierDiff-NCA share."""

    channels: int = Field(96, ge=4, le=1024, description="numbers in a cell (c)")
    hidden: int = Field(512, ge=4, le=8192, description="width of the update rule's hidden layer (h)")
    nca_steps: int = Field(20, ge=1, le=512, description="NCA steps an evaluation takes (s)")
    fire_rate: float = Field(0.9, gt=0.0, le=1.0, description="probability that a cell updates in a step")
    sampling_fire_rate: float | None = Field(
        None, gt=0.0, le=1.0, description="the same outside training; by default it is the same, as published"
    )
    norm: Norm = Field("cell", description="cell: over the channels of each cell; group: GroupNorm(1, h)")
    encoding: Encoding = Field("released", description="how the embedding inputs are encoded")
    patch: int = Field(
        1, ge=1, le=16, description="pixels on a side of a cell: 2 has a quarter of the cells, at a quarter of the cost"
    )
    embedding: int | None = Field(
        None, ge=1, le=8, description="numbers that the embedding is (e); by default as published, with labels 4 more"
    )
    embedding_hidden: int = Field(256, ge=1, le=8192, description="width of the network that makes the embedding")
    output_gain: float = Field(1.0, ge=0, le=100, description="scale of the rule's output before training")

    def check(self, image: ImageConfig, condition_channels: int = 0) -> None:
        pixels = f"cells of {self.patch}x{self.patch} pixels" if self.patch > 1 else "images"
        needed = 2 * self.colours(image) + condition_channels * self.patch**2
        if self.channels < needed:
            more = " and the condition" if condition_channels else ""
            raise ValueError(
                f"channels is {self.channels}, but {pixels} of {image.channels} channels need at least {needed}: the "
                f"noisy image and the predicted noise{more}"
            )

    def colours(self, image: ImageConfig) -> int:
        """How many of a cell's channels hold the noisy image."""
        return image.channels * self.patch**2

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """The cells (rows, columns) of an image (height, width); those at the end may reach beyond it."""
        return -(-size[0] // self.patch), -(-size[1] // self.patch)


class NCADenoiser(LabelledDenoiser):
    """A denoiser whose last stage is an NCA over the image, `rule`."""

    config_class: ClassVar[type[NCAConfig]] = NCAConfig
    learns_variance: ClassVar[bool] = False
    architecture: NCAConfig
    rule: UpdateRule
    acceleration: RuleAcceleration | None = None

    def __init__(
        self,
        image: ImageConfig,
        architecture: NCAConfig,
        diffusion: DiffusionConfig,
        condition_channels: int = 0,
        labels: LabelConfig = LabelConfig(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__(image, architecture, diffusion, labels, condition_channels)
        architecture.check(image, condition_channels)

    def new_rule(self, channels: int, published: int, padding: Padding, fixed: list[int]) -> UpdateRule:
        """An update rule of this model with fresh weights. published: the embedding's width, and the square root of
        how many numbers its inputs are encoded to.
        """
        settings, labels = self.architecture, len(self.labels)
        return UpdateRule(
            channels,
            settings.hidden,
            inputs=published**2,
            embedding=settings.embedding or published + (_MORE_EMBEDDING if labels else 0),
            norm=settings.norm,
            padding=padding,
            fixed=fixed,
            embedding_hidden=settings.embedding_hidden,
            output_gain=settings.output_gain,
            labels=labels,
        )

    def label_inputs(self, labels: Tensor | None) -> Tensor | None:
        """What `Inputs` has of the labels (B, K), or of unknown ones; one row where all images have the same."""
        if not len(self.labels):
            return None
        rows = self.null_rows(1) if labels is None else labels
        if not self.training and bool((rows == rows[:1]).all()):
            rows = rows[:1]
        return torch.cat([rows.clamp(min=0), (rows < 0).to(rows)], dim=1)

    @property
    def colours(self) -> int:
        """How many of a cell's channels hold the noisy image, and how many the predicted noise."""
        return self.architecture.colours(self.image)

    @property
    def fixed_channels(self) -> int:
        """How many of a cell's channels, the first, never change: the noisy image and the condition."""
        return self.colours + self.condition_channels * self.cell_size**2

    @property
    def fire_rate(self) -> float:
        """The probability that a cell updates in a step, now."""
        sampling = None if self.training else self.architecture.sampling_fire_rate
        return self.architecture.fire_rate if sampling is None else sampling

    def rules(self) -> list[UpdateRule]:
        """Every rule of the model."""
        return [module for module in self.modules() if isinstance(module, UpdateRule)]

    def spatial_norms(self) -> list[SpatialNorm]:
        return [rule.norm for rule in self.rules() if rule.norm is not None]

    @abstractmethod
    def noise(
        self, fixed: Tensor, t: Tensor, key: Key, active: Tensor | None, steps: int, labels: Tensor | None = None
    ) -> Tensor:
        """The predicted noise (B, colours, rows, columns) of what the cells hold fixed, (B, fixed_channels, rows,
        columns): noisy images, then the condition. active: of the cells. labels: as `label_inputs` has them.
        """

    def evaluate(self, x: Tensor, t: Tensor, evaluation: Evaluation) -> Prediction:
        patch, (height, width) = self.cell_size, x.shape[-2:]
        key, active = evaluation.key, evaluation.active
        steps = evaluation.nca_steps or self.architecture.nca_steps
        if active is not None and bool(active.all()):
            active = None
        labels = self.label_inputs(evaluation.labels)
        parts = [x] if evaluation.condition is None else [x, evaluation.condition.to(x)]
        if patch == 1:
            return Prediction(self.noise(torch.cat(parts, dim=1), t, key, active, steps, labels))
        rows, columns = self.architecture.grid((height, width))
        beyond = (0, columns * patch - width, 0, rows * patch - height)
        cells = [F.pixel_unshuffle(F.pad(part, beyond, mode="reflect"), patch) for part in parts]
        if active is not None:
            active = F.max_pool2d(active.float(), patch, ceil_mode=True) > 0
        noise = self.noise(torch.cat(cells, dim=1), t, key.coarser(patch), active, steps, labels)
        return Prediction(F.pixel_shuffle(noise, patch)[..., :height, :width])

    def run_image(self, state: Tensor, inputs: Inputs, key: Key, active: Tensor | None = None) -> Tensor:
        """The last state (B, c, H, W) of the image stage: `inputs.steps` NCA steps from a state (B, c, H, W).

        active: boolean (B, 1, H, W), the only cells that are computed and may change; None for all.
        """
        size, rate = (state.shape[-2], state.shape[-1]), self.fire_rate
        fast = self.fast(active)
        if fast is not None:
            fire = fast.fire(key, inputs.steps, rate, size, active)
            return fast.run(self.rule, state, inputs, inputs.steps, fire, active, self.recompute)
        masks = key.fire_masks(inputs.steps, rate, size, state.device)
        if active is None:
            return self.rule.run(state, inputs.at, masks, self.recompute, labels=inputs.labels)
        masks = [mask & active for mask in masks]
        if torch.is_grad_enabled():
            return self.rule.run(state, inputs.at, masks, self.recompute, active, inputs.labels)
        return run_active(self.rule, state, inputs, masks, active)

    def fast(self, active: Tensor | None = None) -> RuleAcceleration | None:
        """What runs the rules now: the fast kernel, or None for the plain form, which alone has gradients of active
        cells, and on a GPU alone runs active cells.
        """
        fast = self.acceleration
        if fast is None or fast.device_type != self.device.type:
            return None
        plain = active is not None and (torch.is_grad_enabled() or fast.device_type == "cuda")
        return None if plain else fast

    def kept_bytes(self, batch: int, size: tuple[int, int]) -> int | None:
        """Bytes that a training step with the fast kernel keeps for the backward pass; None without it."""
        fast = self.fast()
        if fast is None:
            return None
        return sum(
            fast.history_bytes(rule, per_cell_embedding, batch, grid, steps)
            for rule, per_cell_embedding, grid, steps in self.stages(size)
        )

    def stages(self, size: tuple[int, int]) -> list[tuple[UpdateRule, bool, tuple[int, int], int]]:
        """Each stage: its rule, whether its cells know their place, its grid (height, width), its steps."""
        return [(self.rule, False, self.architecture.grid(size), self.architecture.nca_steps)]

    @property
    def cell_size(self) -> int:
        return self.architecture.patch

    @property
    def context(self) -> int | None:
        return self.architecture.nca_steps * self.cell_size

    def compute_in(self, precision: PrecisionChoice | None = "auto") -> str | None:
        from morphogen.automata.fused.compiler import Unavailable

        self.acceleration = None
        super().compute_in(precision)
        if precision is None or self.device.type not in ("cpu", "cuda"):
            return None
        try:
            self.acceleration = self._accelerated(self.device.type, precision)
        except Unavailable as reason:
            return str(reason)
        self.autocast = self.autocast and self.device.type == "cuda"
        return None

    def _accelerated(self, device_type: str, precision: PrecisionChoice) -> RuleAcceleration:
        """The fast form on a kind of device, tried on this model's rules. Raises Unavailable, saying why, where
        there is none or it computes something else.
        """
        fast = _rule_acceleration(device_type, precision)
        for rule, per_cell_embedding, _, _ in self.stages((self.image.height, self.image.width)):
            fast.check(rule, per_cell_embedding, gradients=self.training)
        return fast

    @property
    def precision(self) -> Precision:
        return super().precision if self.acceleration is None else self.acceleration.precision

    @property
    def uses_kernel(self) -> bool:
        return self.fast() is not None

    def compile_steps(self) -> None:
        for rule in self.rules():
            rule.compile_step()

    def deployed_parameter_count(self) -> int:
        return self.parameter_count() - sum(rule.gain_count() for rule in self.rules())


def _rule_acceleration(device_type: str, precision: PrecisionChoice) -> RuleAcceleration:
    """The fast form on a kind of device. Raises Unavailable, saying why, if there is none."""
    from morphogen.automata.fused import Acceleration
    from morphogen.automata.fused.compiler import Unavailable

    if device_type == "cpu":
        return Acceleration(precision)
    try:
        from morphogen.automata.fused.triton_autograd import TritonAcceleration
    except ImportError:
        raise Unavailable("Triton is not installed") from None
    return TritonAcceleration(precision)
