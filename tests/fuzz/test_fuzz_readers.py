"""Files of poses, pairs and homographies that are not as they should be, in every format that is read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycolmap
import pytest
from fuzzing import damaged, examples, put, result_or_refusal
from hypothesis import given
from hypothesis import strategies as st

from capsdesc.evaluation.datasets import BenchmarkImage, CorrespondencePair, HomographyPair, PosePair, read_benchmark
from capsdesc.evaluation.features import FeatureStore
from capsdesc.evaluation.methods import get_methods
from capsdesc.io.colmap import read_model
from capsdesc.io.pairs import read_pairs, read_posed_pairs
from capsdesc.training.dataset import DataConfig, Scene
from capsdesc.training.sources import CapsSource, ColmapSource, NerfSource, PairsSource, TumSource
from capsdesc.types import PosedImage

DATA = DataConfig(min_covisibility=0.0, min_rotation=0.0)
IDENTITY = "1 0 0 0 1 0 0 0 1"
LENS = "60 0 31.5 0 60 23.5 0 0 1"
POSE: list[list[float]] = [[1.0, 0, 0, 0.3], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
FLAT = " ".join(str(value) for row in POSE for value in row)
H = "1 0.1 3\n0 0.9 -2\n\n0.0001 0 1\n"

# By the path in a folder with images a.png and b.png below images/, and beside the files that name them.
TEXTS: Mapping[str, str] = {
    "pairs.txt": f"a.png b.png 0 0 {LENS} {LENS} {FLAT}\n\nb.png a.png 0 4 {LENS} {LENS} {FLAT}\n",
    "transforms.json": json.dumps(
        {
            "fl_x": 60.0,
            "k1": 0.01,
            "frames": [
                {"file_path": "a", "transform_matrix": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]},
                {"file_path": "./b.png", "transform_matrix": POSE, "w": 64, "h": 48, "cx": 32},
            ],
        }
    ),
    "groundtruth.txt": "# a trajectory\n1.00 0 0 0 0 0 0 1\n1.02 0.3 0 0 0 0 0 1\n",
    "rgb.txt": "1.001 a.png\n1.021 b.png\n",
    "img_cam.txt": f"a.png 64 48 60 60 32 24 {IDENTITY} 0 0 0\nb.png 64 48 60 60 32 24 {IDENTITY} 0.3 0 0\n",
    "caps/pairs.txt": "a.png b.png\n",
    "sparse/cameras.txt": "1 PINHOLE 64 48 60 60 32 24\n",
    "sparse/images.txt": "1 1 0 0 0 0 0 0 1 a.png\n9 9 1 30 4 -1 5 5 2\n2 1 0 0 0 0.3 0 0 1 b.png\n8 9 1 4 5 2\n",
    "sparse/points3D.txt": "1 0 0 4 255 0 0 0.5 1 0 2 0\n2 1 0 5 255 0 0 0.5 1 2 2 1\n",
    "cameras.json": json.dumps(
        {"s": [{"name": name, "K": [[60, 0, 31.5], [0, 60, 23.5], [0, 0, 1]]} for name in ("a.png", "b.png")]}
    ),
    "pairs.json": json.dumps(
        [{"scene": "s", "name1": "a.png", "name2": "b.png", "R": np.eye(3).tolist(), "t": [0.3, 0, 0]}]
    ),
    **{f"oxford/graf/H1to{k}p": H for k in range(2, 7)},
    "imc/scaling_factors.csv": "scene,scaling_factor\ns,0.5\n",
    "imc/s/calibration.csv": "image_id,camera_intrinsics,rotation_matrix,translation_vector\n"
    f"a,{LENS},{IDENTITY},0 0 0\nb,{LENS},{IDENTITY},0.3 0 0\n",
    "imc/s/pair_covisibility.csv": f"pair,covisibility,fundamental_matrix\nb-a,0.5,{IDENTITY}\na-b,0.05,{IDENTITY}\n",
    "wxbs/WGBS/yard/corrs.txt": "1 2 3 4\n5.5 6 7 8\n\n9 10 11 12\n",
}


def scenes(source: Any) -> list[Scene]:
    found: list[Scene] = source.scenes(DATA)
    return found


READERS: Mapping[str, tuple[tuple[str, ...], Callable[[Path], Any]]] = {
    "pairs for training": (
        ("pairs.txt",),
        lambda root: scenes(PairsSource(path=str(root / "pairs.txt"), depth=(1.0, 9.0))),
    ),
    "pairs": (("pairs.txt",), lambda root: read_benchmark("pairs", root / "pairs.txt")),
    "nerf": (("transforms.json",), lambda root: scenes(NerfSource(path=str(root), depth=(1.0, 9.0)))),
    "tum": (
        ("groundtruth.txt", "rgb.txt"),
        lambda root: scenes(TumSource(path=str(root), intrinsics=(60.0, 60.0, 32.0, 24.0), depth=(1.0, 9.0))),
    ),
    "caps": (("img_cam.txt", "pairs.txt"), lambda root: scenes(CapsSource(path=str(root)))),
    "colmap": (
        ("sparse/cameras.txt", "sparse/images.txt", "sparse/points3D.txt"),
        lambda root: (scenes(ColmapSource(path=str(root))), read_benchmark("colmap", root)),
    ),
    "strecha": (("cameras.json", "pairs.json"), lambda root: read_benchmark("strecha", root)),
    "oxford": (("oxford/graf/H1to3p",), lambda root: read_benchmark("oxford", root / "oxford")),
    "imc2022": (
        ("imc/scaling_factors.csv", "imc/s/calibration.csv", "imc/s/pair_covisibility.csv"),
        lambda root: read_benchmark("imc2022", root / "imc"),
    ),
    "wxbs": (("wxbs/WGBS/yard/corrs.txt",), lambda root: read_benchmark("wxbs", root / "wxbs")),
}


def write_images(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        rng = np.random.default_rng(number)
        cv2.imwrite(str(folder / name), rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    for folder in (root, root / "images", root / "s", root / "imc" / "s" / "images"):
        write_images(folder, "a.png", "b.png")
    write_images(root / "oxford" / "graf", *(f"img{k}.png" for k in range(1, 7)))
    write_images(root / "wxbs" / "WGBS" / "yard", "01.png", "02.png")
    return root


def write_all(root: Path, reader: str) -> None:
    for name, text in TEXTS.items():
        put(root / name, text.encode())
    if reader == "caps":
        put(root / "pairs.txt", TEXTS["caps/pairs.txt"].encode())


def assert_sound(found: Any) -> None:
    """What came of a file that was damaged and read all the same holds finite cameras and images of its folder."""
    if isinstance(found, tuple | list):
        for one in found:
            assert_sound(one)
    elif isinstance(found, Scene):
        assert found.pairs.shape[1:] == (2,)
        for photograph in found.photographs:
            assert_sound(photograph)
    elif isinstance(found, PosedImage):
        assert found.path.is_file()
        assert ".." not in found.path.parts
        for values in (found.R, found.t, found.K, found.points):
            assert np.isfinite(values).all()
        np.testing.assert_allclose(found.R @ found.R.T, np.eye(3), atol=1e-6)
    elif isinstance(found, PosePair):
        for values in (found.R, found.t, found.camera0.K, found.camera1.K):
            assert np.isfinite(values).all()
        np.testing.assert_allclose(found.R @ found.R.T, np.eye(3), atol=1e-6)
    elif isinstance(found, HomographyPair):
        assert np.isfinite(np.linalg.inv(found.H)).all()
    elif isinstance(found, CorrespondencePair):
        assert found.points0.shape == found.points1.shape
        assert np.isfinite([found.points0, found.points1]).all()


@pytest.mark.parametrize("reader", READERS)
def test_what_is_damaged_was_whole(root: Path, reader: str) -> None:
    write_all(root, reader)
    found = READERS[reader][1](root)
    assert found
    assert_sound(found)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("reader", READERS)
@examples(40)
@given(data=st.data())
def test_damaged_texts(root: Path, reader: str, data: st.DataObject) -> None:
    files, read = READERS[reader]
    write_all(root, reader)
    name = data.draw(st.sampled_from(files))
    put(root / name, data.draw(damaged((root / name).read_bytes())))
    assert_sound(result_or_refusal(read, root))


# Names as lists can hold them: without white space, and not such as make a comment.
NAME = st.text(st.characters(exclude_categories=("Z", "C")), min_size=1, max_size=12).filter(
    lambda name: name.strip("#")
)


@examples(60)
@given(
    pairs=st.lists(st.tuples(NAME, NAME), max_size=5),
    mark=st.sampled_from(["", "\ufeff"]),
    end=st.sampled_from(["\n", "\r\n"]),
    between=st.sampled_from([" ", "\t", "   "]),
    extra=st.sampled_from(["", "# a comment", "#", "  ## another", " \t "]),
)
def test_lists_hold_the_names_that_were_written(
    root: Path, pairs: list[tuple[str, str]], mark: str, end: str, between: str, extra: str
) -> None:
    lines = [line for pair in pairs for line in (extra, between.join(pair))]
    path = put(root / "list.txt", (mark + end.join([*lines, extra])).encode())
    assert read_pairs(path) == pairs
    # The same names in the reader of published pairs, up to the images that are not there.
    rest = f"0 0 {LENS} {LENS} {FLAT}"
    put(path, (mark + end.join(f"{between.join(pair)} {rest}" for pair in pairs)).encode())
    if pairs:
        with pytest.raises((FileNotFoundError, ValueError), match=r"list\.txt, line 1: "):
            read_posed_pairs(path)
    else:
        assert read_posed_pairs(path) == []


@examples(80)
@given(data=st.data())
def test_damaged_lists(root: Path, data: st.DataObject) -> None:
    whole = "\ufeff# pairs\r\na.png b.png\r\n#1/ü.png images/a.png\n".encode()
    path = put(root / "list.txt", data.draw(damaged(whole)))
    for pair in result_or_refusal(read_pairs, path) or []:
        assert all(name and not name.startswith("\ufeff") and len(name.split()) == 1 for name in pair)


@pytest.fixture(scope="module")
def binary_model(root: Path) -> dict[str, bytes]:
    write_all(root, "colmap")
    folder = root / "binary"
    folder.mkdir()
    pycolmap.Reconstruction(str(root / "sparse")).write_binary(str(folder))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@examples(150)
@given(data=st.data())
def test_damaged_binary_models(root: Path, binary_model: dict[str, bytes], data: st.DataObject) -> None:
    struck = data.draw(st.sampled_from(sorted(binary_model)))
    for name, content in binary_model.items():
        put(root / "damaged" / name, data.draw(damaged(content)) if name == struck else content)
    assert_sound(result_or_refusal(read_model, root / "damaged", root / "images"))


@examples(60)
@given(data=st.data())
def test_damaged_features(root: Path, data: st.DataObject) -> None:
    store = FeatureStore(root / "features", max_keypoints=5, max_edge=64)
    method, view = get_methods(["rootsift"])[0], BenchmarkImage(root / "images" / "a.png")
    store.export([view], method, "own")
    (path,) = (root / "features").rglob("*.npz")
    whole = path.read_bytes()
    try:
        put(path, data.draw(damaged(whole)))
        result_or_refusal(store.load, view, method, "own")
    finally:
        put(path, whole)
    assert len(store.load(view, method, "own").keypoints) <= 5
