"""Work on a Ray cluster: workers write what this process alone would write, and what goes wrong there is told here.

Slow: Ray takes some ten seconds to start, and its workers some seconds for each piece of work.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import numpy.typing as npt
import pycolmap
import pytest
import ray
import torch

from capsdesc import CAPSExtractor, Features, match
from capsdesc.commands.main import main
from capsdesc.io.hloc import ScoredMatches, read_features, read_matches, write_features
from capsdesc.io.npz import load_features, save_features
from capsdesc.pipelines.blocks import cut_into_blocks
from capsdesc.pipelines.match import match_pairs
from capsdesc.pipelines.ray import share_out
from capsdesc.pipelines.sfm import SfmConfig, reconstruct

Pixels = npt.NDArray[np.uint8]
Capture = pytest.CaptureFixture[str]

# The last bits of a descriptor depend on how many threads torch computes with.
ROUNDING = 1e-5


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Ray on two CPUs of this machine, in processes of their own."""
    address = os.environ.pop("RAY_ADDRESS", None)
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()
    if address is not None:
        os.environ["RAY_ADDRESS"] = address


@pytest.fixture
def photos(tmp_path: Path, shifted_pair: tuple[Pixels, Pixels, Any]) -> Path:
    """A folder of four images that differ, one of them in a folder of its own."""
    for k, name in enumerate(("a.png", "b.png", "c.png", "sub/d.png")):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.roll(shifted_pair[0][:96, :128], 20 * k, axis=1))
    return tmp_path / "photos"


def files_below(folder: Path) -> dict[str, int]:
    """All files that are no locks, with the times when they were written."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock"))
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in files}


def assert_same(found: Features, expected: Features) -> None:
    assert len(found) == len(expected) > 0
    np.testing.assert_array_equal(found.keypoints, expected.keypoints)
    np.testing.assert_allclose(found.descriptors, expected.descriptors, rtol=0, atol=ROUNDING)


def test_workers_write_what_one_machine_writes(
    model_folders: Mapping[str, Path], photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    model = str(model_folders["compact"])
    caps = CAPSExtractor(model, device="cpu")
    not_utf8, broken = "cafe.png", "broken.png"
    if sys.platform == "linux":
        not_utf8, broken = os.fsdecode(b"caf\xe9.png"), os.fsdecode(b"bris\xe9.png")
    (photos / broken).write_bytes(b"no image")
    (photos / "a.png").rename(photos / not_utf8)
    output = tmp_path / "features"
    command = ["extract", str(photos), "-o", str(output), "--weights", model, "--device", "cpu"]
    on_ray = ["--engine", "ray", "--workers", "2"]
    # A worker cannot write one of them: where its folder is to be, there is a file.
    output.mkdir()
    (output / "sub").write_bytes(b"")
    assert main([*command, *on_ray, "--max-keypoints", "30"]) == 1
    assert re.fullmatch(r"(.*\n)*capsdesc: .*/features/sub.*\n", error := capsys.readouterr().err), error
    (output / "sub").unlink()
    before = files_below(output)
    assert main([*command, *on_ray, "--max-keypoints", "30"]) == 1
    there = f", {len(before)} were there already" if before else ""
    assert f"described {4 - len(before)} of 5 images in {output}{there}, 1 left out" in capsys.readouterr().out
    after = files_below(output)
    assert set(after) == {f"{name}.npz" for name in (not_utf8, "b.png", "c.png", "sub/d.png")}
    assert before.items() <= after.items()
    for name in (not_utf8, "b.png", "c.png", "sub/d.png"):
        assert_same(load_features(output / f"{name}.npz"), caps.extract(photos / name, 30))
    # On one machine nothing is left to do, with the same settings; others are refused.
    (photos / broken).unlink()
    assert main([*command, "--max-keypoints", "30"]) == 0
    assert files_below(output) == after
    assert main([*command, *on_ray, "--max-keypoints", "20"]) == 1
    assert "max_keypoints (30, now 20)" in capsys.readouterr().err
    assert ray.is_initialized()


def test_workers_fill_a_file_of_hloc(
    model_folders: Mapping[str, Path], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a path below the working directory, which is another one in workers."""
    model = str(model_folders["compact"])
    monkeypatch.chdir(tmp_path)
    command = ["extract", "photos", "--weights", model, "--device", "cpu", "--max-keypoints", "30"]
    assert main([*command, "-o", "ray.h5", "--engine", "ray", "--threads", "1"]) == 0
    assert main([*command, "-o", "local.h5"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".lock") == [
        "local.h5",
        "photos",
        "ray.h5",
    ]
    for name in ("a.png", "b.png", "c.png", "sub/d.png"):
        assert_same(read_features("ray.h5", name), read_features("local.h5", name))
    with h5py.File("ray.h5") as found, h5py.File("local.h5") as expected:
        assert dict(found.attrs) == dict(expected.attrs)


def test_a_worker_that_does_not_see_the_output_refuses_to_work(tmp_path: Path) -> None:
    work = share_out([1], enumerate, lock=tmp_path / "lock", device=torch.device("cpu"), per_task=1)
    with pytest.raises(FileNotFoundError, match=r"does not see .*/lock.*storage that all machines see"):
        next(work)


# Matching


NAMES = [f"{k}.jpg" for k in range(7)]
PAIRS = list(itertools.combinations(NAMES, 2))


@pytest.fixture
def images() -> dict[str, Features]:
    """Noisy copies of the same descriptors."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=(40, 16))
    found = {}
    for k, name in enumerate(NAMES):
        rows = np.concatenate([base + rng.normal(scale=0.4, size=base.shape), rng.normal(size=(k, 16))])
        rows = rng.permutation(rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        found[name] = Features(np.zeros((len(rows), 2), np.float32), rows, None, None, None, (64, 48))
    return found


def read_all(path: Path) -> dict[tuple[str, str], ScoredMatches]:
    return {pair: read_matches(path, *pair) for pair in PAIRS}


def assert_same_matches(found: ScoredMatches, expected: ScoredMatches) -> None:
    assert len(expected) > 0
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)


def test_a_stopped_run_matches_the_blocks_that_are_left(images: Mapping[str, Features], tmp_path: Path) -> None:
    file, output, expected = (tmp_path / name for name in ("features.h5", "matches.h5", "expected.h5"))
    write_features(file, images.items())
    match_pairs(file, PAIRS, expected, ratio=0.9)
    # All blocks are matched, and then the file cannot be written: there is a folder.
    output.mkdir()
    with pytest.raises(IsADirectoryError):
        match_pairs(file, PAIRS, output, ratio=0.9, engine="ray", workers=2)
    output.rmdir()
    parts = tmp_path / "matches.h5.parts"
    first, second = cut_into_blocks(PAIRS, parts, _settings(file, 0.9))
    assert set(files_below(parts)) == {first.path.name, second.path.name}
    # One block is told by its matches, which are no others; the other one was lost.
    marked = [(count, ScoredMatches(found.indices[:1], found.scores[:1])) for _, count, found in first.read()]
    first.write(marked)
    second.path.unlink()
    done = match_pairs(file, PAIRS, output, ratio=0.9, engine="ray", workers=2)
    assert done.matched == tuple(PAIRS)
    assert not parts.exists()
    everything = read_all(expected)
    for pair, found in read_all(output).items():
        whole = everything[pair]
        cut = 1 if pair in first.pairs else len(whole)
        assert_same_matches(found, ScoredMatches(whole.indices[:cut], whole.scores[:cut]))
    assert cut_into_blocks(PAIRS, parts, _settings(file, 0.8))[0].path != first.path
    with h5py.File(output) as found_file, h5py.File(expected) as expected_file:
        assert {key: len(found_file[key]) for key in found_file} == {
            key: len(expected_file[key]) for key in expected_file
        }


def _settings(file: Path, ratio: float) -> dict[str, Any]:
    status = file.stat()
    origin = {"size": status.st_size, "modified": status.st_mtime_ns}
    return {**origin, "ratio": ratio, "max_shift": None, "method": "nearest"}


def test_features_come_from_a_folder_and_failures_of_workers_are_told(
    images: Mapping[str, Features], tmp_path: Path, capsys: Capture
) -> None:
    file, folder, pairs = (tmp_path / name for name in ("features.h5", "features", "pairs.txt"))
    write_features(file, images.items())
    folder.mkdir()
    for name, features in images.items():
        save_features(folder / f"{name}.npz", features, settings="{}")
    pairs.write_text("".join(f"{a} {b}\n" for a, b in PAIRS))
    command = ["match-features", str(folder), str(pairs), "-o", str(tmp_path / "ray.h5"), "--engine", "ray"]
    assert main([*command, "--max-shift", "3"]) == 1
    assert re.fullmatch(r"(.*\n)*capsdesc: .*a has no derivatives.*\n", error := capsys.readouterr().err), error
    assert not (tmp_path / "ray.h5").exists()
    assert main([*command, "--max-shift", "none"]) == 0
    assert f"wrote {tmp_path / 'ray.h5'}: 21 pairs" in capsys.readouterr().out
    for source in (file, folder):
        match_pairs(source, PAIRS, tmp_path / "local.h5")
        expected = read_all(tmp_path / "local.h5")
        for pair, found in read_all(tmp_path / "ray.h5").items():
            assert_same_matches(found, expected[pair])


def test_structure_from_motion_has_its_matches_from_workers(
    model_folders: Mapping[str, Path], photos: Path, tmp_path: Path
) -> None:
    """Whether a model comes of it is COLMAP's work, which is done here as ever."""
    out, config = tmp_path / "out", SfmConfig(max_keypoints=60, ratio=0.95, max_shift=None)
    caps = CAPSExtractor(str(model_folders["compact"]), device="cpu")
    reconstruct(photos, out, caps, config, threads=1, engine="ray", workers=1)
    assert not (out / "matches.parts").exists()
    with pycolmap.Database.open(out / "database.db") as database:
        ids = {image.name: image.image_id for image in database.read_all_images()}
        assert set(ids) == {"a.png", "b.png", "c.png", "sub/d.png"}
        total = 0
        for first, second in itertools.combinations(sorted(ids), 2):
            features = [load_features(out / "features" / f"{name}.npz") for name in (first, second)]
            expected = np.asarray(match(*features, ratio=config.ratio).indices)
            found = database.read_matches(ids[first], ids[second])
            assert {tuple(row) for row in found.tolist()} == {tuple(row) for row in expected.tolist()}
            total += len(found)
        assert total > 0
