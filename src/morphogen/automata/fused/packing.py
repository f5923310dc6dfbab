"""An update rule's weights, and what it is told, in the order in which the kernel reads them; differentiably."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from morphogen.automata.embedding import Inputs
from morphogen.automata.update_rule import UpdateRule, WeightNormConv


class Mapping(NamedTuple):
    """The two layers that make a scale of the embedding: (m, e), (m,), (outputs, m), (outputs,)."""

    first: Tensor
    first_bias: Tensor
    second: Tensor
    second_bias: Tensor


class Packed(NamedTuple):
    """The weights: the kernel's `nca_rule` and `nca_mappings` take them in this order."""

    perceive: Tensor  # (c, 9, wide)
    hidden: Tensor  # (h, z)
    output: Tensor  # (c, h)
    perceive_bias: Tensor  # (c,)
    hidden_bias: Tensor  # (h,)
    output_bias: Tensor  # (c,)
    norm_weight: Tensor | None = None  # (h,)
    norm_bias: Tensor | None = None  # (h,)
    scale1: Mapping | None = None
    scale2: Mapping | None = None
    embed_out: Tensor | None = None  # (e, 256)
    embed_out_bias: Tensor | None = None  # (e,)


class Tables(NamedTuple):
    """What the steps are told: the first four where the embedding is a vector, the last two where it is a map."""

    perceive_bias: Tensor | None = None  # (steps, images, c, padded)
    hidden_bias: Tensor | None = None  # (steps, images, h, padded)
    scale1: Tensor | None = None  # (steps, images, z)
    scale2: Tensor | None = None  # (steps, images, h, padded)
    by_x: Tensor | None = None  # (steps, W, 256)
    by_y: Tensor | None = None  # (steps, images, H, 256)


@dataclass(frozen=True)
class Layout:
    """The widths of a rule in the kernel. per_cell_embedding: whether the embedding differs from cell to cell."""

    rule: UpdateRule
    per_cell_embedding: bool
    pair: int
    lanes: int

    @classmethod
    def of(cls, rule: UpdateRule, per_cell_embedding: bool, kernel: ctypes.CDLL) -> Layout:
        """The layout for a compiled kernel."""
        return cls(rule, per_cell_embedding, kernel.nca_pair(), kernel.nca_lanes())

    @property
    def embedding(self) -> int:
        """Channels of the embedding that the kernel sees; a vector has become biases."""
        return self.rule.embedding if self.per_cell_embedding else 0

    @property
    def wide(self) -> int:
        """Numbers in a cell that perceive reads."""
        return _up(self.rule.channels + self.embedding, self.pair)

    @property
    def channels(self) -> int:
        """c, padded."""
        return _up(self.rule.channels, self.lanes)

    @property
    def hidden(self) -> int:
        """h, padded."""
        return _up(self.rule.hidden.weight_v.shape[0], self.lanes)

    @property
    def z(self) -> int:
        """What the hidden layer reads, padded: [state, e], [perceived]."""
        return _up(self.wide + self.channels, self.lanes)

    @property
    def mapping(self) -> int:
        """The width of the mappings' hidden layer, padded."""
        first = self.rule.condition_hidden[0]
        assert isinstance(first, WeightNormConv)
        return _up(first.weight_v.shape[0], self.lanes)

    def in_z(self, rows: Tensor) -> Tensor:
        """Columns [state, e, perceived] (…, 2c + e) in the order and with the padding of z."""
        c, e = self.rule.channels, self.rule.embedding
        state = rows[..., : c + e] if self.per_cell_embedding else rows[..., :c]
        perceived = F.pad(rows[..., c + e :], (0, self.z - self.wide - c))
        return torch.cat([F.pad(state, (0, self.wide - state.shape[-1])), perceived], dim=-1)

    def weights(self) -> Packed:
        """The rule's weights as they are now."""
        rule, e = self.rule, self.embedding
        c, w = rule.channels, rule.weights()
        perceive = rule.perceive.weight()[:, : c + e].permute(0, 2, 3, 1).reshape(c, 9, c + e)
        hidden, hidden_bias = _dense(rule.hidden)
        assert rule.perceive.bias is not None
        packed = Packed(
            F.pad(perceive, (0, self.wide - c - e)),
            self.in_z(hidden),
            w.output.flatten(1),
            rule.perceive.bias,
            hidden_bias,
            w.output_bias,
        )
        if rule.norm is not None:
            packed = packed._replace(norm_weight=rule.norm.weight, norm_bias=rule.norm.bias)
        if not self.per_cell_embedding:
            return packed
        one, two = _two(rule.condition_perception), _two(rule.condition_hidden)
        one = one._replace(second=self.in_z(one.second.T).T, second_bias=self.in_z(one.second_bias))
        _, _, out, out_bias = _two(rule.embed)
        return packed._replace(scale1=one, scale2=two, embed_out=out, embed_out_bias=out_bias)

    def tables(self, inputs: Inputs, steps: int) -> Tables:
        """What the steps are told, for the timesteps of `inputs`: one, or one for each image."""
        dtype = self.rule.output.weight_v.dtype
        return (
            self._per_cell_tables(inputs, steps, dtype)
            if self.per_cell_embedding
            else self._shared_tables(inputs, steps, dtype)
        )

    def _shared_tables(self, inputs: Inputs, steps: int, dtype: torch.dtype) -> Tables:
        rule, images = self.rule, len(inputs.time)
        encoded = torch.cat([inputs.at(step).to(dtype) for step in range(steps)])
        found = rule.condition(encoded, rule.weights())
        rows = found.state_scale.flatten(1), found.perceived_scale.flatten(1)
        nothing = rows[0].new_zeros(len(encoded), rule.embedding)
        return Tables(
            *(
                part.view(steps, images, -1)
                for part in (
                    F.pad(found.perceive_bias.flatten(1), (0, self.channels - rule.channels)),
                    F.pad(found.hidden_bias.flatten(1), (0, self.hidden - found.hidden_bias.shape[1])),
                    self.in_z(torch.cat([rows[0], nothing, rows[1]], dim=1)),
                    F.pad(found.hidden_scale.flatten(1), (0, self.hidden - found.hidden_scale.shape[1])),
                )
            )
        )

    def _per_cell_tables(self, inputs: Inputs, steps: int, dtype: torch.dtype) -> Tables:
        """The embedding's first layer, which is linear, as a sum of a part by x and a part by y."""
        weight, bias, _, _ = _two(self.rule.embed)
        n = weight.shape[1] // 4  # numbers that an input is encoded to: x, y, timestep, NCA step
        by_x, by_y = [], []
        for step in range(steps):
            encoded = inputs.at(step).to(dtype)
            by_x.append(encoded[0, :n, 0, :].T @ weight[:, :n].T)
            by_y.append(encoded[:, n:, :, 0].mT @ weight[:, n:].T + bias)
        return Tables(by_x=torch.stack(by_x), by_y=torch.stack(by_y))


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def _dense(conv: WeightNormConv) -> tuple[Tensor, Tensor]:
    """The weight (outputs, inputs) of a 1x1 convolution, and its bias."""
    assert conv.bias is not None
    return conv.weight().flatten(1), conv.bias


def _two(layers: nn.Sequential) -> Mapping:
    """Weight and bias of both layers of a small network."""
    first, _, second = layers
    assert isinstance(first, WeightNormConv)
    assert isinstance(second, WeightNormConv)
    return Mapping(*_dense(first), *_dense(second))
