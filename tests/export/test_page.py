"""The exported page in a real browser paints the CLI's pictures, with no address but its own."""

from __future__ import annotations

import json
import os
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
from morphogen.export.web import export_web

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
    page = browser.new_page(viewport={"width": 900, "height": 900})
    page.troubles = []
    page.on("pageerror", lambda error: page.troubles.append(str(error)))
    page.on("request", lambda asked: page.troubles.append(asked.url) if asked.url[:17] != "http://127.0.0.1:" else None)
    page.goto(address)
    return page


def painted(page: Any) -> np.ndarray:
    """The finished picture (height, width, 3)."""
    page.wait_for_selector("canvas[data-done=true]", timeout=120_000)
    with page.expect_download() as download:
        page.click("#save")
    return np.asarray(Image.open(download.value.path()).convert("RGB")).astype(int)


def test_paints_what_sample_does(
    browser: Any, serve: Callable[[Path], str], cli: Callable[..., Any], tmp_path: Path
) -> None:
    """Within a grey level: float32 sums in another order. The cells of the second model are 2x2 pixels."""
    model = create_model("diff-nca-small", size=16, diffusion={"timesteps": 50}, patch=2, nca_steps=5, output_gain=2.0)
    model.save_pretrained(tmp_path / "patched")
    for name, reference in (("tissue-texture", "tissue-texture"), ("patched", str(tmp_path / "patched"))):
        export_web(reference, tmp_path / name / "page")
        argv = (
            "-n",
            1,
            "--seed",
            SEED,
            "--size",
            "32x48",
            "--sampler",
            "dpm++",
            "--sampling-steps",
            12,
            "--precision",
            "float32",
        )
        done = cli("sample", reference, *argv, "--out", tmp_path / name / "out")
        assert done.code == 0, done.err
        theirs = np.asarray(Image.open(tmp_path / name / "out" / f"{SEED}.png").convert("RGB")).astype(int)
        page = opened(browser, serve(tmp_path / name / "page") + f"#seed={SEED}&height=32&width=48")
        ours = painted(page)
        assert ours.shape == theirs.shape and theirs.std() > 5
        assert np.abs(ours - theirs).max() <= 1
        assert not page.troubles
        page.close()


def test_says_what_is_wrong(browser: Any, serve: Callable[[Path], str], tmp_path: Path) -> None:
    export_web("tissue-texture", tmp_path / "page")
    page = opened(browser, (tmp_path / "page" / "index.html").as_uri())
    assert "python -m http.server" in page.inner_text("#status")
    page.close()
    page = opened(browser, serve(tmp_path / "page") + "#height=16&width=16")
    painted(page)
    page.fill("#seed", str(2**64))
    page.keyboard.press("Enter")
    assert "2^64 - 1" in page.inner_text("#status")
    page.close()
    manifest = json.loads((tmp_path / "page" / "manifest.json").read_text())
    content = bytearray((tmp_path / "page" / "weights.bin").read_bytes())
    content[1000] ^= 1
    (tmp_path / "page" / "weights.bin").write_bytes(content)
    assert len(content) == manifest["levels"][0]["weights"]["bytes"]
    page = opened(browser, serve(tmp_path / "page"))
    page.wait_for_selector("text=weights.bin is not the exported file")
    page.wait_for_selector("#paint:text-is('Paint')")
    page.click("#paint")  # again, which says it again
    page.wait_for_selector("text=weights.bin is not the exported file")
    page.close()
