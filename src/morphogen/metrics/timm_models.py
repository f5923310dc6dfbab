"""Models of timm by their names: as feature networks, and as classifiers."""

from __future__ import annotations

import difflib
import logging

from torch import nn

from morphogen.core.errors import InputError, missing_extra

_LISTED = 3
_REACHED_S = 5.0


def create_timm_model(name: str, pretrained: bool, file: str | None = None, num_classes: int = 0) -> nn.Module:
    """timm's model of a name. pretrained: with its published weights; file: with those of a file, safetensors only.

    num_classes: outputs; 0 for features. Raises InputError for an unknown name, naming near ones, for weights that
    cannot be had, and without timm.
    """
    try:
        import timm
    except ImportError:
        raise missing_extra("metrics", "timm") from None
    from huggingface_hub import constants

    if not timm.is_model(name.partition(".")[0]):
        near = difflib.get_close_matches(name, timm.list_models(), _LISTED)
        hint = f"; did you mean {', '.join(near)}?" if near else "; timm.list_models() names all"
        raise InputError(f"timm has no model '{name}'{hint}")
    options: dict[str, object] = {} if file is None else {"pretrained_cfg_overlay": {"file": file}}
    hub = logging.getLogger("huggingface_hub")
    level, offline = hub.level, constants.HF_HUB_OFFLINE
    hub.setLevel(logging.ERROR)  # its retries are many lines, and the end of it is said in one
    if pretrained and file is None:
        constants.HF_HUB_OFFLINE = offline or not _reachable()  # then it takes what it has, at once
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **options)
    except Exception as error:  # timm, the hub and its files each raise errors of their own
        reason = (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0]
        if not pretrained:
            raise InputError(f"timm:{name} cannot be built: {reason}") from None
        advice = "it is damaged or of another model" if file else f"name a safetensors file of them, timm:{name}:FILE"
        raise InputError(f"the weights of timm:{name} cannot be had ({reason}); {advice}") from None
    finally:
        hub.setLevel(level)
        constants.HF_HUB_OFFLINE = offline
    return model


def preprocessing_of(
    model: nn.Module,
) -> tuple[tuple[int, int], tuple[float, float, float], tuple[float, float, float]]:
    """The (height, width), mean and deviation that a model of timm was trained with."""
    import timm

    known = timm.data.resolve_model_data_config(model)
    return tuple(known["input_size"][1:]), tuple(known["mean"]), tuple(known["std"])


def _reachable() -> bool:
    """Whether the hub answers at all: where it does not, its client would try again for a minute."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=_REACHED_S)
    except Exception:  # no network, no such host, a proxy's refusal: the client and its library have many kinds
        return False
    return True
