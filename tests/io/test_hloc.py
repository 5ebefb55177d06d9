"""hloc's files: written for a reader that knows the format only, and read as hloc writes them."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
import torch

from capsdesc import CAPSExtractor, Features, match
from capsdesc.commands.main import main
from capsdesc.io.hloc import (
    ScoredMatches,
    read_features,
    read_matches,
    read_names,
    read_settings,
    write_features,
    write_matches,
)
from capsdesc.io.pairs import read_pairs
from capsdesc.pipelines.match import PairMatching, match_pairs

Array = npt.NDArray[Any]
Capture = pytest.CaptureFixture[str]
Logs = pytest.LogCaptureFixture


def features(count: int, seed: int = 0, dim: int = 16, scores: bool = True) -> Features:
    """Features with descriptors of unit length."""
    rng = np.random.default_rng(seed)
    descriptors = rng.normal(size=(count, dim)).astype(np.float32)
    return Features(
        keypoints=rng.uniform(0, 4000, (count, 2)).astype(np.float32),
        descriptors=descriptors / np.linalg.norm(descriptors, axis=1, keepdims=True),
        scores=rng.uniform(size=count).astype(np.float32) if scores else None,
        scales=None,
        angles=None,
        image_size=(4032, 3024),
    )


def assert_same(found: Features, expected: Features) -> None:
    for name in ("keypoints", "descriptors", "scores"):
        values = getattr(expected, name)
        if values is None:
            assert getattr(found, name) is None
        else:
            assert getattr(found, name).dtype == np.float32
            np.testing.assert_array_equal(getattr(found, name), np.asarray(values))
    assert found.image_size == expected.image_size
    assert found.scales is None
    assert found.angles is None


# Features


def test_features_are_written_as_hloc_reads_them(tmp_path: Path) -> None:
    path, images = tmp_path / "features.h5", {"b.jpg": features(5), "db/cam 1/ä.jpg": features(3, 1, scores=False)}
    write_features(path, images.items(), settings="some text")
    with h5py.File(path, "r") as file:
        for name, image in images.items():
            group = file[name]
            assert sorted(group) == sorted(
                ["descriptors", "image_size", "keypoints", *(["scores"] if image.scores is not None else [])]
            )
            # Pixel (0, 0) is the centre of the top-left pixel on both sides, so nothing is added.
            assert group["keypoints"].dtype == np.float32
            np.testing.assert_array_equal(group["keypoints"][()], image.keypoints)
            assert group["keypoints"].attrs["uncertainty"] == 1.0
            assert group["descriptors"].dtype == np.float32
            assert group["descriptors"].shape == (16, len(image))
            np.testing.assert_array_equal(group["descriptors"][()].T, image.descriptors)
            assert group["image_size"][()].tolist() == [4032, 3024]
    assert read_names(path) == ["b.jpg", "db/cam 1/ä.jpg"]
    assert read_settings(path) == "some text"
    for name, image in images.items():
        assert_same(read_features(path, name), image)


def test_files_of_hloc_are_read(tmp_path: Path) -> None:
    path, image = tmp_path / "features.h5", features(4)
    with h5py.File(path, "w", libver="latest") as file:
        group = file.create_group("query/a.jpg")
        group.create_dataset("keypoints", data=np.asarray(image.keypoints, np.float16))
        group.create_dataset("descriptors", data=np.asarray(image.descriptors, np.float16).T)
        group.create_dataset("scales", data=np.ones(4, np.float16))
        group.create_dataset("image_size", data=np.array([4032, 3024]))
        file.create_dataset("global/a.jpg/global_descriptor", data=np.ones(8))
    assert read_names(path) == ["query/a.jpg"]
    assert read_settings(path) is None
    found = read_features(path, "query/a.jpg")
    assert found.scores is None
    assert found.keypoints.dtype == found.descriptors.dtype == np.float32
    np.testing.assert_allclose(found.keypoints, image.keypoints, atol=2)
    np.testing.assert_allclose(found.descriptors, image.descriptors, atol=1e-3)


def test_no_images_no_keypoints_and_tensors(tmp_path: Path) -> None:
    path, empty, image = tmp_path / "features.h5", features(0), features(3)
    tensors = Features(
        torch.as_tensor(image.keypoints),
        torch.as_tensor(image.descriptors),
        torch.as_tensor(image.scores),
        None,
        None,
        image.image_size,
    )
    write_features(path, {"empty.jpg": empty, "tensors.jpg": tensors}.items())
    assert_same(read_features(path, "empty.jpg"), empty)
    assert_same(read_features(path, "tensors.jpg"), image)
    write_features(path, [])
    assert read_names(path) == []
    assert read_settings(path) is None


def test_descriptors_that_hloc_would_match_wrongly_are_told(tmp_path: Path, caplog: Logs) -> None:
    path, image = tmp_path / "features.h5", features(3)
    with caplog.at_level(logging.WARNING):
        write_features(path, {"a.jpg": image}.items())
        assert not caplog.records
        raw = Features(image.keypoints, 2 * np.asarray(image.descriptors), None, None, None, image.image_size)
        write_features(path, {"a.jpg": image, "b.jpg": raw}.items())
    (record,) = caplog.records
    assert "not of unit length" in record.getMessage()
    np.testing.assert_array_equal(read_features(path, "b.jpg").descriptors, raw.descriptors)


def test_features_that_the_format_cannot_hold_leave_the_old_file(tmp_path: Path) -> None:
    path, image = tmp_path / "features.h5", features(3)
    write_features(path, {"old.jpg": image}.items())
    views = np.zeros((8, 3, 3, 16), np.float32)
    turned = Features(image.keypoints, views, None, None, None, image.image_size)
    with pytest.raises(ValueError, match=r"'a\.jpg' have shape \(8, 3, 3, 16\).*upright"):
        write_features(path, {"a.jpg": turned}.items())
    with pytest.raises(ValueError, match=r"'a\.jpg' would be written twice"):
        write_features(path, [("a.jpg", image), ("a.jpg", image)])
    with pytest.raises(FileNotFoundError, match="does not exist"):
        write_features(tmp_path / "nosuch" / "features.h5", [])
    assert read_names(path) == ["old.jpg"]
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "file.h5"
    for read in (read_names, read_settings):
        with pytest.raises(FileNotFoundError):
            read(path)
    with h5py.File(path, "w") as file:
        file.create_dataset("a.jpg/keypoints", data=np.zeros((2, 2)))
        file.create_dataset("a.jpg-b.jpg/x", data=np.zeros(2))
    with pytest.raises(ValueError, match=r"'b\.jpg' is not in .*file\.h5"):
        read_features(path, "b.jpg")
    with pytest.raises(ValueError, match=r"'a\.jpg' in .* has no descriptors and no image_size"):
        read_features(path, "a.jpg")
    with pytest.raises(ValueError, match=r"'a\.jpg/b\.jpg' is not in"):
        read_matches(path, "a.jpg", "b.jpg")
    path.write_text("no HDF5")
    with pytest.raises(OSError, match=r"signature|open"):
        read_features(path, "a.jpg")


# Matches


def scored(*rows: tuple[int, int, float]) -> ScoredMatches:
    values = np.array(rows, dtype=np.float64).reshape(-1, 3)
    return ScoredMatches(values[:, :2].astype(np.int64), values[:, 2].astype(np.float32))


def test_matches_are_written_as_hloc_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "matches.h5"
    # More keypoints than 16 bits count.
    found = scored((0, 40000, 0.75), (3, 1, 0.5))
    write_matches(
        path, [(("db/a.jpg", "query/b c.jpg"), 5, found), (("a", "b"), 0, scored()), (("a", "c"), 2, scored())]
    )
    with h5py.File(path, "r") as file:
        group = file["db-a.jpg"]["query-b c.jpg"]
        assert sorted(group) == ["matches0", "matching_scores0"]
        assert group["matches0"].dtype == np.int32
        assert group["matches0"][()].tolist() == [40000, -1, -1, 1, -1]
        assert group["matching_scores0"].dtype == np.float32
        assert group["matching_scores0"][()].tolist() == [0.75, 0, 0, 0.5, 0]
        assert file["a/b/matches0"].shape == (0,)
        assert file["a/c/matches0"][()].tolist() == [-1, -1]
    forward = read_matches(path, "db/a.jpg", "query/b c.jpg")
    assert forward.indices.tolist() == [[0, 40000], [3, 1]]
    assert forward.scores.tolist() == [0.75, 0.5]
    backward = read_matches(path, "query/b c.jpg", "db/a.jpg")
    assert backward.indices.tolist() == [[40000, 0], [1, 3]]
    assert backward.scores.tolist() == [0.75, 0.5]
    assert len(read_matches(path, "a", "c")) == 0


def test_matches_of_hloc_are_read(tmp_path: Path) -> None:
    path = tmp_path / "matches.h5"
    with h5py.File(path, "w", libver="latest") as file:
        file.create_dataset("a.jpg/b.jpg/matches0", data=np.array([-1, 7], np.int16))
        file.create_dataset("a.jpg/b.jpg/matching_scores0", data=np.array([0, 0.5], np.float16))
    found = read_matches(path, "a.jpg", "b.jpg")
    assert found.indices.tolist() == [[1, 7]]
    assert found.indices.dtype == np.int64
    assert found.scores.dtype == np.float32


def test_matches_that_do_not_fit_leave_no_file(tmp_path: Path) -> None:
    path = tmp_path / "matches.h5"
    with pytest.raises(ValueError, match=r"indices 1 to 5 .* expected 0 to 4"):
        write_matches(path, [(("a", "b"), 5, scored((1, 0, 1), (5, 1, 1)))])
    # Slashes and dashes are the same to the format.
    with pytest.raises(ValueError, match=r"'a-b\.jpg/c\.jpg' would be written twice"):
        write_matches(path, [((name, "c.jpg"), 5, scored()) for name in ("a/b.jpg", "a-b.jpg")])
    assert list(tmp_path.iterdir()) == []


# Matching pairs


@pytest.fixture
def images() -> Mapping[str, Features]:
    """Images that show the same points, each with some noise, in another order, with others added."""
    rng = np.random.default_rng(1)
    base = rng.normal(size=(30, 16))
    found = {}
    for k, name in enumerate(("a.jpg", "b.jpg", "sub/c.jpg")):
        rows = np.concatenate([base + rng.normal(scale=0.2, size=base.shape), rng.normal(size=(5 + k, 16))])
        rows = rng.permutation(rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        found[name] = Features(np.zeros((len(rows), 2), np.float32), rows, None, None, None, (64, 48))
    return found


def nearest_by_dot_product(a: Array, b: Array) -> tuple[Array, Array]:
    """Mutual nearest neighbours and their scores as hloc's matcher defines them."""
    similarity = a @ b.T
    forward, backward = similarity.argmax(axis=1), similarity.argmax(axis=0)
    rows = np.flatnonzero(backward[forward] == np.arange(len(a)))
    return np.stack([rows, forward[rows]], axis=1), (similarity.max(axis=1)[rows] + 1) / 2


def test_match_features_gives_what_hloc_would(images: Mapping[str, Features], tmp_path: Path, capsys: Capture) -> None:
    file, pairs, output = (tmp_path / name for name in ("features.h5", "pairs.txt", "matches.h5"))
    write_features(file, images.items())
    pairs.write_text("# first and second\na.jpg b.jpg\n\na.jpg sub/c.jpg\nb.jpg a.jpg\n a.jpg\tb.jpg \n")
    assert main(["match-features", str(file), str(pairs), "-o", str(output)]) == 0
    assert capsys.readouterr().out == f"wrote {output}: 2 pairs\n"
    with h5py.File(output, "r") as written:
        assert sorted(written["a.jpg"]) == ["b.jpg", "sub-c.jpg"]
        assert list(written) == ["a.jpg"]
    for other in ("b.jpg", "sub/c.jpg"):
        found = read_matches(output, "a.jpg", other)
        indices, scores = nearest_by_dot_product(
            np.asarray(images["a.jpg"].descriptors), np.asarray(images[other].descriptors)
        )
        assert len(found) >= 25
        np.testing.assert_array_equal(found.indices, indices)
        np.testing.assert_allclose(found.scores, scores, atol=1e-6)


def test_match_features_options(images: Mapping[str, Features], tmp_path: Path, capsys: Capture) -> None:
    file, pairs, output = (tmp_path / name for name in ("features.h5", "pairs.txt", "matches.h5"))
    write_features(file, images.items())
    pairs.write_text("a.jpg b.jpg\n")
    command = ["match-features", str(file), str(pairs), "-o", str(output)]
    assert main([*command, "--ratio", "0.5"]) == 0
    np.testing.assert_array_equal(
        read_matches(output, "a.jpg", "b.jpg").indices, match(images["a.jpg"], images["b.jpg"], ratio=0.5).indices
    )
    old = output.read_bytes()
    capsys.readouterr()
    for arguments, message in (
        (command, r"matches\.h5 exists; .*--overwrite"),
        ([*command, "--overwrite", "--ratio", "2"], "ratio is 2"),
    ):
        assert main(arguments) == 1
        assert re.search(message, capsys.readouterr().err)
        assert output.read_bytes() == old
    assert main([*command, "--overwrite"]) == 0
    np.testing.assert_array_equal(
        read_matches(output, "a.jpg", "b.jpg").indices, match(images["a.jpg"], images["b.jpg"]).indices
    )
    in_numpy = output.read_bytes()
    assert main([*command, "--overwrite", "--device", "cpu"]) == 0
    in_torch = read_matches(output, "a.jpg", "b.jpg")
    np.testing.assert_array_equal(in_torch.indices, match(images["a.jpg"], images["b.jpg"]).indices)
    output.write_bytes(in_numpy)
    assert main([*command, "--overwrite", "--device", "nowhere"]) == 1
    assert "nowhere" in capsys.readouterr().err
    assert output.read_bytes() == in_numpy


def test_match_features_checks_matches(tmp_path: Path, capsys: Capture) -> None:
    caps, folder = CAPSExtractor(device="cpu"), Path(__file__).parents[2] / "examples" / "data"
    images = {name: caps.extract(folder / name, 300, derivatives=True) for name in ("relief_0.jpg", "relief_1.jpg")}
    file, pairs, output = (tmp_path / name for name in ("features.h5", "pairs.txt", "matches.h5"))
    write_features(file, images.items())
    pairs.write_text("relief_0.jpg relief_1.jpg\n")
    command = ["match-features", str(file), str(pairs), "-o", str(output), "--max-shift", "2"]
    assert main(command) == 0
    found = read_matches(output, "relief_0.jpg", "relief_1.jpg").indices
    expected = match(images["relief_0.jpg"], images["relief_1.jpg"], max_shift=2).indices
    assert 0 < len(found) < len(match(images["relief_0.jpg"], images["relief_1.jpg"]))
    # Half precision may put a match that is just allowed just beyond.
    assert len({tuple(pair) for pair in found} ^ {tuple(pair) for pair in expected}) <= 1
    write_features(file, ((name, replace(image, derivatives=None)) for name, image in images.items()))
    assert main([*command, "--overwrite"]) == 1
    assert "a has no derivatives" in capsys.readouterr().err


def test_an_image_that_is_a_data_set_is_named(tmp_path: Path, capsys: Capture) -> None:
    file, pairs = tmp_path / "features.h5", tmp_path / "pairs.txt"
    with h5py.File(file, "w") as written:
        written["a.jpg"], written["b.jpg"] = np.zeros((3, 2)), np.zeros((3, 2))
    pairs.write_text("a.jpg b.jpg\n")
    assert main(["match-features", str(file), str(pairs), "-o", str(tmp_path / "matches.h5")]) == 1
    error = capsys.readouterr().err
    assert re.fullmatch(r"capsdesc: .*'a\.jpg'.*\n", error), error


def test_match_features_checks_wherever_it_can(
    tmp_path: Path, capsys: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    photographs = Path(__file__).parents[2] / "examples" / "data"
    names = [str(photographs / f"relief_{k}.jpg") for k in range(2)]
    pairs = tmp_path / "pairs.txt"
    pairs.write_text("relief_0.jpg relief_1.jpg\n")

    def matched(features: str, *options: str) -> set[tuple[int, int]]:
        output = tmp_path / "matches.h5"
        command = ["match-features", str(tmp_path / features), str(pairs), "-o", str(output), "--overwrite"]
        assert main([*command, *options]) == 0
        return {(i, j) for i, j in read_matches(output, "relief_0.jpg", "relief_1.jpg").indices.tolist()}

    extract = ["extract", *names, "--max-keypoints", "300", "--device", "cpu"]
    assert main([*extract, "-o", str(tmp_path / "with.h5")]) == 0
    assert main([*extract, "--no-derivatives", "-o", str(tmp_path / "without.h5")]) == 0
    with h5py.File(tmp_path / "without.h5") as file:
        assert "derivatives" not in file["relief_0.jpg"]
    assert matched("with.h5") == matched("with.h5", "--max-shift", "3")
    assert not caplog.records
    unchecked = matched("without.h5")
    assert "without.h5 has no derivatives" in caplog.text
    assert unchecked == matched("with.h5", "--max-shift", "none")
    assert matched("with.h5") < unchecked


def test_pairs_of_raw_descriptors_are_matched_by_distance(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    raw = {
        name: Features(
            np.zeros((40, 2), np.float32), rng.gamma(1, size=(40, 8)).astype(np.float32), None, None, None, (9, 9)
        )
        for name in "ab"
    }
    write_features(tmp_path / "features.h5", raw.items())
    assert match_pairs(tmp_path / "features.h5", [("a", "b")], tmp_path / "matches.h5").matched == (("a", "b"),)
    found = read_matches(tmp_path / "matches.h5", "a", "b")
    np.testing.assert_array_equal(found.indices, match(raw["a"], raw["b"]).indices)
    a, b = (np.asarray(raw[name].descriptors)[found.indices[:, k]] for k, name in enumerate("ab"))
    cosines = [np.dot(x, y) / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(found.scores, (1 + np.array(cosines)) / 2, atol=1e-6)
    assert not np.array_equal(found.indices, nearest_by_dot_product(*(np.asarray(raw[n].descriptors) for n in "ab"))[0])


def test_no_pairs_and_no_keypoints(tmp_path: Path) -> None:
    file, output = tmp_path / "features.h5", tmp_path / "matches.h5"
    write_features(file, {"empty.jpg": features(0), "a.jpg": features(3)}.items())
    assert match_pairs(file, [], output) == PairMatching((), {})
    done = match_pairs(file, [("empty.jpg", "a.jpg"), ("a.jpg", "empty.jpg"), ("a.jpg", "a.jpg")], output)
    assert done == PairMatching((("empty.jpg", "a.jpg"), ("a.jpg", "a.jpg")), {})
    assert len(read_matches(output, "a.jpg", "empty.jpg")) == 0
    assert read_matches(output, "a.jpg", "a.jpg").indices.tolist() == [[0, 0], [1, 1], [2, 2]]


def test_pairs_that_are_wrong_are_named(images: Mapping[str, Features], tmp_path: Path) -> None:
    file, pairs = tmp_path / "features.h5", tmp_path / "pairs.txt"
    for content, message in (
        (b"a.jpg b.jpg\n\nc.jpg\n", r"pairs\.txt, line 3: expected two names of images and found 'c\.jpg'"),
        (b"a b c\n", "line 1: expected two names of images"),
        (b"\xff\xfe a\n", "no UTF-8 text"),
    ):
        pairs.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_pairs(pairs)
    with pytest.raises(FileNotFoundError, match="nosuch"):
        read_pairs(tmp_path / "nosuch.txt")
    write_features(file, images.items())
    with pytest.raises(ValueError, match=r"2 images that are not in .*features\.h5, the first is 'c\.jpg'"):
        match_pairs(file, [("a.jpg", "c.jpg"), ("d.jpg", "a.jpg"), ("a.jpg", "d.jpg")], tmp_path / "matches.h5")
    assert not (tmp_path / "matches.h5").exists()
