"""A page with a form for every task, by Gradio: `morphogen app`, and what a Hugging Face Space shows.

Every button calls the method of `Pipeline` of its name, so that a seed gives the image that the command line and
Python give.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from morphogen.core.errors import InputError, MorphogenError, missing_extra
from morphogen.core.model import StepInfo
from morphogen.diffusion.ladder import Ladder
from morphogen.diffusion.samplers import SAMPLERS
from morphogen.studio.server import HOST
from morphogen.tasks.pipeline import Pipeline, PipelineOutput

try:
    import gradio as gr
except ImportError:
    raise missing_extra("app", "gradio") from None

MOST_IMAGES = 64
LARGEST_SIDE = 1024
"""Pixels on a side of what the page paints, or is given: it is for trying; the command line has no such limit."""
_STEPS = 12
_SAMPLER = "dpm++"
Images = list[Image.Image]
_PROGRESS = gr.Progress()  # in the place of an argument it tells Gradio to show one


def build_app(pipeline: Pipeline, name: str) -> gr.Blocks:
    """The page of a model, not started yet. name: of the model, for its title. A VNCA has only the form for samples."""
    model, labels = pipeline.model, _labels(pipeline)
    with gr.Blocks(title=f"Morphogen: {name}", analytics_enabled=False) as page:
        gr.Markdown(f"# {name}\n\n{_about(pipeline)}")
        with gr.Tab("Sample"):
            _sample_tab(pipeline, labels)
        if model.predicts_noise or isinstance(model, Ladder):
            with gr.Tab("Inpaint"):
                _inpaint_tab(pipeline, labels)
            with gr.Tab("Vary"):
                _vary_tab(pipeline, labels)
            with gr.Tab("Upscale"):
                _upscale_tab(pipeline, labels)
        if model.classes:
            gr.Markdown("It paints from maps too: `morphogen serve` has a brush, `morphogen paint` takes files.")
    return page.queue(default_concurrency_limit=1, max_size=16)


def launch(page: gr.Blocks, port: int, ready: Callable[[str], None]) -> None:
    """Show a page on 127.0.0.1 until Ctrl-C. port: a free one. ready: told its address once it answers."""
    _, address, _ = page.launch(
        server_name=HOST,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        theme=theme(),
        ssr_mode=False,
        footer_links=[],
        max_file_size="64mb",
    )
    ready(address)
    try:
        page.block_thread()
    finally:
        page.close(verbose=False)


def theme() -> gr.themes.Base:
    """A look whose fonts are the system's: Gradio's own would be fetched from another site."""
    fonts, fixed = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    return gr.themes.Base(font=fonts, font_mono=fixed)


def hole_of(edited: dict[str, Any] | None) -> tuple[Image.Image, np.ndarray]:
    """The picture (RGB) and the hole, boolean (H, W), of what Gradio's image editor gives: its background, and wherever
    one of its layers is painted on. Raises InputError where either is missing.
    """
    background = None if edited is None else edited.get("background")
    if background is None:
        raise InputError("there is no picture; drop one on the field")
    painted = np.zeros((background.height, background.width), bool)
    for layer in (edited or {}).get("layers") or []:
        painted |= np.asarray(layer.convert("RGBA"))[..., 3] > 0
    if not painted.any():
        raise InputError("nothing is marked; draw over what is to be filled")
    return background.convert("RGB"), painted


def _about(pipeline: Pipeline) -> str:
    model = pipeline.model
    size = f"{model.picture.height}x{model.picture.width}"
    return f"{model.family}, {model.parameter_count():,} parameters, trained on {size} pixels. A seed fixes an image."


def _labels(pipeline: Pipeline) -> tuple[str, ...]:
    found: Any = getattr(pipeline.model, "labels", None)
    return tuple(found.names) if found is not None else ()


def _common(labels: tuple[str, ...], steps: int = _STEPS) -> list[gr.components.Component]:
    """The fields that every task has: seed, sampler, steps, and of a model with labels the label and the guidance."""
    with gr.Row():
        fields: list[Any] = [
            gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**53 - 1),
            gr.Dropdown(list(SAMPLERS), value=_SAMPLER, label="Sampler"),
            gr.Slider(1, 250, steps, step=1, label="Sampling steps"),
        ]
    if labels:
        with gr.Row():
            fields.append(gr.Dropdown(["(any)", *labels], value="(any)", label="Label"))
            fields.append(gr.Slider(1, 8, 1, step=0.1, label="Guidance"))
    return fields


def _settings(values: tuple[Any, ...]) -> dict[str, Any]:
    """The arguments of a Pipeline method that the fields of `_common` mean, but for the seed, which is the first."""
    found: dict[str, Any] = {"sampler": values[1], "num_inference_steps": int(values[2])}
    if len(values) > 3 and values[3] != "(any)":
        found |= {"labels": values[3], "guidance_scale": float(values[4])}
    return found


def _seeds(values: tuple[Any, ...], count: float) -> range:
    return range(int(values[0]), int(values[0]) + int(count))


def _pictures(output: PipelineOutput) -> Images:
    return list(output.images)  # type: ignore[call-overload, no-any-return]


def _answering(task: Callable[..., Any]) -> Callable[..., Any]:
    """The task, whose refusals are shown on the page as they are."""

    @functools.wraps(task)
    def answer(*values: Any) -> Any:
        try:
            return task(*values)
        except MorphogenError as error:
            raise gr.Error(str(error), print_exception=False) from None

    return answer


def _reporting(progress: gr.Progress) -> Callable[[StepInfo], None]:
    def report(now: StepInfo) -> None:
        progress((now.step, now.steps), unit="steps")

    return report


def _checked(picture: Image.Image | None, factor: int = 1) -> Image.Image:
    if picture is None:
        raise InputError("there is no picture; drop one on the field")
    if factor * max(picture.size) > LARGEST_SIDE:
        raise InputError(
            f"the result would be {factor * picture.height}x{factor * picture.width}; this page makes at most "
            f"{LARGEST_SIDE} on a side, and `morphogen` on the command line any size"
        )
    return picture


def _sample_tab(pipeline: Pipeline, labels: tuple[str, ...]) -> None:
    picture = pipeline.model.picture
    with gr.Row():
        count = gr.Slider(1, MOST_IMAGES, 8, step=1, label="Images")
        height = gr.Number(picture.height, label="Height", precision=0, minimum=8, maximum=LARGEST_SIDE)
        width = gr.Number(picture.width, label="Width", precision=0, minimum=8, maximum=LARGEST_SIDE)
    fields = _common(labels)
    button, shown = gr.Button("Sample", variant="primary"), _gallery()

    @_answering
    def sample(count: float, height: float, width: float, *rest: Any, progress: Any = _PROGRESS) -> Images:
        settings = {**_settings(rest), "height": int(height), "width": int(width), "callback": _reporting(progress)}
        return _pictures(pipeline(seeds=_seeds(rest, count), **settings))

    button.click(sample, [count, height, width, *fields], shown, api_name="sample")


def _inpaint_tab(pipeline: Pipeline, labels: tuple[str, ...]) -> None:
    editor = gr.ImageEditor(
        label="Picture; draw over what is to be filled",
        type="pil",
        image_mode="RGBA",
        brush=gr.Brush(colors=["#e6007e"], color_mode="fixed"),
        layers=False,
        transforms=(),
        sources=("upload", "clipboard"),
    )
    count, fields = gr.Slider(1, 8, 4, step=1, label="Predictions"), _common(labels)
    button, shown = gr.Button("Fill", variant="primary"), _gallery()

    @_answering
    def inpaint(edited: dict[str, Any], count: float, *rest: Any, progress: Any = _PROGRESS) -> Images:
        image, hole = hole_of(edited)
        settings = {**_settings(rest), "callback": _reporting(progress)}
        return _pictures(pipeline.inpaint(_checked(image), hole, seeds=_seeds(rest, count), **settings))

    button.click(inpaint, [editor, count, *fields], shown, api_name="inpaint")


def _vary_tab(pipeline: Pipeline, labels: tuple[str, ...]) -> None:
    given = gr.Image(label="Picture", type="pil", image_mode="RGB", sources=["upload", "clipboard"])
    with gr.Row():
        strength = gr.Slider(0, 1, 0.4, step=0.01, label="Strength: 0 is the picture itself")
        count = gr.Slider(1, 8, 4, step=1, label="Variations")
    fields = _common(labels)
    button, shown = gr.Button("Vary", variant="primary"), _gallery()

    @_answering
    def vary(image: Image.Image | None, strength: float, count: float, *rest: Any, progress: Any = _PROGRESS) -> Images:
        settings = {**_settings(rest), "callback": _reporting(progress)}
        return _pictures(pipeline.vary(_checked(image), float(strength), seeds=_seeds(rest, count), **settings))

    button.click(vary, [given, strength, count, *fields], shown, api_name="vary")


def _upscale_tab(pipeline: Pipeline, labels: tuple[str, ...]) -> None:
    given = gr.Image(label="Picture", type="pil", image_mode="RGB", sources=["upload", "clipboard"])
    factor = gr.Dropdown([2, 3, 4, 5, 6, 7, 8], value=2, label="Times as large")
    fields = _common(labels, 24)
    button = gr.Button("Upscale", variant="primary")
    shown = gr.Image(label="Result", type="pil", format="png")

    @_answering
    def upscale(image: Image.Image | None, factor: int, *rest: Any, progress: Any = _PROGRESS) -> Image.Image:
        settings = {**_settings(rest), "callback": _reporting(progress)}
        return _pictures(
            pipeline.upscale(_checked(image, int(factor)), int(factor), seeds=_seeds(rest, 1), **settings)
        )[0]

    button.click(upscale, [given, factor, *fields], shown, api_name="upscale")


def _gallery() -> gr.Gallery:
    return gr.Gallery(label="Images", columns=4, object_fit="contain", format="png", type="pil")
