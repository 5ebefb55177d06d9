"""Which images of many may show the same things, so that not each must be matched with each.

An image is described as a whole by VLAD: for each of a few visual words, clusters of the local descriptors, the sum of
the differences between the word and the descriptors nearest to it (Jegou et al., CVPR 2010), each of unit length
(Arandjelovic and Zisserman, CVPR 2013).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.cluster.vq import kmeans2, vq
from tqdm import tqdm

from capsdesc.io.npz import load_features
from capsdesc.pipelines.stores import NpzFolder
from capsdesc.types import Array

WORDS = 64
_ITERATIONS = 10
_TINY = np.float32(1e-12)


def visual_words(descriptors: Array, count: int = WORDS) -> Array:
    """Cluster local descriptors of many images.

    Args:
        descriptors: (N, D) float.
        count: how many words; fewer come back if there are fewer descriptors.

    Returns:
        (count, D) words, the same on every run.
    """
    seeds = np.random.default_rng(0).permutation(len(descriptors))[:count]
    if len(seeds) == 0:
        return descriptors[:0]
    words, _ = kmeans2(descriptors, descriptors[seeds], _ITERATIONS, minit="matrix")
    return np.asarray(words)


def describe_globally(descriptors: Array, words: Array) -> Array:
    """The VLAD descriptor of an image.

    Args:
        descriptors: (N, D) local descriptors.
        words: (K, D), see :func:`visual_words`.

    Returns:
        (K D,) float32 of unit length; zeros for an image without descriptors.
    """
    sums = np.zeros(words.shape, dtype=np.float32)
    if len(descriptors) and len(words):
        nearest, _ = vq(descriptors, words)
        np.add.at(sums, nearest, descriptors - words[nearest])
    # Each part of unit length, then the whole.
    parts = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), _TINY)
    return np.asarray(parts.ravel() / np.maximum(np.linalg.norm(parts), _TINY))


def nearest_pairs(images: Sequence[Array], neighbours: int) -> list[tuple[int, int]]:
    """Each image with the images most similar to it.

    Args:
        images: for each image its (V, G) global descriptors under several views, the upright one first. Two images are
            as similar as the upright view of the one is to the best view of the other.
        neighbours: how many others each image is paired with, at least; it may be among the nearest of more.

    Returns:
        Pairs (i, j) of indices, i < j, ascending.
    """
    upright = np.array([views[0] for views in images])
    similarity = np.array([(upright @ views.T).max(axis=1) for views in images])
    similarity = np.maximum(similarity, similarity.T)
    np.fill_diagonal(similarity, -np.inf)
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, : min(neighbours, len(images) - 1)]
    return sorted({(min(i, j), max(i, j)) for i, row in enumerate(nearest.tolist()) for j in row})


# Local descriptors that visual words are made of.
_WORD_SAMPLES = 50_000


def retrieved_pairs(names: Sequence[str], sink: NpzFolder, neighbours: int) -> list[tuple[str, str]]:
    """Names of the images that may show the same things, by the features in a folder."""

    def views(name: str) -> Any:
        """(V, N, D), the upright one first."""
        descriptors = np.asarray(load_features(sink.path(name)).descriptors)
        return descriptors.reshape(-1, *descriptors.shape[-2:])

    # Of each photograph as many descriptors, so that none decides alone.
    count = max(1, _WORD_SAMPLES // len(names))
    words = visual_words(np.concatenate([_sample(views(name), count) for name in names]))
    images = [
        np.array([describe_globally(view, words) for view in views(name)])
        for name in tqdm(names, desc="retrieval", unit="image", disable=None)
    ]
    return [(names[i], names[j]) for i, j in nearest_pairs(images, neighbours)]


def _sample(views: Any, count: int) -> Any:
    """Descriptors of the strongest keypoints, each from a view in turn."""
    rows = np.arange(min(count, views.shape[1]))
    return views[rows % len(views), rows]
