"""Training pairs: posed photographs two by two, and homographies of single photographs.

A sample is a pure function of the seed and its index. That makes training resume to the same bits with any number of
loader workers, and needs no state to be saved.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from capsdesc.checks import check_numbers, check_range
from capsdesc.geometry import fundamental_from_pose, relative_pose
from capsdesc.images import read_image
from capsdesc.keypoints import SIFTDetector
from capsdesc.training.augmentation import AugmentationConfig, augment
from capsdesc.training.covisibility import find_pairs
from capsdesc.training.keypoint_losses import CELL
from capsdesc.training.supervision import Supervision
from capsdesc.training.views import (
    RenderedView,
    VirtualCamera,
    aim,
    random_homography,
    render_camera,
    render_homography,
)
from capsdesc.types import Array, PosedImage

logger = logging.getLogger(__name__)

# How many depths along a query's ray are tried to see whether it can appear in the other view.
RAY_SAMPLES = 24
# The scene's depths are known from sparse points only: surfaces may lie this factor nearer or farther.
DEPTH_MARGIN = 1.5
# After this many pairs in a row without enough query points, the data are at fault and not chance.
MAX_ATTEMPTS = 50


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which pairs are drawn and how they are cropped.

    Attributes:
        width: width of the training views in pixels.
        height: height of the training views in pixels.
        queries: query points per pair.
        keypoints: SIFT keypoints of each view at most, for the loss on how they match.
        sift_share: share of them that are SIFT keypoints; the others are uniform (supplement: 90 %).
        planar_share: share of pairs that are homographies of one photograph.
        min_covisibility: least share of the scene points of the poorer image that both images see.
        min_rotation: least relative rotation of posed pairs in degrees.
        max_rotation: largest relative rotation of posed pairs in degrees (supplement: 80).
        max_zoom: view pixels per photograph pixel at most; at least the view fits into the photograph.
        zoom_sigma: standard deviation of the log zoom between the two views of a posed pair.
        turn_sigma: standard deviation of the turn of each view of a posed pair in degrees.
        planar_turn_sigma: standard deviation of the turn of planar pairs in degrees.
        planar_jitter: how far corners of planar pairs move at most, as a share of the view's edges.
        planar_zoom: smallest and largest zoom of planar pairs.
        augmentation: photometric changes, or None.
    """

    width: int = 352
    height: int = 256
    queries: int = 300
    keypoints: int = 384
    sift_share: float = 0.9
    planar_share: float = 0.5
    min_covisibility: float = 0.15
    min_rotation: float = 3.0
    max_rotation: float = 80.0
    max_zoom: float = 1.2
    zoom_sigma: float = 0.15
    turn_sigma: float = 5.0
    planar_turn_sigma: float = 18.0
    planar_jitter: float = 0.25
    planar_zoom: tuple[float, float] = (0.7, 1.6)
    augmentation: AugmentationConfig | None = AugmentationConfig()

    def __post_init__(self) -> None:
        check_numbers(self, "width", "height", least=16)
        check_numbers(self, "queries", least=4)
        check_numbers(self, "keypoints", least=0)
        check_numbers(self, "sift_share", "planar_share", "min_covisibility", least=0, most=1)
        check_numbers(self, "min_rotation", "max_rotation", least=0, most=180)
        check_numbers(self, "max_zoom", least=0.01)
        check_numbers(self, "zoom_sigma", "turn_sigma", "planar_turn_sigma", least=0)
        check_numbers(self, "planar_jitter", least=0, most=0.5)
        check_range("planar_zoom", self.planar_zoom)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the views."""
        return self.width, self.height


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingPair:
    """One sample: two (3, h, w) uint8 views and, for N query points of the first, where they lie in the second.

    The keypoints are those that a detector finds in each view; of the K rows the first ``detected`` are filled. The
    grids are those in which the network's own keypoints are drawn.
    """

    image0: Array
    image1: Array
    points: Array
    valid: Array
    fundamental: Array
    homography: Array
    planar: bool
    keypoints0: Array
    keypoints1: Array
    detected: tuple[int, int]
    grids: Array


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """Pairs stacked: (B, 3, h, w) uint8 images and their supervision."""

    images0: Tensor
    images1: Tensor
    supervision: Supervision


def collate(pairs: Sequence[TrainingPair]) -> Batch:
    """Stack pairs to a batch."""

    def stack(name: str, dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(np.stack([getattr(pair, name) for pair in pairs])).to(dtype)

    def detected(view: int) -> Tensor:
        filled = [np.arange(len(pair.keypoints0)) < pair.detected[view] for pair in pairs]
        return torch.from_numpy(np.stack(filled))

    return Batch(
        images0=stack("image0", torch.uint8),
        images1=stack("image1", torch.uint8),
        supervision=Supervision(
            points=stack("points", torch.float32),
            valid=stack("valid", torch.bool),
            fundamental=stack("fundamental", torch.float32),
            homography=stack("homography", torch.float32),
            planar=stack("planar", torch.bool),
            keypoints0=stack("keypoints0", torch.float32),
            keypoints1=stack("keypoints1", torch.float32),
            detected0=detected(0),
            detected1=detected(1),
            grids=stack("grids", torch.int64),
        ),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """A reconstruction's photographs and the pairs of them that can be matched.

    Attributes:
        name: what it is called in messages.
        photographs: the posed photographs.
        pairs: (P, 2) indices of photographs that see enough in common.
        weight: factor on how often it is drawn.
    """

    name: str
    photographs: Sequence[PosedImage]
    pairs: Array
    weight: float = 1.0


def covisible_pairs(photographs: Sequence[PosedImage], config: DataConfig) -> Array:
    """(P, 2) indices i < j of photographs that overlap and differ as the config asks (supplement)."""
    return find_pairs(photographs, config.min_covisibility, config.min_rotation, config.max_rotation)


class PairDataset(Dataset[TrainingPair]):
    """Endless training pairs over scenes and single photographs.

    Args:
        scenes: reconstructions; each is drawn in proportion to its weight and the square root of its number of pairs.
        photographs: further image files for planar pairs, beside the scenes' own.
        config: what to draw.
        seed: sample ``i`` of the same seed is the same sample always.
        length: how many samples there are.

    Raises:
        ValueError: there is nothing to draw from.
    """

    def __init__(
        self,
        scenes: Sequence[Scene],
        photographs: Sequence[Path],
        config: DataConfig,
        seed: int,
        length: int,
    ) -> None:
        self.scenes = [scene for scene in scenes if len(scene.pairs) and scene.weight > 0]
        self.photographs = [image.path for scene in scenes for image in scene.photographs] + list(photographs)
        if config.planar_share < 1 and not self.scenes:
            raise ValueError("no scene has a pair of photographs that overlap and differ enough to train on")
        if config.planar_share > 0 and not self.photographs:
            raise ValueError("planar_share is above zero but there is no photograph")
        self.config, self.seed, self.length = config, seed, length
        chances = np.array([scene.weight * np.sqrt(len(scene.pairs)) for scene in self.scenes])
        self._scene_chances = chances / chances.sum() if len(chances) else chances
        self._unreadable: dict[Path, str] = {}

    def __len__(self) -> int:
        """The number of samples."""
        return self.length

    def __getitem__(self, index: int) -> TrainingPair:
        """The sample of this index."""
        if not 0 <= index < self.length:
            raise IndexError(index)
        rng = np.random.default_rng((self.seed, index))
        for _ in range(MAX_ATTEMPTS):
            planar = rng.random() < self.config.planar_share
            pair = self._planar_pair(rng) if planar else self._posed_pair(rng)
            if pair is not None and pair.valid.sum() >= self.config.queries / 4:
                return pair
        broken = "".join(f"; {message}" for message in list(self._unreadable.values())[:3])
        raise RuntimeError(
            f"{MAX_ATTEMPTS} pairs in a row had hardly a query point that both views can see: "
            f"are the poses and intrinsics of the model right?{broken}"
        )

    @property
    def fingerprint(self) -> str:
        """A digest of what the samples are drawn from, so that a run is not resumed on other data."""
        digest = hashlib.sha256()
        for scene in self.scenes:
            digest.update(f"{scene.name}:{scene.weight}:{scene.pairs.tolist()}\n".encode(errors="surrogateescape"))
        for path in self.photographs:
            digest.update(f"{path.name}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def _read(self, path: Path) -> Array | None:
        """The photograph, or None if its file is broken, which is reported once."""
        try:
            return read_image(path)
        except (OSError, ValueError) as error:
            if path not in self._unreadable:
                logger.warning("skipped: %s", error)
            self._unreadable[path] = str(error)
            return None

    def _any_photograph(self, rng: np.random.Generator) -> Array | None:
        return self._read(self.photographs[rng.integers(len(self.photographs))])

    def _posed_pair(self, rng: np.random.Generator) -> TrainingPair | None:
        config = self.config
        scene = self.scenes[rng.choice(len(self.scenes), p=self._scene_chances)]
        first, second = (scene.photographs[k] for k in rng.permutation(rng.choice(scene.pairs)))
        shared = np.isin(first.point_ids, second.point_ids)
        point = rng.choice(first.points[shared])
        common_zoom = rng.uniform(0, 1)
        views, cameras = [], []
        for posed in (first, second):
            photograph = self._read(posed.path)
            if photograph is None:
                return None
            fitting = max(config.width / posed.camera.width, config.height / posed.camera.height)
            zoom = fitting * (max(config.max_zoom, fitting) / fitting) ** common_zoom
            zoom *= np.exp(rng.normal(0, config.zoom_sigma))
            camera = aim(posed, point, config.size, max(zoom, fitting), rng.normal(0, config.turn_sigma))
            cameras.append(camera)
            views.append(render_camera(posed, photograph, camera, config.size))
        camera0, camera1 = cameras
        R, t = relative_pose(camera0.R, camera0.t, camera1.R, camera1.t)
        if np.linalg.norm(t) < 1e-9:  # one place, no epipolar lines
            return None
        _, depths = camera0.project(first.points)
        candidates = self._candidates(rng, views[0])
        seen = seen_in(candidates, camera0, camera1, depths[depths > 0], config.size)
        fundamental = fundamental_from_pose(R, t, camera0.K, camera1.K)
        return self._finish(rng, views, candidates[seen], fundamental, np.eye(3), planar=False)

    def _planar_pair(self, rng: np.random.Generator) -> TrainingPair | None:
        config = self.config
        photograph = self._read(self.photographs[rng.integers(len(self.photographs))])
        if photograph is None:
            return None
        height, width = photograph.shape[:2]
        fitting = max(config.width / width, config.height / height)
        zoom = fitting * (max(config.max_zoom, fitting) / fitting) ** rng.uniform(0, 1)
        homographies = random_homography(
            rng,
            (width, height),
            config.size,
            zoom,
            config.planar_turn_sigma,
            config.planar_jitter,
            config.planar_zoom,
        )
        views = [render_homography(photograph, H, config.size) for H in homographies]
        if rng.random() < 0.5:  # so that the plain crop is not always the one that is asked
            homographies, views = homographies[::-1], views[::-1]
        H = homographies[1] @ np.linalg.inv(homographies[0])
        candidates = self._candidates(rng, views[0])
        partners = np.c_[candidates, np.ones(len(candidates))] @ H.T
        partners = partners[:, :2] / partners[:, 2:]
        seen = _inside(partners, config.size)
        column, row = np.rint(partners[seen]).astype(int).T
        seen[seen] = views[1].valid[row, column]
        return self._finish(rng, views, candidates[seen], np.zeros((3, 3)), H / np.linalg.norm(H), planar=True)

    def _candidates(self, rng: np.random.Generator, view: RenderedView) -> Array:
        """Twice as many query points as needed, SIFT keypoints first as far as the config asks."""
        config = self.config
        sift = np.zeros((0, 2))
        if config.sift_share:  # detecting takes as long as all else
            detected = SIFTDetector(contrast_threshold=0.01).detect(view.image, sys.maxsize, view.valid)
            sift = rng.permutation(np.unique(np.asarray(detected.points, dtype=np.float64), axis=0))
            sift = sift[: round(2 * config.queries * config.sift_share)]
        uniform = rng.uniform((0, 0), (config.width - 1, config.height - 1), (2 * config.queries, 2))
        column, row = np.rint(uniform).astype(int).T
        candidates: Array = np.concatenate([sift, uniform[view.valid[row, column]]])
        return candidates

    def _finish(
        self,
        rng: np.random.Generator,
        views: Sequence[RenderedView],
        candidates: Array,
        fundamental: Array,
        homography: Array,
        planar: bool,
    ) -> TrainingPair:
        config = self.config
        # Candidates are SIFT first, so the head holds the wanted share and uniform points fill up what is missing.
        uniform_share = round(config.queries * (1 - config.sift_share))
        head, tail = candidates[: config.queries - uniform_share], candidates[config.queries - uniform_share :]
        chosen = np.concatenate([head, tail[::-1][: config.queries - len(head)]])
        images = [view.image for view in views]
        if config.augmentation is not None:
            images = [augment(rng, image, config.augmentation, lambda: self._any_photograph(rng)) for image in images]
        # Of the views as the network sees them: blur and noise decide what a detector finds.
        found = [_detect(image, view.valid, config.keypoints) for image, view in zip(images, views, strict=True)]
        return TrainingPair(
            image0=np.ascontiguousarray(images[0].transpose(2, 0, 1)),
            image1=np.ascontiguousarray(images[1].transpose(2, 0, 1)),
            points=_padded(chosen, config.queries),
            valid=np.arange(config.queries) < len(chosen),
            fundamental=fundamental,
            homography=homography,
            planar=planar,
            keypoints0=_padded(found[0], config.keypoints),
            keypoints1=_padded(found[1], config.keypoints),
            detected=(len(found[0]), len(found[1])),
            grids=rng.integers(0, CELL, (2, 2)),
        )


def _detect(image: Array, valid: Array, count: int) -> Array:
    """(N, 2) SIFT keypoints of a view, at most ``count``."""
    if count == 0:
        return np.zeros((0, 2))
    return np.asarray(SIFTDetector(contrast_threshold=0.01).detect(image, count, valid).points)


def _padded(rows: Array, count: int) -> Array:
    """(N, 2) rows, filled up with zeros to (count, 2)."""
    padded = np.zeros((count, 2))
    padded[: len(rows)] = rows
    return padded


def _inside(points: Array, size: tuple[int, int]) -> Array:
    return np.asarray(((points >= 0) & (points <= (size[0] - 1, size[1] - 1))).all(-1))


def seen_in(
    points: Array, camera0: VirtualCamera, camera1: VirtualCamera, depths: Array, size: tuple[int, int]
) -> Array:
    """Which pixels of view 0 can appear in view 1 at some depth the scene has.

    Args:
        points: (N, 2) pixels of view 0.
        camera0: camera of view 0.
        camera1: camera of view 1.
        depths: (P,) depths of scene points in view 0, positive.
        size: width and height of view 1.

    Returns:
        (N,) bool.
    """
    if len(depths) == 0:
        return np.zeros(len(points), dtype=bool)
    near, far = depths.min() / DEPTH_MARGIN, depths.max() * DEPTH_MARGIN
    rays = np.c_[points, np.ones(len(points))] @ np.linalg.inv(camera0.K).T
    along = rays[:, None] * np.geomspace(near, far, RAY_SAMPLES)[:, None]
    world = (along.reshape(-1, 3) - camera0.t) @ camera0.R
    pixels, depth = camera1.project(world)
    return np.asarray(((depth > 0) & _inside(pixels, size)).reshape(len(points), RAY_SAMPLES).any(1))
