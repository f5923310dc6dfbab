"""Is what is painted where the map says, and does it help a segmenter? `python benchmarks/maps.py RUN DATA --work W`.

RUN was trained on DATA with `--maps maps`. Segmenters of `morphogen segment` are trained on the real training images,
on painted pairs alone, on few real ones, and on these with the painted pairs, and tested on the held-out images; one
that was trained on the real ones is also asked to find the maps of the held-out images again in what RUN paints from
them. Prints a table, writes results/maps-NAME.json. What is done in the folder W is not done again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from morphogen.core.condition import class_names
from morphogen.core.images import to_bytes
from morphogen.core.keys import Key
from morphogen.core.request import SamplingRequest
from morphogen.data.config import DataConfig
from morphogen.data.dataset import build_dataset
from morphogen.experiments.expansion import ExpansionSettings
from morphogen.experiments.pair_expansion import expand_pairs
from morphogen.experiments.segmentation import SegmentationSettings, segment, whole_examples
from morphogen.experiments.segmentation_records import SegmentationComparison
from morphogen.experiments.segmenter import SegmenterSettings, find, train_segmenter
from morphogen.metrics.segmentation import dice
from morphogen.tasks.pipeline import Pipeline
from morphogen.training.run_folder import RunFolder, read_run

RESULTS = Path(__file__).parent / "results"


def _named(against: SegmentationComparison | None) -> SegmentationComparison | None:
    """A comparison that names what it is with, and not where that lies."""
    return None if against is None else against.model_copy(update={"file": Path(against.file).name})


def main() -> None:
    """Expand, train, compare, print a table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="trained with maps")
    parser.add_argument("--work", type=Path, required=True, help="a folder for what is made on the way")
    parser.add_argument("--name", required=True, help="of the result's file")
    parser.add_argument("--few", type=int, default=10, help="annotated images of the few")
    parser.add_argument("--times", type=int, default=1, help="painted pairs for each training image")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--found-again-only", action="store_true", help="leave the four segmenters out")
    chosen = parser.parse_args()
    config = read_run(chosen.run)
    own = {name: getattr(config.data, name) for name in ("source", "maps", "classes", "downscale")}
    data = DataConfig(**own, size=8, fit="random", labels="none", split=str(RunFolder(chosen.run).split_file))
    model = Pipeline.from_pretrained(chosen.run).model
    request = SamplingRequest("dpm++", 12)
    pairs = chosen.work / "pairs"
    expand_pairs(model, chosen.run, None, ExpansionSettings(times=chosen.times, request=request), pairs)
    common = {"seeds": tuple(range(chosen.seeds)), "steps": chosen.steps, "precision": "bfloat16"}
    arms = {
        "real": SegmentationSettings(**common),
        "painted": SegmentationSettings(real=0, extra=pairs, baseline=chosen.work / "real", **common),
        "few": SegmentationSettings(real=chosen.few, **common),
        "few-painted": SegmentationSettings(real=chosen.few, extra=pairs, baseline=chosen.work / "few", **common),
    }
    table = {}
    for name, settings in {} if chosen.found_again_only else arms.items():
        found = segment(data, settings, chosen.work / name)
        kept = found.model_copy(update={"source": Path(found.source).name, "baseline": _named(found.baseline)})
        table[name] = kept.as_json()
        against = "" if found.baseline is None else f"  {found.baseline.difference:+.3f}, p {found.baseline.p:.3g}"
        print(f"{name:>12}  Dice {found.dice:.3f}  object F1 {found.object_f1:.3f}{against}", flush=True)
    train = build_dataset(data, "train", progress=False)
    held_out = whole_examples(train.other("test"), range(len(train.other("test"))))
    names = class_names(train.classes)
    own_settings = SegmenterSettings(steps=chosen.steps, precision="bfloat16")
    learnt = whole_examples(train, range(len(train)))
    segmenter = train_segmenter(learnt, None, len(names), own_settings, 0, False)
    again = []
    for k, found in enumerate(held_out.maps):
        with torch.no_grad():
            maps = torch.from_numpy(found.copy())[None]
            painted = model.generate(Key.of([k]), found.shape, request, maps=maps)
        again.append((found, find(segmenter, to_bytes(painted)[0])))
    real = [(true, find(segmenter, image)) for true, image in zip(held_out.maps, held_out.images, strict=True)]
    pairs_of = {"real": real, "painted": again}
    scores = {what: {name: dice(found, k) for k, name in enumerate(names)} for what, found in pairs_of.items()}
    means = {what: float(np.mean([found[name] for name in names[1:]])) for what, found in scores.items()}
    share = means["painted"] / means["real"]
    print(f"found again in painted: Dice {means['painted']:.3f}, in real: {means['real']:.3f}; {share:.2f} of it")
    facts = {"run": chosen.run.name, "few": chosen.few, "times": chosen.times, "arms": table, "found_again": scores}
    (RESULTS / f"maps-{chosen.name}.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
