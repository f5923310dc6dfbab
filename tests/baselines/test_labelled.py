"""DiT-S and LDM-B: counts, labels, the learned variance, other sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from morphogen.core.errors import InputError
from morphogen.core.evaluation import Evaluation
from morphogen.core.keys import Key
from morphogen.core.model import Batch
from morphogen.core.request import SamplingRequest
from morphogen.models import create_model

NAMES = tuple(f"label {i}" for i in range(11))
SMALL: dict[str, dict[str, Any]] = {
    "dit-s": {"width": 16, "depth": 2, "heads": 2},
    "ldm-b": {"widths": (8, 8), "layers": 1, "groups": 4, "attention": (1,)},
}


def make(name: str, size: tuple[int, int] = (8, 8), **options: Any) -> Any:
    model = create_model(name, size=size, labels=NAMES[:3], exclusive=False, **{**SMALL[name], **options})
    generator = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = 0.2 * torch.randn(weight.shape, generator=generator)
    return model.eval()


def images(batch: int, size: tuple[int, int] = (8, 8)) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("labels", "count"), [(11, 32_731_424), (5, 32_729_120)])
def test_dit_s_has_the_published_count(labels: int, count: int) -> None:
    with torch.device("meta"):
        model = create_model("dit-s", size=32, image_channels=4, labels=NAMES[:labels])
    assert model.parameter_count() == count


@pytest.mark.parametrize(("labels", "count"), [(11, 17_290_248), (5, 17_288_712)])
def test_ldm_b_has_the_published_count_within_one_percent(labels: int, count: int) -> None:
    with torch.device("meta"):
        model = create_model("ldm-b", size=32, image_channels=4, labels=NAMES[:labels])
    assert model.parameter_count() == count
    assert abs(count - 17_300_000) < 173_000


@pytest.mark.parametrize("name", SMALL)
def test_labels_and_variance(name: str) -> None:
    model, x, t = make(name), images(2), torch.tensor([30.0, 700.0])
    rows = torch.tensor([[1.0, 0, 1], [0, 0, 0]])
    with torch.no_grad():
        told, untold, null = (
            model(x, t, Evaluation(Key.of([0, 1]), known)) for known in (rows, None, model.null_rows(2))
        )
        alone = model(x[1:], t[1:], Evaluation(Key.of([1]), rows[1:]))
    assert told.noise.shape == told.variance.shape == x.shape
    assert torch.allclose(untold.noise, null.noise, atol=1e-6)
    assert (told.noise - untold.noise).abs().amax(dim=(1, 2, 3)).min() > 1e-4  # no labels is another thing than unknown
    assert torch.allclose(alone.noise[0], told.noise[1], atol=1e-5)
    fixed = make(name, diffusion={"variance": "fixed", "loss": "mse"})
    assert fixed(x, t).variance is None and fixed(x, t).noise.shape == x.shape


@pytest.mark.parametrize("name", SMALL)
def test_training_and_guided_sampling(name: str) -> None:
    model = make(name)
    gradients = []
    for recompute in (False, True):
        model.zero_grad()
        model.recompute = recompute
        model.train().training_loss(Batch(images(2), torch.eye(3)[:2]), Key.of([1, 5])).backward()
        gradients.append([w.grad.clone() for w in model.parameters() if w.requires_grad])
        assert all(g.abs().sum() > 0 for g in gradients[-1])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*gradients, strict=True))
    model.eval()
    rows = torch.eye(3)
    found = model.generate(Key.of([1, 1, 2]), request=SamplingRequest("ddpm", 3, 2.0), labels=rows)
    assert not torch.equal(found[0], found[1])
    alone = model.generate(Key.of([1]), request=SamplingRequest("ddpm", 3, 2.0), labels=rows[1:2])
    assert torch.allclose(alone[0], found[1], atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_any_size(name: str) -> None:
    model = make(name)
    for size in ((8, 8), (9, 14), (2, 3)):
        assert model(images(1, size), torch.tensor([5.0])).noise.shape == (1, 3, *size)
    with pytest.raises(InputError, match="no NCA steps"):
        model(images(1), torch.tensor([5.0]), Evaluation(Key.of([0]), nca_steps=3))


def test_a_dit_is_told_where_a_token_is() -> None:
    """With the same in every token, places alone tell them apart; they count on beyond the model's own size."""
    model = make("dit-s")
    x, t = torch.ones(1, 3, 8, 8), torch.tensor([5.0])
    noise = model(x, t).noise[0, 0]
    assert (noise[0:2, 0:2] - noise[2:4, 0:2]).abs().max() > 1e-4
    assert (noise[0:2, 0:2] - noise[0:2, 2:4]).abs().max() > 1e-4
    assert torch.equal(model._encode_places((6, 4)).view(6, 4, -1)[:4], model._encode_places((4, 4)).view(4, 4, -1))


def test_what_cannot_be() -> None:
    for options, says in (({"heads": 3}, "does not divide"), ({"width": 18, "heads": 2}, "multiple of 4")):
        with pytest.raises(InputError, match=says):
            make("dit-s", **options)
    learned = {"variance": "learned", "loss": "mse+vb"}
    for name in ("diff-nca-small", "fourier-diff-nca-small", "unet-s"):
        with pytest.raises(InputError, match="learned"):
            create_model(name, diffusion=learned)
