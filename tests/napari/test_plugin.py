"""The plugin in a real window of napari: forms, slides, sample data, and what goes wrong."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from map_helpers import save_map_model
from slide_files import SIZE, level, write_zarr

from morphogen import Pipeline

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # napari's own libraries have some to give
]
Until = Callable[[Callable[[], bool]], None]


def form(viewer: Any, title: str) -> Any:
    """A form as the menu opens it."""
    return viewer.window.add_plugin_dock_widget("morphogen", title)[1]


def set_fields(form: Any, **values: object) -> None:
    for name, value in values.items():
        form[name].value = value


def press(form: Any, button: str) -> None:
    form[button].native.click()


def errors() -> list[str]:
    """What napari has notified of."""
    from napari.utils.notifications import notification_manager

    return [record.message for record in notification_manager.records if str(record.severity) == "error"]


def test_the_plugin_is_found(viewer: Any) -> None:
    from npe2 import PluginManager

    found = PluginManager.instance().get_manifest("morphogen").contributions
    assert [widget.display_name for widget in found.widgets] == ["Sample pictures", "Fill a hole", "Paint from labels"]


def test_sample_gives_the_pictures_of_the_pipeline(viewer: Any, until: Until) -> None:
    sample = form(viewer, "Sample pictures")
    set_fields(sample, model="tissue-texture", count=2, seed=7, size="24x32", sampler="dpm++", steps=3)
    press(sample, "run")
    assert not sample["run"].enabled
    until(lambda: sample["run"].enabled)
    expected = Pipeline.from_pretrained("tissue-texture")(
        seeds=[7, 8], height=24, width=32, sampler="dpm++", num_inference_steps=3, output_type="np"
    ).images
    (layer,) = viewer.layers
    assert np.array_equal(layer.data, expected)
    assert layer.rgb
    assert layer.metadata["morphogen"]["seed"] == 7
    assert errors() == []


def test_a_hole_in_the_picture_in_sight_is_filled(viewer: Any, until: Until) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (3, 24, 32, 3), np.uint8)
    viewer.add_image(pictures, rgb=True, name="fields", scale=(1, 0.5, 0.5), translate=(0, 3, 4))
    drawn = np.zeros((3, 24, 32), int)
    drawn[1, 8:14, 10:20], drawn[1, :3, :3] = 2, 1
    viewer.add_labels(drawn, name="hole", scale=(1, 0.5, 0.5), translate=(0, 3, 4))
    viewer.dims.set_current_step(0, 1)
    fill = form(viewer, "Fill a hole")
    set_fields(fill, model="tissue-texture", value=2, seed=3, sampler="ddim", steps=3)
    press(fill, "run")
    until(lambda: fill["run"].enabled)
    assert errors() == []
    layer = viewer.layers["fields filled"]
    hole = drawn[1] == 2
    expected = Pipeline.from_pretrained("tissue-texture").inpaint(
        pictures[1], hole, seeds=[3], sampler="ddim", num_inference_steps=3
    )
    assert np.array_equal(layer.data, np.asarray(expected.images)[0])
    assert np.array_equal(layer.data[~hole], pictures[1][~hole])
    assert (layer.data[hole] != pictures[1][hole]).any()
    assert tuple(layer.scale) == (0.5, 0.5)
    assert tuple(layer.translate) == (3, 4)


def test_labels_are_painted(viewer: Any, until: Until, tmp_path: Path) -> None:
    model = save_map_model(tmp_path / "model", 1)
    drawn = np.zeros((20, 28), int)
    drawn[5:12, 5:12] = 1
    viewer.add_labels(drawn, name="drawn")
    paint = form(viewer, "Paint from labels")
    set_fields(paint, model=str(model), count=2, sampler="ddim", steps=2)
    press(paint, "run")
    until(lambda: paint["run"].enabled)
    assert errors() == []
    expected = Pipeline.from_pretrained(model).paint(drawn, seeds=[0, 1], sampler="ddim", num_inference_steps=2).images
    assert np.array_equal(viewer.layers["drawn painted"].data, np.stack([np.asarray(image) for image in expected]))


def test_wrong_input_is_a_notification(viewer: Any, until: Until) -> None:
    sample, fill, paint = (form(viewer, title) for title in ("Sample pictures", "Fill a hole", "Paint from labels"))
    press(fill, "run")
    assert "there is no layer to choose for 'image'" in errors()[-1]
    set_fields(sample, size="large")
    press(sample, "run")
    assert "size 'large' should be one number" in errors()[-1]
    set_fields(sample, size="", model="no-such")
    press(sample, "run")
    until(lambda: sample["run"].enabled)
    assert "there is no run folder 'no-such'" in errors()[-1]
    viewer.add_image(np.zeros((20, 20, 3), np.uint8), rgb=True, name="picture")
    viewer.add_labels(np.zeros((20, 24), int), name="wide")
    press(fill, "run")
    assert "has 20x24 pixels and the image picture 20x20" in errors()[-1]
    viewer.layers["wide"].data = np.zeros((20, 20), int)
    press(fill, "run")
    assert "has no label here" in errors()[-1]
    set_fields(paint, model="tissue-texture")
    press(paint, "run")
    until(lambda: paint["run"].enabled)
    assert "was trained without maps" in errors()[-1]
    assert [layer.name for layer in viewer.layers] == ["picture", "wide"]


def test_the_window_stays_alive_and_stops_the_work(viewer: Any, until: Until) -> None:
    from qtpy.QtWidgets import QApplication

    sample = form(viewer, "Sample pictures")
    set_fields(sample, model="tissue-texture", count=4, size="64", sampler="ddpm", steps=300)
    press(sample, "run")
    until(lambda: sample["steps_done"].value >= 1)
    longest = 0.0
    for _ in range(50):
        begun = time.monotonic()
        QApplication.processEvents()
        longest = max(longest, time.monotonic() - begun)
        time.sleep(0.01)
    assert longest < 1  # a picture takes several
    assert not sample["run"].enabled
    press(sample, "stop")
    until(lambda: sample["run"].enabled)
    assert sample["steps_done"].value < 300
    assert list(viewer.layers) == []
    assert errors() == []


def test_a_slide_is_opened_with_its_levels(viewer: Any, tmp_path: Path) -> None:
    path = write_zarr(tmp_path / "slide.ome.zarr", 2, unit="micrometer", scale=0.5)
    (layer,) = viewer.open(path, plugin="morphogen")
    assert layer.multiscale
    assert layer.rgb
    assert tuple(layer.scale) == (0.5, 0.5)
    assert layer.level_shapes[0][:2].tolist() == list(SIZE)
    for number in range(3):
        assert np.array_equal(np.asarray(layer.data[number]), level(number))


@pytest.mark.parametrize("suffix", [".ome.tif", ".dzi"])
def test_painted_slides_are_opened(viewer: Any, tmp_path: Path, suffix: str) -> None:
    from morphogen.core.request import SamplingRequest
    from morphogen.pyramids import Region, open_pyramid
    from morphogen.slides.render import render
    from morphogen.slides.request import SlideRequest

    path = tmp_path / f"slide{suffix}"
    render(SlideRequest("tissue-texture", (40, 56), path, sampling=SamplingRequest("dpm++", 2)))
    (layer,) = viewer.open(path, plugin="morphogen")
    assert np.array_equal(np.asarray(layer.data[0]), open_pyramid(path).read_region(Region(0, 0, 40, 56)))


def test_holes_of_slides_are_left_to_the_command(viewer: Any, tmp_path: Path) -> None:
    viewer.open(write_zarr(tmp_path / "slide.ome.zarr", 2), plugin="morphogen")
    viewer.add_labels(np.ones(SIZE, int), name="hole")
    fill = form(viewer, "Fill a hole")
    press(fill, "run")
    assert "has several resolutions; fill holes in slides by `morphogen slide --inpaint`" in errors()[-1]


def test_of_further_axes_the_first_plane_is_shown_and_said(viewer: Any, tmp_path: Path) -> None:
    import zarr
    from napari.utils.notifications import notification_manager

    path = tmp_path / "stack.ome.zarr"
    write_zarr(path, 2, "tcyx")
    array = zarr.open_group(path, mode="r+")["0"]
    array.resize((2, *array.shape[1:]))
    (layer,) = viewer.open(path, plugin="morphogen")
    assert np.array_equal(np.asarray(layer.data[0]), level(0))
    assert any("t (2)" in record.message for record in notification_manager.records)


def empty_store(path: Path, shapes: list[tuple[int, ...]], tile: int) -> list[Any]:
    """An OME-Zarr of levels (channels, height, width), of which nothing is written yet; its arrays."""
    import zarr

    group = zarr.open_group(path, mode="w", zarr_format=2)
    axes = [{"name": "c", "type": "channel"}, {"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    steps = [[1.0, float(2**k), float(2**k)] for k in range(len(shapes))]
    datasets = [
        {"path": str(k), "coordinateTransformations": [{"type": "scale", "scale": step}]}
        for k, step in enumerate(steps)
    ]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]
    chunks = (shapes[0][0], tile, tile)
    return [group.create_array(str(k), shape=s, chunks=chunks, dtype="uint8") for k, s in enumerate(shapes)]


def test_only_what_is_in_sight_is_read(tmp_path: Path) -> None:
    from morphogen.napari.reader import open_slide

    path = tmp_path / "large.ome.zarr"  # 48 GB, of which one tile a level is stored
    for number, array in enumerate(empty_store(path, [(3, 2**17, 2**17), (3, 2**16, 2**16)], 256)):
        array[:, 512:768, 512:768] = 100 + number
    begun = time.monotonic()
    ((levels, settings, kind),) = open_slide(str(path))
    assert np.asarray(levels[0][512:514, 512:514]).tolist() == [[[100] * 3] * 2] * 2
    assert (np.asarray(levels[1][600, 600]) == 101).all()
    assert time.monotonic() - begun < 20
    assert (kind, settings["rgb"]) == ("image", True)


@pytest.mark.parametrize("channels", [1, 2])
def test_other_channels_are_gray_layers(viewer: Any, tmp_path: Path, channels: int) -> None:
    path = tmp_path / "slide.ome.zarr"
    values = np.random.default_rng(0).integers(0, 256, (channels, 40, 50), np.uint8)
    for number, array in enumerate(empty_store(path, [(channels, 40, 50), (channels, 20, 25)], 16)):
        array[:] = values[:, :: 2**number, :: 2**number]
    layers = viewer.open(path, plugin="morphogen")
    assert len(layers) == channels
    for layer, expected in zip(layers, values, strict=True):
        assert not layer.rgb
        assert layer.multiscale
        assert tuple(layer.contrast_limits) == (0, 255)
        assert np.array_equal(np.asarray(layer.data[0]), expected)


def test_a_damaged_slide_is_refused_by_its_name(viewer: Any, tmp_path: Path) -> None:
    path = write_zarr(tmp_path / "slide.ome.zarr", 2)
    attributes = path / ".zattrs"
    said = json.loads(attributes.read_text())
    said["multiscales"][0]["datasets"][0]["path"] = "gone"
    attributes.write_text(json.dumps(said))
    with pytest.raises(Exception, match=r"slide\.ome\.zarr is not an OME-Zarr image"):
        viewer.open(path, plugin="morphogen")


def test_a_text_is_no_slide(tmp_path: Path) -> None:
    from morphogen.napari.reader import find_reader

    (tmp_path / "notes.txt").write_text("none")
    assert find_reader(str(tmp_path / "notes.txt")) is None
    assert find_reader([str(tmp_path / "a.dzi")]) is None


@pytest.mark.parametrize(("key", "names"), [("tissue", ["tissue"]), ("nuclei", ["nuclei map", "nuclei painted"])])
def test_sample_data(viewer: Any, until: Until, key: str, names: list[str]) -> None:
    viewer.open_sample("morphogen", key)
    assert "being painted" in viewer.layers[0].name
    until(lambda: sorted(layer.name for layer in viewer.layers) == names)
    assert errors() == []


def test_the_sample_slide_is_painted_once(
    viewer: Any, until: Until, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MORPHOGEN_CACHE", str(tmp_path / "cache"))
    slides: list[Any] = []
    for count in (1, 2):
        begun = time.monotonic()
        viewer.open_sample("morphogen", "slide")
        until(lambda count=count: [layer.multiscale for layer in viewer.layers] == [True] * count)
        slides = [layer.data[0] for layer in viewer.layers]
    assert time.monotonic() - begun < 10  # it is there already
    assert slides[0].shape == (512, 512, 3)
    assert np.asarray(slides[0]).std() > 10
    assert np.array_equal(np.asarray(slides[0]), np.asarray(slides[1]))
    assert errors() == []
