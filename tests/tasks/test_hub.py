"""A model put on the hub and fetched from it again, by real clients in processes of their own, over HTTP from a
stand-in of the hub on this machine: a server that knows the few addresses that the client asks for.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from map_helpers import map_level
from PIL import Image

from morphogen.core.errors import InputError
from morphogen.tasks.hub import card, push_to_hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """What a hub answers about one repository, held in memory."""

    files: dict[str, bytes]
    asked: list[str]

    def log_message(self, *_: object) -> None:
        pass

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, found: object, status: int = 200) -> None:
        self._send(status, json.dumps(found).encode())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.asked.append(f"POST {self.path}")
        if self.headers.get("Authorization") != "Bearer secret":
            self._json({"error": "not logged in"}, 401)
        elif self.path == "/api/repos/create":
            self._json({"url": f"http://{self.headers['Host']}/jane/spots", "name": "jane/spots", "id": "jane/spots"})
        elif self.path.startswith("/api/models/jane/spots/preupload/"):
            wanted = json.loads(body)["files"]
            files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in wanted]
            self._json({"files": files})
        elif self.path.startswith("/api/models/jane/spots/commit/"):
            for line in body.splitlines():
                part = json.loads(line)
                if part["key"] == "file":
                    self.files[part["value"]["path"]] = base64.b64decode(part["value"]["content"])
            address = f"http://{self.headers['Host']}/jane/spots/commit/{COMMIT}"
            self._json({"success": True, "commitOid": COMMIT, "commitUrl": address, "hookOutput": ""})
        elif self.path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        else:
            self._json({"error": "unknown"}, 404)

    def do_GET(self) -> None:
        self.asked.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/jane/spots/tree/"):
            listed = [{"type": "file", "path": n, "size": len(d), "oid": COMMIT} for n, d in self.files.items()]
            self._json(listed)
            return
        if path.startswith("/api/models/jane/spots"):
            siblings = [{"rfilename": name, "size": len(data)} for name, data in self.files.items()]
            self._json({"id": "jane/spots", "sha": COMMIT, "siblings": siblings, "private": False, "tags": []})
            return
        name = path.rsplit("/", 1)[-1]
        if path.startswith("/jane/spots/resolve/") and name in self.files:
            data = self.files[name]
            kind = "application/octet-stream"
            self._send(200, data, ETag=f'"{hashlib.sha256(data).hexdigest()}"', Content_Type=kind)
            return
        self._send(404, b'{"error": "not found"}', X_Error_Code="EntryNotFound")

    do_HEAD = do_GET


@pytest.fixture
def hub() -> Iterator[tuple[str, type[Hub]]]:
    handler = type("OneHub", (Hub,), {"files": {}, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()


def run(code: str, endpoint: str, cache: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    names = {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    kept = {k: v for k, v in os.environ.items() if "PROXY" not in k.upper() and not k.startswith("HF_")}
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    return subprocess.run(command, env={**kept, **names}, capture_output=True, text=True, timeout=240, check=False)


PUSH = """
import sys
from morphogen import Pipeline
pipeline = Pipeline.from_pretrained(sys.argv[1], precision="float32")
print(pipeline.push_to_hub("jane/spots", license="cc0-1.0", token=sys.argv[2]))
"""
PULL = """
import sys
import numpy as np
from morphogen import Pipeline
pipeline = Pipeline.from_pretrained("jane/spots", precision="float32")
np.save(sys.argv[1], pipeline(seeds=[5], num_inference_steps=3, output_type="np").images)
"""


@pytest.mark.slow
def test_a_pipeline_goes_to_the_hub_and_comes_back(hub: tuple[str, type[Hub]], tmp_path: Path) -> None:
    from morphogen import Pipeline

    endpoint, server = hub
    model = map_level(0)
    model.save_pretrained(tmp_path / "model")
    pushed = run(PUSH, endpoint, tmp_path / "one", tmp_path / "model", "secret")
    assert pushed.returncode == 0, pushed.stderr
    assert pushed.stdout.strip() == f"{endpoint}/jane/spots/commit/{COMMIT}"
    assert set(server.files) >= {"config.json", "model.safetensors", "README.md", "samples.png"}
    assert server.files["model.safetensors"] == (tmp_path / "model" / "model.safetensors").read_bytes()
    with Image.open(io.BytesIO(server.files["samples.png"])) as samples:
        assert samples.size[0] > 12
    pulled = run(PULL, endpoint, tmp_path / "two", tmp_path / "image.npy")
    assert pulled.returncode == 0, pulled.stderr
    here = Pipeline.from_pretrained(tmp_path / "model", precision="float32")
    wanted = here(seeds=[5], num_inference_steps=3, output_type="np").images
    np.testing.assert_array_equal(np.load(tmp_path / "image.npy"), wanted)
    refused = run(PUSH, endpoint, tmp_path / "three", tmp_path / "model", "wrong")
    assert refused.returncode != 0 and "jane/spots could not be put on the hub" in refused.stderr
    assert "401" in refused.stderr and len(server.files) >= 4


def test_the_card_says_what_the_model_is_and_how_to_use_it() -> None:
    said = card(map_level(0), "jane/spots", "cc0-1.0", painted=True)
    header = said.split("---")[1]
    assert "license: cc0-1.0" in header and "library_name: morphogen" in header
    for line in (
        "# spots",
        "- paints from label maps: 0 background, 1 nucleus, 2 rim",
        "    morphogen paint jane/spots MAP.png -n 4",
        'pipeline = Pipeline.from_pretrained("jane/spots")',
        "- made for RGB pictures of 12x12; at least 2 pixels a side",
    ):
        assert line in said.splitlines(), line


@pytest.mark.parametrize("name", ["spots", "jane/", "/spots", "a/b/c", "", None])
def test_names_that_no_hub_has(name: object) -> None:
    with pytest.raises(InputError, match="it should be owner/name, such as jane/tissue"):
        push_to_hub(map_level(0), name)  # type: ignore[arg-type]
