"""How fast are we on a CUDA device? `python benchmarks/gpu.py [--batch 16] [--rounds 10]`.

FourierDiff-NCA at 64x64, once with the norm `group` and once with `cell`: the published module as listed, our plain
path and the Triton kernels, each in float32 and with products in bfloat16. For each the time of one evaluation and of
one training step (loss, gradients, Adam), medians over interleaved rounds, and the training step's peak memory. Prints
a table and how far the quickest training step is from the goal, 9 ms (the published 200,000 steps in 30 minutes). Then
GeCA's attention and step, as benchmarks/geca.py has them. Writes
results/gpu-<device>.json. Without a CUDA device it says so and exits with 2.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from device_memory import Task, peak_bytes
from geca import measure as measure_geca
from published import FourierDiffNCA, useful_operations
from torch import Tensor, nn

from morphogen import create_model
from morphogen.core.evaluation import Evaluation
from morphogen.core.keys import Key
from morphogen.core.model import Batch

RESULTS = Path(__file__).parent / "results"
SIDE, CHANNELS, HIDDEN, STEPS = 64, 96, 512, 20
GOAL = 0.009  # seconds for a training step


def timed(task: Task, device: torch.device) -> float:
    """Seconds until the device has finished a task."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    task()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def relative(actual: Tensor, expected: Tensor) -> float:
    """|difference| over |expected|, Euclidean norms."""
    return float((actual.float() - expected).norm() / expected.norm())


class Way:
    """One way to evaluate and train a model. predict and loss take no arguments; narrow: under bfloat16 autocast."""

    def __init__(
        self, model: nn.Module, predict: Callable[[], Tensor], loss: Callable[[], Tensor], narrow: bool
    ) -> None:
        self.model, self.narrow = model, narrow
        self._predict, self._loss = predict, loss
        self.device = next(model.parameters()).device
        self.optimizer = torch.optim.Adam(model.parameters(), 1.6e-3)

    def _precision(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.narrow)

    @torch.no_grad()
    def evaluate(self) -> Tensor:
        """The predicted noise."""
        self.model.eval()
        with self._precision(), self.device:
            return self._predict()

    def train(self) -> None:
        """One training step."""
        self.model.train()
        with self._precision(), self.device:
            loss = self._loss()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def ways(
    norm: str, batch: int, side: int, device: torch.device, **widths: int
) -> tuple[dict[str, Way], dict[str, str]]:
    """Every way that works here, and why others don't."""
    torch.manual_seed(0)
    first: Any = create_model("fourier-diff-nca", size=side, norm=norm, **widths).to(device)
    settings = first.architecture
    listed = FourierDiffNCA(settings.channels, settings.hidden, settings.nca_steps, norm)
    listed.load_state_dict(first.state_dict())
    x = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)
    t, key = torch.full((batch,), 150.0, device=device), Key.of(range(batch))
    found: dict[str, Way] = {}
    missing: dict[str, str] = {}

    def as_published(narrow: bool) -> Way:
        model, fraction = copy.deepcopy(listed).to(device), t / first.diffusion.timesteps
        return Way(model, lambda: model(x, fraction), lambda: (model(x, fraction).float() - x).square().mean(), narrow)

    def ours(precision: Any, narrow: bool) -> Way | str:
        model = copy.deepcopy(first).train()  # so that the gradients' kernels are tried too
        reason = model.compute_in(precision)
        if reason is not None:
            return str(reason)
        images = x.clamp(-1, 1)
        return Way(
            model, lambda: model(x, t, Evaluation(key)).noise, lambda: model.training_loss(Batch(images), key), narrow
        )

    for precision in ("float32", "bfloat16"):
        narrow = precision == "bfloat16"
        found[f"published, {precision}"] = as_published(narrow)
        plain = ours(None, narrow)
        assert isinstance(plain, Way)
        found[f"ours, plain {precision}"] = plain
        fast = ours(precision, False)
        if isinstance(fast, str):
            missing[f"ours, Triton {precision}"] = fast
        else:
            found[f"ours, Triton {precision}"] = fast
    return found, missing


def measure(norm: str, batch: int, side: int, rounds: int, device: torch.device, **widths: int) -> dict[str, Any]:
    """One table."""
    found, missing = ways(norm, batch, side, device, **widths)
    exact = found["ours, plain float32"].evaluate()
    errors = {name: relative(way.evaluate(), exact) for name, way in found.items() if name.startswith("ours")}
    memory = {}
    for name, way in found.items():
        for _ in range(2):  # graphs are captured in the first
            way.train()
        memory[name] = peak_bytes(way.train, device)
    forward: dict[str, list[float]] = {name: [] for name in found}
    training: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(rounds):
        for name, way in found.items():
            forward[name].append(timed(way.evaluate, device))
            training[name].append(timed(way.train, device))
    settings = found["ours, plain float32"].model.architecture
    operations = useful_operations(settings.channels, settings.hidden, settings.nca_steps, batch, side, side)
    print(f"\nfourier-diff-nca, norm {norm}, {batch} images of {side}x{side}")
    print(f"  {'':<24}{'forward ms':>12}{'training ms':>13}{'TFLOP/s':>9}{'peak GiB':>10}{'error':>10}")
    rows: dict[str, dict[str, float | None]] = {}
    for name in found:
        a, b = median(forward[name]), median(training[name])
        rate = 3 * operations / b / 1e12  # a training step is three evaluations' products
        rows[name] = {"forward_s": a, "training_s": b, "training_tflops": rate, "peak_bytes": memory[name]}
        rows[name]["error"] = errors.get(name)
        error = f"{errors[name]:10.1e}" if name in errors else f"{'':>10}"
        print(f"  {name:<24}{1e3 * a:12.2f}{1e3 * b:13.2f}{rate:9.1f}{memory[name] / 2**30:10.2f}{error}")
    for name, reason in missing.items():
        print(f"  {name:<24} not measured: {reason}")
    quickest = min(rows, key=lambda name: median(training[name]))
    ratio = median(training[quickest]) / GOAL
    print(f"  the quickest training step, {quickest}, takes {ratio:.2f} times the goal of {1e3 * GOAL:.0f} ms")
    table = {"norm": norm, "batch": batch, "side": side, "ways": rows, "missing": missing}
    return {**table, "quickest": quickest, "times_the_goal": ratio}


def main() -> None:
    """Measure everything, print it, write results/gpu-<device>.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=10)
    chosen = parser.parse_args()
    if not torch.cuda.is_available():
        print("This benchmark needs a CUDA device, and this machine or this PyTorch has none.", file=sys.stderr)
        raise SystemExit(2)
    device = torch.device("cuda")
    name = torch.cuda.get_device_name(device)
    widths = {"channels": CHANNELS, "hidden": HIDDEN, "nca_steps": STEPS}
    tables = []
    for norm in ("group", "cell"):
        tables.append(measure(norm, chosen.batch, SIDE, chosen.rounds, device, **widths))
        torch.cuda.empty_cache()
    geca = measure_geca([32, 64], chosen.rounds, 4, device)
    result = {"device": name, "torch": torch.__version__, "cuda": torch.version.cuda, "goal_s": GOAL, "tables": tables}
    result["geca"] = geca
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"gpu-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
