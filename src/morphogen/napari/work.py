"""Long work in a thread of its own, so that napari's window stays alive."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from morphogen.core.errors import MorphogenError
from morphogen.core.model import StepInfo

LayerData = tuple[Any, dict[str, Any], str]
"""What napari makes a layer of: its data, the layer's settings, its kind."""
Tell = Callable[[StepInfo], None]
Compute = Callable[[Tell], list[LayerData]]
"""Computes layers; what it is given is to be called after every sampling step."""


class _Stopped(Exception):
    """The user has stopped the work."""


def start(
    compute: Compute,
    viewer: Any,
    *,
    stepped: Callable[[int, int], None] = lambda _done, _steps: None,
    ended: Callable[[], None] = lambda: None,
) -> Any:
    """Start work in a thread, and return napari's worker: its `quit` stops the work after the sampling step in hand.

    viewer: gets the layers. stepped: told the steps done and all steps. ended: called before the layers are added, and
    once more at the end, whatever it was. All this happens in the window's thread. An error that a user can cause
    becomes a notification.
    """
    from napari.qt.threading import create_worker
    from napari.utils.notifications import show_error

    def tell(info: StepInfo) -> None:
        if worker.abort_requested:
            raise _Stopped
        worker.yielded.emit((info.step, info.steps))

    def work() -> Generator[tuple[int, int], None, tuple[list[LayerData], str]]:
        yield from ()  # napari lets only generators be stopped
        try:
            return compute(tell), ""
        except _Stopped:
            return [], ""
        except MorphogenError as error:
            return [], str(error)

    def show(found: tuple[list[LayerData], str]) -> None:
        layers, error = found
        ended()
        if error:
            show_error(error)
        for data, settings, kind in layers:
            getattr(viewer, f"add_{kind}")(data, **settings)

    worker = create_worker(work)
    worker.yielded.connect(lambda steps: stepped(*steps))
    worker.returned.connect(show)
    worker.finished.connect(ended)
    worker.start()
    return worker
