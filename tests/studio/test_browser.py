"""The page in a real browser: Debian's Chromium, without a window, led by Playwright."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from map_helpers import save_map_model
from PIL import Image
from run_helpers import ForkServer, until
from slide_files import level, write_dzi

playwright = pytest.importorskip("playwright.sync_api")
pytest.importorskip("fastapi")


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


class Look:
    """A page of a server, and what went wrong on it."""

    def __init__(self, browser: Any, forks: ForkServer, *argv: object) -> None:
        self.process = forks.start("serve", *argv, "--port", "0")
        line = until(lambda: self.process.out_file.exists() and self.process.out)
        self.address = "http://127.0.0.1:" + line.split("127.0.0.1:")[1].split("/")[0] + "/"
        self.page = browser.new_page(viewport={"width": 400, "height": 300})
        self.troubles: list[str] = []
        self.asked: list[str] = []
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("console", lambda said: self.troubles.append(said.text) if said.type == "error" else None)
        self.page.on("request", lambda request: self.asked.append(request.url))

    def open(self, place: str = "") -> None:
        self.page.goto(self.address + place)
        self.page.wait_for_selector("body[data-open=yes]")
        self.settle()

    def settle(self) -> None:
        """Until nothing moves and every tile in sight is there."""
        self.page.wait_for_timeout(900)  # longer than an animation
        for _ in range(200):  # not Playwright's own waiting, which the page's content security policy forbids
            if self.page.evaluate("window.morphogen.viewer.world.getItemAt(0).getFullyLoaded()"):
                break
            self.page.wait_for_timeout(300)
        else:
            raise AssertionError(f"not all tiles came: {self.page.inner_text('footer')}")
        self.page.wait_for_timeout(400)

    def pixels(self) -> np.ndarray:
        """The middle of the picture on the screen, (100, 200, 3), which nothing covers."""
        shot = np.asarray(Image.open(io.BytesIO(self.page.screenshot())).convert("RGB"))
        return shot[110:210, 60:260]

    def close(self) -> None:
        self.page.close()
        self.process.kill()
        assert self.troubles == []
        assert all(url.startswith((self.address, "data:", "blob:")) for url in self.asked)  # no outside address


def difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(float) - other).mean())


def test_an_endless_slide(browser: Any, forks: ForkServer, run: Path) -> None:
    look = Look(browser, forks, run, "--sampling-steps", "2")
    look.open()
    assert "endless, seed 0" in look.page.inner_text("#facts") and look.page.inner_text("#place").startswith("x 0, y 0")
    first = look.pixels()
    assert first.std() > 10  # something has been painted
    look.page.mouse.move(200, 150)
    look.page.mouse.down()
    look.page.mouse.move(140, 110, steps=4)
    look.page.mouse.up()
    look.settle()
    place = look.page.evaluate("location.hash")
    moved = look.pixels()
    x, y = (int(part.split("=")[1]) for part in place[1:].split("&")[:2])
    assert x > 20 and y > 10  # at least as far as the mouse went, less what a flick adds
    assert difference(moved[: 100 - y, : 200 - x], first[y:, x:]) < 3 < difference(moved, first)
    look.page.click("#out")
    look.settle()
    assert "1/2×" in look.page.inner_text("#place")
    out = look.pixels()
    for _ in range(3):
        look.page.click("#out")
    look.settle()
    assert "too far out to compute" in look.page.inner_text("#place")
    assert look.pixels().std(axis=(0, 1)).max() < 1  # the placeholder
    look.page.click("#home")
    look.settle()
    assert difference(look.pixels(), first) < 1
    look.open(place)  # a link to a place shows the same place
    look.page.reload()
    look.settle()
    assert difference(look.pixels(), moved) < 1
    look.page.click("#out")
    look.settle()
    assert difference(look.pixels(), out) < 1
    look.close()


def test_a_finished_slide(browser: Any, forks: ForkServer, tmp_path: Path) -> None:
    look = Look(browser, forks, write_dzi(tmp_path / "s.dzi"))
    look.open()
    assert look.page.inner_text("#facts") == "233 × 150 pixels"
    look.page.evaluate("window.morphogen.look(116, 75, 1)")
    look.settle()
    # The middle of the screen, (200, 150), shows the slide's pixel (116, 75), each pixel on one of the screen's.
    assert difference(look.pixels()[:, 24:], level(0)[35:135, :176]) < 2
    look.close()


def test_the_scale_bar(browser: Any, forks: ForkServer, tmp_path: Path) -> None:
    """The longest of 1, 2 and 5 times a power of ten below 120 pixels; none where the slide says no scale."""
    path = write_dzi(tmp_path / "s.dzi")
    (tmp_path / "s_files" / "morphogen.json").write_text('{"pixel_size": 0.5}')
    look = Look(browser, forks, path)
    look.open()
    for zoom, length, pixels in ((1, "50 µm", 100), (4, "10 µm", 80)):
        look.page.evaluate(f"window.morphogen.look(116, 75, {zoom})")
        look.settle()
        assert look.page.inner_text("#length") == length
        assert abs(look.page.eval_on_selector("#bar", "bar => bar.getBoundingClientRect().width") - pixels) < 4
    look.close()
    (tmp_path / "s_files" / "morphogen.json").unlink()
    look = Look(browser, forks, path)
    look.open()
    assert look.page.is_hidden("#scale")
    look.close()


def test_the_brush(browser: Any, forks: ForkServer, tmp_path: Path) -> None:
    """By mouse, by keyboard, undone, and saved; on a window of a phone too."""
    model = save_map_model(tmp_path / "model", 1)
    look = Look(browser, forks, model, "--sampling-steps", "2")
    look.page.set_viewport_size({"width": 800, "height": 600})
    look.open("#x=0&y=0&zoom=4")

    def done(strokes: int) -> None:
        for _ in range(200):
            data = look.page.evaluate("({...document.body.dataset})")
            if data.get("painting") == "0" and data["strokes"] == str(strokes):
                break
            look.page.wait_for_timeout(100)
        else:
            raise AssertionError(look.page.inner_text("#said"))
        look.settle()
        look.page.wait_for_timeout(600)

    def shot() -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(look.page.screenshot())).convert("RGB"))[150:450, 60:500]

    look.page.wait_for_selector("#brush:not([hidden])")
    labels = look.page.eval_on_selector_all("#tools label", "all => all.map(one => one.innerText.trim())")
    assert labels == ["background (1)", "nucleus (2)", "rim (3)", "nothing told (4)", "another picture (5)"]
    first = shot()
    assert look.page.is_hidden("#tools")  # until one paints, the picture is free
    look.page.click("#paint")
    look.page.click("#tools input[value='1']")
    look.page.mouse.move(300, 300)
    look.page.mouse.down()
    look.page.mouse.move(380, 330, steps=5)
    look.page.mouse.up()
    done(1)
    by_mouse = shot()
    changed = np.abs(by_mouse.astype(int) - first).max(axis=2) > 8
    rows, columns = np.nonzero(changed)
    assert changed.any() and 220 < columns.mean() + 60 < 460 and 250 < rows.mean() + 150 < 380
    look.page.keyboard.press("Control+z")
    done(0)
    assert difference(shot(), first) < 1
    look.page.keyboard.press("Control+Shift+Z")
    done(1)
    assert difference(shot(), by_mouse) < 1
    look.page.keyboard.press("5")
    look.page.keyboard.press("ArrowLeft")
    look.page.keyboard.press("Enter")
    done(2)
    assert difference(shot(), by_mouse) > 0.05
    with look.page.expect_download() as download:
        look.page.click("#save-json")
    saved = tmp_path / "painting.json"
    download.value.save_as(saved)
    with look.page.expect_download() as download:
        look.page.click("#save-png")
    download.value.save_as(tmp_path / "painting.png")
    words = ("paint", model, saved, "--precision", "auto", "--out", tmp_path / "again")
    outcome = forks.run(*words)
    assert outcome.code == 0, outcome.err
    again = np.asarray(Image.open(tmp_path / "again" / "painting.png").convert("RGB"))
    np.testing.assert_array_equal(again, np.asarray(Image.open(tmp_path / "painting.png").convert("RGB")))
    look.page.set_viewport_size({"width": 390, "height": 780})
    look.settle()
    box = look.page.locator("#brush").bounding_box()
    assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= 390 and box["y"] > 250
    unnamed = look.page.eval_on_selector_all(
        "button", "all => all.filter(one => !(one.innerText.trim() || one.title || one.ariaLabel)).length"
    )
    assert unnamed == 0
    look.close()
