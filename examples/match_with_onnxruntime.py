"""Matches in context without torch: ONNX Runtime, NumPy and SciPy are enough.

The files are made once, where capsdesc is installed: ``capsdesc export --onnx matcher.onnx --matcher`` and
``capsdesc extract photographs/ -o features/``.

python examples/match_with_onnxruntime.py matcher.onnx features/left.jpg.npz features/right.jpg.npz
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime
from scipy.spatial import cKDTree


def match(
    session: onnxruntime.InferenceSession,
    features0: Mapping[str, Any],
    features1: Mapping[str, Any],
    min_score: float = 0.85,
) -> tuple[np.ndarray, np.ndarray]:
    """Matches of two images.

    Args:
        session: of an exported matcher.
        features0: ``keypoints`` (N, 2), ``descriptors`` (N, D) and ``image_size`` of the first image, and of which
            ``model`` they are, as `capsdesc extract` writes them.
        features1: of the second. The other way round, scores differ a little; capsdesc decides by itself which of two
            images is the first.
        min_score: a match has at least this score.

    Returns:
        (M, 2) indices and (M,) scores.
    """
    config = json.loads(session.get_modelmeta().custom_metadata_map["config"])
    sides = [features0, features1]
    for side in sides:
        if str(side["model"]) != config["descriptor"]:
            raise ValueError(f"features of model {side['model']}; the matcher is for those of {config['descriptor']}")
    if min(len(side["keypoints"]) for side in sides) == 0:
        return np.zeros((0, 2), int), np.zeros(0, np.float32)
    (looks0, reliable0), (looks1, reliable1) = (appearance(side["descriptors"], config) for side in sides)
    similarity = looks0 @ looks1.T
    places = [place(side["keypoints"], side["image_size"]) for side in sides]

    # Candidates: the nearest few of each keypoint in the other image, in either direction, each pair once.
    nearest = [(-matrix).argsort(axis=1, kind="stable") for matrix in (similarity, similarity.T)]
    few = [ranks[:, : config["candidates"]] for ranks in nearest]
    forth = np.stack(np.broadcast_arrays(np.arange(len(looks0))[:, None], few[0]), axis=-1).reshape(-1, 2)
    back = np.stack(np.broadcast_arrays(few[1], np.arange(len(looks1))[:, None]), axis=-1).reshape(-1, 2)
    pairs = np.unique(np.concatenate([forth, back]), axis=0)
    i, j = pairs.T

    best0, above0 = against_rivals(similarity, nearest[0], i, j)
    best1, above1 = against_rivals(similarity.T, nearest[1], j, i)
    known = [similarity[i, j], 4 * above0, 4 * above1, best0, best1, best0 & best1, reliable0[i], reliable1[j]]
    anchors = np.flatnonzero(best0 & best1)
    near, present = zip(
        *(around(places[k], own, anchors, config["neighbours"]) for k, own in enumerate((i, j))), strict=True
    )
    given = {
        "evidence": np.stack(known, axis=1).astype(np.float32),
        "places": np.stack([places[0][i], places[1][j]]).astype(np.float32),
        "anchors": anchors.astype(np.int64),
        "near": np.stack(near).astype(np.int64),
        "present": np.stack(present),
    }
    (scores,) = session.run(["scores"], given)

    # A match is the best of both of its keypoints.
    kept = scores >= min_score
    for own in (i, j):
        highest = np.zeros(own.max() + 1, np.float32)
        np.maximum.at(highest, own, scores)
        kept &= scores == highest[own]
    return pairs[kept], scores[kept]


def appearance(descriptors: np.ndarray, config: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """What keypoints look like, of unit length, and how reliable that is."""
    reliable = np.ones(len(descriptors), np.float32)
    if config["reliability"] and descriptors.shape[1] == config["dimensions"]:
        reliable = (1 - descriptors[:, -1] ** 2).clip(0, 1)
        descriptors = descriptors[:, :-1]
    return descriptors / np.linalg.norm(descriptors, axis=1, keepdims=True).clip(min=1e-12), reliable


def place(keypoints: np.ndarray, image_size: np.ndarray) -> np.ndarray:
    """Pixels to -1..1 along the longer edge."""
    width, height = image_size
    placed: np.ndarray = (keypoints - np.array([width - 1, height - 1]) / 2) / (max(width, height) / 2)
    return placed


def against_rivals(
    similarity: np.ndarray, nearest: np.ndarray, own: np.ndarray, other: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Whether each candidate is the nearest of its keypoint, and by how much it beats the strongest rival."""
    best = nearest[own, 0] == other
    rival = np.where(best, nearest[own, min(1, nearest.shape[1] - 1)], nearest[own, 0])
    return best, similarity[own, other] - similarity[own, rival]


def around(places: np.ndarray, own: np.ndarray, anchors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The anchors nearest to each candidate in an image, without those of the very same keypoint."""
    distances, near = cKDTree(places[own[anchors]]).query(places[own], k=range(1, count + 2))
    absent = ~np.isfinite(distances)
    near[absent] = 0
    absent |= own[anchors][near] == own[:, None]
    order = absent.argsort(axis=1, kind="stable")[:, :count]
    return np.take_along_axis(near, order, axis=1), ~np.take_along_axis(absent, order, axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Match features of two images in context without torch.")
    parser.add_argument("matcher", help="file that capsdesc export --matcher wrote")
    parser.add_argument("features", nargs=2, help=".npz file that capsdesc extract wrote")
    parser.add_argument("-o", "--output", help=".npz file for indices and scores")
    options = parser.parse_args()

    session = onnxruntime.InferenceSession(options.matcher, providers=["CPUExecutionProvider"])
    features = [dict(np.load(path)) for path in options.features]
    indices, scores = match(session, features[0], features[1])
    if options.output:
        np.savez(options.output, indices=indices, scores=scores)
    print(f"{len(indices)} matches of {len(features[0]['keypoints'])} and {len(features[1]['keypoints'])} keypoints")


if __name__ == "__main__":
    main()
