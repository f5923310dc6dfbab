"""What should a timestep inherit? `python benchmarks/heredity.py RUN --network onnx:FILE [--images N] [--guidance G]`.

The four ways of Elbatel et al., figure 5, on one trained GeCA: nothing, the output channels, both, the hidden ones.
Each makes the same number of images of the same seeds; the table has their kernel distance to held-out images (KID with
the FID network, KD with another), with its standard error. What is inherited plays no part in training, so one run will
do.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from morphogen import load_model
from morphogen.automata.geca import GeCA
from morphogen.cli.options import set_options
from morphogen.core.request import SamplingRequest
from morphogen.metrics.distances import kernel_distance
from morphogen.metrics.evaluate import EvaluationSettings, data_config, labels_for, open_parts
from morphogen.metrics.features import extract
from morphogen.metrics.generated import generate_images
from morphogen.metrics.image_sets import of_dataset
from morphogen.metrics.networks import open_network
from morphogen.training.run_folder import read_run

RESULTS = Path(__file__).parent / "results"
PUBLISHED = {"none": 19.37, "out": 44.22, "both": 12.84, "hidden": 7.42}  # KID x 1e3, fundus, guided


def main() -> None:
    """Generate, measure, print, write results/heredity.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--network", default="fid-inception", help="fid-inception, dinov2, or onnx:FILE")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--part", default="test", choices=["train", "val", "test"])
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--sampler", default="ddim")
    parser.add_argument("--sampling-steps", type=int, default=25)
    parser.add_argument("--out", type=Path, default=Path("heredity"))
    chosen = parser.parse_args()
    model = load_model(chosen.run)
    if not isinstance(model, GeCA):
        parser.error(f"{chosen.run} is a {model.family}, which inherits nothing")
    plan = EvaluationSettings(count=chosen.images, part=chosen.part, request=SamplingRequest(guidance=chosen.guidance))
    config = data_config(read_run(chosen.run), chosen.run, model, plan, None)
    real, _ = open_parts(config, replace(plan, real_images=10**9))
    network = open_network(chosen.network)
    expected = extract(network, of_dataset(real))
    rows = labels_for(model, real, plan)
    table = {}
    for heredity in PUBLISHED:
        set_options(model, heredity=heredity)
        images, _ = generate_images(
            model,
            chosen.images,
            chosen.out,
            request=SamplingRequest(chosen.sampler, chosen.sampling_steps, chosen.guidance),
            labels=rows,
        )
        found = kernel_distance(extract(network, images), expected)
        table[heredity] = found._asdict()
    print(f"{network.kernel_label} of {chosen.images} images against {len(expected)} held-out ones, x 1e3")
    for heredity, found in table.items():
        values = [1e3 * value for value in found.values() if isinstance(value, float)]
        print(f"  {heredity:<8} {values[0]:8.2f} +- {values[1]:.2f}   (published {PUBLISHED[heredity]}, KID)")
    settings = {k: str(v) for k, v in vars(chosen).items() if k not in ("out", "run", "network")}
    result = {"run": chosen.run.name, "network": network.name, **settings, "real_images": len(expected), "table": table}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "heredity.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
