"""An update rule in the form that the kernel runs: folded, packed, and without gradients."""

from __future__ import annotations

import copy
import weakref

import torch
from torch import Tensor, nn

from morphogen.automata.embedding import Inputs
from morphogen.automata.fused.build import Precision, load_kernel
from morphogen.automata.update_rule import UpdateRule, WeightNormConv


def _dense(conv: WeightNormConv) -> tuple[Tensor, Tensor]:
    """The weight (outputs, inputs) of a 1x1 convolution, and its bias."""
    assert conv.bias is not None
    return _plain(conv.weight().flatten(1)), _plain(conv.bias)


def _two(layers: nn.Sequential) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weight and bias of both layers of a small network."""
    first, _, second = layers
    assert isinstance(first, WeightNormConv)
    assert isinstance(second, WeightNormConv)
    return *_dense(first), *_dense(second)


def _plain(values: Tensor) -> Tensor:
    return values.detach().to("cpu", torch.float32).contiguous()


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


class FusedRule:
    """A copy of an update rule's weights, as they are now, and the kernel that runs it.

    precision: of the products; sums, the state and the normalisation are float32. Raises Unavailable where the kernel
    cannot be used on this machine.
    """

    def __init__(self, rule: UpdateRule, precision: Precision) -> None:
        self._kernel = load_kernel(precision)
        self.reflect = rule.padding == "reflect"
        self.channels, self.hidden = rule.channels, rule.hidden.weight_v.shape[0]
        self._rule = copy.deepcopy(rule).double()  # so that folding rounds once, however many threads PyTorch has
        pair, lanes = self._kernel.nca_pair(), self._kernel.nca_lanes()
        self._wide = {False: _up(rule.channels, pair), True: _up(rule.channels + rule.embedding, pair)}
        self._channels_padded, self._hidden_padded = _up(rule.channels, lanes), _up(self.hidden, lanes)
        # One form for an embedding that is the same everywhere, which becomes biases, and one for a map.
        self._forms: dict[bool, int] = {}

    def _form(self, maps: bool) -> int:
        if maps not in self._forms:
            handle = self._pack(maps)
            weakref.finalize(self, self._kernel.nca_free, handle)
            self._forms[maps] = handle
        return self._forms[maps]

    @torch.no_grad()
    def _pack(self, maps: bool) -> int:
        rule, wide = self._rule, self._wide[maps]
        c, e = rule.channels, rule.embedding if maps else 0
        perceive = rule.perceive.weight()[:, : c + e].permute(0, 2, 3, 1).reshape(c, 9, c + e)
        hidden, hidden_bias = _dense(rule.hidden)
        w = rule.weights()
        keep = [
            _plain(torch.nn.functional.pad(perceive, (0, wide - c - e))),
            _plain(self._widened(hidden, maps)),
            _plain(w.output.flatten(1)),
            _plain(rule.perceive.bias),  # type: ignore[arg-type]
            hidden_bias,
            _plain(w.output_bias),
        ]
        norm = [_plain(rule.norm.weight), _plain(rule.norm.bias)] if rule.norm is not None else [None, None]
        handle: int = self._kernel.nca_rule(
            c, self.hidden, e, int(rule.norm is not None), *map(_address, keep), *map(_address, norm)
        )
        if maps:
            self._pack_mappings(handle)
        return handle

    def _widened(self, rows: Tensor, maps: bool) -> Tensor:
        """Columns [state, e, perceived] in the order and with the padding of the kernel's z."""
        c, e = self._rule.channels, self._rule.embedding
        out = rows.new_zeros(len(rows), self._wide[maps] + self._channels_padded)
        out[:, :c] = rows[:, :c]
        if maps:
            out[:, c : c + e] = rows[:, c : c + e]
        out[:, self._wide[maps] : self._wide[maps] + c] = rows[:, c + e :]
        return out

    def _pack_mappings(self, handle: int) -> None:
        rule = self._rule
        first1, first_bias1, second1, second_bias1 = _two(rule.condition_perception)
        first2, first_bias2, second2, second_bias2 = _two(rule.condition_hidden)
        _, _, out, out_bias = _two(rule.embed)
        second1 = _plain(self._widened(second1.T, True).T)
        second_bias1 = _plain(self._widened(second_bias1[None], True)[0])
        tensors = [first1, first_bias1, second1, second_bias1, first2, first_bias2, second2, second_bias2]
        self._kernel.nca_mappings(
            handle, len(first1), *map(_address, tensors), out.shape[1], _address(out), _address(out_bias)
        )

    @torch.no_grad()
    def run(
        self,
        state: Tensor,
        inputs: Inputs,
        steps: int,
        fire: Tensor | None = None,
        active: Tensor | None = None,
        threads: int | None = None,
    ) -> Tensor:
        """The state after `steps` NCA steps, float32 (B, c, H, W), channels last.

        state: (B, c, H, W). inputs: of one timestep for all images. fire: uint8 (steps, B, H, W), or None for all.
        active: boolean (B, 1, H, W), the cells that fire may name; None for all.
        """
        if active is not None and self._rule.norm is not None and len(state) > 1:  # statistics of its own cells only
            masks = [None if fire is None else fire[:, i : i + 1].contiguous() for i in range(len(state))]
            alive = active.expand(len(state), *active.shape[1:])
            rows = zip(range(len(state)), masks, strict=True)
            return torch.cat([self.run(state[[i]], inputs, steps, mask, alive[[i]], threads) for i, mask in rows])
        batch, _, height, width = state.shape
        cells = state.permute(0, 2, 3, 1).to("cpu", torch.float32, copy=True).contiguous()
        positions = torch.arange(height * width, dtype=torch.int32)
        if active is not None:
            positions = positions[active.any(dim=0).flatten().cpu()]
        maps = inputs.x is not None
        vectors: list[Tensor | None]
        if maps:
            vectors = [None] * 4 + list(self._embedding_tables(inputs, steps))
        else:
            vectors = [*self._vectors(inputs, steps), None, None]
        self._kernel.nca_run(
            self._form(maps),
            _address(cells),
            *(batch, height, width, int(self.reflect), steps),
            *map(_address, vectors),
            *(_address(fire), _address(positions), len(positions), threads or torch.get_num_threads()),
        )
        return cells.permute(0, 3, 1, 2)

    def _vectors(self, inputs: Inputs, steps: int) -> list[Tensor]:
        """What an embedding that is the same everywhere contributes to each step, padded as the kernel reads it."""
        c, w = self._rule.channels, self._rule.weights()
        encoded = torch.cat([inputs.at(step).double() for step in range(steps)])
        found = self._rule.condition(encoded, w)
        scale1 = encoded.new_zeros(steps, self._wide[False] + self._channels_padded)
        scale1[:, :c] = found.state_scale.flatten(1)
        scale1[:, self._wide[False] : self._wide[False] + c] = found.perceived_scale.flatten(1)
        rows = (found.perceive_bias, self._channels_padded), (found.hidden_bias, self._hidden_padded)
        biases = [_plain(_padded(t.flatten(1), size)) for t, size in rows]
        return [*biases, _plain(scale1), _plain(_padded(found.hidden_scale.flatten(1), self._hidden_padded))]

    def _embedding_tables(self, inputs: Inputs, steps: int) -> tuple[Tensor, Tensor]:
        """The first layer of the embedding as a sum of a part by x and a part by y: (steps, W or H, 256)."""
        weight, bias, _, _ = _two(self._rule.embed)
        assert inputs.x is not None
        n = weight.shape[1] // 4  # numbers an input is encoded to: x, y, timestep, NCA step
        by_x, by_y = [], []
        for step in range(steps):
            encoded = inputs.at(step)[0]
            by_x.append(weight[:, :n] @ encoded[:n, 0, :])
            by_y.append(weight[:, n:] @ encoded[n:, :, 0] + bias[:, None])
        return _plain(torch.stack(by_x).mT), _plain(torch.stack(by_y).mT)


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def _padded(rows: Tensor, size: int) -> Tensor:
    return torch.nn.functional.pad(rows, (0, size - rows.shape[1]))
