"""Maps of classes as users give them."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from morphogen.core.errors import InputError
from morphogen.core.model import Model
from morphogen.data.maps import to_classes, values_of


def as_map(model: Model, given: object, name: str = "given") -> Tensor:
    """A map uint8 (H, W), the number of each pixel's class, for a model that paints from maps.

    given: a PIL image of gray values, palette indices or colours; an integer array or tensor (H, W) or (H, W, 3).
    Raises InputError for a model without maps, and for what is no map of its classes.
    """
    if not model.classes:
        raise InputError(f"this {model.family} was trained without maps; train one with --maps")
    if isinstance(given, Image.Image):
        values = values_of(given)
    else:
        found = given.cpu().numpy() if isinstance(given, Tensor) else given
        if not isinstance(found, np.ndarray) or found.dtype.kind not in "biu" or found.shape[2:] not in ((), (3,)):
            shape = f" {found.shape}" if isinstance(found, np.ndarray) else ""
            raise InputError(
                f"the map is a {type(given).__name__}{shape}; it should be a PIL image, or integers (H, W) or (H, W, 3)"
            )
        if found.size and (int(found.min()) < 0 or int(found.max()) > 65535):
            raise InputError(
                f"the map has values of {int(found.min())} to {int(found.max())}; they should be 0 to 65535"
            )
        values = found.astype(np.uint16)
    return torch.from_numpy(to_classes(values, dict(model.classes), name))
