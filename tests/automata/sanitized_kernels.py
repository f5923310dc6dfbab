"""Run the kernels, compiled with AddressSanitizer and UBSan, over shapes at the edges of their loops; see
test_kernel_build.py, which starts this with the sanitizer's library loaded before Python.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch

from morphogen.automata.embedding import Inputs, positions
from morphogen.automata.fused import Acceleration, build, compiler
from morphogen.automata.neighbours import CellGrid, attend
from morphogen.automata.update_rule import UpdateRule
from morphogen.core.keys import Key

FLAGS = ("-O0", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-D_GLIBCXX_ASSERTIONS")
# c, h, (rows, columns), images, width of the embedding's network
SHAPES = [(5, 5, (2, 2), 1, 7), (17, 33, (9, 8), 2, 16), (32, 20, (3, 23), 3, 40)]


def run_rule(fast: Acceleration, norm: str, per_cell: bool, shape: tuple, padding: str) -> None:  # type: ignore[type-arg]
    c, h, size, batch, embedding_hidden = shape
    inputs = 16 if per_cell else 4
    rule = UpdateRule(c, h, inputs, 4 if per_cell else 2, norm, padding, [0, 1], embedding_hidden)  # type: ignore[arg-type]
    x, y = positions(size, torch.device("cpu")) if per_cell else (None, None)
    told = Inputs(torch.rand(batch, 1, 1, 1), 5, "released", x, y)
    key, active = Key.of(range(batch)), torch.rand(batch, 1, *size) < 0.5
    with torch.no_grad():
        state = torch.randn(batch, c, *size)
        fast.run(rule, state, told, 5, fast.fire(key, 5, 0.7, size, active), active)
        fast.run(rule, state, told, 2)
    for recompute in (False, True):
        state = torch.randn(batch, c, *size, requires_grad=True)
        found = fast.run(rule, state, told, 5, fast.fire(key, 5, 0.7, size, None), recompute=recompute)
        found.square().sum().backward()
        assert bool(found.isfinite().all()) and state.grad is not None


def main() -> None:
    native = compiler.native()
    build.native = lambda: replace(native, flags=(*native.flags, *FLAGS))  # type: ignore[assignment]
    torch.manual_seed(0)
    for threads in (1, 3):
        torch.set_num_threads(threads)
        for precision in ("float32", *(["bfloat16"] if native.bfloat16 else [])):
            fast = Acceleration(precision)  # type: ignore[arg-type]
            for shape in SHAPES:
                for norm, per_cell, padding in (
                    ("cell", False, "reflect"), ("group", False, "reflect"), ("cell", True, "reflect"),
                    ("group", True, "zeros"), ("cell", True, "zeros"),
                ):  # fmt: skip
                    run_rule(fast, norm, per_cell, shape, padding)
        for size, heads, deep, masked in (((2, 3), 1, 5, False), ((4, 9), 3, 17, True)):
            grid = CellGrid(2, *size)
            q, k, v = (torch.randn(grid.cells, heads * deep, requires_grad=True) for _ in range(3))
            cells = torch.arange(0, grid.cells, 2)
            attend(q[cells], k, v, cells, grid, heads, masked).square().sum().backward()
    print("nothing found")


if __name__ == "__main__":
    sys.exit(main())
