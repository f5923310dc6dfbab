"""How fast is the kernel on other processors than the best? `python benchmarks/kernels.py [--batch 4] [--threads N]`.

In one run, on the same images and weights and with the same threads: the published module as listed, in eager float32;
and ours through the kernels that a wheel holds and this processor can run, whatever else it could: AVX2 alone (which
every x86-64 of the last ten years has), AVX512 and AVX512-BF16, or NEON. Times are medians over interleaved rounds.
Then how far apart the pictures of a seed are that they make.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from denoiser import CHANNELS, HIDDEN, SIDE, STEPS, interleaved, processor, relative
from published import FourierDiffNCA
from torch import Tensor

from morphogen import Pipeline, create_model
from morphogen.automata.fused.build import CHOICE, load_kernel
from morphogen.automata.fused.compiler import VARIANTS
from morphogen.core.evaluation import Evaluation
from morphogen.core.keys import Key

RESULTS = Path(__file__).parent / "results"


def by_kernel(model: torch.nn.Module, variant: str, precision: str) -> torch.nn.Module:
    """A copy of a model that computes by the kernel for some instructions."""
    os.environ[CHOICE] = variant
    load_kernel.cache_clear()
    fast = copy.deepcopy(model)
    reason = fast.compute_in(precision)
    if reason is not None:
        raise SystemExit(f"no kernel for {variant} in {precision}: {reason}")
    return fast


@torch.no_grad()
def measure(norm: str, batch: int, rounds: int, kinds: list[tuple[str, str]]) -> dict[str, object]:
    """One table."""
    torch.manual_seed(0)
    ours = create_model("fourier-diff-nca", size=SIDE, norm=norm).eval()
    listed = FourierDiffNCA(CHANNELS, HIDDEN, STEPS, norm).eval()
    listed.load_state_dict(ours.state_dict())
    x, t, evaluation = torch.randn(batch, 3, SIDE, SIDE), torch.full((batch,), 150.0), Evaluation(Key.of(range(batch)))
    exact = ours(x, t, evaluation).noise
    tasks: dict[str, Callable[[], Tensor]] = {"as published": lambda: listed(x, t / ours.diffusion.timesteps)}
    tasks["ours, plain PyTorch"] = lambda: ours(x, t, evaluation).noise
    errors = {}
    for variant, precision in kinds:
        fast = by_kernel(ours, variant, precision)
        name = f"kernel, {variant}, {precision}"
        tasks[name] = lambda fast=fast: fast(x, t, evaluation).noise
        errors[name] = relative(tasks[name](), exact)  # which loads its kernel
    times = interleaved(tasks, rounds)
    print(f"\nfourier-diff-nca, norm {norm}, {batch} images of {SIDE}x{SIDE}, eager float32 where nothing is said")
    for name, seconds in times.items():
        print(f"  {name:<28} {seconds:8.3f} s {times['as published'] / seconds:6.1f} times as fast as published")
    return {"norm": norm, "batch": batch, "seconds": times, "errors": errors}


def pictures(kinds: list[tuple[str, str]], count: int) -> dict[str, dict[str, float]]:
    """How many grey levels the pictures of `tissue` differ by from those of the plain path, at most and on average."""
    pipeline = Pipeline.from_pretrained("tissue", precision="float32")
    plain, found = copy.deepcopy(pipeline.model), {}
    plain.compute_in(None)

    def made(model: torch.nn.Module) -> np.ndarray:
        pipeline.model = model
        return pipeline(seeds=range(count), height=64, width=64, output_type="np").images.astype(int)

    expected = made(plain)
    for variant, precision in kinds:
        apart = np.abs(made(by_kernel(plain, variant, precision)) - expected)
        found[f"{variant}, {precision}"] = {"largest": int(apart.max()), "mean": float(apart.mean())}
        print(f"{variant}, {precision}: {apart.max()} levels from PyTorch's at most, {apart.mean():.4f} on average")
    return found


def main() -> None:
    """Measure everything, print it, write results/kernels.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    here = [variant for variant in VARIANTS if variant.runs_here()]
    kinds = [(variant.name, "float32") for variant in reversed(here)]
    kinds += [(variant.name, "bfloat16") for variant in here if variant.bfloat16]
    tables = [measure(norm, given.batch, given.rounds, kinds) for norm in ("cell", "group")]
    result = {"processor": processor(), "threads": given.threads, "tables": tables, "pictures": pictures(kinds, 8)}
    (RESULTS / "kernels.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
