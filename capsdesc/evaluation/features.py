"""Features of the views of a benchmark, computed once and kept in files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from capsdesc.evaluation.datasets import BenchmarkImage
from capsdesc.evaluation.methods import (
    Describer,
    DifferentiatingPipeline,
    Differentiator,
    Method,
    Pipeline,
    features_of,
    installed_version,
)
from capsdesc.images import shrink
from capsdesc.io.files import atomic_path
from capsdesc.keypoints import Detector, SIFTDetector
from capsdesc.types import UInt8Array

SHARED_DETECTOR = SIFTDetector()


@dataclasses.dataclass(frozen=True, eq=False)
class ViewFeatures:
    """The features of a view.

    Attributes:
        keypoints: (N, 2) float32 pixels of the resized image, in the orientation of the file.
        descriptors: (N, D) float32.
        image_size: width and height of the resized image.
        file_size: width and height of the image before.
        derivatives: (N, 2, C) float32 of the descriptors, or None where matches are not checked by them.
    """

    keypoints: npt.NDArray[np.float32]
    descriptors: npt.NDArray[np.float32]
    image_size: tuple[int, int]
    file_size: tuple[int, int]
    derivatives: npt.NDArray[np.float32] | None = None

    @property
    def scaling(self) -> npt.NDArray[np.float64]:
        """(3, 3) from pixels of the file to pixels of the resized image; corners, not centres, meet corners."""
        sx, sy = np.divide(self.image_size, self.file_size)
        return np.array([[sx, 0, (sx - 1) / 2], [0, sy, (sy - 1) / 2], [0, 0, 1]])


class FeatureStore:
    """A folder of features, one file per view, method and settings: a setting that changes never meets an old file.

    Args:
        folder: where the files are; made when first needed.
        max_keypoints: the budget of every view.
        max_edge: images whose edge is above are shrunk to it beforehand.
        edge: which edge, the ``"longer"`` or the ``"shorter"``.
        detector: finds the keypoints that methods share, see :func:`~capsdesc.evaluation.methods.get_shared_detector`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_keypoints: int,
        max_edge: int,
        edge: str = "longer",
        detector: Detector = SHARED_DETECTOR,
    ) -> None:
        self.folder = folder
        self.max_keypoints = max_keypoints
        self.max_edge = max_edge
        self.edge = edge
        self.detector = detector

    def export(self, views: Iterable[BenchmarkImage], method: Method, keypoints: str) -> None:
        """Compute the features that are not there yet.

        Args:
            views: the views.
            method: the method.
            keypoints: ``"shared"``, the detector's for every method, or ``"own"``.

        Raises:
            ValueError: the method cannot describe shared keypoints.
        """
        method = features_of(method)
        missing = [view for view in views if not self._path(view, method, keypoints).exists()]
        for view in tqdm(missing, desc=f"{method.name}, {keypoints} keypoints", unit="image", disable=None):
            image = view.read()
            file_size = (image.shape[1], image.shape[0])
            image = shrink(image, self._longer_edge(*file_size))
            upright = np.ascontiguousarray(np.rot90(image, view.turns))
            points, arrays = self._extract(method, upright, keypoints)
            path = self._path(view, method, keypoints)
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary, open(temporary, "wb") as file:
                np.savez(
                    file,
                    keypoints=_turn_back(points, upright.shape[1], upright.shape[0], view.turns),
                    **arrays,  # type: ignore[arg-type]
                    image_size=(image.shape[1], image.shape[0]),
                    file_size=file_size,
                    settings=json.dumps(self._settings(method, keypoints)),
                )

    def _longer_edge(self, width: int, height: int) -> int:
        """What the longer edge may be of an image of this size."""
        if self.edge == "longer":
            return self.max_edge
        return round(self.max_edge * max(width, height) / min(width, height))

    def _extract(
        self, method: Method, image: UInt8Array, keypoints: str
    ) -> tuple[npt.NDArray[np.float32], dict[str, npt.NDArray[np.float32]]]:
        """Points, and the arrays that are kept of them."""
        if keypoints == "own" and isinstance(method, DifferentiatingPipeline):
            points, descriptors, derivatives = method.extract_with_derivatives(image, self.max_keypoints)
            return points, {"descriptors": descriptors, "derivatives": derivatives}
        if keypoints == "own" and isinstance(method, Pipeline):
            points, descriptors = method.extract(image, self.max_keypoints)
            return points, {"descriptors": descriptors}
        if not isinstance(method, Describer):
            raise ValueError(f"{method.name} cannot describe given keypoints; compare it with its own")
        detected = self._detector(keypoints).detect(image, self.max_keypoints)
        points = np.asarray(detected.points, dtype=np.float32)
        if isinstance(method, Differentiator):
            descriptors, derivatives = method.describe_with_derivatives(image, detected)
            return points, {"descriptors": descriptors, "derivatives": derivatives}
        return points, {"descriptors": method.describe(image, detected)}

    def _detector(self, keypoints: str) -> Detector:
        """What finds the keypoints of methods that only describe: by themselves they are used with SIFT's."""
        return self.detector if keypoints == "shared" else SHARED_DETECTOR

    def load(self, view: BenchmarkImage, method: Method, keypoints: str) -> ViewFeatures:
        """The features of an exported view.

        Raises:
            FileNotFoundError: they were not exported.
            ValueError: their file is damaged.
        """
        path = self._path(view, features_of(method), keypoints)
        try:
            with np.load(path) as file:
                width, height = file["image_size"].tolist()
                file_width, file_height = file["file_size"].tolist()
                points, descriptors, derivatives = file["keypoints"], file["descriptors"], file.get("derivatives")
        except FileNotFoundError:
            raise
        # On damaged bytes numpy fails with nearly any error there is.
        except Exception as error:
            raise ValueError(f"{path} is damaged; delete it, and it is computed anew: {error}") from error
        return ViewFeatures(points, descriptors, (width, height), (file_width, file_height), derivatives)

    def _path(self, view: BenchmarkImage, method: Method, keypoints: str) -> Path:
        made = [] if view.rendering is None else [dataclasses.asdict(view.rendering)]
        settings = json.dumps([self._settings(method, keypoints), view.turns, *made], sort_keys=True)
        name = hashlib.sha256(settings.encode()).hexdigest()[:16]
        return self.folder / name / f"{_file_hash(view.path)}.npz"

    def _settings(self, method: Method, keypoints: str) -> dict[str, object]:
        own = keypoints == "own" and isinstance(method, Pipeline)
        return {
            "method": type(method).__name__,
            "settings": dict(method.settings),
            "keypoints": "own" if own else _detector_settings(self._detector(keypoints)),
            "opencv": cv2.__version__,
            "capsdesc": installed_version("capsdesc"),
            "max_keypoints": self.max_keypoints,
            "max_edge": self.max_edge,
            # Features of before go on to count.
            **({} if self.edge == "longer" else {"edge": self.edge}),
        }


def _detector_settings(detector: Detector) -> dict[str, object]:
    if isinstance(detector, SIFTDetector):
        return dataclasses.asdict(detector)
    if isinstance(detector, Method):
        return {"detector": detector.name, **detector.settings}
    raise TypeError(f"a {type(detector).__name__} has no settings by which its keypoints could be told from others")


def _turn_back(points: npt.NDArray[np.float32], width: int, height: int, turns: int) -> npt.NDArray[np.float32]:
    """Points of a turned image of that size, before its quarter turns counter-clockwise."""
    for _ in range(turns):
        points = np.stack([height - 1 - points[:, 1], points[:, 0]], axis=1)
        width, height = height, width
    return points


@cache
def _file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]
