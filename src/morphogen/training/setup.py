"""The parts of a training, made or gone back to: the data, the model, its state, what writes it down."""

from __future__ import annotations

from morphogen.core.errors import InputError
from morphogen.data.dataset import ImageDataset, build_dataset
from morphogen.diffusion.denoiser import Denoiser
from morphogen.training.autoencoder import learned
from morphogen.training.build import build
from morphogen.training.checkpoint import remove_newer
from morphogen.training.config import RunConfig
from morphogen.training.devices import Devices
from morphogen.training.estimate import wants_recompute
from morphogen.training.latents import into_latents
from morphogen.training.recorder import Recorder
from morphogen.training.run_folder import RunFolder
from morphogen.training.state import TrainingState
from morphogen.training.warm_start import labels_of_run


def set_up(
    config: RunConfig, folder: RunFolder, devices: Devices, quiet: bool, data: ImageDataset | None = None
) -> tuple[TrainingState, ImageDataset, Recorder]:
    """The state of a run, at the checkpoint that it goes on from if there is one; its images, and its recorder.

    data: the images, where they have been opened already.

    Raises InputError where the data, the settings or the folder are not usable.
    """
    settings, main = config.training, devices.is_main_process
    if settings.batch_size % devices.count:
        raise InputError(f"--batch-size {settings.batch_size} cannot be shared evenly by {devices.count} processes")
    if main:
        folder.check(config)  # before the data is read, which may take long
    autoencoder = learned(config, folder) if config.learns_autoencoder else config.open_autoencoder()
    model = build(config, devices, labels_of_run(config, folder), autoencoder, config.read_classes())
    if data is None:
        data = build_dataset(config.data, "train", seed=settings.seed, progress=main and not quiet)
    if data.mpp is not None:
        factor = 1 if autoencoder is None else autoencoder.factor
        model.image = model.image.model_copy(update={"mpp": data.mpp * factor})
    if data.clusters is not None and isinstance(model, Denoiser) and model.condition is not None:
        model.condition = model.condition.model_copy(update={"clusters": data.clusters})
    if len(model.labels):
        data.check_classes_filled()
    remarks: list[str] = []
    held_out = _held_out(data, remarks) if main else None
    if autoencoder is not None:
        data, held_out = into_latents(data, held_out, autoencoder, model, folder, devices, quiet)
    state = TrainingState(model, config, data.identity())
    model.recompute = wants_recompute(config, model, devices)
    log_length, resumed = state.resume(folder, owner=main)
    recorder = Recorder(folder, config, state, data, held_out, devices, log_length, quiet)
    for remark in (*remarks, *resumed):
        recorder.say(remark)
    devices.any(False)  # until all have read the checkpoint
    if main:
        remove_newer(folder.checkpoints, state.step)
    if settings.devices.compile:
        model.compile_steps()
    return state, data, recorder


def _held_out(data: ImageDataset, remarks: list[str]) -> ImageDataset | None:
    """The images that the main process measures on; None if there are none that can be used."""
    if not data.counts["val"]:
        if data.config.split == "auto" and not data.counts["test"]:
            remarks.append(f"note: {len(data)} images are too few to hold any out: all of them are trained on")
        return None
    try:
        images = data.other("val")
    except InputError as error:
        remarks.append(f"warning: training goes on without held-out images: {error}")
        return None
    remarks += [f"skipped {name}: {reason}" for name, reason in images.bad]
    return images
