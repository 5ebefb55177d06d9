"""The network's own keypoints: one pass, the same as two; in parts as in the whole; wherever a detector may be."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch

from capsdesc import CAPSExtractor, match
from capsdesc.keypoints import SIFTDetector, default_detector, detectors, get_detector
from capsdesc.models import tiling
from capsdesc.weights import resolve, save_pretrained

Pixels = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def caps(keypoint_model: Path) -> CAPSExtractor:
    return CAPSExtractor(keypoint_model, detector="caps", device="cpu")


@pytest.fixture(scope="module")
def photo(shifted_pair: tuple[Pixels, Pixels, Any]) -> Pixels:
    return np.ascontiguousarray(shifted_pair[0][:150, :203])


def test_one_pass_is_the_same_as_detecting_and_describing(caps: CAPSExtractor, photo: Pixels) -> None:
    features = caps.extract(photo, 300, derivatives=True)
    keypoints = caps.detect(photo, 300)
    np.testing.assert_array_equal(features.keypoints, keypoints.points)
    np.testing.assert_array_equal(features.scores, keypoints.scores)
    given = caps.extract(photo, keypoints=keypoints, derivatives=True)
    np.testing.assert_allclose(features.descriptors, given.descriptors, atol=1e-5)
    np.testing.assert_allclose(np.asarray(features.derivatives), np.asarray(given.derivatives), atol=1e-5)
    np.testing.assert_allclose(features.descriptors, caps.describe(photo, keypoints), atol=1e-5)
    assert features.image_size == (203, 150)


def test_keypoints_have_scores_and_come_strongest_first(caps: CAPSExtractor, photo: Pixels) -> None:
    keypoints = caps.detect(photo)
    scores = np.asarray(keypoints.scores)
    assert 50 < len(keypoints) < 2048
    assert keypoints.points.dtype == scores.dtype == np.float32
    assert ((scores > 0) & (scores < 1)).all()
    assert (np.diff(scores) <= 0).all()
    assert keypoints.scales is None
    assert keypoints.angles is None
    few = caps.detect(photo, 20)
    np.testing.assert_allclose(few.points, np.asarray(keypoints.points)[:20], atol=1e-4)
    assert len(caps.detect(photo, 0)) == 0
    assert caps.extract(photo, 0, derivatives=True).descriptors.shape == (0, 256)


def test_they_move_with_the_image(caps: CAPSExtractor, shifted_pair: tuple[Pixels, Pixels, Any]) -> None:
    image0, image1, shift = shifted_pair
    found0, found1 = (np.asarray(caps.detect(image).points, dtype=np.float64) for image in (image0, image1))
    # Away from borders, which the network sees too.
    margin = 100
    inside = ((found0 + shift >= margin) & (found0 + shift < (320 - margin, 240 - margin))).all(1)
    inside &= ((found0 >= margin) & (found0 < (320 - margin, 240 - margin))).all(1)
    away = np.linalg.norm(found0[inside, None] + shift - found1[None], axis=-1).min(1)
    assert inside.sum() >= 5
    assert np.median(away) < 0.01


def test_a_mask_says_where_they_may_lie(caps: CAPSExtractor, photo: Pixels) -> None:
    mask = np.zeros(photo.shape[:2], dtype=bool)
    mask[40:90, 60:120] = True
    everywhere = caps.detect(photo)
    column, row = np.rint(np.asarray(everywhere.points)).astype(int).T
    expected = np.asarray(everywhere.points)[mask[row, column]]
    assert len(expected) > 5
    for given in (mask, mask.astype(np.uint8), torch.from_numpy(mask)):
        np.testing.assert_allclose(caps.detect(photo, mask=given).points, expected, atol=1e-4)
        np.testing.assert_allclose(caps.extract(photo, mask=given).keypoints, expected, atol=1e-4)
    np.testing.assert_allclose(caps.detect(photo, 3, mask).points, expected[:3], atol=1e-4)
    assert len(caps.detect(photo, mask=np.zeros_like(mask))) == 0
    with pytest.raises(ValueError, match="mask must have the image's shape"):
        caps.extract(photo, mask=mask[:-1])
    with pytest.raises(TypeError, match="mask"):
        caps.detect(photo, mask=mask.astype(np.float32))


@pytest.mark.parametrize("tile", [64, 100, 150])
def test_parts_of_an_image_have_the_keypoints_of_the_whole(
    caps: CAPSExtractor, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Larger than what the network sees around a point, so that parts are parts.
    small = cv2.GaussianBlur(np.random.default_rng(5).normal(size=(330, 425, 3)), (0, 0), 1.5)
    image = np.clip(128 + 120 * small / small.std(), 0, 255).astype(np.uint8)
    whole = caps.extract(image, derivatives=True)
    monkeypatch.setattr(tiling, "_SEARCHED_TILE", tile)
    parts = caps.extract(image, derivatives=True)
    assert len(whole) > 500
    assert len(parts) == len(whole)
    # Sums in another order may exchange neighbours of equal score.
    order0, order1 = (np.lexsort(np.round(np.asarray(f.keypoints), 1).T) for f in (whole, parts))
    np.testing.assert_allclose(np.asarray(whole.keypoints)[order0], np.asarray(parts.keypoints)[order1], atol=2e-3)
    np.testing.assert_allclose(np.asarray(whole.descriptors)[order0], np.asarray(parts.descriptors)[order1], atol=1e-4)
    np.testing.assert_allclose(np.asarray(whole.scores), np.asarray(parts.scores), atol=1e-5)
    # Also where fewer are asked for than parts have.
    np.testing.assert_allclose(np.asarray(caps.detect(image, 40).scores), np.asarray(whole.scores)[:40], atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (8, 8), (9, 40), (33, 10)])
def test_small_images(caps: CAPSExtractor, size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    features = caps.extract(image, derivatives=True)
    assert len(features.keypoints) == len(features.descriptors) == len(caps.detect(image))
    if min(size) < 9:
        assert len(features) == 0


def test_max_size_finds_them_in_the_smaller_image(keypoint_model: Path, photo: Pixels) -> None:
    small = CAPSExtractor(keypoint_model, detector="caps", device="cpu", max_size=101)
    features = small.extract(photo, derivatives=True)
    assert len(features) > 20
    points = np.asarray(features.keypoints)
    assert ((points >= 0) & (points <= (202, 149))).all()
    assert points[:, 0].max() > 150
    np.testing.assert_array_equal(points, small.detect(photo).points)
    given = small.extract(photo, keypoints=points, derivatives=True)
    np.testing.assert_allclose(features.descriptors, given.descriptors, atol=1e-4)
    np.testing.assert_allclose(np.asarray(features.derivatives), np.asarray(given.derivatives), atol=1e-4)


def test_any_orientation_describes_the_upright_image_s_points(caps: CAPSExtractor, photo: Pixels) -> None:
    features = caps.extract(photo, 50, orientation="any")
    np.testing.assert_array_equal(features.keypoints, caps.detect(photo, 50).points)
    assert features.descriptors.shape == (9, 3, 50, 256)
    np.testing.assert_allclose(features.descriptors[0, 0], caps.extract(photo, 50).descriptors, atol=1e-5)


def test_torch_in_torch_out(caps: CAPSExtractor, photo: Pixels) -> None:
    image = torch.from_numpy(photo).permute(2, 0, 1).float() / 255
    features = caps.extract(image, 100)
    assert all(
        isinstance(values, torch.Tensor) for values in (features.keypoints, features.descriptors, features.scores)
    )
    np.testing.assert_allclose(features.keypoints, caps.extract(photo, 100).keypoints, atol=1e-4)


def test_an_image_matches_itself(caps: CAPSExtractor, photo: Pixels) -> None:
    features = caps.extract(photo, 100)
    assert (matched := np.asarray(match(features, features).indices)).shape == (100, 2)
    assert (matched[:, 0] == matched[:, 1]).all()


def test_a_model_without_them_says_so(model_folders: dict[str, Path]) -> None:
    for folder in model_folders.values():
        with pytest.raises(ValueError, match=r"finds no keypoints; give detector='sift'"):
            CAPSExtractor(folder, detector="caps")


def test_the_default_is_one_line_and_falls_back_on_sift(
    keypoint_model: Path,
    model_folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(detectors, "DEFAULT_DETECTOR", "sift")
    assert CAPSExtractor(keypoint_model).detector == CAPSExtractor(model_folders["paper"]).detector == SIFTDetector()
    monkeypatch.setattr(detectors, "DEFAULT_DETECTOR", "caps")
    assert repr(CAPSExtractor(keypoint_model).detector) == "CAPSDetector()"
    assert CAPSExtractor(keypoint_model, detector="sift").detector == SIFTDetector()
    assert caplog.messages == []
    assert CAPSExtractor(model_folders["paper"]).detector == SIFTDetector()
    assert default_detector(finds_keypoints=False, source="here") == "sift"
    assert caplog.messages == [
        f"the model {model_folders['paper']} finds no keypoints: they are SIFT's",
        "the model here finds no keypoints: they are SIFT's",
    ]


def test_only_an_extractor_has_them() -> None:
    with pytest.raises(ValueError, match=r"part of an extractor: CAPSExtractor\(detector='caps'\)"):
        get_detector("caps")


def test_a_copy_has_a_network_of_its_own(caps: CAPSExtractor, photo: Pixels) -> None:
    copy = pickle.loads(pickle.dumps(caps))
    assert copy.detector._extractor is copy
    np.testing.assert_array_equal(copy.extract(photo, 50).descriptors, caps.extract(photo, 50).descriptors)


def test_they_are_named_in_settings(caps: CAPSExtractor) -> None:
    assert repr(caps.detector) == "CAPSDetector()"


def test_weights_that_were_read_need_not_be_read_again(keypoint_model: Path, photo: Pixels) -> None:
    weights = resolve(keypoint_model)
    ours, sift = CAPSExtractor(weights, detector="caps"), CAPSExtractor(weights)
    assert ours.weights is sift.weights is weights
    np.testing.assert_array_equal(
        ours.describe(photo, np.array([[20.5, 30.0]])),
        CAPSExtractor(keypoint_model).describe(photo, np.array([[20.5, 30.0]])),
    )


def test_a_fingerprint_is_of_the_values_alone(keypoint_model: Path, tmp_path: Path) -> None:
    weights = resolve(keypoint_model)
    save_pretrained(tmp_path / "copy", weights.config, weights.state_dict)
    assert resolve(tmp_path / "copy").fingerprint == weights.fingerprint
    state = dict(weights.state_dict)
    state["keypoint_head.stem.bias"] = state["keypoint_head.stem.bias"] + 1e-3
    save_pretrained(tmp_path / "other", weights.config, state)
    assert resolve(tmp_path / "other").fingerprint != weights.fingerprint


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
