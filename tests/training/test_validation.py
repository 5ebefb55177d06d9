"""What validation measures, against the extractor, OpenCV's matcher and numpy."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from test_training import make_scene
from torch import nn

from capsdesc import CAPSExtractor
from capsdesc.geometry import epipolar_distance
from capsdesc.training.config import TrainingConfig
from capsdesc.training.dataset import DataConfig, PairDataset, Scene
from capsdesc.training.start import read_scenes
from capsdesc.training.validation import KEYPOINTS, validate
from capsdesc.weights import resolve

Array = npt.NDArray[Any]

CPU = torch.device("cpu")
CONFIG = TrainingConfig(
    data=DataConfig(width=192, height=144, queries=40, planar_share=0.0, augmentation=None),
    batch_size=2,
    precision="float32",
)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return read_scenes(make_scene(tmp_path_factory.mktemp("scene") / "wall").folder, CONFIG.data)[0]


@pytest.fixture(scope="module")
def network(model_folders: Mapping[str, Path]) -> nn.Module:
    return resolve(str(model_folders["compact"])).build()


def errors(points0: Array, points1: Array, pair: Any) -> Array:
    """Distances to the line, or to the known place."""
    if pair.planar:
        places = cv2.perspectiveTransform(points0[None].astype(np.float64), pair.homography)[0]
        return np.asarray(np.linalg.norm(points1 - places, axis=1))
    distances: Array = epipolar_distance(points0.astype(np.float64), points1.astype(np.float64), pair.fundamental)
    return distances


@pytest.mark.parametrize("planar_share", [0.0, 1.0])
def test_validation_measures_what_the_extractor_does(
    scene: Scene, model_folders: Mapping[str, Path], network: nn.Module, planar_share: float
) -> None:
    data = dataclasses.replace(CONFIG.data, planar_share=planar_share)
    pairs = PairDataset([scene], [], data, seed=0, length=3)
    result = validate(network, dataclasses.replace(CONFIG, data=data), pairs, CPU)
    extractor = CAPSExtractor(model_folders["compact"], device="cpu")
    located, stds, matched = [], [], []
    for index in range(3):
        pair = pairs[index]
        images = [np.ascontiguousarray(image.transpose(1, 2, 0)) for image in (pair.image0, pair.image1)]
        queries = pair.points[pair.valid].astype(np.float32)
        found = extractor.locate(queries, images[0], images[1])
        located.append(errors(queries, np.asarray(found.points), pair))
        stds.append(np.asarray(found.std))
        features = [extractor.extract(image, max_keypoints=KEYPOINTS) for image in images]
        matches = cv2.BFMatcher(cv2.NORM_L2, crossCheck=True).match(*(np.asarray(f.descriptors) for f in features))
        rows = np.array([(found_match.queryIdx, found_match.trainIdx) for found_match in matches])
        points0, points1 = (np.asarray(f.keypoints)[rows[:, k]] for k, f in enumerate(features))
        matched.append(errors(points0, points1, pair))
    error, std, match_error = map(np.concatenate, (located, stds, matched))
    surer = error[np.argsort(std)[: (len(std) + 1) // 2]]
    # torch takes the lower of the two middle values.
    assert result.median_px == pytest.approx(np.quantile(error, 0.5, method="lower"), rel=1e-3)
    assert result.surer_median_px == pytest.approx(np.quantile(surer, 0.5, method="lower"), rel=1e-3)
    assert result.within_3px == pytest.approx((error <= 3).mean(), abs=0.01)
    assert result.matches == pytest.approx(len(match_error) / 3, rel=0.01)
    assert result.match_precision == pytest.approx((match_error <= 3).mean(), abs=0.01)
    assert result.right_matches == pytest.approx((match_error <= 3).sum() / 3, rel=0.02)
    assert result.net_matches == pytest.approx(((match_error <= 3).sum() - (match_error > 3).sum()) / 3, abs=0.5)
    assert result.pairs == 3
    assert 0.05 < result.match_precision < 0.95
    assert result.matches > 40


def test_the_mode_and_the_weights_stay(scene: Scene, network: nn.Module) -> None:
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    first = validate(network, CONFIG, PairDataset([scene], [], CONFIG.data, seed=0, length=2), CPU)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert validate(network.eval(), CONFIG, PairDataset([scene], [], CONFIG.data, seed=0, length=2), CPU) == first


def test_views_without_keypoints_match_nothing(scene: Scene, network: nn.Module, tmp_path: Path) -> None:
    grey = []
    for k, photograph in enumerate(scene.photographs):
        path = tmp_path / f"{k}.png"
        cv2.imwrite(str(path), np.full((photograph.camera.height, photograph.camera.width, 3), 128, dtype=np.uint8))
        grey.append(dataclasses.replace(photograph, path=path))
    data = dataclasses.replace(CONFIG.data, sift_share=0.0, max_zoom=0.1, zoom_sigma=0.0, turn_sigma=0.0)
    pairs = PairDataset([dataclasses.replace(scene, photographs=grey)], [], data, seed=0, length=2)
    result = validate(network, dataclasses.replace(CONFIG, data=data), pairs, CPU)
    assert result.matches == result.match_precision == result.right_matches == result.net_matches == 0
    assert result.median_px > 0
