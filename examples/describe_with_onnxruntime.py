"""Descriptors at points of one's own without torch: ONNX Runtime, NumPy and OpenCV are enough.

The file is made once, where capsdesc is installed, by ``capsdesc export --onnx caps.onnx``.

python examples/describe_with_onnxruntime.py caps.onnx examples/data/relief_0.jpg 320,240 100.5,80
"""

from __future__ import annotations

import argparse
import json

import cv2
import numpy as np
import onnxruntime


def describe(session: onnxruntime.InferenceSession, image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Descriptors at points.

    Args:
        session: of an exported network.
        image: (H, W, 3) uint8 RGB.
        points: (N, 2) x, y in pixels, (0, 0) the centre of the top-left one.

    Returns:
        (N, D) float32, to be compared by Euclidean distance.
    """
    properties = session.get_modelmeta().custom_metadata_map
    config = json.loads(properties["config"])
    pixels = np.ascontiguousarray(image.transpose(2, 0, 1)[None], dtype=np.float32) / 255
    samples = {}
    outputs = [output.name for output in session.get_outputs()]
    for name, values in zip(outputs, session.run(outputs, {"image": pixels}), strict=True):
        stride = int(properties["coarse_stride" if name == "coarse" else "fine_stride"])
        cells = points / pixels_per_cell(values.shape, image.shape, stride, config["sampling"])
        samples[name] = sample(values[0], cells)
    descriptors: np.ndarray = np.hstack([samples["coarse"], samples["fine"]])
    if config["normalize"]:
        descriptors = np.hstack([unit_length(samples["coarse"]), unit_length(samples["fine"])]) * 0.5**0.5
    if config["reliability"]:
        reliability = 1 / (1 + np.exp(-samples["reliability"]))
        descriptors = np.hstack([descriptors * np.sqrt(reliability), np.sqrt(1 - reliability)])
    return descriptors


def pixels_per_cell(
    map_shape: tuple[int, ...], image_shape: tuple[int, ...], stride: int, sampling: str
) -> tuple[float, float]:
    """How far the cells of a map are apart, along x and y."""
    if sampling == "stride":
        return stride, stride
    y, x = (
        (pixels - 1) / max(cells - 1, 1) or 1.0 for pixels, cells in zip(image_shape[:2], map_shape[2:], strict=True)
    )
    return x, y


def sample(values: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """(N, C) values of a (C, h, w) map between its cells, bilinear; beyond them the border's."""
    last = np.array(values.shape[:0:-1]) - 1
    cells = cells.clip(0, last)
    x0, y0 = np.minimum(cells.astype(int), np.maximum(last - 1, 0)).T
    x1, y1 = np.minimum([x0 + 1, y0 + 1], last[:, None])
    right, down = (cells - np.column_stack([x0, y0])).astype(np.float32).T
    top = values[:, y0, x0] * (1 - right) + values[:, y0, x1] * right
    bottom = values[:, y1, x0] * (1 - right) + values[:, y1, x1] * right
    samples: np.ndarray = (top * (1 - down) + bottom * down).T
    return samples


def unit_length(rows: np.ndarray) -> np.ndarray:
    unit: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(min=1e-12)
    return unit


def point(text: str) -> list[float]:
    x, y = text.split(",")
    return [float(x), float(y)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Describe points of an image without torch.")
    parser.add_argument("network", help="file that capsdesc export wrote")
    parser.add_argument("image")
    parser.add_argument("points", nargs="+", type=point, metavar="X,Y")
    parser.add_argument("-o", "--output", help=".npy file for the descriptors")
    options = parser.parse_args()

    image = cv2.imread(options.image, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise SystemExit(f"cannot read {options.image}")
    session = onnxruntime.InferenceSession(options.network, providers=["CPUExecutionProvider"])
    points = np.array(options.points)
    descriptors = describe(session, cv2.cvtColor(image, cv2.COLOR_BGR2RGB), points)
    if options.output:
        np.save(options.output, descriptors)
    print(f"{len(descriptors)} descriptors of {descriptors.shape[1]} values")
    print("distances", np.round(np.linalg.norm(descriptors[:, None] - descriptors, axis=2), 3), sep="\n")


if __name__ == "__main__":
    main()
