"""What fewer dimensions and smaller types of descriptors cost: accuracy, bytes and time of matching, beside the whole.

Dimensions are left out along principal directions of descriptors of other photographs, which keeps products of
descriptors as far as can be. Types are those of ``capsdesc extract --store``.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from capsdesc import CAPSExtractor, match
from capsdesc.evaluation.datasets import read_benchmark
from capsdesc.evaluation.features import FeatureStore
from capsdesc.evaluation.protocols import Settings, evaluate
from capsdesc.images import find_images, read_image, shrink
from capsdesc.io.storage import STORES, Store, packed, unpacked
from capsdesc.types import Float32Array, UInt8Array

BYTES: dict[Store, int] = {"float32": 4, "float16": 2, "int8": 1}


class Extracted:
    """Features of images, each computed once."""

    def __init__(self, weights: str | None) -> None:
        self.extractor = CAPSExtractor(weights, detector="caps", dtype=torch.float32)
        self._kept: dict[int, tuple[Float32Array, Float32Array]] = {}

    def __call__(self, image: UInt8Array, max_keypoints: int) -> tuple[Float32Array, Float32Array]:
        """(N, 2) keypoints and (N, D) descriptors."""
        key = hash((image.tobytes(), max_keypoints))
        if key not in self._kept:
            features = self.extractor.extract(image, max_keypoints)
            self._kept[key] = np.asarray(features.keypoints), np.asarray(features.descriptors)
        return self._kept[key]

    @cached_property
    def has_reliability(self) -> bool:
        """Whether the last coordinate is no part of what a point looks like."""
        return self.extractor.reliability


@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
    """A pipeline whose descriptors have so many dimensions, and went through a type."""

    extracted: Extracted
    directions: Float32Array
    dimensions: int
    dtype: Store

    @property
    def name(self) -> str:
        """As the table calls it."""
        return f"{self.dimensions} x {self.dtype}"

    @property
    def settings(self) -> Mapping[str, Any]:
        """All that the result depends on."""
        fingerprint = self.extracted.extractor.weights.fingerprint
        return {"weights": fingerprint, "dimensions": self.dimensions, "dtype": self.dtype}

    def extract(self, image: UInt8Array, max_keypoints: int) -> tuple[Float32Array, Float32Array]:
        """(N, 2) points and (N, D) descriptors."""
        points, descriptors = self.extracted(image, max_keypoints)
        last = int(self.extracted.has_reliability)
        appearance, reliability = (
            descriptors[:, : len(descriptors.T) - last],
            descriptors[:, len(descriptors.T) - last :],
        )
        if self.dimensions < len(descriptors.T):
            length = np.linalg.norm(appearance, axis=1, keepdims=True)
            appearance = appearance @ self.directions[: self.dimensions - last].T
            appearance = appearance * (length / np.linalg.norm(appearance, axis=1, keepdims=True))
        return points, np.asarray(unpacked(*packed(np.concatenate([appearance, reliability], axis=1), self.dtype)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path, help="whose descriptors give the principal directions")
    parser.add_argument("--oxford", type=Path, required=True, help="the sequences of Oxford affine")
    parser.add_argument("--strecha", type=Path, required=True, help="the three scenes of Strecha")
    parser.add_argument("--weights", help="bundled name, file, folder or hub name (default: the bundled weights)")
    parser.add_argument("--dimensions", type=int, nargs="+", default=[256, 128, 96, 64, 32])
    options = parser.parse_args(arguments)
    extracted = Extracted(options.weights)
    directions = _directions(extracted, options.photographs)
    whole = extracted.extractor.descriptor_dim
    fewer = [count for count in options.dimensions if count < whole]
    rows: list[tuple[int, Store]] = [(whole, dtype) for dtype in BYTES]
    for dtype in (STORES[0], STORES[-1]):
        rows += [(count, dtype) for count in fewer]
    benchmarks = [read_benchmark("oxford", options.oxford), read_benchmark("strecha", options.strecha)]
    print("| dimensions | type | KiB of 2048 | Oxford upright, MMA at 3 px | matches | Strecha, AUC at 5 | matching |")
    print("|---" * 7 + "|")
    settings = Settings(estimator="poselib")
    with tempfile.TemporaryDirectory() as folder:
        for dimensions, dtype in rows:
            method = Stored(extracted, directions, dimensions, dtype)
            store = FeatureStore(Path(folder), max_keypoints=settings.max_keypoints, max_edge=settings.max_edge)
            oxford, strecha = (evaluate(benchmark, method, "own", store, settings).summary for benchmark in benchmarks)
            upright = oxford.get("upright", oxford["all"])
            kib = settings.max_keypoints * dimensions * BYTES[dtype] / 1024
            print(
                f"| {dimensions} | {dtype} | {kib:.0f} | {upright['mma@3']:.3f} | {upright['matches']:.0f} "
                f"| {strecha['all']['auc@5']:.3f} | {1e3 * _seconds(dimensions, settings.max_keypoints):.0f} ms |",
                flush=True,
            )
    return 0


def _directions(extracted: Extracted, photographs: Path) -> Float32Array:
    """(D, D) principal directions of what keypoints look like, the largest first."""
    last = int(extracted.has_reliability)
    moments: Any = 0
    for path in tqdm(find_images(photographs), unit="photograph", disable=None):
        _, descriptors = extracted(shrink(read_image(path), 1024), 1024)
        appearance = descriptors[:, : len(descriptors.T) - last].astype(np.float64)
        moments = moments + appearance.T @ appearance
    return np.asarray(np.linalg.eigh(moments)[1].T[::-1], np.float32)


def _seconds(dimensions: int, count: int) -> float:
    """Median time of matching so many random descriptors."""
    rng = np.random.default_rng(0)
    a, b = (torch.from_numpy(rng.standard_normal((count, dimensions), dtype=np.float32)) for _ in range(2))
    times = []
    for _ in range(7):
        start = time.process_time()
        match(a, b)
        times.append(time.process_time() - start)
    return float(np.median(times))


if __name__ == "__main__":
    sys.exit(main())
