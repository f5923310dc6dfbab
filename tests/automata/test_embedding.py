"""What a cell is told about where and when it is."""

from __future__ import annotations

import math

import pytest
import torch

from morphogen.automata.embedding import encode, positions
from morphogen.automata.state import read_noise, seed_state


def number(value: float) -> torch.Tensor:
    return torch.full((1, 1, 1, 1), value, dtype=torch.float64)


def test_released_encoding_of_two() -> None:
    encoded = encode([number(0.3), number(0.7)], "released").flatten().tolist()
    wanted = [0.3 * math.cos(0), 0.3 * math.sin(0), 0.7 * math.cos(1), 0.7 * math.sin(1)]
    assert encoded == pytest.approx(wanted)


def test_released_encoding_of_four() -> None:
    encoded = encode([number(v) for v in (0.1, 0.2, 0.3, 0.4)], "released").flatten().tolist()
    wanted = [
        value * part
        for i, value in enumerate((0.1, 0.2, 0.3, 0.4))
        for part in (math.cos(i), math.cos(0.01 * i), math.sin(i), math.sin(0.01 * i))
    ]
    assert encoded == pytest.approx(wanted)


def test_released_encoding_is_linear_and_sinusoidal_is_not() -> None:
    inputs = [number(v) for v in (0.1, 0.2, 0.3, 0.4)]
    double = [2 * value for value in inputs]
    torch.testing.assert_close(encode(double, "released"), 2 * encode(inputs, "released"))
    sinusoids = encode(inputs, "sinusoidal").flatten().tolist()
    assert sinusoids[:4] == pytest.approx([math.sin(0.1), math.cos(0.1), math.sin(0.001), math.cos(0.001)])
    assert not torch.allclose(encode(double, "sinusoidal"), 2 * encode(inputs, "sinusoidal"), atol=0.1)


def test_maps_of_all_shapes_are_broadcast() -> None:
    x, y = positions((3, 5), torch.device("cpu"))
    time = torch.tensor([0.2, 0.6]).view(2, 1, 1, 1)
    encoded = encode([x, y, time, torch.zeros(2, 1, 1, 1)], "released")
    assert encoded.shape == (2, 16, 3, 5)
    assert encoded[1, 8, 0, 0] == pytest.approx(0.6 * math.cos(2))
    assert encode([time, time], "released").shape == (2, 4, 1, 1)


def test_positions_run_from_one_to_zero() -> None:
    x, y = positions((3, 5), torch.device("cpu"))
    assert x.shape == (1, 1, 1, 5) and y.shape == (1, 1, 3, 1)
    assert x.flatten().tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert y.flatten().tolist() == [1, 0.5, 0]


def test_channel_layout() -> None:
    noisy = torch.randn(2, 3, 4, 5)
    state = seed_state(noisy, 8)
    assert state.shape == (2, 8, 4, 5)
    assert torch.equal(state[:, :3], noisy) and not state[:, 3:].any()
    state[:, 3:6] = 7
    assert (read_noise(state, 3, 3) == 7).all() and read_noise(state, 3, 3).shape == noisy.shape
