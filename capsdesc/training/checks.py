"""Range checks of the settings."""

from __future__ import annotations

import dataclasses
import math
import sys
from typing import Any

from capsdesc.io.text import shown


def check_numbers(config: Any, *names: str, least: float = -math.inf, most: float = math.inf) -> None:
    """Refuse settings that are not finite or out of range.

    Args:
        config: a config dataclass.
        names: which of its settings; without any, all whose default is a number.
        least: smallest value.
        most: largest value.

    Raises:
        TypeError: a setting is no number.
        ValueError: a setting is out of range; it is named.
    """
    for name in names or [field.name for field in dataclasses.fields(config) if type(field.default) in (int, float)]:
        value = getattr(config, name)
        if type(value) not in (int, float):
            raise TypeError(f"{name} is {shown(value)}; expected an int or a float")
        # An integer may be too large for math.isfinite.
        if not (-sys.float_info.max <= value <= sys.float_info.max and least <= value <= most):
            limits = f"at least {least:g}" if most == math.inf else f"{least:g} to {most:g}"
            raise ValueError(f"{name} is {value}; expected {limits}")


def check_range(name: str, limits: tuple[float, float], *, distinct: bool = False) -> None:
    """Refuse what are not two positive finite numbers, the smaller first.

    Args:
        name: of the setting.
        limits: its value.
        distinct: whether the two must not be the same.

    Raises:
        TypeError: they are no numbers, or not two.
        ValueError: they are out of order or out of range.
    """
    if not isinstance(limits, (tuple, list)) or len(limits) != 2 or not {*map(type, limits)} <= {int, float}:
        raise TypeError(f"{name} is {shown(limits)}; expected two numbers")
    if not 0 < limits[0] <= limits[1] <= sys.float_info.max or (distinct and limits[0] == limits[1]):
        raise ValueError(f"{name} is {shown(limits)}; expected the smaller of two positive numbers first")
