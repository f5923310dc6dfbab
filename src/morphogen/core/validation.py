"""Turning pydantic's reports into one sentence that names the setting."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from morphogen.core.errors import InputError

Config = TypeVar("Config", bound=BaseModel)


def table(value: object, where: str, keys: Collection[str] | None = None) -> Mapping[str, Any]:
    """A value that must be a table of settings, with no other keys than `keys`. Raises InputError naming `where`."""
    if not isinstance(value, Mapping):
        raise InputError(f"{where} should be a table of settings, not {value!r}")
    for key in value:
        if keys is not None and key not in keys:
            raise InputError(f"{where}: there is no setting '{key}'; known are {', '.join(keys)}")
    return value


def explain(error: ValidationError) -> tuple[tuple[str, ...], str]:
    """The path of the first wrong setting of pydantic's report, and what is wrong with it."""
    first = error.errors(include_url=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "string_unicode":
        message = "its name is not in UTF-8; rename it, or give a link to it"
    shown = "" if isinstance(first.get("input"), dict | BaseModel) else f" (got {first.get('input')!r})"
    return tuple(str(part) for part in first["loc"]), f"{message[0].lower() + message[1:]}{shown}"


def validate(cls: type[Config], values: object, where: str) -> Config:
    """Build a configuration from plain values. Raises InputError naming `where` and the first wrong setting."""
    try:
        return cls.model_validate(dict(table(values, where)))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            owner: Any = cls
            for part in first["loc"][:-1]:
                fields: Any = getattr(owner, "model_fields", {})
                owner = fields[part].annotation if part in fields else None
            is_table = isinstance(owner, type) and issubclass(owner, BaseModel)
            known = list(owner.model_fields) if is_table else []
            near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}" if known else ""
            raise InputError(f"{where}: there is no setting '{path}'" + (f"; {hint}" if hint else "")) from None
        _, message = explain(error)
        raise InputError(f"{where}: {path + ': ' if path else ''}{message}") from None
