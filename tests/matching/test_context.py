"""The matcher that sees context: candidates against numpy, and what any matcher must keep to."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from capsdesc import CAPSMatcher, Features, match
from capsdesc.matching.candidates import find_candidates
from capsdesc.matching.context import one_to_one, places
from capsdesc.models.context import EVIDENCE, Candidates, ContextConfig, ContextNetwork
from capsdesc.weights import resolve
from capsdesc.weights.context import load_context, save_context

MODEL = "0123456789abcdef"
Floats = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A matcher with random weights."""
    config = ContextConfig(descriptor=MODEL, dimensions=17, width=16, blocks=2, tokens=8, neighbours=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ContextNetwork(config)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    path = tmp_path_factory.mktemp("matcher")
    save_context(path, config, network.state_dict())
    return path


@pytest.fixture(scope="module")
def matcher(folder: Path) -> CAPSMatcher:
    return CAPSMatcher(folder, device="cpu")


def unit(rows: npt.NDArray[Any]) -> Floats:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def scene(count0: int, count1: int, seed: int = 0, *, model: str | None = MODEL) -> tuple[Features, Features]:
    """Features of two images, of which as many as can be are of the same points, moved a little."""
    rng = np.random.default_rng(seed)
    points = rng.uniform((0, 0), (319, 239), (max(count0, count1), 2))
    looks = rng.normal(size=(len(points), 17))
    return (
        features(points[:count0], looks[:count0] + 0.2 * rng.normal(size=(count0, 17)), model),
        features(points[:count1] + np.array([7, -3]), looks[:count1] + 0.2 * rng.normal(size=(count1, 17)), model),
    )


def features(points: npt.NDArray[Any], rows: npt.NDArray[Any], model: str | None = MODEL) -> Features:
    return Features(np.asarray(points, np.float32), unit(rows), None, None, None, (320, 240), model=model)


def as_torch(one: Features) -> Features:
    return dataclasses.replace(
        one, keypoints=torch.as_tensor(one.keypoints), descriptors=torch.as_tensor(one.descriptors)
    )


# Candidates


def found_candidates(
    count0: int, count1: int, count: int = 2, neighbours: int = 3
) -> tuple[Candidates, Floats, Floats]:
    one, other = scene(count0, count1)
    a, b = (np.asarray(side.descriptors)[:, :-1] for side in (one, other))
    a, b = unit(a), unit(b)
    rng = np.random.default_rng(1)
    reliabilities = [torch.as_tensor(rng.uniform(size=len(rows)).astype(np.float32)) for rows in (a, b)]
    where = [places(torch.as_tensor(side.keypoints), side.image_size) for side in (one, other)]
    candidates = find_candidates(
        (torch.as_tensor(a), torch.as_tensor(b)),
        (reliabilities[0], reliabilities[1]),
        (where[0], where[1]),
        count,
        neighbours,
    )
    return candidates, a, b


@pytest.mark.parametrize(("count0", "count1"), [(40, 30), (5, 1), (1, 1), (2, 9)])
def test_candidates_are_the_nearest_in_either_direction(count0: int, count1: int) -> None:
    candidates, a, b = found_candidates(count0, count1)
    similarity = a @ b.T
    expected = {(i, j) for i in range(count0) for j in np.argsort(-similarity[i])[:2]}
    expected |= {(i, j) for j in range(count1) for i in np.argsort(-similarity[:, j])[:2]}
    pairs = list(zip(candidates.rows.tolist(), candidates.columns.tolist(), strict=True))
    assert pairs == sorted(expected)

    assert candidates.evidence.shape == (len(pairs), EVIDENCE)
    for (i, j), row in zip(pairs, candidates.evidence.numpy(), strict=True):
        others = np.delete(similarity[i], j), np.delete(similarity[:, j], i)
        best = [similarity[i, j] >= rest.max(initial=-2) for rest in others]
        # Who has no rival is compared with himself.
        margins = [similarity[i, j] - rest.max() if len(rest) else 0.0 for rest in others]
        np.testing.assert_allclose(row[:3], [similarity[i, j], 4 * margins[0], 4 * margins[1]], atol=1e-5)
        assert row[3:6].tolist() == [best[0], best[1], best[0] and best[1]]


def test_anchors_are_mutual_and_the_nearest_ones_are_found() -> None:
    candidates, a, b = found_candidates(40, 30)
    similarity = a @ b.T
    anchors = [(i, j) for i, j in enumerate(similarity.argmax(1)) if similarity[:, j].argmax() == i]
    found = candidates.rows[candidates.anchors].tolist(), candidates.columns[candidates.anchors].tolist()
    assert list(zip(*found, strict=True)) == anchors
    assert candidates.present.all()
    own = candidates.rows, candidates.columns
    for side in (0, 1):
        spots = candidates.places[side][candidates.anchors].numpy()
        for k in range(0, len(own[side]), 7):
            distances = np.linalg.norm(spots - candidates.places[side][k].numpy(), axis=1)
            distances[[pair[side] == int(own[side][k]) for pair in anchors]] = np.inf
            nearest = distances[candidates.near[side, k].numpy()]
            np.testing.assert_allclose(nearest, np.sort(distances)[:3], atol=1e-6)


def test_missing_anchors_are_told(matcher: CAPSMatcher) -> None:
    candidates, _, _ = found_candidates(2, 2, neighbours=5)
    assert candidates.near.shape[2] == 5
    assert candidates.present.sum(2).max() <= 1
    with torch.no_grad():
        network = ContextNetwork(ContextConfig("", width=8, heads=2))
        assert torch.isfinite(network(candidates)[-1]).all()


def test_what_is_not_present_changes_nothing() -> None:
    candidates, _, _ = found_candidates(12, 9, neighbours=20)
    assert not candidates.present.all()
    with torch.no_grad():
        network = ContextNetwork(ContextConfig("", width=8, heads=2)).eval()
        moved = dataclasses.replace(candidates, near=torch.where(candidates.present, candidates.near, 1))
        torch.testing.assert_close(network(candidates)[-1], network(moved)[-1])


def test_each_keypoint_is_matched_once() -> None:
    candidates, _, _ = found_candidates(40, 30)
    for levels in (1000, 3):  # with few levels most scores are equal
        generator = torch.Generator().manual_seed(levels)
        scores = torch.randint(levels, (len(candidates.rows),), generator=generator) / levels
        kept = one_to_one(candidates, scores, 40, 30)
        for own in (candidates.rows, candidates.columns):
            assert len(set(own[kept].tolist())) == int(kept.sum())
        for k in kept.nonzero()[:, 0].tolist():
            rivals = (candidates.rows == candidates.rows[k]) | (candidates.columns == candidates.columns[k])
            assert scores[k] == scores[rivals].max()


# The matcher


@pytest.mark.parametrize(("count0", "count1"), [(60, 60), (60, 45), (45, 60), (3, 60), (1, 1)])
def test_both_directions_are_one(matcher: CAPSMatcher, count0: int, count1: int) -> None:
    one, other = scene(count0, count1)
    forth, back = matcher.match(one, other, min_score=0), matcher.match(other, one, min_score=0)
    assert len(forth) > 0
    order = np.argsort(np.asarray(back.indices)[:, 1])
    np.testing.assert_array_equal(forth.indices, np.asarray(back.indices)[order][:, ::-1])
    assert forth.scores is not None
    assert back.scores is not None
    np.testing.assert_array_equal(forth.scores, np.asarray(back.scores)[order])
    np.testing.assert_array_equal(forth.indices[:, 0], np.sort(np.asarray(forth.indices)[:, 0]))


@pytest.mark.parametrize(("count0", "count1"), [(0, 0), (0, 5), (5, 0)])
def test_nothing_matches_nothing(matcher: CAPSMatcher, count0: int, count1: int) -> None:
    found = matcher.match(*scene(count0, count1))
    assert np.asarray(found.indices).shape == (0, 2)
    assert np.asarray(found.indices).dtype == np.int64
    assert found.scores is not None
    assert len(found.scores) == len(found.distances) == 0


def test_scores_are_a_threshold(matcher: CAPSMatcher) -> None:
    one, other = scene(80, 80)
    every = matcher.match(one, other, min_score=0)
    assert every.scores is not None
    middle = float(np.median(every.scores))
    fewer = matcher.match(one, other, min_score=middle)
    kept = np.asarray(every.scores) >= middle
    np.testing.assert_array_equal(fewer.indices, np.asarray(every.indices)[kept])


def test_distances_are_those_of_what_keypoints_look_like(matcher: CAPSMatcher) -> None:
    one, other = scene(30, 30)
    found = matcher.match(one, other, min_score=0)
    a, b = (unit(np.asarray(side.descriptors)[:, :-1]) for side in (one, other))
    i, j = np.asarray(found.indices).T
    np.testing.assert_allclose(found.distances, np.linalg.norm(a[i] - b[j], axis=1), atol=1e-5)


def test_torch_comes_back_as_torch(matcher: CAPSMatcher) -> None:
    one, other = scene(40, 40)
    expected = matcher.match(one, other)
    found = matcher.match(as_torch(one), as_torch(other))
    assert isinstance(found.indices, Tensor)
    assert isinstance(found.scores, Tensor)
    np.testing.assert_array_equal(found.indices, expected.indices)
    with pytest.raises(TypeError, match="one of the features is numpy and the other torch"):
        matcher.match(one, as_torch(other))


def test_descriptors_without_reliability_are_taken(matcher: CAPSMatcher) -> None:
    sides = scene(30, 30)
    short = [dataclasses.replace(side, descriptors=unit(np.asarray(side.descriptors)[:, :-1])) for side in sides]
    sure = [
        dataclasses.replace(side, descriptors=np.c_[side.descriptors, np.zeros((30, 1), np.float32)]) for side in short
    ]
    found, expected = matcher.match(short[0], short[1]), matcher.match(sure[0], sure[1])
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_allclose(np.asarray(found.scores), np.asarray(expected.scores), atol=1e-6)


def test_places_do_not_depend_on_the_size_of_images(matcher: CAPSMatcher) -> None:
    """An image twice as large, its keypoints twice as far apart, is the same to the matcher."""
    one, other = scene(50, 50)
    larger = dataclasses.replace(
        one, keypoints=(2 * np.asarray(one.keypoints) + 0.5).astype(np.float32), image_size=(640, 480)
    )
    found, expected = matcher.match(larger, other, min_score=0), matcher.match(one, other, min_score=0)
    np.testing.assert_allclose(np.asarray(found.scores), np.asarray(expected.scores), atol=1e-3)


def test_what_is_not_its_descriptor_is_refused(matcher: CAPSMatcher, folder: Path) -> None:
    one, other = scene(5, 5)
    foreign = scene(5, 5, model="fedcba9876543210")[0]
    with pytest.raises(ValueError, match="features0 was described by the weights fedcba9876543210"):
        matcher.match(foreign, other)
    unknown = scene(5, 5, model=None)
    assert len(matcher.match(*unknown, min_score=0)) > 0
    wide = features(np.zeros((5, 2)), np.ones((5, 40)), None)
    with pytest.raises(ValueError, match=r"features1 has descriptors of 40 dimensions; this matcher was trained on 17"):
        matcher.match(one, wide)
    views = dataclasses.replace(one, descriptors=np.ones((2, 1, 5, 17), np.float32))
    with pytest.raises(ValueError, match="descriptors of several views"):
        matcher.match(views, other)
    with pytest.raises(TypeError, match=r"features0 is ndarray; expected capsdesc\.Features"):
        matcher.match(one.descriptors, other)  # type: ignore[arg-type]
    broken = dataclasses.replace(one, descriptors=np.full((5, 17), np.nan, np.float32))
    with pytest.raises(ValueError, match="NaN or infinite"):
        matcher.match(broken, other)
    with pytest.raises(ValueError, match="min_score is 2"):
        matcher.match(one, other, min_score=2)
    with pytest.raises(ValueError, match="max_shift is -1"):
        matcher.match(one, other, max_shift=-1)
    with pytest.raises(ValueError, match="no derivatives"):
        matcher.match(one, other, max_shift=3)


def test_files_are_read_strictly(folder: Path, tmp_path: Path) -> None:
    assert load_context(folder).config.descriptor == MODEL
    with pytest.raises(FileNotFoundError, match="is no matcher"):
        CAPSMatcher(tmp_path)
    text = json.loads((folder / "config.json").read_text())
    for changed, message in (
        ({"width": 0}, "width is 0"),
        ({"depth": 3}, "differs in depth"),
        ({"heads": 5}, "multiple"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(text | changed))
        (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
        with pytest.raises(ValueError, match=message):
            CAPSMatcher(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(text | {"blocks": 3}))
    with pytest.raises(ValueError, match="missing"):
        CAPSMatcher(tmp_path)


def test_memory_does_not_grow_with_the_square(matcher: CAPSMatcher) -> None:
    """20 000 x 20 000 similarities alone would take 1.6 GB."""
    import resource

    one, other = scene(20000, 20000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    matcher.match(one, other)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # kB


def test_match_refuses_what_the_method_does_not_know() -> None:
    one, other = scene(5, 5)
    with pytest.raises(ValueError, match="method is 'glue'"):
        match(one, other, method="glue")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="for nearest neighbours"):
        match(one, other, method="context", ratio=0.8)


# The bundled weights


def test_the_bundled_matcher_goes_with_the_bundled_descriptor() -> None:
    assert CAPSMatcher(device="cpu").config.descriptor == resolve(None).fingerprint
