"""Models of timm by their names: as feature networks, and as classifiers."""

from __future__ import annotations

import difflib
import logging

from torch import nn

from morphogen.core.errors import InputError, missing_extra

_LISTED = 3


def create_timm_model(name: str, pretrained: bool, file: str | None = None, num_classes: int = 0) -> nn.Module:
    """timm's model of a name. pretrained: with its published weights; file: with those of a file, safetensors only.

    num_classes: outputs; 0 for features. Raises InputError for an unknown name, naming near ones, for weights that
    cannot be had, and without timm.
    """
    try:
        import timm
    except ImportError:
        raise missing_extra("metrics", "timm") from None
    if not timm.is_model(name.partition(".")[0]):
        near = difflib.get_close_matches(name, timm.list_models(), _LISTED)
        hint = f"; did you mean {', '.join(near)}?" if near else "; timm.list_models() names all"
        raise InputError(f"timm has no model '{name}'{hint}")
    options: dict[str, object] = {} if file is None else {"pretrained_cfg_overlay": {"file": file}}
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.ERROR)  # its retries are many lines, and the end of it is said in one
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **options)
    except Exception as error:  # timm, the hub and its files each raise errors of their own
        reason = (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0]
        if not pretrained:
            raise InputError(f"timm:{name} cannot be built: {reason}") from None
        advice = "it is damaged or of another model" if file else "give those of a safetensors file instead"
        raise InputError(f"the weights of timm:{name} cannot be had ({reason}); {advice}") from None
    finally:
        hub.setLevel(level)
    return model


def preprocessing_of(
    model: nn.Module,
) -> tuple[tuple[int, int], tuple[float, float, float], tuple[float, float, float]]:
    """The (height, width), mean and deviation that a model of timm was trained with."""
    import timm

    known = timm.data.resolve_model_data_config(model)
    return tuple(known["input_size"][1:]), tuple(known["mean"]), tuple(known["std"])
