"""`morphogen app` and the example of a Space, as real processes: what its buttons give is what Pipeline gives."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from run_helpers import environment, until

pytest.importorskip("gradio")

import gradio_client

from morphogen.core.errors import InputError
from morphogen.studio.gradio_app import hole_of
from morphogen.tasks.pipeline import Pipeline

pytestmark = pytest.mark.slow
SPACE = Path(__file__).parents[2] / "examples" / "space" / "app.py"
COMMON = ("ddim", 3)


def started(argv: list[str], log: Path, **variables: str) -> tuple[subprocess.Popen[bytes], str]:
    """A process that shows the page, and its address."""
    env = {**environment(), **variables, "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, *argv], env=env, stdout=output, stderr=subprocess.STDOUT)

    def address() -> str | None:
        assert process.poll() is None, log.read_text()
        found = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
        return found[0] if found else None

    return process, until(address)


@pytest.fixture(scope="module")
def address(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`morphogen app` with a small model."""
    log = tmp_path_factory.mktemp("app") / "log"
    process, found = started(["-m", "morphogen", "app", str(run), "--port", "0", "--precision", "float32"], log)
    yield found
    process.send_signal(2)
    assert process.wait(60) == 0, log.read_text()
    assert "ended" in log.read_text()


@pytest.fixture(scope="module")
def client(address: str) -> Any:
    return gradio_client.Client(address, verbose=False)


@pytest.fixture(scope="module")
def pipeline(run: Path) -> Pipeline:
    return Pipeline.from_pretrained(run, precision="float32")


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    return path


def shown(gallery: list[dict[str, Any]]) -> list[np.ndarray]:
    """The pixels of a gallery's files."""
    return [np.asarray(Image.open(item["image"]).convert("RGB")) for item in gallery]


def same(found: list[np.ndarray], expected: Any) -> bool:
    return len(found) == len(expected) and all((np.asarray(b) == a).all() for a, b in zip(found, expected, strict=True))


def test_samples_are_those_of_their_seeds(client: Any, pipeline: Pipeline) -> None:
    found = shown(client.predict(3, 24, 32, 7, *COMMON, api_name="/sample"))
    expected = pipeline(seeds=range(7, 10), height=24, width=32, sampler="ddim", num_inference_steps=3).images
    assert same(found, expected)


def test_what_is_drawn_over_is_filled(client: Any, pipeline: Pipeline, picture: Path, tmp_path: Path) -> None:
    hole = np.zeros((20, 24, 4), np.uint8)
    hole[5:12, 6:15] = (230, 0, 126, 255)
    Image.fromarray(hole).save(tmp_path / "layer.png")
    background, layer = gradio_client.handle_file(str(picture)), gradio_client.handle_file(str(tmp_path / "layer.png"))
    edited = {"background": background, "layers": [layer], "composite": background}
    found = shown(client.predict(edited, 2, 1, *COMMON, api_name="/inpaint"))
    image = Image.open(picture)
    expected = pipeline.inpaint(image, hole[..., 3] > 0, seeds=[1, 2], sampler="ddim", num_inference_steps=3).images
    assert same(found, expected)
    assert all((each[hole[..., 3] == 0] == np.asarray(image)[hole[..., 3] == 0]).all() for each in found)


def test_variations_and_larger_pictures(client: Any, pipeline: Pipeline, picture: Path) -> None:
    image, given = Image.open(picture), gradio_client.handle_file(str(picture))
    settings: dict[str, Any] = {"sampler": "ddim", "num_inference_steps": 3}
    found = shown(client.predict(given, 0.5, 2, 1, *COMMON, api_name="/vary"))
    assert same(found, pipeline.vary(image, 0.5, seeds=[1, 2], **settings).images)
    large = np.asarray(Image.open(client.predict(given, 3, 4, *COMMON, api_name="/upscale")).convert("RGB"))
    assert same([large], pipeline.upscale(image, 3, seeds=[4], **settings).images)


def test_refusals_are_sentences(client: Any, picture: Path, tmp_path: Path) -> None:
    given = gradio_client.handle_file(str(picture))
    Image.new("RGB", (400, 300)).save(tmp_path / "large.png")
    large = gradio_client.handle_file(str(tmp_path / "large.png"))
    nothing = {"background": given, "layers": [], "composite": given}
    for words, name, says in (
        ((1, 2000, 16, 0, *COMMON), "/sample", "greater than maximum value 1024"),
        ((1, 16, 16, 0, "ddim", 250), "/sample", "timesteps"),
        ((nothing, 1, 0, *COMMON), "/inpaint", "nothing is marked"),
        ((None, 0.4, 1, 0, *COMMON), "/vary", "there is no picture"),
        ((large, 4, 0, *COMMON), "/upscale", "1200x1600"),
    ):
        with pytest.raises(gradio_client.exceptions.AppError, match=says):
            client.predict(*words, api_name=name)
    with pytest.raises(InputError, match="there is no picture"):
        hole_of(None)


def test_a_port_in_use_and_a_missing_library(run: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        argv = [sys.executable, "-m", "morphogen", "app", str(run), "--port", port]
        done = subprocess.run(argv, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and f"--port {port} is in use" in done.stderr
    (tmp_path / "gradio.py").write_text("raise ImportError('not here')\n")
    env = {**environment(), "PYTHONPATH": os.pathsep.join([str(tmp_path), environment().get("PYTHONPATH", "")])}
    argv = [sys.executable, "-m", "morphogen", "app", str(run)]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and 'pip install "morphogen[app]"' in done.stderr


def test_the_example_of_a_space_answers(tmp_path: Path) -> None:
    process, address = started([str(SPACE)], tmp_path / "log", MORPHOGEN_MODEL="tissue-texture")
    try:
        found = shown(gradio_client.Client(address, verbose=False).predict(1, 48, 48, 0, *COMMON, api_name="/sample"))
        expected = Pipeline.from_pretrained("tissue-texture")(
            seeds=[0], sampler="ddim", num_inference_steps=3, height=48, width=48
        )
        assert same(found, expected.images)
    finally:
        process.terminate()
        process.wait(60)
