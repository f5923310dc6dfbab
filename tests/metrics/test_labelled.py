"""Measuring a model with labels: what it is told, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import draw_images

from morphogen.core.errors import InputError
from morphogen.core.images import to_bytes
from morphogen.core.keys import Key
from morphogen.core.request import SamplingRequest
from morphogen.data.config import DataConfig
from morphogen.data.dataset import build_dataset
from morphogen.metrics.evaluate import EvaluationSettings, labels_for
from morphogen.metrics.generated import generate_images
from morphogen.models import create_model


def make(labels: tuple[str, ...]) -> Any:
    small: dict[str, Any] = {"width": 16, "heads": 2, "mlp": 8, "hidden": 4, "nca_steps": 1}
    model = create_model("geca-xs", size=16, labels=labels, **small)
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.data = 0.1 * torch.randn(weight.shape, generator=generator)
    return model.eval()


def test_generated_labels_are_spread_as_the_real_ones(tmp_path: Path) -> None:
    draw_images(tmp_path / "set" / "cat", count=15)
    draw_images(tmp_path / "set" / "dog", count=5, first=20)
    data = build_dataset(DataConfig(source=str(tmp_path / "set"), size=(16, 16), split="none"), progress=False)
    model, plan = make(("cat", "dog")), EvaluationSettings(count=8, request=SamplingRequest(guidance=2.0))
    rows = labels_for(model, data, plan)
    assert rows is not None and rows.sum(dim=0).tolist() == [6, 2]
    images, facts = generate_images(
        model, 8, tmp_path / "g", request=SamplingRequest(steps=2, guidance=2.0), labels=rows, batch_size=3, quiet=True
    )
    assert facts["guidance"] == 2.0
    for seed in (0, 7):  # the same images, one by one
        image = model.generate(Key.of([seed]), request=SamplingRequest("ddim", 2, 2.0), labels=rows[seed : seed + 1])
        expected = torch.from_numpy(to_bytes(image)[0]).permute(2, 0, 1)
        assert (images[seed].int() - expected.int()).abs().max() <= 1
    plain, _ = generate_images(
        model, 8, tmp_path / "g", request=SamplingRequest(steps=2, guidance=1.0), labels=rows, quiet=True
    )
    assert not torch.equal(plain[0], images[0])  # in a folder of their own


def test_what_cannot_be_told(tmp_path: Path) -> None:
    draw_images(tmp_path / "cat", count=3)
    draw_images(tmp_path / "dog", count=3)
    data = build_dataset(DataConfig(source=str(tmp_path), size=(16, 16), split="none"), progress=False)
    assert labels_for(make(()), data, EvaluationSettings(count=4)) is None
    with pytest.raises(InputError, match=r"--guidance 1.5: this geca was trained without labels"):
        labels_for(make(()), data, EvaluationSettings(count=4, request=SamplingRequest(guidance=1.5)))
    with pytest.raises(InputError, match=r"labels of .* are cat, dog, but the model's are cat, owl"):
        labels_for(make(("cat", "owl")), data, EvaluationSettings(count=4))
