"""Which images of many may show the same things, so that not each must be matched with each.

An image is described as a whole by VLAD: for each of a few visual words, clusters of the local descriptors, the sum of
the differences between the word and the descriptors nearest to it (Jegou et al., CVPR 2010), each of unit length
(Arandjelovic and Zisserman, CVPR 2013).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.cluster.vq import kmeans2, vq

Array = npt.NDArray[Any]

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
