"""The whole path on real photographs whose cameras are known from structure from motion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest

from capsdesc import CAPSExtractor, estimate_pose, match
from capsdesc.geometry import epipolar_distance, fundamental_from_pose, relative_pose, rotation_error, translation_error

DATA = Path(__file__).parents[1] / "examples" / "data"
Floats = npt.NDArray[np.float64]


def cameras(subject: str) -> list[dict[str, Floats]]:
    stored = json.loads((DATA / "cameras.json").read_text())
    return [{name: np.array(value) for name, value in stored[f"{subject}_{k}.jpg"].items()} for k in (0, 1)]


@pytest.fixture(scope="module")
def caps() -> CAPSExtractor:
    return CAPSExtractor()


@pytest.fixture(scope="module", params=["caps", "sift"])
def each(request: pytest.FixtureRequest) -> CAPSExtractor:
    """With the network's own keypoints, and with SIFT's."""
    return CAPSExtractor(detector=request.param)


@pytest.mark.parametrize("subject", ["relief", "tankard"])
def test_the_pose_is_that_of_structure_from_motion(each: CAPSExtractor, subject: str) -> None:
    features0, features1 = (each.extract(DATA / f"{subject}_{k}.jpg") for k in (0, 1))
    matches = match(features0, features1)
    points0 = features0.keypoints[matches.indices[:, 0]]
    points1 = features1.keypoints[matches.indices[:, 1]]
    camera0, camera1 = cameras(subject)
    R, t = relative_pose(camera0["R"], camera0["t"], camera1["R"], camera1["t"])

    F = fundamental_from_pose(R, t, camera0["K"], camera1["K"])
    near_line = epipolar_distance(points0, points1, F) < 4
    assert near_line.mean() > 0.5
    # Points matched at random lie near their line by chance only.
    shuffled = np.random.default_rng(0).permutation(points1)
    assert (epipolar_distance(points0, shuffled, F) < 4).mean() < 0.1

    pose = estimate_pose(points0, points1, camera0["K"], camera1["K"])
    assert pose is not None
    assert rotation_error(pose.R, R) < 3
    assert translation_error(pose.t, t, sign_matters=True) < 5
    assert pose.inliers.sum() > 100


@pytest.mark.parametrize("subject", ["relief", "tankard"])
def test_matches_that_should_not_move_are_right_more_often(subject: str) -> None:
    caps = CAPSExtractor(detector="sift")  # whose keypoints are not often found again
    features0, features1 = (caps.extract(DATA / f"{subject}_{k}.jpg", derivatives=True) for k in (0, 1))
    camera0, camera1 = cameras(subject)
    R, t = relative_pose(camera0["R"], camera0["t"], camera1["R"], camera1["t"])
    F = fundamental_from_pose(R, t, camera0["K"], camera1["K"])

    def near_line(max_shift: float | None) -> npt.NDArray[np.bool_]:
        i, j = match(features0, features1, max_shift=max_shift).indices.T
        return np.asarray(epipolar_distance(features0.keypoints[i], features1.keypoints[j], F) < 2)

    everything, checked = near_line(None), near_line(3)
    assert checked.mean() > everything.mean() + 0.03
    assert checked.sum() > 0.85 * everything.sum()


@pytest.mark.parametrize("subject", ["relief", "tankard"])
def test_more_matches_in_context_are_right(caps: CAPSExtractor, subject: str) -> None:
    features0, features1 = (caps.extract(DATA / f"{subject}_{k}.jpg") for k in (0, 1))
    camera0, camera1 = cameras(subject)
    R, t = relative_pose(camera0["R"], camera0["t"], camera1["R"], camera1["t"])
    F = fundamental_from_pose(R, t, camera0["K"], camera1["K"])

    def near_line(method: Literal["nearest", "context"]) -> npt.NDArray[np.bool_]:
        i, j = match(features0, features1, method=method).indices.T
        return np.asarray(epipolar_distance(features0.keypoints[i], features1.keypoints[j], F) < 2)

    nearest, context = near_line("nearest"), near_line("context")
    assert context.sum() > 1.1 * nearest.sum()
    assert context.mean() > nearest.mean() - 0.01


@pytest.mark.parametrize("subject", ["relief", "tankard"])
def test_points_that_were_moved_are_found_out(caps: CAPSExtractor, subject: str) -> None:
    photograph = DATA / f"{subject}_0.jpg"
    points = np.asarray(caps.detect(photograph, 400).points)
    points = points[(points > 12).all(1) & (points < 467).all(1)]
    angles = np.random.default_rng(0).uniform(0, 2 * np.pi, len(points))
    features = caps.extract(photograph, keypoints=points, derivatives=True)

    def kept(distance: float) -> float:
        """Share of the points that match themselves, of those that would without the check."""
        moved = points + distance * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        there = caps.extract(photograph, keypoints=moved, derivatives=True)
        pairs, checked = (match(features, there, max_shift=max_shift).indices for max_shift in (None, 3))
        same = [int(np.count_nonzero(each[:, 0] == each[:, 1])) for each in (pairs, checked)]
        assert same[0] > 20
        return same[1] / same[0]

    assert kept(1) > 0.95
    assert kept(6) < 0.1


def test_located_points_lie_on_their_epipolar_lines(caps: CAPSExtractor) -> None:
    camera0, camera1 = cameras("tankard")
    R, t = relative_pose(camera0["R"], camera0["t"], camera1["R"], camera1["t"])
    F = fundamental_from_pose(R, t, camera0["K"], camera1["K"])
    points = caps.detect(DATA / "tankard_0.jpg", 500).points
    located = caps.locate(points, DATA / "tankard_0.jpg", DATA / "tankard_1.jpg")
    distances = epipolar_distance(points, located.points, F)
    sure = np.asarray(located.std) < np.median(np.asarray(located.std))
    assert np.median(distances[sure]) < 4
    # The standard deviation tells good answers from bad ones.
    assert np.median(distances[sure]) < np.median(distances[~sure])
