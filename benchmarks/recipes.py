"""Which recipe learns more in the same number of steps? `python benchmarks/recipes.py DATA --steps 1500`.

Trains `paper` and `default` from the same seed on the same images and prints the error of the predicted noise on
held-out images (at the published noise levels for both, averaged weights), and with `--network FILE` (an ONNX feature
network that takes (N, 3, 299, 299) in [0, 1]) the kernel distance between samples and held-out images. Interrupted, it
goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from morphogen import Pipeline
from morphogen.data.config import DataConfig
from morphogen.data.dataset import build_dataset
from morphogen.training.loop import train
from morphogen.training.recipes import resolve

RESULTS = Path(__file__).parent / "results"
RECIPES = ("paper", "default")
SAMPLERS = ("ddim", "dpm++")  # of 50 steps


def features(images: np.ndarray, network: str) -> np.ndarray:
    """Features float64 (N, D) of uint8 images (N, H, W, 3)."""
    import onnxruntime

    session = onnxruntime.InferenceSession(network)
    name = session.get_inputs()[0].name
    found = []
    for image in images:
        large = np.asarray(Image.fromarray(image).resize((299, 299), Image.Resampling.BICUBIC), np.float32) / 255
        found.append(session.run(None, {name: large.transpose(2, 0, 1)[None]})[0].reshape(-1))
    return np.asarray(found, np.float64)


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The unbiased squared MMD under the cubic kernel (Binkowski et al., "Demystifying MMD GANs")."""

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / x.shape[1] + 1) ** 3

    within = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (kernel(a, a), kernel(b, b))]
    return float(within[0] + within[1] - 2 * kernel(a, b).mean())


def standard_error(a: np.ndarray, b: np.ndarray, parts: int = 8) -> float:
    """The standard error of the kernel distance, from disjoint eighths of both sets."""
    values = [kernel_distance(a[i::parts], b[i::parts]) for i in range(parts)]
    return float(np.std(values, ddof=1) / np.sqrt(parts))


def main() -> None:
    """Train both, measure both, write results/recipes.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--model", default="diff-nca-small")
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE for both, as in `morphogen train`")
    parser.add_argument("--work", type=Path, default=Path("runs/recipes"))
    parser.add_argument("--network")
    parser.add_argument("--images", type=int, default=256)
    chosen = parser.parse_args()
    runs = {}
    for recipe in RECIPES:
        flags = {
            "model": chosen.model,
            "recipe": recipe,
            "data": {"source": chosen.data, "size": chosen.size},
            "training": {
                "steps": chosen.steps,
                "validate_every": 250,
                "validation_images": 128,
                "sample_every": chosen.steps,
            },
        }
        out = chosen.work / recipe
        train(resolve(flags, None, chosen.set), out)
        records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        measured = [r for r in records if "held_out_noise_error" in r]
        runs[recipe] = {k: [r[k] for r in measured] for k in ("step", "held_out_noise_error")}
        print(f"{recipe:>8}: held-out noise error {runs[recipe]['held_out_noise_error'][-1]:.5f}")
    distances: dict[str, dict[str, list[float]]] = {}
    if chosen.network:
        held_out = build_dataset(DataConfig(source=chosen.data, size=(chosen.size, chosen.size)), "test")
        count = min(chosen.images, len(held_out) // 2)
        real = np.stack([held_out.fixed(i)[0].permute(1, 2, 0).numpy() for i in range(2 * count)])
        known = features(real, chosen.network)
        found = {("real against real", ""): known[:count]}
        for recipe in RECIPES:
            pipeline = Pipeline.from_pretrained(chosen.work / recipe)
            for sampler in SAMPLERS:
                made = pipeline(
                    seeds=range(count), batch_size=32, output_type="np", sampler=sampler, num_inference_steps=50
                ).images
                found[recipe, sampler] = features(made, chosen.network)
        for (name, sampler), values in found.items():
            value, error = kernel_distance(values, known[count:]), standard_error(values, known[count:])
            distances.setdefault(name, {})[sampler] = [value, error]
            print(f"{name:>17} {sampler:>5}: kernel distance {value:.5f} +- {error:.5f}, {count} images")
    RESULTS.mkdir(exist_ok=True)
    result = {
        "data": Path(chosen.data).name,
        "size": chosen.size,
        "model": chosen.model,
        "steps": chosen.steps,
        "set": chosen.set,
        "runs": runs,
        "kernel_distance": distances,
        "images": chosen.images,
        "network": Path(chosen.network).stem if chosen.network else None,
    }
    (RESULTS / "recipes.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
