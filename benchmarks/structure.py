"""Is there structure at every scale? `python benchmarks/structure.py --run NAME=RUN --train LEFT --test RIGHT ...`.

LEFT and RIGHT are images: the half of a slide that the runs were trained on, and the other one. Each run paints one
large picture; 64x64 windows of it at 1, 1/4 and 1/16 (shrunk by area) are compared with windows of the right half at
the same scale: Fréchet and kernel distance in the features of an ONNX network that takes (N, 3, 299, 299) in [0, 1].
The floor is the left half against the right one. With `--levels` also every level of a pyramid told a real coarser
picture, of the left half. Prints a table, writes results/structure-NAME.json and a picture of each run.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from recipes import features, kernel_distance, standard_error

from morphogen import Pipeline
from morphogen.core.images import to_bytes
from morphogen.core.keys import Key
from morphogen.core.request import SamplingRequest
from morphogen.diffusion.condition import in_sampling
from morphogen.diffusion.ladder import Ladder
from morphogen.diffusion.sampling import sample
from morphogen.metrics.distances import frechet_distance

RESULTS = Path(__file__).parent / "results"
SIDE = 64
_TOLD = 384  # pixels on a side, at most, of a real picture that a level is told


def windows(picture: np.ndarray, scale: int, count: int, seed: int) -> np.ndarray:
    """Random windows uint8 (count, 64, 64, 3) of a picture shrunk by a scale; they may overlap."""
    height, width = (n // scale for n in picture.shape[:2])
    small = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BOX))
    draw = np.random.default_rng(seed)
    corners = [
        (int(draw.integers(0, height - SIDE + 1)), int(draw.integers(0, width - SIDE + 1))) for _ in range(count)
    ]
    return np.stack([small[y : y + SIDE, x : x + SIDE] for y, x in corners])


def told(ladder: Ladder, number: int, picture: np.ndarray, seed: int) -> np.ndarray:
    """What a level paints where it is told a real picture uint8 (H, W, 3), shrunk to the level before."""
    config = ladder[number].condition
    assert config is not None
    real = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    size, key = (real.shape[2] * config.factor, real.shape[3] * config.factor), Key.of([seed])
    condition = in_sampling(config, real, ladder.key(key, number), size)
    request = SamplingRequest("dpm++", 12)
    return to_bytes(sample(ladder[number], ladder.key(key, number), size, request, condition=condition))[0]


def main() -> None:
    """Paint, compare, print a table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", action="append", required=True, help="NAME=RUN")
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--network", required=True)
    parser.add_argument("--name", default="slide", help="of the result's file")
    parser.add_argument("--side", type=int, default=3072, help="of the painted picture")
    parser.add_argument("--windows", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--levels", action="store_true")
    parser.add_argument("--pictures", type=Path, help="a folder for what is painted")
    chosen = parser.parse_args()
    train, test = (np.asarray(Image.open(file).convert("RGB")) for file in (chosen.train, chosen.test))
    real = {k: features(windows(test, k, chosen.windows, 0), chosen.network) for k in (1, 4, 16)}
    rows = []

    def compare(name: str, picture: np.ndarray, scales: tuple[int, ...] = (1, 4, 16)) -> None:
        for scale in scales:
            found = features(windows(picture, scale, chosen.windows, 1), chosen.network)
            distances = {
                "frechet": frechet_distance(found, real[scale]),
                "kernel": kernel_distance(found, real[scale]),
                "kernel_error": standard_error(found, real[scale]),
            }
            rows.append({"name": name, "scale": scale, **distances})
            print(f"{name:>24}  1/{scale:<3} FD {distances['frechet']:7.3f}  KD {distances['kernel']:.4f}", flush=True)

    compare("floor: the other half", train)
    for text in chosen.run:
        name, _, folder = text.partition("=")
        pipeline, begun = Pipeline.from_pretrained(folder), time.perf_counter()
        made = pipeline(
            seeds=[chosen.seed], height=chosen.side, width=chosen.side, sampler="dpm++", num_inference_steps=12
        )
        (picture,) = made.images
        print(f"{name}: {chosen.side}x{chosen.side} painted in {time.perf_counter() - begun:.0f} s", flush=True)
        if chosen.pictures:
            chosen.pictures.mkdir(parents=True, exist_ok=True)
            picture.save(chosen.pictures / f"{name}.png")
        compare(name, np.asarray(picture))
        if chosen.levels and isinstance(pipeline.model, Ladder):
            for number in range(1, len(pipeline.model)):
                scale = pipeline.model.scale(number)
                before = pipeline.model.scale(number - 1)
                shape = (train.shape[1] // before, train.shape[0] // before)
                small = Image.fromarray(train).resize(shape, Image.Resampling.BOX)
                left, top = (max(0, (side - _TOLD) // 2) for side in shape)
                middle = np.asarray(small.crop((left, top, min(left + _TOLD, shape[0]), min(top + _TOLD, shape[1]))))
                painted = told(pipeline.model, number, middle, chosen.seed)
                enlarged = painted.repeat(scale, axis=0).repeat(scale, axis=1) if scale > 1 else painted
                compare(f"{name}, level {number} told real", enlarged, (scale,))
    RESULTS.mkdir(exist_ok=True)
    facts = {"side": chosen.side, "windows": chosen.windows, "seed": chosen.seed, "network": Path(chosen.network).stem}
    (RESULTS / f"structure-{chosen.name}.json").write_text(json.dumps({**facts, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
