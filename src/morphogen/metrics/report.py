"""The evaluation as one HTML file that needs nothing else: figures, samples, nearest training images, curves."""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from morphogen.core.files import replace_file
from morphogen.core.images import sample_grid
from morphogen.metrics.compute import Sets
from morphogen.metrics.format_table import rows_of
from morphogen.metrics.image_sets import ImageSet
from morphogen.metrics.records import EvaluationResults, NearestImage
from morphogen.training.logs import read_records
from morphogen.training.run_folder import RunFolder

_GRID, _ENLARGED = 64, 96
_CURVES = (("loss", "training loss"), ("held_out_noise_error", "error of the predicted noise on held-out images"))
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:62em;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:1em 0}td,th{padding:.3em .9em;border-bottom:1px solid #ddd;text-align:left}
td.n{text-align:right;font-variant-numeric:tabular-nums}img{image-rendering:pixelated;max-width:100%}
figure{display:inline-block;margin:.5em}figcaption{font-size:12px;color:#555}.warn{color:#a00}
pre{background:#f6f6f6;padding:1em;overflow:auto}"""


def picture(image: Tensor) -> Image.Image:
    """A uint8 image (3, H, W) as PIL."""
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def embedded(image: Image.Image, caption: str = "") -> str:
    """A picture inside the page."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def first_images(images: ImageSet, count: int = _GRID) -> Image.Image:
    """The first images in one picture, all brought to the first one's size."""
    chosen = [picture(images[i]) for i in range(min(count, len(images)))]
    return sample_grid([p if p.size == chosen[0].size else p.resize(chosen[0].size) for p in chosen])


def curve(points: list[tuple[float, float]], title: str, width: int = 560, height: int = 200) -> str:
    """A line over steps as SVG, its heights logarithmic where all are positive."""
    if len(points) < 2:
        return ""
    if len(points) > 400:  # means of equal shares
        points = [tuple(map(float, np.mean(part, axis=0))) for part in np.array_split(np.asarray(points), 400)]  # type: ignore[misc]
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    logarithmic = min(ys) > 0
    heights = [math.log10(y) for y in ys] if logarithmic else ys
    low, high = min(heights), max(heights)
    span, reach = (high - low) or 1.0, (xs[-1] - xs[0]) or 1.0
    line = " ".join(
        f"{50 + (x - xs[0]) / reach * (width - 60):.1f},{height - 25 - (y - low) / span * (height - 45):.1f}"
        for x, y in zip(xs, heights, strict=True)
    )
    scale = " (logarithmic)" if logarithmic else ""
    return (
        f'<figure><svg width="{width}" height="{height}" role="img"><polyline points="{line}" fill="none" '
        f'stroke="#2563eb" stroke-width="1.5"/><text x="2" y="24" font-size="11">{max(ys):.3g}</text>'
        f'<text x="2" y="{height - 25}" font-size="11">{min(ys):.3g}</text>'
        f'<text x="{width - 70}" y="{height - 6}" font-size="11">step {xs[-1]:,.0f}</text></svg>'
        f"<figcaption>{html.escape(title + scale)}</figcaption></figure>"
    )


def curves(run: RunFolder) -> str:
    """The curves that a run logged; broken lines of its log are left out."""
    records = read_records(run.metrics)
    drawn = [
        curve([(r["step"], r[k]) for r in records if isinstance(r.get(k), int | float) and "step" in r], title)
        for k, title in _CURVES
    ]
    return "".join(drawn)


def _suspects(suspects: Sequence[NearestImage], sets: Sets) -> str:
    if not suspects or sets.every_train is None:
        return "<p>None measured.</p>"
    parts = []
    for one in suspects:
        pair = [picture(sets.generated[one.number]), picture(sets.every_train[one.training_number])]
        enlarged = [p.resize((_ENLARGED, _ENLARGED), Image.Resampling.NEAREST) for p in pair]
        copied = ", a copy" if one.is_copy else ""
        caption = f"{one.image} | {one.training_image}: {one.distance:.1f}{copied}"
        parts.append(embedded(sample_grid(enlarged, 2), caption))
    return "".join(parts)


def _table(results: EvaluationResults) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(row.name)}</td><td class=n>{html.escape(row.value)}</td>"
        f"<td class=n>{html.escape(row.floor)}</td><td>{html.escape(row.images)}</td></tr>"
        for row in rows_of(results)
    )
    return f"<table><tr><th>figure</th><th>value</th><th>real against real</th><th>images</th></tr>{rows}</table>"


def write_report(path: Path, results: EvaluationResults, sets: Sets, run: RunFolder | None) -> None:
    """Write the page. It embeds generated, real and training images, so it is as private as the data."""
    suspects = () if results.copies is None else results.copies.nearest
    measured = None if results.model is None else results.model.folder
    title = f"Evaluation of {measured or results.generated.folder}"
    remarks = "".join(f"<li>{html.escape(remark)}</li>" for remark in results.remarks)
    settings = {k: v for k, v in results.as_json().items() if k not in ("copies", "remarks")}
    page = f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>
<style>{STYLE}</style><h1>{html.escape(title)}</h1>{_table(results)}<ul class="warn">{remarks}</ul>
<h2>Samples and real images</h2>{embedded(first_images(sets.generated), "generated, not selected")}
{embedded(first_images(sets.real), "real, held out")}
<h2>Generated images nearest to a training image</h2>
<p>Left the generated image, right the training image; the number is the root mean square difference of pixels
(0 to 255) at 32x32.</p>{_suspects(suspects, sets)}
<h2>Training</h2>{curves(run) if run is not None else "<p>Not a run of Morphogen's.</p>"}
<h2>Settings</h2><pre>{html.escape(json.dumps(settings, indent=1))}</pre></html>
"""
    replace_file(path, page)
