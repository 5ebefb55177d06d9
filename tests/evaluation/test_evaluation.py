from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.ndimage import map_coordinates

from capsdesc.commands.main import main
from capsdesc.describe.extractor import CAPSExtractor
from capsdesc.evaluation import report
from capsdesc.evaluation.classical import RootSIFT
from capsdesc.evaluation.datasets import BenchmarkImage, HomographyPair, PosePair, read_benchmark
from capsdesc.evaluation.features import FeatureStore
from capsdesc.evaluation.methods import CAPS, CAPSKeypoints, get_methods, get_shared_detector
from capsdesc.evaluation.protocols import Result, Settings, evaluate
from capsdesc.evaluation.renderings import CHANGES
from capsdesc.evaluation.rows import HomographyRow, PoseRow
from capsdesc.keypoints import Keypoints, SIFTDetector
from capsdesc.models import ModelConfig, build_network
from capsdesc.weights import save_pretrained

Floats = npt.NDArray[np.float64]
Image = npt.NDArray[np.uint8]

SIZE = (320, 240)
K = np.array([[300.0, 0, 160], [0, 310, 118], [0, 0, 1]])


@functools.cache
def texture(seed: int, height: int = 700, width: int = 900) -> Image:
    rng = np.random.default_rng(seed)
    layers = [cv2.GaussianBlur(rng.normal(size=(height, width)), (0, 0), sigma) * sigma for sigma in (1.5, 3, 6, 12)]
    grey = np.sum(layers, axis=0)
    levels = np.asarray(255 * (grey - grey.min()) / np.ptp(grey), dtype=np.uint8)
    return np.asarray(cv2.cvtColor(cv2.equalizeHist(levels), cv2.COLOR_GRAY2BGR), dtype=np.uint8)


def load(path: Path) -> Image:
    """In OpenCV's order of channels."""
    return np.asarray(cv2.imread(str(path)), dtype=np.uint8)


def rotation(*vector: float) -> Floats:
    return np.asarray(cv2.Rodrigues(np.array(vector))[0], dtype=np.float64)


# World to camera: small steps aside with a turn towards the scene.
POSES = [(rotation(0.02 * i, -0.06 * i, 0.03 * i), np.array([-0.5 * i, 0.1 * i, 0.05 * i])) for i in range(4)]


def homographies(seed: int) -> list[Floats]:
    rng = np.random.default_rng(seed)
    corners = np.array([[0, 0], [319, 0], [319, 239], [0, 239]], dtype=np.float32)
    moved = [corners + rng.uniform(-25, 25, size=(4, 2)).astype(np.float32) for _ in range(5)]
    return [np.asarray(cv2.getPerspectiveTransform(corners, m), dtype=np.float64) for m in moved]


def write_sequence(folder: Path, seed: int, image: str, homography: str) -> list[Floats]:
    """Six views of a plane; the first is a window of the texture, so that the others see no border."""
    folder.mkdir(parents=True)
    source, window = texture(seed), np.array([[1.0, 0, -290], [0, 1, -230], [0, 0, 1]])
    Hs = homographies(seed)
    for k, H in enumerate([np.eye(3), *Hs], start=1):
        cv2.imwrite(str(folder / image.format(k)), cv2.warpPerspective(source, H @ window, SIZE, flags=cv2.INTER_CUBIC))
        if k > 1:
            np.savetxt(folder / homography.format(k), H)
    return Hs


@pytest.fixture(scope="module")
def oxford(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("oxford")
    for seed, name in enumerate(("ant", "bee")):
        write_sequence(folder / name, seed, "img{}.png", "H1to{}p")
    return folder


def render(R: Floats, t: Floats, k: float = 0.0) -> Image:
    """A view of two textured planes, a wall and a panel in front of it that is tilted, by casting a ray per pixel."""
    x, y = np.meshgrid(np.arange(SIZE[0], dtype=np.float64), np.arange(SIZE[1], dtype=np.float64))
    pixels = np.stack([x.ravel(), y.ravel()], axis=1)
    ideal = cv2.undistortPoints(pixels[:, None], K, np.array([k, 0, 0, 0]))[:, 0]
    rays = np.column_stack([ideal, np.ones(len(ideal))]) @ R
    centre = -R.T @ t
    image = np.zeros((SIZE[1], SIZE[0], 3), dtype=np.uint8)
    nearest = np.full(len(rays), np.inf)
    for seed, normal, offset, limit in ((5, (0.0, 0, 1), 8.0, 1e9), (6, (0.5, 0.2, 1), 5.0, 1.2)):
        depth = (offset - centre @ normal) / (rays @ normal)
        points = centre + depth[:, None] * rays
        visible = (depth > 0) & (depth < nearest) & (np.abs(points[:, :2]).max(axis=1) < limit)
        nearest[visible] = depth[visible]
        maps = (points[:, :2] * 50 + [450, 350]).astype(np.float32).reshape(SIZE[1], SIZE[0], 2)
        seen = cv2.remap(texture(seed), maps, np.empty((0, 2)), cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
        image[visible.reshape(image.shape[:2])] = seen[visible.reshape(image.shape[:2])]
    return image


def relative(i: int, j: int) -> tuple[Floats, Floats]:
    (Ri, ti), (Rj, tj) = POSES[i], POSES[j]
    return Rj @ Ri.T, tj - Rj @ Ri.T @ ti


@pytest.fixture(scope="module")
def strecha(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("strecha")
    (folder / "yard").mkdir()
    cameras, pairs = [], []
    for i, (R, t) in enumerate(POSES):
        cv2.imwrite(str(folder / "yard" / f"{i}.png"), render(R, t))
        cameras.append({"name": f"{i}.png", "K": K.tolist(), "R": R.tolist(), "t": t.tolist()})
    for i in range(len(POSES)):
        for j in range(i + 1, len(POSES)):
            R, t = relative(i, j)
            pairs.append({"scene": "yard", "name1": f"{i}.png", "name2": f"{j}.png", "R": R.tolist(), "t": t.tolist()})
    (folder / "cameras.json").write_text(json.dumps({"yard": cameras}))
    (folder / "pairs.json").write_text(json.dumps(pairs))
    return folder


@pytest.fixture(scope="module")
def planes(oxford: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    benchmark = read_benchmark("oxford", oxford)
    return evaluate(benchmark, RootSIFT(), "shared", store(tmp_path_factory.mktemp("planes")), Settings())


def store(folder: Path, **settings: Any) -> FeatureStore:
    return FeatureStore(folder, **{"max_keypoints": 600, "max_edge": 1024} | settings)


@dataclasses.dataclass(frozen=True)
class Shuffled:
    """RootSIFT whose descriptors are handed to the wrong keypoints."""

    name: str = "shuffled"

    @property
    def settings(self) -> Mapping[str, Any]:
        return {}

    def describe(self, image: Image, keypoints: Keypoints) -> npt.NDArray[np.float32]:
        order = np.random.default_rng(int(image.sum())).permutation(len(keypoints))
        return RootSIFT().describe(image, keypoints)[order]


def opencv_rootsift(image: Image, count: int) -> tuple[Floats, npt.NDArray[np.float32]]:
    """The strongest keypoint of every location and its descriptor, from OpenCV alone."""
    sift = cv2.SIFT.create()
    points, descriptors = sift.detectAndCompute(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), None)
    best: dict[tuple[float, ...], int] = {}
    for i, point in enumerate(points):
        place = tuple(point.pt)
        if place not in best or point.response > points[best[place]].response:
            best[place] = i
    chosen = sorted(best.values(), key=lambda i: -points[i].response)[:count]
    rows = descriptors[chosen]
    # OpenCV puts keypoints a quarter of a pixel too far right and down.
    return np.array([points[i].pt for i in chosen]) - 0.25, np.sqrt(rows / rows.sum(axis=1, keepdims=True))


def test_rootsift_rows_agree_with_opencv_alone(oxford: Path, planes: Result) -> None:
    row = next(row for row in planes.rows if row.pair == "bee/1-3")
    points0, rows0 = opencv_rootsift(load(oxford / "bee" / "img1.png"), 600)
    points1, rows1 = opencv_rootsift(load(oxford / "bee" / "img3.png"), 600)
    matches = cv2.BFMatcher(cv2.NORM_L2, crossCheck=True).match(rows0, rows1)
    H = homographies(1)[1]
    projected = cv2.perspectiveTransform(points0[:, None], H)[:, 0]
    errors = np.array([np.hypot(*(projected[m.queryIdx] - points1[m.trainIdx])) for m in matches])
    assert isinstance(row, HomographyRow)
    assert (row.keypoints0, row.keypoints1, row.matches) == (len(points0), len(points1), len(matches))
    np.testing.assert_allclose(row.matching_accuracy, [(errors <= t).mean() for t in range(1, 11)])
    assert row.matching_accuracy[2] > 0.7
    back = cv2.perspectiveTransform(points1[:, None], np.linalg.inv(H))[:, 0]
    for share, limit in zip(row.repeatability, (1, 3), strict=True):
        shares = []
        for places, others in ((projected, points1), (back, points0)):
            seen = [p for p in places if -0.5 <= p[0] <= SIZE[0] - 0.5 and -0.5 <= p[1] <= SIZE[1] - 0.5]
            shares.append(np.mean([np.hypot(*(others - p).T).min() <= limit for p in seen]))
        assert share == pytest.approx(np.mean(shares), abs=2e-3)  # by float32 of the points kept
    assert row.corner_error < 1


def test_rootsift_with_its_own_keypoints_is_opencvs_default(oxford: Path) -> None:
    image = load(oxford / "bee" / "img1.png")
    points, descriptors = RootSIFT().extract(image, 10_000)
    found, rows = cv2.SIFT.create().detectAndCompute(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.empty(0, np.uint8))
    order = np.argsort([-point.response for point in found], kind="stable")
    np.testing.assert_array_equal(points, np.array([found[i].pt for i in order], dtype=np.float32))
    np.testing.assert_allclose(descriptors**2, (rows / rows.sum(axis=1, keepdims=True))[order], atol=1e-6)
    strongest, _ = RootSIFT().extract(image, 100)
    np.testing.assert_array_equal(strongest, points[:100])
    assert len(RootSIFT().extract(np.full((30, 40, 3), 7, dtype=np.uint8), 100)[1]) == 0


def test_summary_averages_over_pairs_and_groups(planes: Result) -> None:
    rows = [row for row in planes.rows if isinstance(row, HomographyRow)]
    assert [row.pair for row in rows] == [f"{name}/1-{k}" for name in ("ant", "bee") for k in range(2, 7)]
    assert list(planes.summary) == ["all", "ant", "bee"]
    assert planes.summary["bee"]["mma@3"] == pytest.approx(np.mean([row.matching_accuracy[2] for row in rows[5:]]))
    assert planes.summary["all"]["accuracy@1"] == np.mean([row.corner_error <= 1 for row in rows])
    assert planes.summary["all"]["rep@3"] == pytest.approx(np.mean([row.repeatability[1] for row in rows]))
    assert planes.summary["all"]["pairs"] == 10


def test_upright_sequences_of_oxford_are_summed_up_apart(oxford: Path, tmp_path: Path) -> None:
    (tmp_path / "oxford").mkdir()
    (tmp_path / "oxford" / "bark").symlink_to(oxford / "ant")
    (tmp_path / "oxford" / "wall").symlink_to(oxford / "bee")
    benchmark = read_benchmark("oxford", tmp_path / "oxford")
    result = evaluate(benchmark, RootSIFT(), "shared", store(tmp_path / "store", max_keypoints=200), Settings())
    assert list(result.summary) == ["all", "upright", "bark", "wall"]
    assert result.summary["upright"] == result.summary["wall"]


def test_shuffled_descriptors_score_near_zero(oxford: Path, strecha: Path, tmp_path: Path) -> None:
    sequences = evaluate(
        read_benchmark("oxford", oxford), Shuffled(), "shared", store(tmp_path, max_keypoints=200), Settings()
    )
    assert sequences.summary["all"]["mma@3"] < 0.02
    assert sequences.summary["all"]["accuracy@5"] == 0
    poses = evaluate(
        read_benchmark("strecha", strecha), Shuffled(), "shared", store(tmp_path, max_keypoints=200), Settings()
    )
    assert poses.summary["all"]["auc@5"] < 0.1


def test_homographies_follow_the_images_when_these_are_shrunk(oxford: Path, tmp_path: Path) -> None:
    benchmark = read_benchmark("oxford", oxford)
    half = store(tmp_path, max_edge=160)
    result = evaluate(benchmark, RootSIFT(), "shared", half, Settings())
    assert result.summary["all"]["mma@3"] > 0.6
    assert result.summary["all"]["accuracy@1"] > 0.9
    features = half.load(benchmark.pairs[0].view0, RootSIFT(), "shared")
    assert (features.image_size, features.file_size) == ((160, 120), (320, 240))
    # The corners of the image, half a pixel outside the centres of its corner pixels, stay its corners.
    np.testing.assert_allclose(features.scaling @ [-0.5, -0.5, 1], [-0.5, -0.5, 1])
    np.testing.assert_allclose(features.scaling @ [319.5, 239.5, 1], [159.5, 119.5, 1])


def test_hpatches_are_grouped_and_the_largest_left_out(tmp_path: Path) -> None:
    for seed, name in enumerate(("i_dome", "v_wall", "v_talent", "extra")):
        write_sequence(tmp_path / name, seed, "{}.ppm", "H_1_{}")
    pairs = read_benchmark("hpatches", tmp_path).pairs
    assert [(pair.name, pair.group) for pair in pairs] == [
        *((f"i_dome/1-{k}", "illumination") for k in range(2, 7)),
        *((f"v_wall/1-{k}", "viewpoint") for k in range(2, 7)),
    ]


def test_sequences_of_two_images_are_grouped_by_their_set(tmp_path: Path) -> None:
    for seed, name in enumerate(("i_nir_0000", "i_nir_0002", "i_road_FLIR_1", "v_wall")):
        Hs = write_sequence(tmp_path / name, seed, "{}.jpg", "H_1_{}")
        for k in range(3, 7):
            (tmp_path / name / f"{k}.jpg").unlink()
            (tmp_path / name / f"H_1_{k}").unlink()
    pairs = read_benchmark("hpatches", tmp_path).pairs
    assert [(pair.name, pair.group) for pair in pairs] == [
        ("i_nir_0000/1-2", "i_nir"),
        ("i_nir_0002/1-2", "i_nir"),
        ("i_road_FLIR_1/1-2", "i_road"),
        ("v_wall/1-2", "viewpoint"),
    ]
    assert isinstance(pairs[-1], HomographyPair)
    np.testing.assert_allclose(pairs[-1].H, Hs[0])

    (tmp_path / "v_wall" / "H_1_3").write_text((tmp_path / "v_wall" / "H_1_2").read_text())
    with pytest.raises(FileNotFoundError, match="holds no image 3"):
        read_benchmark("hpatches", tmp_path)
    (tmp_path / "v_wall" / "H_1_3").rename(tmp_path / "H")
    (tmp_path / "v_wall" / "H_1_2").unlink()
    with pytest.raises(FileNotFoundError, match="H_1_2 does not exist"):
        read_benchmark("hpatches", tmp_path)
    (tmp_path / "v_wall" / "2.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="v_wall holds image 1 alone"):
        read_benchmark("hpatches", tmp_path)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One larger than a view, one smaller and in a folder."""
    folder = tmp_path_factory.mktemp("photographs")
    (folder / "more").mkdir()
    cv2.imwrite(str(folder / "a.png"), texture(7, 560, 800))
    cv2.imwrite(str(folder / "more" / "b.png"), texture(8, 240, 320))
    return folder


def test_pairs_made_of_photographs_are_the_seeds(photographs: Path) -> None:
    pairs = read_benchmark("homographies", photographs, seed=3).pairs
    assert [pair.name for pair in pairs] == [
        f"{name}/{change}" for name in ("a.png", "more/b.png") for change in CHANGES
    ]
    assert [pair.group for pair in pairs] == [*CHANGES, *CHANGES]
    again, others = (read_benchmark("homographies", photographs, seed=seed).pairs for seed in (3, 4))
    for pair, same, other in zip(pairs, again, others, strict=True):
        assert (pair.view0, pair.view1) == (same.view0, same.view1)
        np.testing.assert_array_equal(pair.view1.read(), same.view1.read())
        assert (pair.view1.read() != other.view1.read()).any()
    assert [pair.view0.read().shape for pair in pairs[:: len(CHANGES)]] == [(448, 640, 3), (240, 320, 3)]
    # The movement is the same, whatever else changes.
    assert len({pair.view0 for pair in pairs}) == 2
    pictures = [pair.view1.read() for pair in pairs[: len(CHANGES)]]
    for i, picture in enumerate(pictures):
        assert all(np.abs(picture.astype(int) - other).mean() > 3 for other in pictures[:i])


def grey_at(view: Image, points: Floats) -> Floats:
    smooth = cv2.GaussianBlur(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY), (0, 0), 2).astype(np.float64)
    return np.asarray(map_coordinates(smooth, points[:, ::-1].T, order=1))


def test_pairs_made_of_photographs_show_the_same_places(photographs: Path) -> None:
    rng = np.random.default_rng(0)
    for pair in read_benchmark("homographies", photographs).pairs:
        assert isinstance(pair, HomographyPair)
        view0, view1 = pair.view0.read(), pair.view1.read()
        last = np.array(view0.shape[1::-1], dtype=np.float64) - 9
        points = rng.uniform(8, last, (4000, 2))
        moved = np.asarray(cv2.perspectiveTransform(points[:, None], pair.H)[:, 0], dtype=np.float64)
        inside = ((moved > 8) & (moved < last)).all(axis=1)
        assert inside.mean() > 0.4
        values = grey_at(view0, points[inside])
        here, left, right = (
            abs(np.corrcoef(values, grey_at(view1, moved[inside] + shift))[0][1]) for shift in (0, -4, 4)
        )
        assert here > {"none": 0.98, "sensor": 0.0, "several": 0.0}.get(pair.group, 0.2), pair.name
        # Tone curves of other sensors need not be monotone.
        assert here > max(left, right) or here < 0.2, pair.name


def test_made_pairs_are_measured_with_and_without_change(photographs: Path, tmp_path: Path) -> None:
    benchmark = read_benchmark("homographies", photographs)
    result = evaluate(benchmark, RootSIFT(), "shared", store(tmp_path), Settings())
    assert list(result.summary) == ["all", *CHANGES]
    # Each photograph as it is, described once, and every view of it.
    assert len(list(tmp_path.rglob("*.npz"))) == 2 * (1 + len(CHANGES))
    assert result.summary["none"]["mma@3"] > 0.8
    assert result.summary["none"]["rep@3"] > 0.6
    assert result.summary["several"]["mma@3"] < result.summary["none"]["mma@3"]
    assert result.summary["night"]["rep@1"] < result.summary["none"]["rep@1"]


@pytest.mark.parametrize("estimator", ["opencv", "poselib", "paper"])
def test_poses_of_a_rendered_scene_are_found(strecha: Path, tmp_path: Path, estimator: str) -> None:
    benchmark = read_benchmark("strecha", strecha)
    result = evaluate(benchmark, RootSIFT(), "shared", store(tmp_path), Settings(estimator=estimator))
    rows = [row for row in result.rows if isinstance(row, PoseRow)]
    assert len(rows) == 6
    assert max(row.rotation_error for row in rows) < 2
    # The paper's protocol takes OpenCV's essential matrix as it comes, without refinement.
    assert max(row.translation_error for row in rows) < (15 if estimator == "paper" else 5)
    assert min(row.inliers for row in rows) > 30
    assert result.summary["all"]["rotation@5"] == 1
    assert result.summary["all"]["auc@20"] > 0.85


def test_a_wrong_truth_is_seen(strecha: Path, tmp_path: Path) -> None:
    benchmark = read_benchmark("strecha", strecha)
    turned = tuple(
        dataclasses.replace(pair, R=rotation(0, math.radians(12), 0) @ pair.R)
        for pair in benchmark.pairs
        if isinstance(pair, PosePair)
    )
    result = evaluate(dataclasses.replace(benchmark, pairs=turned), RootSIFT(), "shared", store(tmp_path), Settings())
    rows = [row for row in result.rows if isinstance(row, PoseRow)]
    assert all(11 < row.rotation_error < 13 for row in rows)
    assert result.summary["all"]["auc@10"] == 0


def test_pairs_file_agrees_with_the_same_scene_and_sees_turned_images(strecha: Path, tmp_path: Path) -> None:
    # The second image is given lying on its side: one quarter turn counter-clockwise rights it.
    image = load(strecha / "yard" / "2.png")
    cv2.imwrite(str(tmp_path / "0.png"), load(strecha / "yard" / "0.png"))
    cv2.imwrite(str(tmp_path / "2.png"), cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE))
    # Pixel (x, y) of the upright image is (H - 1 - y, x) of the one on its side: the camera turned about its axis.
    side = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    K1 = np.array([[K[1, 1], 0, SIZE[1] - 1 - K[1, 2]], [0, K[0, 0], K[0, 2]], [0, 0, 1]])
    R, t = relative(0, 2)
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = side @ R, side @ t
    numbers = " ".join(f"{value:.12g}" for value in [*K.ravel(), *K1.ravel(), *T.ravel()])
    (tmp_path / "list.txt").write_text(f"0.png 2.png 0 1 {numbers}\n\n")
    benchmark = read_benchmark("pairs", tmp_path / "list.txt")
    features = store(tmp_path / "features")
    (row,) = evaluate(benchmark, RootSIFT(), "shared", features, Settings()).rows
    assert isinstance(row, PoseRow)
    assert row.rotation_error < 2
    assert row.translation_error < 5
    # The method saw the upright image, so the matches are those of the upright pair.
    upright = read_benchmark("strecha", strecha)
    rows = evaluate(upright, RootSIFT(), "shared", features, Settings()).rows
    assert row.matches == next(row.matches for row in rows if row.pair == "yard/0.png-2.png")


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_points_of_turned_images_are_in_the_frame_of_the_file(tmp_path: Path, turns: int) -> None:
    class Brightest:
        name = "brightest"
        settings: Mapping[str, Any] = {}

        def extract(self, image: Image, max_keypoints: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
            y, x = np.unravel_index(int(image[..., 0].argmax()), image.shape[:2])
            return np.array([[x, y]], dtype=np.float32), np.ones((1, 2), dtype=np.float32)

    image = np.zeros((7, 11, 3), dtype=np.uint8)
    image[2, 9] = 255
    cv2.imwrite(str(tmp_path / "dot.png"), image)
    features, view = store(tmp_path), BenchmarkImage(tmp_path / "dot.png", turns)
    features.export([view], Brightest(), "own")
    assert features.load(view, Brightest(), "own").keypoints.tolist() == [[9, 2]]


def write_colmap(folder: Path, k: float) -> None:
    """A model in COLMAP's text format, whose pixels are half a pixel further; images 0 and 3 share no point."""
    (folder / "images").mkdir(parents=True)
    (folder / "sparse").mkdir()
    (folder / "sparse" / "cameras.txt").write_text(f"1 OPENCV 320 240 300 310 160.5 118.5 {k} 0 0 0\n")
    tracks = {1: (0, 1, 2), 2: (0, 1, 2), 3: (1, 2, 3), 4: (2, 3)}
    image_lines, point_lines = [], []
    for i, (R, t) in enumerate(POSES):
        cv2.imwrite(str(folder / "images" / f"{i}.png"), render(R, t, k))
        axis, angle = cv2.Rodrigues(R)[0][:, 0], float(np.linalg.norm(cv2.Rodrigues(R)[0]))
        q = [math.cos(angle / 2), *(np.sinc(angle / 2 / math.pi) / 2 * axis)]
        image_lines.append(" ".join(map(str, [i + 1, *q, *t, 1, f"{i}.png"])))
        image_lines.append(" ".join(f"10 10 {point}" for point, track in tracks.items() if i in track))
    for point, track in tracks.items():
        seen = [[p for p, members in tracks.items() if i in members].index(point) for i in track]
        elements = " ".join(f"{i + 1} {index}" for i, index in zip(track, seen, strict=True))
        point_lines.append(f"{point} 0 0 8 0 0 0 0.5 {elements}")
    (folder / "sparse" / "images.txt").write_text("\n".join(image_lines) + "\n")
    (folder / "sparse" / "points3D.txt").write_text("\n".join(point_lines) + "\n")


def test_a_colmap_model_is_a_truth(tmp_path: Path) -> None:
    pytest.importorskip("pycolmap")
    write_colmap(tmp_path, k=-0.2)
    # Shared points over the fewer points of two images: 0-1 2/2, 0-2 2/2, 1-2 3/3, 1-3 1/2, 2-3 2/2.
    assert [pair.name for pair in read_benchmark("colmap", tmp_path, min_overlap=0.6).pairs] == [
        "0.png-1.png",
        "0.png-2.png",
        "1.png-2.png",
        "2.png-3.png",
    ]
    benchmark = read_benchmark("colmap", tmp_path)
    assert len(benchmark.pairs) == 5
    pair = benchmark.pairs[1]
    assert isinstance(pair, PosePair)
    np.testing.assert_allclose(pair.camera0.K, K)
    np.testing.assert_allclose(pair.R, relative(0, 2)[0], atol=1e-9)
    np.testing.assert_allclose(pair.t, relative(0, 2)[1], atol=1e-9)
    points = np.array([[3.0, 5.0], [160.0, 118.0], [300.0, 230.0]])
    assert pair.camera0.undistort is not None
    expected = cv2.undistortPoints(points[:, None], K, np.array([-0.2, 0, 0, 0]), P=K)[:, 0]
    np.testing.assert_allclose(pair.camera0.undistort(points), expected, atol=0.01)
    rows = evaluate(benchmark, RootSIFT(), "shared", store(tmp_path / "features"), Settings()).rows
    assert all(isinstance(row, PoseRow) and row.rotation_error < 2 and row.translation_error < 5 for row in rows)


def test_images_without_keypoints_are_failures_and_no_errors(tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    for k in range(1, 7):
        cv2.imwrite(str(folder / f"img{k}.png"), np.full((40, 50), 90, dtype=np.uint8))
        np.savetxt(folder / f"H1to{k}p", np.eye(3))
    result = evaluate(read_benchmark("oxford", tmp_path), RootSIFT(), "shared", store(tmp_path), Settings())
    row = result.rows[0]
    assert isinstance(row, HomographyRow)
    assert (row.matches, row.corner_error) == (0, math.inf)
    assert result.summary["all"]["mma@10"] == 0
    report.write_json([result], tmp_path / "results.json")
    assert json.loads((tmp_path / "results.json").read_text())["results"][0]["rows"][0]["corner_error"] is None


def save_caps(folder: Path, seed: int) -> str:
    config = ModelConfig(encoder="resnet18", decoder_dim=8, coarse_dim=8, fine_dim=8)
    torch.manual_seed(seed)
    save_pretrained(folder, config, build_network(config).state_dict())
    return str(folder)


@pytest.mark.parametrize(("use", "reliability"), [("caps", True), ("caps-plain", False)])
def test_caps_is_the_extractor(use: str, reliability: bool) -> None:
    image = np.random.default_rng(0).integers(256, size=(48, 64, 3), dtype=np.uint8)
    keypoints = Keypoints(np.array([[10.0, 20.0], [50.5, 30.25]], dtype=np.float32))
    (method,) = get_methods([use], device="cpu")
    assert isinstance(method, CAPS)
    assert method.name == use
    assert method.settings["reliability"] == reliability
    expected = CAPSExtractor(device="cpu", reliability=reliability).describe(image, keypoints)
    np.testing.assert_allclose(method.describe(image, keypoints), expected, atol=1e-6)


@pytest.mark.parametrize("use", ["caps-checked", "caps-plain-checked", "caps-any-checked"])
def test_checked_methods_drop_matches(use: str, oxford: Path, tmp_path: Path) -> None:
    benchmark = read_benchmark("oxford", oxford, max_pairs=2)
    store = FeatureStore(tmp_path, max_keypoints=200, max_edge=1024)
    results = [
        evaluate(benchmark, get_methods([name], device="cpu")[0], "shared", store, Settings(max_shift=max_shift))
        for name, max_shift in ((use.removesuffix("-checked"), 2.0), (use, 1e6), (use, 2.0))
    ]
    unchecked, loose, strict = (result.summary["all"]["matches"] for result in results)
    assert unchecked == loose > strict > 0


def test_caps_runs_and_other_weights_never_meet_old_features(oxford: Path, tmp_path: Path) -> None:
    benchmark = read_benchmark("oxford", oxford, max_pairs=1)
    features = store(tmp_path / "features", max_keypoints=50)
    weights = save_caps(tmp_path / "weights", 0)
    first = evaluate(benchmark, CAPS(weights, "cpu"), "shared", features, Settings())
    assert first.summary["all"]["keypoints"] == 50
    files = set((tmp_path / "features").rglob("*.npz"))
    assert len(files) == 2
    # SIFT's keypoints are CAPS's own: nothing is computed twice.
    again = evaluate(benchmark, CAPS(weights, "cpu"), "own", features, Settings())
    assert again.rows == first.rows
    assert set((tmp_path / "features").rglob("*.npz")) == files
    save_caps(tmp_path / "weights", 1)
    evaluate(benchmark, CAPS(weights, "cpu"), "shared", features, Settings())
    assert len(set((tmp_path / "features").rglob("*.npz")) - files) == 2


def command(*arguments: object) -> int:
    return main(["eval", *map(str, arguments)])


def test_one_command_makes_the_whole_report(
    oxford: Path, strecha: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    arguments = ["oxford", oxford, "strecha", strecha, "--methods", "rootsift", "--max-keypoints", 300, "--seed", 3]
    assert command(*arguments, "-o", tmp_path, "--plot") == 0
    content = json.loads((tmp_path / "results.json").read_text())
    assert [result["kind"] for result in content["results"]] == ["oxford", "strecha"]
    assert [len(result["rows"]) for result in content["results"]] == [10, 6]
    assert content["results"][0]["settings"]["seed"] == 3
    assert content["environment"]["versions"]["numpy"] == np.__version__
    table = (tmp_path / "results.md").read_text()
    assert table.strip() == capsys.readouterr().out.strip()
    figures = content["results"][1]["summary"]["all"]
    line = next(line for line in table.splitlines() if line.startswith("| all | rootsift | 6 |"))
    assert " / ".join(f"{100 * figures[f'auc@{t}']:.1f}" for t in (5, 10, 20)) in line
    assert "opencv, 1 px, seed 3" in line
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [
        f"{content['results'][i]['benchmark']}-shared.png" for i in (0, 1)
    ]

    assert command(*arguments, "-o", tmp_path, "--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "results.json").read_text())

    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    assert len(files) == 12 + 4
    next(iter(files)).unlink()
    assert command(*arguments, "-o", tmp_path, "--threshold", 2) == 0
    again = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    assert sum(files[path] != again[path] for path in files) == 1
    rerun = json.loads((tmp_path / "results.json").read_text())
    assert rerun["results"][0]["rows"] == content["results"][0]["rows"]
    assert rerun["results"][1]["settings"]["threshold"] == 2

    assert command(*arguments, "-o", tmp_path, "--max-keypoints", 200) == 0
    assert len(list(tmp_path.rglob("*.npz"))) == 2 * len(files)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["oxford"], "'oxford' has no path"),
        (["oxford", "nowhere"], "nowhere does not exist"),
        (["oxfort", "."], "'oxfort'; expected one of hpatches, oxford"),
        (["hpatches", "."], "holds no pair of the hpatches benchmark"),
        (["strecha", "."], "pairs.json does not exist"),
        (["colmap", "."], "no COLMAP model in"),
        (["oxford", ".", "--estimator", "paper", "--methods", "shift"], "no method is called 'shift'"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_code_1(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("--methods", "rootsift", *arguments, "-o", "out") == 1
    output = capsys.readouterr()
    assert output.err.startswith("capsdesc: ")
    assert output.err.count("\n") == 1
    assert message in output.err
    assert output.out == ""
    assert not (tmp_path / "out").exists()


def test_a_wrong_line_of_a_pairs_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("\n0.png 1.png 0 0 1 2 3\n")
    with pytest.raises(ValueError, match="line 2: 7 fields; expected 38"):
        read_benchmark("pairs", tmp_path / "list.txt")


def test_the_draw_of_pairs_is_the_seeds(oxford: Path) -> None:
    drawn = [
        [pair.name for pair in read_benchmark("oxford", oxford, max_pairs=4, seed=seed).pairs] for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 4


def test_rootsift_needs_scales_and_angles(oxford: Path) -> None:
    image = load(oxford / "ant" / "img1.png")
    with pytest.raises(ValueError, match="no scales or no angles"):
        RootSIFT().describe(image, Keypoints(np.zeros((1, 2), dtype=np.float32)))


def test_shared_keypoints_are_sifts(oxford: Path, tmp_path: Path) -> None:
    benchmark = read_benchmark("oxford", oxford, max_pairs=1)
    features = store(tmp_path)
    features.export(benchmark.views(), RootSIFT(), "shared")
    view = benchmark.pairs[0].view0
    expected = SIFTDetector().detect(load(view.path)[..., ::-1], 600).points
    np.testing.assert_array_equal(features.load(view, RootSIFT(), "shared").keypoints, np.asarray(expected))


@pytest.mark.parametrize("use", ["caps-keypoints", "caps-keypoints-plain", "caps-keypoints-any"])
def test_rows_of_own_keypoints_are_the_extractors(use: str, oxford: Path, tmp_path: Path, keypoint_model: Path) -> None:
    view = read_benchmark("oxford", oxford, max_pairs=1).pairs[0].view0
    (method,) = get_methods([use], weights=[str(keypoint_model)], device="cpu")
    assert isinstance(method, CAPSKeypoints)
    features = store(tmp_path, max_keypoints=100)
    features.export([view], method, "own")
    extractor = CAPSExtractor(
        keypoint_model, detector="caps", device="cpu", dtype=torch.float32, reliability=not use.endswith("plain")
    )
    expected = extractor.extract(
        load(view.path)[..., ::-1], 100, orientation="any" if use.endswith("any") else "upright"
    )
    kept = features.load(view, method, "own")
    np.testing.assert_array_equal(kept.keypoints, expected.keypoints)
    np.testing.assert_allclose(kept.descriptors, expected.descriptors, atol=1e-5)
    with pytest.raises(ValueError, match="cannot describe given keypoints"):
        features.export([view], method, "shared")


def test_matches_of_own_keypoints_are_checked(oxford: Path, tmp_path: Path, keypoint_model: Path) -> None:
    benchmark = read_benchmark("oxford", oxford, max_pairs=1)
    plain, checked = get_methods(
        ["caps-keypoints", "caps-keypoints-checked"], weights=[str(keypoint_model)], device="cpu"
    )
    features = store(tmp_path, max_keypoints=200)
    rows = [evaluate(benchmark, method, "own", features, Settings()).rows[0] for method in (plain, checked)]
    assert rows[0].keypoints0 == rows[1].keypoints0 == 200
    assert rows[1].matches < rows[0].matches


def test_keypoints_of_another_detector_are_shared(
    oxford: Path, tmp_path: Path, keypoint_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    methods = ["--methods", "rootsift,caps,caps-keypoints", "--weights", keypoint_model, "--device", "cpu"]
    arguments = ["oxford", oxford, "--max-pairs", 1, "--max-keypoints", 100, "--detector", "caps", *methods]
    assert command(*arguments, "-o", tmp_path) == 0
    assert "rootsift describes keypoints with scales and angles, and those of caps have none" in caplog.text
    assert "cannot describe given keypoints" in caplog.text
    assert "the same CAPS keypoints for all methods" in (tmp_path / "results.md").read_text()
    (result,) = json.loads((tmp_path / "results.json").read_text())["results"]
    assert result["method"] == f"caps:{keypoint_model}"

    view = read_benchmark("oxford", oxford, max_pairs=1).pairs[0].view0
    (method,) = get_methods(["caps"], weights=[str(keypoint_model)], device="cpu")
    detector = get_shared_detector("caps", weights=str(keypoint_model), device="cpu")
    features = store(tmp_path / "features", max_keypoints=100, detector=detector)
    expected = CAPSExtractor(keypoint_model, detector="caps", device="cpu", dtype=torch.float32)
    np.testing.assert_array_equal(
        features.load(view, method, "shared").keypoints, expected.detect(load(view.path)[..., ::-1], 100).points
    )


def test_shared_detectors_are_named() -> None:
    with pytest.raises(ValueError, match="detector is 'orb'; expected one of sift, caps"):
        get_shared_detector("orb")
