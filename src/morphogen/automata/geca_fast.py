"""GeCA for inference on a CPU: only what a step changes is computed again, and products are in bfloat16 where wanted.

A cell that did not update keeps its embedding, its key and its value, so a step computes a query, the block, and then a
new key and value for half of the cells, and nothing for the others. Images are computed one after another: an image's
rows then fit the caches, and its numbers do not depend on what else is in the batch.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from morphogen.automata.fused.build import has_bfloat16, load_attention
from morphogen.automata.geca_block import LAST_NORM_EPSILON, NORM_EPSILON, GeCABlock, Modulation, maps, rows
from morphogen.automata.neighbours import CellGrid, attend
from morphogen.core.request import Precision, PrecisionChoice


class FastGeCA:
    """The steps of a model, with its weights as they are when it runs. Raises Unavailable if there is no kernel.

    precision: of the products; sums, the cells and the attention are float32. auto: bfloat16 where the processor has
    it.
    """

    def __init__(self, precision: PrecisionChoice = "auto") -> None:
        load_attention()
        self.wanted = precision
        self.precision: Precision = ("bfloat16" if has_bfloat16() else "float32") if precision == "auto" else precision
        self._made: tuple[list[int], dict[str, Tensor]] | None = None

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return type(self)(self.wanted)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.wanted,)

    def _weights(self, model: GeCABlock) -> dict[str, Tensor]:
        """The weights of the products, converted once for each version of the model's."""
        versions = [p._version for p in model.parameters()] + [id(model)]
        if self._made is None or self._made[0] != versions:
            width, fixed = model.architecture.width, model.fixed_channels
            found = {
                "own": model.embed.weight[:, fixed:],
                "query": model.qkv.weight[:width],
                "key_value": model.qkv.weight[width:],
                "out": model.attention_out.weight,
                "out_bias": model.attention_out.bias,
                "mlp0": model.mlp[0].weight,
                "mlp0_bias": model.mlp[0].bias,
                "mlp2": model.mlp[2].weight,
                "mlp2_bias": model.mlp[2].bias,
                "last": model.last.weight,
                "last_bias": model.last.bias,
            }
            kind = getattr(torch, self.precision)
            made = {name: w.detach().to(kind).contiguous() for name, w in found.items()}  # type: ignore[operator]
            self._made = versions, made
        return self._made[1]

    @torch.no_grad()
    def run(
        self, model: GeCABlock, x: Tensor, cells: Tensor, t: Tensor, labels: Tensor | None, fire: list[Tensor]
    ) -> Tensor:
        """As `GeCA.run`."""
        w = self._weights(model)
        grid = CellGrid(1, x.shape[-2], x.shape[-1])
        parts: list[Tensor] = []
        modulation: Modulation | None = None
        for i in range(len(x)):
            if modulation is None or len(t) > 1 or labels is not None:
                row = None if labels is None else labels[[i]]
                modulation = Modulation(*(m[0] for m in model.modulate(model.conditioning(t[[i % len(t)]], row))))
            fired = [mask[i % len(mask)].flatten().nonzero().flatten() for mask in fire]
            fixed = model.fixed_embedding(x[[i]], grid)
            parts.append(self._image(model, w, rows(cells[[i]]).clone(), fixed, modulation, fired, grid))
        return maps(torch.cat(parts), grid._replace(batch=len(x)))

    def _image(
        self,
        model: GeCABlock,
        w: dict[str, Tensor],
        own: Tensor,
        fixed: Tensor,
        m: Modulation,
        fired: list[Tensor],
        grid: CellGrid,
    ) -> Tensor:
        width, heads = model.architecture.width, model.architecture.heads
        masked, kind = model.architecture.off_grid == "masked", w["own"].dtype

        def normal(values: Tensor, scale: Tensor, shift: Tensor, epsilon: float = NORM_EPSILON) -> Tensor:
            return F.layer_norm(values, (width,), scale, shift, epsilon).to(kind)

        embedded = fixed + F.linear(own.to(kind), w["own"])
        seen = normal(embedded, m.attention_scale, m.attention_shift)
        key_value = F.linear(seen, w["key_value"]).float()
        keys, values = key_value.chunk(2, dim=1)
        for number, cells in enumerate(fired):
            queries = F.linear(seen.index_select(0, cells), w["query"])
            attended = attend(queries.float(), keys, values, cells, grid, heads, masked).to(kind)
            block = torch.addcmul(
                embedded.index_select(0, cells), m.attention_gate, F.linear(attended, w["out"], w["out_bias"]).float()
            )
            hidden = F.gelu(F.linear(normal(block, m.mlp_scale, m.mlp_shift), w["mlp0"], w["mlp0_bias"]))
            block = block.addcmul_(m.mlp_gate, F.linear(hidden, w["mlp2"], w["mlp2_bias"]).float())
            last = normal(block, m.last_scale, m.last_shift, LAST_NORM_EPSILON)
            now = own.index_select(0, cells) + F.linear(last, w["last"], w["last_bias"])
            own.index_copy_(0, cells, now)
            if number + 1 < len(fired):
                following = fixed.index_select(0, cells) + F.linear(now.to(kind), w["own"])
                embedded.index_copy_(0, cells, following)
                seen_now = normal(following, m.attention_scale, m.attention_shift)
                seen.index_copy_(0, cells, seen_now)
                key_value.index_copy_(0, cells, F.linear(seen_now, w["key_value"]).float())
        return own
