"""Matches of pairs of images as files that other programs read."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from capsdesc.io.files import atomic_path
from capsdesc.io.hdf5 import new_file
from capsdesc.io.hloc import pair_name
from capsdesc.pipelines.match import MatchedPair, scored
from capsdesc.types import Array, Homography, RelativePose, UInt8Array

MATCH_FILES = (".npz", ".csv", ".json", ".h5")


@dataclasses.dataclass(frozen=True, eq=False)
class PairResult:
    """What two images have in common.

    Attributes:
        pair: their names, features and matches.
        points: two arrays (M, 2), where the matches are.
        model: the relative pose, or the homography, that some of the matches agree on; None where none was found.
    """

    pair: MatchedPair
    points: tuple[Array, Array]
    model: RelativePose | Homography | None

    @property
    def inliers(self) -> npt.NDArray[np.bool_]:
        """(M,) bool, which matches agree with the model."""
        return np.zeros(len(self.pair.matches), dtype=bool) if self.model is None else self.model.inliers

    def arrays(self) -> dict[str, Array]:
        """All of it by name: an array for each column of the matches, and the matrices of the model."""
        fields = () if self.model is None else dataclasses.fields(self.model)
        return {
            "points0": self.points[0],
            "points1": self.points[1],
            "indices": np.asarray(self.pair.matches.indices),
            "distances": np.asarray(self.pair.matches.distances),
            "inliers": self.inliers,
            **{field.name: getattr(self.model, field.name) for field in fields if field.name != "inliers"},
        }

    def summary(self) -> dict[str, Any]:
        """All of it in plain values, for JSON."""
        names, features, matches = self.pair
        return {
            "image0": names[0],
            "image1": names[1],
            "keypoints": [len(image) for image in features],
            "matches": len(matches),
            "inliers": int(self.inliers.sum()),
            "model": {RelativePose: "pose", Homography: "homography"}.get(type(self.model)),
        } | {"inlier" if name == "inliers" else name: values.tolist() for name, values in self.arrays().items()}


def check_outputs(outputs: Sequence[Path], pairs: str = "one") -> None:
    """Refuse files that nothing can be written to, before the work is done.

    Args:
        outputs: the files.
        pairs: ``"one"``, or ``"many"``, which have no picture and no ``.npz``.

    Raises:
        ValueError: an ending is not known, or not of a file that holds so many pairs.
    """
    for path in outputs:
        suffix = path.suffix.lower()
        if path.is_dir() or not path.parent.is_dir():
            continue  # writing will say what is wrong
        if pairs == "many" and suffix not in (".csv", ".json", ".h5"):
            raise ValueError(f"cannot write the matches of many pairs to {path}: expected .csv, .json or .h5")
        if suffix in MATCH_FILES:
            continue
        if not suffix or not cv2.haveImageWriter(path.name):
            raise ValueError(
                f"cannot write to {path}: expected an ending such as .png or .jpg for a picture, or one of "
                f"{', '.join(MATCH_FILES)} for the matches"
            )


def write_results(path: Path, results: Sequence[PairResult], *, many: bool = False) -> None:
    """Write matches in the format that the ending of the file says, whole or not at all.

    Args:
        path: the file.
        results: the pairs; one unless ``many``.
        many: whether JSON is a list.
    """
    suffix = path.suffix.lower()
    if suffix == ".h5":
        with new_file(path) as writer:
            for result in results:
                writer.write_group(pair_name(*result.pair.names), _hloc_fields(result) | result.arrays())
        return
    with atomic_path(path) as temporary:
        if suffix == ".npz":
            arrays: dict[str, Any] = results[0].arrays()
            np.savez(temporary, **arrays)
        elif suffix == ".json":
            summaries = [result.summary() for result in results]
            temporary.write_text(json.dumps(summaries if many else summaries[0]) + "\n", encoding="utf-8")
        else:
            temporary.write_text(_csv(results), encoding="utf-8", newline="")


def check_picture(path: Path) -> None:
    """Refuse a path that no picture can be written to, before the work is done."""
    if path.is_dir() or not path.parent.is_dir():
        return  # writing will say what is wrong
    if path.suffix.lower() == ".gif" and not hasattr(cv2, "imencodeanimation"):
        raise ValueError(f"cannot write {path}: for GIF, pip install 'opencv-python>=4.12'; or choose .png")
    if not path.suffix or not cv2.haveImageWriter(path.name):
        raise ValueError(f"cannot write a picture to {path}: expected an ending such as .png or .jpg")


def write_picture(path: Path, picture: UInt8Array) -> None:
    """Write an RGB picture, whole or not at all."""
    with atomic_path(path) as temporary:
        # Not imwrite, which fails on Windows where a path is not ASCII.
        done, encoded = cv2.imencode(path.suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        if not done:
            raise ValueError(f"cannot write a picture to {path}")
        temporary.write_bytes(encoded.tobytes())


def write_blink(path: Path, pictures: Sequence[UInt8Array], milliseconds: int = 700) -> None:
    """Write RGB pictures as a GIF that shows one after the other, over and over; whole or not at all."""
    animation = cv2.Animation()
    animation.frames = [cv2.cvtColor(picture, cv2.COLOR_RGB2BGR) for picture in pictures]
    animation.durations = [milliseconds] * len(pictures)
    with atomic_path(path) as temporary:
        done, encoded = cv2.imencodeanimation(".gif", animation)
        if not done:
            raise ValueError(f"cannot write a picture to {path}")
        temporary.write_bytes(encoded.tobytes())


def matrix_lines(values: Array) -> str:
    """A matrix for people, a line for each row."""
    return "\n".join("  " + " ".join(f"{value:12.6f}" for value in row) for row in values)


def say_written(path: Path, options: argparse.Namespace) -> None:
    """Say that a file was written, on standard error: standard output holds results alone."""
    if not options.quiet:
        print(f"wrote {path}", file=sys.stderr)


def _csv(results: Sequence[PairResult]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image0", "image1", "x0", "y0", "x1", "y1", "distance", "inlier"])
    for result in results:
        columns = np.column_stack([*result.points, result.pair.matches.distances]).tolist()
        for (*coordinates, distance), inlier in zip(columns, result.inliers, strict=True):
            places = [f"{value:.3f}" for value in coordinates]
            writer.writerow([*result.pair.names, *places, f"{distance:.6g}", int(inlier)])
    return text.getvalue()


def _hloc_fields(result: PairResult) -> dict[str, Array]:
    """What hloc's matches files hold of a pair; nothing where descriptors are of several views, which hloc has not."""
    if np.ndim(result.pair.features[0].descriptors) != 2:
        return {}
    found = scored(result.pair)
    matches0 = np.full(len(result.pair.features[0]), -1, dtype=np.int32)
    scores0 = np.zeros(len(matches0), dtype=np.float32)
    matches0[found.indices[:, 0]], scores0[found.indices[:, 0]] = found.indices[:, 1], found.scores
    return {"matches0": matches0, "matching_scores0": scores0}
