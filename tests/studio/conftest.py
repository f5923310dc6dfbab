"""A small model to look at."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from morphogen.core.model import Model
from morphogen.models import create_model

SMALL = {"channels": 8, "hidden": 16, "nca_steps": 3}


def steady(name: str, **settings: object) -> Model:
    """An untrained model whose output stays of the size of noise, as a trained one's does."""
    torch.manual_seed(0)
    model = create_model(name, diffusion={"timesteps": 20}, **{**SMALL, **settings})  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter, weight in model.named_parameters():
            if parameter.endswith("output.weight_g"):
                weight.mul_(0.6)
    return model.eval()


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
