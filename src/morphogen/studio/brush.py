"""The brush over HTTP: strokes, undoing, and what is saved of a painting."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from morphogen.core.errors import InputError, MorphogenError
from morphogen.core.validation import validate
from morphogen.pyramids.region import Region
from morphogen.studio.edits import LARGEST_SIDE, Edit, PaintingFile
from morphogen.studio.endless import Stopped
from morphogen.studio.painting import Change
from morphogen.studio.queue import Full, TileQueue
from morphogen.studio.views import EndlessView, png

_LARGEST_BODY = 2**18
_Place = Annotated[int, Query(ge=-(2**31), le=2**31)]
_Side = Annotated[int, Query(ge=1, le=LARGEST_SIDE)]


def add_brush(app: FastAPI, queue: TileQueue, view: EndlessView) -> None:
    """Let the page of an endless slide paint on it. Every stroke is computed by the queue's one thread."""
    painting = view.painting

    async def computed(work: Callable[[Callable[[], bool]], Any], first: bool = True) -> Any:
        return await asyncio.wrap_future(queue.compute(work, first))

    async def answer(work: Callable[[Callable[[], bool]], Any]) -> Response:
        try:
            found = await computed(work)
            return found if isinstance(found, Response) else JSONResponse(found)
        except Full:
            return PlainTextResponse("too many strokes are waiting", 429, {"Retry-After": "2"})
        except (Stopped, asyncio.CancelledError):
            return PlainTextResponse("it was not ready in time; ask again", 503, {"Retry-After": "1"})
        except InputError as error:
            return PlainTextResponse(str(error), 422)
        except MorphogenError as error:
            return PlainTextResponse(str(error), 500)

    def shown(region: Region, pixels: Any) -> dict[str, object]:
        """A part of the picture for the page: its place from the middle, and its pixels."""
        content = base64.b64encode(png(pixels)).decode()
        place = {"x": region.x - painting.middle, "y": region.y - painting.middle}
        return {**place, "width": region.width, "height": region.height, "picture": f"data:image/png;base64,{content}"}

    def state(change: Change | None = None) -> dict[str, object]:
        now: dict[str, object] = {"strokes": len(painting.done), "undone": len(painting.undone)}
        if change is None:
            return now
        region = change.layers[0].shown
        return {**now, **shown(region, painting.picture(0, region))}

    async def read_edit(request: Request) -> Edit:
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise InputError("a stroke is sent as application/json")
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > _LARGEST_BODY:
                raise InputError(f"a stroke may have {_LARGEST_BODY} bytes")
        try:
            found = json.loads(body)
        except ValueError:
            raise InputError("a stroke should be JSON") from None
        return validate(Edit, found, "stroke")

    @app.post("/preview")
    async def _preview(request: Request) -> Response:
        try:
            edit = await read_edit(request)
        except InputError as error:
            return PlainTextResponse(str(error), 422)
        return await answer(lambda stop: shown(*painting.preview(edit, stop)))

    @app.post("/strokes")
    async def _stroke(request: Request) -> Response:
        try:
            edit = await read_edit(request)
        except InputError as error:
            return PlainTextResponse(str(error), 422)
        return await answer(lambda stop: state(painting.paint(edit, stop)))

    @app.get("/strokes")
    async def _state() -> Response:
        return await answer(lambda _: state())

    @app.post("/undo")
    async def _undo() -> Response:
        return await answer(lambda _: state(painting.undo()))

    @app.post("/redo")
    async def _redo() -> Response:
        return await answer(lambda _: state(painting.redo()))

    def region_of(x: int, y: int, width: int, height: int) -> Region:
        return Region(y + painting.middle, x + painting.middle, height, width)

    @app.get("/painting.png")
    async def _picture(x: _Place, y: _Place, width: _Side, height: _Side) -> Response:
        region = region_of(x, y, width, height)
        return await answer(lambda stop: _file(png(painting.picture(0, region, stop)), "image/png", "painting.png"))

    @app.get("/painting.json")
    async def _painting(x: _Place, y: _Place, width: _Side, height: _Side) -> Response:
        def write(_: Callable[[], bool]) -> Response:
            file = PaintingFile(
                model=view.title,
                seed=view.seed,
                sampler=view.slide.sampler,
                sampling_steps=view.slide.steps,
                x=x,
                y=y,
                width=width,
                height=height,
                edits=tuple(painting.edits),
            )
            return _file(file.model_dump_json(indent=1).encode(), "application/json", "painting.json")

        return await answer(write)

    @app.get("/painting.geojson")
    async def _annotation(x: _Place, y: _Place) -> Response:
        def write(_: Callable[[], bool]) -> Response:
            found = annotation(painting.edits, (x, y))
            return _file(json.dumps(found).encode(), "application/geo+json", "painting.geojson")

        return await answer(write)


def _file(content: bytes, kind: str, name: str) -> Response:
    return Response(content, media_type=kind, headers={"Content-Disposition": f'attachment; filename="{name}"'})


def annotation(edits: list[Edit], origin: tuple[int, int]) -> dict[str, object]:
    """The strokes of classes as GeoJSON, as QuPath writes it: a polygon each, x and y in pixels from an origin. Where
    they overlap the later one counts.
    """
    from shapely.geometry import LineString, Point, mapping

    features = []
    for edit in edits:
        if edit.what != "class" or edit.name is None:
            continue
        places = [(x - origin[0], y - origin[1]) for x, y in edit.points]
        line = Point(places[0]) if len(places) == 1 else LineString(places)
        of_class = {"objectType": "annotation", "classification": {"name": edit.name}}
        features.append({"type": "Feature", "geometry": mapping(line.buffer(edit.radius)), "properties": of_class})
    return {"type": "FeatureCollection", "features": features}
