"""Which images of many may show the same things, so that not each must be matched with each.

An image is described as a whole by VLAD: for each of a few visual words, some of the local descriptors, the sum of the
differences between the word and the descriptors nearest to it (Jegou et al., CVPR 2010), each of unit length
(Arandjelovic and Zisserman, CVPR 2013).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.cluster.vq import vq
from tqdm import tqdm

from capsdesc.io.npz import load_features
from capsdesc.pipelines.stores import NpzFolder
from capsdesc.types import Array, Features

WORDS = 64
NEIGHBOURS = 20
"""With how many others an image is paired unless it is said."""
_TINY = np.float32(1e-12)


def visual_words(descriptors: Array, count: int = WORDS) -> Array:
    """Draw visual words among local descriptors of many images.

    They are no centres of clusters: differences from these sum to zero over the images that they come from, so that of
    few images those that show the same look opposite.

    Args:
        descriptors: (N, D) float.
        count: how many words; fewer come back if there are fewer descriptors.

    Returns:
        (count, D) words, the same on every run.
    """
    return descriptors[np.random.default_rng(0).permutation(len(descriptors))[:count]]


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
    similarity = _similarity(images, images)
    np.fill_diagonal(similarity, -np.inf)
    nearest = _most_similar(similarity, min(neighbours, len(images) - 1))
    return sorted({(min(i, j), max(i, j)) for i, row in enumerate(nearest.tolist()) for j in row})


def _similarity(first: Sequence[Array], second: Sequence[Array]) -> Array:
    """(N, M) of images by their (V, G) global descriptors."""

    def of_upright(ones: Sequence[Array], others: Sequence[Array]) -> Array:
        upright = np.array([views[0] for views in ones])
        return np.array([(upright @ views.T).max(axis=1) for views in others])

    return np.maximum(of_upright(first, second).T, of_upright(second, first))


def _most_similar(similarity: Array, count: int) -> Array:
    """(N, count) columns of each row, the most similar first."""
    return np.asarray(np.argsort(-similarity, axis=1, kind="stable")[:, :count])


# Local descriptors that visual words are made of.
_WORD_SAMPLES = 50_000


@dataclasses.dataclass(frozen=True, eq=False)
class RetrievalIndex:
    """Images described as a whole, by names.

    Attributes:
        names: of N images.
        words: (K, D) visual words.
        images: (N, V, G) global descriptors of their views, the upright one first.
    """

    names: tuple[str, ...]
    words: Array
    images: Array

    @classmethod
    def build(cls, names: Sequence[str], load: Callable[[str], Features], *, progress: bool = True) -> RetrievalIndex:
        """Describe images whose features are kept.

        Args:
            names: of the images.
            load: the features of an image by its name, in numpy.
            progress: whether to show progress on standard error, where that is a terminal.
        """
        # Of each photograph as many descriptors, so that none decides alone.
        count = max(1, _WORD_SAMPLES // len(names))
        words = visual_words(np.concatenate([_sample(_views(load(name).descriptors), count) for name in names]))
        images = [
            _describe_views(load(name).descriptors, words)
            for name in tqdm(names, desc="retrieval", unit="image", disable=None if progress else True)
        ]
        return cls(tuple(names), words, np.array(images))

    def pairs(self, neighbours: int) -> list[tuple[str, str]]:
        """Names of the images that may show the same things, see :func:`nearest_pairs`."""
        return [(self.names[i], self.names[j]) for i, j in nearest_pairs(list(self.images), neighbours)]

    def nearest(self, descriptors: Any, count: int) -> list[str]:
        """Names of the images most similar to another one, the most similar first.

        Args:
            descriptors: (N, D) local descriptors of that image, or (turns, zooms, N, D).
            count: at most so many.
        """
        similarity = _similarity([_describe_views(descriptors, self.words)], list(self.images))
        return [self.names[k] for k in _most_similar(similarity, count)[0]]


def retrieved_pairs(names: Sequence[str], sink: NpzFolder, neighbours: int) -> list[tuple[str, str]]:
    """Names of the images that may show the same things, by the features in a folder; none of fewer than two images."""
    if len(names) < 2:
        return []
    return RetrievalIndex.build(names, lambda name: load_features(sink.path(name))).pairs(neighbours)


def _views(descriptors: Any) -> Array:
    """(V, N, D) of an image, the upright view first."""
    rows = np.asarray(descriptors)
    return rows.reshape(-1, *rows.shape[-2:])


def _describe_views(descriptors: Any, words: Array) -> Array:
    """(V, G) global descriptors."""
    return np.array([describe_globally(view, words) for view in _views(descriptors)])


def _sample(views: Array, count: int) -> Array:
    """Descriptors of the strongest keypoints, each from a view in turn."""
    rows = np.arange(min(count, views.shape[1]))
    return np.asarray(views[rows % len(views), rows])
