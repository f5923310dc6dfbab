"""Many images in batches: pictures in and pictures of the same kinds out, and files of which none is made twice."""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any, TypedDict, TypeVar, Unpack

import torch
from PIL import Image
from torch import Tensor

from morphogen.core.errors import InputError
from morphogen.core.evaluation import Evaluation
from morphogen.core.images import read_metadata, save_film, save_png, to_pil
from morphogen.core.keys import Key
from morphogen.core.model import Callback, Model, StepInfo
from morphogen.core.notices import say_once
from morphogen.core.output_files import is_ours
from morphogen.core.progress import Progress
from morphogen.core.request import SamplingRequest
from morphogen.diffusion.denoiser import Denoiser
from morphogen.diffusion.known import Resampling
from morphogen.diffusion.projection import Input
from morphogen.diffusion.tiling import LARGE_PIXELS
from morphogen.tasks.checks import check_unchanged
from morphogen.tasks.inpaint import inpaint
from morphogen.tasks.pictures import Picture, transparent
from morphogen.tasks.superresolution import NOISE, Scheme, find_way, superresolve
from morphogen.tasks.upscale import BLEND, original_pixels, upscale
from morphogen.tasks.vary import vary
from morphogen.tasks.windows import Part, WindowStep, find_windows, paste

_FILM_FRAMES = 60
_LONG_S = 120.0
_BATCH_PIXELS = 2**23
_PROBED, _BYTES_A_VALUE = 192, 48
T = TypeVar("T")


def in_batches(items: Iterable[T], batch_size: int, size: Callable[[T], tuple[int, int]]) -> Iterator[list[T]]:
    """Items in their order, neighbours of one size together, at most `batch_size` at once, and fewer of large ones.

    Raises InputError for a batch size below 1.
    """
    if batch_size < 1:
        raise InputError(f"the batch size is {batch_size}; it should be at least 1")
    for (height, width), same in groupby(items, key=size):
        most = max(1, min(batch_size, _BATCH_PIXELS // (height * width)))
        while batch := list(islice(same, most)):
            yield batch


# ------------------------------------------------------------------------------------------------ pictures


@dataclass(frozen=True)
class Job:
    """One picture to make out of another, with a seed; to fill where `hole`, boolean (H, W), is. labels: float (K,)."""

    picture: Picture
    seed: int
    hole: Tensor | None = None
    labels: Tensor | None = None


class InpaintSettings(TypedDict, total=False):
    """The keywords of `inpaint` that all images share."""

    request: SamplingRequest
    context: int | None
    resampling: Resampling | None


class VarySettings(TypedDict, total=False):
    """The keywords of `vary` that all images share."""

    request: SamplingRequest
    callback: Callback | None


def fill(
    model: Model, jobs: Sequence[Job], *, callback: Callback | None = None, **settings: Unpack[InpaintSettings]
) -> list[Any]:
    """The pictures of one size with their holes filled; `settings` are those of `inpaint`. An alpha channel stays as it
    is, but where the hole is what was transparent, it becomes opaque.

    Of a large picture only windows around the holes are computed, where the model is exact in tiles.
    """
    holes = [job.hole for job in jobs if job.hole is not None]
    clear = [_is_transparency(job.picture, hole) for job, hole in zip(jobs, holes, strict=True)]
    context = settings.get("context")
    parts = [Part(i, window) for i, hole in enumerate(holes) for window in find_windows(model, hole, context)]
    groups = list(in_batches(sorted(parts, key=lambda p: p.window.size), len(jobs), lambda p: p.window.size))
    filled = [job.picture for job in jobs]
    for number, group in enumerate(groups):
        pictures = [jobs[part.picture].picture.cut(part.window) for part in group]
        marked = [part.window.cut(holes[part.picture]) for part in group]
        painted = inpaint(
            model,
            torch.stack([picture.for_model(model.picture.channels) for picture in pictures]),
            torch.stack(marked)[:, None],
            _key(jobs, group),
            labels=_labels([jobs[part.picture] for part in group]),
            callback=_told_whole(callback, filled, group, number, len(groups), model.picture.channels),
            **settings,
        )
        for part, picture, hole, colours in zip(group, pictures, marked, painted, strict=True):
            opaque = hole if clear[part.picture] else None
            done = picture.painted(colours, changed=hole, opaque=opaque)
            filled[part.picture] = filled[part.picture].with_part(part.window, done)
    return [picture.given() for picture in filled]


def _key(jobs: Sequence[Job], group: Sequence[Part]) -> Key:
    """The key of parts of pictures: of whole ones, just the seeds."""
    size, key = jobs[0].picture.size, Key.of([jobs[part.picture].seed for part in group])
    if group[0].window.size == size:
        return key
    return replace(key, origins=tuple((part.window.top, part.window.left) for part in group), canvas=size)


def _told_whole(
    callback: Callback | None, pictures: list[Picture], group: Sequence[Part], number: int, groups: int, channels: int
) -> Callback | None:
    """A callback that is told of whole pictures, and of all groups as if they were one run."""
    if callback is None or (groups == 1 and group[0].window.size == pictures[0].size):
        return callback

    def report(now: StepInfo) -> None:
        def whole(name: str) -> Tensor:
            return paste(torch.stack([p.for_model(channels) for p in pictures]), group, getattr(now, name))

        check_unchanged(callback(WindowStep(number * now.steps + now.step, groups * now.steps, now.timestep, whole)))

    return report


def enlarge(
    model: Model,
    jobs: Sequence[Job],
    factor: int = 2,
    *,
    scheme: Scheme = "auto",
    mean: int = 1,
    input: Input = "area",
    noise: float | None = None,
    blend: float = BLEND,
    clean: bool = False,
    added_only: bool = False,
    request: SamplingRequest = SamplingRequest(),
    callback: Callback | None = None,
) -> list[Any]:
    """The pictures of one size, `factor` times as large, by the scheme named or the best that the model has.

    mean, input: see `superresolve`. blend, clean, added_only: of the published scheme, see `upscale`.
    Raises InputError for settings of another scheme, and as those two do.
    """
    way = find_way(model, factor, scheme)
    images, seeds, labels = _images(model, jobs), _seeds(jobs), _labels(jobs)
    if way.scheme == "published":
        if (mean, input) != (1, "area"):
            raise InputError("the published scheme has no mean and no input; leave them out, or use another scheme")
        enlarged = upscale(
            way.denoiser,
            images,
            seeds,
            factor,
            noise=NOISE[way.scheme] if noise is None else noise,
            blend=blend,
            clean=clean,
            added_only=added_only,
            request=request,
            labels=labels,
            callback=callback,
        )
    else:
        if (blend, clean, added_only) != (BLEND, False, False):
            raise InputError("blend, clean and added_only are of the published scheme; leave them out, or name it")
        enlarged = superresolve(
            way,
            images,
            seeds,
            factor,
            noise=noise,
            mean=mean,
            input=input,
            request=request,
            labels=labels,
            callback=callback,
        )
    kept = way.scheme == "published"  # the pixels given, bit for bit
    changed = ~original_pixels(*jobs[0].picture.size, factor) if kept else None
    return [
        job.picture.enlarged(factor).painted(colours, changed=changed).given()
        for job, colours in zip(jobs, enlarged, strict=True)
    ]


def change(model: Model, jobs: Sequence[Job], strength: float = 0.4, **settings: Unpack[VarySettings]) -> list[Any]:
    """Variations of the pictures of one size; `settings` are those of `vary`. At strength 0 they stay as they are."""
    images = _images(model, jobs)
    varied = vary(model, images, _seeds(jobs), strength, labels=_labels(jobs), **settings)
    return [
        job.picture.given() if torch.equal(before.cpu(), after.cpu()) else job.picture.painted(after).given()
        for job, before, after in zip(jobs, images, varied, strict=True)
    ]


def _is_transparency(picture: Picture, hole: Tensor) -> bool:
    found = transparent(picture)
    return found is not None and torch.equal(found, hole)


def _images(model: Model, jobs: Sequence[Job]) -> Tensor:
    return torch.stack([job.picture.for_model(model.picture.channels) for job in jobs])


def _seeds(jobs: Sequence[Job]) -> list[int]:
    return [job.seed for job in jobs]


def _labels(jobs: Sequence[Job]) -> Tensor | None:
    rows = [job.labels for job in jobs if job.labels is not None]
    return torch.stack(rows) if rows else None


# ------------------------------------------------------------------------------------------------ files


@dataclass(frozen=True)
class Output:
    """A PNG to write: where, with which settings in it, of which seed and size (height, width) of what it is made of,
    and the number of the picture that is.
    """

    path: Path
    metadata: dict[str, object]
    seed: int
    size: tuple[int, int]
    source: int = 0

    @property
    def film(self) -> Path:
        """The animation of its denoising."""
        return self.path.with_suffix(".webp")


def find_missing(outputs: Sequence[Output], film: bool = False, overwrite: bool = False) -> list[Output]:
    """The outputs that are still to be made. Raises InputError, naming it, for a file in the way that this command
    would not write again, unless it is to be overwritten.
    """
    missing = []
    for output in outputs:
        files = (output.path, output.film) if film else (output.path,)
        kept = [is_ours(file, read_metadata(file), output.metadata, overwrite) for file in files]  # all are looked at
        if not all(kept):
            missing.append(output)
    return missing


def write_outputs(
    what: str,
    out: Path,
    outputs: Sequence[Output],
    run_batch: Callable[[Sequence[Output], Callback], list[Any]],
    *,
    batch_size: int,
    done: int = 0,
    films: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """Paint outputs and write each as soon as it is done.

    run_batch: the pictures of a batch of outputs of one size. done: how many are there already, for the progress.
    films: also write an animation of each; what makes pixels of what a step shows. Raises InputError where nothing
    can be written in `out`.
    """
    if outputs:
        prepare_folder(out)
    with Progress(what, done + len(outputs), "images", done=done) as progress:
        for batch in in_batches(outputs, batch_size, lambda output: output.size):
            reported = _BatchProgress(progress, len(batch), films, estimate=progress.done == done)
            pictures = run_batch(batch, reported)
            for output, picture, frames in zip(batch, pictures, reported.frames, strict=True):
                with writing(out):
                    _save(output, picture, reported.evaluations, frames)
            progress.update(reported.before + len(batch))


def prepare_folder(out: Path) -> None:
    """Make a folder. Raises InputError, before anything is painted, where nothing can be written in it."""
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()


@contextlib.contextmanager
def writing(out: Path) -> Iterator[None]:
    """Raises InputError, naming `--out`, for what the system says against writing there."""
    try:
        yield
    except OSError as error:
        raise InputError(f"--out {out} cannot be written: {error.strerror or error}") from None


def _save(output: Output, picture: Image.Image, evaluations: int, frames: list[Image.Image]) -> None:
    output.path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {**output.metadata, "evaluations": evaluations}
    save_png(output.path, picture, metadata)
    if frames:
        size = frames[-1].size  # which grows from doubling to doubling
        same = [f if f.size == size else f.resize(size, Image.Resampling.NEAREST) for f in frames]
        save_film(output.film, same, metadata=metadata)


def is_film_frame(now: StepInfo) -> bool:
    """Whether a step is shown in a film, which takes about as many of them, however many there are."""
    return now.step % -(-now.steps // _FILM_FRAMES) == 0 or now.step == now.steps


class _BatchProgress:
    """The callback of a batch: moves the bar, counts evaluations, and keeps frames for the films."""

    def __init__(
        self, progress: Progress, count: int, films: Callable[[Tensor], Tensor] | None, estimate: bool
    ) -> None:
        self.progress, self.before, self.films, self.evaluations = progress, progress.done, films, 0
        self._estimate, self._first = estimate, 0.0
        self.frames: list[list[Image.Image]] = [[] for _ in range(count)]

    def __call__(self, now: StepInfo) -> None:
        self.evaluations = now.steps
        if self._estimate and now.step <= 2:
            self._say_estimate(now)
        self.progress.update(self.before + now.step / now.steps * len(self.frames))
        if self.films is not None and is_film_frame(now):
            for kept, picture in zip(self.frames, to_pil(self.films(now.images)), strict=True):
                kept.append(picture)

    def _say_estimate(self, now: StepInfo) -> None:
        """Say how long all will take once that can be known: of the second step, since the first one builds things."""
        if now.step == 1:
            self._first = time.monotonic()
            return
        left = (self.progress.total or 0) - self.before
        seconds = (time.monotonic() - self._first) * now.steps * left / len(self.frames)
        if seconds > _LONG_S:
            self.progress.say(
                f"{left:,.0f} images: about {in_words(seconds)}; Ctrl-C keeps what is done, "
                "and the same command goes on"
            )


def say_large(
    denoiser: Denoiser, size: tuple[int, int], count: int, steps: int, passes: Sequence[tuple[int, float]]
) -> None:
    """Say beforehand what `count` large pictures (height, width) will take.

    passes: the pixels that are computed, and in how much of the steps, each time. The time is that of an evaluation of
    a small part; the memory that of a picture's values through a step.
    """
    pixels = max(pixels for pixels, _ in passes)
    if pixels <= LARGE_PIXELS:
        return
    side = max(_PROBED, denoiser.minimum_size)
    x = torch.zeros(1, denoiser.image.channels, side, side, device=denoiser.device)
    told = x.new_zeros(1, denoiser.condition_channels, side, side) if denoiser.condition_channels else None
    evaluation = Evaluation(Key.of([0]), condition=told)
    seconds = math.inf
    for _ in range(2):  # the first one builds things
        started = time.monotonic()
        with torch.no_grad():
            denoiser(x, x.new_zeros(1), evaluation).noise.sum().item()
        seconds = min(seconds, time.monotonic() - started)
    factor = 1 if denoiser.latents is None else denoiser.latents.factor
    seconds *= sum(pixels * share for pixels, share in passes) * steps * count / (side * factor) ** 2
    memory = f" and {pixels * denoiser.picture.channels * _BYTES_A_VALUE / 1e9:.1f} GB of memory"
    if not denoiser.exact_in_tiles:
        memory = f", and memory for all of it at once, since {denoiser.inexact_in_tiles}"
    pictures = "a picture" if count == 1 else f"{count:,} pictures"
    say_once(f"{pictures} of {size[0]}x{size[1]}: about {in_words(seconds)}{memory}")


def in_words(seconds: float) -> str:
    """A long time as a user would say it: 5 minutes, 9 h, 3 days."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    for unit, name, most in ((60, "minutes", 90), (3600, "h", 48)):
        if seconds / unit < most:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86400:.0f} days"
