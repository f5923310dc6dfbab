"""A real window of napari, on a screen that nobody need see."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def viewer(tmp_path: Path) -> Iterator[Any]:
    """napari's window, with Morphogen's plugin found as an installed one is."""
    pytest.importorskip("npe2", reason="napari is not installed: make test-napari")
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        pytest.skip("napari draws by OpenGL, which needs a screen or Xvfb: make test-napari")
    os.environ.setdefault("NAPARI_CONFIG", str(tmp_path / "settings.yaml"))
    import napari
    from napari.utils.notifications import notification_manager

    notification_manager.records.clear()
    window = napari.Viewer(show=False)
    yield window
    window.close()


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], None]:
    """until(condition): let the window do its work until something has come about, 60 seconds at most."""

    def wait(condition: Callable[[], bool]) -> None:
        from qtpy.QtWidgets import QApplication

        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end, "it did not come about within 60 seconds"
            QApplication.processEvents()
            time.sleep(0.01)

    return wait
