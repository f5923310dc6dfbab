"""What does a training step take? `python benchmarks/training.py [--batch 4] [--threads N]`.

FourierDiff-NCA (c=96, h=512, s=20) on 64x64: the published module as listed, by plain autograd in float32, against ours
as `morphogen train` runs it, in float32 and bfloat16, for both norms. Each in a process of its own, which measures the
peak of its own memory beyond what it held before its first step; times are medians over rounds in which the processes
take turns. Then one step of 256x256 with 60 NCA steps, the loader's share of a real run, and results/training.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

RESULTS = Path(__file__).parent / "results"


def peak_bytes() -> int:
    """The most memory that this process has had (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def serve(which: str, norm: str, batch: int, size: int, steps: int, threads: int) -> None:
    """Take a step for each line of standard input; answer its seconds and the peak of additional memory."""
    import torch
    from published import FourierDiffNCA

    from morphogen import create_model
    from morphogen.core.keys import Key
    from morphogen.core.model import Batch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    images = torch.rand(batch, 3, size, size) * 2 - 1
    if which == "published":
        listed = FourierDiffNCA(96, 512, steps, norm)

        def step() -> None:
            noise, t = torch.randn_like(images), torch.rand(batch)
            x = (1 - t).sqrt().view(-1, 1, 1, 1) * images + t.sqrt().view(-1, 1, 1, 1) * noise
            predicted = listed(x, t)
            loss = torch.nn.functional.mse_loss(predicted, noise) + torch.nn.functional.l1_loss(predicted, noise)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        optimizer = torch.optim.Adam(listed.parameters(), 1.6e-3)
    else:
        ours = create_model("fourier-diff-nca", size=size, norm=norm, nca_steps=steps).train()
        ours.recompute = size > 64  # as `train` does where memory is short
        assert ours.compute_in(which) is None, "the fast kernel does not run here"  # type: ignore[arg-type]

        def step() -> None:
            ours.training_loss(Batch(images), Key.of(range(batch))).backward()
            optimizer.step()
            optimizer.zero_grad()

        optimizer = torch.optim.Adam(ours.parameters(), 1.6e-3)
    before = peak_bytes()
    for _ in sys.stdin:
        start = time.perf_counter()
        step()
        print(json.dumps([time.perf_counter() - start, peak_bytes() - before]), flush=True)


class Stepper:
    """A process that takes steps when asked to."""

    def __init__(self, *arguments: object) -> None:
        command = [sys.executable, __file__, "--serve", *map(str, arguments)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.seconds: list[float] = []
        self.bytes = 0

    def step(self) -> None:
        """Take a step."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        seconds, self.bytes = json.loads(self.process.stdout.readline())
        self.seconds.append(seconds)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def compare(norm: str, batch: int, rounds: int, threads: int) -> dict[str, object]:
    """Time and memory of all ways, in turns."""
    ways = {which: Stepper(which, norm, batch, 64, 20, threads) for which in ("published", "float32", "bfloat16")}
    for _ in range(rounds + 1):
        for stepper in ways.values():
            stepper.step()
    table = {}
    print(f"\nfourier-diff-nca, norm {norm}, {batch} images of 64x64, {threads} threads")
    for which, stepper in ways.items():
        stepper.close()
        table[which] = {"seconds": median(stepper.seconds[1:]), "bytes": stepper.bytes}
        print(
            f"  {which:<10} {table[which]['seconds']:8.3f} s a step, {stepper.bytes / 2**30:6.2f} GiB more at its peak"
        )
    base, ours = table["published"], table["bfloat16"]
    faster, smaller = base["seconds"] / ours["seconds"], base["bytes"] / ours["bytes"]
    print(f"  bfloat16: {faster:.1f} times faster, a {smaller:.0f}th of the memory")
    return {"norm": norm, "batch": batch, "ways": table, "times_faster": faster, "times_smaller": smaller}


def large(threads: int) -> dict[str, float]:
    """One step of one image of 256x256 with 60 NCA steps."""
    found = {}
    for norm in ("cell", "group"):
        stepper = Stepper("bfloat16", norm, 1, 256, 60, threads)
        stepper.step()
        stepper.close()
        found[norm] = {"seconds": stepper.seconds[0], "bytes": stepper.bytes}
        print(
            f"256x256, 60 steps, {norm}: {stepper.seconds[0]:.1f} s, {stepper.bytes / 2**30:.2f} GiB more at its peak"
        )
    return found


def loader_share(data: str) -> float:
    """The share of a short real training that it waits for its images."""
    from morphogen.training import loop
    from morphogen.training.recipes import resolve

    waited = 0.0
    plain = loop._Training._next

    def timed(self: loop._Training, stream: object) -> object:
        nonlocal waited
        start = time.perf_counter()
        images = plain(self, stream)  # type: ignore[arg-type]
        waited += time.perf_counter() - start
        return images

    loop._Training._next = timed  # type: ignore[method-assign,assignment]
    flags = {"data": {"source": data, "size": 32}, "training": {"steps": 60, "saving": {"sample_images": 0}}}
    with tempfile.TemporaryDirectory() as folder:
        result = loop.train(resolve(flags), Path(folder) / "run", quiet=True)
        times = [json.loads(line) for line in (result.path / "timing.jsonl").read_text().splitlines()]
    share = waited / (times[-1]["elapsed_s"] * result.step / times[-1]["step"])
    print(f"diff-nca-small, batch 16, 32x32: the training waits {100 * share:.1f} % of its time for images")
    return share


def main() -> None:
    """Measure everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data", default="builtin:tissue", help="what the loader's share is measured on")
    parser.add_argument("--serve", nargs=6, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.serve:
        which, norm, *numbers = chosen.serve
        serve(which, norm, *map(int, numbers))
        return
    result = {
        "threads": chosen.threads,
        "tables": [compare(norm, chosen.batch, chosen.rounds, chosen.threads) for norm in ("cell", "group")],
        "256x256, 60 steps": large(chosen.threads),
        "loader_share": loader_share(chosen.data),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "training.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
