"""What does painting in tiles cost? `python benchmarks/slides.py memory|speed|workers|solvers`.

memory: the peak memory of `morphogen slide`, seen from outside, for a small and a large slide of two steps by a
tiny model, and the time a pixel takes in each. speed: cells stepped a second, halos included, while a slide is
painted, against one batch in memory; processor time, one thread, taking turns. workers: the time of one worker with
one thread against two, and of two processes that multiply matrices against one. solvers: processor time of a slide
of `tissue` by 12 steps of dpm++ and by 20 of ddim, taking turns, and how far its patches are from the data's (kernel
distance: unbiased squared MMD, cubic kernel, in the features of the ONNX network that --network names).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from recipes import features, kernel_distance, standard_error

from morphogen.core.keys import Key
from morphogen.core.model_files import save_model
from morphogen.core.request import SamplingRequest
from morphogen.data.config import DataConfig
from morphogen.data.dataset import build_dataset
from morphogen.diffusion.denoiser import Denoiser
from morphogen.diffusion.sampling import sample
from morphogen.models import create_model, load_model
from morphogen.pyramids import Region, open_pyramid
from morphogen.slides.executors import InProcessExecutor
from morphogen.slides.region import halo_of
from morphogen.slides.render import render
from morphogen.slides.request import SlideRequest
from morphogen.slides.tile_worker import overhead

RESULTS = Path(__file__).parent / "results"


def command(folder: Path, *options: object, threads: int = 1) -> tuple[float, float]:
    """Run `morphogen slide`: seconds, and the peak memory in MiB of its largest process."""
    argv = [sys.executable, "-m", "morphogen", "slide", *map(str, options)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    start = time.monotonic()
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit((folder / "log").read_text())
    return time.monotonic() - start, usage.ru_maxrss / 1024


def memory(folder: Path, sides: list[int]) -> dict[str, object]:
    """Peaks and times of two sides."""
    torch.manual_seed(0)
    (folder / "tiny").mkdir()
    save_model(create_model("diff-nca", channels=8, hidden=8, nca_steps=2), folder / "tiny")
    found = {}
    print(f"{'side':>8} {'peak MiB':>10} {'seconds':>9} {'us/pixel':>9}")
    for side in sides:
        out = folder / f"{side}.ome.zarr"
        seconds, peak = command(folder, folder / "tiny", "--size", side, "--sampling-steps", 2, "--out", out)
        found[side] = {"peak_mib": peak, "seconds": seconds}
        print(f"{side:>8} {peak:>10.0f} {seconds:>9.0f} {seconds / side**2 * 1e6:>9.2f}", flush=True)
    ratio = found[sides[-1]]["peak_mib"] / found[sides[0]]["peak_mib"]
    print(f"peak of the large one over that of the small one: {ratio:.3f}")
    return {"memory": found, "ratio": ratio}


def speed(folder: Path, side: int, repeats: int) -> dict[str, object]:
    """Cells stepped a second of processor time, in tiles and in a batch."""
    torch.set_num_threads(1)
    model = load_model("tissue")
    assert isinstance(model, Denoiser)
    model.compute_in("auto")
    halo, side_of_cell, tiled, batch = halo_of(model), model.cell_size, [], []
    nca_steps = (halo + 1) // side_of_cell - 1
    for repeat in range(repeats):
        spent: list[tuple[float, float]] = []

        class Timed(InProcessExecutor):
            def run(self, i, tiles):  # type: ignore[no-untyped-def]
                self._worker.step(i, 0)  # warm
                start = time.process_time()
                cells = 0.0
                for index in tiles:
                    region = self._worker.grid.region(index)
                    size = self._worker.manifest.size
                    yield index, self._worker.step(i, index)
                    for step in range(nca_steps):
                        stepped = region.grown((nca_steps - 1 - step) * side_of_cell, size)
                        cells += stepped.height * stepped.width / side_of_cell**2
                spent.append((time.process_time() - start, cells))  # noqa: B023

        SlideRequest.executor = lambda self, folder: Timed(folder)  # type: ignore[method-assign,assignment]
        render(SlideRequest("tissue", (side, side), folder / f"{repeat}.ome.zarr", sampling=SamplingRequest("ddim", 4)))
        tiled.append(sum(cells for _, cells in spent) / sum(seconds for seconds, _ in spent))
        key = Key.of(range(4))
        sample(model, key, (256, 256), SamplingRequest("ddim", 1))
        start = time.process_time()
        sample(model, key, (256, 256), SamplingRequest("ddim", 4))
        batch.append(4 * 4 * (256 / side_of_cell) ** 2 * nca_steps / (time.process_time() - start))
        print(f"tiles {tiled[-1] / 1e6:.2f}, batch {batch[-1] / 1e6:.2f} million cells/s", flush=True)
    ratio = statistics.median(tiled) / statistics.median(batch)
    print(f"tiles / batch: {ratio:.3f}; an inner tile's halo costs {overhead(256, halo):.1%}")
    return {"tiles": tiled, "batch": batch, "ratio": ratio, "halo": overhead(256, halo)}


def multiply(_: int) -> None:
    """Some seconds of matrix products in one thread."""
    torch.set_num_threads(1)
    a = torch.randn(1024, 1024)
    for _ in range(200):
        a @ a


def workers(folder: Path, side: int) -> dict[str, object]:
    """One worker against two."""
    found = {}
    for count in (1, 2):
        options = ("tissue", "--size", side, "--sampling-steps", 10, "--workers", count)
        found[f"{count} workers"], _ = command(folder, *options, "--out", folder / f"{count}.ome.zarr", threads=count)
    for count in (1, 2):
        with multiprocessing.get_context("spawn").Pool(count) as pool:
            pool.map(multiply, range(count), chunksize=1)
            start = time.monotonic()
            pool.map(multiply, range(2), chunksize=1)
            found[f"{count} products"] = time.monotonic() - start
    painted, product = found["2 workers"] / found["1 workers"], found["2 products"] / found["1 products"]
    print(f"{found}\ntwo workers take {painted:.2f} of one's time; two matrix products {product:.2f}")
    return {"seconds": found, "painted": painted, "product": product}


def solvers(folder: Path, side: int, repeats: int, network: str) -> dict[str, object]:
    """Time and kernel distance of slides by two samplers."""
    torch.set_num_threads(1)
    data = build_dataset(DataConfig(source="builtin:tissue", size=(48, 48), downscale=4), "train", progress=False)
    real = np.stack([data[n][0].permute(1, 2, 0).numpy() for n in range(500)])
    known = features(real, network)
    settings = (("ddim", 20), ("dpm++", 12))
    seconds: dict[str, list[float]] = {}
    patches: dict[str, list[np.ndarray]] = {}
    for repeat in range(repeats):
        for sampler, steps in settings:
            name, out = f"{sampler} {steps}", folder / f"{sampler}-{repeat}.ome.zarr"
            begun = time.process_time()
            render(SlideRequest("tissue", (side, side), out, repeat, SamplingRequest(sampler, steps)))
            seconds.setdefault(name, []).append(time.process_time() - begun)
            slide = open_pyramid(out)
            places = [(y, x) for y in range(0, side - 47, 48) for x in range(0, side - 47, 48)]
            found = [slide.read_region(Region(y, x, 48, 48)) for y, x in places]
            patches.setdefault(name, []).extend(found)
            print(f"{name}: {seconds[name][-1]:.1f} s of processor time", flush=True)
    rows = {}
    for name, found in patches.items():
        seen = features(np.stack(found), network)
        value, error = kernel_distance(seen, known), standard_error(seen, known)
        rows[name] = {"seconds": min(seconds[name]), "kernel_distance": [value, error], "patches": len(found)}
        print(
            f"{name:>9}: {min(seconds[name]):6.1f} s, kernel distance {value:.4f} ± {error:.4f}, {len(found)} patches"
        )
    ratio = rows["dpm++ 12"]["seconds"] / rows["ddim 20"]["seconds"]
    print(f"dpm++ / ddim: {ratio:.2f} of the time")
    return {"solvers": rows, "ratio": ratio}


def main() -> None:
    """Measure, print, write results/slides-QUESTION.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question", choices=("memory", "speed", "workers", "solvers"))
    parser.add_argument("--network", help="of solvers: an ONNX file that takes (N, 3, 299, 299) in [0, 1]")
    parser.add_argument("--sides", type=int, nargs="+", default=[2048, 16384])
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where there is room: 4 GB for memory")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
        folder = Path(name)
        if chosen.question == "memory":
            found = memory(folder, chosen.sides)
        elif chosen.question == "speed":
            found = speed(folder, chosen.side, chosen.repeats)
        elif chosen.question == "workers":
            found = workers(folder, chosen.side)
        else:
            found = solvers(folder, chosen.side, chosen.repeats, chosen.network)
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(
        {
            **vars(chosen),
            "folder": None,
            "network": chosen.network and Path(chosen.network).name,
            "cores": os.cpu_count(),
            **found,
        },
        indent=1,
    )
    (RESULTS / f"slides-{chosen.question}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
