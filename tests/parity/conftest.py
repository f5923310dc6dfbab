"""The benchmark `parity.py`, and the numbers of the released code that it reads, for all tests of parity."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
RELEASED = Path(__file__).parent / "released"


@pytest.fixture(scope="session")
def benchmark() -> ModuleType:
    """The benchmark as a module, where a process for each case would take too long."""
    spec = importlib.util.spec_from_file_location("morphogen_parity_benchmark", ROOT / "benchmarks" / "parity.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def released() -> Callable[[str], list[Path]]:
    """The files of a pattern with numbers that the authors' released implementations computed, with random weights."""

    def find(pattern: str) -> list[Path]:
        files = sorted(RELEASED.glob(pattern))
        assert files, f"there is no {pattern} in {RELEASED}"
        return files

    return find
