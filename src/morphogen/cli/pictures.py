"""The common part of `inpaint`, `upscale` and `vary`: their options, and images in, images of the same kinds out."""

from __future__ import annotations

import contextlib
import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from morphogen.cli import options
from morphogen.cli.options import find_device, read_precision, set_options
from morphogen.core.console import say, say_json
from morphogen.core.errors import InputError
from morphogen.core.files import LARGEST_IMAGE, read_bytes
from morphogen.core.output_files import check_folder

if TYPE_CHECKING:
    from torch import Tensor

    from morphogen.core.model import Callback, Model
    from morphogen.core.request import SamplingRequest
    from morphogen.tasks.batch import Job, Output
    from morphogen.tasks.pictures import Picture
    from morphogen.tasks.superresolution import Way

_KEPT_BYTES = 512 * 2**20
Hole = tuple["Tensor", dict[str, object]]


@dataclass(frozen=True)
class PictureOptions:
    """The options that the commands have in common, and the order in which their help lists them."""

    model: options.Trained
    image: options.Pictures
    number: options.Number = 1
    seed: options.Seed = 0
    label: options.Label = None
    guidance: options.Guidance = None
    sampler: options.Sampler = None
    sampling_steps: options.SamplingSteps = None
    batch_size: options.BatchSize = 16
    film: options.Film = False
    out: Annotated[Path, typer.Option(help="The folder for the images.")] = Path("results")
    overwrite: options.Overwrite = False
    device: options.Device = "auto"
    precision: options.Precision = "auto"
    positions: options.Positions = None
    spectrum: options.Spectrum = None
    json_: options.Json = False


def with_picture_options(out: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command with the common options besides its own, which it gets as one `PictureOptions`, the first argument.

    out: the default of `--out`.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(PictureOptions, include_extras=True)
        own = get_type_hints(command, include_extras=True)
        common = [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=Path(out) if field.name == "out" else inspect.Parameter.empty if i < 2 else field.default,
                annotation=hints[field.name],
            )
            for i, field in enumerate(fields(PictureOptions))
        ]
        others = [
            parameter.replace(annotation=own[name], kind=inspect.Parameter.KEYWORD_ONLY)
            for name, parameter in list(inspect.signature(command).parameters.items())[1:]
        ]

        def run(**given: Any) -> None:
            chosen = PictureOptions(**{field.name: given.pop(field.name) for field in fields(PictureOptions)})
            command(chosen, **given)

        run.__doc__ = command.__doc__
        run.__signature__ = inspect.Signature([*common[:2], *others, *common[2:]])  # type: ignore[attr-defined]
        return run

    return decorate


@dataclass(frozen=True)
class ImageFile:
    """An image file, and the name of its results, a relative path without suffix."""

    path: Path
    name: str


@dataclass(frozen=True)
class PictureTask:
    """A command's task: its name; how the pictures of a batch of jobs are made, given the model, the jobs and the
    request and callback; which of its own settings the metadata name; and, where a picture is to be filled,
    where, and what the metadata say of that.

    passes: the pixels that one picture has computed, given the model, the picture and its hole, and in how much of the
    sampling steps, for each time that these are walked through.
    """

    name: str
    run_batch: Callable[[Model, Sequence[Job], SamplingRequest, Callback], list[object]]
    settings: Mapping[str, object]
    passes: Callable[[Model, Picture, Tensor | None], list[tuple[int, float]]]
    hole: Callable[[ImageFile, Picture], Hole] | None = None
    rescale: bool | None = None
    """Bring pictures of another scale to the model's; False refuses them, None takes them as they are."""
    factor: int = 1
    """How many times as large the results are."""
    way: Callable[[Model], Way] | None = None
    """Which part of the model does it, and with which defaults; by default a denoiser, as of all tasks on images."""


def run(task: PictureTask, chosen: PictureOptions) -> None:
    """Check everything, then paint what is not there yet. Raises InputError."""
    precision = read_precision(chosen.precision)
    options.check_guidance(chosen.guidance, chosen.label)
    check_folder(chosen.out)
    sources = find_sources(chosen.image, chosen.out)

    from morphogen._version import VERSION
    from morphogen.core.files import sha256
    from morphogen.core.keys import Key
    from morphogen.core.request import SamplingRequest
    from morphogen.diffusion.request import FROM_IMAGE, resolve
    from morphogen.diffusion.samplers import find_sampler
    from morphogen.models import find_model, load_model, model_facts
    from morphogen.tasks.batch import Job, Output, find_missing, say_large, write_outputs
    from morphogen.tasks.checks import need_painting
    from morphogen.tasks.precision import use_precision

    seeds = Key.of(range(chosen.seed, chosen.seed + chosen.number)).seeds
    folder = find_model(chosen.model)
    network = load_model(folder).to(find_device(chosen.device))
    way = None if task.way is None else task.way(network)
    denoiser = need_painting(network, task.name) if way is None else way.denoiser
    set_options(network, positions=chosen.positions, spectrum=chosen.spectrum)
    use_precision(network, precision)
    row = None if not chosen.label else network.labels.row(chosen.label)
    scale = 1.0 if chosen.guidance is None else chosen.guidance
    sampler = find_sampler(chosen.sampler)[0] if chosen.sampler else None
    request = SamplingRequest(sampler, guidance=scale, precision=precision)
    try:
        request = resolve(
            replace(request, steps=chosen.sampling_steps), denoiser, FROM_IMAGE if way is None else way.defaults
        )
    except InputError as error:  # of the steps, since the sampler is known
        raise InputError(f"--sampling-steps {chosen.sampling_steps}: {error}") from None
    inputs: dict[str, object] = {"positions": chosen.positions, "spectrum": chosen.spectrum}
    inputs |= {"labels": chosen.label, "guidance": chosen.guidance}
    facts: dict[str, object] = {
        "task": task.name,
        **model_facts(folder),
        **task.settings,
        "sampler": request.sampler,
        "sampling_steps": request.steps,
        **{k: v for k, v in inputs.items() if v not in (None, [])},
        "precision": denoiser.precision,
        "morphogen": VERSION,
    }
    opened = _Opened(sources, task, network)
    outputs: list[Output] = []
    for number, source in enumerate(sources):  # everything is looked at before anything is painted
        picture, _, said = opened[number]
        if picture.mpp is not None:
            said = {**said, "mpp": picture.mpp / task.factor}
        known = {**facts, **said, "input": source.path.name, "input_sha256": sha256(source.path)}
        for seed in seeds:
            path = chosen.out / f"{source.name}{f'-{seed}' if chosen.number > 1 else ''}.png"
            outputs.append(Output(path, {**known, "seed": seed}, seed, picture.size, number))
    _check_inputs(sources, outputs, chosen.film)
    missing = find_missing(outputs, chosen.film, chosen.overwrite)

    def run_batch(batch: Sequence[Output], callback: Callback) -> list[object]:
        jobs = [Job(opened[o.source][0], o.seed, opened[o.source][1], row) for o in batch]
        return task.run_batch(network, jobs, request, callback)

    if missing and request.steps is not None:
        largest = max(missing, key=lambda o: o.size[0] * o.size[1])
        passes = task.passes(network, *opened[largest.source][:2])
        say_large(denoiser, largest.size, sum(o.size == largest.size for o in missing), request.steps, passes)
    there = len(outputs) - len(missing)
    films = network.to_pixels if chosen.film else None
    write_outputs(task.name, chosen.out, missing, run_batch, batch_size=chosen.batch_size, done=there, films=films)
    if chosen.json_:
        made = {output.path for output in missing}
        say_json(
            [
                {
                    "input": str(sources[o.source].path),
                    "output": str(o.path),
                    "seed": o.seed,
                    "skipped": o.path not in made,
                }
                for o in outputs
            ]
        )
    else:
        say(f"{len(outputs)} images in {chosen.out}" + (f" ({there} were there already)" if there else ""))


class _Opened:
    """The pictures of sources, each with its hole and what the metadata say of that: read once, as long as they are not
    too large to be kept, and checked.
    """

    def __init__(self, sources: Sequence[ImageFile], task: PictureTask, network: Model) -> None:
        self.sources, self.task, self.network = sources, task, network
        self._kept: dict[int, tuple[Picture, Tensor | None, dict[str, object]]] = {}
        self._bytes = 0

    def __getitem__(self, number: int) -> tuple[Picture, Tensor | None, dict[str, object]]:
        if number not in self._kept:
            found = self._open(self.sources[number])
            size = found[0].values.nbytes + (0 if found[1] is None else found[1].nbytes)
            if self._kept and self._bytes + size > _KEPT_BYTES:
                self._kept, self._bytes = {}, 0
            self._kept[number], self._bytes = found, self._bytes + size
        return self._kept[number]

    def _open(self, source: ImageFile) -> tuple[Picture, Tensor | None, dict[str, object]]:
        from morphogen.data.decode import open_picture
        from morphogen.tasks.pictures import as_picture
        from morphogen.tasks.scale import at_scale, other_scale, rescaled_size, scale_of_file

        data = read_bytes(source.path, limit=LARGEST_IMAGE)
        picture = as_picture(open_picture(data, str(source.path), whole=True), str(source.path))
        mpp, own = scale_of_file(source.path), self.network.picture.mpp
        picture = replace(picture, mpp=mpp)
        other = None if self.task.rescale is None else other_scale(mpp, own)
        if other is not None and not self.task.rescale:
            raise InputError(
                f"{source.path} has {mpp:g} micrometres a pixel, but this model paints at {own:g}; --rescale brings "
                "it to the model's scale"
            )
        height, width = rescaled_size(picture.size, *other) if other else picture.size
        least = self.network.minimum_picture
        if self.task.way is not None:
            way = self.task.way(self.network)
            least = way.denoiser.minimum_picture
            least = least if way.scheme == "published" else -(-least // self.task.factor)
        if min(height, width) < least:
            raise InputError(
                f"{source.path} is too small, {height}x{width}: {self.network.family} needs at least {least} on each "
                "side"
            )
        hole, said = (None, {}) if self.task.hole is None else self.task.hole(source, picture)
        if other:
            picture, hole = at_scale(picture, *other, hole)
            said = {**said, "rescaled_from": mpp}
        return picture, hole, said


def _check_inputs(sources: Sequence[ImageFile], outputs: Sequence[Output], film: bool) -> None:
    """Raise InputError where a result would take the place of an image given."""
    given = {source.path.resolve() for source in sources}
    for output in outputs:
        for path in (output.path, output.film) if film else (output.path,):
            if path.resolve() in given:
                raise InputError(f"the result would replace {path}, which is among the images; name another --out")


def find_sources(image: Path, out: Path) -> list[ImageFile]:
    """The image files that an argument names: a file, or all images below a folder but for those in `--out`.

    Images of one stem are told apart by their suffix: `a-png` and `a-jpg`, or by the whole name if there is such a
    stem too. Raises InputError if there are none, or `--out` would write among them.
    """
    from morphogen.data.files import walk
    from morphogen.data.formats import is_image

    if not image.exists():
        raise InputError(f"the image {image} does not exist")
    if not image.is_dir():
        return [ImageFile(image, image.stem)]
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

    return [ImageFile(image / name, result(name)) for name in names]


def _within(path: Path, folder: Path) -> bool:
    return folder.resolve() in path.resolve().parents


def read_mask_file(path: Path) -> Any:
    """The picture in a mask's file. Raises InputError, naming it, if there is none."""
    from morphogen.data.decode import open_picture

    return open_picture(read_bytes(path, "--mask ", LARGEST_IMAGE), f"--mask {path}")
