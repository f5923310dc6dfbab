"""How fast is one evaluation? `python benchmarks/denoiser.py [--batches 4 16] [--threads N]`.

In one run, on the same images and weights and with the same threads: the published module as listed, in eager float32;
ours, plain and through the fast kernel in float32 and bfloat16; this machine's rate of matrix products; and the U-Net
`unet-m` of diffusers, eager in float32 and compiled in bfloat16. Once with the norm `cell` and once with `group`.
Times are medians over interleaved rounds, so that a busy moment falls on all. With `--run RUN --network FILE` also the
kernel distance between samples of the plain float32 path and the fast one, of the same seeds and of different ones.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from published import FourierDiffNCA, useful_operations
from torch import Tensor, nn

from morphogen import Pipeline, create_model
from morphogen.core.evaluation import Evaluation
from morphogen.core.keys import Key

RESULTS = Path(__file__).parent / "results"
SIDE, CHANNELS, HIDDEN, STEPS = 64, 96, 512, 20


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def product_rate(dtype: torch.dtype, side: int = 2048) -> Callable[[], Tensor]:
    """A square matrix product."""
    a, b = (torch.randn(side, side).to(dtype) for _ in range(2))
    return lambda: torch.mm(a, b)


def interleaved(tasks: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median seconds of each task over rounds in which every task runs once; the first round is thrown away."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds + 1):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            times[name].append(time.perf_counter() - start)
    return {name: median(found[1:]) for name, found in times.items()}


def unet_m() -> nn.Module:
    """The published U-Net M: exactly diffusers' UNet2DModel."""
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=64,
        block_out_channels=(32, 64, 128),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    ).eval()


def relative(actual: Tensor, expected: Tensor) -> float:
    """|difference| over |expected|, Euclidean norms."""
    return float((actual - expected).norm() / expected.norm())


@torch.no_grad()
def measure(norm: str, batch: int, rounds: int, unet: nn.Module, narrow_unet: Callable[[Tensor], object]) -> dict:
    """One table."""
    torch.manual_seed(0)
    ours = create_model("fourier-diff-nca", size=SIDE, norm=norm).eval()
    listed = FourierDiffNCA(CHANNELS, HIDDEN, STEPS, norm).eval()
    listed.load_state_dict(ours.state_dict())
    x, t = torch.randn(batch, 3, SIDE, SIDE), torch.full((batch,), 150.0)
    key = Key.of(range(batch))

    def ours_in(precision: str | None) -> Tensor:
        ours.compute_in(precision)
        return ours(x, t, Evaluation(key)).noise

    exact = ours_in(None)
    errors = {precision: relative(ours_in(precision), exact) for precision in ("float32", "bfloat16")}
    times = interleaved(
        {
            "as published, eager float32": lambda: listed(x, t / ours.diffusion.timesteps),
            "ours, plain float32": lambda: ours_in(None),
            "ours, fast float32": lambda: ours_in("float32"),
            "ours, fast bfloat16": lambda: ours_in("bfloat16"),
            "matrix product, float32": product_rate(torch.float32),
            "matrix product, bfloat16": product_rate(torch.bfloat16),
            "unet-m, eager float32": lambda: unet(x, t),
            "unet-m, compiled bfloat16": lambda: narrow_unet(x),
        },
        rounds,
    )
    operations = useful_operations(CHANNELS, HIDDEN, STEPS, batch, SIDE, SIDE)
    rates = {name: 2 * 2048**3 / times[name] / 1e9 for name in times if name.startswith("matrix")}
    rates |= {name: operations / times[name] / 1e9 for name in times if "published" in name or "ours" in name}
    print(f"\nfourier-diff-nca, norm {norm}, {batch} images of {SIDE}x{SIDE}")
    for name, seconds in times.items():
        rate = f"{rates[name]:8.0f} GFLOP/s" if name in rates else ""
        print(f"  {name:<28} {seconds:8.3f} s {rate}")
    faster = times["as published, eager float32"] / times["ours, fast bfloat16"]
    share = rates["ours, fast bfloat16"] / rates["matrix product, bfloat16"]
    dearer = times["ours, fast bfloat16"] / times["unet-m, compiled bfloat16"]
    print(f"  {faster:.1f} times faster than published; {100 * share:.0f} % of the matrix products' rate in bfloat16;")
    print(f"  {dearer:.1f} times the compiled unet-m; error in bfloat16 {errors['bfloat16']:.4f}, "
          f"in float32 {errors['float32']:.1e}")  # fmt: skip
    return {
        "norm": norm, "batch": batch, "seconds": times, "gflops": rates, "errors": errors, "times_faster": faster,
        "share_of_products": share, "times_unet_m": dearer,
    }  # fmt: skip


def sample_distance(run: str, network: str, count: int) -> dict[str, object]:
    """The kernel distance between samples of the plain path and of the fast one."""
    from recipes import features, kernel_distance, standard_error

    def made(precision: str | None, first: int):
        pipeline = Pipeline.from_pretrained(run)
        pipeline.model.compute_in(precision)  # type: ignore[arg-type]
        return features(pipeline(seeds=range(first, first + count), batch_size=32, output_type="np").images, network)

    plain, fast, other = made(None, 0), made("bfloat16", 0), made("bfloat16", count)
    found = {
        "same seeds": [kernel_distance(plain, fast), standard_error(plain, fast)],
        "different seeds": [kernel_distance(plain, other), standard_error(plain, other)],
    }
    for name, (value, error) in found.items():
        print(f"kernel distance between plain float32 and fast bfloat16, {name}: {value:.6f} +- {error:.6f} ({count})")
    return {"run": Path(run).name, "network": Path(network).stem, "images": count, **found}


def main() -> None:
    """Measure everything, print it, write results/denoiser.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--run", help="a trained run, for the kernel distance between both paths")
    parser.add_argument("--network", help="an ONNX feature network that takes (N, 3, 299, 299) in [0, 1]")
    parser.add_argument("--images", type=int, default=256)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    unet = unet_m()
    compiled = torch.compile(unet)

    def narrow_unet(x: Tensor) -> object:
        with torch.autocast("cpu", torch.bfloat16):
            return compiled(x, torch.full((len(x),), 150.0))

    tables = [measure(n, b, chosen.rounds, unet, narrow_unet) for n in ("cell", "group") for b in chosen.batches]
    result: dict[str, object] = {"processor": processor(), "threads": chosen.threads, "tables": tables}
    if chosen.run and chosen.network:
        result["samples"] = sample_distance(chosen.run, chosen.network, chosen.images)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "denoiser.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
