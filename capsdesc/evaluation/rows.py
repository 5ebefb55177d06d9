"""What was measured on a pair, a row each, and the figures that sum rows up."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from capsdesc.evaluation.metrics import accuracy, error_auc, mean_average_accuracy, pose_error

MATCHING_THRESHOLDS = tuple(range(1, 11))  # pixels
REPEATABILITY_THRESHOLDS = (1, 3)  # pixels
CORNER_THRESHOLDS = (1, 3, 5, 10)  # pixels
EPIPOLAR_THRESHOLDS = tuple(range(1, 21))  # pixels, of marked points
POSE_THRESHOLDS = (5, 10, 20)  # degrees
ANGLE_THRESHOLDS = (5, 10)  # degrees, of the paper's table
# Of the Image Matching Challenge: degrees, and since 2022 metres.
CHALLENGE_ANGLES = tuple(range(1, 11))
CHALLENGE_METRES = tuple(np.geomspace(0.2, 5, 10).tolist())


@dataclasses.dataclass(frozen=True)
class PairRow:
    """What every row says of its pair.

    Attributes:
        pair: its name.
        group: what it is summed up with: a sequence or scene, its difficulty, or its category.
        keypoints0: number of keypoints in image 0.
        keypoints1: number of keypoints in image 1.
        matches: number of matches.
    """

    pair: str
    group: str
    keypoints0: int
    keypoints1: int
    matches: int


@dataclasses.dataclass(frozen=True)
class HomographyRow(PairRow):
    """What was measured on a :class:`HomographyPair`, beside :class:`PairRow`'s.

    Attributes:
        repeatability: share of keypoints that are found again in the other image within 1 and 3 px.
        matching_accuracy: share of matches within 1, 2, .. 10 px.
        corner_error: mean distance of the corners of image 0 under the estimated and the true homography, px.
    """

    repeatability: tuple[float, ...]
    matching_accuracy: tuple[float, ...]
    corner_error: float


@dataclasses.dataclass(frozen=True)
class PoseRow(PairRow):
    """What was measured on a :class:`PosePair`, beside :class:`PairRow`'s.

    Attributes:
        inliers: those that agree with the estimated pose.
        rotation_error: angle of the estimated against the true rotation, degrees.
        translation_error: angle between the directions of translation, sign disregarded, degrees.
        baseline: distance between the cameras in metres; None where the benchmark does not tell it.
    """

    inliers: int
    rotation_error: float
    translation_error: float
    baseline: float | None = None

    @property
    def offset(self) -> float:
        """How far apart the estimated translation, made as long as the true one, and the true one are, in metres.

        Infinite where no pose was found.
        """
        if self.baseline is None:
            raise ValueError(f"{self.pair}: the benchmark does not tell how many metres the cameras are apart")
        if not np.isfinite(self.translation_error):
            return float("inf")
        return float(2 * self.baseline * np.sin(np.radians(self.translation_error) / 2))


@dataclasses.dataclass(frozen=True)
class EpipolarRow(PairRow):
    """What was measured on a :class:`~capsdesc.evaluation.datasets.CorrespondencePair`, beside :class:`PairRow`'s.

    Attributes:
        inliers: those that agree with the estimated fundamental matrix.
        recall: share of the marked points that agree with it within 1, 2, .. 20 px, by the symmetric epipolar distance
            in pixels of the files.
    """

    inliers: int
    recall: tuple[float, ...]


Row = HomographyRow | PoseRow | EpipolarRow


def summarize(rows: Sequence[Row]) -> dict[str, float]:
    """The figures of a benchmark, from its rows.

    All kinds: ``pairs``, ``keypoints`` (mean of both images) and ``matches``. Homographies: ``rep@1/3``, the share
    of keypoints that are found again, ``mma@1..10``, ``accuracy@1/3/5/10`` and ``auc@1/3/5/10`` of the corner error in
    px. Poses: ``inliers``, ``auc@5/10/20`` of the larger angle in degrees, the paper's ``rotation@5/10`` and
    ``translation@5/10``: shares of pairs within these degrees, ``maa@5/10``, the mean of the shares within 1, 2, .. 5
    or 10 degrees, and where metres are known ``maa``, of 1 to 10 degrees with 0.2 to 5 m. Marked points: ``inliers``,
    ``recall@1..20`` and ``maa@10``, its mean over 0, 1, .. 10 px.
    """
    summary = {
        "pairs": float(len(rows)),
        "keypoints": float(np.mean([(row.keypoints0 + row.keypoints1) / 2 for row in rows])),
        "matches": float(np.mean([row.matches for row in rows])),
    }

    def add(name: str, thresholds: Sequence[int], values: npt.ArrayLike) -> None:
        summary.update({f"{name}@{t}": float(v) for t, v in zip(thresholds, np.asarray(values), strict=True)})

    homographies = [row for row in rows if isinstance(row, HomographyRow)]
    if homographies:
        errors = [row.corner_error for row in homographies]
        add("rep", REPEATABILITY_THRESHOLDS, np.mean([row.repeatability for row in homographies], axis=0))
        add("mma", MATCHING_THRESHOLDS, np.mean([row.matching_accuracy for row in homographies], axis=0))
        add("accuracy", CORNER_THRESHOLDS, accuracy(errors, CORNER_THRESHOLDS))
        add("auc", CORNER_THRESHOLDS, error_auc(errors, CORNER_THRESHOLDS))
    poses = [row for row in rows if isinstance(row, PoseRow)]
    if poses:
        summary["inliers"] = float(np.mean([row.inliers for row in poses]))
        errors = [pose_error(row.rotation_error, row.translation_error) for row in poses]
        add("auc", POSE_THRESHOLDS, error_auc(errors, POSE_THRESHOLDS))
        add("rotation", ANGLE_THRESHOLDS, accuracy([row.rotation_error for row in poses], ANGLE_THRESHOLDS))
        add("translation", ANGLE_THRESHOLDS, accuracy([row.translation_error for row in poses], ANGLE_THRESHOLDS))
        for most in ANGLE_THRESHOLDS:
            summary[f"maa@{most}"] = mean_average_accuracy((errors, CHALLENGE_ANGLES[:most]))
        if all(row.baseline is not None for row in poses):
            summary["maa"] = mean_average_accuracy(
                ([row.rotation_error for row in poses], CHALLENGE_ANGLES),
                ([row.offset for row in poses], CHALLENGE_METRES),
            )
    epipolar = [row for row in rows if isinstance(row, EpipolarRow)]
    if epipolar:
        recall = np.mean([row.recall for row in epipolar], axis=0)
        summary["inliers"] = float(np.mean([row.inliers for row in epipolar]))
        add("recall", EPIPOLAR_THRESHOLDS, recall)
        # Nothing agrees within 0 px, which is one of the limits that others average over.
        summary["maa@10"] = float(np.mean([0.0, *recall[:10]]))
    return summary
