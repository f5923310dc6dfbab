"""From what the user typed as DATA to a source of images."""

from __future__ import annotations

import copy
import zipfile
from pathlib import Path

from morphogen.core.errors import InputError
from morphogen.data.clusters import ClusteredMaps, wanted_clusters
from morphogen.data.config import UNLABELLED_ROWS, DataConfig
from morphogen.data.files import FolderSource, ZipSource, unread_among, walk
from morphogen.data.formats import is_image
from morphogen.data.labels import put_on
from morphogen.data.maps import find_maps, split_off_maps
from morphogen.data.polygon_maps import find_polygons
from morphogen.data.source import Maps, Record, Source
from morphogen.data.tables import read_table
from morphogen.data.unlabelled import with_unlabelled
from morphogen.pyramids.opening import is_ome_zarr

_HELP = (
    "DATA should be a folder of images, a zip, an image, a slide, an OME-Zarr, builtin:NAME, celeba or medmnist:NAME"
)


def open_source(config: DataConfig) -> Source:
    """The source that `config.source` names, with the labels of the table that `config.labels` names, and with the
    images that `config.unlabelled` names. Reads names and the table only, no pixels.

    Raises InputError for a missing or empty folder, a damaged or harmful zip, a file of another kind, an unknown
    built-in or named set, a missing optional library, or a table that is wrong or of other images.
    """
    source = _open(config)
    if config.maps is not None:
        source.maps = _open_maps(config, source)
    if config.labels not in ("auto", "none"):
        put_on(read_table(Path(config.labels).expanduser(), config.unlabelled == UNLABELLED_ROWS), source)
    if config.unlabelled is None:
        return source
    if config.unlabelled == UNLABELLED_ROWS:
        return with_unlabelled(source, None)
    try:
        more = _open(config.model_copy(update={"source": config.unlabelled, "labels": "none"}))
    except InputError as error:
        raise InputError(f"--unlabelled: {str(error).replace('DATA should be', 'it should be')}") from None
    return with_unlabelled(source, more)


def _open_maps(config: DataConfig, source: Source) -> Maps:
    """The maps that `config.maps` names: of another folder or zip, or of a folder inside the source."""
    assert config.maps is not None
    count = wanted_clusters(config.maps)
    if count is not None:
        if config.classes is not None:
            raise InputError(f"--classes {config.classes}: the classes of --maps {config.maps} are found; leave it out")
        return ClusteredMaps(count)
    if source.sampled:
        if config.classes is not None:
            raise InputError(f"--classes {config.classes}: the classes of a GeoJSON are its own; leave it out")
        return find_polygons(source, Path(config.maps).expanduser())
    elsewhere = Path(config.maps).expanduser()
    if elsewhere.exists():
        inside = Path(config.source).expanduser().resolve() in elsewhere.resolve().parents
        if not inside:
            return find_maps(source, _open(DataConfig(source=config.maps, max_pixels=config.max_pixels)), config)
    name = elsewhere.name
    maps = copy.copy(source)
    whole = source.records
    numbers = split_off_maps(source, name)
    maps.records, maps.name = [whole[i] for i in numbers], f"{source.name}/{name}"
    return find_maps(source, maps, config)


def _open(config: DataConfig) -> Source:
    scheme, _, name = config.source.partition(":")
    if scheme == "builtin":
        from morphogen.data.builtin import BuiltinSource

        return BuiltinSource(config)
    if scheme == "medmnist" or config.source == "celeba":  # ./celeba is a folder of that name
        from morphogen.data.named import celeba, medmnist

        return celeba(config) if config.source == "celeba" else medmnist(config, name)
    path = Path(config.source).expanduser()
    try:
        there = path.exists()
    except (OSError, ValueError) as error:  # a name too long, a NUL
        raise InputError(f"{config.source!r} is not a path: {error}") from error
    if not there:
        raise InputError(f"{config.source} does not exist; {_HELP}")
    return _folder(config, path) if path.is_dir() else _file(config, path)


def _folder(config: DataConfig, root: Path) -> Source:
    from morphogen.data.slide import SlideSource
    from morphogen.data.slide_readers import slides_among

    if is_ome_zarr(root):
        return SlideSource.of(config, root.absolute().parent, [root.absolute().name])
    found = walk(root)
    slides = slides_among(root, found.names, found.stores, config.mpp is not None)
    images = [name for name in found.names if is_image(name) and name not in set(slides)]
    if slides and images:
        raise InputError(
            f"{config.source} holds slides ({slides[0]}) and images ({images[0]}); point to a folder of one kind"
        )
    if not slides:
        return FolderSource.of(config, root, found)
    source = SlideSource.of(config, root, slides)
    inside = {Path(name).parent for name in slides if name.endswith((".dcm", ".dicom"))}
    source.unread = [u for u in unread_among(found.names) if u[0] not in slides and Path(u[0]).parent not in inside]
    source.linked = found.linked
    return source


def _file(config: DataConfig, path: Path) -> Source:
    from morphogen.data.slide import SlideSource
    from morphogen.data.slide_readers import slides_among

    if not path.is_file():
        raise InputError(f"{config.source} is neither a file nor a folder; {_HELP}")
    if slides_among(path.parent, [path.name], [], config.mpp is not None):
        return SlideSource.of(config, path.parent, [path.name])
    if is_image(path.name):
        return FolderSource(config, path.parent, [Record(path.name)])
    if path.suffix.lower() == ".zip" or zipfile.is_zipfile(path):
        return ZipSource(config, path)
    raise InputError(f"{config.source} is not an image, a zip or a slide; {_HELP}")
