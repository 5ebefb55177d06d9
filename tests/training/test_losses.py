"""The losses, re-derived point by point in numpy, and on scenes whose answer is known."""

from __future__ import annotations

import dataclasses
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from reference import bilinear, dense, numpy_back_again, numpy_coarse_to_fine, random_maps, random_pixels
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from capsdesc.geometry import fundamental_from_pose
from capsdesc.models import DenseFeatures, FeatureMap
from capsdesc.training.losses import (
    LossConfig,
    caps_loss,
    certainty_weighted_mean,
    contrastive_loss,
    matching_loss,
    reliability_loss,
)
from capsdesc.training.supervision import Supervision, epipolar_distance, match_error, transfer

Array = npt.NDArray[Any]
Terms = dict[str, tuple[Array, Array, Array]]

SIZE = (160, 120)
WEIGHTS = {"epipolar_coarse": 1.0, "epipolar_fine": 1.0, "cycle_coarse": 0.1, "cycle_fine": 0.1}
TEMPERATURES = np.array([0.5, 0.25])


class Temperatures(nn.Module):
    """All that the loss asks of a network."""

    def __init__(self) -> None:
        super().__init__()
        self.log_inverse_temperature = nn.Parameter(torch.from_numpy(np.log(TEMPERATURES)))


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """Three pairs whose images nearly agree, the last related by a homography."""

    maps0: tuple[Tensor, Tensor]
    maps1: tuple[Tensor, Tensor]
    supervision: Supervision

    @property
    def features(self) -> tuple[DenseFeatures, DenseFeatures]:
        return dense(SIZE, *self.maps0), dense(SIZE, *self.maps1)

    def loss(self, config: LossConfig | None = None) -> dict[str, Tensor]:
        return caps_loss(Temperatures(), *self.features, self.supervision, config or LossConfig())


def random_case(count: int = 25) -> Case:
    """Loops close for some points and not for others, and lines pass near some answers only."""
    maps0 = random_maps(SIZE, 0, channels=24, images=3)
    noise = random_maps(SIZE, 1, channels=24, images=3)
    maps1 = tuple(a + 0.7 * b for a, b in zip(maps0, noise, strict=True))
    rng = np.random.default_rng(3)
    # Of small motions, so that lines pass through the points' own surroundings or well beside them.
    fundamental = np.stack(
        [
            fundamental_from_pose(
                Rotation.from_rotvec(rng.normal(0, 0.1, 3)).as_matrix(),
                rng.normal(size=3),
                np.array([[150, 0, 80], [0, 150, 60], [0, 0, 1.0]]),
                np.array([[130, 0, 75], [0, 140, 62], [0, 0, 1.0]]),
            )
            for _ in range(3)
        ]
    )
    homography = np.array([[1.01, 0.02, -2.0], [-0.01, 0.98, 3.0], [1e-5, -2e-5, 1.0]])
    points = random_pixels(SIZE, count, images=3)
    # Coarse loops end on the cells they start from: only points near a cell can come close.
    points[:, ::2] = (points[:, ::2] / 16).round().clamp(max=7) * 16 + torch.from_numpy(
        rng.uniform(0, 2, points[:, ::2].shape)
    )
    supervision = Supervision(
        points=points,
        valid=torch.from_numpy(rng.random((3, count)) < 0.9),
        fundamental=torch.from_numpy(fundamental),
        homography=torch.from_numpy(np.stack([np.eye(3), np.eye(3), homography / np.linalg.norm(homography)])),
        planar=torch.tensor([False, False, True]),
        keypoints0=random_pixels(SIZE, 30, images=3),
        keypoints1=random_pixels(SIZE, 30, images=3).flip(1),
        detected0=torch.arange(30).expand(3, -1) < torch.tensor([[30], [25], [29]]),
        detected1=torch.arange(30).expand(3, -1) < torch.tensor([[28], [30], [27]]),
        grids=torch.arange(12).view(3, 2, 2) % 8,
    )
    return Case(maps0, (maps1[0], maps1[1]), supervision)


def numpy_match_error(points0: Array, points1: Array, F: Array, H: Array, planar: bool) -> Array:
    errors = []
    for (x0, y0), (x1, y1) in zip(points0, points1, strict=True):
        if planar:
            u, v, w = H @ [x0, y0, 1]
            errors.append(np.hypot(x1 - u / w, y1 - v / w))
        else:
            a, b, c = F @ [x0, y0, 1]
            errors.append(abs(a * x1 + b * y1 + c) / np.hypot(a, b))
    return np.array(errors)


def numpy_terms(case: Case) -> Terms:
    """Of all points of all pairs: errors in pixels, standard deviations, and which are kept."""
    half = (np.array(SIZE) - 1) / 2
    longer, shorter = max(SIZE), min(SIZE)
    assert longer > shorter
    columns: dict[str, list[tuple[Array, Array, Array]]] = {name: [] for name in WEIGHTS}
    known = case.supervision
    for image in range(len(known.points)):
        points, valid = known.points[image].numpy(), known.valid[image].numpy()
        maps0, maps1 = (
            (maps[0][image].detach().numpy(), maps[1][image].detach().numpy()) for maps in (case.maps0, case.maps1)
        )
        there = numpy_coarse_to_fine(points, maps0, maps1, SIZE, TEMPERATURES)
        back = numpy_back_again(points, there, maps0, maps1, SIZE, TEMPERATURES)
        F, H = known.fundamental[image].numpy(), known.homography[image].numpy()
        errors = [numpy_match_error(points, f.expected, F, H, bool(known.planar[image])) for f in there]
        loops = [np.linalg.norm(f.expected - points, axis=1) for f in back]
        std, std_loop = ([(f.std / half).sum(1) for f in found] for found in (there, back))
        keep_loop = [valid & (loop < 0.025 * shorter) & (loop < 40) for loop in loops]
        columns["epipolar_coarse"].append((errors[0], std[0], valid & (errors[0] < 0.5 * shorter)))
        keep_fine = valid & (errors[1] < 0.5 * shorter) & (errors[0] < 0.125 * shorter)
        columns["epipolar_fine"].append((errors[1], std[1], keep_fine))
        columns["cycle_coarse"].append((loops[0], std[0] * std_loop[0], keep_loop[0]))
        columns["cycle_fine"].append((loops[1], std[1] * std_loop[1], keep_loop[1]))
    return {
        name: (
            np.concatenate([row[0] for row in rows]),
            np.concatenate([row[1] for row in rows]),
            np.concatenate([row[2] for row in rows]),
        )
        for name, rows in columns.items()
    }


def numpy_weights(terms: Terms) -> dict[str, Array]:
    """1 / std over the kept points, scaled to a mean of one over them."""
    weights = {}
    for name, (_, std, keep) in terms.items():
        weight = np.zeros(len(std))
        weight[keep] = 1 / std[keep]
        weight[keep] /= weight[keep].mean()
        weights[name] = weight
    return weights


def numpy_parts(terms: Terms, weights: dict[str, Array]) -> dict[str, float]:
    """Mean weighted error over the kept points, in units of the longer edge."""
    return {
        name: float((weights[name][keep] * errors[keep]).mean() / max(SIZE))
        for name, (errors, _, keep) in terms.items()
    }


def weighted_sum(parts: dict[str, float]) -> float:
    return sum(WEIGHTS[name] * part for name, part in parts.items())


def test_epipolar_distance_is_that_to_the_line_of_opencv() -> None:
    rng = np.random.default_rng(0)
    F = rng.normal(size=(2, 3, 3))
    F[:, 2] *= 300
    F /= np.linalg.norm(F, axis=(1, 2), keepdims=True)
    points0, points1 = rng.uniform(0, 300, (2, 2, 20, 2))
    found = epipolar_distance(*(torch.from_numpy(values) for values in (points0, points1, F)))
    for pair in (0, 1):
        lines = cv2.computeCorrespondEpilines(points0[pair].reshape(-1, 1, 2), 1, F[pair])[:, 0]
        expected = np.abs((lines * np.c_[points1[pair], np.ones(20)]).sum(1))
        np.testing.assert_allclose(found[pair], expected, rtol=1e-4, atol=1e-3)


def test_transfer_is_opencvs_and_infinity_stays_finite() -> None:
    H = np.array([[1.1, 0.1, 3], [-0.2, 0.9, 5], [1e-3, 2e-3, 1]])
    points = np.random.default_rng(0).uniform(0, 300, (1, 20, 2))
    moved = transfer(torch.from_numpy(points), torch.from_numpy(H)[None])
    np.testing.assert_allclose(moved[0], cv2.perspectiveTransform(points, H)[0], rtol=1e-9)
    at_infinity = torch.tensor([[[-1000.0, 0.0]]], dtype=torch.float64)
    far = transfer(at_infinity, torch.tensor([[[1, 0, 0], [0, 1, 0], [1e-3, 0, 1]]], dtype=torch.float64))
    assert bool(torch.isfinite(far).all())
    assert float(far.norm()) > 1e6


def test_true_correspondences_of_two_different_cameras_have_no_error() -> None:
    rng = np.random.default_rng(5)
    X = rng.uniform((-2, -2, 4), (2, 2, 9), (50, 3))
    K0 = np.array([[500, 0, 310], [0, 520, 245], [0, 0, 1.0]])
    K1 = np.array([[700, 0, 400], [0, 690, 300], [0, 0, 1.0]])
    R, t = Rotation.from_euler("xyz", [10, -25, 7], degrees=True).as_matrix(), np.array([1.0, -0.3, 0.4])

    def project(K: Array, points: Array) -> Tensor:
        pixels = points @ K.T
        return torch.from_numpy(pixels[:, :2] / pixels[:, 2:])[None]

    points0, points1 = project(K0, X), project(K1, X @ R.T + t)
    F = torch.from_numpy(fundamental_from_pose(R, t, K0, K1))[None]
    assert float(epipolar_distance(points0, points1, F).max()) < 1e-9
    assert float(epipolar_distance(points0.float(), points1.float(), F.float()).max()) < 0.02
    assert float(epipolar_distance(points1, points0, F).median()) > 10
    shuffled = points1[:, torch.from_numpy(rng.permutation(50))]
    assert float(epipolar_distance(points0, shuffled, F).median()) > 10


def test_planar_pairs_are_judged_by_the_known_place() -> None:
    known = random_case().supervision
    answers = random_pixels(SIZE, known.points.shape[1], seed=9, images=3)
    found = match_error(answers, known)
    for image in range(3):
        expected = numpy_match_error(
            known.points[image].numpy(),
            answers[image].numpy(),
            known.fundamental[image].numpy(),
            known.homography[image].numpy(),
            bool(known.planar[image]),
        )
        np.testing.assert_allclose(found[image], expected, rtol=1e-9)
    right = transfer(known.points, known.homography)
    assert float(match_error(right, known)[2].max()) < 1e-9


def test_certain_points_weigh_more_and_the_weights_mean_is_one() -> None:
    errors = torch.tensor([[1.0, 2.0, 100.0, 4.0]], requires_grad=True)
    std = torch.tensor([[0.1, 0.2, 0.001, 0.4]], requires_grad=True)
    keep = torch.tensor([[True, True, False, True]])
    mean = certainty_weighted_mean(errors, std, keep)
    # 1/std is 10, 5 and 2.5, of mean 17.5 / 3.
    weights = np.array([10, 5, 2.5]) / (17.5 / 3)
    assert float(mean.detach()) == pytest.approx((weights * [1, 2, 4]).mean())
    mean.backward()  # type: ignore[no-untyped-call]
    assert errors.grad is not None
    np.testing.assert_allclose(errors.grad[0], np.array([weights[0], weights[1], 0, weights[2]]) / 3, rtol=1e-6)
    assert std.grad is None


def test_errors_that_are_not_kept_may_be_infinite() -> None:
    errors = torch.tensor([[1.0, torch.inf]], requires_grad=True)
    mean = certainty_weighted_mean(errors, torch.ones(1, 2), torch.tensor([[True, False]]))
    mean.backward()  # type: ignore[no-untyped-call]
    assert float(mean.detach()) == 1
    assert errors.grad is not None
    assert errors.grad.tolist() == [[1, 0]]


def test_loss_and_its_parts_are_those_of_numpy() -> None:
    case = random_case()
    terms = numpy_terms(case)
    for _, _, keep in terms.values():  # or the masks would not be tested
        assert 3 < keep.sum() < case.supervision.valid.sum()
    parts = numpy_parts(terms, numpy_weights(terms))
    found = case.loss()
    assert set(found) == {"loss", "median_px", *parts}
    for name, part in parts.items():
        assert float(found[name].detach()) == pytest.approx(part, rel=1e-4), name
    assert float(found["loss"].detach()) == pytest.approx(weighted_sum(parts), rel=1e-4)
    kept = np.sort(terms["epipolar_fine"][0][case.supervision.valid.flatten().numpy()])
    assert float(found["median_px"]) == pytest.approx(kept[(len(kept) - 1) // 2], rel=1e-4)
    assert not found["median_px"].requires_grad


def test_without_certainty_all_that_is_kept_counts_alike() -> None:
    case = random_case()
    terms = numpy_terms(case)
    alike = numpy_parts(terms, {name: np.ones(len(errors)) for name, (errors, _, _) in terms.items()})
    found = case.loss(LossConfig(certainty=False))
    for name, part in alike.items():
        assert float(found[name].detach()) == pytest.approx(part, rel=1e-4), name
    assert float(found["epipolar_fine"].detach()) != pytest.approx(float(case.loss()["epipolar_fine"].detach()))


def test_weights_of_the_config_weigh_the_parts() -> None:
    case = random_case()
    found = case.loss(
        LossConfig(epipolar_coarse=2, epipolar_fine=3, cycle_coarse=5, cycle_fine=7, contrastive=11, max_cycle=0.1)
    )
    weights = {"epipolar_coarse": 2, "epipolar_fine": 3, "cycle_coarse": 5, "cycle_fine": 7, "contrastive": 11}
    assert all(float(found[name].detach()) > 0 for name in weights)
    total = sum(weight * float(found[name].detach()) for name, weight in weights.items())
    assert float(found["loss"].detach()) == pytest.approx(total)


@pytest.mark.parametrize("limit", ["max_cycle", "max_cycle_px"])
def test_loops_are_limited_by_edge_and_by_pixels(limit: str) -> None:
    case = random_case()
    loose: dict[str, Any] = {"max_cycle": 10.0, "max_cycle_px": 1e6}
    tight = LossConfig(**{**loose, limit: 5.0 if limit == "max_cycle_px" else 5.0 / min(SIZE)})
    terms = numpy_terms(case)
    for name in ("cycle_coarse", "cycle_fine"):
        errors, std, _ = terms[name]
        terms[name] = errors, std, case.supervision.valid.flatten().numpy() & (errors < 5)
        assert 0 < terms[name][2].sum() < len(errors)
    parts = numpy_parts(terms, numpy_weights(terms))
    found = case.loss(tight)
    for name in ("cycle_coarse", "cycle_fine"):
        assert float(found[name].detach()) == pytest.approx(parts[name], rel=1e-4)


def test_gradient_is_that_of_finite_differences_with_the_weights_held() -> None:
    case = random_case(count=12)
    leaves = [values.requires_grad_() for values in (*case.maps0, *case.maps1)]
    case.loss()["loss"].backward()  # type: ignore[no-untyped-call]
    base = numpy_terms(case)
    weights = numpy_weights(base)

    def held(step: float, directions: list[Tensor]) -> float:
        moved = [leaf.detach() + step * direction for leaf, direction in zip(leaves, directions, strict=True)]
        changed = dataclasses.replace(case, maps0=(moved[0], moved[1]), maps1=(moved[2], moved[3]))
        terms = {name: (term[0], base[name][1], base[name][2]) for name, term in numpy_terms(changed).items()}
        return weighted_sum(numpy_parts(terms, weights))

    generator = torch.Generator().manual_seed(0)
    for moving in range(4):
        directions = [
            torch.randn(leaf.shape, generator=generator, dtype=torch.float64) * (index == moving)
            for index, leaf in enumerate(leaves)
        ]
        slope = (held(1e-5, directions) - held(-1e-5, directions)) / 2e-5
        found = sum(
            float((leaf.grad * direction).sum())
            for leaf, direction in zip(leaves, directions, strict=True)
            if leaf.grad is not None
        )
        assert abs(slope) > 1e-6
        assert found == pytest.approx(slope, rel=1e-3, abs=1e-6)


def gradients(case: Case, supervision: Supervision, config: LossConfig) -> tuple[Tensor, list[Tensor]]:
    leaves = [values.detach().clone().requires_grad_() for values in (*case.maps0, *case.maps1)]
    network = Temperatures()
    features0, features1 = dense(SIZE, leaves[0], leaves[1]), dense(SIZE, leaves[2], leaves[3])
    loss = caps_loss(network, features0, features1, supervision, config)["loss"]
    return loss, list(torch.autograd.grad(loss, [*leaves, network.log_inverse_temperature]))


@pytest.mark.parametrize("place", [(0.0, 0.0), (80.3, 40.9), (159.0, 119.0)])
def test_padding_changes_nothing(place: tuple[float, float]) -> None:
    case, config = random_case(), LossConfig(contrastive=0.5)
    known = case.supervision
    padding = torch.tensor(place, dtype=torch.float64).expand(3, 4, 2)
    padded = dataclasses.replace(
        known,
        points=torch.cat([known.points, padding], dim=1),
        valid=torch.cat([known.valid, torch.zeros(3, 4, dtype=torch.bool)], dim=1),
    )
    loss, slopes = gradients(case, known, config)
    padded_loss, padded_slopes = gradients(case, padded, config)
    torch.testing.assert_close(padded_loss, loss)
    for slope, padded_slope in zip(slopes, padded_slopes, strict=True):
        torch.testing.assert_close(padded_slope, slope)


def test_no_valid_point_no_loss_and_no_gradient() -> None:
    case = random_case()
    nothing = dataclasses.replace(case.supervision, valid=torch.zeros_like(case.supervision.valid))
    loss, slopes = gradients(case, nothing, LossConfig(contrastive=1.0))
    assert float(loss.detach()) == 0
    assert all(float(slope.abs().max()) == 0 for slope in slopes)


def test_contrastive_loss_is_that_of_numpy() -> None:
    case = random_case(count=20)
    known = case.supervision
    radius, inverse_temperature = 6.0, 20.0
    # Two points so close that they are no wrong answers to one another, and one whose partner is outside.
    known.points[2, 1] = known.points[2, 0] + 2
    known.points[2, 2] = torch.tensor([0.0, 20.0])
    known.valid[2, :3] = True
    image = 2
    H, points = known.homography[image].numpy(), known.points[image].numpy()
    partners = cv2.perspectiveTransform(points[None], H)[0]
    inside = ((partners >= 0) & (partners <= (SIZE[0] - 1, SIZE[1] - 1))).all(1)
    keep = np.flatnonzero(known.valid[image].numpy() & inside)
    assert not inside[2]

    def descriptors(maps: tuple[Tensor, Tensor], at: Array) -> Array:
        halves = [bilinear(values[image].numpy(), at / stride) for values, stride in zip(maps, (16, 4), strict=True)]
        whole = np.concatenate(halves, axis=1)
        return np.asarray(whole / np.linalg.norm(whole, axis=1, keepdims=True))

    a, b = descriptors(case.maps0, points), descriptors(case.maps1, partners)
    losses = []
    for i in keep:
        rivals = [j for j in keep if j == i or np.linalg.norm(partners[i] - partners[j]) >= radius]
        for scores in (b[rivals] @ a[i], a[rivals] @ b[i]):
            exponentials = np.exp(inverse_temperature * scores)
            losses.append(-np.log(exponentials[rivals.index(i)] / exponentials.sum()))
    assert len(rivals) < len(points)
    found = contrastive_loss(*case.features, known, radius, inverse_temperature)
    assert float(found) == pytest.approx(np.mean(losses), rel=1e-6)


def test_contrastive_loss_needs_a_known_place() -> None:
    case = random_case()
    posed = dataclasses.replace(case.supervision, planar=torch.zeros(3, dtype=torch.bool))
    assert float(contrastive_loss(*case.features, posed, 4.0)) == 0


def plane_scene(size: tuple[int, int]) -> tuple[DenseFeatures, DenseFeatures, Supervision]:
    """A plane seen by two cameras; every cell knows which point of the plane it shows.

    The dot product of the features of plane points X and Y is -|X - Y|^2 / (2 s^2) with s about a cell, so that the
    expected location is the point itself, between cells too.
    """
    K0 = np.array([[300, 0, 150], [0, 300, 110], [0, 0, 1.0]])
    K1 = np.array([[340, 0, 165], [0, 330, 118], [0, 0, 1.0]])
    R, t = Rotation.from_euler("xyz", [3, -8, 5], degrees=True).as_matrix(), np.array([0.5, 0.1, 0.05])
    depth = 5.0
    normal = np.array([0, 0, 1 / depth])
    H = K1 @ (R + np.outer(t, normal)) @ np.linalg.inv(K0)
    to_plane = (np.linalg.inv(K0) * depth, np.linalg.inv(K0) @ np.linalg.inv(H) * depth)

    def features(image: int, stride: int, cell: float) -> FeatureMap:
        x, y = np.meshgrid(np.arange(0, size[0], stride), np.arange(0, size[1], stride))
        rays = np.stack([x.ravel(), y.ravel(), np.ones(x.size)]).astype(float)
        points = to_plane[image] @ rays
        X = points[:2] / points[2] * depth / cell
        constant, bulge = np.ones(x.size), -(X**2).sum(0) / 2
        values = np.stack([*X, constant, bulge] if image == 0 else [*X, bulge, constant])
        return FeatureMap(torch.from_numpy(values.reshape(1, 4, *x.shape)), (float(stride), float(stride)))

    # A coarse cell is 16 px of 300 px focal length at this depth.
    maps = [[features(image, stride, stride * depth / 300) for stride in (16, 4)] for image in (0, 1)]
    x, y = np.meshgrid(np.arange(96, 240, 16), np.arange(64, 176, 16))
    points = torch.from_numpy(np.stack([x.ravel(), y.ravel()], axis=1).astype(float))[None]
    supervision = Supervision(
        points=points,
        valid=torch.ones(points.shape[:2], dtype=torch.bool),
        fundamental=torch.from_numpy(fundamental_from_pose(R, t, K0, K1))[None],
        homography=torch.from_numpy(H / np.linalg.norm(H))[None],
        planar=torch.tensor([False]),
        keypoints0=torch.zeros(1, 0, 2),
        keypoints1=torch.zeros(1, 0, 2),
        detected0=torch.zeros(1, 0, dtype=torch.bool),
        detected1=torch.zeros(1, 0, dtype=torch.bool),
        grids=torch.zeros(1, 2, 2, dtype=torch.int64),
    )
    first, second = (DenseFeatures(coarse, fine, size, normalized=False) for coarse, fine in maps)
    return first, second, supervision


@pytest.mark.parametrize("planar", [False, True])
def test_maps_that_know_their_scene_points_have_hardly_any_loss(planar: bool) -> None:
    size = (320, 240)
    features0, features1, known = plane_scene(size)
    known = dataclasses.replace(known, planar=torch.tensor([planar]))
    found = caps_loss(nn.Module(), features0, features1, known, LossConfig())
    longer = max(size)
    assert float(found["epipolar_coarse"]) * longer < 2
    assert float(found["epipolar_fine"]) * longer < 0.3
    assert float(found["cycle_fine"]) * longer < 0.3
    assert float(found["median_px"]) < 0.3

    def shuffled(feature_map: FeatureMap) -> FeatureMap:
        order = torch.randperm(feature_map.values[0, 0].numel(), generator=torch.Generator().manual_seed(0))
        values = feature_map.values.flatten(2)[..., order].view_as(feature_map.values)
        return dataclasses.replace(feature_map, values=values)

    confused = dataclasses.replace(features1, coarse=shuffled(features1.coarse), fine=shuffled(features1.fine))
    lost = caps_loss(nn.Module(), features0, confused, known, LossConfig())
    assert float(lost["median_px"]) > 20
    assert float(lost["epipolar_coarse"]) > 5 * float(found["epipolar_coarse"])


def numpy_distances(known: Supervision, image: int) -> Array:
    """Of the detected keypoints of both images: distance from the first one's place or line in image 1."""
    kept0, kept1 = (
        keypoints[image][detected[image]].numpy()
        for keypoints, detected in ((known.keypoints0, known.detected0), (known.keypoints1, known.detected1))
    )
    F, H = known.fundamental[image].numpy(), known.homography[image].numpy()
    planar = bool(known.planar[image])
    return np.array([numpy_match_error(np.tile(point, (len(kept1), 1)), kept1, F, H, planar) for point in kept0])


def numpy_matching(case: Case, config: LossConfig) -> float:
    """Loop by loop, as the docstring tells it."""
    known = case.supervision
    drawn, pulls, avoided, detected = 0.0, 0.0, 0.0, 0
    for image in range(len(known.keypoints0)):
        a, b = (
            features.describe(keypoints)[image][kept[image]].detach().numpy()
            for features, keypoints, kept in (
                (case.features[0], known.keypoints0, known.detected0),
                (case.features[1], known.keypoints1, known.detected1),
            )
        )
        a, b = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (a, b))
        similar = np.exp(30 * a @ b.T)
        mutual = similar / similar.sum(0, keepdims=True) * similar / similar.sum(1, keepdims=True)
        distances = numpy_distances(known, image)
        right, wrong = distances <= config.matching_radius, distances > config.wrong_radius
        for row in range(len(a)):
            p_right, p_wrong = mutual[row, right[row]].sum(), mutual[row, wrong[row]].sum()
            detected += 1
            avoided += -np.log(1 - min(p_wrong, 0.99))
            if right[row].any():
                pull = 1.0 if known.planar[image] else p_right / max(p_right + p_wrong, 1e-12)
                pulls += pull
                drawn += -pull * np.log(p_right)
    return drawn / max(pulls, 1) + avoided / detected


def test_matching_loss_is_what_its_definition_says() -> None:
    case = random_case()
    config = LossConfig(matching=1.0, matching_radius=12.0, wrong_radius=20.0)
    found = matching_loss(*case.features, case.supervision, config)
    assert float(found) == pytest.approx(numpy_matching(case, config), rel=1e-4)
    assert float(case.loss(config)["matching"]) == pytest.approx(float(found))


def keypoints_at(planar: bool, places: Array, found_again: Array) -> tuple[DenseFeatures, DenseFeatures, Supervision]:
    """A plane whose features know their scene points, with keypoints in both images; some second ones elsewhere."""
    features0, features1, known = plane_scene((320, 240))
    H = known.homography[0].numpy()
    moved = np.c_[places, np.ones(len(places))] @ H.T
    partners = moved[:, :2] / moved[:, 2:]
    partners[~found_again] = np.random.default_rng(1).uniform((0, 0), (300, 20), (int((~found_again).sum()), 2))
    detected = torch.ones(1, len(places), dtype=torch.bool)
    known = dataclasses.replace(
        known,
        planar=torch.tensor([planar]),
        keypoints0=torch.from_numpy(places)[None],
        keypoints1=torch.from_numpy(partners)[None],
        detected0=detected,
        detected1=detected,
    )
    return features0, features1, known


@pytest.mark.parametrize("planar", [True, False])
def test_matching_loss_is_small_for_the_right_order_and_large_for_another(planar: bool) -> None:
    # Descriptors that are one-hot in the order of the keypoints, so that right and wrong matches are certain.
    count = 20
    places = np.random.default_rng(0).uniform((100, 70), (220, 170), (count, 2))
    _, _, known = keypoints_at(planar, places, np.ones(count, dtype=bool))

    class OneHot:
        def __init__(self, order: Tensor) -> None:
            self.order = order

        def without_reliability(self) -> OneHot:
            return self

        def describe(self, points: Tensor) -> Tensor:
            return torch.eye(count, dtype=points.dtype)[self.order][None]

    config = LossConfig(matching=1.0)
    order = torch.arange(count)
    right = matching_loss(OneHot(order), OneHot(order), known, config)  # type: ignore[arg-type]
    wrong = matching_loss(OneHot(order), OneHot(order.roll(7)), known, config)  # type: ignore[arg-type]
    assert float(right) < 0.01
    assert float(wrong) > 1


def with_reliability(features: DenseFeatures, logits: Tensor) -> DenseFeatures:
    return dataclasses.replace(features, reliability=FeatureMap(logits, features.fine.scale))


def test_reliability_loss_is_the_cross_entropy_of_being_found_again() -> None:
    rng = np.random.default_rng(2)
    places = rng.uniform((0, 0), (319, 239), (60, 2))
    features0, features1, known = keypoints_at(True, places, rng.random(60) < 0.6)
    fields = [torch.from_numpy(rng.normal(size=(1, 1, *f.fine.values.shape[-2:]))) for f in (features0, features1)]
    features0, features1 = (with_reliability(f, x) for f, x in zip((features0, features1), fields, strict=True))
    found = reliability_loss(features0, features1, known, radius=3.0)

    distances = numpy_distances(known, 0)
    H = known.homography[0].numpy()
    losses = []
    again = distances <= 3
    for image, near, points, homography in (
        (features0, np.asarray(again.any(1)), known.keypoints0[0].numpy(), H),
        (features1, np.asarray(again.any(0)), known.keypoints1[0].numpy(), np.linalg.inv(H)),
    ):
        assert image.reliability is not None
        logits = image.reliability.sample(torch.from_numpy(points)[None])[0, :, 0].numpy()
        for (x, y), logit, hit in zip(points, logits, near, strict=True):
            u, v, w = homography @ [x, y, 1]
            if 0 <= u / w <= 319 and 0 <= v / w <= 239:
                p = 1 / (1 + np.exp(-(logit - 1) / 2))
                losses.append(-np.log(p if hit else 1 - p))
    assert 60 < len(losses) < 120
    assert float(found) == pytest.approx(np.mean(losses), rel=1e-6)

    posed = dataclasses.replace(known, planar=torch.tensor([False]))
    assert float(reliability_loss(features0, features1, posed, radius=3.0)) == 0
    with pytest.raises(ValueError, match=r"set model\.reliability"):
        reliability_loss(features0.without_reliability(), features1, known, radius=3.0)


def test_gradients_of_our_own_losses_are_those_of_finite_differences() -> None:
    case = random_case()
    # In posed pairs the pull is weighted by what is held constant, and finite differences would see it change.
    known = dataclasses.replace(case.supervision, planar=torch.tensor([True, True, True]))
    logits = torch.randn(3, 1, *case.features[0].fine.values.shape[-2:], dtype=torch.float64)
    config = LossConfig(matching=1.0, matching_radius=12.0, wrong_radius=20.0)
    coarse = case.maps0[0].detach().double().requires_grad_()
    others = logits.flip(0)
    logits.requires_grad_()

    def loss() -> Tensor:
        features0 = with_reliability(dense(SIZE, coarse, case.maps0[1].double()), logits)
        features1 = with_reliability(dense(SIZE, *(maps.double() for maps in case.maps1)), others)
        matching = matching_loss(features0, features1, known, config)
        return matching + reliability_loss(features0, features1, known, 12.0)

    gradients = torch.autograd.grad(loss(), (coarse, logits))
    rng = torch.Generator().manual_seed(0)
    for values, gradient in zip((coarse, logits), gradients, strict=True):
        direction = torch.randn(values.shape, dtype=torch.float64, generator=rng)
        with torch.no_grad():
            values += 1e-5 * direction
            above = float(loss())
            values -= 2e-5 * direction
            below = float(loss())
            values += 1e-5 * direction
        assert (above - below) / 2e-5 == pytest.approx(float((gradient * direction).sum()), rel=1e-4)
