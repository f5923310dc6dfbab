"""How fast is the kernel on other processors than the best? `python benchmarks/kernels.py [--as-avx2]`.

In one run, on the same images and weights and with one thread: the published module as listed, in eager float32;
and ours through the kernels that a wheel holds and this processor can run, whatever else it could: AVX2 alone (which
every x86-64 of the last ten years has), AVX512 and AVX512-BF16, or NEON. Times are medians over interleaved rounds.
Then how far apart the pictures of a seed are that they make. --as-avx2 holds PyTorch, too, to what such a processor
has.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from denoiser import CHANNELS, HIDDEN, SIDE, STEPS, processor, relative
from published import FourierDiffNCA
from torch import Tensor

from morphogen import Pipeline, create_model
from morphogen.automata.fused.build import CHOICE, load_kernel
from morphogen.automata.fused.compiler import VARIANTS
from morphogen.core.evaluation import Evaluation
from morphogen.core.keys import Key

RESULTS = Path(__file__).parent / "results"
# What makes PyTorch compute as it would on a processor that has AVX2 and nothing newer.
AS_AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}


def interleaved(tasks: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median processor seconds of each task, over rounds in which every task runs once, the first thrown away: with
    one thread they are what an idle machine would take, however busy it is.
    """
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds + 1):
        for name, task in tasks.items():
            start = time.process_time()
            task()
            times[name].append(time.process_time() - start)
    return {name: median(found[1:]) for name, found in times.items()}


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
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--as-avx2", action="store_true", help="as a processor that has AVX2 and nothing newer")
    given = parser.parse_args()
    if given.as_avx2 and not os.environ.items() >= AS_AVX2.items():  # PyTorch reads them when it is loaded
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | AS_AVX2)
    torch.set_num_threads(1)
    here = [variant for variant in VARIANTS if variant.runs_here() and (variant.name == "avx2" or not given.as_avx2)]
    kinds = [(variant.name, "float32") for variant in reversed(here)]
    kinds += [(variant.name, "bfloat16") for variant in here if variant.bfloat16]
    tables = [measure(norm, given.batch, given.rounds, kinds) for norm in ("cell", "group")]
    result = {"processor": processor(), "threads": 1, "tables": tables, "pictures": pictures(kinds, 8)}
    (RESULTS / ("kernels-as-avx2.json" if given.as_avx2 else "kernels.json")).write_text(
        json.dumps(result, indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
