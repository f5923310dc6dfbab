"""The baselines on a GPU against the CPU."""

from __future__ import annotations

import pytest
import torch

from morphogen.core.keys import Key
from morphogen.core.model import Batch
from morphogen.models import create_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]


@pytest.mark.parametrize("name", ["unet-50k", "unet-s", "vnca"])
def test_loss_and_gradients_agree_with_the_cpu(name: str) -> None:
    found = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        model = create_model(name, size=32).to(device).train()
        images = (torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1).to(device)
        loss = model.training_loss(Batch(images), Key.of(range(4)))
        loss.backward()
        norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
        found.append((float(loss.detach()), float(norm)))
    assert found[1] == pytest.approx(found[0], rel=2e-3)  # float32, with TF32 convolutions on newer devices
