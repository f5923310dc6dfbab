"""Labelled images made on the spot: an unbalanced multi-label table with rare combinations, and a run trained on it."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from run_helpers import draw_images

# Combinations of labels and how many images have each: a common one, rare ones, a single patient's, and none.
COMBINATIONS = {"drusen": 15, "oedema": 6, "drusen+oedema": 6, "drusen+oedema+scar": 3, "scar": 9, "": 6}
LABELS = ("drusen", "oedema", "scar")
# Options of `train` that make a step of a GeCA take milliseconds.
TINY_GECA = (
    *("--model", "geca-xs", "--size", "8", "--batch-size", "4", "--set", "training.saving.sample_images=0"),
    *("--set", "architecture.width=8", "--set", "architecture.heads=2", "--set", "architecture.mlp=8"),
    *("--set", "architecture.hidden=4", "--set", "architecture.nca_steps=2", "--set", "diffusion.timesteps=4"),
    *("--set", "training.saving.validation_images=1"),
)


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """A CSV whose columns are the keys of its first row."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def table_rows() -> list[dict[str, Any]]:
    """A row an image: of each patient two scans of the left eye, then one of the right one."""
    combinations = [name for name, count in COMBINATIONS.items() for _ in range(count)]
    return [
        {
            "file": f"{k:02d}.png",
            **{label: int(label in has.split("+")) for label in LABELS},
            "patient": f"p{k // 3}",
            "eye": "right" if k % 3 == 2 else "left",
        }
        for k, has in enumerate(combinations)
    ]


def draw_labelled(folder: Path, size: int = 12) -> tuple[Path, Path]:
    """45 images below folder/images, and folder/labels.csv."""
    rows = table_rows()
    return draw_images(folder / "images", len(rows), size), write_table(folder / "labels.csv", rows)
