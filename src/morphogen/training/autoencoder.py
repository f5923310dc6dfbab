"""The first phase of a run with `--autoencoder learn:FACTOR`: a run of its own that learns the autoencoder.

It lies in RUN/autoencoder, is trained by the same loop, and resumes like any other. Once it has begun, its budget
stays: a longer run goes on in the same latents.
"""

from __future__ import annotations

from typing import Any

from morphogen.core.errors import InputError
from morphogen.core.model_files import WEIGHTS_FILE
from morphogen.data.dataset import ImageDataset, build_dataset
from morphogen.diffusion.latents import OwnAutoencoder
from morphogen.diffusion.learned_autoencoder import LearnedAutoencoder
from morphogen.diffusion.predictor import NoisePredictor
from morphogen.models import build_model, load_model
from morphogen.training.checkpoint import list_checkpoints
from morphogen.training.config import RunConfig
from morphogen.training.devices import Devices
from morphogen.training.recipes import resolve
from morphogen.training.run_folder import RunFolder
from morphogen.training.warm_start import labels_of_run

_BATCH = 16  # images in a step at least, as a multiple of the run's own batch, which its processes can share
_SHAPE = {"factor", "channels", "width", "blocks"}


def begin(config: RunConfig, folder: RunFolder, devices: Devices, quiet: bool) -> tuple[ImageDataset, RunConfig | None]:
    """Write down a run that learns its autoencoder: its images, and the run that learns it, or None where the
    autoencoder is that of the model that the run starts from.

    Raises InputError, before anything is written, for what the second phase would refuse.
    """
    main, own = devices.is_main_process, RunFolder(folder.autoencoder)
    if main:
        folder.check(config)
    labels = labels_of_run(config, folder)
    model = build_model(config.model_settings(labels, config.open_autoencoder()), f"'{config.model}'")
    known = own.recorded()
    given = None if known is not None else _of_the_start(config, model, own)
    first = autoencoder_run(config, known)
    if main and list_checkpoints(folder.checkpoints) and not (own.path / WEIGHTS_FILE).is_file():
        raise InputError(
            f"{own.path} lacks the autoencoder that {folder.path} works in the latents of; put it back, or name "
            "another --out to start anew"
        )
    data = build_dataset(config.data, "train", seed=config.training.seed, progress=main and not quiet)
    if main:
        folder.write_config(config, data.split_file())
        if given is not None and not (own.path / WEIGHTS_FILE).is_file():
            given.save_pretrained(own.path)
    return data, first if given is None else None


def autoencoder_run(config: RunConfig, before: RunConfig | None = None) -> RunConfig:
    """The run that learns the autoencoder of a run. before: as it was begun, whose budget stays."""
    autoencoder, training, latents = config.open_autoencoder(), config.training, config.latents
    assert isinstance(autoencoder, OwnAutoencoder)
    budget: dict[str, object] = {"minutes": None if training.minutes is None else training.minutes * latents.share}
    if training.steps is not None:
        budget = {"steps": max(1, round(training.steps * latents.share))}
    if before is not None:
        budget = before.training.model_dump(mode="json", include={"steps", "minutes"})
    return resolve(
        {
            "model": LearnedAutoencoder.family,
            "architecture": autoencoder.model.architecture.model_dump(mode="json"),
            "data": config.data.model_dump(mode="json"),
            "training": {
                **{name: value for name, value in budget.items() if value is not None},
                "batch_size": training.batch_size * -(-_BATCH // training.batch_size),
                "seed": training.seed,
                "saving": training.saving.model_dump(mode="json"),
                "devices": {**training.devices.model_dump(mode="json"), "precision": latents.precision},
            },
        },
        where="latents",
    )


def learned(config: RunConfig, folder: RunFolder) -> OwnAutoencoder:
    """The autoencoder that a run has learnt."""
    model = load_model(folder.autoencoder)
    assert isinstance(model, LearnedAutoencoder) and config.autoencoder is not None
    return OwnAutoencoder(model.requires_grad_(False), config.autoencoder)


def _of_the_start(config: RunConfig, model: Any, own: RunFolder) -> LearnedAutoencoder | None:
    """The autoencoder of the model that a run starts from; None for one that starts from nothing.

    Raises InputError where that model works in pixels, or in latents of another kind.
    """
    if config.init is None:
        return None
    if (own.path / WEIGHTS_FILE).is_file():  # taken before; the model need not be there any more
        return LearnedAutoencoder.from_pretrained(own.path)
    start = load_model(config.init)
    found = start.autoencoder if isinstance(start, NoisePredictor) else None
    wanted = model.autoencoder.architecture.model_dump(include=_SHAPE)
    if found is None or found.architecture.model_dump(include=_SHAPE) != wanted:
        works = "in pixels" if start.latents is None else f"in the latents of {start.latents.autoencoder}"
        raise InputError(
            f"--init {config.init} works {works}, and --autoencoder {config.autoencoder} means others; leave one "
            "of the two out, or give the settings of latents that it has"
        )
    return found
