"""Names of photographs that a file system, a format or another tool does not take: the others lose nothing by them."""

from __future__ import annotations

import logging
import os
import sqlite3
import sys
from collections.abc import Mapping
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest

from capsdesc import CAPSExtractor, Features
from capsdesc.commands.main import main
from capsdesc.images import IMAGE_SUFFIXES, find_images, read_image
from capsdesc.io.hloc import read_features, read_matches, read_names, write_features
from capsdesc.io.npz import save_features
from capsdesc.io.text import parse_json, parse_yaml, read_text
from capsdesc.pipelines.colmap import find_photographs
from capsdesc.pipelines.extract import extract_images, name_images
from capsdesc.pipelines.match import match_pairs
from capsdesc.pipelines.stores import HlocFile, NpzFolder, feature_sink

# As old archives and Latin-1 disks have it.
NOT_UTF8 = os.fsdecode(b"caf\xe9.png")
LONG = "x" * 250 + ".png"

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names themselves")


@pytest.fixture
def network(model_folders: Mapping[str, Path]) -> list[str]:
    return ["--weights", str(model_folders["compact"]), "--device", "cpu", "--threads", "1", "--max-keypoints", "9"]


@pytest.fixture
def caps(model_folders: Mapping[str, Path]) -> CAPSExtractor:
    return CAPSExtractor(model_folders["compact"], device="cpu")


def photograph(seed: int = 0) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return cv2.imencode(".png", cv2.resize(noise, (80, 60)))[1].tobytes()


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for k, name in enumerate(("a.png", NOT_UTF8, LONG, "z.png")):
        (folder / name).write_bytes(photograph(k))
    return folder


@linux_only
@pytest.mark.parametrize(("output", "left_out"), [("out", [LONG]), ("out.H5", [NOT_UTF8, LONG])])
def test_what_cannot_be_kept_is_left_out_before_any_work(
    photographs: Path,
    network: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    output: str,
    left_out: list[str],
) -> None:
    path = tmp_path / output
    command = ["extract", str(photographs), "-o", str(path), *network]
    assert main(command) == 1
    assert f"described {4 - len(left_out)} of 4 images in {path}, {len(left_out)} left out" in capsys.readouterr().out
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == len(left_out)
    for name in left_out:
        (line,) = (line for line in told if line.startswith(f"left out {name}: "))
        assert ("is no UTF-8" if name == NOT_UTF8 else "File name too long") in line
    # Under other names they come to the others.
    for k, name in enumerate(left_out):
        (photographs / name).rename(photographs / f"new {k}.png")
    assert main(command) == 0
    kept = {name.name for name in photographs.iterdir()}
    sink = feature_sink(path)
    assert isinstance(sink, HlocFile if output == "out.H5" else NpzFolder)
    assert set(sink.stored(kept)) == kept
    assert path.is_file() == (output == "out.H5")


@linux_only
def test_a_part_that_the_file_cannot_take_is_dropped(photographs: Path, caps: CAPSExtractor, tmp_path: Path) -> None:
    """A run of an earlier version left it."""
    output, parts = tmp_path / "out.h5", tmp_path / "out.h5.parts"
    parts.mkdir()
    features = caps.extract(photographs / "a.png", 9)
    save_features(parts / f"{NOT_UTF8}.npz", features, settings="{}")
    (photographs / NOT_UTF8).unlink()
    extract_images(caps, name_images([photographs / "a.png"]), HlocFile(output), max_keypoints=9)
    assert read_names(output) == ["a.png"]
    assert not parts.exists()


@linux_only
def test_colmap_gets_photographs_that_it_can_name(photographs: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert list(find_photographs(photographs)) == ["a.png", LONG, "z.png"]
    assert f"left out {NOT_UTF8}: its name is no UTF-8" in caplog.text


@linux_only
def test_sfm_leaves_such_photographs_out(
    photographs: Path, network: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert main(["sfm", str(photographs), str(tmp_path / "out"), *network]) == 1  # no two of them overlap
    with sqlite3.connect(tmp_path / "out" / "database.db") as opened:
        assert opened.execute("SELECT name FROM images ORDER BY name").fetchall() == [("a.png",), ("z.png",)]
    assert f"left out {NOT_UTF8}: " in caplog.text
    assert f"left out {LONG}: " in caplog.text


# Where photographs are found


def test_every_ending_is_one_that_opencv_reads(tmp_path: Path) -> None:
    pixels = np.full((64, 80, 3), 255, np.uint8)
    for k, suffix in enumerate(IMAGE_SUFFIXES):
        assert cv2.haveImageWriter(f"a{suffix}")
        ending = suffix.upper() if k % 2 else suffix
        written = pixels[..., 0] if suffix in (".pbm", ".pgm") else pixels
        (tmp_path / f"a{ending}").write_bytes(cv2.imencode(suffix, written)[1].tobytes())
    found = find_images(tmp_path)
    assert {path.suffix.lower() for path in found} == set(IMAGE_SUFFIXES) >= {".pgm", ".ppm", ".tif", ".webp", ".jp2"}
    for path in found:
        assert read_image(path).shape == (64, 80, 3)
        assert read_image(path).min() >= 250


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "photographs", tmp_path / "elsewhere"
    for path in (folder / "b" / "own.png", elsewhere / "deep" / "linked.png"):
        path.parent.mkdir(parents=True)
        path.write_bytes(photograph())
    (folder / "link").symlink_to(elsewhere, target_is_directory=True)
    # Loops, second ways to one folder, a link to a file, and links to nowhere.
    (folder / "b" / "up").symlink_to(folder, target_is_directory=True)
    (folder / "a").symlink_to(folder / "b", target_is_directory=True)
    (folder / "z").symlink_to(elsewhere, target_is_directory=True)
    (elsewhere / "deep" / "back").symlink_to(folder, target_is_directory=True)
    (folder / "file.png").symlink_to(elsewhere / "deep" / "linked.png")
    (folder / "self").symlink_to(folder / "self")
    (folder / "lost.png").symlink_to(folder / "nothing")
    found = [path.relative_to(folder).as_posix() for path in find_images(folder)]
    assert found == ["b/own.png", "file.png", "link/deep/linked.png"]


# Lists and settings


def test_byte_order_marks_are_no_part_of_what_is_read(tmp_path: Path) -> None:
    for text, parse in (('{"a": 1}', parse_json), ("a: 1", parse_yaml)):
        path = tmp_path / "file"
        path.write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert parse(read_text(path), "file") == {"a": 1}


# Pairs


def features(seed: int, broken: bool = False) -> Features:
    descriptors = np.random.default_rng(seed).normal(size=(20, 8)).astype(np.float32)
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    if broken:
        descriptors[3, 2] = np.nan
    return Features(np.zeros((20, 2), np.float32), descriptors, None, None, None, (60, 40))


def test_pairs_that_hloc_calls_the_same_are_found_before_any_matching(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    names = ("a-b/c.jpg", "a/b-c.jpg", "p.jpg", "q.jpg", "nan.jpg")
    file, output = tmp_path / "f.h5", tmp_path / "m.h5"
    write_features(file, [(name, features(k, name == "nan.jpg")) for k, name in enumerate(names)])
    with h5py.File(file, "a") as opened:
        del opened["q.jpg/descriptors"]
    (tmp_path / "pairs.txt").write_text(
        "p.jpg q.jpg\na-b/c.jpg p.jpg\np.jpg a/b-c.jpg\nnan.jpg p.jpg\na-b/c.jpg a/b-c.jpg\na-b/c.jpg a-b/c.jpg\n"
    )
    assert main(["match-features", str(file), str(tmp_path / "pairs.txt"), "-o", str(output)]) == 1
    assert capsys.readouterr().out == f"wrote {output}: 2 pairs, 4 left out\n"
    told = [line for line in (record.getMessage() for record in caplog.records) if line.startswith("left out")]
    assert [line.partition(":")[0] for line in told] == [
        "left out p.jpg and q.jpg",
        "left out p.jpg and a/b-c.jpg",
        "left out nan.jpg and p.jpg",
        "left out a-b/c.jpg and a/b-c.jpg",
    ]
    assert "'q.jpg' in" in told[0]
    assert "has no descriptors" in told[0]
    assert "call them 'p.jpg/a-b-c.jpg', no other than a-b/c.jpg and p.jpg" in told[1]
    assert "descriptors of 'nan.jpg' in" in told[2]
    assert "are not finite" in told[2]
    assert len(read_matches(output, "a-b/c.jpg", "a-b/c.jpg")) == 20
    assert len(read_matches(output, "p.jpg", "a-b/c.jpg")) > 0


def test_a_matcher_on_a_device_finds_the_same(tmp_path: Path) -> None:
    write_features(tmp_path / "f.h5", [(name, features(k)) for k, name in enumerate("ab")])
    for device, name in ((None, "numpy.h5"), ("cpu", "torch.h5")):
        done = match_pairs(tmp_path / "f.h5", [("a", "b")], tmp_path / name, device=device)
        assert done.matched == (("a", "b"),)
    one, other = (read_matches(tmp_path / name, "a", "b") for name in ("numpy.h5", "torch.h5"))
    np.testing.assert_array_equal(one.indices, other.indices)
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-6)


@pytest.mark.parametrize("names", [("a.jpg", "b.jpg"), ("b.jpg", "a.jpg")])
def test_matches_of_older_hloc_are_read(tmp_path: Path, names: tuple[str, str]) -> None:
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["sub-a.jpg_b.jpg/matches0"] = np.array([2, -1, 0])
        file["sub-a.jpg_b.jpg/matching_scores0"] = np.array([0.5, 0, 0.25])
    found = read_matches(tmp_path / "m.h5", *(name.replace("a", "sub/a") for name in names))
    expected = [[0, 2], [2, 0]]
    assert found.indices.tolist() == (expected if names[0] == "a.jpg" else [pair[::-1] for pair in expected])
    assert found.scores.tolist() == [0.5, 0.25]


def test_a_data_set_is_no_image(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["a.jpg"] = np.zeros((3, 2))
    with pytest.raises(ValueError, match=r"'a\.jpg' in .* is a data set; expected a group with keypoints"):
        read_features(tmp_path / "f.h5", "a.jpg")
