"""The command ``capsdesc``: what it prints and writes, against the library, and how it fails."""

from __future__ import annotations

import argparse
import csv
import fcntl
import importlib
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch

import capsdesc
from capsdesc import CAPSExtractor, Matches, estimate_homography, estimate_pose, match
from capsdesc.commands import program
from capsdesc.commands.main import COMMANDS, build_parser, main
from capsdesc.commands.train import main as train
from capsdesc.io.hloc import read_matches
from capsdesc.models import ModelConfig, build_network
from capsdesc.types import Array
from capsdesc.weights import resolve

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(capsdesc.__file__).parents[1]), "HF_HUB_OFFLINE": "1"}
Pixels = npt.NDArray[np.uint8]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def model(model_folders: Mapping[str, Path]) -> str:
    return str(model_folders["compact"])


@pytest.fixture(scope="module")
def caps(model: str) -> CAPSExtractor:
    return CAPSExtractor(model, device="cpu")


@pytest.fixture
def network(model: str) -> list[str]:
    """The options that choose the small model."""
    return ["--weights", model, "--device", "cpu"]


def write(path: Path, image: Pixels) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1])
    return path


@pytest.fixture(scope="module")
def shifted(tmp_path_factory: pytest.TempPathFactory, shifted_pair: tuple[Pixels, Pixels, Array]) -> list[str]:
    folder = tmp_path_factory.mktemp("shifted")
    # Other sizes than each other, so that a picture cannot mix them up.
    images = shifted_pair[0], shifted_pair[1][:220, :300]
    return [str(write(folder / f"{k}.png", image)) for k, image in enumerate(images)]


@pytest.fixture(scope="module")
def stereo(tmp_path_factory: pytest.TempPathFactory, stereo_pair: tuple[Pixels, Pixels, Array]) -> list[str]:
    folder = tmp_path_factory.mktemp("stereo")
    return [str(write(folder / f"{k}.png", image)) for k, image in enumerate(stereo_pair[:2])]


def matrix(text: str, name: str, rows: int) -> Array:
    """The numbers in the lines below a name."""
    lines = text.splitlines()
    start = next(k for k, line in enumerate(lines) if line.split() and line.split()[0] == name) + 1
    return np.array([[float(value) for value in line.split()] for line in lines[start : start + rows]])


def fails(capsys: Capture, arguments: list[str], message: str) -> None:
    """The command ends with 1 and one line on standard error that matches the message."""
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert error.startswith("capsdesc: ")
    assert error.count("\n") == 1, error


# match


def numbers(text: str) -> dict[str, list[int]]:
    """The counts in the output by name."""
    found = re.findall(r"^(keypoints|matches|inliers) +(.+)$", text, re.MULTILINE)
    return {name: [int(number) for number in re.findall(r"\d+", values)] for name, values in found}


def test_version(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    version = metadata.version("capsdesc")
    assert capsys.readouterr().out == f"capsdesc {version}\n"
    for arguments, name in ((["--version"], "capsdesc-train"), (["prepare", "--version"], "capsdesc-train prepare")):
        with pytest.raises(SystemExit) as stop:
            train(arguments)
        assert stop.value.code == 0
        assert capsys.readouterr().out == f"{name} {version}\n"


def test_match_prints_the_homography_of_a_shift(
    caps: CAPSExtractor,
    network: list[str],
    shifted: list[str],
    shifted_pair: tuple[Pixels, Pixels, Array],
    tmp_path: Path,
    capsys: Capture,
) -> None:
    picture_file = tmp_path / "matches.png"
    assert main(["match", *shifted, *network, "--max-keypoints", "300", "-o", str(picture_file)]) == 0
    output = capsys.readouterr()
    assert output.err == f"wrote {picture_file}\n"

    features = [caps.extract(image, 300) for image in shifted]
    matches = match(*features)
    points = [f.keypoints[matches.indices[:, k]] for k, f in enumerate(features)]
    homography = estimate_homography(*points)
    assert homography is not None
    counts = numbers(output.out)
    assert counts["keypoints"] == [len(features[0]), len(features[1])]
    assert counts["matches"] == [len(matches)]
    assert counts["inliers"] == [int(homography.inliers.sum())]
    assert homography.inliers.sum() > 100
    H = matrix(output.out, "H", 3)
    np.testing.assert_allclose(H, homography.H, atol=1e-6)
    shift = shifted_pair[2]
    corners = np.array([[0, 0, 1], [319, 0, 1], [0, 239, 1], [319, 239, 1]])
    mapped = corners @ H.T
    np.testing.assert_allclose(mapped[:, :2] / mapped[:, 2:], corners[:, :2] + shift, atol=0.5)

    picture = cv2.imread(str(picture_file))
    assert picture is not None
    assert picture.shape == (240, 320 + 8 + 300, 3)
    assert list(tmp_path.iterdir()) == [picture_file]
    # Under the lines the images are still there, in their colours.
    image0 = np.asarray(cv2.imread(shifted[0]))
    assert (picture[:, :320] == image0).all(axis=2).mean() > 0.3


def test_match_prints_the_pose_of_a_camera_that_moved_right(
    caps: CAPSExtractor,
    network: list[str],
    stereo: list[str],
    stereo_pair: tuple[Pixels, Pixels, Array],
    capsys: Capture,
) -> None:
    intrinsics = ["300", "300", "199.5", "159.5"]
    assert main(["match", *stereo, *network, "--K", *intrinsics]) == 0
    text = capsys.readouterr().out
    R, t = matrix(text, "R", 3), matrix(text, "t", 1)[0]
    angle = np.rad2deg(np.arccos(np.clip((np.trace(R) - 1) / 2, -1, 1)))
    assert angle < 0.5
    assert np.linalg.norm(t) == pytest.approx(1, abs=1e-5)
    assert np.rad2deg(np.arccos(-t[0])) < 3
    found = re.search(r"^rotation +([\d.]+) degrees", text, re.MULTILINE)
    assert found is not None
    assert float(found[1]) == pytest.approx(angle, abs=0.02)

    features = [caps.extract(image, derivatives=True) for image in stereo]
    matches = match(*features, max_shift=3)
    points = [f.keypoints[matches.indices[:, k]] for k, f in enumerate(features)]
    pose = estimate_pose(points[0], points[1], stereo_pair[2], stereo_pair[2])
    assert pose is not None
    counts = numbers(text)
    assert counts["matches"] == [len(matches)]
    assert counts["inliers"] == [int(pose.inliers.sum())]
    np.testing.assert_allclose(R, pose.R, atol=1e-6)
    np.testing.assert_allclose(t, pose.t, atol=1e-6)

    # The same camera said twice, once over a wrong common one, is the same pose.
    wrong = ["--K", "100", "100", "0", "0"]
    assert main(["match", *stereo, *network, *wrong, "--K0", *intrinsics, "--K1", *intrinsics]) == 0
    assert capsys.readouterr().out == text


def test_match_options_reach_the_library(model: str, network: list[str], shifted: list[str], capsys: Capture) -> None:
    options = [
        "--max-keypoints",
        "200",
        "--ratio",
        "0.8",
        "--max-shift",
        "2",
        "--threshold",
        "0.3",
        "--seed",
        "5",
        "--max-size",
        "160",
    ]
    assert main(["match", *shifted, *network, *options]) == 0
    counts = numbers(capsys.readouterr().out)
    small = CAPSExtractor(model, device="cpu", max_size=160)
    features = [small.extract(image, 200, derivatives=True) for image in shifted]
    matches = match(*features, ratio=0.8, max_shift=2)
    points = [f.keypoints[matches.indices[:, k]] for k, f in enumerate(features)]
    homography = estimate_homography(*points, threshold=0.3, seed=5)
    assert homography is not None
    assert counts["keypoints"] == [200, 200]
    assert counts["matches"] == [len(matches)]
    assert counts["inliers"] == [int(homography.inliers.sum())]
    assert len(matches) < len(match(*features))


@pytest.mark.parametrize(("options", "message"), [([], "no homography found"), (["--K", *"9988"], "no pose found")])
def test_match_of_images_without_keypoints(
    network: list[str], tmp_path: Path, capsys: Capture, options: list[str], message: str
) -> None:
    flat = [str(write(tmp_path / f"{k}.png", np.full((40, 50 + k, 3), 90, dtype=np.uint8))) for k in (0, 1)]
    picture = tmp_path / "matches.png"
    assert main(["match", *flat, *network, *options, "-o", str(picture)]) == 0
    output = capsys.readouterr()
    assert numbers(output.out) == {"keypoints": [0, 0], "matches": [0], "inliers": [0]}
    assert message in output.out
    assert output.err == f"wrote {picture}\n"
    assert np.asarray(cv2.imread(str(picture))).shape == (40, 50 + 8 + 51, 3)


@pytest.mark.parametrize("option", ["--K0", "--K1"])
def test_intrinsics_of_one_image_only(network: list[str], shifted: list[str], capsys: Capture, option: str) -> None:
    fails(capsys, ["match", *shifted, *network, option, "300", "300", "160", "120"], "one image only.*--K0 and --K1")


def test_a_picture_that_cannot_be_written_leaves_nothing_behind(
    network: list[str], shifted: list[str], tmp_path: Path, capsys: Capture
) -> None:
    small = ["--max-keypoints", "20"]
    for name in ("picture.xyz", "picture", "picture.yaml"):
        fails(capsys, ["match", *shifted, *network, *small, "-o", str(tmp_path / name)], f"cannot write.*{name}")
        fails(
            capsys,
            ["locate", *shifted, *network, "--points", "100,100", "-o", str(tmp_path / name)],
            f"cannot write.*{name}",
        )
    missing = tmp_path / "nosuch" / "picture.png"
    fails(capsys, ["match", *shifted, *network, *small, "-o", str(missing)], "cannot write.*does not exist")
    fails(capsys, ["match", *shifted, *network, *small, "-o", str(tmp_path)], "cannot write.*folder")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_picture_keeps_the_old_one(
    network: list[str], shifted: list[str], tmp_path: Path, capsys: Capture
) -> None:
    old = tmp_path / "picture.xyz"
    old.write_text("old")
    fails(capsys, ["match", *shifted, *network, "--max-keypoints", "20", "-o", str(old)], "cannot write")
    assert old.read_text() == "old"
    assert list(tmp_path.iterdir()) == [old]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-keypoints", "-1"], "max_keypoints"),
        (["--max-size", "0"], "max_size"),
        (["--ratio", "2"], "ratio"),
        (["--threshold", "-1"], "threshold"),
        (["--threshold", "nan"], "threshold"),
        (["--seed", "-1"], "seed"),
        (["--K", "0", "300", "160", "120"], "K0"),
        (["--K", "nan", "300", "160", "120"], "K0"),
        (["--weights", "nosuchmodel"], "weights.*nosuchmodel"),
        (["--weights", "./nosuch"], "weights.*nosuch"),
        (["--device", "gpu"], "device"),
        (["--device", "cuda:99"], "device"),
    ],
)
def test_match_refuses_values_that_make_no_sense(
    network: list[str], shifted: list[str], capsys: Capture, options: list[str], message: str
) -> None:
    fails(capsys, ["match", *shifted, *network, *options], message)


# Results that programs read


def read_result(path: Path) -> dict[str, Any]:
    """The arrays in a file of matches, whatever its format, and inliers as bool."""
    if path.suffix == ".npz":
        with np.load(path) as stored:
            return dict(stored)
    if path.suffix == ".h5":
        h5py = pytest.importorskip("h5py")
        with h5py.File(path) as file:
            return {name: values[()] for name, values in file["0.png/1.png"].items()}
    if path.suffix == ".json":
        content = json.loads(path.read_text())
        content["inliers"] = content.pop("inlier")
        return {name: np.asarray(value) for name, value in content.items()}
    with open(path, newline="") as file:
        found = list(csv.DictReader(file))
    assert {(row["image0"], row["image1"]) for row in found} == {("0.png", "1.png")}

    def column(*names: str) -> Array:
        return np.array([[float(row[name]) for name in names] for row in found])

    return {
        "points0": column("x0", "y0"),
        "points1": column("x1", "y1"),
        "distances": column("distance")[:, 0],
        "inliers": column("inlier")[:, 0].astype(bool),
    }


@pytest.mark.parametrize("suffix", [".npz", ".csv", ".json", ".h5"])
@pytest.mark.parametrize("posed", [False, True])
def test_match_writes_what_the_library_finds(
    caps: CAPSExtractor, network: list[str], shifted: list[str], tmp_path: Path, suffix: str, posed: bool
) -> None:
    if suffix == ".h5":
        pytest.importorskip("h5py")
    file, picture = tmp_path / f"matches{suffix}", tmp_path / "matches.png"
    intrinsics = ["--K", "300", "300", "159.5", "119.5"] if posed else []
    arguments = [*shifted, *network, *intrinsics, "--max-keypoints", "100"]
    assert main(["match", *arguments, "-o", str(file), "-o", str(picture)]) == 0
    assert picture.is_file()
    found = read_result(file)
    features = [caps.extract(image, 100, derivatives=True) for image in shifted]
    matches = match(*features, max_shift=3)
    points = tuple(f.keypoints[matches.indices[:, k]] for k, f in enumerate(features))
    K = np.array([[300, 0, 159.5], [0, 300, 119.5], [0, 0, 1]])
    model: Any = estimate_pose(points[0], points[1], K, K) if posed else estimate_homography(points[0], points[1])
    np.testing.assert_allclose(found["points0"], points[0], atol=1e-3)
    np.testing.assert_allclose(found["points1"], points[1], atol=1e-3)
    np.testing.assert_allclose(found["distances"], matches.distances, rtol=1e-5)
    np.testing.assert_array_equal(found["inliers"], model.inliers)
    if suffix != ".csv":
        np.testing.assert_array_equal(found["indices"], matches.indices)
        for name in ("R", "t", "E") if posed else ("H",):
            np.testing.assert_allclose(found[name], getattr(model, name))


def test_a_matches_file_is_one_that_hloc_reads(network: list[str], shifted: list[str], tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    features, pairs = tmp_path / "features.h5", tmp_path / "pairs.txt"
    pairs.write_text("0.png 1.png\n")
    size, unchecked = ["--max-keypoints", "100"], ["--max-shift", "none"]
    assert main(["extract", *shifted, *network, *size, "-o", str(features)]) == 0
    assert main(["match-features", str(features), str(pairs), "-o", str(tmp_path / "listed.h5"), *unchecked]) == 0
    assert main(["match", *shifted, *network, *size, *unchecked, "-o", str(tmp_path / "pair.h5")]) == 0
    listed, pair = (read_matches(tmp_path / f"{name}.h5", "0.png", "1.png") for name in ("listed", "pair"))
    np.testing.assert_array_equal(pair.indices, listed.indices)
    np.testing.assert_allclose(pair.scores, listed.scores, atol=1e-6)


def test_json_is_all_that_is_printed(
    caps: CAPSExtractor, network: list[str], shifted: list[str], tmp_path: Path, capsys: Capture
) -> None:
    file = tmp_path / "matches.json"
    assert main(["match", *shifted, *network, "--max-keypoints", "50", "--json", "-o", str(file)]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out) == json.loads(file.read_text())
    assert json.loads(output.out)["model"] == "homography"
    assert output.err == f"wrote {file}\n"
    assert main(["locate", *shifted, *network, "--points", "160,128", "192,112", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    located = caps.locate(np.array([[160.0, 128.0], [192.0, 112.0]]), *shifted)
    np.testing.assert_allclose(found["points1"], located.points, rtol=1e-6)
    np.testing.assert_allclose(found["std"], located.std, rtol=1e-6)
    assert found["points0"] == [[160, 128], [192, 112]]


def test_a_folder_is_matched_pair_by_pair(
    network: list[str], shifted: list[str], tmp_path: Path, capsys: Capture
) -> None:
    photographs, file = tmp_path / "photographs", tmp_path / "all.csv"
    photographs.mkdir()
    for image in shifted:
        shutil.copy(image, photographs)
    (photographs / "2.png").write_bytes(b"no image")
    options = [*network, "--max-keypoints", "100"]
    assert main(["match", str(photographs), *options, "-o", str(file)]) == 1
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split("\t") == ["image0", "image1", "matches", "inliers"]
    assert [line.split("\t")[:2] for line in lines] == [["0.png", "1.png"]]
    assert main(["match", *shifted, *options]) == 0
    counts = numbers(capsys.readouterr().out)
    assert [int(value) for value in lines[0].split("\t")[2:]] == [*counts["matches"], *counts["inliers"]]
    assert len(read_result(file)["points0"]) == counts["matches"][0]

    pairs = tmp_path / "pairs.txt"
    pairs.write_text("1.png 0.png\n")
    assert main(["match", str(photographs), "--pairs", str(pairs), *options, "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert [json.loads(line)[name] for name in ("image0", "image1")] == ["1.png", "0.png"]
    pairs.write_text("1.png 9.png\n")
    fails(capsys, ["match", str(photographs), "--pairs", str(pairs), *options], r"1 images that are not in .*9\.png")
    fails(capsys, ["match", str(photographs), *options, "-o", str(tmp_path / "a.npz")], r"many pairs.*\.csv")


def test_photographs_that_look_alike_are_matched(tmp_path: Path, capsys: Capture) -> None:
    for name in ("relief_0", "relief_1", "tankard_0", "tankard_1"):
        shutil.copy(Path(__file__).parents[2] / "examples" / "data" / f"{name}.jpg", tmp_path)
    options = ["--weights", "small", "--max-keypoints", "300", "--max-size", "480", "--device", "cpu"]
    assert main(["match", str(tmp_path), "--pairs", "retrieval", "--neighbours", "1", *options]) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    pairs = {frozenset(line.split("\t")[:2]) for line in lines}
    assert pairs == {frozenset({"relief_0.jpg", "relief_1.jpg"}), frozenset({"tankard_0.jpg", "tankard_1.jpg"})}
    for name in ("relief_1", "tankard_0", "tankard_1"):
        (tmp_path / f"{name}.jpg").unlink()
    assert main(["match", str(tmp_path), "--pairs", "retrieval", *options]) == 0
    assert capsys.readouterr().out.splitlines() == ["image0\timage1\tmatches\tinliers"]


# locate


def rows(text: str) -> Array:
    lines = text.splitlines()
    assert lines[0] == "x0,y0,x1,y1,std"
    values = [[float(value) for value in line.split(",")] for line in lines[1:] if not line.startswith("wrote")]
    return np.array(values).reshape(-1, 5)


def test_locate_prints_what_the_library_finds(
    caps: CAPSExtractor,
    network: list[str],
    shifted: list[str],
    shifted_pair: tuple[Pixels, Pixels, Array],
    tmp_path: Path,
    capsys: Capture,
) -> None:
    points = np.array([[160.0, 128.0], [192.0, 112.0], [150.25, 140.5]])
    file, picture = tmp_path / "points.csv", tmp_path / "picture.png"
    file.write_text("160,128\n\n192.0, 112\n150.25,140.5\n")
    assert main(["locate", *shifted, *network, "--points-file", str(file), "-o", str(picture)]) == 0
    output = capsys.readouterr()
    found = rows(output.out)
    located = caps.locate(points, *shifted)
    np.testing.assert_array_equal(found[:, :2], points)
    np.testing.assert_allclose(found[:, 2:4], located.points, atol=0.006)
    np.testing.assert_allclose(found[:, 4], located.std, atol=0.006)
    np.testing.assert_allclose(found[:2, 2:4], points[:2] + shifted_pair[2], atol=0.3)
    assert np.asarray(cv2.imread(str(picture))).shape == (240, 320 + 8 + 300, 3)
    assert sorted(tmp_path.iterdir()) == [picture, file]

    assert main(["locate", *shifted, *network, "--points", "160,128", "192,112", "150.25,140.5"]) == 0
    np.testing.assert_array_equal(rows(capsys.readouterr().out), found)


def test_locate_of_no_points(network: list[str], shifted: list[str], tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "points.csv"
    file.write_text("")
    assert main(["locate", *shifted, *network, "--points-file", str(file)]) == 0
    assert rows(capsys.readouterr().out).shape == (0, 5)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("1,2\n3\n", 2),
        ("x,y\n1,2\n", 1),
        ("1,2\n\n3,4,5\n", 3),
        ("1;2\n", 1),
        ("1,2\n3,\n", 2),
        ("1,2\n3,4\nfoo,4\n", 3),
        ("1,2\nnan,4\n", 2),
        ("inf,2\n", 1),
    ],
)
def test_locate_names_the_line_that_is_wrong(
    network: list[str], shifted: list[str], tmp_path: Path, capsys: Capture, text: str, line: int
) -> None:
    file = tmp_path / "points.csv"
    file.write_text(text)
    fails(
        capsys, ["locate", *shifted, *network, "--points-file", str(file)], rf"points\.csv, line {line}: expected x,y"
    )


def test_locate_refuses_points_outside(network: list[str], shifted: list[str], capsys: Capture) -> None:
    fails(capsys, ["locate", *shifted, *network, "--points", "10,10", "400,10"], r"points: 1 of 2.*outside.*320 x 240")
    fails(capsys, ["locate", *shifted, *network, "--points", "nan,10"], "points.*finite")


# convert


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_convert_makes_a_model_of_an_official_checkpoint(tmp_path: Path, shifted: list[str], capsys: Capture) -> None:
    torch.manual_seed(0)
    state = {f"net.{key}": value for key, value in build_network(ModelConfig.paper("resnet18")).state_dict().items()}
    checkpoint, folder = tmp_path / "caps.pth", tmp_path / "model"
    torch.save({"step": 7, "state_dict": state, "optimizer": {"lr": 1e-4}, "scheduler": {}}, checkpoint)
    assert main(["convert", str(checkpoint), str(folder)]) == 0
    assert "resnet18" in capsys.readouterr().out
    assert files_below(folder) == ["config.json", "model.safetensors"]
    assert resolve(folder).config == ModelConfig.paper("resnet18")
    points = np.array([[10.0, 20.0], [300.0, 200.0]])
    converted, official = (
        CAPSExtractor(path, device="cpu").describe(shifted[0], points) for path in (folder, checkpoint)
    )
    np.testing.assert_array_equal(converted, official)


def test_convert_refuses_what_is_no_checkpoint(tmp_path: Path, capsys: Capture) -> None:
    torch.manual_seed(0)
    state = build_network(ModelConfig.paper("resnet18")).state_dict()
    checkpoint, output = tmp_path / "caps.pth", str(tmp_path / "model")
    del state["conv_fine.conv.weight"]
    torch.save({"state_dict": state}, checkpoint)
    fails(capsys, ["convert", str(checkpoint), output], r"1 missing \(conv_fine\.conv\.weight\)")
    checkpoint.write_bytes(b"no checkpoint")
    fails(capsys, ["convert", str(checkpoint), output], r"caps\.pth is refused")
    fails(capsys, ["convert", str(tmp_path / "nosuch.pth"), output], r"nosuch\.pth")
    assert files_below(tmp_path) == ["caps.pth"]


# Arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: {match,"),
        (["nosuch"], "nosuch"),
        (["match"], "image0"),
        (["match", "a.png"], "image1"),
        (["match", "a.png", "b.png", "--pairs", "pairs.txt"], "--pairs"),
        (["match", "a.png", "b.png", "--nosuch"], "--nosuch"),
        (["match", "a.png", "b.png", "--K", "1", "2", "3"], "--K"),
        (["match", "a.png", "b.png", "--K", "1", "2", "3", "x"], "--K"),
        (["match", "a.png", "b.png", "--max-keypoints", "many"], "--max-keypoints"),
        (["match", "a.png", "b.png", "--backend", "nosuch"], "--backend"),
        (["extract", "a.png"], "--output"),
        (["locate", "a.png", "b.png"], "--points"),
        (["locate", "a.png", "b.png", "--points", "1"], "'1' is not X,Y"),
        (["locate", "a.png", "b.png", "--points", "1,2,3"], "'1,2,3' is not X,Y"),
        (["locate", "a.png", "b.png", "--points", "1,2", "--points-file", "x.csv"], "not allowed with"),
        (["convert", "a.pth"], "DIR"),
    ],
)
def test_wrong_arguments_show_the_usage(capsys: Capture, arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("usage: capsdesc")
    assert message in output.err.splitlines()[-1]


@pytest.mark.parametrize("command", ["match", "locate"])
def test_missing_and_broken_images_are_named(
    network: list[str], shifted: list[str], tmp_path: Path, capsys: Capture, command: str
) -> None:
    options = [*network, *(["--points", "10,10"] if command == "locate" else [])]
    missing, broken = tmp_path / "missing.png", tmp_path / "broken.png"
    broken.write_bytes(Path(shifted[0]).read_bytes()[:900])
    for images in ((str(missing), shifted[1]), (shifted[0], str(missing))):
        fails(capsys, [command, *images, *options], r"missing\.png")
    fails(capsys, [command, shifted[0], str(broken), *options], r"broken\.png")
    fails(capsys, [command, shifted[0], str(tmp_path), *options], "folder")


def test_missing_csv_is_named(network: list[str], shifted: list[str], tmp_path: Path, capsys: Capture) -> None:
    fails(capsys, ["locate", *shifted, *network, "--points-file", str(tmp_path / "no.csv")], r"no\.csv")


# Errors: whose they are


def raised(call: Callable[[], object]) -> Exception:
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize(
    "call",
    [
        lambda: Path("no such file").read_text(),
        lambda: match(np.ones((2, 3), np.float32), np.ones((2, 3), np.float32), ratio=2),
        lambda: CAPSExtractor("no model"),
    ],
)
def test_errors_that_speak_to_the_user_are_expected(call: Callable[[], object]) -> None:
    assert program.is_expected(raised(call))


@pytest.mark.parametrize(
    "call",
    [
        lambda: np.zeros(3).reshape(2, 2),
        lambda: dict[str, int]()["key"],
        lambda: match(None, None),  # type: ignore[arg-type]
        lambda: int("one"),
        lambda: torch.zeros(2) @ torch.zeros(3),
        lambda: importlib.import_module("no_such_module"),
        lambda: np.ones(2).nosuch,  # type: ignore[attr-defined]
        # Raised in this package's own lines, but by the language.
        lambda: Matches(np.zeros((2, 2), np.int64), np.zeros(1, np.float32)).to_cv2(),
    ],
)
def test_errors_that_are_mistakes_are_not(call: Callable[[], object]) -> None:
    assert not program.is_expected(raised(call))


class Refused(torch.utils.data.Dataset[None]):
    """Loading an item raises what this package says, or a mistake."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> None:
        ones = np.ones((2, 3), np.float32)
        match(ones, ones, ratio=2) if index == 0 else ones.reshape(7)


def test_errors_of_processes_that_load_data_are_told_apart_too() -> None:
    for index, expected in ((0, True), (1, False)):
        loader = torch.utils.data.DataLoader(Refused(), sampler=[index], num_workers=1)
        error = raised(lambda loader=loader: list(loader))  # type: ignore[misc]
        assert program.is_expected(error) is expected
        if expected:
            assert program.message(error) == "ratio is 2; expected a number in (0, 1], or None for no ratio test"


def options_of(run: Callable[[argparse.Namespace], int], **settings: bool) -> argparse.Namespace:
    return argparse.Namespace(run=run, **{"quiet": False, "verbose": False, "debug": False} | settings)


def test_a_mistake_keeps_its_traceback_and_an_error_is_one_line(capsys: Capture) -> None:
    def mistaken(options: argparse.Namespace) -> int:
        return dict[str, int]()["key"]

    def refused(options: argparse.Namespace) -> int:
        raise OSError("two\nlines")

    def interrupted(options: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyError):
        program.run("capsdesc", options_of(mistaken))
    assert program.run("capsdesc", options_of(refused)) == 1
    assert capsys.readouterr().err == "capsdesc: two lines\n"
    assert program.run("capsdesc", options_of(refused, debug=True)) == 1
    error = capsys.readouterr().err
    assert error.startswith("Traceback")
    assert 'raise OSError("two' in error
    assert error.endswith("capsdesc: two lines\n")
    assert program.run("capsdesc", options_of(interrupted)) == 130
    assert capsys.readouterr().err == "capsdesc: interrupted\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_the_common_options(name: str) -> None:
    (subparsers,) = (action for action in build_parser(name)._actions if isinstance(action, argparse._SubParsersAction))
    assert list(subparsers.choices) == list(COMMANDS)
    assert {"--quiet", "--verbose", "--debug"} <= set(subparsers.choices[name]._option_string_actions)


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_is_there_without_networks(argument: str) -> None:
    code = f"""
import sys
from capsdesc.commands.main import main
try:
    main([{argument!r}])
except SystemExit as end:
    assert end.code == 0
    print("loaded", *sys.modules)
"""
    said, _, loaded = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, check=True, capture_output=True, text=True
    ).stdout.rpartition("loaded ")
    assert set(loaded.split()).isdisjoint({"torch", "numpy", "cv2", "scipy"})
    if argument == "--help":
        assert all(re.search(rf"^    {name} +\w", said, re.MULTILINE) for name in COMMANDS)
    else:
        assert said == f"capsdesc {capsdesc.__version__}\n"


# The command as a process of its own


def capsdesc_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "capsdesc.commands.main", *arguments], env=ENVIRONMENT, capture_output=True, text=True
    )


def test_match_as_a_process(network: list[str], shifted: list[str], tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "Bilder für später"  # a path with spaces and letters beyond ASCII
    images = [
        shutil.copy(image, write(folder / f"ß{k}.png", np.zeros((1, 1, 3), np.uint8)))
        for k, image in enumerate(shifted)
    ]
    arguments = ["match", *map(str, images), *network, "--max-keypoints", "100", "-o", str(folder / "ä.jpg")]
    done = capsdesc_command(*arguments)
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"wrote {folder / 'ä.jpg'}\n"
    assert main(arguments) == 0
    assert done.stdout == capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == ["ß0.png", "ß1.png", "ä.jpg"]


def on_a_terminal(*arguments: str) -> str:
    """What the command says on standard error where that is a terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    environment = os.environ | {"PYTHONPATH": str(Path(capsdesc.__file__).parents[1]), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "capsdesc.commands.main", *arguments]
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=theirs, check=False)
    os.close(theirs)
    said = b""
    while part := _read(ours):
        said += part
    os.close(ours)
    return said.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # how Linux says that nobody writes any more
        return b""


def test_quiet_says_errors_alone(network: list[str], shifted: list[str], tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    images = [shifted[0], str(tmp_path / "broken.png")]
    command = ["extract", *images, *network, "--max-keypoints", "10", "-o", str(tmp_path / "features")]
    loud = on_a_terminal(*command)
    assert "extract: 100%" in loud
    assert "left out broken.png" in loud
    assert on_a_terminal(*command, "--overwrite", "-q") == ""
    assert "nosuch.png" in on_a_terminal("match", "nosuch.png", "nosuch.png", "-q")


def test_a_reader_that_goes_away_is_no_error(network: list[str], shifted: list[str]) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(capsdesc.__file__).parents[1]), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "capsdesc.commands.main", "match", *shifted, *network, "--json"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_failure_as_a_process_is_one_line() -> None:
    done = capsdesc_command("match", "nosuch0.png", "nosuch1.png")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("capsdesc: ")
    assert done.stderr.count("\n") == 1
    assert "nosuch0.png" in done.stderr
