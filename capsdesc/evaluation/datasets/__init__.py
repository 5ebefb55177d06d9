"""Benchmarks as they lie on disk, read into pairs of images with their true geometry: a module for each family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from capsdesc.evaluation.datasets.homographies import make_homographies, read_hpatches, read_oxford
from capsdesc.evaluation.datasets.imc import read_imc2021, read_imc2022
from capsdesc.evaluation.datasets.loftr import read_megadepth, read_scannet
from capsdesc.evaluation.datasets.pairs import (
    Benchmark,
    BenchmarkImage,
    Camera,
    CorrespondencePair,
    HomographyPair,
    Pair,
    PosePair,
)
from capsdesc.evaluation.datasets.poses import read_colmap, read_pairs_file, read_strecha
from capsdesc.evaluation.datasets.wxbs import read_wxbs
from capsdesc.io.pairs import PAIRS_LINE

__all__ = [
    "LAYOUTS",
    "Benchmark",
    "BenchmarkImage",
    "Camera",
    "CorrespondencePair",
    "HomographyPair",
    "Pair",
    "PosePair",
    "read_benchmark",
]

# The kinds of benchmarks, and how each lies on disk.
LAYOUTS = {
    "hpatches": "i_NAME/ and v_NAME/ with 1.ppm .. N.ppm (or .png, .jpg) and H_1_2 .. H_1_N, N at least 2",
    "oxford": "NAME/ with img1.png .. imgN.png (or .ppm) and H1to2p .. H1toNp",
    "strecha": "cameras.json, pairs.json and SCENE/IMAGE",
    "pairs": f"a text file of lines {PAIRS_LINE}",
    "colmap": "images/ and sparse/{cameras,images,points3D}.bin (or .txt)",
    "megadepth": "scene_info/*.npz of LoFTR, and the images that these name",
    "scannet": "test.npz and intrinsics.npz of LoFTR, and sceneXXXX_XX/color/FRAME.jpg",
    "imc2021": "SCENE/set_100/ with images/, calibration/*.h5 and new-vis-pairs/keys-th-0.1.npy",
    "imc2022": "scaling_factors.csv and SCENE/ with images/, calibration.csv and pair_covisibility.csv",
    "wxbs": "CATEGORY/NAME/ with 01.png, 02.png (or .jpg) and corrs.txt",
    "homographies": "a folder of photographs, of which pairs are made, with and without changes of appearance",
}


def read_benchmark(
    kind: str,
    path: Path,
    *,
    images: Path | None = None,
    min_overlap: float = 0.1,
    max_pairs: int | None = None,
    seed: int = 0,
) -> Benchmark:
    """Read a benchmark.

    Args:
        kind: a key of :data:`LAYOUTS`.
        path: its folder; of ``"pairs"`` its text file.
        images: the folder image names are relative to, where they are not in ``path`` (``"pairs"``, ``"colmap"``,
            ``"megadepth"``, ``"scannet"``).
        min_overlap: the least overlap of a pair. Of ``"colmap"`` that is 3D points seen by both, relative to the image
            with fewer; of ``"imc2021"`` and ``"imc2022"`` the challenge's covisibility.
        max_pairs: keep that many pairs at most, drawn at random.
        seed: of that draw, and of ``"homographies"``.

    Raises:
        FileNotFoundError: ``path`` or a file that belongs to it is missing.
        ImportError: h5py is not installed (``"imc2021"``).
        ValueError: ``kind`` is unknown, a file does not hold what it should, or there is no pair.
    """
    readers: dict[str, Callable[[], list[Any]]] = {
        "hpatches": lambda: read_hpatches(path),
        "oxford": lambda: read_oxford(path),
        "strecha": lambda: read_strecha(path),
        "pairs": lambda: read_pairs_file(path, images),
        "colmap": lambda: read_colmap(path, images, min_overlap),
        "megadepth": lambda: read_megadepth(path, images),
        "scannet": lambda: read_scannet(path, images),
        "imc2021": lambda: read_imc2021(path, min_overlap),
        "imc2022": lambda: read_imc2022(path, min_overlap),
        "wxbs": lambda: read_wxbs(path),
        "homographies": lambda: make_homographies(path, seed),
    }
    if kind not in readers:
        raise ValueError(f"kind is {kind!r}; expected one of {', '.join(readers)}")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    pairs = readers[kind]()
    if not pairs:
        raise ValueError(f"{path} holds no pair of the {kind} benchmark; its layout is: {LAYOUTS[kind]}")
    if max_pairs is not None and len(pairs) > max_pairs:
        chosen = np.random.default_rng(seed).choice(len(pairs), max_pairs, replace=False)
        pairs = [pairs[i] for i in np.sort(chosen)]
    return Benchmark(kind, path, tuple(pairs))
