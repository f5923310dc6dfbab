"""Whether generated images show their labels, by a classifier of the real training images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from morphogen.core.errors import InputError
from morphogen.core.files import json_bytes, replace_file
from morphogen.core.progress import Progress
from morphogen.data.dataset import ImageDataset
from morphogen.experiments.classifier import ClassifierSettings, Examples, build_network, predict, train_classifier
from morphogen.experiments.expansion_folder import CLASSIFIER
from morphogen.metrics.image_sets import in_colour


def examples_of(data: ImageDataset, quiet: bool) -> Examples:
    """All images of a part that have labels, not augmented, in colour."""
    images, rows = [], []
    with Progress(f"reading {data.part} images", len(data.labelled), quiet=quiet) as progress:
        for i in data.labelled:
            image, row = data.fixed(i)
            images.append(in_colour(image))
            rows.append(row)
            progress.advance()
    return Examples(torch.stack(images), torch.stack(rows))


def agreement(network: nn.Module, images: Tensor, rows: Tensor, exclusive: bool) -> NDArray[np.float64]:
    """How sure a classifier is of the labels of images uint8 (B, 3, H, W): 0..1, (B,).

    rows: float (B, K). The probability of the class; of labels that do not exclude one another, the least probability
    that it gives to the truth of any of them.
    """
    said, truth = predict(network, images, exclusive), rows.numpy() > 0.5
    right = np.where(truth, said, 1.0 if exclusive else 1.0 - said)
    return np.asarray(right.min(axis=1))


def training_classifier(train: ImageDataset, settings: ClassifierSettings, out: Path, quiet: bool) -> nn.Module:
    """The classifier of a training part, kept in a folder, so that every process and every start has the same.

    It never sees another part, so that nothing of validation or test images decides what an expansion keeps.
    """
    facts = {"data": train.identity(), "settings": json_bytes(_facts(settings)).decode()}
    file = out / CLASSIFIER
    with FileLock(out / f".{CLASSIFIER}.lock"):
        network = _kept(file, facts, train, settings)
        if network is None:
            trained = train_classifier(
                examples_of(train, quiet), None, train.labels.exclusive, train.fitting, settings, 0, quiet
            )
            state = {name: tensor.detach().cpu().contiguous() for name, tensor in trained.state_dict().items()}
            replace_file(file, save(state, facts))
            network = _kept(file, facts, train, settings)  # read again, so that every start rounds alike
    if network is None:
        raise InputError(f"{file} changes while it is used; give every expansion a folder of its own")
    return network.to(settings.device).eval()


def _facts(settings: ClassifierSettings) -> dict[str, object]:
    return {k: v for k, v in vars(settings).items() if k != "device"}


def _kept(file: Path, facts: dict[str, str], train: ImageDataset, settings: ClassifierSettings) -> nn.Module | None:
    """The network of a file, where it is whole and was trained with these settings."""
    network = build_network(len(train.labels), 0, settings.network)
    try:
        with safe_open(file, "pt") as saved:
            if saved.metadata() != facts:
                return None
            network.load_state_dict({name: saved.get_tensor(name) for name in saved.keys()})  # noqa: SIM118
    except (OSError, SafetensorError, RuntimeError):
        return None
    return network
