"""`evaluate`: from a model or a folder, and data, to figures and a report in a folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from morphogen._version import VERSION
from morphogen.core.errors import InputError
from morphogen.core.files import json_bytes, replace_file
from morphogen.core.model import Model
from morphogen.core.request import SamplingRequest
from morphogen.core.validation import validate
from morphogen.data.config import DataConfig
from morphogen.data.dataset import EmptyPartError, ImageDataset, build_dataset
from morphogen.data.source import Part
from morphogen.diffusion.ladder import Ladder
from morphogen.metrics import compute
from morphogen.metrics.feature_network import FeatureNetwork
from morphogen.metrics.function_network import FeatureFunction
from morphogen.metrics.generated import generate_images
from morphogen.metrics.image_sets import of_dataset, of_folder
from morphogen.metrics.lpips import LPIPS
from morphogen.metrics.networks import DEFAULT_NETWORK, open_network
from morphogen.metrics.records import EvaluationResults, GeneratedFacts, ModelFacts
from morphogen.metrics.report import write_report
from morphogen.metrics.weights import find_corruption, find_file, how_to_get
from morphogen.training.config import RunConfig
from morphogen.training.lineage import lineage, trained_on
from morphogen.training.run_folder import RunFolder

_REPORTED_SUSPECTS = 12


@dataclass(frozen=True)
class EvaluationSettings:
    """The settings of an evaluation. real_images: as many as are generated where it is None."""

    count: int = 2048
    networks: tuple[str | FeatureNetwork | FeatureFunction, ...] = (DEFAULT_NETWORK,)
    """Names as for --network, or networks from Python: see `open_network`."""
    lpips: str = "auto"
    """`auto`: where its file is at hand; `none`; `lpips-vgg`; or `lpips-vgg:FILE`."""
    part: Part = "test"
    real_images: int | None = None
    train_images: int = 10_000
    pairs: int = 256
    seed: int = 0
    request: SamplingRequest = SamplingRequest()
    """A model with labels is given those of as many real images."""
    batch_size: int = 32
    device: str = "cpu"
    cache: Path | None = None
    quiet: bool = False
    data_settings: dict[str, object] = field(default_factory=dict)


def data_config(
    run: RunConfig | None, folder: Path | None, model: Model | None, settings: EvaluationSettings, data: str | None
) -> DataConfig:
    """Where real images come from: the run's own settings and split, unless other ones are given. Raises InputError."""
    values: dict[str, object] = {}
    if run is not None and folder is not None:
        values = run.data.model_dump(mode="json")
        split = RunFolder(folder).split_file
        if split.is_file():  # what the run held out, whatever the data's own split says today
            values |= {"split": str(split), "fold": None}
    elif model is not None:
        values = {
            "size": (model.picture.height, model.picture.width),
            "colour": {1: "gray", 4: "rgba"}.get(model.picture.channels, "rgb"),
        }
    if isinstance(model, Ladder):  # which learns from parts of what it paints
        values["size"] = (model.picture.height, model.picture.width)
    if data is not None:
        values["source"] = data
    if "split" in settings.data_settings:
        values["fold"] = None
    values |= settings.data_settings
    if "source" not in values:
        raise InputError("--data is needed: name the images to compare with, a folder, a zip or a named set")
    return validate(DataConfig, values, "evaluate")


def open_parts(config: DataConfig, settings: EvaluationSettings) -> tuple[ImageDataset, ImageDataset | None]:
    """The part that is measured against, and the training part where that is another. Raises InputError."""
    try:
        real = build_dataset(config, settings.part, progress=not settings.quiet)
    except EmptyPartError:
        raise InputError(
            f"{config.source} has no {settings.part} part to measure against; give --split FILE (`morphogen data "
            "split`) or --part train to measure against the training images, which says nothing of memorisation"
        ) from None
    return real, None if settings.part == "train" or not real.counts["train"] else real.other("train")


def check_unseen(folder: Path, real: ImageDataset) -> list[str]:
    """Raise InputError, naming one, where a held-out part has images that went into the weights of the run in a folder.

    Returns what a reader must know: of exact copies among images that the run did hold out, of training images that
    memorisation is not looked for among, and of starts whose images are not known.
    """
    said: list[str] = []
    splits, unknown = lineage(folder)
    held_out = {name: real.digests[name] for name in (real.record(i).name for i in range(len(real)))}
    train = {real.digests[r.name] for r, p in zip(real.source.records, real.parts, strict=True) if p == "train"}
    for where, split in splits.items():
        seen, known = trained_on(split), split.get("digests")
        if known is None and split.get("fingerprint") == real.fingerprint:  # of an older version
            known, seen = real.digests, {name: real.digests[name] for name in seen}
        if known is None:
            unknown = (*unknown, where)
            continue
        contents = set(seen.values()) - {None}
        leaked = [name for name, digest in held_out.items() if digest in contents]
        copies = [n for n in leaked if n in split["assignment"].keys() - seen.keys() and known.get(n) == held_out[n]]
        leaked = [name for name in leaked if name not in copies]
        if leaked:
            raise InputError(
                f"{where} was trained on {len(leaked)} images of this {real.part} part, such as {leaked[0]}"
                f"{'' if where == str(folder) else f', and {folder} began with it'}; leave --split and --fold out to "
                "keep to the run's own split, or measure against images that neither saw"
            )
        if copies:
            said.append(
                f"{len(copies)} images of the {real.part} part are exact copies of images that {where} was trained on, "
                f"such as {copies[0]}; see morphogen data check"
            )
        if train and contents - train:
            said.append(
                f"{where} was trained on {len(contents - train)} images that are not in the train part of "
                f"{real.config.source}; memorisation of those was not looked for"
            )
    for where in unknown:
        said.append(f"it is not known which images {where} was trained on; the {real.part} part may hold some of them")
    return said


def open_lpips(choice: str, device: str) -> tuple[LPIPS | None, str | None]:
    """The LPIPS network, or None and why. Raises InputError where it was asked for and cannot be had."""
    if choice == "none":
        return None, None
    if choice.startswith("lpips-vgg:"):
        file = Path(choice.removeprefix("lpips-vgg:")).expanduser()
        if not file.is_file():
            raise InputError(f"--lpips {choice}: there is no such file")
        return LPIPS(file, device), None
    if choice not in ("auto", "lpips-vgg"):
        raise InputError(f"--lpips {choice}: it should be auto, none, lpips-vgg or lpips-vgg:FILE")
    if choice == "auto" and find_corruption("lpips-vgg") is not None:
        return None, f"LPIPS was left out: its file is not here; {how_to_get(find_file('lpips-vgg'))}"
    return LPIPS(device=device), None


def evaluate(
    model: Model | None,
    images: Path | None,
    folder: Path | None,
    data: str | None,
    settings: EvaluationSettings,
    out: Path,
) -> EvaluationResults:
    """Measure a model's images, or those of a folder, and write results.json and report.html into `out`.

    folder: the model's, which may be a run's. data: real images; by default those that the run was trained on.
    Returns what results.json holds. Raises InputError for anything that cannot be measured.
    """
    if settings.count < 2:
        raise InputError(f"-n {settings.count}: at least two images are needed to measure anything")
    run = RunFolder(folder).read_config() if folder is not None else None
    config = data_config(run, folder, model, settings, data)
    networks: list[FeatureNetwork] = [open_network(n, settings.device) for n in settings.networks]
    lpips, remark = open_lpips(settings.lpips, settings.device)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out} cannot be written: {error.strerror or error}") from None
    real_data, train_data = open_parts(config, settings)
    remarks = [remark] if remark else []
    if folder is not None and run is not None and settings.part != "train":
        remarks += check_unseen(folder, real_data)
    real = of_dataset(real_data, settings.real_images or settings.count)
    endless = real_data.fitting.fit == "random"  # crops, of which there is no end
    few = settings.count if endless else settings.train_images
    train = None if train_data is None else of_dataset(train_data, few)
    every_train = None if train_data is None else of_dataset(train_data, settings.train_images if endless else None)
    made: dict[str, object]
    if images is not None:
        generated, made = of_folder(images), {"folder": str(images)}
    elif model is not None:
        rows = labels_for(model, real_data, settings)
        generated, made = generate_images(
            model,
            settings.count,
            out / "images",
            first_seed=settings.seed,
            size=config.size if isinstance(model, Ladder) else None,
            request=settings.request,
            labels=rows,
            batch_size=settings.batch_size,
            quiet=settings.quiet,
        )
    else:
        raise InputError("name a run or a model, or give --images FOLDER")
    sets = compute.Sets(generated, real, train, every_train)
    remarks += _remarks(sets, networks, run, config)
    if images is None and model is not None and len(model.labels) and not len(real_data.labels):
        remarks.append("images were made without labels, because the real ones have none")
    copies = compute.compute_copies(sets, settings.quiet)
    results = EvaluationResults(
        morphogen=VERSION,
        model=None if model is None else _facts(model, folder, run),
        generated=GeneratedFacts(**made, images=len(generated)),
        data={**real_data.summary(), "train_images": 0 if train is None else len(train)},
        figures=tuple(
            compute.compute_figures(sets, n, settings.cache, settings.batch_size, settings.quiet) for n in networks
        ),
        lpips=None if lpips is None else compute.compute_diversity(sets, lpips, settings.pairs),
        copies=None if copies is None else copies.suspects(_REPORTED_SUSPECTS),
        remarks=tuple(remarks),
    )
    try:
        replace_file(out / "results.json", json_bytes(results.as_json()))
        write_report(out / "report.html", results, sets, None if folder is None else RunFolder(folder))
    except OSError as error:
        raise InputError(f"--out {out} cannot be written: {error.strerror or error}") from None
    return results


def labels_for(model: Model, real: ImageDataset, settings: EvaluationSettings) -> Tensor | None:
    """The rows of the labels to generate with, float (count, K): as they are spread among the real images. None for a
    model or real images without labels. Raises InputError for guidance then, and for real images with other labels.
    """
    if not model.labels.names or not real.labels.names:
        if settings.request.guidance != 1:
            who = f"this {model.family} was trained" if not model.labels.names else f"{real.config.source} comes"
            raise InputError(f"--guidance {settings.request.guidance:g}: {who} without labels; leave it out")
        return None
    if real.labels.names != model.labels.names:
        raise InputError(
            f"the labels of {real.config.source} are {', '.join(real.labels.names) or 'none'}, but the model's are "
            f"{', '.join(model.labels.names)}; give the data that it was trained on"
        )
    return real.spread_labels(settings.count)


def _facts(model: Model, folder: Path | None, run: RunConfig | None) -> ModelFacts:
    facts = ModelFacts(
        folder=None if folder is None else str(folder), family=model.family, parameters=model.parameter_count()
    )
    if run is None:
        return facts
    of_run = {"preset": run.model, "recipe": run.recipe, "training_seed": run.training.seed}
    return facts.model_copy(update=of_run)


def _remarks(
    sets: compute.Sets, networks: list[FeatureNetwork], run: RunConfig | None, config: DataConfig
) -> list[str]:
    """Remarks for readers of the figures."""
    said = []
    count = min(len(sets.generated), len(sets.real))
    if count < 2048:
        said.append(
            f"with {count} images a side the Fréchet distance is far above its value for many images; compare it only "
            "with figures of as many images, such as its floor"
        )
    if sets.train is not None and run is None:
        said.append(
            f"it is not known which images the model was trained on; memorisation was looked for among the train part "
            f"of {config.source}"
        )
    if sets.train is None:
        said.append("there are no other images that the model was trained on, so memorisation was not measured")
    shapes = {tuple(images[0].shape[-2:]) for images in (sets.generated, sets.real) if len(images)}
    if len(shapes) > 1:
        sizes = " and ".join(f"{h}x{w}" for h, w in sorted(shapes))
        said.append(f"generated and real images have different sizes ({sizes}), which the figures also tell apart")
    if not any(network.is_fid for network in networks):
        said.append("no figure here is FID: that is defined by the network fid-inception alone")
    return said
