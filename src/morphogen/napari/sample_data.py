"""Sample data of napari's menu: what the bundled models paint.

napari wants a layer at once, so there is a black one for as long as a thread paints.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from morphogen.core.cache import cache_folder, is_writable, private_folder
from morphogen.napari.layers import as_layer, pipeline, scale_of_model
from morphogen.napari.reader import slide_layer
from morphogen.napari.work import Compute, LayerData, Tell, start
from morphogen.pyramids import open_pyramid

_SLIDE = (512, 512)


def tissue() -> list[LayerData]:
    """Four pictures of the seeds 0 to 3 by the bundled `tissue`."""

    def compute(tell: Tell) -> list[LayerData]:
        images = pipeline("tissue")(seeds=range(4), output_type="np", callback=tell).images
        assert isinstance(images, np.ndarray)
        return [as_layer(images, "tissue", {"model": "tissue", "seed": 0}, scale_of_model(pipeline("tissue")))]

    return _later("tissue", compute)


def nuclei() -> list[LayerData]:
    """A label map of round nuclei, and what the bundled `nuclei` paints from it with seed 0."""

    def compute(tell: Tell) -> list[LayerData]:
        model, classes = pipeline("nuclei"), round_nuclei((128, 128))
        images = np.asarray(model.paint(classes, seeds=0, callback=tell).images)
        place = scale_of_model(model)
        return [
            as_layer(images, "nuclei painted", {"model": "nuclei", "seed": 0}, place),
            (classes, {"name": "nuclei map", "opacity": 0.4, **place}, "labels"),
        ]

    return _later("nuclei", compute)


def slide() -> list[LayerData]:
    """A slide of the seed 0 by the bundled `stained`, painted into a file once and opened from there."""
    return _later("slide", lambda _tell: [slide_layer(open_pyramid(painted_slide()))])


def painted_slide() -> Path:
    """The file of the slide, which is painted where it is missing."""
    from morphogen.slides.render import render
    from morphogen.slides.request import SlideRequest

    folder = cache_folder("napari")
    if not is_writable(folder):
        folder = private_folder("napari")
    return render(SlideRequest("stained", _SLIDE, folder / "stained.ome.zarr", overwrite=True))[0]


def round_nuclei(size: tuple[int, int], apart: int = 26) -> np.ndarray:
    """A map uint8 of ellipses in rows, of the classes of the bundled `nuclei`: 0 background, 1 nucleus."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    classes = np.zeros(size, np.uint8)
    for number, top in enumerate(range(apart // 2, size[0], apart)):
        for left in range(apart // 2 + number % 2 * apart // 2, size[1], apart):
            tall, wide = 6 + (top + left) % 4, 6 + (top * 3 + left) % 5
            classes[((rows - top) / tall) ** 2 + ((columns - left) / wide) ** 2 <= 1] = 1
    return classes


def _later(name: str, compute: Compute) -> list[LayerData]:
    """A black layer, which those that are computed take the place of in the window that is open."""
    from napari import current_viewer

    viewer, waiting = current_viewer(), object()

    def clear() -> None:
        for layer in [layer for layer in viewer.layers if layer.metadata.get("waiting") is waiting]:
            viewer.layers.remove(layer)

    start(compute, viewer, ended=clear)
    settings = {"name": f"{name}: being painted", "rgb": True, "metadata": {"waiting": waiting}}
    return [(np.zeros((*_SLIDE, 3), np.uint8), settings, "image")]
