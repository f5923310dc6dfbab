"""What does a hole cost? `python benchmarks/inpainting.py --size 512`.

Times one evaluation of a denoiser with only the cells active that `morphogen inpaint` activates, for holes of 1 % to
100 % of the image, in one piece and in ten, and prints its share of a full evaluation in the same process. Holes and
contexts are those of the command; weights are fresh, since they change no time. Models that are not there are left
out. One that computes everything whatever the hole, as a U-Net does, is timed with one hole.

`--photograph 3000 4000` instead times all of filling a box of 64x64 in a picture of that size, from its pixels to its
pixels, and in a crop of 256x256 around the box.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from morphogen.core.evaluation import Evaluation
from morphogen.core.keys import Key
from morphogen.models import PRESETS, create_model
from morphogen.tasks.batch import Job, fill
from morphogen.tasks.inpaint import dilate
from morphogen.tasks.pictures import as_picture

RESULTS = Path(__file__).parent / "results"
MODELS = ("diff-nca", "fourier-diff-nca", "unet-s")
SHARES = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0)
SCATTERED = 10
BOX, CROP = 64, 256


def compact(size: int, share: float) -> torch.Tensor:
    """One square hole in the middle, boolean (1, 1, size, size)."""
    hole = torch.zeros(1, 1, size, size, dtype=torch.bool)
    side = round(size * math.sqrt(share))
    start = (size - side) // 2
    hole[..., start : start + side, start : start + side] = True
    return hole


def scattered(size: int, share: float) -> torch.Tensor:
    """Ten squares of a tenth of the share each, on two rows of five."""
    hole = torch.zeros(1, 1, size, size, dtype=torch.bool)
    side = round(size * math.sqrt(share / SCATTERED))
    for i in range(SCATTERED):
        y = round((i // 5 + 0.5) * size / 2 - side / 2)
        x = round((i % 5 + 0.5) * size / 5 - side / 2)
        hole[..., y : y + side, x : x + side] = True
    return hole


def photograph(height: int, width: int, precision: str, repeats: int) -> None:
    """Time filling one box in a picture and in a crop of it, in turns; print the table, write
    results/inpainting-photograph.json.
    """
    model = create_model("diff-nca-small", size=64).eval()
    model.compute_in(precision)
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    hole = torch.zeros(height, width, dtype=torch.bool)
    top, left = height // 2, width // 2
    hole[top : top + BOX, left : left + BOX] = True
    rows, columns = (slice(a - (CROP - BOX) // 2, a + (CROP + BOX) // 2) for a in (top, left))
    jobs = {
        "crop": Job(as_picture(pixels[rows, columns]), 0, hole[rows, columns]),
        "whole": Job(as_picture(pixels), 0, hole),
    }
    fill(model, [jobs["crop"]])
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(repeats):
        for name, job in jobs.items():
            begun = time.perf_counter()
            fill(model, [job])
            times[name].append(time.perf_counter() - begun)
    seconds = {name: statistics.median(taken) for name, taken in times.items()}
    ratio = seconds["whole"] / seconds["crop"]
    print(f"{'picture':>12} {'seconds':>9}")
    print(f"{f'{CROP}x{CROP}':>12} {seconds['crop']:>9.2f}")
    print(f"{f'{height}x{width}':>12} {seconds['whole']:>9.2f}   {ratio:.2f} times the crop")
    kept = {"size": [height, width], "box": BOX, "crop": CROP, "precision": precision, "repeats": repeats}
    RESULTS.mkdir(exist_ok=True)
    found = {**kept, "seconds": seconds, "ratio": ratio}
    (RESULTS / "inpainting-photograph.json").write_text(json.dumps(found, indent=2) + "\n")


def main() -> None:
    """Time all models, print the table, write results/inpainting.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--context", type=int, help="cells around the hole; by default the model's NCA steps")
    parser.add_argument("--repeats", type=int, default=3, help="full and partial runs take turns; medians count")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--photograph", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"))
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.photograph:
        photograph(*chosen.photograph, chosen.precision, chosen.repeats)
        return
    cases = [(f"one of {share:.0%}", compact(chosen.size, share)) for share in SHARES]
    cases += [(f"ten of {share / SCATTERED:.1%}", scattered(chosen.size, share)) for share in (0.01, 0.1, 0.25)]
    rows = []
    print(f"{'model':>18} {'hole':>13} {'active':>8} {'seconds':>9} {'of a full run':>14}")
    for name in chosen.models:
        if name not in PRESETS:
            print(f"{name:>18} is not among the models of this version")
            continue
        model = create_model(name, size=64).eval().to(chosen.device)
        model.compute_in(chosen.precision)
        x = torch.randn(1, 3, chosen.size, chosen.size, device=chosen.device)
        t = torch.tensor([100.0], device=chosen.device)

        def once(active: torch.Tensor | None, model=model, x=x, t=t) -> float:
            begun = time.perf_counter()
            with torch.no_grad():
                model(x, t, Evaluation(Key.of([0]), active=active)).noise.sum().item()
            return time.perf_counter() - begun

        around = chosen.context if chosen.context is not None else model.context
        if around is None:
            pairs, timed = 1, [("any", cases[-1][1])]
        else:
            pairs, timed = chosen.repeats, cases
            once(None)
        for label, hole in timed:
            active = None if around is None else dilate(hole, around).to(chosen.device)
            times = [(once(active), once(None)) for _ in range(pairs)]
            seconds, full = (statistics.median(column) for column in zip(*times, strict=True))
            share = 1.0 if active is None else float(active.float().mean())
            rows.append({"model": name, "hole": label, "active": share, "seconds": seconds, "full_seconds": full})
            print(f"{name:>18} {label:>13} {share:>8.1%} {seconds:>9.3f} {seconds / full:>14.2f}", flush=True)
        RESULTS.mkdir(exist_ok=True)
        kept = {k: getattr(chosen, k) for k in ("size", "context", "repeats", "precision", "threads", "device")}
        (RESULTS / "inpainting.json").write_text(json.dumps({**kept, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
