"""FourierDiff-NCA written down as its publication lists it: nothing shared, nothing folded.

What our own models are measured against. Its weights have the names of ours, so `load_state_dict` takes theirs.
Source: Kalkhof et al., arXiv 2401.06291, listing 1 and section 3.2, with the shapes of the authors' released code.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WINDOW, FOURIER_STEPS = 16, 32


class Convolution(nn.Module):
    """A weight-normalised convolution; the weight is made anew at every call."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1) -> None:
        super().__init__()
        self.weight_v = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel) / math.sqrt(inputs * kernel**2))
        self.weight_g = nn.Parameter(torch.ones(outputs, 1, 1, 1))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, torch._weight_norm(self.weight_v, self.weight_g, 0), self.bias)


def two_layers(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Linear, SiLU, linear in every cell."""
    return nn.Sequential(Convolution(inputs, hidden), nn.SiLU(), Convolution(hidden, outputs))


class Rule(nn.Module):
    """One NCA step of listing 1."""

    def __init__(self, channels: int, hidden: int, norm: str, padding: str, fixed: list[slice]) -> None:
        super().__init__()
        e, wide = 4, 2 * channels + 4
        self.padding, self.fixed = padding, fixed
        self.embed = two_layers(16, 256, e)
        self.perceive = Convolution(channels + e, channels, 3)
        self.condition_perception = two_layers(e, hidden // 4, wide)
        self.hidden = Convolution(wide, hidden)
        self.norm = nn.GroupNorm(1, hidden) if norm == "group" else None
        self.condition_hidden = two_layers(e, hidden // 4, hidden)
        self.output = Convolution(hidden, channels)

    def forward(self, state: Tensor, encoded: Tensor, fire: Tensor | None) -> Tensor:
        e = self.embed(encoded)
        seen = torch.cat([state, e], dim=1)
        perceived = self.perceive(F.pad(seen, (1, 1, 1, 1), mode=self.padding))
        z = torch.cat([state, e, perceived], dim=1) * self.condition_perception(e)
        hidden = self.hidden(z)
        if self.norm is not None:
            hidden = self.norm(hidden)
        else:
            hidden = F.layer_norm(hidden.permute(0, 2, 3, 1), hidden.shape[1:2]).permute(0, 3, 1, 2)
        change = self.output(F.leaky_relu(hidden, 0.01) * self.condition_hidden(e))
        for channels in self.fixed:
            change[:, channels] = 0
        return state + (change if fire is None else change * fire)


class FourierDiffNCA(nn.Module):
    """The whole model; c channels, h hidden, s steps, three image channels."""

    def __init__(self, channels: int = 96, hidden: int = 512, steps: int = 20, norm: str = "group") -> None:
        super().__init__()
        self.channels, self.steps = channels, steps
        halves = [slice(0, 3), slice(channels, channels + 3)]
        self.fourier = Rule(2 * channels, hidden, norm, "constant", halves)
        self.rule = Rule(channels, hidden, norm, "reflect", halves[:1])

    def encoded(self, t: Tensor, step: float, height: int, width: int) -> Tensor:
        """The sixteen inputs of every cell of every image. t: timesteps over T, (B,)."""
        shape = (len(t), 1, height, width)
        x = torch.linspace(1, 0, width).view(1, 1, 1, -1).expand(shape)
        y = torch.linspace(1, 0, height).view(1, 1, -1, 1).expand(shape)
        inputs = (x, y, t.view(-1, 1, 1, 1).expand(shape), torch.full(shape, step))
        factors = [[math.cos(i), math.cos(0.01 * i), math.sin(i), math.sin(0.01 * i)] for i in range(4)]
        return torch.cat([value * f for value, fs in zip(inputs, factors, strict=True) for f in fs], dim=1)

    def forward(self, noisy: Tensor, t: Tensor, fire_rate: float = 0.9) -> Tensor:
        """The predicted noise (B, 3, H, W). t: timesteps over T, (B,)."""
        batch, colours, height, width = noisy.shape
        state = torch.cat([noisy, noisy.new_zeros(batch, self.channels - colours, height, width)], dim=1)
        spectrum = torch.fft.fftshift(torch.fft.fft2(state, norm="forward"), dim=(-2, -1))
        rows, columns = slice(height // 2, height // 2 + WINDOW), slice(width // 2, width // 2 + WINDOW)
        window = spectrum[..., rows, columns]
        cells = torch.cat([window.real, window.imag], dim=1)
        for i in range(FOURIER_STEPS):
            cells = self.fourier(cells, self.encoded(t, i / WINDOW, WINDOW, WINDOW), None)
        spectrum[..., rows, columns] = torch.complex(*cells.chunk(2, dim=1))
        state = torch.fft.ifft2(torch.fft.ifftshift(spectrum, dim=(-2, -1)), norm="forward").real
        state = torch.cat([noisy, state[:, colours:]], dim=1)
        for i in range(self.steps):
            fire = torch.rand(batch, 1, height, width) < fire_rate
            state = self.rule(state, self.encoded(t, i / self.steps, height, width), fire)
        return state[:, colours : 2 * colours]


def useful_operations(channels: int, hidden: int, steps: int, batch: int, height: int, width: int) -> float:
    """Floating-point operations (multiplications and additions) of one evaluation that no rearrangement saves: the
    rule's three products for every cell of every image, and the conditioning, which all images of a timestep share,
    once a step.
    """

    def rule(c: int) -> tuple[int, int]:
        e, wide, quarter = 4, 2 * c + 4, hidden // 4
        own = 9 * (c + e) * c + wide * hidden + hidden * c
        shared = 16 * 256 + 256 * e + e * quarter + quarter * wide + e * quarter + quarter * hidden
        return 2 * own, 2 * shared

    total = 0
    for (own, shared), cells, count in (
        (rule(2 * channels), WINDOW * WINDOW, FOURIER_STEPS),
        (rule(channels), height * width, steps),
    ):
        total += cells * count * (own * batch + shared)
    return float(total)
