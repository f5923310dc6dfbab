"""`morphogen serve` as a real process, asked politely and otherwise."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_helpers import ForkServer, Process, until

from morphogen.core.model import Model
from morphogen.models import create_model
from morphogen.pyramids.region import Region
from morphogen.studio.endless import EndlessSlide

pytest.importorskip("fastapi")
MIDDLE = 2**23


class Served:
    """A running server: `get` asks it."""

    def __init__(self, process: Process) -> None:
        self.process = process
        line = until(lambda: process.out_file.exists() and process.out)
        assert line.startswith(("small is at http://127.0.0.1:", "s.dzi is at", "s.ome.tif is at", "cmu-1")), line
        self.port = int(line.split("127.0.0.1:")[1].split("/")[0])

    def get(self, path: str, method: str = "GET", timeout: float = 60, **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        names = {k.replace("_", "-"): v for k, v in headers.items()}
        try:
            connection.putrequest(method, path, skip_host="Host" in names)
            for name, value in names.items():
                connection.putheader(name, value)
            connection.endheaders()
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


@pytest.fixture
def serve(forks: ForkServer) -> Iterator[Callable[..., Served]]:
    """serve(WHAT, ...): start a server on a free port; it is killed at the end."""
    started: list[Process] = []

    def start(*argv: object) -> Served:
        started.append(forks.start("serve", *argv, "--port", "0"))
        return Served(started[-1])

    yield start
    for process in started:
        if process.code is None:
            process.kill()


def picture(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def test_tiles_are_the_endless_slide(serve: Callable[..., Served], run: Path, local: Model) -> None:
    served = serve(run, "--sampling-steps", "4", "--seed", "9", "--zoom-out", "1", "--precision", "float32")
    view = json.loads(served.get("/view.json")[1])
    assert view["endless"] and view["seed"] == "9" and view["sampler"] == "dpm++" and view["sampling_steps"] == 4
    side, computed = view["tile"], view["computed"]
    assert computed == 2 and view["scales"] == [1 / 2**k for k in range(5)] and view["width"] == 2 * MIDDLE * side
    slide = EndlessSlide(local, 9, None, 4)
    for column, row in ((MIDDLE, MIDDLE), (0, 0), (2 * MIDDLE - 1, 5)):
        status, content = served.get(f"/tiles/0/{column}/{row}.png")
        (expected,) = slide.pictures([Region(row * side, column * side, side, side)])
        assert status == 200 and np.abs(picture(content).astype(int) - expected).max() <= 1  # the kernel and PyTorch
    status, content = served.get(f"/tiles/1/{MIDDLE // 2}/{MIDDLE // 2}.png")
    (expected,) = slide.pictures([Region(MIDDLE * side, MIDDLE * side, 2 * side, 2 * side)])
    halve = expected.reshape(side, 2, side, 2, 3).mean(axis=(1, 3))
    assert status == 200 and np.abs(picture(content) - halve).max() <= 1.5
    status, content = served.get("/tiles/4/3/7.png")  # too far out: the average colour
    assert status == 200 and (picture(content) == picture(content)[0, 0]).all()


def test_hostile_requests_are_refused(serve: Callable[..., Served], run: Path) -> None:
    served = serve(run, "--sampling-steps", "2")
    refused = [
        f"/tiles/{level}/{column}/0.png"
        for level, column in (
            *(
                (0, n)
                for n in (-1, "nan", "NaN", "inf", "1e3", "0x10", "1.5", "", "..", "%2e%2e%2f", 2**24, 2**63, 10**30)
            ),
            *((n, 0) for n in (-1, 6, 99, 10**9, "9" * 5000)),
        )
    ]
    refused += [
        "/../../etc/passwd",
        "/..%2f..%2fetc/passwd",
        "//etc/passwd",
        "/page/page.js",
        "/%00",
        "/app.py",
        "/docs",
    ]
    refused += ["/openapi.json", "/tiles/0/0/0.jpg", "/tiles/0/0/0.png/", "/tiles", "/" + "a" * 9000]
    for path in refused:
        status, content = served.get(path)
        assert 400 <= status < 500, (path, status)
        assert b"root:" not in content and b"Traceback" not in content
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert served.get("/view.json", method)[0] == 405
    for host in ("evil.example", "127.0.0.1.evil.example", "0.0.0.0", ""):
        assert served.get("/view.json", Host=host)[0] == 400, host
    assert served.get("/view.json", Host=f"localhost:{served.port}")[0] == 200
    assert served.get("/view.json", Sec_Fetch_Site="cross-site")[0] == 403
    assert served.get("/view.json", Sec_Fetch_Site="same-origin")[0] == 200
    for origin in ("http://evil.example", "null", f"http://127.0.0.1:{served.port + 1}", "http://127.0.0.1"):
        assert served.get("/view.json", Origin=origin)[0] == 403, origin  # of browsers without Sec-Fetch-Site
    assert served.get("/view.json", Origin=f"http://127.0.0.1:{served.port}")[0] == 200
    with socket.create_connection(("127.0.0.1", served.port), 10) as raw:
        raw.sendall(b"\xff\xfe nonsense\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 400")
    assert served.get("/")[0] == 200  # and it goes on


def test_half_a_request_blocks_nobody(serve: Callable[..., Served], run: Path) -> None:
    """300 of them, more than there may be connections, and still others are answered; each is closed in time."""
    served = serve(run)
    halves = []
    for _ in range(300):
        halves.append(socket.create_connection(("127.0.0.1", served.port), 30))
        halves[-1].sendall(b"GET /view.json HTTP/1.1\r\nHost: ")
    started = time.monotonic()
    assert served.get("/view.json", timeout=20)[0] == 200
    for half in (halves[0], halves[-1]):
        with contextlib.suppress(ConnectionResetError):  # what was sent may not have been read
            assert half.recv(1) == b""
    assert time.monotonic() - started < 25  # 10 where the machine is quiet
    with socket.create_connection(("127.0.0.1", served.port), 30) as raw:  # nor does half of a second one
        head = f"GET /view.json HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\n\r\n".encode()
        raw.sendall(head + head[:20])
        with contextlib.suppress(ConnectionResetError):
            while raw.recv(4096):
                pass
    for half in halves:
        half.close()
    assert served.get("/view.json")[0] == 200


@pytest.mark.parametrize("root", ["/slides", "/a/b.c/"])
def test_behind_a_proxy(serve: Callable[..., Served], run: Path, root: str) -> None:
    """Whether the proxy takes its prefix off or not, and whether the page's address ends with a slash or not."""
    served, prefix = serve(run, "--root-path", root), root.rstrip("/")
    for page in ("/", prefix, prefix + "/"):
        status, content = served.get(page)
        assert status == 200 and f'<base href="{prefix}/">'.encode() in content
    for path in ("/view.json", "/page.js", "/tiles/5/0/0.png"):
        assert served.get(path)[0] == served.get(prefix + path)[0] == 200
    assert served.get(prefix + "x/view.json")[0] == served.get(prefix + prefix + "/view.json")[0] == 404


def test_it_listens_on_this_machine_only(serve: Callable[..., Served], run: Path) -> None:
    served = serve(run)
    addresses = {i[4][0] for i in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1"}
    for address in addresses or {"127.0.0.2"}:
        with pytest.raises(OSError), socket.create_connection((address, served.port), 3):
            pass


def test_too_many_at_once_and_the_deadline(serve: Callable[..., Served], tmp_path: Path) -> None:
    model = create_model("diff-nca-small", size=16, diffusion={"timesteps": 20}, channels=64, hidden=256, nca_steps=8)
    model.save_pretrained(tmp_path / "small")
    served = serve(tmp_path / "small", "--sampling-steps", "20", "--deadline", "2")
    codes: list[int] = []

    def ask(k: int) -> None:
        codes.append(served.get(f"/tiles/2/{1000 + 9 * k}/1000.png")[0])

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(90)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(codes) == 90 and set(codes) <= {200, 429, 503}
    assert codes.count(429) >= 10  # 64 may wait, and some are being computed
    assert codes.count(503) >= 10  # no time for these
    assert time.monotonic() - started < 30
    assert served.get("/view.json")[0] == 200


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_it_while_it_computes(serve: Callable[..., Served], run: Path, number: int) -> None:
    served = serve(run)
    asked = threading.Thread(target=lambda: served.get(f"/tiles/2/{MIDDLE}/7.png"), daemon=True)
    asked.start()
    time.sleep(0.3)
    served.process.send(number)
    assert served.process.wait() == 0
    assert served.process.out.splitlines()[-1] == "ended" and served.process.err == ""
    asked.join(10)
    with pytest.raises(OSError):
        served.get("/")


def test_wrong_use_is_one_sentence(refused: Callable[..., str], run: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused("serve", run, "--port", port, says=[f"--port {port} is in use"])
    refused("serve", tmp_path / "none", "--port", 0, says=["no run folder", "none"])
    refused("serve", tmp_path / "none.ome.zarr", "--port", 0, says=["none.ome.zarr does not exist"])
    refused("serve", run, "--port", 0, "--sampler", "magic", says=["magic", "ddim"])
    refused("serve", run, "--port", 0, "--sampling-steps", 21, says=["1 to 20"])
    refused("serve", run, "--port", 0, "--zoom-out", 5, says=["--zoom-out"])
    refused("serve", run, "--port", 0, "--seed", 2**64, says=["seed", str(2**64)])
    refused("serve", run, "--port", 99999, says=["--port"])
    for path in ("slides", "/a b", "/a//b", '/"x'):
        refused("serve", run, "--port", 0, "--root-path", path, says=["--root-path", "/slides"])


def test_a_scanners_slide(serve: Callable[..., Served]) -> None:
    pytest.importorskip("openslide")
    path = Path(__file__).parents[2].resolve().parent / "shared/data/slides/cmu-1-small-region.svs"
    if not path.is_file():
        pytest.skip("the shared slides are not here")
    served = serve(path)
    view = json.loads(served.get("/view.json")[1])
    assert (view["height"], view["width"], view["mpp"]) == (2967, 2220, 0.499)
    assert picture(served.get("/tiles/0/3/4.png")[1]).std() > 5


def test_a_finished_slide(serve: Callable[..., Served], tmp_path: Path) -> None:
    pytest.importorskip("tifffile")
    pytest.importorskip("zarr")
    from slide_files import level, write_tiff

    served = serve(write_tiff(tmp_path / "s.ome.tif"))
    view = json.loads(served.get("/view.json")[1])
    assert not view["endless"] and (view["height"], view["width"]) == (150, 233) and len(view["scales"]) == 3
    for n in range(3):
        status, content = served.get(f"/tiles/{n}/0/0.png")
        assert status == 200 and np.array_equal(picture(content), level(n))
    assert served.get("/tiles/0/1/0.png")[0] == 404


def post(served: Served, path: str, body: object, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        connection.request("POST", path, content, {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_strokes_over_http(serve: Callable[..., Served], run: Path, tmp_path: Path) -> None:
    served = serve(run, "--sampling-steps", "2")
    size = "x=-20&y=-20&width=40&height=40"
    status, before = served.get(f"/painting.png?{size}")
    assert status == 200 and picture(before).shape == (40, 40, 3)
    stroke = {"what": "seed", "seed": 7, "points": [[0, 0], [5, 3]], "radius": 4}
    status, body = post(served, "/preview", stroke)
    assert status == 200 and json.loads(body)["picture"].startswith("data:image/png;base64,")
    assert json.loads(served.get("/strokes")[1]) == {"strokes": 0, "undone": 0}
    status, body = post(served, "/strokes", stroke)
    found = json.loads(body)
    assert status == 200 and found["strokes"] == 1 and found["x"] <= -4 and found["width"] > 8
    after = picture(served.get(f"/painting.png?{size}")[1])
    assert (after != picture(before)).any()
    saved = json.loads(served.get(f"/painting.json?{size}")[1])
    assert saved["edits"][0]["seed"] == 7 and (saved["x"], saved["width"]) == (-20, 40)
    assert json.loads(post(served, "/undo", {})[1])["strokes"] == 0
    np.testing.assert_array_equal(picture(served.get(f"/painting.png?{size}")[1]), picture(before))
    assert json.loads(post(served, "/redo", {})[1])["strokes"] == 1
    np.testing.assert_array_equal(picture(served.get(f"/painting.png?{size}")[1]), after)


@pytest.mark.parametrize(
    ("body", "headers", "status", "sentence"),
    [
        ({"what": "class", "name": "x", "points": [[0, 0]], "radius": 4}, {}, 422, "was trained without maps"),
        ({"what": "seed", "points": [[0, 0], [9999, 0]], "radius": 4}, {}, 422, "it may cover 512x512"),
        ({"what": "seed", "points": [], "radius": 4}, {}, 422, "points"),
        ({"what": "seed", "points": [[0, "a"]], "radius": 4}, {}, 422, "points"),
        ({"what": "seed", "points": [[0, 0]], "radius": 1e9}, {}, 422, "radius"),
        ({"what": "dance", "points": [[0, 0]], "radius": 4}, {}, 422, "what"),
        (b"{", {}, 422, "should be JSON"),
        (b"[" * 300_000, {}, 422, "a stroke may have 262144 bytes"),
        ({"what": "seed", "points": [[0, 0]], "radius": 4}, {"Content-Type": "text/plain"}, 422, "application/json"),
        ({"what": "seed", "points": [[0, 0]], "radius": 4}, {"Origin": "http://evil.example"}, 403, "other sites"),
        ({"what": "seed", "points": [[0, 0]], "radius": 4}, {"Sec-Fetch-Site": "cross-site"}, 403, "other sites"),
        ({"what": "seed", "points": [[0, 0]], "radius": 4}, {"Host": "evil.example"}, 400, "Invalid host"),
    ],
)
def test_strokes_that_are_turned_away(
    strokes_server: Served, body: object, headers: dict[str, str], status: int, sentence: str
) -> None:
    found, said = post(strokes_server, "/strokes", body, **headers)
    assert found == status and sentence in said.decode()
    assert json.loads(strokes_server.get("/strokes")[1]) == {"strokes": 0, "undone": 0}


@pytest.fixture(scope="module")
def strokes_server(forks: ForkServer, run: Path) -> Iterator[Served]:
    process = forks.start("serve", run, "--sampling-steps", "2", "--port", "0")
    yield Served(process)
    process.kill()


def test_a_painting_of_no_size(strokes_server: Served) -> None:
    for query in ("x=0&y=0&width=0&height=5", "x=0&y=0&width=9999&height=5", "x=0&y=0", "x=a&y=0&width=5&height=5"):
        status, said = strokes_server.get(f"/painting.png?{query}")
        assert status == 422 and b"x, y, width and height" in said
