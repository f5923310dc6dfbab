"""ONNX files for tests, encoded by hand: one strided convolution and a rectifier, which is a feature network enough."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def _varint(value: int) -> bytes:
    out = bytearray()
    while True:
        value, low = value >> 7, value & 0x7F
        out.append(low | (0x80 if value else 0))
        if not value:
            return bytes(out)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes | str) -> bytes:
    content = value.encode() if isinstance(value, str) else value
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _tensor(name: str, values: np.ndarray) -> bytes:
    dims = b"".join(_number(1, n) for n in values.shape)
    return dims + _number(2, 1) + _bytes(8, name) + _bytes(9, values.astype("<f4").tobytes())


def _value(name: str, shape: list[int | str]) -> bytes:
    dims = b"".join(_bytes(1, _number(1, n) if isinstance(n, int) else _bytes(2, n)) for n in shape)
    return _bytes(1, name) + _bytes(2, _bytes(1, _number(1, 1) + _bytes(2, dims)))


def _integers(name: str, values: list[int]) -> bytes:
    return _bytes(1, name) + b"".join(_number(8, v) for v in values) + _number(20, 7)


def write_network(
    path: Path, features: int = 8, side: int | str = "h", batch: int | str = "n", seed: int = 0, scale: float = 1.0
) -> Path:
    """A network that takes (batch, 3, side, side) and gives (batch, features, ·, ·)."""
    kernel = np.random.default_rng(seed).normal(size=(features, 3, 3, 3)) * scale
    attributes = _bytes(5, _integers("kernel_shape", [3, 3])) + _bytes(5, _integers("strides", [2, 2]))
    convolution = _bytes(1, "x") + _bytes(1, "w") + _bytes(2, "c") + _bytes(4, "Conv") + attributes
    rectifier = _bytes(1, "c") + _bytes(2, "y") + _bytes(4, "Relu")
    graph = _bytes(1, convolution) + _bytes(1, rectifier) + _bytes(2, "g") + _bytes(5, _tensor("w", kernel))
    width = side if isinstance(side, int) else "w"
    graph += _bytes(11, _value("x", [batch, 3, side, width])) + _bytes(12, _value("y", [batch, features, "a", "b"]))
    path.write_bytes(_number(1, 8) + _bytes(7, graph) + _bytes(8, _bytes(1, "") + _number(2, 13)))
    return path


def write_autoencoder(folder: Path, factor: int = 4, channels: int = 5, seed: int = 0) -> str:
    """An autoencoder of two linear layers over squares of pixels, as `onnx:ENCODER,DECODER`."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    side = [factor, factor]
    for name, operator, given, made in (("encoder", "Conv", 3, channels), ("decoder", "ConvTranspose", channels, 3)):
        kernel = random.normal(size=(channels, 3, *side)) / factor
        attributes = _bytes(5, _integers("kernel_shape", side)) + _bytes(5, _integers("strides", side))
        layer = _bytes(1, "x") + _bytes(1, "w") + _bytes(2, "y") + _bytes(4, operator) + attributes
        graph = _bytes(1, layer) + _bytes(2, "g") + _bytes(5, _tensor("w", kernel))
        graph += _bytes(11, _value("x", ["n", given, "h", "v"])) + _bytes(12, _value("y", ["n", made, "a", "b"]))
        model = _number(1, 8) + _bytes(7, graph) + _bytes(8, _bytes(1, "") + _number(2, 13))
        (folder / f"{name}.onnx").write_bytes(model)
    return f"onnx:{folder / 'encoder.onnx'},{folder / 'decoder.onnx'}"
