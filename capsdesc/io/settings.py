"""Settings in files: read strictly, and never mixed with others in one place."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from capsdesc.checks import shown

T = TypeVar("T")


def refuse_other_settings(stored: Mapping[str, str | None], settings: str, replaced: set[str]) -> None:
    """Refuse to keep what is made with other settings in one place.

    Args:
        stored: by name, the settings that what is kept there was made with; ``None`` where they are not known.
        settings: those of now.
        replaced: names of what will be replaced, and so does not count.

    Raises:
        ValueError: something was made with other settings; it is named, with what differs.
    """
    for name, made_with in stored.items():
        if made_with == settings or name in replaced:
            continue
        what = (
            f"settings that differ in {_difference(made_with, settings)}"
            if made_with is not None
            else "settings that are not known"
        )
        hint = "" if replaced else ", or replace them with --overwrite (overwrite=True)"
        raise ValueError(f"the output holds features of {name} made with {what}; choose another output{hint}")


def _difference(before: str, now: str) -> str:
    try:
        old, new = json.loads(before), json.loads(now)
        return ", ".join(f"{key} ({old.get(key)}, now {value})" for key, value in new.items() if old.get(key) != value)
    except (ValueError, AttributeError):
        return "form"


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
