"""What does a picture cost? `python benchmarks/costs.py DATA --network FILE --name faces --run nca=RUN --run unet=RUN`.

Samples of trained models by several samplers, sampling steps and NCA steps: the kernel distance to held-out images
(unbiased squared MMD, cubic kernel, in the features of an ONNX network that takes (N, 3, 299, 299) in [0, 1]) beside
the processor time that an image took. Every run is sampled from the same seeds on one thread, in bfloat16: automata by
their kernel, U-Nets compiled by PyTorch; processor time and not the clock, so that a busy machine changes little.
`ablation.py --samplers` trains runs for equal processor time. Prints a table, writes results/costs-NAME.json, and
goes on from there where it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from recipes import features, kernel_distance, standard_error

from morphogen import Pipeline
from morphogen.baselines.unet import UNet
from morphogen.data.config import DataConfig
from morphogen.data.dataset import build_dataset

RESULTS = Path(__file__).parent / "results"
SETTINGS = ("ddpm:300", "ddpm:100", "ddim:100", "ddim:50", "ddim:25", "ddim:12", "ddim:8", "dpm++:50", "dpm++:25")
SETTINGS += ("dpm++:12", "dpm++:8", "dpm++-sde:25", "unipc:25", "unipc:12", "unipc:8", "heun:12", "euler:25")


def main() -> None:
    """Sample, measure, print a table, write results/costs-NAME.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--network", required=True)
    parser.add_argument("--name", required=True, help="of the result's file")
    parser.add_argument("--run", action="append", required=True, help="NAME=RUN, and NAME=RUN@K for K NCA steps")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), help="SAMPLER:STEPS")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--real", type=int, default=1000, help="held-out images compared with")
    parser.add_argument("--batch-size", type=int, default=32)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    file = RESULTS / f"costs-{chosen.name}.json"
    rows = json.loads(file.read_text())["rows"] if file.exists() else []
    known: np.ndarray | None = None
    for text in chosen.run:
        name, _, place = text.partition("=")
        folder, _, nca_steps = place.partition("@")
        pipeline = Pipeline.from_pretrained(folder, precision="bfloat16")
        model = pipeline.model
        if isinstance(model, UNet):
            model.net.compile()
        if nca_steps:
            model.architecture = model.architecture.model_copy(update={"nca_steps": int(nca_steps)})
        if known is None:
            config = DataConfig(source=chosen.data, size=(model.image.height, model.image.width))
            data = build_dataset(config, "test", progress=False)
            count = min(chosen.real, len(data))
            known = features(
                np.stack([data.fixed(i)[0].permute(1, 2, 0).numpy() for i in range(count)]), chosen.network
            )
        for setting in chosen.settings:
            if any(r["run"] == name and r["setting"] == setting for r in rows):
                continue
            sampler, _, steps = setting.partition(":")
            pipeline(seeds=range(chosen.batch_size), sampler="ddim", num_inference_steps=1)  # compiles
            begun = time.process_time()
            made = pipeline(
                seeds=range(chosen.images),
                sampler=sampler,
                num_inference_steps=int(steps),
                batch_size=chosen.batch_size,
                output_type="np",
            ).images
            seconds = (time.process_time() - begun) / chosen.images
            found = features(made, chosen.network)
            value, error = kernel_distance(found, known), standard_error(found, known)
            rows.append({"run": name, "setting": setting, "seconds": seconds, "kernel_distance": [value, error]})
            print(f"{name:>24} {setting:>14} {seconds:>8.3f} s an image, {value:.5f} +- {error:.5f}", flush=True)
            kept = {"data": Path(chosen.data).name, "images": chosen.images, "real": len(known)}
            result = {**kept, "network": Path(chosen.network).stem, "rows": rows}
            RESULTS.mkdir(exist_ok=True)
            file.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
