"""Triton's kernels for tests: on the GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
import torch

GPU = torch.cuda.is_available()
if not GPU:
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("Triton was imported before its interpreter was asked for", allow_module_level=True)
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton's functions and the kernels are defined, and in calls
pytest.importorskip("triton", reason="Triton is not installed")

import morphogen.automata.fused.triton_attention  # noqa: E402
import morphogen.automata.fused.triton_autograd  # noqa: E402, F401

if not GPU:
    del os.environ["TRITON_INTERPRET"]  # other tests are not to see it; these get it from `surroundings`
DEVICE = torch.device("cuda" if GPU else "cpu")


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The interpreter where there is no GPU; and where there is, PyTorch's own float32 convolutions in float32."""
    if GPU:
        with torch.backends.cudnn.flags(allow_tf32=False):
            yield
    else:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        yield
