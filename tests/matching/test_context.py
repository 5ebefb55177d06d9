"""The matcher that sees context: candidates against numpy, and what any matcher must keep to."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from capsdesc import CAPSMatcher, Features, match
from capsdesc.matching import nearest
from capsdesc.matching.candidates import find_candidates
from capsdesc.matching.context import one_to_one, places
from capsdesc.matching.nearest import most_similar
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


@pytest.mark.parametrize("block", [(2**21, 2**11), (60, 7), (6, 2), (50, 1000)])
@pytest.mark.parametrize(("count0", "count1", "k"), [(53, 38, 3), (4, 60, 2), (1, 1, 2), (0, 3, 2)])
def test_most_similar_of_both_sets_whatever_the_blocks(
    block: tuple[int, int], count0: int, count1: int, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nearest, "_BLOCK_SIZE", block[0])
    monkeypatch.setattr(nearest, "_BLOCK_COLUMNS", block[1])
    rng = np.random.default_rng(2)
    a, b = rng.integers(-2, 3, (count0, 3)), rng.integers(-2, 3, (count1, 3))  # many products are equal
    products = a @ b.T
    found = most_similar(torch.tensor(a).float(), torch.tensor(b).float(), k)
    for matrix, (values, indices) in zip((products, products.T), found, strict=True):
        order = np.argsort(-matrix, axis=1, kind="stable")[:, :k]
        np.testing.assert_array_equal(indices, order)
        np.testing.assert_array_equal(values, np.take_along_axis(matrix, order, axis=1))


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


def test_anchors_are_found_among_keypoints_at_one_place() -> None:
    looks = torch.eye(12)
    where = torch.zeros(12, 2)
    where[8:] = torch.rand(4, 2, generator=torch.Generator().manual_seed(0)) + 1
    candidates = find_candidates((looks, looks), (torch.ones(12), torch.ones(12)), (where, where), 1, 3)
    assert len(candidates.anchors) == 12
    assert candidates.present.all()
    for k, near in enumerate(candidates.near[0].tolist()):
        assert k not in near
        assert len({*near}) == 3
        if k < 8:
            assert max(near) < 8


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


@pytest.mark.parametrize("at_once", [1, 7, 1000])
def test_it_does_not_matter_how_many_look_around_at_once(at_once: int) -> None:
    candidates, _, _ = found_candidates(40, 30)
    network = ContextNetwork(ContextConfig("", width=8, heads=2)).eval()
    with torch.no_grad():
        torch.testing.assert_close(network(candidates, at_once)[-1], network(candidates)[-1])


def test_the_network_looks_around_as_it_is_written_down() -> None:
    """One block in float64 numpy, from its parameters."""
    candidates, _, _ = found_candidates(12, 9, neighbours=12)  # some anchors are missing
    config = ContextConfig("", width=8, heads=2, blocks=1, tokens=3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = ContextNetwork(config).eval()
    p = {name: tensor.double().numpy() for name, tensor in network.state_dict().items()}
    places, near = candidates.places.double().numpy(), candidates.near.numpy()
    present, anchors = candidates.present.numpy(), candidates.anchors.numpy()

    def linear(x: Any, name: str) -> Any:
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def norm(x: Any, name: str) -> Any:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * p[f"{name}.weight"] + p[f"{name}.bias"]

    def attend(queries: Any, keys: Any, values: Any) -> Any:
        heads = []
        for part in (slice(0, 4), slice(4, 8)):
            weights = np.exp(queries[:, part] @ keys[:, part].T / 2)
            heads.append(weights / weights.sum(1, keepdims=True) @ values[:, part])
        return np.hstack(heads)

    angles = (np.hstack([places[0], places[1]])[..., None] * np.pi * 2.0 ** np.arange(-1, 4))[:, :, :]
    waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).reshape(len(angles), -1)
    x = np.hstack([candidates.evidence.double().numpy(), waves])
    x = linear(np.maximum(linear(x, "embed.0"), 0), "embed.2")
    seen = norm(x, "blocks.0.norm")
    heard = []
    for side in (0, 1):
        most, mean = np.zeros((2, len(x), 8))
        for c in range(len(x)):
            around = [anchors[near[side, c, k]] for k in range(12) if present[side, c, k]]
            here = np.array([places[side][a] - places[side][c] for a in around])
            there = np.array([places[1 - side][a] - places[1 - side][c] for a in around])
            scale = max(np.linalg.norm(here, axis=1).max(), 1e-4)
            here, there = here / scale, there / scale
            length, aside = (np.linalg.norm(v, axis=1, keepdims=True) for v in (there, there - here))
            short = there * np.log1p(length) / np.maximum(length, 1e-6)
            reach = np.linalg.norm(here, axis=1, keepdims=True)
            density = np.full_like(aside, np.log(scale) / 4)
            edges = np.hstack([here, short, np.log1p(length), reach, np.log1p(aside), np.exp(-aside), density])
            said = linear(edges, "blocks.0.of_edge") + linear(seen[around], "blocks.0.of_anchor")
            most[c], mean[c] = np.maximum(said, 0).max(0), np.maximum(said, 0).mean(0)
        heard += [most, mean]
    tokens = attend(p["blocks.0.tokens"], *np.split(linear(seen, "blocks.0.to_tokens"), 2, axis=1))
    thought = norm(tokens, "blocks.0.think.0")
    tokens = tokens + linear(np.maximum(linear(thought, "blocks.0.think.1"), 0), "blocks.0.think.3")
    common = attend(linear(seen, "blocks.0.ask"), *np.split(linear(tokens, "blocks.0.from_tokens"), 2, axis=1))
    merged = np.maximum(linear(np.hstack([seen, *heard, common]), "blocks.0.merge.0"), 0)
    expected = linear(norm(x + linear(merged, "blocks.0.merge.2"), "judge.0.0"), "judge.0.1")[:, 0]
    with torch.no_grad():
        np.testing.assert_allclose(network(candidates)[-1], expected, atol=1e-4)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_directions_are_one_where_only_what_is_seen_differs(folder: Path, dtype: torch.dtype) -> None:
    """As with a grid of points in two pictures of a camera that stands still, of which a corner is the same."""
    matcher = CAPSMatcher(folder, device="cpu", dtype=dtype)
    one, other = scene(300, 300)
    rows = [unit(np.asarray(side.descriptors)[:, :-1]) for side in (one, other)]
    rows[1][:3] = rows[0][:3]
    still = [dataclasses.replace(one, descriptors=descriptors) for descriptors in rows]
    forth, back = matcher.match(still[0], still[1], min_score=0), matcher.match(still[1], still[0], min_score=0)
    order = np.argsort(np.asarray(back.indices)[:, 1])
    np.testing.assert_array_equal(forth.indices, np.asarray(back.indices)[order][:, ::-1])
    np.testing.assert_array_equal(np.asarray(forth.scores), np.asarray(back.scores)[order])


@pytest.mark.parametrize("max_shift", [None, 3])
@pytest.mark.parametrize(("count0", "count1"), [(0, 0), (0, 5), (5, 0)])
def test_nothing_matches_nothing(matcher: CAPSMatcher, count0: int, count1: int, max_shift: float | None) -> None:
    sides = (
        dataclasses.replace(side, derivatives=np.ones((len(side), 2, 16), np.float32)) for side in scene(count0, count1)
    )
    found = matcher.match(*sides, max_shift=max_shift)
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


def read_only(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    values = values.copy()
    values.flags.writeable = False
    return values


def mapped(values: npt.NDArray[Any], folder: Path) -> npt.NDArray[Any]:
    path = folder / f"{len(list(folder.iterdir()))}.npy"
    np.save(path, values)
    return np.asarray(np.load(path, mmap_mode="r"))


FORMS: dict[str, Callable[[npt.NDArray[Any], Path], npt.NDArray[Any]]] = {
    "read-only": lambda values, _: read_only(values),
    "memory-mapped": mapped,
    "by columns": lambda values, _: np.asfortranarray(values),
    "backwards": lambda values, _: values[::-1].copy()[::-1],
    "every second": lambda values, _: np.repeat(values, 2, axis=0)[::2],
    "big-endian": lambda values, _: values.astype(values.dtype.newbyteorder(">")),
    "double": lambda values, _: values.astype(np.float64),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("form", FORMS)
def test_arrays_of_all_forms_are_taken_and_left_alone(matcher: CAPSMatcher, form: str, tmp_path: Path) -> None:
    sides = [
        dataclasses.replace(side, derivatives=np.random.default_rng(0).normal(size=(50, 2, 16)).astype(np.float32))
        for side in scene(50, 50)
    ]
    names = ("keypoints", "descriptors", "derivatives")
    given = [
        dataclasses.replace(side, **{name: FORMS[form](getattr(side, name), tmp_path) for name in names})  # type: ignore[arg-type]
        for side in sides
    ]
    before = [getattr(side, name).tobytes() for side in given for name in names]
    for max_shift in (None, 1.0):
        found = matcher.match(*given, min_score=0, max_shift=max_shift)
        expected = matcher.match(*sides, min_score=0, max_shift=max_shift)
        np.testing.assert_array_equal(found.indices, expected.indices)
        np.testing.assert_array_equal(np.asarray(found.scores), np.asarray(expected.scores))
    assert before == [getattr(side, name).tobytes() for side in given for name in names]
    for side in given:
        found = dataclasses.replace(found, indices=FORMS[form](np.asarray(found.indices), tmp_path).astype(np.int64))
        assert len(found.points(side, as_torch(sides[1]))[1]) == len(found)


@pytest.mark.parametrize("half", [np.float16, torch.float16, torch.bfloat16])
def test_descriptors_in_half_precision_are_taken(matcher: CAPSMatcher, half: Any) -> None:
    one, other = scene(50, 50)
    rounded: list[Any] = [np.asarray(side.descriptors, np.float16) for side in (one, other)]
    given = [dataclasses.replace(side, descriptors=rows) for side, rows in zip((one, other), rounded, strict=True)]
    if half is not np.float16:
        given = [as_torch(side) for side in given]
        given = [dataclasses.replace(side, descriptors=side.descriptors.to(half)) for side in given]  # type: ignore[union-attr]
    exact = [dataclasses.replace(side, descriptors=torch.as_tensor(side.descriptors).float().numpy()) for side in given]
    found = matcher.match(given[0], given[1], min_score=0)
    as_numpy = (dataclasses.replace(side, keypoints=np.asarray(side.keypoints)) for side in exact)
    expected = matcher.match(*as_numpy, min_score=0.5)
    assert len(found) >= len(expected) > 0
    known = {tuple(pair) for pair in np.asarray(found.indices).tolist()}
    assert {tuple(pair) for pair in expected.indices.tolist()} <= known


def test_a_matcher_of_descriptors_without_reliability_takes_all_of_their_numbers(tmp_path: Path) -> None:
    """Its descriptors are compared whole, of whatever length they are."""
    config = ContextConfig(MODEL, dimensions=17, width=16, blocks=1, tokens=8, reliability=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_context(tmp_path, config, ContextNetwork(config).state_dict())
    matcher = CAPSMatcher(tmp_path, device="cpu")
    one, other = scene(30, 30)
    found = matcher.match(one, other, min_score=0)
    i, j = np.asarray(found.indices).T
    a, b = np.asarray(one.descriptors), np.asarray(other.descriptors)
    np.testing.assert_allclose(found.distances, np.linalg.norm(a[i] - b[j], axis=1), atol=1e-5)
    for factor in (8.0, 1e200):
        scaled: Any = factor * a.astype(np.float64)
        longer = dataclasses.replace(one, descriptors=scaled)
        np.testing.assert_array_equal(matcher.match(longer, other, min_score=0).indices, found.indices)
    short = dataclasses.replace(one, descriptors=a[:, :-1])
    with pytest.raises(ValueError, match="descriptors of 16 dimensions; this matcher was trained on 17"):
        matcher.match(short, other)


def test_keypoints_beside_their_image_are_matched(matcher: CAPSMatcher) -> None:
    one, other = scene(50, 50)
    beside = dataclasses.replace(one, keypoints=5 * np.asarray(one.keypoints) - 700)
    found = matcher.match(beside, other, min_score=0)
    assert len(found) > 10
    assert np.isfinite(np.asarray(found.scores)).all()
    far = dataclasses.replace(one, keypoints=np.full((50, 2), 1e30, np.float32))
    with pytest.raises(ValueError, match=r"features0 has keypoints at up to 1e\+30 px and the image_size \(320, 240\)"):
        matcher.match(far, other)
    with pytest.raises(ValueError, match=r"features1 has keypoints .* image_size \(0, 0\); expected the width"):
        matcher.match(one, dataclasses.replace(other, image_size=(0, 0)))


def test_features_at_odds_with_themselves_are_refused(matcher: CAPSMatcher) -> None:
    one, other = scene(20, 20)
    points = np.asarray(one.keypoints)
    with pytest.raises(ValueError, match="features1 has 19 keypoints and 20 descriptors"):
        matcher.match(one, dataclasses.replace(other, keypoints=points[:-1]))
    with pytest.raises(ValueError, match=r"the keypoints of features0 must have shape \(N, 2\)"):
        matcher.match(dataclasses.replace(one, keypoints=np.c_[points, points]), other)
    nowhere = points.copy()
    nowhere[3] = np.nan
    with pytest.raises(ValueError, match="the keypoints of features0 must be finite"):
        matcher.match(dataclasses.replace(one, keypoints=nowhere), other)
    with pytest.raises(ValueError, match="features1 has descriptors of lengths up to 3; expected at most 1"):
        matcher.match(one, dataclasses.replace(other, descriptors=3 * np.asarray(other.descriptors)))


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
        ({"depth": 3}, "unknown setting depth"),
        ({"heads": 5}, "multiple"),
        ({"descriptor": None}, "descriptor is None"),
        ({"width": "64"}, "width is '64'; expected an integer"),
        ({"blocks": 2.0}, r"blocks is 2\.0; expected an integer"),
        ({"blocks": 10**9}, "blocks is 1000000000; expected 1 to 4096"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(text | changed))
        (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
        with pytest.raises(ValueError, match=message):
            CAPSMatcher(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(text | {"blocks": 3}))
    with pytest.raises(ValueError, match="missing"):
        CAPSMatcher(tmp_path)


def test_memory_does_not_grow_with_the_square(folder: Path) -> None:
    """20 000 x 20 000 similarities alone would take 1600 MB; in a process of its own, which has no earlier peak."""
    script = """
import resource, sys
import numpy as np
from capsdesc import CAPSMatcher, Features

def features():
    rows = rng.normal(size=(20000, 17)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return Features(rng.uniform(0, 240, (20000, 2)).astype(np.float32), rows, None, None, None, (320, 240))

rng = np.random.default_rng(0)
matcher, sides = CAPSMatcher(sys.argv[1], device="cpu"), (features(), features())
matcher.match(*(Features(s.keypoints[:9], s.descriptors[:9], None, None, None, s.image_size) for s in sides))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert len(matcher.match(*sides, min_score=0)) > 1000
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    run = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 400_000  # kB


def test_match_refuses_what_the_method_does_not_know() -> None:
    one, other = scene(5, 5)
    with pytest.raises(ValueError, match="method is 'glue'"):
        match(one, other, method="glue")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="for nearest neighbours"):
        match(one, other, method="context", ratio=0.8)


# The bundled weights


def test_the_bundled_matcher_goes_with_the_bundled_descriptor() -> None:
    assert CAPSMatcher(device="cpu").config.descriptor == resolve(None).fingerprint
