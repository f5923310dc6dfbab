"""The server's answers: the page, the description of the view, and tiles."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from morphogen.core.errors import MorphogenError
from morphogen.studio.brush import add_brush
from morphogen.studio.endless import Stopped
from morphogen.studio.queue import Full, TileQueue
from morphogen.studio.views import EndlessView, Tile

_PAGE = Path(__file__).parent / "page"
_FILES = {  # what is served by name: nothing that a request says becomes a path
    "": ("index.html", "text/html; charset=utf-8"),
    "page.js": ("page.js", "text/javascript; charset=utf-8"),
    "brush.js": ("brush.js", "text/javascript; charset=utf-8"),
    "page.css": ("page.css", "text/css; charset=utf-8"),
    "openseadragon.min.js": ("openseadragon.min.js", "text/javascript; charset=utf-8"),
    "openseadragon.LICENSE.txt": ("openseadragon.LICENSE.txt", "text/plain; charset=utf-8"),
}
_HEADERS = (
    (b"content-security-policy", b"default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
     b"img-src 'self' data: blob:; connect-src 'self'; base-uri 'self'; form-action 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)  # fmt: skip
_HOSTS = ["127.0.0.1", "localhost"]
_GONE_CHECK_S = 0.5
_Index = Annotated[int, InPath(ge=0, le=2**31)]


class _OwnPageOnly:
    """Refuses what pages of other sites ask for, and sends every answer with headers that keep the page to itself.

    root_path: taken off the paths of requests, for proxies that leave it there.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self.app, self.root_path = app, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
            await send(message)

        headers = dict(scope["headers"])
        foreign = headers.get(b"sec-fetch-site", b"none") in (b"cross-site", b"same-site")
        if foreign or not _is_own(headers.get(b"origin"), headers.get(b"host", b"")):
            await PlainTextResponse("other sites may not ask here", 403)(scope, receive, sending)
            return
        path = scope["path"]
        if self.root_path and (path + "/").startswith(self.root_path + "/"):
            scope = {**scope, "path": path[len(self.root_path) :] or "/"}
        await self.app(scope, receive, sending)


def _is_own(origin: bytes | None, host: bytes) -> bool:
    """Whether a request comes from our own page: browsers that send no Sec-Fetch-Site still send an Origin."""
    return origin is None or origin in (b"http://" + host, b"https://" + host)


def make_app(queue: TileQueue, root_path: str = "") -> FastAPI:
    """The application that shows the view of a queue. root_path: the path under which a proxy shows the page, such as
    /slides, whether the proxy takes it off the requests or not.
    """
    app = FastAPI(title="Morphogen", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=_HOSTS, www_redirect=False)  # against DNS rebinding
    app.add_middleware(_OwnPageOnly, root_path=root_path)
    files = {name: ((_PAGE / file).read_bytes(), kind) for name, (file, kind) in _FILES.items()}
    if root_path:  # so that the page finds its parts whether its address ends with a slash or not
        index, kind = files[""]
        files[""] = index.replace(b"<head>", f'<head>\n  <base href="{root_path}/">'.encode(), 1), kind
    description = queue.view.description()

    @app.exception_handler(RequestValidationError)
    async def _bad_request(request: Request, error: RequestValidationError) -> Response:
        if request.url.path.startswith("/painting"):
            return PlainTextResponse("a painting is asked for with x, y, width and height in whole pixels", 422)
        return PlainTextResponse("tiles are /tiles/LEVEL/COLUMN/ROW.png with whole numbers from 0 on", 422)

    @app.get("/view.json")
    async def _view() -> Response:
        return JSONResponse(description)

    @app.get("/tiles/{level}/{column}/{row}.png")
    async def _tile(level: _Index, column: _Index, row: _Index, request: Request) -> Response:
        tile = Tile(level, column, row)
        if not queue.view.has(tile):
            return PlainTextResponse("there is no such tile", 404)
        try:
            result = asyncio.wrap_future(queue.submit(tile))
        except Full:
            return PlainTextResponse("too many tiles are waiting", 429, {"Retry-After": "2"})
        end = time.monotonic() + queue.deadline_s
        while not (await asyncio.wait({result}, timeout=_GONE_CHECK_S))[0]:
            if time.monotonic() >= end or await request.is_disconnected():
                result.cancel()
                return _late()
        try:
            return Response(result.result(), media_type="image/png", headers={"Cache-Control": "no-store"})
        except (Stopped, asyncio.CancelledError):
            return _late()
        except MorphogenError as error:
            return PlainTextResponse(str(error), 500)

    if isinstance(queue.view, EndlessView):
        add_brush(app, queue, queue.view)

    @app.get("/{name}")
    async def _file(name: str) -> Response:
        if name not in files:
            return PlainTextResponse("there is no such page", 404)
        content, kind = files[name]
        return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})

    app.add_api_route("/", lambda: Response(files[""][0], media_type=files[""][1]), methods=["GET"])
    return app


def _late() -> Response:
    return PlainTextResponse("the tile was not ready in time; ask again", 503, {"Retry-After": "1"})
