"""Does an expansion of a scarce, unbalanced training set help a classifier?

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
from collections import Counter
from pathlib import Path

from morphogen.core.random import mix
from morphogen.data.config import DataConfig
from morphogen.data.source import Part
from morphogen.data.sources import open_source
from morphogen.data.splits import split_of, write_split

KEPT, VALIDATED = (300, 150, 100, 60), 40


def scarce_split(data: str, kept: tuple[int, ...], out: Path) -> None:
    """Write the split, and print how many images of each class are in each part."""
    source = open_source(DataConfig(source=data))
    classes = sorted({record.label for record in source.records if record.label})
    order = sorted(range(len(source)), key=lambda i: mix(0, int.from_bytes(source.records[i].name.encode(), "little")))
    taken: Counter[str] = Counter()
    parts: list[Part] = ["test"] * len(source)
    for i in order:
        label = source.records[i].label
        if label is None:
            raise SystemExit(f"{source.records[i].name} has no class")
        limit = kept[classes.index(label) % len(kept)]
        parts[i] = "train" if taken[label] < limit else "val" if taken[label] < limit + VALIDATED else "test"
        taken[label] += 1
    write_split(split_of(source, parts), out)
    for label in classes:
        counts = Counter(part for record, part in zip(source.records, parts, strict=True) if record.label == label)
        print(f"{label:24}{counts['train']:6} train{counts['val']:6} val{counts['test']:6} test")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    split = commands.add_parser("split")
    split.add_argument("data")
    split.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    scarce_split(chosen.data, KEPT, chosen.out)


if __name__ == "__main__":
    main()
