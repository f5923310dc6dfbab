"""Tasks over pictures: a batch of jobs in, pictures of the same kinds out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import torch
from torch import Tensor

from morphogen.core.errors import InputError
from morphogen.core.model import Model
from morphogen.tasks.inpaint import inpaint
from morphogen.tasks.pictures import Picture
from morphogen.tasks.upscale import check_factor, original_pixels, upscale
from morphogen.tasks.vary import vary


@dataclass(frozen=True)
class Job:
    """One picture to make out of another, with a seed; to fill where `hole`, boolean (H, W), is."""

    picture: Picture
    seed: int
    hole: Tensor | None = None


def in_batches(jobs: Iterable[Job], batch_size: int) -> Iterator[list[Job]]:
    """Jobs in their order, neighbours of one size together, at most `batch_size` at once.

    Raises InputError for a batch size below 1.
    """
    if batch_size < 1:
        raise InputError(f"the batch size is {batch_size}; it should be at least 1")
    for _, same in groupby(jobs, key=lambda job: job.picture.size):
        while batch := list(islice(same, batch_size)):
            yield batch


def fill(model: Model, jobs: Sequence[Job], **settings: Any) -> list[Any]:
    """The pictures of one size with their holes filled; `settings` are those of `inpaint`. An alpha channel stays as it
    is, but where the hole is what was transparent, it becomes opaque.
    """
    holes = [job.hole for job in jobs if job.hole is not None]
    filled = inpaint(model, _images(model, jobs), torch.stack(holes)[:, None], _seeds(jobs), **settings)
    return [
        job.picture.with_colours(colours, changed=hole, opaque=hole if _is_transparency(job.picture, hole) else None)
        for job, hole, colours in zip(jobs, holes, filled, strict=True)
    ]


def enlarge(model: Model, jobs: Sequence[Job], factor: int = 2, **settings: Any) -> list[Any]:
    """The pictures of one size, `factor` times as large; `settings` are those of `upscale`."""
    check_factor(factor)
    enlarged = upscale(model, _images(model, jobs), _seeds(jobs), factor, **settings)
    added = ~original_pixels(*jobs[0].picture.size, factor)
    return [
        job.picture.enlarged(factor).with_colours(colours, changed=added)
        for job, colours in zip(jobs, enlarged, strict=True)
    ]


def change(model: Model, jobs: Sequence[Job], strength: float = 0.4, **settings: Any) -> list[Any]:
    """Variations of the pictures of one size; `settings` are those of `vary`. At strength 0 they stay as they are."""
    images = _images(model, jobs)
    varied = vary(model, images, _seeds(jobs), strength, **settings)
    return [
        job.picture.given() if torch.equal(before, after.cpu()) else job.picture.with_colours(after)
        for job, before, after in zip(jobs, images, varied, strict=True)
    ]


def transparent(picture: Picture) -> Tensor | None:
    """Where a picture is less than half opaque, boolean (H, W); None where it nowhere is, or has no alpha channel."""
    alpha = picture.alpha()
    found = None if alpha is None else alpha[0] < 0.5
    return found if found is not None and bool(found.any()) else None


def _is_transparency(picture: Picture, hole: Tensor) -> bool:
    found = transparent(picture)
    return found is not None and torch.equal(found, hole)


def _images(model: Model, jobs: Sequence[Job]) -> Tensor:
    return torch.stack([job.picture.for_model(model.picture.channels) for job in jobs])


def _seeds(jobs: Sequence[Job]) -> list[int]:
    return [job.seed for job in jobs]
