"""Every sampler, the tasks and a slide still give the images that an earlier version gave from the same seeds.

`samples.npz` was made by the version whose samplers were diffusers' schedulers; what heun makes, by the first version
that takes its longest steps as Euler's. Images may differ by one grey level: coefficients are now worked out in
float64, and an automaton carries a difference of one float32 rounding on.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from morphogen.diffusion.known import Resampling
from morphogen.diffusion.samplers import SAMPLERS
from morphogen.tasks.pipeline import Pipeline

STORED = np.load(Path(__file__).with_name("samples.npz"))
Bytes = NDArray[np.uint8]


@pytest.fixture(scope="module")
def tissue() -> Pipeline:
    """The bundled model in its plain form, which computes alike on all machines."""
    pipeline = Pipeline.from_pretrained("tissue-texture", precision="float32")
    pipeline.model.compute_in(None)
    return pipeline


def picture() -> tuple[Bytes, NDArray[np.bool_]]:
    y, x = np.mgrid[0:28, 0:36]
    hole = np.zeros((28, 36), bool)
    hole[6:20, 8:27] = True
    return np.stack([(y * 9) % 256, (x * 7) % 256, (y * x) % 256], -1).astype(np.uint8), hole


def check(found: Any, name: str) -> None:
    stored = STORED[name].astype(int)
    assert found.shape == stored.shape and found.dtype == np.uint8
    assert np.abs(found.astype(int) - stored).max() <= 1


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers(tissue: Pipeline, name: str) -> None:
    found = tissue(seeds=[3, 11], height=24, width=28, num_inference_steps=7, sampler=name, output_type="np").images
    check(found, name)


@pytest.mark.parametrize("name", SAMPLERS)
def test_going_back_in_time(tissue: Pipeline, name: str) -> None:
    image, hole = picture()
    how: dict[str, Any] = {"num_inference_steps": 6, "sampler": name, "resampling": Resampling(3, 2)}
    check(tissue.inpaint(image, hole, seeds=[5], **how).images[0], f"{name} resampled")


def test_tasks(tissue: Pipeline) -> None:
    image, hole = picture()
    check(tissue.inpaint(image, hole, seeds=[5], num_inference_steps=8).images[0], "inpaint")
    varied = tissue.vary(image, seeds=[5], strength=0.5, num_inference_steps=12, sampler="dpm++")
    check(varied.images[0], "vary")
    check(
        tissue.upscale(image[:16, :20], factor=2, scheme="published", seeds=[5], num_inference_steps=6).images[0],
        "upscale",
    )


def test_slide(cli: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "x.ome.zarr"
    args = [
        "--size",
        "61x75",
        "--seed",
        "4",
        "--sampling-steps",
        "4",
        "--tile",
        "32",
        "--precision",
        "float32",
        "--sampler",
        "ddim",
    ]
    assert cli("slide", "tissue-texture", *args, "--out", str(out)).code == 0
    group = zarr.open_group(str(out), mode="r")
    check(np.asarray(group[sorted(group.array_keys())[0]]), "slide")  # type: ignore[arg-type]
