"""A run's images as latents, in the run folder."""

from __future__ import annotations

from morphogen.core.model import Model
from morphogen.data.dataset import ImageDataset
from morphogen.data.latents import (
    EncodedDataset,
    LatentDataset,
    first_latents,
    is_endless,
    latents_of,
    measured,
    seconds_of,
)
from morphogen.diffusion.latents import Autoencoder
from morphogen.training.devices import Devices
from morphogen.training.run_folder import RunFolder


def into_latents(
    data: ImageDataset,
    held_out: ImageDataset | None,
    autoencoder: Autoencoder,
    model: Model,
    folder: RunFolder,
    devices: Devices,
    quiet: bool,
) -> tuple[ImageDataset, ImageDataset | None]:
    """The images to train on, and the held-out ones if there are any, as latents; the model is given their scale,
    which is measured on the images to train on. The main process computes them, the others wait; but those of random
    crops every process computes as it needs them.
    """
    if is_endless(data):
        config = model.latents = measured(first_latents(data, autoencoder), autoencoder)
        kept = None if held_out is None else EncodedDataset(held_out, autoencoder, config)
        return EncodedDataset(data, autoencoder, config), kept
    if not devices.is_main_process:
        devices.any(False)  # until the main process has come here too
    files = folder.path / "latents" / "train"
    latents = latents_of(data, autoencoder, files, quiet or not devices.is_main_process)
    config = model.latents = measured(latents, autoencoder)
    coded = LatentDataset(data, latents, config, seconds_of(files))
    if held_out is not None:
        held = latents_of(held_out, autoencoder, folder.path / "latents" / "val", quiet)
        held_out = LatentDataset(held_out, held, config)
    if devices.is_main_process:
        devices.any(False)
    return coded, held_out
