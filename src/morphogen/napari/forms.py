"""The forms beside napari's window: sample, fill a hole, paint from labels.

A form's fields are read when its button is pressed; what follows runs in a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from morphogen.core.errors import InputError
from morphogen.core.sizes import parse_size
from morphogen.diffusion.samplers import SAMPLERS
from morphogen.models import bundled_names
from morphogen.napari.layers import as_layer, pipeline, place_of, plane, scale_of_model
from morphogen.napari.work import Compute, LayerData, Tell, start

Given = dict[str, Any]
"""The values of a form's fields by their names."""
_OWN = "the task's own"
_LARGEST_SEED = 2**31 - 1  # of napari's field for whole numbers


def sample() -> Any:
    """The form that makes pictures from seeds."""
    from magicgui.widgets import LineEdit

    def prepare(given: Given, _viewer: Any) -> Compute:
        size = _read_size(given["size"])

        def compute(tell: Tell) -> list[LayerData]:
            model = pipeline(given["model"])
            height, width = size or (None, None)
            images = model(height=height, width=width, output_type="np", callback=tell, **_common(given)).images
            assert isinstance(images, np.ndarray)
            return [as_layer(images, f"{given['model']} {given['seed']}", given, scale_of_model(model))]

        return compute

    size = LineEdit(name="size", tooltip="64 or 64x96, height x width; the model's own where it is empty")
    return _form("Sample", [_model("tissue"), size, *_settings(count=4)], prepare)


def inpaint() -> Any:
    """The form that fills what a labels layer marks in an image layer."""
    from magicgui.widgets import SpinBox, create_widget
    from napari.layers import Image, Labels

    def prepare(given: Given, viewer: Any) -> Compute:
        image, labels = _chosen(given, "image", "an image"), _chosen(given, "hole", "a labels")
        point = viewer.dims.point
        picture, marked, place = plane(image, point), plane(labels, point), place_of(image)
        if picture.shape[:2] != marked.shape:
            raise InputError(
                f"the labels layer {labels.name} has {marked.shape[0]}x{marked.shape[1]} pixels and the image "
                f"{image.name} {picture.shape[0]}x{picture.shape[1]}; they should be equal"
            )
        hole = marked == given["value"] if given["value"] else marked != 0
        if not hole.any():
            what = f"value {given['value']}" if given["value"] else "label"
            raise InputError(f"the labels layer {labels.name} has no {what} here; draw what is to be filled")
        facts = {**given, "image": image.name, "hole": labels.name}

        def compute(tell: Tell) -> list[LayerData]:
            found = pipeline(given["model"]).inpaint(picture, hole, callback=tell, **_common(given)).images
            return [as_layer(np.stack(list(_arrays(found))), f"{image.name} filled", facts, place)]

        return compute

    fields = [
        create_widget(name="image", annotation=Image),
        create_widget(name="hole", annotation=Labels),
        SpinBox(name="value", value=0, max=_LARGEST_SEED, tooltip="The label to fill; 0 for all that are drawn"),
    ]
    return _form("Fill", [_model("tissue"), *fields, *_settings(count=1)], prepare)


def paint() -> Any:
    """The form that paints a picture from a labels layer, by a model that was trained with maps."""
    from magicgui.widgets import create_widget
    from napari.layers import Labels

    def prepare(given: Given, viewer: Any) -> Compute:
        labels = _chosen(given, "map", "a labels")
        classes, place = plane(labels, viewer.dims.point), place_of(labels)
        facts = {**given, "map": labels.name}

        def compute(tell: Tell) -> list[LayerData]:
            found = pipeline(given["model"]).paint(classes, callback=tell, **_common(given)).images
            return [as_layer(np.stack(list(_arrays(found))), f"{labels.name} painted", facts, place)]

        return compute

    return _form(
        "Paint", [_model("nuclei"), create_widget(name="map", annotation=Labels), *_settings(count=1)], prepare
    )


def _model(name: str) -> Any:
    from magicgui.widgets import LineEdit

    known = ", ".join(bundled_names())
    return LineEdit(name="model", value=name, tooltip=f"A bundled model ({known}), a run's folder, or a hub id")


def _settings(count: int) -> list[Any]:
    """The fields that all tasks have."""
    from magicgui.widgets import ComboBox, FloatSpinBox, LineEdit, SpinBox

    return [
        SpinBox(name="count", value=count, min=1, max=256, tooltip="Pictures"),
        SpinBox(name="seed", value=0, max=_LARGEST_SEED, tooltip="Of the first picture; the others follow"),
        ComboBox(name="sampler", choices=[_OWN, *SAMPLERS], value=_OWN),
        SpinBox(name="steps", value=0, max=10_000, tooltip="Sampling steps; 0 for the sampler's own"),
        LineEdit(name="label", tooltip="Of a model that was trained with labels; empty for none"),
        FloatSpinBox(name="guidance", value=1.0, min=0.0, max=100.0, step=0.1, tooltip="1 is none"),
    ]


def _common(given: Given) -> dict[str, Any]:
    """What the fields of `_settings` mean to the Pipeline."""
    return {
        "seeds": range(given["seed"], given["seed"] + given["count"]),
        "sampler": None if given["sampler"] == _OWN else given["sampler"],
        "num_inference_steps": given["steps"] or None,
        "labels": given["label"].strip() or None,
        "guidance_scale": given["guidance"],
    }


def _read_size(text: str) -> tuple[int, int] | None:
    try:
        return parse_size(text) if text.strip() else None
    except ValueError as error:
        raise InputError(str(error)) from None


def _chosen(given: Given, field: str, kind: str) -> Any:
    if given[field] is None:
        raise InputError(f"there is no layer to choose for '{field}'; add {kind} layer")
    return given[field]


def _arrays(images: object) -> Sequence[np.ndarray]:
    """What the Pipeline gives back, arrays or PIL images, as arrays."""
    assert isinstance(images, list | np.ndarray)
    return [np.asarray(image) for image in images]


def _form(button: str, fields: list[Any], prepare: Callable[[Given, Any], Compute]) -> Any:
    """A form with its fields, a button that starts the work, one that stops it, and a bar.

    prepare: reads the values and the viewer, in the window's thread, and gives what is to be computed in another.
    """
    from magicgui.widgets import Container, ProgressBar, PushButton
    from napari import current_viewer
    from napari.utils.notifications import show_error

    run, stop = PushButton(name="run", text=button), PushButton(name="stop", text="Stop", enabled=False)
    bar = ProgressBar(name="steps_done", label="", visible=False)
    running: list[Any] = []

    def stepped(done: int, steps: int) -> None:
        bar.max, bar.value = steps, done

    def ended() -> None:
        running.clear()
        run.enabled, stop.enabled, bar.visible = True, False, False

    def begin(_pressed: object) -> None:
        viewer = current_viewer()
        try:
            compute = prepare({field.name: field.value for field in fields}, viewer)
        except InputError as error:
            show_error(str(error))
            return
        bar.min, bar.max, bar.value = 0, 0, 0  # moves to and fro until the first step is done
        run.enabled, stop.enabled, bar.visible = False, True, True
        running.append(start(compute, viewer, stepped=stepped, ended=ended))

    def end(_pressed: object) -> None:
        for worker in running:
            worker.quit()

    run.changed.connect(begin)
    stop.changed.connect(end)
    return Container(widgets=[*fields, run, stop, bar])
