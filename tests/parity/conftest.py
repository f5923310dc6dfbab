"""The benchmark `parity.py`, and the numbers of the released code that it reads, for all tests of parity."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "parity"


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
    """The files of a pattern with numbers of the released implementations; the test is skipped where there are none."""

    def find(pattern: str) -> list[Path]:
        files = sorted(SHARED.glob(pattern))
        if not files:
            pytest.skip(f"{SHARED} with the released implementation's numbers is not there")
        return files

    return find
