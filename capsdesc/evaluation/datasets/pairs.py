"""What a benchmark is made of, wherever it came from: pairs of views with their true geometry."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from capsdesc.checks import as_intrinsics
from capsdesc.evaluation.datasets.files import numbers
from capsdesc.evaluation.renderings import Rendering
from capsdesc.images import read_image
from capsdesc.types import Float64Array, UInt8Array


@dataclasses.dataclass(frozen=True)
class BenchmarkImage:
    """One image of a benchmark.

    Attributes:
        path: the image file.
        turns: quarter turns counter-clockwise that bring the image upright. Methods see it turned; points are
            always given in the file's own orientation.
        rendering: how the image is made of the file; None where it is the file's.
    """

    path: Path
    turns: int = 0
    rendering: Rendering | None = None

    def read(self) -> UInt8Array:
        """(H, W, 3) uint8 RGB, not turned.

        Raises:
            FileNotFoundError, ValueError: as :func:`capsdesc.images.read_image`.
        """
        image = read_image(self.path)
        return image if self.rendering is None else self.rendering.render(image)


@dataclasses.dataclass(frozen=True, eq=False)
class Camera:
    """The intrinsics of a view.

    Attributes:
        K: (3, 3) of the ideal pinhole, for pixels whose centres are at integers.
        undistort: maps (N, 2) pixels of the file to pixels of that pinhole; None where the file is free of distortion.
    """

    K: Float64Array
    undistort: Callable[[Float64Array], Float64Array] | None = None

    @classmethod
    def from_colmap(cls, K: object, where: str) -> Camera:
        """The ideal pinhole whose (3, 3) K came from COLMAP, which puts the centre of the first pixel at (0.5, 0.5).

        Raises:
            ValueError: it is that of no camera; ``where`` tells messages where it stands.
        """
        shift = np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
        return cls(as_intrinsics(numbers(K, f"{where}: K", (3, 3)) - shift, f"{where}: K"))


@dataclasses.dataclass(frozen=True, eq=False)
class HomographyPair:
    """Two views of a plane, or from one place: x1 ~ H x0 in the pixels of the files."""

    name: str
    group: str
    view0: BenchmarkImage
    view1: BenchmarkImage
    H: Float64Array


@dataclasses.dataclass(frozen=True, eq=False)
class PosePair:
    """Two views of a rigid scene: X1 = R X0 + t.

    Attributes:
        name: the pair's.
        group: the group it is summed up with: a difficulty, or a scene.
        view0: image 0.
        view1: image 1.
        camera0: its camera.
        camera1: the other's.
        R: (3, 3) rotation from camera 0 to camera 1.
        t: (3,) translation from camera 0 to camera 1.
        metric: whether t is in metres.
    """

    name: str
    group: str
    view0: BenchmarkImage
    view1: BenchmarkImage
    camera0: Camera
    camera1: Camera
    R: Float64Array
    t: Float64Array
    metric: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class CorrespondencePair:
    """Two views of a scene in which a person marked points that are the same.

    Attributes:
        name: the pair's.
        group: its category.
        view0: image 0.
        view1: image 1.
        points0: (N, 2) pixels of the file of image 0.
        points1: (N, 2) pixels of the file of image 1.
    """

    name: str
    group: str
    view0: BenchmarkImage
    view1: BenchmarkImage
    points0: Float64Array
    points1: Float64Array


Pair = HomographyPair | PosePair | CorrespondencePair


@dataclasses.dataclass(frozen=True, eq=False)
class Benchmark:
    """Pairs of views, all of one kind.

    Attributes:
        kind: a key of :data:`capsdesc.evaluation.datasets.LAYOUTS`.
        path: what it was read from.
        pairs: all pairs; homographies, poses or correspondences.
    """

    kind: str
    path: Path
    pairs: tuple[Pair, ...]

    @property
    def name(self) -> str:
        """How reports and file names call it."""
        stem = self.path.resolve().stem
        return stem if self.kind in stem else f"{self.kind}-{stem}"

    def views(self) -> list[BenchmarkImage]:
        """Every view, once, in the order of the pairs."""
        return list(dict.fromkeys(view for pair in self.pairs for view in (pair.view0, pair.view1)))
