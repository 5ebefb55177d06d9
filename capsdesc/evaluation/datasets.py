"""Benchmarks as they lie on disk, read into pairs of images with their true geometry."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from capsdesc.checks import as_intrinsics, as_rotation, shown
from capsdesc.evaluation.renderings import CHANGES, Rendering
from capsdesc.geometry import relative_pose, rotation_error
from capsdesc.images import find_images, image_size, read_image
from capsdesc.io.colmap import find_model, overlap, read_model
from capsdesc.io.pairs import PAIRS_LINE, read_posed_pairs
from capsdesc.io.text import below, finite_numbers, listed_image, parse_json, read_text
from capsdesc.training.views import random_homography
from capsdesc.types import Float64Array, PosedImage, UInt8Array

# The sequences above 1600 x 1200 pixels, which D2-Net's protocol (and everybody after it) leaves out: 108 remain.
HPATCHES_LEFT_OUT = frozenset(
    ["i_contruction", "i_crownnight", "i_dc", "i_pencils", "i_whitebuilding", "v_artisans", "v_astronautis", "v_talent"]
)
IMAGE_SUFFIXES = (".ppm", ".png", ".jpg", ".pgm")

# Of pairs that are made of photographs: the longer edge of a view, the standard deviation of its turn in degrees, how
# far its corners move at most as a share of its edges, and its zooms.
VIEW_EDGE = 640
VIEW_TURN = 12.0
VIEW_JITTER = 0.1
VIEW_ZOOM = (0.8, 1.25)

# The kinds of benchmarks, and how each lies on disk.
LAYOUTS = {
    "hpatches": "i_NAME/ and v_NAME/ with 1.ppm .. N.ppm (or .png, .jpg) and H_1_2 .. H_1_N, N at least 2",
    "oxford": "NAME/ with img1.png .. imgN.png (or .ppm) and H1to2p .. H1toNp",
    "strecha": "cameras.json, pairs.json and SCENE/IMAGE",
    "pairs": f"a text file of lines {PAIRS_LINE}",
    "colmap": "images/ and sparse/{cameras,images,points3D}.bin (or .txt)",
    "homographies": "a folder of photographs, of which pairs are made, with and without changes of appearance",
}


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
    """Two views of a rigid scene: X1 = R X0 + t."""

    name: str
    group: str
    view0: BenchmarkImage
    view1: BenchmarkImage
    camera0: Camera
    camera1: Camera
    R: Float64Array
    t: Float64Array


Pair = HomographyPair | PosePair


@dataclasses.dataclass(frozen=True, eq=False)
class Benchmark:
    """Pairs of views, all of one kind.

    Attributes:
        kind: a key of :data:`LAYOUTS`.
        path: what it was read from.
        pairs: all pairs; homographies or poses.
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


def read_benchmark(
    kind: str,
    path: Path,
    *,
    images: Path | None = None,
    min_overlap: float = 0.1,
    max_pairs: int | None = None,
    seed: int = 0,
) -> Benchmark:
    """Read a benchmark.

    Args:
        kind: a key of :data:`LAYOUTS`.
        path: its folder; of ``"pairs"`` its text file.
        images: the folder image names are relative to, where they are not in ``path`` (``"pairs"``, ``"colmap"``).
        min_overlap: the least overlap of a ``"colmap"`` pair: 3D points seen by both, relative to the image with fewer.
        max_pairs: keep that many pairs at most, drawn at random.
        seed: of that draw, and of ``"homographies"``.

    Raises:
        FileNotFoundError: ``path`` or a file that belongs to it is missing.
        ValueError: ``kind`` is unknown, a file does not hold what it should, or there is no pair.
    """
    readers: dict[str, Callable[[], list[Any]]] = {
        "hpatches": lambda: read_hpatches(path),
        "oxford": lambda: read_oxford(path),
        "strecha": lambda: read_strecha(path),
        "pairs": lambda: read_pairs_file(path, images),
        "colmap": lambda: read_colmap(path, images, min_overlap),
        "homographies": lambda: make_homographies(path, seed),
    }
    if kind not in readers:
        raise ValueError(f"kind is {kind!r}; expected one of {', '.join(readers)}")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    pairs = readers[kind]()
    if not pairs:
        raise ValueError(f"{path} holds no pair of the {kind} benchmark; its layout is: {LAYOUTS[kind]}")
    if max_pairs is not None and len(pairs) > max_pairs:
        chosen = np.random.default_rng(seed).choice(len(pairs), max_pairs, replace=False)
        pairs = [pairs[i] for i in np.sort(chosen)]
    return Benchmark(kind, path, tuple(pairs))


def read_hpatches(folder: Path) -> list[HomographyPair]:
    """HPatches sequences (Balntas et al., CVPR 2017), grouped by illumination and viewpoint.

    In other sets of this layout, which have names such as ``i_SET_NAME``, a group is all that begins with ``i_SET``.
    """
    groups = {"i": "illumination", "v": "viewpoint"}
    pairs: list[HomographyPair] = []
    for sequence in _folders(folder):
        if sequence.name[:2] in ("i_", "v_") and sequence.name not in HPATCHES_LEFT_OUT:
            change, *names = sequence.name.split("_", 2)
            group = f"{change}_{names[0]}" if len(names) > 1 else groups[change]
            pairs += _read_sequence(sequence, group, "{}", "H_1_{}")
    return pairs


def read_oxford(folder: Path) -> list[HomographyPair]:
    """Oxford's affine covariant regions sequences (Mikolajczyk et al., IJCV 2005), grouped by sequence."""
    return [
        pair
        for sequence in _folders(folder)
        if (sequence / "H1to2p").exists()
        for pair in _read_sequence(sequence, sequence.name, "img{}", "H1to{}p")
    ]


def read_strecha(folder: Path) -> list[PosePair]:
    """Scenes with laser-scanned ground truth (Strecha et al., CVPR 2008): cameras.json, pairs.json, SCENE/IMAGE."""
    listed, cameras = _json_file(folder / "pairs.json", list), {}
    for scene, entries in _json_file(folder / "cameras.json", dict).items():
        for where, entry in _entries(entries, f"{folder / 'cameras.json'}, {scene}"):
            name = _entry(entry, "name", where)
            cameras[scene, name] = Camera(as_intrinsics(_matrix(entry, "K", (3, 3), where), f"{where}: K"))
    pairs = []
    for where, entry in _entries(listed, str(folder / "pairs.json")):
        scene, name0, name1 = (_entry(entry, key, where) for key in ("scene", "name1", "name2"))
        if unknown := [name for name in (name0, name1) if (scene, name) not in cameras]:
            raise ValueError(f"{where}: cameras.json has no {scene}/{unknown[0]}")
        R = as_rotation(_matrix(entry, "R", (3, 3), where), f"{where}: R")
        pairs.append(
            PosePair(
                f"{scene}/{name0}-{name1}",
                _bucket(R),
                BenchmarkImage(listed_image(below(folder, scene, where), name0, where)),
                BenchmarkImage(listed_image(below(folder, scene, where), name1, where)),
                cameras[scene, name0],
                cameras[scene, name1],
                R,
                _matrix(entry, "t", (3,), where),
            )
        )
    return pairs


def read_pairs_file(path: Path, images: Path | None = None) -> list[PosePair]:
    """A list of pairs with cameras and poses, see :func:`capsdesc.io.pairs.read_posed_pairs`, grouped by rotation."""
    return [
        PosePair(
            pair.name,
            _bucket(pair.R),
            BenchmarkImage(pair.paths[0], pair.turns[0]),
            BenchmarkImage(pair.paths[1], pair.turns[1]),
            Camera(pair.K0),
            Camera(pair.K1),
            pair.R,
            pair.t,
        )
        for pair in read_posed_pairs(path, images)
    ]


def read_colmap(folder: Path, images: Path | None = None, min_overlap: float = 0.1) -> list[PosePair]:
    """A COLMAP model taken as the truth: all pairs of registered images that share enough 3D points.

    Args:
        folder: the model's own folder, or one with ``sparse/`` or ``sparse/0/`` in it.
        images: the folder of the images; ``images/`` in ``folder`` unless given.
        min_overlap: the least number of shared 3D points, relative to the image that has fewer.
    """
    model = find_model(folder)
    photographs = read_model(model, images or folder / "images", strict=True)
    pairs = []
    for i, first in enumerate(photographs):
        for second in photographs[i + 1 :]:
            if overlap(first, second) < max(min_overlap, 1e-9):
                continue
            R, t = relative_pose(first.R, first.t, second.R, second.t)
            pairs.append(
                PosePair(
                    f"{first.path.name}-{second.path.name}",
                    _bucket(R),
                    BenchmarkImage(first.path),
                    BenchmarkImage(second.path),
                    _from_colmap(first),
                    _from_colmap(second),
                    R,
                    t,
                )
            )
    return pairs


def make_homographies(folder: Path, seed: int = 0) -> list[HomographyPair]:
    """Pairs made of photographs: each as it is beside a view of it that is turned, zoomed and tilted.

    The view comes once for each of :data:`capsdesc.evaluation.renderings.CHANGES`, the group of the pair: ``none``
    tells what the movement alone costs. Which homography and which change is the seed's and the photograph's place
    among the others.

    Args:
        folder: photographs, anywhere below it.
        seed: of all draws.
    """
    pairs = []
    for index, path in enumerate(find_images(folder)):
        width, height = image_size(path)
        zoom = min(1.0, VIEW_EDGE / max(width, height))
        size = (max(1, round(width * zoom)), max(1, round(height * zoom)))
        rng = np.random.default_rng((seed, index))
        homographies = random_homography(
            rng, (width, height), size, zoom, turn_sigma=VIEW_TURN, jitter=VIEW_JITTER, zoom_range=VIEW_ZOOM
        )
        plain, moved = (Rendering(tuple(H.ravel().tolist()), size) for H in homographies)
        H = homographies[1] @ np.linalg.inv(homographies[0])
        for number, change in enumerate(CHANGES):
            changed = dataclasses.replace(moved, change=change, seed=(seed, index, number))
            views = BenchmarkImage(path, rendering=plain), BenchmarkImage(path, rendering=changed)
            pairs.append(HomographyPair(f"{path.relative_to(folder).as_posix()}/{change}", change, *views, H))
    return pairs


def _read_sequence(folder: Path, group: str, image: str, homography: str) -> Iterator[HomographyPair]:
    """Every pair of image 1 with another; every other image, and every homography, must have its partner."""
    reference = BenchmarkImage(_image_file(folder, image.format(1)))
    ending = "|".join(map(re.escape, IMAGE_SUFFIXES))
    numbered = re.compile(rf"{image.format('([0-9]+)')}(?:{ending})|{homography.format('([0-9]+)')}")
    found = filter(None, (numbered.fullmatch(path.name) for path in folder.iterdir()))
    others = sorted({int(match[1] or match[2]) for match in found} - {1})
    if not others:
        raise FileNotFoundError(f"{folder} holds image 1 alone; expected image 2 and {homography.format(2)} beside it")
    for k in others:
        path = folder / homography.format(k)
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist; it maps image 1 to image {k}")
        # Some of Oxford's files have blank lines and trailing ones; the nine numbers are what counts.
        H = finite_numbers(read_text(path).split(), str(path))
        if H.size != 9 or np.linalg.matrix_rank(H.reshape(3, 3)) < 3:
            raise ValueError(f"{path} holds no homography; expected 9 numbers, of a matrix that can be inverted")
        view = BenchmarkImage(_image_file(folder, image.format(k)))
        yield HomographyPair(f"{folder.name}/1-{k}", group, reference, view, H.reshape(3, 3))


def _image_file(folder: Path, stem: str) -> Path:
    for suffix in IMAGE_SUFFIXES:
        if (path := folder / f"{stem}{suffix}").exists():
            return path
    raise FileNotFoundError(f"{folder} holds no image {stem} ({', '.join(IMAGE_SUFFIXES)})")


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())


def _json_file(path: Path, kind: type) -> Any:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; a strecha benchmark has: {LAYOUTS['strecha']}")
    content = parse_json(read_text(path), str(path))
    if not isinstance(content, kind):
        raise ValueError(f"{path} holds {shown(content)}; expected a JSON {'object' if kind is dict else 'array'}")
    return content


def _entries(entries: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{where} is {shown(entries)}; expected a list of objects")
    yield from ((f"{where}, entry {number}", entry) for number, entry in enumerate(entries))


def _entry(entry: dict[str, Any], key: str, where: str) -> str:
    if not isinstance(entry.get(key), str):
        raise ValueError(f"{where}: {key} is {shown(entry.get(key))}; expected a text")
    return str(entry[key])


def _matrix(entry: dict[str, Any], key: str, shape: tuple[int, ...], where: str) -> Float64Array:
    """The finite numbers of an entry, in this shape."""
    try:
        matrix = np.array(entry.get(key), dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        matrix = np.empty(0)
    if matrix.shape != shape or not np.isfinite(matrix).all():
        raise ValueError(f"{where}: {key} is {shown(entry.get(key))}; expected numbers of shape {shape}")
    return matrix


def _bucket(R: Float64Array) -> str:
    """The paper's difficulty of a pair, by its rotation (section 4.1 of CAPS)."""
    angle = rotation_error(R, np.eye(3))
    for bucket, limit in (("easy", 15), ("moderate", 30), ("hard", 60)):
        if angle < limit:
            return bucket
    return "beyond 60 deg"


def _from_colmap(posed: PosedImage) -> Camera:
    K = posed.K
    if posed.camera.model_name in ("PINHOLE", "SIMPLE_PINHOLE"):
        return Camera(K)

    def undistort(points: Float64Array) -> Float64Array:
        rays = posed.pixels_to_rays(points)
        return np.asarray(rays * [K[0, 0], K[1, 1]] + K[:2, 2], dtype=np.float64)

    return Camera(K, undistort)
