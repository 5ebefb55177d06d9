"""The paper's claims, one by one, on data at hand and within an hour of one core.

Its losses, and the same without one of their parts, go on from the bundled model on posed pairs of a scene that it has
not seen, at equal cost. Descriptors are compared with SIFT and with what ImageNet teaches on Oxford affine and Strecha.
The search of query points, coarse, fine and both, and what its standard deviation tells, is judged on held-out scenes.
Killed, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor, nn
from tqdm import tqdm

from capsdesc.describe.search import coarse_to_fine, search
from capsdesc.evaluation.datasets import Benchmark, read_benchmark
from capsdesc.evaluation.features import FeatureStore
from capsdesc.evaluation.methods import Method, get_methods, get_shared_detector, weights_hash
from capsdesc.evaluation.peers import MatchedFeatures
from capsdesc.evaluation.protocols import Settings, evaluate
from capsdesc.images import to_tensor
from capsdesc.io.files import atomic_path
from capsdesc.keypoints import Keypoints
from capsdesc.matching import match
from capsdesc.models import DenseFeatures, FeatureMap, ModelConfig, inverse_temperatures
from capsdesc.models.maps import cell_scale
from capsdesc.models.network import normalize_image
from capsdesc.models.resnet import ResNetEncoder
from capsdesc.training.batches import load_batches, pair_features
from capsdesc.training.config import TrainingConfig
from capsdesc.training.dataset import PairDataset
from capsdesc.training.start import read_scenes, starting_network
from capsdesc.training.supervision import match_error
from capsdesc.types import Float32Array, Matches, UInt8Array
from capsdesc.weights import resolve

# Posed pairs and the paper's losses alone.
PAPER = ("data.planar_share=0", "loss.contrastive=0", "loss.matching=0", "loss.reliability=0", "loss.keypoints=0")
# The changes to that of each run.
RUNS: dict[str, tuple[str, ...]] = {
    "the paper's losses": (),
    "no certainty weighting": ("loss.certainty=false",),
    "no cycle loss": ("loss.cycle_coarse=0", "loss.cycle_fine=0"),
    "no epipolar loss": ("loss.epipolar_coarse=0", "loss.epipolar_fine=0"),
    "the paper's losses, another seed": ("seed=1",),
}
MODEL = "the bundled model"
RIGHT_PX = 3.0


@dataclasses.dataclass(frozen=True, eq=False)
class Half:
    """One of the two maps of a descriptor by itself."""

    name: str
    features: Method
    dimensions: slice

    @property
    def settings(self) -> Mapping[str, Any]:
        """All that its result depends on."""
        return {**self.features.settings, "dimensions": str(self.dimensions)}

    def match(self, features0: MatchedFeatures, features1: MatchedFeatures) -> Matches:
        """Mutual nearest neighbours."""
        return match(*(features.descriptors[:, self.dimensions] for features in (features0, features1)))


@dataclasses.dataclass(frozen=True, eq=False)
class ImageNetFeatures:
    """What training starts from: the encoder's features at stride 4 and 16, each of unit length, concatenated."""

    encoder: nn.Module
    name: str = "ImageNet features"

    @property
    def settings(self) -> Mapping[str, Any]:
        """All that its result depends on."""
        return {"weights": weights_hash(self.encoder.state_dict()), "torch": torch.__version__}

    @torch.inference_mode()
    def describe(self, image: UInt8Array, keypoints: Keypoints) -> Float32Array:
        """(N, D) descriptors of (H, W, 3) RGB."""
        pixels = normalize_image(to_tensor(image)[None])
        size = (image.shape[1], image.shape[0])
        _, stride4, _, stride16 = self.encoder(pixels)
        points = torch.as_tensor(keypoints.points)[None].float()
        maps = (
            FeatureMap(values, cell_scale(values, size, stride, "stride"))
            for values, stride in ((stride4, 4), (stride16, 16))
        )
        samples = [nn.functional.normalize(feature_map.sample(points), dim=-1) for feature_map in maps]
        return np.asarray(torch.cat(samples, dim=-1)[0])


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, measure and print the tables; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", nargs="+", type=Path, help="to go on with, as capsdesc-train takes them")
    parser.add_argument("--validation", nargs="+", type=Path, required=True, help="scenes to judge the search on")
    parser.add_argument("--encoder", required=True, help="a ResNet-18 of ImageNet, as capsdesc-train takes it")
    parser.add_argument("--oxford", type=Path, required=True, help="the sequences of Oxford affine")
    parser.add_argument("--strecha", type=Path, required=True, help="the three scenes of Strecha")
    parser.add_argument("--detectors", nargs="+", default=["sift", "caps"], help="whose keypoints (sift caps)")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--max-edge", type=int, default=640, help="of the images of the benchmarks (%(default)s)")
    parser.add_argument("--pairs", type=int, default=64, help="held-out pairs (%(default)s)")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for the runs and tables.md")
    options = parser.parse_args(arguments)
    models = {name: options.out / name.replace(" ", "-").replace(",", "").replace("'", "") for name in RUNS}
    for name, model in models.items():
        if not (model / "config.json").is_file():
            print(f"== {name}", flush=True)
            _train(options, model, RUNS[name])
    tables = "\n".join([_gains(models), _search(options), _descriptors(options)])
    with atomic_path(options.out / "tables.md") as path:
        path.write_text(tables, encoding="utf-8")
    print(tables)
    return 0


def _train(options: argparse.Namespace, model: Path, changes: Sequence[str]) -> None:
    command = [sys.executable, "-m", "capsdesc.training", *map(str, options.scenes), "-o", str(model)]
    settings = [f"validation_pairs={options.pairs}", f"validate_every={options.steps}", "optimizer.learning_rate=5e-4"]
    settings += ["checkpoint_every=20", *PAPER, *changes]
    subprocess.run([*command, "--steps", str(options.steps), "--no-tensorboard", "--set", *settings], check=True)


def _gains(models: Mapping[str, Path]) -> str:
    """Held-out pairs of the scenes that runs went on with, before and after; another seed holds out others."""
    lines = ["| | search: median epipolar error, px | within 3 px | right matches a pair | of all |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for name, model in models.items():
        rows = [json.loads(line) for line in (model / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        judged = [row["validation"] for row in rows if "validation" in row]
        cells = []
        for v in (judged[0], judged[-1]):
            right = v["matches"] * v["match_precision"]
            cells.append(
                [f"{v['median_px']:.2f}", f"{v['within_3px']:.3f}", f"{right:.1f}", f"{v['match_precision']:.3f}"]
            )
        lines.append(f"| {name} | {' | '.join(' to '.join(both) for both in zip(*cells, strict=True))} |")
    return "\n".join(lines) + "\n"


def _descriptors(options: argparse.Namespace) -> str:
    """Descriptors at the same keypoints, for each detector."""
    scenes = [scene for path in options.scenes for scene in read_scenes(path, TrainingConfig.paper().data)]
    photographs = [posed.path for scene in scenes for posed in scene.photographs]
    start = starting_network(ModelConfig.paper("resnet18"), photographs, encoder=options.encoder).eval()
    (ours,) = get_methods(["caps-plain"])
    coarse = resolve(None).config.coarse_dim
    methods: list[Method] = [*get_methods(["rootsift"]), ImageNetFeatures(_EncoderAlone(start)), ours]
    for half, dimensions in (("coarse", slice(coarse)), ("fine", slice(coarse, None))):
        methods.append(Half(f"{MODEL}: the {half} half alone", ours, dimensions))
    benchmarks = [read_benchmark("oxford", options.oxford), read_benchmark("strecha", options.strecha)]
    lines = ["| descriptor | keypoints | Oxford upright, MMA at 3 px | matches | Strecha, AUC at 5 / 10 degrees |"]
    lines.append("| --- | --- | --- | --- | --- |")
    names = {"rootsift": "RootSIFT", "caps-plain": MODEL}
    for detector in options.detectors:
        settings = Settings(max_edge=options.max_edge, detector=detector, estimator="poselib")
        store = FeatureStore(
            options.out / "features",
            max_keypoints=settings.max_keypoints,
            max_edge=settings.max_edge,
            detector=get_shared_detector(detector),
        )
        for method in methods:
            if detector != "sift" and getattr(method, "needs_frames", False):
                continue
            figures = _figures(benchmarks, method, store, settings)
            lines.append(f"| {names.get(method.name, method.name)} | {detector} | {figures} |")
    return "\n".join(lines) + "\n"


class _EncoderAlone(nn.Module):
    """The encoder of the paper's network, which that extends."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        assert isinstance(self.network, ResNetEncoder)
        return ResNetEncoder.forward(self.network, image)


def _figures(benchmarks: Sequence[Benchmark], method: Method, store: FeatureStore, settings: Settings) -> str:
    oxford, strecha = (evaluate(benchmark, method, "shared", store, settings).summary for benchmark in benchmarks)
    upright, every = oxford.get("upright", oxford["all"]), strecha["all"]
    return f"{upright['mma@3']:.3f} | {upright['matches']:.0f} | {every['auc@5']:.3f} / {every['auc@10']:.3f}"


def _search(options: argparse.Namespace) -> str:
    """Where the bundled model finds query points of held-out pairs, and what the standard deviation tells of it."""
    lines = ["| searched on | median epipolar error, px | within 3 px | the surer half | the rest | AUROC |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    data = dataclasses.replace(TrainingConfig().data, augmentation=None, planar_share=0.0)
    scenes = [scene for path in options.validation for scene in read_scenes(path, data)]
    pairs = PairDataset(scenes, [], data, seed=2**32 - 1, length=options.pairs)
    weights = resolve(None)
    for where, (errors, stds) in _searched(weights.build(), weights.config, pairs).items():
        right = errors <= RIGHT_PX
        surer = stds <= np.median(stds)
        shares = " | ".join(f"{part.mean():.3f}" for part in (right, right[surer], right[~surer]))
        lines.append(f"| {where} | {np.median(errors):.2f} | {shares} | {_auroc(-stds, right):.3f} |")
    return "\n".join(lines) + "\n"


@torch.no_grad()
def _searched(network: nn.Module, config: ModelConfig, pairs: PairDataset) -> dict[str, tuple[Any, Any]]:
    """Errors and standard deviations in pixels of all query points, by where they are searched."""
    cpu = torch.device("cpu")
    temperatures = inverse_temperatures(network)
    found: dict[str, list[tuple[Tensor, Tensor]]] = {"the coarse map": [], "the fine map": [], "coarse to fine": []}
    for batch in tqdm(load_batches(pairs, 4, range(-(-len(pairs) // 4)), 0, cpu), unit="batch", disable=None):
        features: tuple[DenseFeatures, DenseFeatures] = pair_features(network, config, batch, cpu, torch.float32)
        points, valid = batch.supervision.points, batch.supervision.valid
        coarse, both = coarse_to_fine(points, *features, temperatures)
        fine = search(features[0].sample(points)[1], features[1].fine, temperatures[1])
        for name, answer in zip(found, (coarse, fine, both), strict=True):
            error = match_error(answer.expected, batch.supervision)[valid]
            found[name].append((error, answer.std.square().mean(-1).sqrt()[valid]))
    return {
        name: (torch.cat([error for error, _ in parts]).numpy(), torch.cat([std for _, std in parts]).numpy())
        for name, parts in found.items()
    }


def _auroc(scores: Any, right: Any) -> float:
    """The chance that a right answer scores higher than a wrong one (Mann and Whitney)."""
    ranks, count = rankdata(scores), int(right.sum())
    others = len(right) - count
    return float((ranks[right].sum() - count * (count + 1) / 2) / max(1, count * others))


if __name__ == "__main__":
    sys.exit(main())
