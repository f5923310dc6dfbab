"""`expand` of a run that was trained with maps: generated pairs of an image and its map."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from morphogen.core.condition import UNKNOWN, Classes, class_names
from morphogen.core.errors import InputError
from morphogen.core.files import json_bytes, replace_file
from morphogen.core.images import save_png, to_pil
from morphogen.core.keys import Key
from morphogen.core.model import Model
from morphogen.core.progress import Progress
from morphogen.core.random import Purpose, mix
from morphogen.core.request import SamplingRequest
from morphogen.data.clusters import ClusteredMaps
from morphogen.data.dataset import ImageDataset
from morphogen.data.expansions import Expansion, write_expansion
from morphogen.data.files import walk
from morphogen.data.formats import is_image
from morphogen.data.maps import read_map
from morphogen.experiments.expansion import (
    ExpansionSettings,
    ExpansionSummary,
    seen_by,
    settings_made_with,
    training_part,
)
from morphogen.experiments.expansion_folder import Item, Settings, claim, is_done, remove_leftovers
from morphogen.training.run_folder import RunFolder, read_run

_MAP = 0x6D6170
_LARGEST = 384  # pixels on a side of a map that is made of training maps
_BEND, _KNOT = 6.0, 48  # pixels that a map is bent by at most (one deviation), and between the knots of the bend
_RECOMBINED = 0.5  # of the maps are made of two
Map = NDArray[np.uint8]


def training_maps(train: ImageDataset, least: int) -> list[Map]:
    """The whole maps of the training images. Raises InputError where all are smaller than what the model can paint."""
    assert train.source.maps is not None
    if train.source.sampled:
        raise InputError("maps of slides are not made anew; give label images with --maps FOLDER")
    if isinstance(train.source.maps, ClusteredMaps):
        found = [train.source.maps.of(train.images.read(i)) for i in train.indices]
    else:
        found = [train.images.read_map(i) for i in train.indices]
    large = [each for each in found if min(each.shape) >= least]
    if not large:
        raise InputError(f"the maps of {train.config.source} are smaller than the {least} pixels that the model paints")
    return large


def given_maps(folder: Path, classes: Classes) -> list[Map]:
    """The label images in a folder. Raises InputError if there are none, or one is none of these classes."""
    names = sorted(name for name in walk(folder).names if is_image(name)) if folder.is_dir() else []
    if not names:
        raise InputError(f"--maps {folder} should be a folder of label images")
    return [read_map(folder / name, classes) for name in names]


def another_map(maps: Sequence[Map], key: int) -> Map:
    """A map made of training maps: one of them, or two side by side along a bent line, flipped, turned, and bent
    smoothly (elastic deformation: Simard, Steinkraus and Platt, 2003). key: fixes it.
    """
    from scipy.ndimage import map_coordinates, zoom

    draw = np.random.default_rng(key)
    first = _part(maps[int(draw.integers(len(maps)))], draw)
    height, width = first.shape
    if draw.random() < _RECOMBINED:
        other = _part(maps[int(draw.integers(len(maps)))], draw)
        other = np.pad(
            other, [(0, max(0, n - m)) for n, m in zip(first.shape, other.shape, strict=True)], mode="reflect"
        )
        angle, at = draw.uniform(0, 2 * np.pi), draw.uniform(0.3, 0.7)
        y, x = np.mgrid[:height, :width]
        beyond = np.cos(angle) * (y / height - at) + np.sin(angle) * (x / width - at) > 0
        first = np.where(beyond, other[:height, :width], first)
    knots = (-(-height // _KNOT) + 3, -(-width // _KNOT) + 3)
    bends = [zoom(draw.normal(0, _BEND / 2, knots), _KNOT, order=3)[:height, :width] for _ in range(2)]
    places = [grid + bend for grid, bend in zip(np.mgrid[:height, :width], bends, strict=True)]
    found: Map = map_coordinates(first, places, order=0, mode="reflect")
    return found


def _part(found: Map, draw: np.random.Generator) -> Map:
    """A map turned and flipped at random; of a large one a part."""
    turns, mirrored = int(draw.integers(4)), bool(draw.integers(2))
    y, x = (int(draw.integers(max(0, n - _LARGEST) + 1)) for n in found.shape)
    return np.rot90(found[y : y + _LARGEST, x : x + _LARGEST][:, :: -1 if mirrored else 1], turns)


def expand_pairs(
    model: Model, folder: Path, data: str | None, settings: ExpansionSettings, out: Path, maps: Path | None = None
) -> ExpansionSummary:
    """Fill `out` with `times` pairs for every training image of the run in `folder`: images/N.png and maps/N.png, and
    classes.json. Pairs that are there already stay.

    maps: a folder of label images to paint, in turn; by default maps made of the training maps (`another_map`). data:
    where the run's images are now, if elsewhere. Raises InputError as `expand`.
    """
    config = read_run(folder)
    RunFolder(out).check_not_inside(data or config.data.source)
    train = training_part(folder, config, {"source": data}, settings.quiet)
    classes = dict(model.classes)
    known = training_maps(train, model.minimum_picture) if maps is None else given_maps(maps, classes)
    made_with = settings_made_with(model, settings)
    count = settings.times * len(train)
    Key.of([settings.seed, settings.seed + count])  # a bad seed is named before any work
    expansion = Expansion(
        run=str(folder),
        settings=dict(made_with),
        classes=classes,
        maps="training" if maps is None else str(maps),
        times=settings.times,
        images=count,
        trained_on=seen_by(folder, train),
    )
    items = [Item(k, out / "images" / f"{k:0{len(str(count - 1))}d}.png", torch.zeros(0), ()) for k in range(count)]
    claim(out, expansion, items)
    (out / "maps").mkdir(exist_ok=True)
    table = {str(k): name for k, name in enumerate(class_names(classes))} | {str(UNKNOWN): None}
    replace_file(out / "classes.json", json_bytes(table))
    request = model.resolve(settings.request)
    mine = [i for i in items[settings.shard[0] :: settings.shard[1]] if not _is_whole(i, made_with)]
    with Progress("expanding", count, "pairs", count - len(mine), settings.quiet) as progress:
        for item in mine:
            key = mix(settings.seed, Purpose.SAMPLE, _MAP, item.number)
            found = another_map(known, key) if maps is None else known[item.number % len(known)]
            _write(model, item, found, settings.seed + item.number, request, made_with)
            progress.advance()
    made = sum(_is_whole(item, made_with) for item in items)
    if made == count:
        write_expansion(out, expansion.model_copy(update={"replaced": 0}))
    return ExpansionSummary(out=str(out), images=made, of=count, replaced=0, copies=0, labels={})


def _write(model: Model, item: Item, found: Map, seed: int, request: SamplingRequest, made_with: Settings) -> None:
    with torch.no_grad():
        told = torch.from_numpy(found.copy())[None].to(model.device)
        painted = model.generate(Key.of([seed]), (found.shape[0], found.shape[1]), request, maps=told)
    remove_leftovers(item.path)
    remove_leftovers(_map_of(item))
    save_png(_map_of(item), Image.fromarray(found), {"task": "expand", "number": item.number})
    save_png(item.path, to_pil(painted)[0], {**item.facts(made_with), "seed": seed})


def _is_whole(item: Item, made_with: Settings) -> bool:
    return is_done(item, made_with) and _map_of(item).is_file()


def _map_of(item: Item) -> Path:
    return item.path.parent.parent / "maps" / item.path.name
