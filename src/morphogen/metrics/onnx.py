"""Users' own feature networks: any ONNX file that takes one batch of images, with its preprocessing beside it.

FILE.json beside FILE.onnx may say how images go in: `size` [height, width], `range` "0..1", "-1..1" or "0..255",
`mean` and `deviation` (three numbers each, after the range), `output` (the name of the features). By default: the size
that the file declares, 0..1, the first output.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from morphogen.core.errors import InputError
from morphogen.core.files import read_json, sha256
from morphogen.core.onnx_files import open_onnx
from morphogen.core.validation import table, validate
from morphogen.metrics.feature_network import FeatureNetwork, identify, resize

Side = Annotated[int, Field(ge=8, le=4096)]


class Preprocessing(BaseModel):
    """How images go into the network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: tuple[Side, Side] | None = None
    range: Literal["0..1", "-1..1", "0..255"] = "0..1"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    deviation: tuple[float, float, float] = (1.0, 1.0, 1.0)
    output: str | None = None


class ONNXNetwork(FeatureNetwork):
    """Features of an ONNX file: its output (N, D), or averaged over space where it is (N, D, H, W)."""

    def __init__(self, file: Path) -> None:
        """Raises InputError if there is no such file, it is damaged, or takes something else than images."""
        self._session = open_onnx(file)
        beside = file.with_suffix(".json")
        values = read_json(beside) if beside.is_file() else {}
        self.preprocessing = validate(Preprocessing, table(values, str(beside)), str(beside))
        inputs = self._session.get_inputs()
        shape = inputs[0].shape if inputs else []
        if len(inputs) != 1 or len(shape) != 4 or shape[1] not in (1, 3) or inputs[0].type != "tensor(float)":
            raise InputError(f"onnx:{file} should take one float tensor (N, 3, height, width), not {shape}")
        self._input, self._gray = inputs[0].name, shape[1] == 1
        self._batch: int | None = shape[0] if isinstance(shape[0], int) else None
        declared = (shape[2], shape[3]) if isinstance(shape[2], int) and isinstance(shape[3], int) else None
        self.size: tuple[int, int] | None = self.preprocessing.size or declared
        outputs = [o.name for o in self._session.get_outputs()]
        self._output = self.preprocessing.output or outputs[0]
        if self._output not in outputs:
            raise InputError(f"{beside}: output is '{self._output}', but {file} has {', '.join(outputs)}")
        self.name = file.stem
        self._weights = sha256(file)
        how = json.dumps({**self.preprocessing.model_dump(mode="json"), "size": self.size})
        self.identity = identify("onnx", self._weights, how, "bicubic")

    def __call__(self, images: Tensor) -> NDArray[np.float32]:
        settings = self.preprocessing
        x = resize(images, self.size or (images.shape[-2], images.shape[-1]))
        x = {"0..1": x, "-1..1": 2 * x - 1, "0..255": 255 * x}[settings.range]
        x = (x - torch.tensor(settings.mean).view(1, 3, 1, 1)) / torch.tensor(settings.deviation).view(1, 3, 1, 1)
        if self._gray:
            x = x.mean(dim=1, keepdim=True)
        step = self._batch or len(x)
        found = []
        for start in range(0, len(x), step):
            part = x[start : start + step]
            short = step - len(part)
            if short:  # a file made for a fixed batch
                part = torch.cat([part, part[-1:].expand(short, -1, -1, -1)])
            try:
                features = np.asarray(self._session.run([self._output], {self._input: part.numpy()})[0], np.float32)
            except Exception as error:
                raise InputError(f"onnx:{self.name} failed on images of {tuple(part.shape)}: {error}") from None
            if features.ndim > 2:
                features = features.reshape(*features.shape[:2], -1).mean(axis=2)
            found.append(features.reshape(len(part), -1)[: step - short])
        return np.concatenate(found)
