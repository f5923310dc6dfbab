"""Parameter counts: the published ones, and the ones that follow from the layers."""

from __future__ import annotations

import pytest
import torch

from morphogen.models import PRESETS, create_model

# DESIGN.md, section 5: while training, deployed, published, and the unused BatchNorm of 2h numbers in the published.
TABLE = {
    "fourier-diff-nca": (1_100_192, 1_095_952, 1_101_216, 1024),
    "fourier-diff-nca-1.85m": (1_848_352, 1_843_088, 1_849_632, 1280),
    "fourier-diff-nca-h256": (736_672, 733_712, 737_184, 512),
    "fourier-diff-nca-c48": (524_768, 521_104, 525_792, 1024),
    "diff-nca-paper": (330_440, 328_516, 331_000, None),
    "diff-nca": (329_416, 327_492, None, None),
}
SETTINGS = {  # family, c, h, s, norm
    "diff-nca": ("diff-nca", 96, 512, 20, "cell"),
    "diff-nca-small": ("diff-nca", 48, 128, 10, "cell"),
    "diff-nca-paper": ("diff-nca", 96, 512, 20, "group"),
    "fourier-diff-nca": ("fourier-diff-nca", 96, 512, 20, "group"),
    "fourier-diff-nca-1.85m": ("fourier-diff-nca", 128, 640, 20, "group"),
    "fourier-diff-nca-h256": ("fourier-diff-nca", 96, 256, 20, "group"),
    "fourier-diff-nca-c48": ("fourier-diff-nca", 48, 512, 20, "group"),
    "fourier-diff-nca-small": ("fourier-diff-nca", 32, 128, 10, "cell"),
}


@pytest.mark.parametrize("name", TABLE)
def test_counts_of_the_table(name: str) -> None:
    training, deployed, published, unused = TABLE[name]
    model = create_model(name)
    assert model.parameter_count() == training
    assert model.deployed_parameter_count() == deployed
    assert PRESETS[name].published_parameters == published
    if unused is not None:
        assert published == training + unused


def test_presets_are_those_of_the_design() -> None:
    assert {name for name, preset in PRESETS.items() if preset.family.endswith("nca")} - {"vnca"} == set(SETTINGS)


def rule_counts(state: int, h: int, e: int, inputs: int, norm: str) -> tuple[int, int]:
    """Numbers in the layers of an update rule, and how many of them are gains."""
    wide = 2 * state + e
    layers = [(inputs, 256, 1), (256, e, 1), (state + e, state, 3), (e, h // 4, 1), (h // 4, wide, 1)]
    layers += [(wide, h, 1), (e, h // 4, 1), (h // 4, h, 1), (h, state, 1)]
    gains = sum(outputs for _, outputs, _ in layers)
    weights = sum(i * o * kernel**2 + o for i, o, kernel in layers)
    return weights + gains + (2 * h if norm == "group" else 0), gains


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_and_counts_by_layers(name: str) -> None:
    family, c, h, s, norm = SETTINGS[name]
    model = create_model(name)
    architecture = model.architecture  # type: ignore[attr-defined]
    assert model.family == family
    found = (architecture.channels, architecture.hidden, architecture.nca_steps, architecture.norm)
    assert found == (c, h, s, norm)
    assert (architecture.fire_rate, architecture.encoding) == (0.9, "released")
    if family == "diff-nca":
        counts = [rule_counts(c, h, e=2, inputs=4, norm=norm)]
    else:
        counts = [rule_counts(n, h, e=4, inputs=16, norm=norm) for n in (c, 2 * c)]
    assert model.parameter_count() == sum(count for count, _ in counts)
    assert model.deployed_parameter_count() == sum(count - gains for count, gains in counts)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_parameter_is_used(name: str) -> None:
    """No layer is there for nothing: each has a gradient after one loss."""
    from morphogen.core.keys import Key
    from morphogen.core.model import Batch

    model = create_model(name, size=32, channels=8, hidden=8, nca_steps=2)
    model.training_loss(Batch(torch.rand(2, 3, 32, 32) * 2 - 1), Key.of([1, 2])).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, parameter_name


def test_weights_with_gains_are_those_of_a_plain_convolution_at_first() -> None:
    """The gain starts as the direction's length, so that folding changes nothing."""
    from morphogen.automata.update_rule import WeightNormConv

    torch.manual_seed(0)
    conv = WeightNormConv(5, 7, 3)
    torch.testing.assert_close(conv.weight(), conv.weight_v, rtol=1e-6, atol=0)
    with torch.no_grad():
        conv.weight_g *= -3
        conv.weight_v *= 5  # which its length takes out again
    torch.testing.assert_close(conv.weight() * -5 / 3, conv.weight_v, rtol=1e-6, atol=0)
