"""GeCA's attention to neighbours by the Triton kernels: their arguments, buffers and grids.

Needs Triton, so import it only where that is installed. On the CPU it runs in Triton's interpreter, for the tests.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from morphogen.automata.fused import triton_neighbours as kernels
from morphogen.automata.fused.compiler import Unavailable
from morphogen.automata.neighbours import CellGrid, attend

EMULATED: bool = triton.knobs.runtime.interpret
# Relative errors that `check` lets pass: sums in another order, and results rounded to eight bits.
_CHECKED = {torch.float32: 1e-4, torch.bfloat16: 2e-2}


class TritonAttention:
    """The kernel of `neighbours.attend` on CUDA devices. It has no state.

    Inputs are float32, bfloat16 or float16, sums are float32. Beside the inputs a number for each cell and head is kept
    for the gradients. No sum depends on an order that the device chooses.
    """

    device_type = "cuda"

    def takes(self, queries: Tensor) -> bool:
        """Whether this is for such tensors: on its device, and no wider than its sums."""
        return queries.device.type == self.device_type and queries.dtype != torch.float64

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, cells: Tensor, grid: CellGrid, heads: int, masked: bool
    ) -> tuple[Tensor, Tensor]:
        """The attended values, like q, and the log-sum-exp for `gradients`, float32 (F, heads)."""
        q, k, v, cells = q.contiguous(), _in_rows(k), _in_rows(v), cells.contiguous()
        out, spread = torch.empty_like(q), q.new_empty(len(cells), heads, dtype=torch.float32)
        shape = _Shape(q, heads)
        kernels.attend_kernel[shape.programs(len(cells))](
            q, k, v, cells, out, spread, len(cells), k.stride(0), v.stride(0), grid.height, grid.width, shape.scale,
            MASKED=masked, **shape.kind, **shape.tuning,
        )  # fmt: skip
        return out, spread

    def gradients(
        self, q: Tensor, k: Tensor, v: Tensor, cells: Tensor, kept: Tensor, d_out: Tensor, grid: CellGrid, heads: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of q, k and v, in their dtypes, given that of the result of `attend`."""
        q, k, v, cells, d_out = q.contiguous(), _in_rows(k), _in_rows(v), cells.contiguous(), d_out.contiguous()
        d_q, mean = torch.empty_like(q), torch.empty_like(kept)
        d_k, d_v = k.new_empty(k.shape), v.new_empty(v.shape)
        shape = _Shape(q, heads)
        given = k.stride(0), v.stride(0), grid.height, grid.width, shape.scale
        kernels.queries_kernel[shape.programs(len(cells))](
            q, k, v, cells, kept, d_out, d_q, mean, len(cells), *given, **shape.kind, **shape.tuning
        )
        places = torch.full((grid.cells,), -1, dtype=torch.int32, device=q.device)
        places[cells] = torch.arange(len(cells), dtype=torch.int32, device=q.device)
        kernels.keys_values_kernel[shape.programs(grid.cells)](
            q, k, v, places, kept, d_out, mean, d_k, d_v, grid.cells, *given, **shape.kind, **shape.tuning
        )
        return d_q, d_k, d_v

    def check(
        self, device: torch.device, dtype: torch.dtype, width: int, heads: int, masked: bool, gradients: bool
    ) -> None:
        """Run on two small grids, with gradients if they will be wanted, and compare with the plain form.

        Raises Unavailable where the kernels do not run on the device or compute something else.
        """
        grid = CellGrid(2, 5, 6)
        cells = torch.arange(0, grid.cells, 2, device=device)
        numbers = torch.arange(grid.cells * 3 * width, device=device, dtype=torch.float64)
        qkv = (2 * numbers.square().sin()).to(dtype).view(grid.cells, -1)
        found = []
        try:
            for kernel in (self, None):
                rows = qkv.clone().requires_grad_(gradients)
                q, k, v = rows.chunk(3, dim=1)
                with torch.set_grad_enabled(gradients):
                    out = attend(q.index_select(0, cells), k, v, cells, grid, heads, masked, kernel)
                found.append([out.detach().float()])
                if gradients:
                    out.float().square().sum().backward()  # type: ignore[no-untyped-call]
                    assert rows.grad is not None
                    found[-1] += [part.float() for part in rows.grad.chunk(3, dim=1)]
            errors = [((a - b).norm() / b.norm().clamp(min=1e-12)).item() for a, b in zip(*found, strict=True)]
        except Exception as error:  # whatever Triton's compiler, its launcher or the driver say
            reason = str(error).strip().splitlines()
            raise Unavailable(
                f"the Triton kernels do not run here: {reason[0] if reason else type(error).__name__}"
            ) from error
        if not max(errors) < _CHECKED[dtype]:
            raise Unavailable(f"the Triton kernels are wrong on this device, by {max(errors):.2g}")


class _Shape:
    """How the kernels divide the work on rows like `queries`."""

    def __init__(self, queries: Tensor, heads: int) -> None:
        wide = queries.shape[1]
        deep = wide // heads
        block = min(64, max(16, triton.next_power_of_2(deep)))
        self.rows = 16 if EMULATED else 256 // block  # 32 numbers a thread in a tile of neighbours
        self.heads, self.scale = heads, deep**-0.5
        self.kind = {"WIDE": wide, "HEADS": heads, "D": deep, "BM": self.rows, "BD": block}
        self.tuning: dict[str, object] = {} if EMULATED else {"num_warps": 4, "enable_fp_fusion": True}

    def programs(self, count: int) -> tuple[int, int]:
        return triton.cdiv(count, self.rows), self.heads


def _in_rows(values: Tensor) -> Tensor:
    """With the numbers of a row side by side; rows may lie further apart."""
    return values if values.stride(1) == 1 else values.contiguous()
