"""Settings in files: read strictly, and never mixed with others in one place."""

from __future__ import annotations

import contextlib
import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from capsdesc.checks import shown

T = TypeVar("T")


def refuse_other_settings(
    what: str, earlier: Mapping[str, Any] | None, now: Mapping[str, Any], remedy: str = "choose another folder"
) -> None:
    """Refuse to keep what is made with other settings in one place.

    Args:
        what: what is there, for the message.
        earlier: the settings that it was made with; ``None`` where they are not known.
        now: those of now.
        remedy: what to do about it, for the message.

    Raises:
        ValueError: they differ; the message says in what.
    """
    if earlier is None:
        raise ValueError(f"{what} made with settings that are not known; {remedy}")
    old, new = _flat(earlier), _flat(now)
    keys = [*new, *(key for key in old if key not in new)]
    differences = [f"{key} ({old.get(key)}, now {new.get(key)})" for key in keys if old.get(key) != new.get(key)]
    if differences:
        raise ValueError(f"{what} made with settings that differ in {', '.join(differences)}; {remedy}")


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of settings as ``data.width``."""
    flat = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}.{name}": part for name, part in _flat(value).items()})
        else:
            flat[str(key)] = value
    return flat


def plain(value: Any) -> Any:
    """A config's values as YAML has them: lists for tuples."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def build(kind: type[T], values: object, where: str = "") -> T:
    """A (nested) config dataclass from plain mappings, strictly.

    Raises:
        ValueError: a key is unknown or a value has the wrong type; it is named as ``data.width``.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{where or 'the config'} is {shown(values)}; expected a mapping of settings")
    hints = typing.get_type_hints(kind)
    unknown = [f"{where}.{key}".lstrip(".") for key in values if key not in hints]
    if unknown:
        raise ValueError(f"unknown setting {', '.join(unknown)}; known are {', '.join(hints)}")
    built = {key: _convert(hints[key], value, f"{where}.{key}".lstrip(".")) for key, value in values.items()}
    try:
        return kind(**built)
    except ValueError as error:
        raise ValueError(f"{where}.{error}" if where else str(error)) from error


def _convert(hint: Any, value: Any, where: str) -> Any:
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        (hint,) = [option for option in typing.get_args(hint) if option is not type(None)]
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, where)
    if typing.get_origin(hint) is tuple:
        parts = typing.get_args(hint)
        if not isinstance(value, (list, tuple)) or len(value) != len(parts):
            raise ValueError(f"{where} is {shown(value)}; expected {len(parts)} numbers")
        return tuple(_convert(part, item, where) for part, item in zip(parts, value, strict=True))
    if hint is float and type(value) in (int, str):
        # YAML 1.1 takes 1e-3, which has no decimal point, for a text.
        with contextlib.suppress(ValueError, OverflowError):
            value = float(value)
    if type(value) is not hint:
        hint_text = {float: "a number", int: "an integer", str: "a text", bool: "true or false"}[hint]
        raise ValueError(f"{where} is {shown(value)}; expected {hint_text}")
    return value
