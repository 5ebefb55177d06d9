"""SuperPoint's keypoints against the dense scores that its weights give by definition; the weights here are random."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from transformers import SuperPointConfig, SuperPointForKeypointDetection

from capsdesc import CAPSExtractor
from capsdesc.keypoints import Keypoints, SuperPointDetector, get_detector

Pixels = npt.NDArray[np.uint8]
Scores = npt.NDArray[np.float32]

BORDER = 4
THRESHOLD = 0.1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model as the hub keeps them, whose scores differ much from pixel to pixel, without suppression."""
    config = SuperPointConfig(
        encoder_hidden_sizes=[8, 8, 8, 8],
        decoder_hidden_size=8,
        descriptor_decoder_dim=8,
        keypoint_threshold=THRESHOLD,
        nms_radius=0,
        border_removal_distance=BORDER,
        max_keypoints=5,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SuperPointForKeypointDetection(config)
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.normal_(module.weight, std=(3 / module.weight[0].numel()) ** 0.5)
    path = tmp_path_factory.mktemp("superpoint")
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def detector(folder: Path) -> SuperPointDetector:
    return SuperPointDetector(folder, device="cpu")


def picture(height: int, width: int, seed: int = 0) -> Pixels:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    return np.repeat(noise[..., None], 3, axis=2)


def dense_scores(folder: Path, image: Pixels) -> Scores:
    """The score of each pixel in whole cells of 8 x 8: channel 8 y + x of a cell is its pixel (x, y)."""
    state = safetensors.torch.load_file(folder / "model.safetensors")

    def convolve(x: torch.Tensor, name: str) -> torch.Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2)

    x = torch.from_numpy(image[..., 0] / np.float32(255))[None, None]
    for block in range(4):
        for layer in "ab":
            x = convolve(x, f"encoder.conv_blocks.{block}.conv_{layer}").relu()
        if block < 3:
            x = F.max_pool2d(x, 2)
    logits = convolve(convolve(x, "keypoint_decoder.conv_score_a").relu(), "keypoint_decoder.conv_score_b")[0]
    probabilities = logits.softmax(dim=0).numpy()
    scores = np.zeros((8 * logits.shape[1], 8 * logits.shape[2]), np.float32)
    for channel in range(64):
        scores[channel // 8 :: 8, channel % 8 :: 8] = probabilities[channel]
    return scores


def expected(folder: Path, image: Pixels, mask: npt.NDArray[Any] | None = None) -> dict[tuple[int, int], float]:
    """Scores of all keypoints by x and y."""
    height, width = image.shape[:2]
    scores = dense_scores(folder, image)
    return {
        (int(x), int(y)): float(scores[y, x])
        for y, x in np.argwhere(scores > THRESHOLD)
        if BORDER <= x < width - BORDER and BORDER <= y < height - BORDER and (mask is None or mask[y, x])
    }


def by_point(found: Keypoints) -> dict[tuple[float, ...], float]:
    points, scores = np.asarray(found.points), np.asarray(found.scores)
    return {tuple(point): score for point, score in zip(points.tolist(), scores.tolist(), strict=True)}


# A pixel as a float32 fraction of these, times these, may fall below itself.
@pytest.mark.parametrize(("height", "width"), [(77, 123), (64, 64), (123, 77)])
def test_keypoints_are_the_pixels_that_the_scores_are_of(
    folder: Path, detector: SuperPointDetector, height: int, width: int
) -> None:
    image = picture(height, width)
    truth = expected(folder, image)
    assert len(truth) > 20
    found = detector.detect(image, 100_000)
    assert by_point(found) == pytest.approx(truth, rel=1e-4)
    scores = np.asarray(found.scores)
    assert (np.diff(scores) <= 0).all()
    assert found.scales is None
    assert found.angles is None


def test_keypoints_keep_apart(folder: Path) -> None:
    image = picture(96, 128)
    found = SuperPointDetector(folder, nms_radius=4, device="cpu").detect(image, 100_000)
    points = np.asarray(found.points)
    apart = np.abs(points[:, None] - points).max(axis=2)
    np.fill_diagonal(apart, 99)
    assert len(found) > 20
    assert apart.min() > 4
    assert by_point(found).items() <= by_point(SuperPointDetector(folder, device="cpu").detect(image, 100_000)).items()


def test_threshold_replaces_that_of_the_model(folder: Path, detector: SuperPointDetector) -> None:
    image = picture(64, 96)
    fewer = SuperPointDetector(folder, keypoint_threshold=0.3, device="cpu").detect(image, 100_000)
    everything = by_point(detector.detect(image, 100_000))
    assert 0 < len(fewer) < len(everything)
    assert by_point(fewer) == {point: score for point, score in everything.items() if score > 0.3}


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8])
def test_mask_is_applied_before_the_cut(folder: Path, detector: SuperPointDetector, dtype: Any) -> None:
    image = picture(77, 123)
    mask = np.zeros((77, 123), dtype)
    mask[20:60, 70:] = 1
    everything = detector.detect(image, 100_000, mask)
    assert len(everything) > 20
    assert by_point(everything) == pytest.approx(expected(folder, image, mask), rel=1e-4)
    np.testing.assert_allclose(detector.detect(image, 10, mask).points, np.asarray(everything.points)[:10], atol=1e-4)
    assert len(detector.detect(image, 10, np.zeros_like(mask))) == 0


def test_wrong_masks_and_counts_are_refused(detector: SuperPointDetector) -> None:
    image = picture(64, 96)
    with pytest.raises(ValueError, match=r"mask.*\(96, 64\)"):
        detector.detect(image, 10, np.ones((96, 64), bool))
    with pytest.raises(TypeError, match=r"mask.*float"):
        detector.detect(image, 10, np.ones((64, 96)))
    with pytest.raises(ValueError, match=r"max_keypoints.*-1"):
        detector.detect(image, -1)


@pytest.mark.parametrize("shape", [(1, 1), (7, 50), (50, 7), (8, 8)])
def test_tiny_images_have_no_keypoints(detector: SuperPointDetector, shape: tuple[int, int]) -> None:
    found = detector.detect(picture(*shape), 100)
    assert found.points.shape == (0, 2)


def test_no_score_above_the_threshold(folder: Path) -> None:
    found = SuperPointDetector(folder, keypoint_threshold=1, device="cpu").detect(picture(64, 64), 100)
    assert found.points.shape == (0, 2)


def test_large_images_are_shrunk_and_points_are_those_of_the_image(folder: Path, detector: SuperPointDetector) -> None:
    image = picture(150, 200)
    shrunk = np.asarray(cv2.resize(image, (100, 75), interpolation=cv2.INTER_AREA), np.uint8)
    seen = detector.detect(shrunk, 100)
    found = SuperPointDetector(folder, max_size=100, device="cpu").detect(image, 100)
    assert len(found) > 30
    # Halved, pixel 0 covers pixels 0 and 1.
    np.testing.assert_allclose(found.points, 2 * np.asarray(seen.points) + 0.5, atol=1e-4)


def test_extractor_takes_it(
    folder: Path, detector: SuperPointDetector, model_folders: Mapping[str, Path], shifted_pair: Any
) -> None:
    image = shifted_pair[0]
    caps = CAPSExtractor(model_folders["compact"], detector=detector, device="cpu")
    features = caps.extract(image, max_keypoints=50)
    np.testing.assert_array_equal(features.keypoints, detector.detect(image, 50).points)
    np.testing.assert_allclose(features.descriptors, caps.describe(image, features.keypoints), atol=1e-6)


def test_by_name_from_the_cache_of_the_hub(folder: Path, tmp_path: Path) -> None:
    """``capsdesc match --detector superpoint``, the random weights in the place of Magic Leap's."""
    repository = tmp_path / "models--magic-leap-community--superpoint"
    commit = "0" * 40
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    for index in range(2):
        cv2.imwrite(str(tmp_path / f"{index}.png"), picture(96, 128))
    command = [sys.executable, "-m", "capsdesc.commands.main", "match", "0.png", "1.png", "--detector", "superpoint"]
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    count = len(expected(folder, picture(96, 128)))
    assert f"keypoints  {count} and {count}\n" in result.stdout


def test_a_model_that_lacks_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    state = safetensors.torch.load_file(folder / "model.safetensors")
    del state["keypoint_decoder.conv_score_b.bias"]
    safetensors.torch.save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="1 weights are missing"):
        SuperPointDetector(tmp_path)


def test_a_missing_model_is_named_with_the_licence(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"nowhere'.*non-commercial research only"):
        SuperPointDetector(tmp_path / "nowhere")


def test_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"capsdesc\[superpoint\].*non-commercial research only"):
        get_detector("superpoint")


@pytest.mark.parametrize(
    ("field", "value"), [("keypoint_threshold", 1.5), ("keypoint_threshold", -1), ("nms_radius", -1), ("max_size", 7)]
)
def test_wrong_settings_are_refused(folder: Path, field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{field}.*{value}"):
        SuperPointDetector(folder, **{field: value})


def test_its_text_says_how_it_detects(folder: Path) -> None:
    assert "nms_radius=3" in repr(SuperPointDetector(folder, nms_radius=3, device="cpu"))
