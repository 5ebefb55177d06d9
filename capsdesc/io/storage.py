"""Types in which descriptors are kept in files; in memory they are float32."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

Store: TypeAlias = Literal["float32", "float16", "int8"]
STORES: tuple[Store, ...] = get_args(Store)
"""From exact to small: a half and a quarter of the bytes."""


def packed(descriptors: npt.NDArray[Any], store: Store) -> tuple[npt.NDArray[Any], np.float32 | None]:
    """Descriptors in a type, and for ``"int8"`` the step by which they are multiplied to have their values again.

    Integers are steps of a 127th of the largest value of all of them.

    Raises:
        ValueError: the type is none of :data:`STORES`.
    """
    if store not in STORES:
        raise ValueError(f"store is {store!r}; expected one of {', '.join(STORES)}")
    if store != "int8":
        return descriptors.astype(store, copy=False), None
    step = np.float32(np.abs(descriptors).max(initial=0) / 127) or np.float32(1)
    return np.rint(descriptors / step).astype(np.int8), step


def unpacked(stored: npt.NDArray[Any], step: npt.NDArray[Any] | np.float32 | None) -> npt.NDArray[Any]:
    """Float32 of what :func:`packed` made; what is float64 stays so."""
    values = stored.astype(np.promote_types(stored.dtype, np.float32), copy=False)
    return values if step is None else np.asarray(values * np.float32(step), np.float32)
