"""Is every sampler sound at every number of steps? `python benchmarks/samplers.py DATA --network FILE --run NAME=RUN`.

Each sampler with 8 to 250 steps, from the same seeds: the mean and the spread (standard deviation) of the pixels beside
those of held-out images, and with 12 and 100 steps the Fréchet distance to these in the features of an ONNX network
that takes (N, 3, 299, 299) in [0, 1], with its bootstrap error. A sampler is sound where mean and spread are within
10 % of the data's (the mean on the scale of its spread), and where more steps make nothing worse: the distance at
100 is at most that at 12 plus its error. Prints a table, writes results/samplers.json, and goes on from there.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recipes import features

from morphogen import Pipeline
from morphogen.data.config import DataConfig
from morphogen.data.dataset import build_dataset
from morphogen.diffusion.samplers import SAMPLERS
from morphogen.metrics.distances import frechet_distance

RESULTS = Path(__file__).parent / "results"
STEPS = (8, 12, 25, 50, 100, 250)
COMPARED = (12, 100)


def distance(made: np.ndarray, real: np.ndarray, resamples: int = 8) -> tuple[float, float]:
    """The Fréchet distance of features, and its standard error over resamples of the generated ones."""
    draw = np.random.default_rng(0)
    again = [frechet_distance(made[draw.integers(0, len(made), len(made))], real) for _ in range(resamples)]
    return frechet_distance(made, real), float(np.std(again, ddof=1))


def is_sound(row: dict[str, Any], real: dict[str, float]) -> bool:
    """Whether mean and spread are within 10 % of the data's."""
    return abs(row["mean"] - real["mean"]) <= 0.1 * real["spread"] and abs(row["spread"] / real["spread"] - 1) <= 0.1


def main() -> None:
    """Sample, measure, print a table, write results/samplers.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--network", required=True)
    parser.add_argument("--run", action="append", required=True, help="NAME=RUN")
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS))
    parser.add_argument("--steps", nargs="+", type=int, default=list(STEPS))
    parser.add_argument("--images", type=int, default=64, help="for mean and spread")
    parser.add_argument("--compared", type=int, default=256, help="for the distance")
    parser.add_argument("--real", type=int, default=1000, help="held-out images compared with")
    parser.add_argument("--out", type=Path, default=RESULTS / "samplers.json")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    result = json.loads(chosen.out.read_text()) if chosen.out.exists() else {}
    for text in chosen.run:
        name, _, folder = text.partition("=")
        pipeline = Pipeline.from_pretrained(folder, precision="bfloat16")
        picture = pipeline.model.picture
        config = DataConfig(source=chosen.data, size=(picture.height, picture.width))
        data = build_dataset(config, "test", progress=False)
        count = min(chosen.real, len(data))
        held_out = np.stack([data.fixed(i)[0].permute(1, 2, 0).numpy() for i in range(count)])
        known = features(held_out, chosen.network)
        real = {"mean": float(held_out.mean()) / 255, "spread": float((held_out / 255).std())}
        kept = result.setdefault(name, {"data": Path(chosen.data).name, "real": real, "rows": []})
        print(f"{name}: real mean {real['mean']:.3f}, spread {real['spread']:.3f}", flush=True)
        for sampler in chosen.samplers:
            distances: dict[int, tuple[float, float]] = {}
            for steps in chosen.steps:
                if steps > pipeline.model.diffusion.timesteps or any(  # type: ignore[attr-defined]
                    (r["sampler"], r["steps"]) == (sampler, steps) for r in kept["rows"]
                ):
                    continue
                images = chosen.compared if steps in COMPARED else chosen.images
                made = pipeline(
                    seeds=range(images), sampler=sampler, num_inference_steps=steps, batch_size=32, output_type="np"
                ).images
                made = np.stack(made)
                row: dict[str, Any] = {"sampler": sampler, "steps": steps, "images": images}
                row |= {"mean": float(made.mean()) / 255, "spread": float((made / 255).std())}
                if steps in COMPARED:
                    distances[steps] = distance(features(made, chosen.network), known)
                    row["frechet_distance"] = distances[steps]
                row["sound"] = is_sound(row, real)
                kept["rows"].append(row)
                found = " FD {:.2f} +- {:.2f}".format(*distances[steps]) if steps in distances else ""
                verdict = "" if row["sound"] else "   NOT SOUND"
                print(
                    f"{sampler:>14} {steps:>4}  mean {row['mean']:.3f}  spread {row['spread']:.3f}{found}{verdict}",
                    flush=True,
                )
            if set(COMPARED) <= distances.keys():
                few, many = (distances[steps] for steps in COMPARED)
                error = (few[1] ** 2 + many[1] ** 2) ** 0.5
                if many[0] > few[0] + error:
                    print(f"{sampler:>14} MORE STEPS ARE WORSE: {many[0]:.2f} against {few[0]:.2f} +- {error:.2f}")
            RESULTS.mkdir(exist_ok=True)
            chosen.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
