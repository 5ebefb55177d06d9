"""Training pairs as a matcher sees them: keypoints and descriptors of both views, computed once and kept."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor
from tqdm import tqdm

from capsdesc.describe.extractor import CAPSExtractor
from capsdesc.io.files import atomic_path
from capsdesc.matching.candidates import find_candidates
from capsdesc.matching.context import appearance, places
from capsdesc.models.context import Candidates, ContextConfig
from capsdesc.training.dataset import PairDataset, TrainingPair
from capsdesc.training.supervision import homogeneous, transfer


@dataclasses.dataclass(frozen=True, eq=False)
class DescribedPair:
    """What two views look like at their keypoints, and what is known of how they lie to each other.

    Attributes:
        points: (N0, 2) and (N1, 2) pixels, strongest first.
        descriptors: (N0, D) and (N1, D) float16.
        fundamental: (3, 3), zero where the pair is planar.
        homography: (3, 3), the identity where it is not.
        planar: whether the views are of one photograph.
        image_size: width and height of both views.
    """

    points: tuple[Tensor, Tensor]
    descriptors: tuple[Tensor, Tensor]
    fundamental: Tensor
    homography: Tensor
    planar: bool
    image_size: tuple[int, int]


def describe_pairs(pairs: PairDataset, extractor: CAPSExtractor, keypoints: int, folder: Path) -> list[Path]:
    """A file for each pair, in their order; those that are there already stay."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{index:06d}.safetensors" for index in range(len(pairs))]
    missing = [index for index, file in enumerate(files) if not file.is_file()]
    for index in tqdm(missing, desc=f"describing {folder.name}", unit="pair", disable=None if missing else True):
        described = _describe(pairs[index], extractor, keypoints)
        tensors = {
            "points0": described.points[0],
            "points1": described.points[1],
            "descriptors0": described.descriptors[0],
            "descriptors1": described.descriptors[1],
            "fundamental": described.fundamental,
            "homography": described.homography,
            "planar": torch.tensor([described.planar]),
            "image_size": torch.tensor(described.image_size),
        }
        with atomic_path(files[index]) as path:
            path.write_bytes(safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}))
    return files


def read_pair(path: Path) -> DescribedPair:
    """The pair of a file of :func:`describe_pairs`."""
    tensors = safetensors.torch.load(path.read_bytes())
    width, height = tensors["image_size"].tolist()
    return DescribedPair(
        points=(tensors["points0"], tensors["points1"]),
        descriptors=(tensors["descriptors0"], tensors["descriptors1"]),
        fundamental=tensors["fundamental"],
        homography=tensors["homography"],
        planar=bool(tensors["planar"]),
        image_size=(width, height),
    )


def changed(pair: DescribedPair, rng: np.random.Generator) -> DescribedPair:
    """The pair as it might have been: with fewer keypoints, and half of the time its images swapped."""
    most = max(map(len, pair.points))
    count = round(np.exp2(rng.uniform(min(8.0, np.log2(max(2, most))), np.log2(max(2, most)))))
    points, descriptors = ([values[:count] for values in both] for both in (pair.points, pair.descriptors))
    fundamental, homography = pair.fundamental, pair.homography
    if rng.random() < 0.5:
        points, descriptors = points[::-1], descriptors[::-1]
        fundamental, homography = fundamental.T, torch.linalg.inv(homography)
    return DescribedPair(
        (points[0], points[1]), (descriptors[0], descriptors[1]), fundamental, homography, pair.planar, pair.image_size
    )


def candidates_of(
    pair: DescribedPair, config: ContextConfig, mirrored: tuple[bool, bool] = (False, False)
) -> Candidates:
    """The candidates of a pair, their places mirrored along x and y if asked for."""
    sign = torch.tensor([-1.0 if flip else 1.0 for flip in mirrored])
    (looks0, reliabilities0), (looks1, reliabilities1) = (
        appearance(values.float(), config.reliability) for values in pair.descriptors
    )
    where = [sign * places(values, pair.image_size) for values in pair.points]
    return find_candidates(
        (looks0, looks1),
        (reliabilities0, reliabilities1),
        (where[0], where[1]),
        config.candidates,
        config.neighbours,
    )


def candidate_errors(pair: DescribedPair, candidates: Candidates) -> Tensor:
    """(C,) how far candidates are from right, in pixels of image 1.

    Of planar pairs it is the distance to the right place; of posed ones that to the epipolar line, the larger one of
    both images.
    """
    points0, points1 = pair.points[0][candidates.rows], pair.points[1][candidates.columns]
    if pair.planar:
        moved = transfer(points0[None], pair.homography[None])[0]
        distances: Tensor = torch.linalg.vector_norm(moved - points1, dim=-1)
        return distances
    lines1 = homogeneous(points0) @ pair.fundamental.T
    lines0 = homogeneous(points1) @ pair.fundamental
    product = (lines1 * homogeneous(points1)).sum(1).abs()
    lengths = [lines[:, :2].norm(dim=1).clamp_min(1e-12) for lines in (lines0, lines1)]
    return product / torch.minimum(lengths[0], lengths[1])


def _describe(pair: TrainingPair, extractor: CAPSExtractor, keypoints: int) -> DescribedPair:
    height, width = pair.image0.shape[1:]
    features = [
        extractor.extract(np.ascontiguousarray(image.transpose(1, 2, 0)), keypoints)
        for image in (pair.image0, pair.image1)
    ]
    points = [torch.as_tensor(found.keypoints) for found in features]
    descriptors = [torch.as_tensor(found.descriptors).half() for found in features]
    return DescribedPair(
        (points[0], points[1]),
        (descriptors[0], descriptors[1]),
        torch.as_tensor(pair.fundamental, dtype=torch.float32),
        torch.as_tensor(pair.homography, dtype=torch.float32),
        pair.planar,
        (width, height),
    )
