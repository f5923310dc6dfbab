"""The update rule shared by Diff-NCA and FourierDiff-NCA, and running it for some steps.

One NCA step, for a cell's state and its embedding e (Kalkhof et al., listing 1):

    perceived = conv3x3([state, e])
    z         = [state, e, perceived] * M1(e)
    h         = leaky_relu(normalise(conv1x1(z))) * M2(e)
    state     = state + conv1x1(h) * fire mask

Of a model with labels, the network that makes e adds a vector for each label that an image has, and for each that is
not known, to its hidden layer. All convolutions are weight-normalised. They are written here with the gains folded in
and with the part that only the embedding contributes taken apart (`StepConditioning`): it is one vector, not a map,
where e is the same in every cell.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from morphogen.core.spatial_norm import SpatialNorm

Norm = Literal["cell", "group"]
Padding = Literal["reflect", "zeros"]
NORM_EPSILON = 1e-5
LEAKY_SLOPE = 0.01


class WeightNormConv(nn.Module):
    """A convolution whose weight is gain * direction / |direction| for each output channel."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1) -> None:
        super().__init__()
        conv = nn.Conv2d(inputs, outputs, kernel)  # for its initialisation
        weight = conv.weight.detach()
        self.weight_v = nn.Parameter(weight.clone())
        self.weight_g = nn.Parameter(self._lengths(weight))
        self.bias = nn.Parameter(conv.bias.detach().clone()) if conv.bias is not None else None

    @staticmethod
    def _lengths(weight: Tensor) -> Tensor:
        lengths: Tensor = torch.linalg.vector_norm(weight, dim=(1, 2, 3), keepdim=True)
        return lengths

    def weight(self) -> Tensor:
        """The weight (outputs, inputs, kernel, kernel) with the gain folded in."""
        weight: Tensor = self.weight_v * (self.weight_g / self._lengths(self.weight_v))
        return weight

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight(), self.bias)


def _two_layers(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(WeightNormConv(inputs, hidden), nn.SiLU(), WeightNormConv(hidden, outputs))


class Weights(NamedTuple):
    """The weights of the main path with gains folded in, computed once an evaluation."""

    perceive_state: Tensor  # (c, c, 3, 3)
    perceive_embedding: Tensor  # (c, e, 3, 3)
    hidden_embedding: Tensor  # (h, e, 1, 1)
    hidden: Tensor  # (h, 2c, 1, 1): over [state, perceived]
    output: Tensor  # (c, h, 1, 1), zero rows for channels that never change
    output_bias: Tensor  # (c,), likewise


class StepConditioning(NamedTuple):
    """The conditioning of one step; maps (B or 1, ·, H, W), or (B or 1, ·, 1, 1) if constant over space."""

    perceive_bias: Tensor  # (c)
    state_scale: Tensor  # (c)
    perceived_scale: Tensor  # (c)
    hidden_bias: Tensor  # (h)
    hidden_scale: Tensor  # (h)


class UpdateRule(nn.Module):
    """The weights that every cell shares.

    channels, hidden: the published c and h. inputs: how many numbers the encoded embedding inputs are. embedding: e.
    norm: `cell` normalises over the channels of each cell, without parameters; `group` is GroupNorm(1, h), affine.
    padding: what lies beyond the border. fixed: channels that never change. embedding_hidden: width of the network
    that makes the embedding. output_gain: scale of a fresh rule's output. labels: of the images; 0 for a rule without
    any, which is told of none and has no weights for them.
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        inputs: int,
        embedding: int,
        norm: Norm,
        padding: Padding,
        fixed: list[int],
        embedding_hidden: int = 256,
        output_gain: float = 1.0,
        labels: int = 0,
    ) -> None:
        super().__init__()
        wide = 2 * channels + embedding
        self.channels, self.embedding, self.padding = channels, embedding, padding
        self.embed = _two_layers(inputs, embedding_hidden, embedding)
        self.perceive = WeightNormConv(channels + embedding, channels, 3)
        self.condition_perception = _two_layers(embedding, hidden // 4, wide)
        self.hidden = WeightNormConv(wide, hidden)
        self.norm = SpatialNorm(hidden, NORM_EPSILON) if norm == "group" else None
        self.condition_hidden = _two_layers(embedding, hidden // 4, hidden)
        self.output = WeightNormConv(hidden, channels)
        with torch.no_grad():
            self.output.weight_g.mul_(output_gain)
            assert self.output.bias is not None
            self.output.bias.mul_(output_gain)
        # After all else, so that a rule without labels is the same; zeros, so that a fresh one is deaf to them.
        self.label_vectors = nn.Embedding(2 * labels, embedding_hidden) if labels else None
        if self.label_vectors is not None:
            nn.init.zeros_(self.label_vectors.weight)
        free = torch.ones(channels)
        free[fixed] = 0.0
        self.register_buffer("_free", free, persistent=False)

    def weights(self) -> Weights:
        """Fold the gains in."""
        c = self.channels
        perceive, hidden, output = self.perceive.weight(), self.hidden.weight(), self.output.weight()
        state, embedding, perceived = torch.split(hidden, [c, self.embedding, c], dim=1)
        free: Tensor = self._free  # type: ignore[assignment]
        assert self.output.bias is not None
        return Weights(
            perceive_state=perceive[:, :c].contiguous(memory_format=torch.channels_last),
            perceive_embedding=perceive[:, c:],
            hidden_embedding=embedding,
            hidden=torch.cat([state, perceived], dim=1),
            output=output * free.view(-1, 1, 1, 1),
            output_bias=self.output.bias * free,
        )

    def condition(self, encoded: Tensor, w: Weights, labels: Tensor | None = None) -> StepConditioning:
        """The conditioning by the encoded embedding inputs (B or 1, inputs, H or 1, W or 1) of a step, and by labels
        (B or 1, 2K), as `Inputs` has them.
        """
        first, activation, second = self.embed
        before, told = first(encoded), self.told(labels)
        e = second(activation(before if told is None else before + told[..., None, None]))
        state_scale, e_scale, perceived_scale = torch.split(
            self.condition_perception(e), [self.channels, self.embedding, self.channels], dim=1
        )
        if e.shape[-2:] == (1, 1) and self.padding == "reflect":  # the same e in all nine cells
            perceive_bias = F.conv2d(e, w.perceive_embedding.sum(dim=(2, 3), keepdim=True), self.perceive.bias)
        else:
            perceive_bias = F.conv2d(self._pad(e), w.perceive_embedding, self.perceive.bias)
        return StepConditioning(
            perceive_bias=perceive_bias,
            state_scale=state_scale,
            perceived_scale=perceived_scale,
            hidden_bias=F.conv2d(e * e_scale, w.hidden_embedding, self.hidden.bias),
            hidden_scale=self.condition_hidden(e),
        )

    def told(self, labels: Tensor | None) -> Tensor | None:
        """What labels (B or 1, 2K) add to the hidden layer of the network that makes the embedding, (B or 1, width);
        None of a rule without labels.
        """
        if self.label_vectors is None:
            return None
        assert labels is not None, "a rule with labels is told of each whether an image has it, or that it is not known"
        table = self.label_vectors.weight
        return labels.to(table.dtype) @ table

    def step(
        self, state: Tensor, fire: Tensor | None, c: StepConditioning, w: Weights, statistics_over: Tensor | None = None
    ) -> Tensor:
        """One NCA step: the next state (B, c, H, W). fire: which cells update, (B, 1, H, W) boolean; None for all.

        statistics_over: the cells that group normalisation looks at, likewise.
        """
        perceived = F.conv2d(self._pad(state), w.perceive_state) + c.perceive_bias
        z = torch.cat([state * c.state_scale, perceived * c.perceived_scale], dim=1)
        hidden = self._normalise(F.conv2d(z, w.hidden) + c.hidden_bias, statistics_over)
        hidden = F.leaky_relu(hidden, LEAKY_SLOPE) * c.hidden_scale
        change = F.conv2d(hidden, w.output, w.output_bias)
        return state + (change if fire is None else change * fire)

    def _pad(self, x: Tensor) -> Tensor:
        return F.pad(x, (1, 1, 1, 1), mode="reflect" if self.padding == "reflect" else "constant")

    def _normalise(self, hidden: Tensor, statistics_over: Tensor | None = None) -> Tensor:
        if self.norm is not None and statistics_over is None:
            normed: Tensor = self.norm(hidden)
            return normed
        if self.norm is not None and statistics_over is not None:
            counted = statistics_over.to(hidden.dtype)
            count = counted.sum(dim=(1, 2, 3), keepdim=True).clamp(min=1) * hidden.shape[1]
            centred = hidden - (hidden * counted).sum(dim=(1, 2, 3), keepdim=True) / count
            variance = (centred.square() * counted).sum(dim=(1, 2, 3), keepdim=True) / count
            scale, shift = self.norm.weight.view(1, -1, 1, 1), self.norm.bias.view(1, -1, 1, 1)
            return centred * torch.rsqrt(variance + NORM_EPSILON) * scale + shift
        cells = hidden.permute(0, 2, 3, 1)
        return F.layer_norm(cells, cells.shape[-1:], eps=NORM_EPSILON).permute(0, 3, 1, 2)

    def run(
        self,
        state: Tensor,
        encoded: Callable[[int], Tensor],
        fire: list[Tensor] | list[None],
        recompute: bool = False,
        statistics_over: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Run one step for each mask of `fire`: the last state.

        encoded: the encoded embedding inputs of step number i. recompute: keep only each step's state for the
        backward pass and compute the rest again there, which takes a tenth of the memory and a third more time.
        statistics_over: see `step`. labels: see `condition`.
        """
        w = self.weights()

        def step(state: Tensor, encoded: Tensor, mask: Tensor | None) -> Tensor:
            return self.step(state, mask, self.condition(encoded, w, labels), w, statistics_over)

        for i, mask in enumerate(fire):
            if recompute:
                state = checkpoint(step, state, encoded(i), mask, use_reentrant=False, preserve_rng_state=False)
            else:
                state = step(state, encoded(i), mask)
        return state

    def compile_step(self) -> None:
        """Compile the step with torch.compile from now on; the weights stay as they are."""
        self.step = torch.compile(self.step)  # type: ignore[method-assign]

    def gain_count(self) -> int:
        """How many numbers are gains, which fold into the weights."""
        return sum(m.weight_g.numel() for m in self.modules() if isinstance(m, WeightNormConv))
