"""A large image evaluated in tiles is the image evaluated at once, and takes no more memory than its tiles."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from morphogen.core import random
from morphogen.core.evaluation import Evaluation
from morphogen.core.keys import Key
from morphogen.diffusion import tiling
from morphogen.diffusion.guidance import guided
from morphogen.models import create_model


@pytest.fixture(params=[1, 3])
def local(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    settings = {"channels": 60, "hidden": 16, "nca_steps": 3, "patch": request.param}
    model = create_model("diff-nca", size=16, **settings).eval()
    for parameter in model.parameters():  # fresh weights predict nothing
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("holes", [False, True])
def test_tiles_are_the_whole(local: Any, monkeypatch: pytest.MonkeyPatch, holes: bool) -> None:
    x, t = torch.randn(2, 3, 67, 91, generator=torch.Generator().manual_seed(1)), torch.tensor([5.0, 5.0])
    active = torch.zeros(2, 1, 67, 91, dtype=torch.bool)
    active[0, :, 18:40, 5:30] = active[1, :, 60:, 80:] = True
    evaluation = Evaluation(Key((4, 9), 3), active=active if holes else None, nca_steps=None if holes else 5)
    with torch.no_grad():
        whole = guided(local, x, t, evaluation, 1.0).noise
        monkeypatch.setattr(tiling, "TILE", 17)
        monkeypatch.setattr(tiling, "LARGE_PIXELS", 2000)
        sizes: list[torch.Size] = []
        forward = local.forward
        monkeypatch.setattr(local, "forward", lambda x, *more: (sizes.append(x.shape), forward(x, *more))[1])
        tiled = guided(local, x, t, evaluation, 1.0).noise
    # Convolutions sum in another order at another size.
    torch.testing.assert_close(tiled, whole, rtol=0, atol=2e-5)
    assert len(sizes) > 1 and max(s[-1] * s[-2] for s in sizes) < 67 * 91 / 2
    assert holes == (len(sizes) < -(-67 // 17) * -(-91 // 17))


def test_random_numbers_in_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    place = ([3, 2**63], [(5, -2), (0, 2**40)], 3, (33, 21))
    whole = random.normals(*place)
    monkeypatch.setattr(random, "_BAND_CELLS", 50)
    assert torch.equal(random.normals(*place), whole)
