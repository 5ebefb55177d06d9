"""Range checks of the settings."""

from __future__ import annotations

import math
from typing import Any


def check_numbers(config: Any, *names: str, least: float = -math.inf, most: float = math.inf) -> None:
    """Refuse settings that are not finite or out of range.

    Args:
        config: a config dataclass.
        names: which of its settings; without any, all that are numbers.
        least: smallest value.
        most: largest value.

    Raises:
        ValueError: a setting is out of range; it is named.
    """
    values = {name: value for name, value in vars(config).items() if type(value) in (int, float)}
    for name in names or values:
        value = values[name]
        if not (math.isfinite(value) and least <= value <= most):
            limits = f"at least {least:g}" if most == math.inf else f"{least:g} to {most:g}"
            raise ValueError(f"{name} is {value}; expected {limits}")
