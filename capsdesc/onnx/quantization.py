"""ONNX files that compute in 8-bit integers, calibrated on photographs."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from capsdesc.images import read_image, shrink
from capsdesc.io.files import atomic_path
from capsdesc.onnx.export import check_packages, finish
from capsdesc.types import Float32Array

CALIBRATION_EDGE = 480
"""Photographs are calibrated on at this longer edge in pixels: what their maps hold hardly depends on it."""
MAX_PHOTOGRAPHS = 24
"""No more of them are used: ranges of values settle after few, and all maps of all of them are held in memory."""


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How alike the maps in 8-bit integers are to those in floating point, over the photographs.

    Attributes:
        coarse: mean cosine of the features of the coarse map.
        fine: likewise of the fine map.
    """

    coarse: float
    fine: float


def quantize_onnx(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    photographs: Sequence[str | os.PathLike[str]],
    *,
    progress: bool = False,
) -> Agreement:
    """Make a file of :func:`capsdesc.onnx.export_onnx` compute its convolutions in 8-bit integers.

    Static quantisation by ONNX Runtime: activations in unsigned 8-bit integers over the ranges that the photographs
    show, weights in signed ones with a range for each channel. Inputs, outputs, metadata and all between convolutions
    stay as they are. It is faster where the processor has instructions for it (VNNI and alike).

    Args:
        source: the file in floating point.
        output: the file to write; its folder must exist. It is written whole or not at all.
        photographs: image files, of the kind that will be described; a dozen does, and of more than
            :data:`MAX_PHOTOGRAPHS` some evenly spaced ones are taken.
        progress: whether to show progress on standard error, where that is a terminal.

    Returns:
        How alike its maps are to those of ``source``.

    Raises:
        ImportError: onnx or onnxruntime is not installed.
        OSError: a file cannot be read or written.
        ValueError: there is no photograph, or one cannot be decoded.
    """
    check_packages()
    import onnx
    import onnxruntime
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    if not photographs:
        raise ValueError("there is no photograph to calibrate 8-bit integers on; give some of the kind to be described")
    chosen = np.unique(np.linspace(0, len(photographs) - 1, MAX_PHOTOGRAPHS).round().astype(int))
    images = [_image(photographs[number]) for number in chosen]

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(tqdm(images, desc="calibrate", unit="image", disable=None if progress else True))

        def get_next(self) -> dict[str, Float32Array] | None:
            image = next(self._left, None)
            return None if image is None else {"image": image}

    with atomic_path(output) as temporary, tempfile.TemporaryDirectory() as folder, _quietly():
        prepared = Path(folder) / "prepared.onnx"
        # Sizes are free, which its symbolic inference of shapes does not get through.
        quant_pre_process(os.fspath(source), prepared, skip_symbolic_shape=True)
        quantization.quantize_static(
            prepared,
            temporary,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            op_types_to_quantize=["Conv"],
        )
        properties = {entry.key: entry.value for entry in onnx.load(source, load_external_data=False).metadata_props}
        before = onnxruntime.InferenceSession(os.fspath(source), providers=["CPUExecutionProvider"])
        properties["computes"] = "8-bit integers"
        return finish(temporary, properties, lambda after: _agreement(before, after, images))


def _image(path: str | os.PathLike[str]) -> Float32Array:
    """(1, 3, H, W) RGB in 0..1."""
    pixels = shrink(read_image(path), CALIBRATION_EDGE).transpose(2, 0, 1)[None]
    return np.ascontiguousarray(pixels / np.float32(255), dtype=np.float32)


def _agreement(before: Any, after: Any, images: Sequence[Float32Array]) -> Agreement:
    names = ["coarse", "fine"]
    cosines: dict[str, list[Float32Array]] = {name: [] for name in names}
    for image in images:
        for name, a, b in zip(
            names, *(session.run(names, {"image": image}) for session in (before, after)), strict=True
        ):
            lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
            cosines[name].append(((a * b).sum(axis=1) / np.maximum(lengths, 1e-12)).ravel())
    return Agreement(*(float(np.concatenate(cosines[name]).mean()) for name in names))


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the runtime's advice on how else to quantise, which it logs to the root logger."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)
