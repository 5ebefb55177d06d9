"""Pickles of plain values and numpy arrays in: nothing else is made of them, so that no code in them runs."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

# What pickled arrays are put together with, by the names of numpy 1 and 2, and bytes in pickles of protocol 2.
_CONSTRUCTORS = frozenset(
    [("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")]
    + [
        (f"numpy.{core}.{module}", name)
        for core in ("core", "_core")
        for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
    ]
)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) not in _CONSTRUCTORS:
            raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}, which could run code")
        return super().find_class(module_name, global_name)


def load_arrays(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The named values of an ``.npz`` archive, its arrays of objects too, or of a pickled ``dict`` under that name.

    Args:
        path: the file. LoFTR's scenes of MegaDepth are called ``.npz`` and are a pickle.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is neither, is damaged, or holds more than plain values and arrays.
    """
    content = Path(path).read_bytes()
    try:
        if zipfile.is_zipfile(io.BytesIO(content)):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                return {name.removesuffix(".npy"): _array(archive.read(name)) for name in archive.namelist()}
        values = _Unpickler(io.BytesIO(content)).load()
    # Damaged bytes make pickle and numpy fail with nearly any error there is.
    except Exception as error:
        raise ValueError(f"{os.fspath(path)} is no archive of arrays: {error}") from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ValueError(f"{os.fspath(path)} holds a {type(values).__name__}; expected arrays by their names")
    return values


def load_array(path: str | os.PathLike[str]) -> npt.NDArray[Any]:
    """The array of an ``.npy`` file, of objects too.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no array, is damaged, or holds more than plain values.
    """
    content = Path(path).read_bytes()
    try:
        return _array(content)
    except Exception as error:
        raise ValueError(f"{os.fspath(path)} is no array: {error}") from error


def _array(content: bytes) -> npt.NDArray[Any]:
    """The array of an ``.npy`` file; numpy itself unpickles objects without asking what they are."""
    file = io.BytesIO(content)
    version = npy.read_magic(file)
    shape, _, dtype = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(file)
    if not dtype.hasobject:
        array: npt.NDArray[Any] = np.load(io.BytesIO(content))
        return array
    objects = _Unpickler(file).load()
    if not isinstance(objects, np.ndarray) or objects.shape != shape:
        raise ValueError(f"expected an array of shape {shape}")
    return objects
