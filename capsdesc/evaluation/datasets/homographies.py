"""Benchmarks of homographies: sequences of planes, and views made of photographs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from capsdesc.evaluation.datasets.files import IMAGE_SUFFIXES, folders, image_file
from capsdesc.evaluation.datasets.pairs import BenchmarkImage, HomographyPair
from capsdesc.evaluation.renderings import CHANGES, Rendering
from capsdesc.images import find_images, image_size
from capsdesc.io.text import finite_numbers, read_text
from capsdesc.training.views import random_homography

# The sequences above 1600 x 1200 pixels, which D2-Net's protocol (and everybody after it) leaves out: 108 remain.
HPATCHES_LEFT_OUT = frozenset(
    ["i_contruction", "i_crownnight", "i_dc", "i_pencils", "i_whitebuilding", "v_artisans", "v_astronautis", "v_talent"]
)

# Of pairs that are made of photographs: the longer edge of a view, the standard deviation of its turn in degrees, how
# far its corners move at most as a share of its edges, and its zooms.
VIEW_EDGE = 640
VIEW_TURN = 12.0
VIEW_JITTER = 0.1
VIEW_ZOOM = (0.8, 1.25)


def read_hpatches(folder: Path) -> list[HomographyPair]:
    """HPatches sequences (Balntas et al., CVPR 2017), grouped by illumination and viewpoint.

    In other sets of this layout, which have names such as ``i_SET_NAME``, a group is all that begins with ``i_SET``.
    """
    groups = {"i": "illumination", "v": "viewpoint"}
    pairs: list[HomographyPair] = []
    for sequence in folders(folder):
        if sequence.name[:2] in ("i_", "v_") and sequence.name not in HPATCHES_LEFT_OUT:
            change, *names = sequence.name.split("_", 2)
            group = f"{change}_{names[0]}" if len(names) > 1 else groups[change]
            pairs += _read_sequence(sequence, group, "{}", "H_1_{}")
    return pairs


def read_oxford(folder: Path) -> list[HomographyPair]:
    """Oxford's affine covariant regions sequences (Mikolajczyk et al., IJCV 2005), grouped by sequence."""
    return [
        pair
        for sequence in folders(folder)
        if (sequence / "H1to2p").exists()
        for pair in _read_sequence(sequence, sequence.name, "img{}", "H1to{}p")
    ]


def make_homographies(folder: Path, seed: int = 0) -> list[HomographyPair]:
    """Pairs made of photographs: each as it is beside a view of it that is turned, zoomed and tilted.

    The view comes once for each of :data:`capsdesc.evaluation.renderings.CHANGES`, the group of the pair: ``none``
    tells what the movement alone costs. Which homography and which change is the seed's and the photograph's place
    among the others.

    Args:
        folder: photographs, anywhere below it.
        seed: of all draws.
    """
    pairs = []
    for index, path in enumerate(find_images(folder)):
        width, height = image_size(path)
        zoom = min(1.0, VIEW_EDGE / max(width, height))
        size = (max(1, round(width * zoom)), max(1, round(height * zoom)))
        rng = np.random.default_rng((seed, index))
        homographies = random_homography(
            rng, (width, height), size, zoom, turn_sigma=VIEW_TURN, jitter=VIEW_JITTER, zoom_range=VIEW_ZOOM
        )
        plain, moved = (Rendering(tuple(H.ravel().tolist()), size) for H in homographies)
        H = homographies[1] @ np.linalg.inv(homographies[0])
        for number, change in enumerate(CHANGES):
            changed = dataclasses.replace(moved, change=change, seed=(seed, index, number))
            views = BenchmarkImage(path, rendering=plain), BenchmarkImage(path, rendering=changed)
            pairs.append(HomographyPair(f"{path.relative_to(folder).as_posix()}/{change}", change, *views, H))
    return pairs


def _read_sequence(folder: Path, group: str, image: str, homography: str) -> Iterator[HomographyPair]:
    """Every pair of image 1 with another; every other image, and every homography, must have its partner."""
    reference = BenchmarkImage(image_file(folder, image.format(1)))
    ending = "|".join(map(re.escape, IMAGE_SUFFIXES))
    numbered = re.compile(rf"{image.format('([0-9]+)')}(?:{ending})|{homography.format('([0-9]+)')}")
    found = filter(None, (numbered.fullmatch(path.name) for path in folder.iterdir()))
    others = sorted({int(match[1] or match[2]) for match in found} - {1})
    if not others:
        raise FileNotFoundError(f"{folder} holds image 1 alone; expected image 2 and {homography.format(2)} beside it")
    for k in others:
        path = folder / homography.format(k)
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist; it maps image 1 to image {k}")
        # Some of Oxford's files have blank lines and trailing ones; the nine numbers are what counts.
        H = finite_numbers(read_text(path).split(), str(path))
        if H.size != 9 or np.linalg.matrix_rank(H.reshape(3, 3)) < 3:
            raise ValueError(f"{path} holds no homography; expected 9 numbers, of a matrix that can be inverted")
        view = BenchmarkImage(image_file(folder, image.format(k)))
        yield HomographyPair(f"{folder.name}/1-{k}", group, reference, view, H.reshape(3, 3))
