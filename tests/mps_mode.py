"""A device without float64, as Apple's MPS is, played by the processor.

While the mode lasts, tensors that are made on or moved to "mps" lie in ordinary memory and are remembered as being
there. What MPS refuses is refused as it does: float64, arithmetic with tensors of the processor, and numpy's look.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

_MPS, _CPU = torch.device("mps"), torch.device("cpu")
_MARK = "_is_on_mps"
_TO_PYTHON = {"numpy", "__array__"}
_MAY_MIX = {"to", "copy_", "__getitem__", "__setitem__", "set_", "__set__", "index_put_", "detach", "type_as"}


class MPSMode(TorchFunctionMode):
    """See above. seen: how many results were on the device, so that a test can tell that it was used."""

    seen = 0

    def __enter__(self) -> Any:
        self._copy = nn.Parameter.__deepcopy__  # which no mode hears of
        copy = self._copy

        def marked(parameter: nn.Parameter, memo: dict[int, Any]) -> nn.Parameter:
            result: nn.Parameter = copy(parameter, memo)
            if _is_there(parameter):
                _mark(result)
            return result

        nn.Parameter.__deepcopy__ = marked  # type: ignore[method-assign]
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        nn.Parameter.__deepcopy__ = self._copy  # type: ignore[method-assign]
        super().__exit__(*error)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func is torch.device or name == "_parse_to":
            return func(*args, **kwargs)
        there = [t for t in _tensors((args, kwargs)) if _is_there(t)]
        if name == "__get__" and func == Tensor.device.__get__:
            return _MPS if there else func(*args, **kwargs)
        if name in _TO_PYTHON and there:
            raise TypeError("can't convert mps:0 device type tensor to numpy. Use Tensor.cpu() to copy it first.")
        devices = [_as_device(value) for value in (*args[1:], *args[:1], *kwargs.values())]
        target = next((d for d in devices if d is not None), None)
        if target is None and name == "cpu":
            target = _CPU
        if there and target is None and name not in _MAY_MIX:
            for other in _tensors((args, kwargs)):
                if not _is_there(other) and other.dim() > 0:
                    raise RuntimeError(
                        f"Expected all tensors to be on the same device, but found mps and cpu in {resolve_name(func)}"
                    )
        result = func(*_here(args), **_here(kwargs))
        on_mps = target.type == "mps" if target is not None else bool(there)
        if not on_mps:
            return _copied(result, there)
        if name == "to" and args and isinstance(args[0], nn.Parameter):  # a module moves it by its data
            _mark(args[0])
        for tensor in _tensors(result):
            MPSMode.seen += 1
            if tensor.dtype == torch.float64:
                raise TypeError(
                    "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64 "
                    f"({resolve_name(func)})"
                )
            _mark(tensor)
        return result


def _is_there(tensor: Tensor) -> bool:
    return bool(tensor.__dict__.get(_MARK, False))


def _mark(tensor: Tensor) -> None:
    tensor.__dict__[_MARK] = True


def _copied(result: Any, there: list[Tensor]) -> Any:
    """What was moved to the processor, apart from what it was moved from."""
    if isinstance(result, Tensor) and any(result is t for t in there):
        with torch._C.DisableTorchFunction():
            return result.clone() if result.requires_grad else result.detach().clone()
    return result


def _as_device(value: Any) -> torch.device | None:
    if isinstance(value, torch.device):
        return value
    return torch.device(value) if isinstance(value, str) and value in ("mps", "cpu") else None


def _here(value: Any) -> Any:
    """Arguments with the processor in place of the device."""
    if isinstance(value, tuple | list):
        return type(value)(_here(v) for v in value) if type(value) in (tuple, list) else value
    if isinstance(value, dict):
        return {k: _here(v) for k, v in value.items()}
    return _CPU if isinstance(value, torch.device) or (isinstance(value, str) and value == "mps") else value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for v in value:
            yield from _tensors(v)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
