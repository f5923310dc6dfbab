"""An update rule's weights, and the conditioning of each step, as the kernel reads them; differentiably.

Tensors go by the names of the fields of `abi.RuleWeights` and `abi.RunArguments`; a gradient has its tensor's name.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from morphogen.automata.embedding import Inputs
from morphogen.automata.update_rule import UpdateRule, WeightNormConv

Tensors = dict[str, Tensor]
TABLES = ("step_perceive_bias", "step_hidden_bias", "step_scale1", "step_scale2", "by_x", "by_y")  # a row for each step


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
        """The input of the hidden layer, padded: [state, e], [perceived]."""
        return _up(self.wide + self.channels, self.lanes)

    @property
    def mapping_hidden(self) -> int:
        """The width of the hidden layer of the networks that make the scales."""
        return _conv(self.rule.condition_hidden, 0).weight_v.shape[0]

    @property
    def embed_hidden(self) -> int:
        """The width of the hidden layer of the network that makes the embedding, padded."""
        return _up(_conv(self.rule.embed, 0).weight_v.shape[0], self.lanes)

    def in_z(self, rows: Tensor) -> Tensor:
        """Columns [state, e, perceived] (…, 2c + e) in the order and with the padding of z."""
        c, e = self.rule.channels, self.rule.embedding
        state = rows[..., : c + e] if self.per_cell_embedding else rows[..., :c]
        perceived = F.pad(rows[..., c + e :], (0, self.z - self.wide - c))
        return torch.cat([F.pad(state, (0, self.wide - state.shape[-1])), perceived], dim=-1)

    def weights(self) -> Tensors:
        """The rule's weights as they are now."""
        rule, e = self.rule, self.embedding
        c, w = rule.channels, rule.weights()
        perceive = rule.perceive.weight()[:, : c + e].permute(0, 2, 3, 1).reshape(c, 9, c + e)
        hidden, hidden_bias = _dense(rule.hidden)
        found = {
            "perceive": F.pad(perceive, (0, self.wide - c - e)),
            "into_hidden": self.in_z(hidden),
            "output": w.output.flatten(1),
            "output_bias": w.output_bias,
        }
        if rule.norm is not None:
            found |= {"norm_weight": rule.norm.weight, "norm_bias": rule.norm.bias}
        if not self.per_cell_embedding:
            return found
        assert rule.perceive.bias is not None
        found |= {"perceive_bias": rule.perceive.bias, "hidden_bias": hidden_bias}
        first, first_bias, second, second_bias = _two(rule.condition_perception)
        one = first, first_bias, self.in_z(second.T).T, self.in_z(second_bias)
        for scale, network in (("scale1", one), ("scale2", _two(rule.condition_hidden))):
            found |= zip((f"{scale}_{name}" for name in _NETWORK), network, strict=True)
        _, _, out, out_bias = _two(rule.embed)
        return found | {"embed_out": self._padded_embed(out), "embed_out_bias": out_bias}

    def tables(self, inputs: Inputs, steps: int) -> Tensors:
        """The conditioning of the steps, for the timesteps of `inputs`: one, or one for each image."""
        dtype = self.rule.output.weight_v.dtype
        make = self._per_cell_tables if self.per_cell_embedding else self._shared_tables
        return make(inputs, steps, dtype)

    def _shared_tables(self, inputs: Inputs, steps: int, dtype: torch.dtype) -> Tensors:
        rule, images = self.rule, inputs.images
        encoded = torch.cat([inputs.at(step).to(dtype).expand(images, -1, -1, -1) for step in range(steps)])
        labels = None if inputs.labels is None else inputs.labels.expand(images, -1).repeat(steps, 1)
        found = rule.condition(encoded, rule.weights(), labels)
        rows = found.state_scale.flatten(1), found.perceived_scale.flatten(1)
        nothing = rows[0].new_zeros(len(encoded), rule.embedding)
        tables = {
            "step_perceive_bias": (found.perceive_bias.flatten(1), self.channels),
            "step_hidden_bias": (found.hidden_bias.flatten(1), self.hidden),
            "step_scale1": (self.in_z(torch.cat([rows[0], nothing, rows[1]], dim=1)), self.z),
            "step_scale2": (found.hidden_scale.flatten(1), self.hidden),
        }
        return {
            name: F.pad(table, (0, size - table.shape[1])).view(steps, images, size)
            for name, (table, size) in tables.items()
        }

    def _per_cell_tables(self, inputs: Inputs, steps: int, dtype: torch.dtype) -> Tensors:
        """The embedding's first layer, which is linear, as a sum of a part by x and a part by y and the image."""
        weight, bias, _, _ = _two(self.rule.embed)
        told = self.rule.told(inputs.labels)
        added = bias if told is None else bias + told[:, None]
        n = weight.shape[1] // 4  # numbers that an input is encoded to: x, y, timestep, NCA step
        by_x, by_y = [], []
        for step in range(steps):
            encoded = inputs.at(step).to(dtype)
            by_x.append(encoded[0, :n, 0, :].T @ weight[:, :n].T)
            by_y.append(encoded[:, n:, :, 0].mT @ weight[:, n:].T + added)
        return {"by_x": self._padded_embed(torch.stack(by_x)), "by_y": self._padded_embed(torch.stack(by_y))}

    def _padded_embed(self, rows: Tensor) -> Tensor:
        return F.pad(rows, (0, self.embed_hidden - rows.shape[-1]))

    def gradients(self, steps: int, batch: int, height: int, width: int) -> Tensors:
        """Zeros for the kernel to add to, in its own shapes."""
        c, h, z, e, embed = self.channels, self.hidden, self.z, self.embedding, self.embed_hidden
        m = _up(self.mapping_hidden, self.lanes)
        shapes: dict[str, tuple[int, ...]] = {
            "perceive": (9, self.wide, c), "into_hidden": (z, h), "output": (c, h), "output_bias": (c,),
            "norm_weight": (h,), "norm_bias": (h,),
        }  # fmt: skip
        if self.per_cell_embedding:
            shapes |= {
                "perceive_bias": (c,), "hidden_bias": (h,),
                "scale1_first": (e, m), "scale1_first_bias": (m,), "scale1_second": (m, z), "scale1_second_bias": (z,),
                "scale2_first": (e, m), "scale2_first_bias": (m,), "scale2_second": (m, h), "scale2_second_bias": (h,),
                "embed_out": (e, embed), "embed_out_bias": (e,),
                "by_x": (steps, width, embed), "by_y": (steps, batch, height, embed),
            }  # fmt: skip
        else:
            widths = {"step_perceive_bias": c, "step_hidden_bias": h, "step_scale1": z, "step_scale2": h}
            shapes |= {name: (steps, batch, size) for name, size in widths.items()}
        return {name: torch.zeros(shape) for name, shape in shapes.items()}

    def unpad(self, name: str, gradient: Tensor) -> Tensor:
        """A gradient in the kernel's shape as that of the tensor of this name in `weights` or `tables`."""
        c, h, m = self.rule.channels, self.rule.hidden.weight_v.shape[0], self.mapping_hidden
        match name:
            case "perceive":
                return gradient[..., :c].permute(2, 0, 1)
            case "into_hidden":
                return gradient.T[:h]
            case "output":
                return gradient[:c, :h]
            case "perceive_bias" | "output_bias":
                return gradient[:c]
            case "hidden_bias" | "norm_weight" | "norm_bias" | "scale2_second_bias":
                return gradient[:h]
            case "scale1_first" | "scale2_first":
                return gradient.T[:m]
            case "scale1_first_bias" | "scale2_first_bias":
                return gradient[:m]
            case "scale1_second":
                return gradient.T[:, :m]
            case "scale2_second":
                return gradient.T[:h, :m]
        return gradient


_NETWORK = ("first", "first_bias", "second", "second_bias")  # (m, e), (m,), (outputs, m), (outputs,)


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def _conv(layers: nn.Sequential, number: int) -> WeightNormConv:
    layer = layers[number]
    assert isinstance(layer, WeightNormConv)
    return layer


def _dense(conv: WeightNormConv) -> tuple[Tensor, Tensor]:
    """The weight (outputs, inputs) of a 1x1 convolution, and its bias."""
    assert conv.bias is not None
    return conv.weight().flatten(1), conv.bias


def _two(layers: nn.Sequential) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weight and bias of both layers of a small network."""
    return *_dense(_conv(layers, 0)), *_dense(_conv(layers, 2))
