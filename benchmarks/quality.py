"""How good are the pictures after the time that people spend? `python benchmarks/quality.py DATA --network FILE ...`.

Trains several models for the same wall time each, one after the other on the same number of threads, by the command
that a user gives, and measures 512 samples of each against images that no run has seen, in the features of an ONNX
network that takes (N, 3, 299, 299) in [0, 1]: Fréchet and kernel distance, recall, and copies of training images. The
distance of real training images to the same held-out ones stands beside as the floor. A contender is
`NAME=OPTIONS OF MORPHOGEN TRAIN`:

    python benchmarks/quality.py faces64.zip --network FILE --name faces --minutes 10 --seeds 0 1 2 \\
        --contender "in latents=--model fourier-diff-nca-small --autoencoder learn:4" \\
        --contender "U-Net=--model unet-465k"

Prints a line a run, writes results/quality-NAME.json and a sheet of 32 unselected samples a contender (the first seed
of each), and goes on from there where it was interrupted. Run it on a quiet machine: minutes are minutes of the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
TRAINED = 2000  # training images at most that features are taken of


def morphogen(*arguments: object, threads: int) -> str:
    """The output of a command. Ends the benchmark where it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "morphogen", *map(str, arguments)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"{shlex.join(command)} ended with {done.returncode}")
    return done.stdout


def figures_of(run: Path, chosen: argparse.Namespace, setting: str) -> dict[str, Any]:
    """What `morphogen evaluate` finds with one sampler and number of steps."""
    sampler, _, steps = setting.partition(":")
    out = run / f"evaluation-{sampler}-{steps}"
    numbers = ("-n", chosen.images, "--real-images", chosen.real, "--train-images", TRAINED)
    sampling = ("--sampler", sampler, "--sampling-steps", steps, "--network", f"onnx:{chosen.network}")
    printed = morphogen(
        "evaluate", run, "--out", out, *numbers, *sampling, "--lpips", "none", "--json", threads=chosen.threads
    )
    found = json.loads(printed)
    (figure,) = found["figures"]
    floor, copies = figure["floor"], found["copies"] or {}
    return {
        "frechet": figure["frechet"]["value"],
        "frechet_floor": floor["frechet"]["value"],
        "kernel": [figure["kernel"]["value"], figure["kernel"]["standard_error"]],
        "kernel_floor": floor["kernel"]["value"],
        "recall": figure["manifold"]["recall"],
        "recall_floor": floor["manifold"]["recall"],
        "memorises": figure["memorisation"]["memorises"],
        "copies": copies.get("copies"),
        "seconds_an_image": found["generated"]["seconds_per_image"],
    }


def main() -> None:
    """Train, sample, measure, print, write results/quality-NAME.json and the sheets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--network", required=True)
    parser.add_argument("--name", required=True, help="of the result's file")
    parser.add_argument("--contender", action="append", required=True, help="NAME=OPTIONS")
    parser.add_argument("--minutes", type=float, default=60, help="of the clock, for each training")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--settings", nargs="+", default=["dpm++:12", "ddim:50"], help="SAMPLER:STEPS")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--real", type=int, default=1000, help="held-out images compared with, at most")
    parser.add_argument("--work", type=Path, default=Path("runs/quality"))
    parser.add_argument("--sheets", type=Path, help="a folder for the sheets; WORK by default")
    chosen = parser.parse_args()
    file = RESULTS / f"quality-{chosen.name}.json"
    rows: list[dict[str, Any]] = json.loads(file.read_text())["rows"] if file.exists() else []
    for seed in chosen.seeds:
        for text in chosen.contender:
            name, _, options = text.partition("=")
            word = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
            run = chosen.work / f"{chosen.name}-{word}-{chosen.minutes:g}-minutes-{seed}"
            wanted = {"contender": name, "minutes": chosen.minutes, "seed": seed}
            if not (run / "model.safetensors").exists():
                given = ("--size", chosen.size, "--minutes", chosen.minutes, "--seed", seed, "--precision", "auto")
                morphogen("train", chosen.data, "--out", run, *given, *shlex.split(options), threads=chosen.threads)
            about = json.loads(morphogen("info", run, "--json", threads=1))
            records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            for setting in chosen.settings:
                row = {**wanted, "options": options, "setting": setting}
                if any({**known, **row} == known for known in rows):
                    continue
                begun = time.perf_counter()
                row |= {"parameters": about["parameters"], "steps": records[-1]["step"]}
                row |= figures_of(run, chosen, setting)
                row["seconds"] = time.perf_counter() - begun
                rows.append(row)
                print(json.dumps(row), flush=True)
                kept = {"data": Path(chosen.data).name, "images": chosen.images, "threads": chosen.threads}
                RESULTS.mkdir(exist_ok=True)
                file.write_text(
                    json.dumps({**kept, "network": Path(chosen.network).stem, "rows": rows}, indent=1) + "\n"
                )
            sheet = (chosen.sheets or chosen.work) / f"quality-{chosen.name}-{word}-{chosen.minutes:g}-minutes.png"
            if seed == chosen.seeds[0] and not sheet.exists():
                sampler, _, steps = chosen.settings[0].partition(":")
                samples = run / "sheet"
                sampling = ("--sampler", sampler, "--sampling-steps", steps)
                morphogen("sample", run, "-n", 32, *sampling, "--out", samples, threads=chosen.threads)
                sheet.write_bytes((samples / "grid.png").read_bytes())


if __name__ == "__main__":
    main()
