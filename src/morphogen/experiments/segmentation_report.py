"""Segmentation results as one HTML file: figures, and pictures of what was found."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from morphogen.core.files import replace_file
from morphogen.experiments.segmentation_records import SegmentationResults
from morphogen.metrics.report import STYLE

_COLOURS = np.array(
    [[240, 240, 240], [55, 90, 160], [230, 120, 60], [80, 160, 90], [190, 70, 120], [120, 110, 200], [200, 180, 60]],
    np.uint8,
)


class Shown(NamedTuple):
    """Images uint8 (H, W, C) that were tested, their maps, and those that were found, uint8 (H, W)."""

    images: Sequence[NDArray[np.uint8]]
    maps: Sequence[NDArray[np.uint8]]
    found: Sequence[NDArray[np.uint8]]


def in_colours(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A map (H, W) as colours (H, W, 3); what has no class is white."""
    colours: NDArray[np.uint8] = _COLOURS[values % len(_COLOURS)]
    return np.where((values == 255)[..., None], np.uint8(255), colours)


def _picture(pixels: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def write_report(path: Path, results: SegmentationResults, shown: Shown | None) -> None:
    """Write the page. shown: pictures, where a training was made now; a page that is there keeps its own otherwise."""
    if shown is None and path.is_file():
        return
    rows = ""
    for name in results.classes:
        figures = [
            [run.dice[name] for run in results.runs],
            [r.object_f1[name] for r in results.runs if name in r.object_f1],
        ]
        cells = "".join(f"<td class=n>{np.mean(values):.3f}</td>" for values in figures if values)
        rows += f"<tr><td>{html.escape(name)}</td>{cells}</tr>"
    against = results.baseline
    compared = ""
    if against is not None:
        p = "" if against.p is None else f", p {against.p:.3g} over seeds"
        compared = f"<p>Dice {against.difference:+.3f} against {html.escape(against.file)} ({against.dice:.3f}){p}</p>"
    pictures = (
        ""
        if shown is None
        else "".join(
            f"<p>{_picture(image)} {_picture(in_colours(true))} {_picture(in_colours(found))}</p>"
            for image, true, found in zip(*shown, strict=True)
        )
    )
    title = f"Segmentation of {results.source}"
    page = f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>
<style>{STYLE}</style><h1>{html.escape(title)}</h1>
<p>{results.real_images} real and {results.extra_images} painted images, tested on {results.test_images};
{len(results.runs)} trainings. Over all classes but the first: Dice {results.dice:.3f}, object F1
{results.object_f1:.3f}.</p>
<table><tr><th>class</th><th>Dice</th><th>object F1</th></tr>{rows}</table>{compared}
<h2>Test images, their maps, and what was found</h2>{pictures}</html>
"""
    replace_file(path, page)
