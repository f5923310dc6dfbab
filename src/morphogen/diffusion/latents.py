"""Autoencoders: between images in pixels and the latents that a model may work in instead."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from morphogen.core.errors import InputError, first_line
from morphogen.core.files import read_json, sha256
from morphogen.core.model import ImageConfig, LatentConfig
from morphogen.core.model_files import CONFIG_FILE
from morphogen.core.onnx_files import open_onnx, run_onnx
from morphogen.diffusion.learned_autoencoder import LearnedAutoencoder

LEARN = "learn:"
"""What --autoencoder begins with where one is to be learnt."""
DECODED = 64
"""Cells on a side of what an autoencoder of our own decodes at once, unless it is told otherwise."""
_ONNX = "onnx:"
_PROBE = 64  # pixels on a side of the image by which factor and channels are found


class Autoencoder(ABC):
    """Images float (B, C, H, W) of the scale [-1, 1] <-> latents float (B, c, H / factor, W / factor).

    name: what the user named, with absolute paths. identity: a hash of its weights. pixels: C. channels: c.
    """

    name: str
    identity: str
    pixels: int = 3
    channels: int
    factor: int

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Latents, on the images' device; no noise is drawn."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Images, on the latents' device."""

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self  # it is never changed, and shared by every copy of a model

    def _probe(self) -> None:
        """Find factor and channels. Raises InputError where encoder and decoder don't fit each other."""
        latents = self.encode(torch.zeros(1, self.pixels, _PROBE, _PROBE))
        if latents.ndim != 4 or not 1 <= min(latents.shape[2:]) <= _PROBE or _PROBE % latents.shape[2]:
            raise InputError(f"--autoencoder {self.name} makes {tuple(latents.shape)} of a {_PROBE}x{_PROBE} image")
        self.channels, self.factor = latents.shape[1], _PROBE // latents.shape[2]
        back = self.decode(latents)
        if back.shape != (1, self.pixels, _PROBE, _PROBE):
            raise InputError(
                f"--autoencoder {self.name} makes {tuple(back.shape)} of a {_PROBE}x{_PROBE} image's latents"
            )

    def config(self, shift: tuple[float, ...] = (), scale: tuple[float, ...] = ()) -> LatentConfig:
        """The table of the latents in a model's configuration."""
        return LatentConfig(
            autoencoder=self.name,
            sha256=self.identity,
            factor=self.factor,
            pixels=self.pixels,
            shift=shift or (0.0,) * self.channels,
            scale=scale or (1.0,) * self.channels,
        )

    def grid(self, image: ImageConfig) -> ImageConfig:
        """The latents of such images. Raises InputError where the factor does not divide their size, or their channels
        are not the autoencoder's.
        """
        if image.height % self.factor or image.width % self.factor:
            raise InputError(
                f"--size {image.height}x{image.width} is not divisible by {self.factor}, the factor of the autoencoder "
                f"{self.name}"
            )
        if image.channels != self.pixels:
            raise InputError(
                f"the autoencoder {self.name} takes images of {self.pixels} channels, not {image.channels}; set "
                f"data.colour={'rgb' if self.pixels == 3 else 'gray'}"
            )
        height, width = image.height // self.factor, image.width // self.factor
        if min(height, width) < 2:
            raise InputError(
                f"--size {image.height}x{image.width} is too small for the autoencoder {self.name}: its latents would "
                f"be {height}x{width}"
            )
        return image.scaled(1 / self.factor, self.channels)


class DiffusersAutoencoder(Autoencoder):
    """Any image autoencoder of diffusers, from its folder or a hub id; of a distribution, the mean is taken."""

    def __init__(self, reference: str) -> None:
        """Raises InputError where it cannot be had, is a pickle, or is none of images."""
        folder = Path(reference).expanduser()
        self.name = str(folder.resolve()) if folder.is_dir() else reference
        if not folder.is_dir():
            folder = _fetch(reference)
        weights = sorted(folder.glob("*.safetensors"))
        if not (folder / "config.json").is_file() or not weights:
            raise InputError(
                f"--autoencoder {reference}: the folder should hold config.json and weights in safetensors"
            )
        import diffusers

        try:
            model: Any = diffusers.AutoModel.from_pretrained(str(folder), use_safetensors=True)
        except Exception as error:  # diffusers raises many kinds
            reason = first_line(error)
            raise InputError(f"--autoencoder {reference} cannot be opened by diffusers: {reason}") from None
        if not (hasattr(model, "encode") and hasattr(model, "decode")):
            raise InputError(f"--autoencoder {reference} is a {type(model).__name__}, not an autoencoder")
        self._model = model.eval().requires_grad_(False)
        self.pixels = int(getattr(model.config, "in_channels", 3))
        self.identity = hashlib.sha256("".join(map(sha256, weights)).encode()).hexdigest()
        self._probe()

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        coded = self._on(images.device).encode(images.float())
        latents: Tensor = coded.latent_dist.mode() if hasattr(coded, "latent_dist") else coded.latents
        return latents.float()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        images: Tensor = self._on(latents.device).decode(latents.float()).sample
        return images.float()

    def _on(self, device: torch.device) -> Any:
        return self._model.to(device)


class ONNXAutoencoder(Autoencoder):
    """A pair of ONNX files, images of [0, 1] to latents and back, each with one input. It runs on the CPU."""

    def __init__(self, reference: str) -> None:
        """Raises InputError where that is no pair of files, or one is damaged."""
        names = reference.removeprefix(_ONNX).split(",")
        if len(names) != 2 or not all(names):
            raise InputError(f"--autoencoder {reference}: it should be onnx:ENCODER,DECODER, two files")
        self._files = [Path(name).expanduser().resolve() for name in names]
        self.name = _ONNX + ",".join(map(str, self._files))
        self._encoder, self._decoder = (open_onnx(file) for file in self._files)
        channels = self._encoder.get_inputs()[0].shape[1]
        self.pixels = channels if isinstance(channels, int) else 3
        self.identity = hashlib.sha256("".join(map(sha256, self._files)).encode()).hexdigest()
        self._probe()

    def encode(self, images: Tensor) -> Tensor:
        return self._run(self._encoder, self._files[0], (images + 1) / 2)

    def decode(self, latents: Tensor) -> Tensor:
        return self._run(self._decoder, self._files[1], latents) * 2 - 1

    @staticmethod
    def _run(session: object, file: Path, values: Tensor) -> Tensor:
        given = np.ascontiguousarray(values.detach().float().cpu().numpy())
        return torch.from_numpy(np.asarray(run_onnx(session, file, given), np.float32)).to(values.device)


class OwnAutoencoder(Autoencoder):
    """One that Morphogen has learnt. It computes in float32 and image by image, so that what an image becomes depends
    on no other.
    """

    def __init__(self, model: LearnedAutoencoder, name: str, identity: str | None = None) -> None:
        """identity: where it is known already."""
        self.model, self.name = model, name
        self.pixels, self.channels = model.image.channels, model.channels
        self.factor = model.architecture.factor
        self.identity = weights_hash(model) if identity is None else identity

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        return self._one_by_one(self.model.encode, images)

    def decode(self, latents: Tensor) -> Tensor:
        rows, columns = latents.shape[2:]
        return self.decode_part(latents, (0, 0), (rows, columns), (0, rows), (0, columns))

    @torch.no_grad()
    def decode_part(
        self,
        latents: Tensor,
        begin: tuple[int, int],
        canvas: tuple[int, int],
        rows: tuple[int, int],
        columns: tuple[int, int],
        block: int = DECODED,
    ) -> Tensor:
        """The pixels of rows and columns of cells (first, and one after the last) of a canvas (rows, columns).

        It is decoded in blocks of the canvas of `block` cells on a side, each with what the decoder sees around, so
        that a pixel's bits follow from the canvas alone, not from the part. latents: those of the canvas from the cell
        `begin` on, of `reads` at least.
        """
        top, bottom, left, right = (*rows, *columns)
        whole_rows = []
        for y in range(top - top % block, bottom, block):
            row = []
            for x in range(left - left % block, right, block):
                (y0, y1), (x0, x1) = (
                    self.reads((first, first + 1), length, block) for first, length in ((y, canvas[0]), (x, canvas[1]))
                )
                seen = latents[..., y0 - begin[0] : y1 - begin[0], x0 - begin[1] : x1 - begin[1]]
                with one_thread():
                    pixels = self._one_by_one(self.model.decode, seen)
                here = (max(y, top), min(y + block, bottom)), (max(x, left), min(x + block, right))
                (a, b), (c, d) = (
                    (self.factor * (first - start), self.factor * (last - start))
                    for (first, last), start in zip(here, (y0, x0), strict=True)
                )
                row.append(pixels[..., a:b, c:d])
            whole_rows.append(torch.cat(row, dim=3))
        return torch.cat(whole_rows, dim=2)

    def reads(self, cells: tuple[int, int], length: int, block: int = DECODED) -> tuple[int, int]:
        """The cells along one side of a canvas that decoding some of them reads: whole blocks, and the reach."""
        first, last = cells[0] - cells[0] % block, -(-cells[1] // block) * block
        reach = self.model.decoder_reach
        return max(0, first - reach), min(length, last + reach)

    def config(self, shift: tuple[float, ...] = (), scale: tuple[float, ...] = ()) -> LatentConfig:
        learned = {**self.model.architecture.model_dump(mode="json"), "channels": self.channels}
        return super().config(shift, scale).model_copy(update={"learned": learned})

    def _one_by_one(self, network: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
        self.model.to(values.device)
        with torch.autocast(values.device.type, enabled=False):
            return torch.cat([network(one) for one in torch.split(values.float(), 1)]).contiguous()


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread of PyTorch's: how convolutions are cut up, and so their bits, depends on how many."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def weights_hash(model: LearnedAutoencoder) -> str:
    """A hash of an autoencoder's weights."""
    found = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        found.update(name.encode() + weight.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def _fetch(reference: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(reference, allow_patterns=["config.json", "*.safetensors"]))
    except Exception as error:  # the hub's client raises many kinds; all mean that it is not to be had
        reason = first_line(error)
        raise InputError(
            f"--autoencoder {reference}: there is no such folder, and it could not be fetched from the hub: {reason}"
        ) from None


def open_autoencoder(reference: str) -> Autoencoder:
    """`onnx:ENCODER,DECODER`, the folder of an autoencoder learnt by Morphogen, a folder of diffusers, or a hub id.

    Raises InputError where it cannot be had or used.
    """
    if reference.startswith(_ONNX):
        return ONNXAutoencoder(reference)
    folder = Path(reference).expanduser()
    file = folder / CONFIG_FILE
    config = read_json(file) if file.is_file() else None
    if isinstance(config, dict) and config.get("family") == LearnedAutoencoder.family:
        return OwnAutoencoder(LearnedAutoencoder.from_pretrained(folder), str(folder.resolve()))
    return DiffusersAutoencoder(reference)


def learned_factor(reference: str | None) -> int | None:
    """The factor of `learn:FACTOR`, None for anything else. Raises InputError for a factor that is not 2, 4 or 8."""
    if reference is None or not reference.startswith(LEARN):
        return None
    factor = reference.removeprefix(LEARN)
    if factor not in ("2", "4", "8"):
        raise InputError(f"--autoencoder {reference}: the factor should be 2, 4 or 8, such as {LEARN}4")
    return int(factor)


class Codec:
    """The autoencoder of a model that works in latents, with the shift and scale by which they become about normal."""

    def __init__(self, config: LatentConfig, own: LearnedAutoencoder | None = None) -> None:
        """own: the autoencoder that lies among the model's weights, if one does.

        Raises InputError where the autoencoder isn't there any more, or is another one.
        """
        self.autoencoder: Autoencoder
        if own is None:
            self.autoencoder = open_autoencoder(config.autoencoder)
        else:
            self.autoencoder = OwnAutoencoder(own, config.autoencoder, config.sha256)
        if self.autoencoder.identity != config.sha256:
            raise InputError(f"the autoencoder {config.autoencoder} is not the one that this model was trained with")
        self._shift, self._scale = (torch.tensor(v).view(1, -1, 1, 1) for v in (config.shift, config.scale))

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self

    @property
    def own(self) -> OwnAutoencoder:
        """The autoencoder, where Morphogen has learnt it."""
        assert isinstance(self.autoencoder, OwnAutoencoder)
        return self.autoencoder

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) as the model sees them."""
        latents = self.autoencoder.encode(images)
        return (latents - self._shift.to(latents)) * self._scale.to(latents)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents of the model as images (B, C, H, W), about [-1, 1]."""
        return self.autoencoder.decode(self._raw(latents))

    def decode_part(
        self,
        latents: Tensor,
        begin: tuple[int, int],
        canvas: tuple[int, int],
        rows: tuple[int, int],
        columns: tuple[int, int],
        block: int = DECODED,
    ) -> Tensor:
        """As `OwnAutoencoder.decode_part`, of latents as the model has them."""
        return self.own.decode_part(self._raw(latents), begin, canvas, rows, columns, block)

    def _raw(self, latents: Tensor) -> Tensor:
        return latents / self._scale.to(latents) + self._shift.to(latents)
