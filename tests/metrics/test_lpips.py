"""LPIPS diversity: our own forward pass against the lpips package, and the pairs."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from morphogen.core.errors import InputError
from morphogen.metrics.image_sets import ImageSet
from morphogen.metrics.lpips import _CONVOLUTIONS, LPIPS, diversity, draw_pairs

SHARED = Path(__file__).resolve().parents[3] / "shared" / "weights" / "vgg16_features_fp16.safetensors"
_WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)


@pytest.fixture(scope="module")
def vgg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of VGG-16 under torchvision's names."""
    path = tmp_path_factory.mktemp("vgg") / "random.safetensors"
    generator, before, tensors = torch.Generator().manual_seed(0), 3, {}
    numbers = [n for level in _CONVOLUTIONS for n in level]
    for number, width in zip(numbers, _WIDTHS, strict=True):
        deviation = (2 / (9 * before)) ** 0.5
        tensors[f"features.{number}.weight"] = torch.randn(width, before, 3, 3, generator=generator) * deviation
        tensors[f"features.{number}.bias"] = torch.randn(width, generator=generator) * 0.01
        before = width
    save_file(tensors, path)
    return path


def pictures(count: int, side: int = 32, seed: int = 0) -> torch.Tensor:
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 255
    return torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear").to(torch.uint8)


def as_set(images: list[torch.Tensor]) -> ImageSet:
    return ImageSet("pictures", [str(i) for i in range(len(images))], lambda i: images[i])


@pytest.mark.slow
def test_agrees_with_the_lpips_package(vgg: Path) -> None:
    import lpips
    from safetensors.torch import load_file

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torchvision, about how the package calls it
        theirs = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    convolutions = {
        f"features.{n}": m for s in range(1, 6) for n, m in getattr(theirs.net, f"slice{s}").named_children()
    }
    for name, tensor in load_file(vgg).items():
        layer, kind = name.rsplit(".", 1)
        getattr(convolutions[layer], kind).data.copy_(tensor)
    a, b = pictures(4), pictures(4, seed=1)
    with torch.no_grad():
        wanted = theirs(a.float() / 127.5 - 1, b.float() / 127.5 - 1).flatten()
    found = LPIPS(vgg).distances(a, b)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)  # float32 in another order of operations
    assert LPIPS(vgg).distances(a, a).tolist() == [0, 0, 0, 0]


def test_diversity_is_the_mean_over_all_pairs_of_a_small_set(vgg: Path) -> None:
    network, images = LPIPS(vgg), pictures(4)
    found = diversity(network, as_set(list(images)), pairs=100)
    every = [float(network.distances(images[i : i + 1], images[j : j + 1])) for i in range(4) for j in range(i)]
    assert found.pairs == 6
    assert found.mean == pytest.approx(sum(every) / 6, rel=1e-5)
    assert diversity(network, as_set([images[0]] * 3)).mean == 0


def test_mixed_sizes_small_ones_and_one_image(vgg: Path) -> None:
    network = LPIPS(vgg)
    mixed = as_set([pictures(1, 48)[0], pictures(1, 32)[0]])
    assert 0 <= diversity(network, mixed).mean < 0.2  # nearly the same picture in two sizes
    with pytest.raises(InputError, match="at least 16 pixels on a side, not 8x8"):
        diversity(network, as_set(list(pictures(2, 8))))
    with pytest.raises(InputError, match="at least two images"):
        diversity(network, as_set(list(pictures(1))))


@given(st.integers(2, 60), st.integers(1, 200), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_pairs_are_different_and_seeded(count: int, pairs: int, seed: int) -> None:
    drawn = draw_pairs(count, pairs, seed)
    assert len(drawn) == min(pairs, count * (count - 1) // 2) == len({frozenset(p) for p in drawn})
    assert all(i != j and 0 <= i < count and 0 <= j < count for i, j in drawn)
    assert drawn == draw_pairs(count, pairs, seed)


def test_a_wrong_file_is_refused(tmp_path: Path) -> None:
    save_file({"features.0.weight": torch.zeros(1)}, tmp_path / "part.safetensors")
    with pytest.raises(InputError, match=r"lacks .* of VGG-16's convolutions"):
        LPIPS(tmp_path / "part.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"123")
    with pytest.raises(InputError, match="damaged"):
        LPIPS(tmp_path / "broken.safetensors")


@pytest.mark.skipif(not SHARED.is_file(), reason="the shared folder with VGG-16's weights is not here")
def test_trained_weights_tell_structure_from_noise() -> None:
    network = LPIPS(SHARED)
    image = pictures(1, 64)
    brighter = (image.int() + 6).clamp(0, 255).to(torch.uint8)
    noise = torch.randint(-40, 41, image.shape, generator=torch.Generator().manual_seed(0))
    noisy = (image.int() + noise).clamp(0, 255).to(torch.uint8)
    assert float(network.distances(image, brighter)) < 0.25 * float(network.distances(image, noisy))
