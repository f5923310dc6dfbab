"""The exported page in a real browser paints the CLI's pictures, with no address but its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from morphogen import create_model
from morphogen.core.images import to_bytes
from morphogen.core.keys import Key
from morphogen.core.request import SamplingRequest
from morphogen.diffusion.sampling import sample
from morphogen.export.web import export_web, paintable
from morphogen.models import load_model

playwright = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.slow
SEED = 2**63 + 7


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A running Chromium."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("there is no chromium on this machine (Debian: apt-get install chromium)")
    root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=chromium, args=root)
        yield browser
        browser.close()


class Quiet(SimpleHTTPRequestHandler):
    """A static host that writes no log."""

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def serve() -> Iterator[Callable[[Path], str]]:
    """Serve a folder; its address."""
    servers = []

    def begin(folder: Path) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}/"

    yield begin
    for server in servers:
        server.shutdown()
        server.server_close()


def opened(browser: Any, address: str) -> Any:
    """A page that may ask nobody but its host; a request elsewhere or an error of the page's script fails."""
    page = browser.new_page(viewport={"width": 400, "height": 400})
    page.troubles = []
    page.on("pageerror", lambda error: page.troubles.append(str(error)))
    page.on("request", lambda asked: page.troubles.append(asked.url) if asked.url[:17] != "http://127.0.0.1:" else None)
    page.goto(address)
    return page


def painted(page: Any) -> tuple[np.ndarray, int, int]:
    """The finished view (height, width, 3), and the slide's row and column of its upper left corner."""
    page.wait_for_selector("#picture[data-done=true]", timeout=120_000)
    with page.expect_download() as download:
        page.click("#save")
    place = re.search(r"-(-?\d+),(-?\d+)\.png$", download.value.suggested_filename)
    assert place is not None
    pixels = np.asarray(Image.open(download.value.path()).convert("RGB")).astype(int)
    return pixels, int(place[2]), int(place[1])


def saved(folder: Path, name: str) -> str:
    """A small model's folder: cells of 2x2 pixels, a short reach, an output that shows."""
    model = create_model(name, size=16, diffusion={"timesteps": 50}, patch=2, nca_steps=3, output_gain=2.0)
    model.save_pretrained(folder)
    return str(folder)


def test_paints_what_sample_does(
    browser: Any, serve: Callable[[Path], str], cli: Callable[..., Any], tmp_path: Path
) -> None:
    """Within a grey level: float32 sums in another order. Away from the edges, which the page's slide has not."""
    export_web("tissue-texture", tmp_path / "page", sampling_steps=3)
    argv = ("-n", 1, "--seed", SEED, "--size", 120, "--sampler", "dpm++", "--sampling-steps", 3)
    done = cli("sample", "tissue-texture", *argv, "--precision", "float32", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    theirs = np.asarray(Image.open(tmp_path / "out" / f"{SEED}.png").convert("RGB")).astype(int)
    page = opened(browser, serve(tmp_path / "page") + f"#60,60,8,{SEED}")
    ours, top, left = painted(page)
    height, width = ours.shape[:2]
    assert top >= 30 and left >= 30 and top + height <= 90 and left + width <= 90
    theirs = theirs[top : top + height, left : left + width]
    assert theirs.std() > 5 and np.abs(ours - theirs).max() <= 1
    assert not page.troubles
    page.close()


@pytest.mark.parametrize("place", [(-(2**40) - 5, 2**40 + 3), (2**32 - 10, -7)])
def test_paints_the_same_far_away(
    browser: Any, serve: Callable[[Path], str], tmp_path: Path, place: tuple[int, int]
) -> None:
    """The places of random numbers are absolute and of 64 bits, negative ones too."""
    folder = saved(tmp_path / "model", "diff-nca-small")
    export_web(folder, tmp_path / "page", sampling_steps=4)
    page = opened(browser, serve(tmp_path / "page") + f"#{place[1]},{place[0]},8,{SEED}")
    ours, top, left = painted(page)
    assert abs(top - place[0]) < 60 and abs(left - place[1]) < 60
    page.close()
    model = paintable(load_model(folder))
    margin = 4 * 6 + 2  # of whole cells, beyond what the steps read
    top_cell, left_cell = (top - margin) // 2 * 2, (left - margin) // 2 * 2
    size = (ours.shape[0] // 2 * 2 + 2 * margin + 4, ours.shape[1] // 2 * 2 + 2 * margin + 4)
    key = Key((SEED,), 0, ((top_cell, left_cell),))
    theirs = to_bytes(sample(model, key, size, SamplingRequest("dpm++", 4)))[0].astype(int)
    theirs = theirs[top - top_cell :, left - left_cell :][: ours.shape[0], : ours.shape[1]]
    assert theirs.std() > 5 and np.abs(ours - theirs).max() <= 1


def test_pans_zooms_and_films(browser: Any, serve: Callable[[Path], str], tmp_path: Path) -> None:
    """The picture is one: what is seen after a way there is what its address gives. Films have a frame a step."""
    export_web(saved(tmp_path / "model", "diff-nca-small"), tmp_path / "page", sampling_steps=4)
    address = serve(tmp_path / "page")
    page = opened(browser, address + "#0,0,8,3")
    painted(page)
    page.focus("#picture")
    for key in ("ArrowLeft", "ArrowUp", "ArrowUp", "-", "+", "+", "-"):
        page.keyboard.press(key)
    page.mouse.move(200, 250)
    page.mouse.down()
    page.mouse.move(240, 290)
    page.mouse.up()
    page.wait_for_function("location.hash === '#-13,-21,8,3'")
    way, top, left = painted(page)
    page.click("#play")
    page.wait_for_selector("#film[data-frames='4']")
    page.click("#film button")
    page.close()
    page = opened(browser, address + "#-13,-21,8,3")
    direct, *place = painted(page)
    assert place == [top, left] and np.array_equal(way, direct)
    page.fill("#seed", "4")
    page.keyboard.press("Enter")
    page.wait_for_function("location.hash === '#-13,-21,8,4'")
    other, *_ = painted(page)
    assert np.abs(other - direct).max() > 20
    assert not page.troubles
    page.close()


def test_says_what_is_wrong(browser: Any, serve: Callable[[Path], str], tmp_path: Path) -> None:
    export_web(saved(tmp_path / "model", "diff-nca-small"), tmp_path / "page", sampling_steps=2)
    page = opened(browser, (tmp_path / "page" / "index.html").as_uri())
    assert "python -m http.server" in page.inner_text("#status")
    page.close()
    address = serve(tmp_path / "page")
    page = opened(browser, address)
    painted(page)
    page.fill("#seed", str(2**64))
    page.keyboard.press("Enter")
    assert "2^64 - 1" in page.inner_text("#status")
    page.close()
    page = opened(browser, "about:blank")
    page.add_init_script("WebAssembly.validate = () => false")
    page.goto(address)
    page.wait_for_selector("text=no WebAssembly SIMD")
    page.close()
    manifest = json.loads((tmp_path / "page" / "manifest.json").read_text())
    check = manifest["levels"][0]["check"]
    wrong = {**manifest, "levels": [{**manifest["levels"][0], "check": {**check, "seed": "1"}}]}
    (tmp_path / "page" / "manifest.json").write_text(json.dumps(wrong))
    page = opened(browser, address)
    page.wait_for_selector("text=computes other numbers than the model's")
    page.close()
    content = bytearray((tmp_path / "page" / "weights.bin").read_bytes())
    content[1000] ^= 1
    (tmp_path / "page" / "weights.bin").write_bytes(content)
    assert len(content) == manifest["levels"][0]["weights"]["bytes"]
    page = opened(browser, address)
    page.wait_for_selector("text=weights.bin is not the exported file")
    page.close()
