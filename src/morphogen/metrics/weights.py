"""The files of feature networks: what they are, where they lie, fetching and checking them.

They are kept in the folder that MORPHOGEN_WEIGHTS names, else in the user's cache. A file counts only where its
SHA-256 is the known one.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import tempfile
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from morphogen.core.cache import cache_folder
from morphogen.core.errors import InputError
from morphogen.core.files import sha256

VARIABLE = "MORPHOGEN_WEIGHTS"
_BLOCK = 2**20


@dataclass(frozen=True)
class WeightFile:
    """One file: its name on disk, its address, and what identifies it."""

    network: str
    name: str
    url: str
    sha256: str
    size: int
    """In bytes; 0 where it is not known."""
    licence: str


FILES: dict[str, WeightFile] = {
    file.network: file
    for file in (
        WeightFile(
            "fid-inception",
            "weights-inception-2015-12-05-6726825d.pth",
            "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
            "weights-inception-2015-12-05-6726825d.pth",
            "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
            95_628_359,
            "Apache-2.0",
        ),
        WeightFile(
            "dinov2",
            "dinov2_vitb14_pretrain.pth",
            "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/dinov2_vitb14_pretrain.pth",
            "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73",
            346_378_731,
            "Apache-2.0",
        ),
        WeightFile(
            "dinov2-small",
            "dinov2_vits14_pretrain.pth",
            "https://dl.fbaipublicfiles.com/dinov2/dinov2_vits14/dinov2_vits14_pretrain.pth",
            "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9",
            88_283_115,
            "Apache-2.0",
        ),
        WeightFile(
            "lpips-vgg",
            "vgg16-397923af.pth",
            "https://download.pytorch.org/models/vgg16-397923af.pth",
            "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
            0,
            "torchvision's BSD-3-Clause; trained on ImageNet",
        ),
    )
}


def weights_folder() -> Path:
    """Where the files lie: MORPHOGEN_WEIGHTS, else the user's cache."""
    named = os.environ.get(VARIABLE)
    return Path(named).expanduser() if named else cache_folder("weights")


def find_file(network: str) -> WeightFile:
    """The file of a network. Raises InputError, listing the names, for an unknown one."""
    if network not in FILES:
        raise InputError(f"there is no network '{network}' with a file to fetch; choose one of {', '.join(FILES)}")
    return FILES[network]


def path_of(network: str) -> Path:
    """Where the file of a network belongs, whether it is there or not."""
    return weights_folder() / find_file(network).name


def how_to_get(file: WeightFile) -> str:
    """How to bring the file by hand, for messages."""
    return f"put {file.url} (SHA-256 {file.sha256}) at {weights_folder() / file.name}, or set {VARIABLE} to its folder"


def find_corruption(network: str) -> str | None:
    """The fault of a network's file, or None where it is there and whole."""
    file, path = find_file(network), path_of(network)
    if not path.is_file():
        return "missing"
    found = sha256(path)
    return None if found == file.sha256 else f"damaged: its SHA-256 is {found}, not {file.sha256}"


def require(network: str) -> Path:
    """The checked file of a network, fetched where it is missing.

    Raises InputError with its address, hash and destination where it cannot be had, or is damaged.
    """
    wrong = find_corruption(network)
    if wrong is None:
        return path_of(network)
    if wrong != "missing":
        raise InputError(f"{path_of(network)} is {wrong}; delete it and run `morphogen weights fetch {network}`")
    return fetch(network)


def fetch(network: str, progress: Callable[[int], None] | None = None) -> Path:
    """Download the file of a network, check it, and only then put it into place.

    progress: called with the number of bytes so far. Raises InputError with the address, the hash and the destination.
    """
    file = find_file(network)
    path = path_of(network)
    if find_corruption(network) is None:
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    except OSError as error:
        raise InputError(f"{path.parent} cannot be written ({error.strerror or error}); {how_to_get(file)}") from None
    part = Path(name)
    try:
        digest, done = hashlib.sha256(), 0
        with os.fdopen(handle, "wb") as out, urllib.request.urlopen(file.url, timeout=30) as answer:
            while block := answer.read(_BLOCK):
                out.write(block)
                digest.update(block)
                done += len(block)
                if progress is not None:
                    progress(done)
            out.flush()
            os.fsync(out.fileno())
        if digest.hexdigest() != file.sha256:
            raise InputError(
                f"what {file.url} sent has the SHA-256 {digest.hexdigest()}, not {file.sha256}; nothing was kept"
            )
        part.chmod(0o644)
        part.replace(path)
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise InputError(f"the file of {network} could not be fetched ({reason}); {how_to_get(file)}") from None
    finally:
        part.unlink(missing_ok=True)
    return path
