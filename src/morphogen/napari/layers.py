"""Between napari's layers and the Pipeline's arrays."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from morphogen.core.errors import InputError
from morphogen.napari.work import LayerData
from morphogen.tasks.pipeline import Pipeline
from morphogen.training.devices import pick_device

_CHANNELS = (1, 3, 4)  # gray, RGB, RGBA: what napari shows as one picture


@functools.lru_cache(maxsize=2)
def pipeline(model: str) -> Pipeline:
    """A model by its name, folder or hub id; the last two are kept. Raises InputError as `from_pretrained` does."""
    return Pipeline.from_pretrained(model, pick_device("auto"))


def plane(layer: Any, point: tuple[float, ...]) -> np.ndarray:
    """The picture of an image or labels layer that is in sight, (H, W) or (H, W, C), as stored.

    point: where the sliders stand, `viewer.dims.point`. Raises InputError for a layer of several resolutions.
    """
    if layer.multiscale:
        raise InputError(
            f"the layer {layer.name} has several resolutions; fill holes in slides by `morphogen slide --inpaint`"
        )
    place = layer.world_to_data(point)[: layer.ndim - 2]
    index = tuple(
        int(np.clip(round(at), 0, size - 1)) for at, size in zip(place, layer.data.shape[: len(place)], strict=True)
    )
    return np.ascontiguousarray(layer.data[index])


def place_of(layer: Any) -> dict[str, Any]:
    """The settings that put another picture where a layer's lies."""
    return {"scale": layer.scale[-2:], "translate": layer.translate[-2:], "units": layer.units[-2:]}


def as_layer(images: np.ndarray, name: str, facts: dict[str, object], place: dict[str, Any]) -> LayerData:
    """A layer of pictures uint8 or uint16 (N, H, W), or (N, H, W, C); with a slider where there are several.

    facts: how they came to be, kept as the layer's metadata. place: scale, translate and units of the rows and columns.
    """
    if images.ndim == 4 and images.shape[-1] not in _CHANNELS:
        raise InputError(f"these pictures have {images.shape[-1]} channels; napari shows 1, 3 or 4 as one picture")
    coloured = images.ndim == 4 and images.shape[-1] > 1
    pictures = images if coloured or images.ndim == 3 else images[..., 0]
    settings: dict[str, Any] = {"name": name, "rgb": coloured, "metadata": {"morphogen": facts}}
    if not coloured:
        settings["contrast_limits"] = (0, np.iinfo(images.dtype).max)
    if len(pictures) == 1:
        return pictures[0], {**settings, **place}, "image"
    several = {
        "scale": (1.0, *place.get("scale", (1.0, 1.0))),
        "translate": (0.0, *place.get("translate", (0.0, 0.0))),
        "units": ("pixel", *place.get("units", ("pixel", "pixel"))),
    }
    return pictures, {**settings, **several}, "image"


def scale_of(mpp: tuple[float, float] | None) -> dict[str, Any]:
    """Where a picture lies of which micrometres a pixel are known, down and across, or not."""
    return {} if mpp is None else {"scale": mpp, "units": ("um", "um")}


def scale_of_model(model: Pipeline) -> dict[str, Any]:
    """Where a model's pictures lie."""
    mpp = model.model.picture.mpp
    return scale_of(None if mpp is None else (mpp, mpp))
