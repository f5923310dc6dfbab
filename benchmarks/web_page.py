"""How long does the exported page take for its first view, and for one 16 pixels further?

python benchmarks/web_page.py tissue-texture --side 256
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from morphogen.export.web import export_web


class Quiet(SimpleHTTPRequestHandler):
    """A static host that writes no log."""

    def log_message(self, format: str, *args: object) -> None: ...


def seconds(page: Page) -> str:
    """How long the view took that the page shows in the end."""
    page.wait_for_selector("#picture[data-done=true]", timeout=600_000)
    return str(page.get_attribute("#picture", "data-seconds"))


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--side", type=int, default=256, help="pixels of the model's, on a side of the view")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as running:
        export_web(arguments.model, Path(folder))
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = running.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"] if os.geteuid() == 0 else []
        )
        page = browser.new_page(viewport={"width": 1024, "height": 800})
        page.add_init_script(
            "addEventListener('DOMContentLoaded', () => {const s = document.getElementById('picture').style;"
            f"s.flex = 'none'; s.width = s.height = '{2 * arguments.side}px'}})"
        )
        page.goto(f"http://127.0.0.1:{server.server_address[1]}/#0,0,2,0")
        first = seconds(page)
        page.evaluate("location.hash = '#16,0,2,0'")
        page.wait_for_selector("#picture[data-done=false]")
        beside = seconds(page)
        cached = int(page.get_attribute("#picture", "data-cached") or 0)
        data = page.evaluate("({...document.body.dataset})")
        row = {
            "model": arguments.model,
            "view": f"{arguments.side}x{arguments.side}",
            **data,
            "first view": f"{first} s",
            "16 pixels further": f"{beside} s",
            "cache": f"{cached / 2**20:.0f} MB",
        }
        for cells in (row, dict.fromkeys(row, "---").values(), row.values()):
            print("|", " | ".join(cells), "|")
        server.shutdown()


if __name__ == "__main__":
    main()
