"""What `inpaint`, `upscale` and `vary` share: images in, images of the same kinds out, skipping what is done."""

from __future__ import annotations

import contextlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morphogen.cli.options import find_device, read_precision, set_options
from morphogen.core.console import say, say_json
from morphogen.core.errors import InputError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from morphogen.core.model import Callback, Model, StepInfo
    from morphogen.core.request import SamplingRequest
    from morphogen.tasks.jobs import Job
    from morphogen.tasks.pictures import Picture

_FILM_FRAMES = 60


@dataclass(frozen=True)
class Source:
    """An image file, and the name of its results, a relative path without suffix."""

    path: Path
    name: str


@dataclass(frozen=True)
class Task:
    """A command: what the user asked for, and how one batch is done.

    paint: pictures of the jobs of a batch, given the model, the jobs, the request and a callback. hole: for the
    tasks that need one, where a picture is to be filled, and what the metadata say of it.
    """

    name: str
    model: str
    image: Path
    out: Path
    number: int
    seed: int
    sampler: str | None
    sampling_steps: int | None
    batch_size: int
    film: bool
    device: str
    precision: str
    json: bool
    positions: str | None
    spectrum: str | None
    paint: Callable[[Model, Sequence[Job], SamplingRequest, Callback], list[Any]]
    settings: dict[str, Any]
    hole: Callable[[Source, Picture], tuple[Tensor, dict[str, Any]]] | None = None
    results: list[dict[str, Any]] = field(default_factory=list)

    def run(self) -> None:
        """Check everything, then paint what is not there yet. Raises InputError."""
        precision = read_precision(self.precision)
        if self.out.exists() and not self.out.is_dir():
            raise InputError(f"--out {self.out} is a file; name a folder")
        sources = find_sources(self.image, self.out)

        from morphogen._version import VERSION
        from morphogen.core.files import sha256
        from morphogen.core.keys import Key
        from morphogen.core.model_files import WEIGHTS_FILE
        from morphogen.core.progress import Progress
        from morphogen.core.request import SamplingRequest
        from morphogen.diffusion.request import FROM_IMAGE, resolve
        from morphogen.models import find_model, load_model
        from morphogen.tasks.checks import need_denoiser
        from morphogen.tasks.jobs import in_batches
        from morphogen.tasks.pipeline import use_precision

        seeds = Key.of(range(self.seed, self.seed + self.number)).seeds
        folder = find_model(self.model)
        network = load_model(folder).to(find_device(self.device))
        denoiser = need_denoiser(network, self.name)
        set_options(network, positions=self.positions, spectrum=self.spectrum)
        use_precision(network, precision)
        request = SamplingRequest(self.sampler, self.sampling_steps, precision=precision)
        request = resolve(request, denoiser, FROM_IMAGE)
        chosen = {k: v for k, v in (("positions", self.positions), ("spectrum", self.spectrum)) if v is not None}
        facts: dict[str, Any] = {
            "task": self.name,
            "model": self.model,
            "weights": sha256(folder / WEIGHTS_FILE),
            **self.settings,
            "sampler": request.sampler,
            "sampling_steps": request.steps,
            **chosen,
            "precision": self.precision,
            "morphogen": VERSION,
        }
        given = {source.path.resolve() for source in sources}
        waiting: list[tuple[Source, int, Path, dict[str, Any]]] = []
        for source in sources:  # everything is looked at before anything is painted
            digest = sha256(source.path)
            _, _, said = self._load(source, network)
            for seed in seeds:
                target = self.out / f"{source.name}{f'-{seed}' if self.number > 1 else ''}.png"
                known = {**facts, **said, "input": source.path.name, "input_sha256": digest, "seed": seed}
                self._check_targets(target, given)
                done = self._is_done(target, known)
                self.results.append({"input": str(source.path), "output": str(target), "seed": seed, "skipped": done})
                if not done:
                    waiting.append((source, seed, target, known))
        total = len(sources) * self.number
        targets = iter(waiting)
        try:
            if waiting:  # where nothing can be written, that is said before anything is painted
                self.out.mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=self.out).close()
            with Progress(self.name, total, "images", done=total - len(waiting)) as progress:
                for batch in in_batches(self._jobs(waiting, network), self.batch_size):
                    frames: list[list[Image.Image]] = [[] for _ in batch]
                    told = _Told(progress, len(batch), frames if self.film else None, network.to_pixels)
                    pictures = self.paint(network, batch, request, told)
                    for picture, shown in zip(pictures, frames, strict=True):
                        _, _, target, known = next(targets)
                        self._save(target, picture, known, shown)
                    progress.update(told.before + len(batch))
        except OSError as error:
            raise InputError(f"--out {self.out} cannot be written: {error.strerror or error}") from None
        if self.json:
            say_json(self.results)
        else:
            there = f" ({total - len(waiting)} were there already)" if total > len(waiting) else ""
            say(f"{total} images in {self.out}{there}")

    def _load(self, source: Source, network: Model) -> tuple[Picture, Tensor | None, dict[str, Any]]:
        from morphogen.data.decode import open_picture
        from morphogen.tasks.pictures import as_picture

        try:
            data = source.path.read_bytes()
        except OSError as error:
            raise InputError(f"{source.path} cannot be read: {error.strerror or error}") from None
        picture = as_picture(open_picture(data, str(source.path), whole=True), str(source.path))
        height, width = picture.size
        if min(height, width) < network.minimum_picture:
            raise InputError(
                f"{source.path} is too small, {height}x{width}: {network.family} needs at least "
                f"{network.minimum_picture} on each side"
            )
        hole, said = (None, {}) if self.hole is None else self.hole(source, picture)
        return picture, hole, said

    def _jobs(self, waiting: Sequence[tuple[Source, int, Path, dict[str, Any]]], network: Model) -> Iterator[Job]:
        from morphogen.tasks.jobs import Job

        last: Source | None = None
        for source, seed, _, _ in waiting:
            if source is not last:  # each image is read once for all of its seeds
                picture, hole, _ = self._load(source, network)
                last = source
            yield Job(picture, seed, hole)

    def _film(self, target: Path) -> Path:
        return target.with_suffix(".webp")

    def _check_targets(self, target: Path, given: set[Path]) -> None:
        """Raise InputError where a result would take the place of an image given, or of a film not our own."""
        film = self._film(target)
        for path in (target, film) if self.film else (target,):
            if path.resolve() in given:
                raise InputError(f"the result would replace {path}, which is among the images; name another --out")
        if self.film and film.exists() and not target.exists():  # a film is written after its image
            raise InputError(f"{film} is there and was not made by Morphogen; name another folder with --out")

    def _is_done(self, target: Path, known: dict[str, Any]) -> bool:
        from morphogen.core.images import read_metadata

        if not target.exists():
            return False
        found = read_metadata(target)
        if found is None:
            raise InputError(f"{target} is there and was not made by Morphogen; name another folder with --out")
        return found == known and (not self.film or self._film(target).exists())

    def _save(self, target: Path, picture: Image.Image, known: dict[str, Any], frames: list[Image.Image]) -> None:
        from PIL import Image

        from morphogen.core.images import save_film, save_png

        target.parent.mkdir(parents=True, exist_ok=True)
        save_png(target, picture, known)
        if frames:
            size = frames[-1].size  # which grows from doubling to doubling
            same = [f if f.size == size else f.resize(size, Image.Resampling.NEAREST) for f in frames]
            save_film(self._film(target), same)


class _Told:
    """The callback of a batch: moves the bar, and keeps frames for the films."""

    def __init__(
        self, progress: Any, count: int, frames: list[list[Image.Image]] | None, to_pixels: Callable[[Tensor], Tensor]
    ) -> None:
        self.progress, self.before, self.count, self.frames = progress, progress.done, count, frames
        self.to_pixels = to_pixels

    def __call__(self, now: StepInfo) -> None:
        from morphogen.core.images import to_pil

        self.progress.update(self.before + now.step / now.steps * self.count)
        if self.frames is not None and (now.step % -(-now.steps // _FILM_FRAMES) == 0 or now.step == now.steps):
            for kept, picture in zip(self.frames, to_pil(self.to_pixels(now.images)), strict=True):
                kept.append(picture)


def find_sources(image: Path, out: Path) -> list[Source]:
    """The image files that an argument names: a file, or all images below a folder but for those in `--out`.

    Images of one stem are told apart by their suffix: `a-png` and `a-jpg`, or by the whole name where there is such a
    stem too. Raises InputError where there are none, or `--out` would write among them.
    """
    from morphogen.data.files import walk
    from morphogen.data.formats import is_image

    if image.is_file():
        return [Source(image, image.stem)]
    if not image.is_dir():
        raise InputError(f"the image {image} does not exist")
    with contextlib.suppress(OSError):
        if image.resolve() == out.resolve():
            raise InputError(f"--out {out} is the folder of the images; name another one")
    inside = image.resolve() in out.resolve().parents
    names = sorted(name for name in walk(image).names if is_image(name) and not (inside and _within(image / name, out)))
    if not names:
        raise InputError(f"the folder {image} holds no images")
    stems = Counter(str(Path(name).with_suffix("")) for name in names)

    def result(name: str) -> str:
        stem, suffix = str(Path(name).with_suffix("")), Path(name).suffix[1:]
        if stems[stem] == 1:
            return stem
        return f"{stem}-{suffix}" if f"{stem}-{suffix}" not in stems else name

    return [Source(image / name, result(name)) for name in names]


def _within(path: Path, folder: Path) -> bool:
    return folder.resolve() in path.resolve().parents


def read_mask_file(path: Path) -> Any:
    """The picture in a mask's file. Raises InputError, naming it, where there is none."""
    from morphogen.data.decode import open_picture

    try:
        return open_picture(path.read_bytes(), f"--mask {path}")
    except OSError as error:
        raise InputError(f"--mask {path} cannot be read: {error.strerror or error}") from None
