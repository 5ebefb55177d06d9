"""Feature maps, against a bilinear sampler of their own in numpy."""

from __future__ import annotations

import dataclasses
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from reference import bilinear
from torch import Tensor, nn

from capsdesc.models import DenseFeatures, FeatureMap, ModelConfig, SeenImage, build_network, dense_features
from capsdesc.models.maps import cell_scale

Array = npt.NDArray[Any]

SIZES = [(640, 480), (352, 256), (101, 75), (33, 50), (17, 16), (16, 16), (5, 3), (1, 1)]


def random_points(size: tuple[int, int], count: int = 40) -> Array:
    """Points all over an image, its corners among them."""
    rng = np.random.default_rng(0)
    corners = [[0, 0], [size[0] - 1, 0], [0, size[1] - 1], [size[0] - 1, size[1] - 1]]
    return np.concatenate([corners, rng.uniform(0, 1, (count, 2)) * (np.asarray(size) - 1)])


def corner_cells(points: Array, size: tuple[int, int], cells: tuple[int, int]) -> Array:
    """The paper's rule: pixels over -1..1 between the corner pixels' centres, and so the cells."""
    normalized = [
        points[:, axis] / ((size[axis] - 1) / 2) - 1 if size[axis] > 1 else points[:, axis] * 0 for axis in (0, 1)
    ]
    return np.stack([(normalized[axis] + 1) / 2 * (cells[axis] - 1) for axis in (0, 1)], axis=1)


class EveryNthPixel(nn.Module):
    """A network whose cells are pixels of the image itself."""

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return image[..., ::16, ::16], image[..., ::4, ::4]


def normalized_by_imagenet(images: Array) -> Array:
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return np.asarray((images - mean[:, None, None]) / std[:, None, None])


def random_dense(size: tuple[int, int], sampling: str, normalize: bool) -> tuple[DenseFeatures, Array]:
    """Maps of two images, and what the network was given."""
    images = np.random.default_rng(1).uniform(0, 1, (2, 3, size[1], size[0]))
    config = ModelConfig(normalize=normalize, sampling=sampling)
    features = dense_features(EveryNthPixel(), config, torch.from_numpy(images).float())
    return features, normalized_by_imagenet(images)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sampling", ["corners", "stride"])
def test_samples_agree_with_numpy(size: tuple[int, int], sampling: str) -> None:
    features, pixels = random_dense(size, sampling, normalize=False)
    points = random_points(size)
    stacked = torch.from_numpy(np.stack([points, points[::-1].copy()])).float()
    for sampled, stride in zip(features.sample(stacked), (16, 4), strict=True):
        for image in (0, 1):
            values = pixels[image][:, ::stride, ::stride]
            at = stacked[image].double().numpy()
            cells = at / stride if sampling == "stride" else corner_cells(at, size, values.shape[:0:-1])
            np.testing.assert_allclose(sampled[image].numpy(), bilinear(values, cells), atol=5e-4)


def test_corner_sampling_reads_where_the_paper_does_and_not_5_px_beside() -> None:
    width, height, cells = 640, 480, 40
    # Each cell holds the pixel x that it stands for, so a sample tells where it was read.
    positions = np.tile(np.linspace(0, width - 1, cells, dtype=np.float32), (30, 1))
    values = torch.from_numpy(positions)[None, None]
    points = torch.tensor([[[100.0, 240.0], [319.5, 240.0], [540.0, 240.0]]])
    feature_map = FeatureMap(values, cell_scale(values, (width, height), 16, "corners"))
    read = feature_map.sample(points)[0, :, 0]
    np.testing.assert_allclose(read, [100, 319.5, 540], atol=1e-3)

    grid = points / torch.tensor([(width - 1) / 2, (height - 1) / 2]) - 1
    wrong = F.grid_sample(values, grid[:, None], align_corners=False)[0, 0, 0]
    assert float((wrong - read).abs()[[0, 2]].min()) > 5.5


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sampling", ["corners", "stride"])
def test_cells_lie_at_their_rows_and_columns(size: tuple[int, int], sampling: str) -> None:
    features, _ = random_dense(size, sampling, normalize=False)
    for feature_map in (features.coarse, features.fine):
        rows, columns = feature_map.rows, feature_map.columns
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        centres = torch.stack([x.flatten(), y.flatten()], dim=-1).expand(2, -1, -1)
        torch.testing.assert_close(
            feature_map.sample(centres), feature_map.values.flatten(2).transpose(1, 2), atol=5e-4, rtol=0
        )
        assert columns[0] == 0
        assert rows[0] == 0
        assert columns[-1] <= size[0] - 1 + 1e-3
        assert rows[-1] <= size[1] - 1 + 1e-3
        if sampling == "corners" and len(columns) > 1:
            assert float(columns[-1]) == pytest.approx(size[0] - 1)


@pytest.mark.parametrize("sampling", ["corners", "stride"])
def test_points_beyond_the_map_read_its_border(sampling: str) -> None:
    features, _ = random_dense((48, 32), sampling, normalize=False)
    values = features.fine.values
    points = torch.tensor([[[-20.0, -5.0], [70.0, -1.0], [70.0, 90.0]]]).expand(2, -1, -1)
    expected = torch.stack([values[:, :, 0, 0], values[:, :, 0, -1], values[:, :, -1, -1]], dim=1)
    torch.testing.assert_close(features.fine.sample(points), expected)


def test_a_single_cell_is_read_from_everywhere() -> None:
    features, pixels = random_dense((16, 9), "corners", normalize=False)
    sampled = features.coarse.sample(torch.tensor([[[0.0, 0.0], [15.0, 8.0], [7.3, 2.0]]]).expand(2, -1, -1))
    assert features.coarse.values.shape[-2:] == (1, 1)
    np.testing.assert_allclose(sampled, np.repeat(pixels[:, None, :, 0, 0], 3, axis=1), atol=1e-5)


@pytest.mark.parametrize("resized", [(100, 60), (50, 90), (300, 170)])
def test_maps_of_a_resized_image_seen_at_the_original(resized: tuple[int, int]) -> None:
    width, height = 200, 120
    # An image whose pixels hold their own coordinates, resized by OpenCV: its pixels say where they come from.
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    coordinates = cv2.resize(np.dstack([x, y]), resized, interpolation=cv2.INTER_LINEAR)
    feature_map = FeatureMap(torch.from_numpy(coordinates.transpose(2, 0, 1).copy())[None], (1.0, 1.0))
    seen = feature_map.seen_at((resized[0] / width, resized[1] / height))
    inner = np.random.default_rng(0).uniform((4, 4), (width - 5, height - 5), (50, 2)).astype(np.float32)
    np.testing.assert_allclose(seen.sample(torch.from_numpy(inner)[None])[0], inner, atol=2e-2)
    np.testing.assert_allclose(seen.columns[5:-5], coordinates[0, 5:-5, 0], atol=2e-2)
    np.testing.assert_allclose(seen.rows[5:-5], coordinates[5:-5, 0, 1], atol=2e-2)


def test_dense_features_of_a_resized_image_seen_at_the_original() -> None:
    features, _ = random_dense((160, 96), "stride", normalize=True)
    seen = features.seen_at((0.5, 0.75), (320, 128))
    points = random_points((320, 128))
    inside = (points + 0.5) * (0.5, 0.75) - 0.5
    batch, moved = (torch.from_numpy(p).float().expand(2, -1, -1) for p in (points, inside))
    assert seen.image_size == (320, 128)
    torch.testing.assert_close(seen.describe(batch), features.describe(moved), atol=1e-5, rtol=0)


@pytest.mark.parametrize("sampling", ["corners", "stride"])
def test_raw_descriptors_are_both_samples_as_they_are(sampling: str) -> None:
    size = (101, 75)
    features, pixels = random_dense(size, sampling, normalize=False)
    points = random_points(size)
    halves = []
    for stride in (16, 4):
        values = pixels[0][:, ::stride, ::stride]
        cells = points / stride if sampling == "stride" else corner_cells(points, size, values.shape[:0:-1])
        halves.append(bilinear(values, cells))
    described = features.describe(torch.from_numpy(points).float().expand(2, -1, -1))
    np.testing.assert_allclose(described[0], np.concatenate(halves, axis=1), atol=5e-4)


def test_normalized_maps_samples_and_descriptors_have_unit_length() -> None:
    size = (64, 48)
    features, pixels = random_dense(size, "stride", normalize=True)
    points = random_points(size)
    halves = []
    for stride, feature_map in ((16, features.coarse), (4, features.fine)):
        values = pixels[0][:, ::stride, ::stride]
        values = values / np.linalg.norm(values, axis=0)
        np.testing.assert_allclose(feature_map.values[0], values, atol=1e-5)
        half = bilinear(values, points / stride)
        halves.append(half / np.linalg.norm(half, axis=1, keepdims=True))
    batch = torch.from_numpy(points).float().expand(2, -1, -1)
    for sampled, half in zip(features.sample(batch), halves, strict=True):
        np.testing.assert_allclose(sampled[0], half, atol=1e-4)
    whole = np.concatenate(halves, axis=1)
    whole /= np.linalg.norm(whole, axis=1, keepdims=True)
    np.testing.assert_allclose(features.describe(batch)[0], whole, atol=1e-4)


def test_split_keeps_images_and_transforms() -> None:
    features, _ = random_dense((64, 48), "corners", normalize=False)
    first, second = features.split(1)
    points = torch.from_numpy(random_points((64, 48))).float().expand(2, -1, -1)
    both = torch.cat([first.describe(points[:1]), second.describe(points[1:])])
    torch.testing.assert_close(both, features.describe(points))
    assert first.image_size == second.image_size == (64, 48)


def test_no_points_no_descriptors() -> None:
    features, _ = random_dense((64, 48), "corners", normalize=True)
    assert features.describe(torch.zeros(2, 0, 2)).shape == (2, 0, 6)


def test_samples_are_differentiable_in_points_and_values() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(1, 3, 5, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    points = (torch.rand(1, 6, 2, generator=generator, dtype=torch.float64) * 15 + 2).requires_grad_()

    def sample(values: Tensor, points: Tensor) -> Tensor:
        return FeatureMap(values, (3.1, 4.3), (0.4, -0.2)).sample(points)

    assert torch.autograd.gradcheck(sample, (values, points))


def test_reliability_turns_descriptors_away_from_what_can_be_matched() -> None:
    rng = np.random.default_rng(5)
    coarse, fine, logits = (
        torch.from_numpy(rng.normal(size=(1, channels, rows, columns)))
        for channels, rows, columns in ((6, 4, 5), (7, 16, 20), (1, 16, 20))
    )
    plain = DenseFeatures(
        FeatureMap(coarse, (16.0, 16.0)), FeatureMap(fine, (4.0, 4.0)), image_size=(80, 64), normalized=True
    )
    dense = dataclasses.replace(plain, reliability=FeatureMap(logits, (4.0, 4.0)))
    # On cells of the fine map, where nothing is interpolated.
    cells = rng.integers((0, 0), (20, 16), size=(30, 2))
    points = torch.from_numpy(4.0 * cells)[None]

    with_reliability, without = dense.describe(points)[0].numpy(), plain.describe(points)[0].numpy()
    r = 1 / (1 + np.exp(-logits[0, 0].numpy()[cells[:, 1], cells[:, 0]]))
    np.testing.assert_allclose(with_reliability[:, :-1], np.sqrt(r)[:, None] * without, atol=1e-12)
    np.testing.assert_allclose(with_reliability[:, -1], np.sqrt(1 - r), atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(with_reliability, axis=1), 1)
    np.testing.assert_array_equal(dense.without_reliability().describe(points)[0].numpy(), without)

    halves = dense.split(1)[0].seen_at((2.0, 2.0), (40, 32))
    np.testing.assert_allclose(halves.describe((points + 0.5) / 2 - 0.5)[0].numpy(), with_reliability, atol=1e-9)


@pytest.mark.parametrize("size", [(64, 96), (61, 83), (9, 10)])
def test_scores_of_a_seen_image_are_those_of_the_map(size: tuple[int, int]) -> None:
    config = ModelConfig(keypoints=True)
    torch.manual_seed(0)
    network = build_network(config).eval()
    image = torch.rand(1, 3, *size)
    with torch.no_grad():
        dense = dense_features(network, config, image, scores=True).scores
        seen = SeenImage.of(network, config, image).scores()
    assert dense is not None
    assert dense.values.shape == (1, 3, *size)
    torch.testing.assert_close(seen.logits, dense.values[0, 0], rtol=0, atol=0)
    y, x = torch.meshgrid(*map(torch.arange, size), indexing="ij")
    shifts = seen.shifts(torch.stack([x, y], dim=-1).view(-1, 2))
    torch.testing.assert_close(shifts, dense.values[0, 1:].flatten(1).T, rtol=0, atol=1e-6)
    assert (shifts.abs() < 1).all()
    assert shifts.std() > 0.01
