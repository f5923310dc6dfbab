"""Which settings make the better model in the same processor time? `python benchmarks/ablation.py DATA --network FILE`.

Trains variations of a preset, each for the same processor seconds of training steps (so that a busy machine changes
little; steps are counted out from a few that are measured first), and compares samples with held-out images: kernel
and Fréchet distance in the features of an ONNX network that takes (N, 3, 299, 299) in [0, 1]. Prints a line a
variation and adds it to results/ablation.json.

    python benchmarks/ablation.py faces64.zip --network FILE --model fourier-diff-nca-small --name patch2 \\
        --set architecture.patch=2 --set architecture.window=8
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recipes import features, kernel_distance, standard_error

from morphogen import Pipeline
from morphogen.core.keys import Key
from morphogen.core.model import Batch
from morphogen.data.config import DataConfig
from morphogen.data.dataset import build_dataset
from morphogen.metrics.distances import frechet_distance
from morphogen.models import build_model
from morphogen.training.config import RunConfig
from morphogen.training.devices import resolve_precision
from morphogen.training.loop import train
from morphogen.training.optimizer import make_optimizer
from morphogen.training.recipes import resolve

RESULTS = Path(__file__).parent / "results"
LOADING = 0.004  # seconds a step that reading images takes


def step_seconds(config: RunConfig) -> float:
    """The median processor time of a training step."""
    model = build_model(config.model_settings(), "the variation").train()
    if config.training.devices.kernel == "auto":
        model.compute_in(resolve_precision(config.training.devices.precision, "cpu"))
    optimizer = make_optimizer(model, config.training.optimizer.model_copy(update={"learning_rate": 1e-5}))
    count, (height, width) = config.training.batch_size, config.data.size
    images, times = torch.rand(count, 3, height, width) * 2 - 1, []
    for i in range(7):
        begun = time.process_time()
        narrow = config.training.devices.precision == "bfloat16" and model.family == "unet"
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            loss = model.training_loss(Batch(images), Key.of(range(i * count, (i + 1) * count)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(time.process_time() - begun)
    return statistics.median(times[2:]) + LOADING


def main() -> None:
    """Train and measure one variation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--network", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--model", default="fourier-diff-nca-small")
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE, as in `morphogen train`")
    parser.add_argument("--seconds", type=float, default=90, help="processor time of the training")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--samplers", nargs="*", default=["dpm++:25", "ddpm:100"], help="SAMPLER:STEPS; none: train")
    parser.add_argument("--work", type=Path, default=Path("runs/ablation"))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    training: dict[str, Any] = {"precision": "bfloat16", "sample_images": 0, "validate_every": 10**6, "steps": 1}
    training |= {"checkpoint_every": 10**6, "seed": chosen.seed}
    flags = {"model": chosen.model, "recipe": chosen.recipe, "data": {"source": chosen.data, "size": chosen.size}}
    seconds = step_seconds(resolve({**flags, "training": training}, None, chosen.set))
    training["steps"] = training["validate_every"] = max(int(chosen.seconds / seconds), 1)
    out = chosen.work / f"{Path(chosen.data).stem}-{chosen.name}-{chosen.seed}"
    train(
        resolve({**flags, "training": {**training, "saving": {"validation_images": 128}}}, None, chosen.set),
        out,
        quiet=True,
    )
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    if not chosen.samplers:
        return
    held_out = build_dataset(DataConfig(source=chosen.data, size=(chosen.size, chosen.size)), "test", progress=False)
    real = [held_out.fixed(i)[0].permute(1, 2, 0).numpy() for i in range(min(1000, len(held_out)))]
    known = features(np.stack(real), chosen.network)
    pipeline = Pipeline.from_pretrained(out)
    row: dict[str, Any] = {
        "name": chosen.name,
        "data": Path(chosen.data).name,
        "model": chosen.model,
        "parameters": pipeline.model.parameter_count(),
        "set": chosen.set,
        "seed": chosen.seed,
        "budget_seconds": chosen.seconds,
        "step_ms": 1000 * seconds,
        "steps": training["steps"],
        "held_out_noise_error": records[-1]["held_out_noise_error"],
    }
    for text in chosen.samplers:
        sampler, _, steps = text.partition(":")
        begun = time.process_time()
        made = pipeline(
            seeds=range(chosen.images),
            sampler=sampler,
            num_inference_steps=int(steps),
            batch_size=32,
            output_type="np",
        ).images
        took, found = (time.process_time() - begun) / chosen.images, features(made, chosen.network)
        row[text] = {
            "kernel_distance": [kernel_distance(found, known), standard_error(found, known)],
            "frechet_distance": frechet_distance(found, known),
            "seconds": took,
        }
    print(json.dumps(row))
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / "ablation.json"
    rows = json.loads(file.read_text()) if file.exists() else []
    file.write_text(json.dumps([*rows, row], indent=2) + "\n")


if __name__ == "__main__":
    main()
