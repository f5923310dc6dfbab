"""A small model to look at."""

from __future__ import annotations

from pathlib import Path

import pytest
from studio_models import steady

from morphogen.core.model import Model


@pytest.fixture(scope="session")
def local() -> Model:
    """A Diff-NCA of three steps."""
    return steady("diff-nca-small", size=16)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, local: Model) -> Path:
    """The same as a folder."""
    folder = tmp_path_factory.mktemp("models") / "small"
    local.save_pretrained(folder)
    return folder
