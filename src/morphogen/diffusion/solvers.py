"""The steps of the samplers: pure functions from noisy images at one noise level to those at the next.

    step(x, clean, noise, level, next_level, history, fresh) -> (x, history)

x: the noisy images float (B, C, H, W), alpha * image + sigma * noise at `level`. clean, noise: what the model says they
are made of, so that x = alpha * clean + sigma * noise. next_level: where the step leads; `CLEAN` is the last. history:
what the step before returned, or None for a fresh start. fresh: standard normal noise like x, which only the stochastic
steps read. What is returned is x at `next_level`, and the history for the next step.

Every step is pointwise, history included: a pixel of what it returns depends on that pixel of what it is given and on
nothing else. So a region can be stepped alone, and a canvas can keep the history of all its regions.

Coefficients are worked out in float64 and enter as scalars. diffusers' schedulers are the oracle of the tests.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from morphogen.diffusion.variance import between, log_bounds


class NoiseLevel(NamedTuple):
    """How noisy images are: x = alpha * image + sigma * noise, where alpha^2 = alpha_bar and alpha^2 + sigma^2 = 1."""

    alpha_bar: float

    @property
    def alpha(self) -> float:
        """The scale of the image."""
        return math.sqrt(self.alpha_bar)

    @property
    def sigma(self) -> float:
        """The scale of the noise."""
        return math.sqrt(1 - self.alpha_bar)

    @property
    def ratio(self) -> float:
        """sigma / alpha: the noise level of Karras et al., whose x is image + ratio * noise."""
        return math.sqrt((1 - self.alpha_bar) / self.alpha_bar)

    @property
    def log_snr(self) -> float:
        """log(alpha / sigma), the lambda of Lu et al.; infinite for clean images."""
        return -math.log(self.ratio) if self.alpha_bar < 1 else math.inf


CLEAN = NoiseLevel(1.0)


class History(NamedTuple):
    """The state that a step leaves for the next one: pointwise tensors like x (B, C, H, W), and earlier levels."""

    tensors: tuple[Tensor, ...]
    levels: tuple[NoiseLevel, ...]
    """Those of the evaluations before, the latest first; two are all that a solver reads."""


class Solver(Protocol):
    """A step, as the head of this file describes it."""

    def __call__(
        self,
        x: Tensor,
        clean: Tensor,
        noise: Tensor,
        level: NoiseLevel,
        next_level: NoiseLevel,
        history: History | None = None,
        fresh: Tensor | None = None,
    ) -> tuple[Tensor, History | None]: ...


def ddim(
    x: Tensor,
    clean: Tensor,
    noise: Tensor,
    level: NoiseLevel,
    next_level: NoiseLevel,
    history: History | None = None,
    fresh: Tensor | None = None,
) -> tuple[Tensor, None]:
    """Song, Meng and Ermon, "Denoising diffusion implicit models", equation 12 with sigma_t = 0 (eta = 0)."""
    return next_level.alpha * clean + next_level.sigma * noise, None


def ddpm(
    x: Tensor,
    clean: Tensor,
    noise: Tensor,
    level: NoiseLevel,
    next_level: NoiseLevel,
    history: History | None = None,
    fresh: Tensor | None = None,
    learned: Tensor | None = None,
) -> tuple[Tensor, None]:
    """Ho, Jain and Abbeel, "Denoising diffusion probabilistic models", algorithm 2 with the posterior's variance; over
    any two levels as Song et al. write it, equations 12 and 16 with eta = 1.

    learned: where between its bounds the variance of the fresh noise is, (B, C, H, W), in -1..1 (Nichol and Dhariwal,
    "Improved denoising diffusion probabilistic models", equation 15); the mean stays.
    """
    assert fresh is not None
    now, after = level.alpha_bar, next_level.alpha_bar
    variance = (1 - after) / (1 - now) * (1 - now / after)
    mean = next_level.alpha * clean + math.sqrt(max(0.0, 1 - after - variance)) * noise
    if learned is None or next_level == CLEAN:
        return mean + math.sqrt(variance) * fresh, None
    bounds = log_bounds(*(torch.tensor(share, dtype=torch.float64) for share in (now, after)))
    return mean + (between(bounds, learned) / 2).exp() * fresh, None


def euler(
    x: Tensor,
    clean: Tensor,
    noise: Tensor,
    level: NoiseLevel,
    next_level: NoiseLevel,
    history: History | None = None,
    fresh: Tensor | None = None,
) -> tuple[Tensor, None]:
    """Karras, Aittala, Aila and Laine, "Elucidating the design space of diffusion-based generative models", algorithm 1
    without its second-order part; their x is x / alpha here, and their slope d the predicted noise.
    """
    return next_level.alpha * (x / level.alpha + (next_level.ratio - level.ratio) * noise), None


def euler_ancestral(
    x: Tensor,
    clean: Tensor,
    noise: Tensor,
    level: NoiseLevel,
    next_level: NoiseLevel,
    history: History | None = None,
    fresh: Tensor | None = None,
) -> tuple[Tensor, None]:
    """Euler's step to a lower noise level than wanted, and fresh noise up to it: the variances of ancestral sampling,
    Song et al., equation 16 with eta = 1, on the scale of Karras et al., as k-diffusion has it.
    """
    assert fresh is not None
    now, after = level.ratio, next_level.ratio
    up = math.sqrt(after**2 * (now**2 - after**2) / now**2)
    down = math.sqrt(after**2 - up**2)
    return next_level.alpha * (x / level.alpha + (down - now) * noise + up * fresh), None


def heun(
    x: Tensor,
    clean: Tensor,
    noise: Tensor,
    level: NoiseLevel,
    next_level: NoiseLevel,
    history: History | None = None,
    fresh: Tensor | None = None,
) -> tuple[Tensor, History | None]:
    """Karras et al., algorithm 1 with S_churn = 0, an evaluation a call: first Euler's step; then, at the level where
    that led, it is taken again with the mean of the two slopes. The step to the clean image is Euler's, and so is one
    over which the noise falls to less than a quarter, as the first of few steps does: half the difference of the slopes
    times so long a step is more than all the noise that is left.

    history: the x and the noise of the first evaluation.
    """
    if history is None:
        moved, _ = euler(x, clean, noise, level, next_level)
        return moved, None if next_level == CLEAN else History((x, noise), (level,))
    (start, first), before = history.tensors, history.levels[0]
    if level.ratio < before.ratio / 4:
        return x, None
    moved, _ = euler(start, clean, (first + noise) / 2, before, level)
    return moved, None


def dpmpp_2m(
    x: Tensor,
    clean: Tensor,
    noise: Tensor,
    level: NoiseLevel,
    next_level: NoiseLevel,
    history: History | None = None,
    fresh: Tensor | None = None,
) -> tuple[Tensor, History]:
    """Lu et al., "DPM-Solver++: fast solver for guided sampling of diffusion probabilistic models", algorithm 2
    (DPM-Solver++(2M)); first order without history and to the clean image.

    history: the clean images of the evaluation before.
    """
    mean = _extrapolated(clean, level, next_level, history)
    return _towards(x, mean, level, next_level), History((clean,), (level,))


def dpmpp_2s(
    x: Tensor,
    clean: Tensor,
    noise: Tensor,
    level: NoiseLevel,
    next_level: NoiseLevel,
    history: History | None = None,
    fresh: Tensor | None = None,
) -> tuple[Tensor, History | None]:
    """Lu et al., "DPM-Solver++", algorithm 1 (DPM-Solver++(2S)), an evaluation a call: a first-order step to a level
    between, then the whole step from the start; first order to the clean image.

    history: the clean images and the x at the start.
    """
    if history is None or next_level == CLEAN:
        return _towards(x, clean, level, next_level), History((clean, x), (level,))
    (first, start), before = history.tensors, history.levels[0]
    reach = (level.log_snr - before.log_snr) / (next_level.log_snr - before.log_snr)
    return _towards(start, first + (clean - first) / (2 * reach), before, next_level), None


def dpmpp_2m_sde(
    x: Tensor,
    clean: Tensor,
    noise: Tensor,
    level: NoiseLevel,
    next_level: NoiseLevel,
    history: History | None = None,
    fresh: Tensor | None = None,
) -> tuple[Tensor, History]:
    """Lu et al., "DPM-Solver++", appendix (SDE-DPM-Solver++(2M)): algorithm 2 for the diffusion SDE.

    history: as in `dpmpp_2m`.
    """
    assert fresh is not None
    mean = _extrapolated(clean, level, next_level, history)
    step = next_level.log_snr - level.log_snr
    gone = -math.expm1(-2 * step)  # the share of the noise's variance that is replaced
    moved = next_level.sigma / level.sigma * math.exp(-step) * x + next_level.alpha * gone * mean
    return moved + next_level.sigma * math.sqrt(gone) * fresh, History((clean,), (level,))


def unipc(
    x: Tensor,
    clean: Tensor,
    noise: Tensor,
    level: NoiseLevel,
    next_level: NoiseLevel,
    history: History | None = None,
    fresh: Tensor | None = None,
) -> tuple[Tensor, History]:
    """Zhao et al., "UniPC: a unified predictor-corrector framework for fast sampling of diffusion models", algorithms 1
    and 2 in data prediction with B(h) = e^h - 1 and order 2: x, which the step before predicted, is corrected by what
    the model says of it; then the next x is predicted. That is the step of `dpmpp_2m`.

    history: the clean images and the corrected x of the evaluation before, and the clean images of the one before that,
    which counts where its level is named.
    """
    if history is not None:
        x = _corrected(clean, level, history)
    last, levels = (clean, ()) if history is None else (history.tensors[0], history.levels[:1])
    mean = _extrapolated(clean, level, next_level, history)
    return _towards(x, mean, level, next_level), History((clean, x, last), (level, *levels))


def _corrected(clean: Tensor, level: NoiseLevel, history: History) -> Tensor:
    """UniC: x at `level` once more, from the evaluation before, now that the model's clean images at it are known."""
    (last, start, earlier), (before, *levels) = history
    if not levels:
        return _towards(start, (last + clean) / 2, before, level)
    step = level.log_snr - before.log_snr
    r = (levels[0].log_snr - before.log_snr) / step
    # rho_1 + rho_2 = b_1 and r rho_1 + rho_2 = b_2 (Zhao et al., equation 5, the varphi written out).
    growth = math.expm1(-step)
    phi_2 = -growth / step - 1
    b_1, b_2 = phi_2 / growth, (-2 * phi_2 / step - 1) / growth
    rho_1 = (b_1 - b_2) / (1 - r)
    mean = last + rho_1 / r * (earlier - last) + (b_1 - rho_1) * (clean - last)
    return _towards(start, mean, before, level)


def _extrapolated(clean: Tensor, level: NoiseLevel, next_level: NoiseLevel, history: History | None) -> Tensor:
    """The clean images in the middle of a step, by those at its start and one evaluation before (Lu et al., algorithm
    2, D_i): those at its start without history, and in the step to the clean image, which has no middle.
    """
    if history is None or next_level == CLEAN:
        return clean
    last, before = history.tensors[0], history.levels[0]
    ahead = (next_level.log_snr - level.log_snr) / (level.log_snr - before.log_snr)
    return clean + ahead / 2 * (clean - last)


def _towards(x: Tensor, clean: Tensor, level: NoiseLevel, next_level: NoiseLevel) -> Tensor:
    """The exact step where the clean images are the same all the way (Lu et al., "DPM-Solver++", equation 9)."""
    shrunk = -math.expm1(level.log_snr - next_level.log_snr)
    return next_level.sigma / level.sigma * x + next_level.alpha * shrunk * clean
