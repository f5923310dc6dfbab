"""Does an expansion of a scarce, unbalanced training set help a classifier?

    python benchmarks/expanding.py gain DATA --encoder ENCODER.onnx --decoder DECODER.onnx --work FOLDER

`gain` does it from end to end for every seed, in one process on one core: a choice of images, a generator that is also
given about 2,000 images of the same source without labels, an expansion, and classifiers of the same number of steps
with geometric augmentation, without the expansion (the baseline) and with it in several ways. What is done in FOLDER is
not done again. It writes `gain` into results/expanding.json after every seed: the mAP points by which the way that
`classify` takes by default is above the baseline, and p of the paired t-test over the seeds.

    python benchmarks/expanding.py split DATA --out scarce.json
    morphogen train DATA --out run --model geca-xs --size 64 --autoencoder onnx:ENCODER,DECODER --fit crop \\
        --split scarce.json --minutes 15 --precision bfloat16 --set architecture.nca_steps=6
    morphogen expand run --times 5 --guidance 1 --heredity none --sampler dpm++ --sampling-steps 8 --batch-size 50 \\
        --precision bfloat16
    morphogen classify DATA --split scarce.json --seeds 3 --steps 300 --precision bfloat16 --out alone
    morphogen classify DATA --split scarce.json --seeds 3 --steps 300 --precision bfloat16 --out more \\
        --extra expanded --baseline alone

`split` keeps a falling number of images a class for training (300, 150, 100, 60, by sorted names), 40 a
class for validation, and holds all others out for testing. docs/expanding.md has what came out.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import ttest_rel

from morphogen import load_model
from morphogen.core.random import mix
from morphogen.core.request import SamplingRequest
from morphogen.data.config import DataConfig
from morphogen.data.dataset import permutation
from morphogen.data.source import Part, Source
from morphogen.data.sources import open_source
from morphogen.data.splits import split_of, write_split
from morphogen.experiments.classification import classify
from morphogen.experiments.classification_settings import ClassificationSettings
from morphogen.experiments.expansion import ExpansionSettings, expand
from morphogen.metrics.scores import SCORES
from morphogen.training.loop import train
from morphogen.training.recipes import resolve

RESULTS = Path(__file__).parent / "results" / "expanding.json"
KEPT, VALIDATED, UNLABELLED = (300, 150, 100, 60), 40, 2000
SIZE = 64
# FourierDiff-NCA in latents of 8x8 cells, told a class: the quality recipe of docs/recipes.md.
GENERATOR: dict[str, Any] = {
    "model": "fourier-diff-nca",
    "architecture": {
        "channels": 96, "hidden": 192, "norm": "cell", "window": 4, "fourier_steps": 6, "nca_steps": 6,
        "embedding_hidden": 64, "output_gain": 0.1,
    },
}  # fmt: skip
WAYS: dict[str, dict[str, Any] | None] = {
    "alone": None,
    "mix 0.5, both": {"mix": 0.5, "schedule": "both"},
    "pretrain": {"schedule": "pretrain"},
    "mix 0.25, both": {"mix": 0.25, "schedule": "both"},
    "choose": {"mix": 0.25, "schedule": "choose"},
}
DEFAULT = "choose"


def in_order(source: Source, seed: int) -> list[int]:
    """The images of a source in a random order of a seed."""
    return list(map(int, permutation(mix(seed, len(source)), len(source))))


def scarce_parts(source: Source, kept: tuple[int, ...], order: Sequence[int]) -> list[Part]:
    """The part of every image: the first of each class for training, then for validation, the rest for testing."""
    classes = sorted({record.label for record in source.records if record.label})
    taken: Counter[str] = Counter()
    parts: list[Part] = ["test"] * len(source)
    for i in order:
        label = source.records[i].label
        if label is None:
            raise SystemExit(f"{source.records[i].name} has no class")
        limit = kept[classes.index(label) % len(kept)]
        parts[i] = "train" if taken[label] < limit else "val" if taken[label] < limit + VALIDATED else "test"
        taken[label] += 1
    return parts


def scarce_split(data: str, kept: tuple[int, ...], out: Path) -> None:
    """Write the split, and print how many images of each class are in each part."""
    source = open_source(DataConfig(source=data))
    order = sorted(range(len(source)), key=lambda i: mix(0, int.from_bytes(source.records[i].name.encode(), "little")))
    parts = scarce_parts(source, kept, order)
    write_split(split_of(source, parts), out)
    for label in sorted({record.label for record in source.records if record.label}):
        counts = Counter(part for record, part in zip(source.records, parts, strict=True) if record.label == label)
        print(f"{label:24}{counts['train']:6} train{counts['val']:6} val{counts['test']:6} test")


def lay_out(data: str, seed: int, folder: Path) -> None:
    """folder/set, folder/unlabelled and folder/split.json of a seed: UNLABELLED of the images that would be tested on
    become unlabelled ones instead.
    """
    if (folder / "split.json").exists():
        return
    source = open_source(DataConfig(source=data))
    order = in_order(source, seed)
    parts = scarce_parts(source, KEPT, order)
    more = set([i for i in order if parts[i] == "test"][-UNLABELLED:])
    for i, record in enumerate(source.records):
        name = f"{i:05d}{Path(record.name).suffix}"
        path = folder / "unlabelled" / name if i in more else folder / "set" / str(record.label) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source.content(i))
    part_of = {f"{i:05d}": part for i, part in enumerate(parts)}
    made = open_source(DataConfig(source=str(folder / "set")))
    write_split(split_of(made, [part_of[Path(r.name).stem] for r in made.records]), folder / "split.json")


def run_seed(chosen: argparse.Namespace, seed: int) -> dict[str, dict[str, float]]:
    """All scores of every way of a seed, in percent."""
    folder: Path = chosen.work / f"seed-{seed}"
    lay_out(chosen.data, seed, folder)
    data = {"source": str(folder / "set"), "split": str(folder / "split.json"), "fit": "crop", "size": SIZE}
    unlabelled = {} if chosen.labelled_only else {"unlabelled": str(folder / "unlabelled")}
    run = folder / ("run-labelled-only" if chosen.labelled_only else "run")
    settings = {
        **GENERATOR,
        "autoencoder": f"onnx:{chosen.encoder},{chosen.decoder}",
        "data": {**data, **unlabelled, "flips": "none"},
        "training": {
            "seed": seed, "steps": chosen.steps, "batch_size": 16, "devices": {"precision": "bfloat16"},
            "saving": {"checkpoint_every": 250, "sample_every": 10**6, "validate_every": 250, "sample_images": 16},
        },
    }  # fmt: skip
    train(resolve(settings), run)
    model = load_model(run)
    model.compute_in("bfloat16")
    request = SamplingRequest("dpm++", 8, chosen.guidance)
    out = folder / f"expanded-{run.name}-{chosen.guidance:g}-{chosen.agree}-{chosen.times}"
    expand(
        model, run, None,
        ExpansionSettings(
            times=chosen.times, request=request, batch_size=61, seed=10**6 * seed, agree=chosen.agree,
            classifier_steps=chosen.agree_steps,
        ),
        out,
    )  # fmt: skip
    scores: dict[str, dict[str, float]] = {}
    for name in chosen.ways:
        way = WAYS[name]
        plan = ClassificationSettings(
            steps=chosen.classifier_steps, seeds=(seed,), network=chosen.network, precision="bfloat16",
            extra=None if way is None else str(out), name=name, **(way or {}),
        )  # fmt: skip
        result = classify(
            DataConfig.model_validate(data),
            plan,
            folder / f"classified {name}{'' if way is None else ' ' + out.name}",
        )
        figures = result.runs[0].level("image")
        scores[name] = {score: 100 * value for score in SCORES if (value := figures[score]) is not None}
        print(f"seed {seed}, {name}: " + ", ".join(f"{s} {v:.1f}" for s, v in scores[name].items()), flush=True)
    return scores


def gain(chosen: argparse.Namespace) -> None:
    """Every seed, and what has come out so far after each."""
    torch.set_num_threads(1)
    found: dict[int, dict[str, dict[str, float]]] = {}
    for seed in range(chosen.first_seed, chosen.first_seed + chosen.seeds):
        found[seed] = run_seed(chosen, seed)
        result = summary(chosen, found)
        print(json.dumps(result["ways"], indent=1), flush=True)
        if chosen.key:
            before = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
            RESULTS.write_text(json.dumps({**before, chosen.key: result}, indent=1) + "\n")


def summary(chosen: argparse.Namespace, found: dict[int, dict[str, dict[str, float]]]) -> dict[str, Any]:
    """The gain of the default way, and mean, deviation and gain of every one."""
    values = {way: {s: [seed[way][s] for seed in found.values()] for s in SCORES} for way in chosen.ways}
    ways: dict[str, Any] = {}
    for way, scores in values.items():
        ways[way] = {
            s: {"mean": float(np.mean(v)), "deviation": float(np.std(v, ddof=1)) if len(v) > 1 else None, "values": v}
            for s, v in scores.items()
        }
        if way != "alone":
            for s, v in scores.items():
                alone = values["alone"][s]
                ways[way][s] |= {"gain": float(np.mean(v) - np.mean(alone)), "p": p_of(v, alone)}
    of = ways[next((way for way in (DEFAULT, *chosen.ways) if way in chosen.ways and way != "alone"), "alone")]["map"]
    given = {
        k: v for k, v in vars(chosen).items() if k not in ("call", "data", "encoder", "decoder", "work", "key", "seeds")
    }
    return {"map_points": of.get("gain"), "p": of.get("p"), "seeds": len(found), "settings": given, "ways": ways}


def p_of(these: list[float], those: list[float]) -> float | None:
    """p of a paired t-test; None for fewer than two pairs, 1 where no pair differs."""
    if len(these) < 2:
        return None
    return 1.0 if these == those else float(ttest_rel(these, those).pvalue)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    split = commands.add_parser("split")
    split.add_argument("data")
    split.add_argument("--out", type=Path, required=True)
    split.set_defaults(call=lambda chosen: scarce_split(chosen.data, KEPT, chosen.out))
    whole = commands.add_parser("gain")
    whole.add_argument("data")
    whole.add_argument("--encoder", required=True)
    whole.add_argument("--decoder", required=True)
    whole.add_argument("--work", type=Path, required=True)
    whole.add_argument("--seeds", type=int, default=5)
    whole.add_argument("--first-seed", type=int, default=0)
    whole.add_argument("--steps", type=int, default=600, help="of the generator")
    whole.add_argument("--times", type=int, default=2)
    whole.add_argument("--guidance", type=float, default=1.5)
    whole.add_argument("--agree", type=float)
    whole.add_argument("--agree-steps", type=int, default=150, help="of the classifier that is to agree")
    whole.add_argument("--classifier-steps", type=int, default=400)
    whole.add_argument("--network", default="timm:resnet10t")
    whole.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    whole.add_argument("--labelled-only", action="store_true", help="give the generator no unlabelled images")
    whole.add_argument("--key", default="gain", help="where in the results; empty for nowhere")
    whole.set_defaults(call=gain)
    chosen = parser.parse_args()
    chosen.call(chosen)


if __name__ == "__main__":
    main()
