"""How good are samples of other sizes? `python benchmarks/sizes.py RUN DATA --network FILE --name smileys`.

Samples of each size are shrunk to the training size and compared with real images there by the kernel distance
(unbiased squared MMD, cubic kernel) in the features of an ONNX network that takes (N, 3, 299, 299) in [0, 1]; beside it
stand samples of the training size itself, and real images against real ones. A model that stretches its content, as
FourierDiff-NCA does, should keep its distance; one that adds more of the same should lose. Of 512x512 there
are fewer samples (`--large-images`). Measured as published; `--options stretch,forward continue,forward stretch,ortho
continue,ortho` measures every way to treat other sizes in one call. The result's file is written after every row.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image
from recipes import features, kernel_distance, standard_error

from morphogen import Pipeline
from morphogen.cli.options import read_size, set_options
from morphogen.data.config import DataConfig
from morphogen.data.dataset import build_dataset

RESULTS = Path(__file__).parent / "results"
LARGE = 256 * 256


def main() -> None:
    """Sample, measure, print a table, write results/sizes-NAME.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("data")
    parser.add_argument("--network", required=True)
    parser.add_argument("--name", required=True, help="of the result's file")
    parser.add_argument("--sizes", nargs="+", default=["96x96", "78x64", "48x160", "512x512"])
    parser.add_argument("--images", type=int, default=32, help="of each size")
    parser.add_argument("--large-images", type=int, default=8, help="of sizes of 256x256 pixels and more")
    parser.add_argument("--part", default="train")
    parser.add_argument("--downscale", type=float, default=1.0)
    parser.add_argument("--sampler", default="dpm++")
    parser.add_argument("--sampling-steps", type=int, default=25)
    parser.add_argument("--options", nargs="+", default=["stretch,forward"], help="pairs of --positions,--spectrum")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    chosen = parser.parse_args()
    if min(chosen.images, chosen.large_images) < 4:
        parser.error("a standard error needs at least 4 images")
    pipeline = Pipeline.from_pretrained(chosen.run, precision=chosen.precision)
    trained = (pipeline.model.image.height, pipeline.model.image.width)
    config = DataConfig(source=chosen.data, size=trained, downscale=chosen.downscale)
    data = build_dataset(config, chosen.part)
    real = np.stack([data.fixed(i)[0].permute(1, 2, 0).numpy() for i in range(min(len(data), 8 * chosen.images))])
    known = features(real, chosen.network)
    half = len(known) // 2
    apart = [kernel_distance(known[:half], known[half:]), standard_error(known[:half], known[half:])]
    print(f"real against real: {apart[0]:.5f} +- {apart[1]:.5f} ({half} and {len(known) - half} images)")
    rows = []
    RESULTS.mkdir(exist_ok=True)
    kept = {k: getattr(chosen, k) for k in ("part", "downscale", "sampler", "sampling_steps", "precision")}
    facts = {"model": Path(chosen.run).name, "data": Path(chosen.data).name, "trained_at": f"{trained[0]}x{trained[1]}"}
    for text in [f"{trained[0]}x{trained[1]}", *chosen.sizes]:
        height, width = read_size(text) or trained
        for pair in chosen.options if (height, width) != trained else chosen.options[:1]:
            if pipeline.model.family == "fourier-diff-nca":
                positions, spectrum = pair.split(",")
                set_options(pipeline.model, positions=positions, spectrum=spectrum)
            large = height * width >= LARGE
            made = pipeline(
                seeds=range(chosen.large_images if large else chosen.images),
                height=height,
                width=width,
                sampler=chosen.sampler,
                num_inference_steps=chosen.sampling_steps,
                batch_size=1 if large else 4,
            ).images
            small = [np.asarray(image.resize((trained[1], trained[0]), Image.Resampling.BOX)) for image in made]
            found = features(np.stack(small), chosen.network)
            distance = [kernel_distance(found, known), standard_error(found, known, min(8, len(found) // 2))]
            rows.append({"size": text, "options": pair, "images": len(found), "kernel_distance": distance})
            print(f"{text:>9} {pair:>18}: {distance[0]:.5f} +- {distance[1]:.5f} ({len(found)} images)", flush=True)
            result = {**facts, **kept, "network": Path(chosen.network).stem, "real_against_real": apart, "rows": rows}
            (RESULTS / f"sizes-{chosen.name}.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
