"""What 8-bit integers cost and save: exported files in float32 and in 8-bit integers, at the same SIFT keypoints."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from capsdesc.bench.timing import measure
from capsdesc.evaluation.datasets import read_benchmark
from capsdesc.evaluation.features import FeatureStore
from capsdesc.evaluation.protocols import Settings, evaluate
from capsdesc.images import find_images, read_image, shrink
from capsdesc.keypoints import Keypoints
from capsdesc.models import DenseFeatures, FeatureMap
from capsdesc.models.network import COARSE_STRIDE, FINE_STRIDE
from capsdesc.onnx import export_onnx, quantize_onnx
from capsdesc.types import Float32Array, UInt8Array


@dataclasses.dataclass(frozen=True, eq=False)
class Exported:
    """A file of a network with strided sampling, at work in ONNX Runtime."""

    name: str
    path: Path
    threads: int

    @property
    def settings(self) -> Mapping[str, Any]:
        """All that the result depends on."""
        digest = hashlib.sha256(self.path.read_bytes()).hexdigest()[:16]
        return {"file": digest, "onnxruntime": onnxruntime.__version__}

    def load(self) -> Any:
        """The runtime's session."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        return onnxruntime.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])

    def describe(self, image: UInt8Array, keypoints: Keypoints) -> Float32Array:
        """(N, D) descriptors of (H, W, 3) RGB."""
        names = ["coarse", "fine", "reliability"]
        coarse, fine, reliability = (torch.from_numpy(values) for values in self.load().run(names, _input(image)))
        dense = DenseFeatures(
            coarse=FeatureMap(coarse, (COARSE_STRIDE, COARSE_STRIDE)),
            fine=FeatureMap(fine, (FINE_STRIDE, FINE_STRIDE)),
            image_size=(image.shape[1], image.shape[0]),
            normalized=True,
            reliability=FeatureMap(reliability, (FINE_STRIDE, FINE_STRIDE)),
        )
        return np.asarray(dense.describe(torch.as_tensor(keypoints.points)[None].float())[0])


def _input(image: UInt8Array) -> dict[str, Float32Array]:
    return {"image": np.ascontiguousarray(image.transpose(2, 0, 1)[None] / np.float32(255), dtype=np.float32)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Export, measure and print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path, help="to calibrate on")
    parser.add_argument("--oxford", type=Path, required=True, help="the sequences of Oxford affine")
    parser.add_argument("--strecha", type=Path, required=True, help="the three scenes of Strecha")
    parser.add_argument("--weights", nargs="+", default=["compact"], help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of the runtime (default: %(default)s)")
    options = parser.parse_args(arguments)
    benchmarks = [read_benchmark("oxford", options.oxford), read_benchmark("strecha", options.strecha)]
    image = _input(shrink(read_image(benchmarks[1].views()[0].path), 640))
    settings = Settings(estimator="poselib")
    print("| file | MB | ms at 640 px | Oxford upright, MMA at 3 px | matches | Strecha, AUC at 5 degrees |")
    print("|---" * 6 + "|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = FeatureStore(folder, max_keypoints=settings.max_keypoints, max_edge=settings.max_edge)
        for weights in options.weights:
            files = [folder / f"{Path(weights).name}_{kind}.onnx" for kind in ("float32", "int8")]
            export_onnx(files[0], weights)
            quantize_onnx(files[0], files[1], find_images(options.photographs))
            methods = [Exported(file.stem.replace("_", ", "), file, options.threads) for file in files]
            calls = {method.name: partial(method.load().run, None, image) for method in methods}
            seconds = measure(calls, repeats=9, warmup=2)
            for method in methods:
                oxford, strecha = (evaluate(each, method, "shared", store, settings).summary for each in benchmarks)
                upright = oxford.get("upright", oxford["all"])
                print(
                    f"| {method.name} | {method.path.stat().st_size / 1e6:.1f} | "
                    f"{1e3 * float(np.median(seconds[method.name])):.0f} | {upright['mma@3']:.3f} "
                    f"| {upright['matches']:.0f} | {strecha['all']['auc@5']:.3f} |",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
