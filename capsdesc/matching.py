"""Descriptors to matches: exact nearest neighbours under the Euclidean distance, in bounded memory."""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, Protocol, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from capsdesc.models.maps import without_reliability

MAX_SHIFT = 3.0
"""In pixels, what suits most images as `max_shift` of `match`."""

# Values held of the distance matrix at once, and the columns of one block. Small enough to stay in the last-level
# cache between the product that writes a block and the minima that read it, large enough for the product to run at
# full speed.
_BLOCK_SIZE = 2**21
_BLOCK_COLUMNS = 2**11
# Descriptors of the first image, at least, that decide which views go together.
_VIEW_SAMPLE = 512


class HasDescriptors(Protocol):
    """Anything that carries (N, D) descriptors, such as the features of an image."""

    @property
    def descriptors(self) -> npt.NDArray[Any] | Tensor:
        """(N, D) descriptors."""


Descriptors: TypeAlias = npt.NDArray[Any] | Tensor | HasDescriptors
# Turn and zoom of a view; all of an image that was seen upright only.
_View: TypeAlias = tuple[int, int] | EllipsisType
# Turn and zoom of the first image's view, turn and zoom of the second's.
_Views: TypeAlias = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class Matches:
    """Pairs of descriptors, in the order of the first set.

    Attributes:
        indices: (M, 2) int64, row i of the first set and row j of the second.
        distances: (M,) float32, their Euclidean distances.
    """

    indices: npt.NDArray[np.int64] | Tensor
    distances: npt.NDArray[np.float32] | Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def to_cv2(self) -> list[cv2.DMatch]:
        """As OpenCV's matches: the first set is the query, the second the training set."""
        indices, distances = self.indices.tolist(), self.distances.tolist()
        return [cv2.DMatch(i, j, distance) for (i, j), distance in zip(indices, distances, strict=True)]

    @classmethod
    def from_cv2(cls, matches: Sequence[cv2.DMatch]) -> "Matches":
        """From OpenCV's matches, in numpy and in the order given; image indices are dropped.

        Raises:
            TypeError: `matches` is no sequence of `cv2.DMatch`, as the pairs of `knnMatch` are none.
        """
        if not isinstance(matches, Sequence) or not all(isinstance(pair, cv2.DMatch) for pair in matches):
            raise TypeError(f"matches is {type(matches).__name__}; expected a sequence of cv2.DMatch, not of sequences")
        indices = np.array([(pair.queryIdx, pair.trainIdx) for pair in matches], np.int64).reshape(-1, 2)
        return cls(indices, np.array([pair.distance for pair in matches], np.float32))


def match(
    a: Descriptors,
    b: Descriptors,
    *,
    mutual: bool = True,
    ratio: float | None = None,
    max_distance: float | None = None,
    max_shift: float | None = None,
) -> Matches:
    """Match each descriptor of `a` to its nearest neighbour in `b`.

    The distance is Euclidean on the descriptors as given, which is what the raw descriptors of CAPS need (Wang et al.,
    ECCV 2020) and ranks L2-normalised ones as their dot product does. The search is exact and never holds
    the whole N x M distance matrix: its memory grows with N + M. Of neighbours at equal distance any may be taken.

    Args:
        a: (N, D) float descriptors, numpy or torch, or an object with such `descriptors`. Or (turns, zooms, N, D), the
            same points described under several views, as `CAPSExtractor.describe` gives them for any orientation:
            then those of the one pair of views are matched in which the descriptors are most distinctive.
        b: (M, D) float descriptors of the same kind, on the same device, likewise.
        mutual: keep a pair only if each is the nearest neighbour of the other.
        ratio: keep a pair only if its distance is below `ratio` times the distance to the second nearest neighbour
            in `b` (Lowe, IJCV 2004, section 7.1), 0 < ratio <= 1. A single candidate passes.
        max_distance: keep a pair only if its distance is at most this.
        max_shift: drop the pairs that would look more alike with one of both keypoints moved by more than so many
            pixels, as where the right keypoint was not detected and its neighbour took its place. `MAX_SHIFT` drops
            most of these, and few right ones. Needs features with `derivatives`, as `CAPSExtractor.extract` gives them.
            Pixels are those of the views that go together.

    Returns:
        The matches, ordered by their index in `a`: numpy arrays for numpy input, tensors on its device for torch.

    Raises:
        TypeError: `a` or `b` is no floating-point array or tensor, or one is numpy and the other torch.
        ValueError: shapes or devices do not fit, a value is not finite, `ratio`, `max_distance` or `max_shift` is out
            of range, or there are no derivatives for `max_shift`.
    """
    if ratio is not None and not 0 < ratio <= 1:
        raise ValueError(f"ratio is {ratio}; expected a number in (0, 1], or None for no ratio test")
    if max_distance is not None and not max_distance >= 0:
        raise ValueError(f"max_distance is {max_distance}; expected a number of at least 0, or None for no limit")
    if max_shift is not None and not max_shift > 0:
        raise ValueError(f"max_shift is {max_shift}; expected a positive number of pixels, or None for no check")
    rows_a, a_is_numpy = _as_tensor(a, "a")
    rows_b, b_is_numpy = _as_tensor(b, "b")
    if a_is_numpy != b_is_numpy:
        kinds = ("numpy", "torch") if a_is_numpy else ("torch", "numpy")
        raise TypeError(f"a is {kinds[0]} and b is {kinds[1]}; expected both of one kind: convert one of them")
    if rows_a.shape[-1] != rows_b.shape[-1]:
        raise ValueError(
            f"a has {rows_a.shape[-1]} dimensions and b has {rows_b.shape[-1]}; expected descriptors of one model"
        )
    if rows_a.device != rows_b.device:
        raise ValueError(f"a is on {rows_a.device} and b is on {rows_b.device}; expected one device: move one of them")
    dtype = torch.promote_types(rows_a.dtype, rows_b.dtype)
    rows_a, rows_b = rows_a.to(dtype), rows_b.to(dtype)
    view_a, view_b = _agreeing_views(rows_a, rows_b)
    indices, distances = _match(rows_a[view_a], rows_b[view_b], mutual, ratio, max_distance)
    if max_shift is not None:
        derivatives_a, derivatives_b = _derivatives(a, "a", rows_a), _derivatives(b, "b", rows_b)
        if derivatives_a.shape[-1] != derivatives_b.shape[-1]:
            raise ValueError(
                f"a has derivatives of {derivatives_a.shape[-1]} dimensions and b of {derivatives_b.shape[-1]}; "
                "expected features of one model"
            )
        moves = _shifts(
            rows_a[view_a][indices[:, 0]],
            rows_b[view_b][indices[:, 1]],
            derivatives_a[view_a][indices[:, 0]],
            derivatives_b[view_b][indices[:, 1]],
        )
        # Where descriptors do not change from place to place the shift is no number: nothing can be said for the pair.
        stays = torch.linalg.vector_norm(moves, dim=1) <= max_shift
        indices, distances = indices[stays], distances[stays]
    if a_is_numpy:
        return Matches(indices.numpy(), distances.numpy())
    return Matches(indices, distances)


def add_max_shift_option(parser: argparse.ArgumentParser, default: float | None = None, needs: str = "") -> None:
    """Add the option for `max_shift` of `match`."""
    parser.add_argument(
        "--max-shift",
        type=float,
        default=default,
        metavar="PX",
        help="drop matches that would look more alike with one of the points moved by more than this "
        f"({f'default: none, {MAX_SHIFT:g} suits' if default is None else '%(default)s'}{needs})",
    )


def _as_tensor(descriptors: Descriptors, name: str) -> tuple[Tensor, bool]:
    """(..., N, D) finite float32 or float64 rows, and whether they came as numpy."""
    rows = descriptors if isinstance(descriptors, np.ndarray | Tensor) else getattr(descriptors, "descriptors", None)
    if not isinstance(rows, np.ndarray | Tensor):
        raise TypeError(
            f"{name} is {type(descriptors).__name__}; expected an (N, D) numpy array or torch tensor, "
            "or an object with such descriptors"
        )
    floating = rows.is_floating_point() if isinstance(rows, Tensor) else np.issubdtype(rows.dtype, np.floating)
    if not floating:
        raise TypeError(f"{name} has dtype {rows.dtype}; expected floating point: convert it first")
    if rows.ndim not in (2, 4):
        raise ValueError(
            f"{name} has shape {tuple(rows.shape)}; expected (N, D), one descriptor a row, or (turns, zooms, N, D)"
        )
    tensor = _shared(rows)
    if not tensor.isfinite().all():
        finite = tensor.isfinite().all(dim=-1)
        bad = int((~finite).sum())
        raise ValueError(
            f"{name} has NaN or infinite values in {bad} of {finite.numel()} rows; expected finite descriptors"
        )
    return tensor, isinstance(rows, np.ndarray)


def _shared(values: npt.NDArray[Any] | Tensor) -> Tensor:
    """The same in torch, in single precision or double."""
    if isinstance(values, Tensor):
        return values.detach().to(torch.promote_types(values.dtype, torch.float32))
    # torch shares memory only with native-endian, writeable arrays of non-negative strides
    dtype = np.float64 if values.dtype.itemsize >= 8 else np.float32
    return torch.from_numpy(np.require(values, dtype, ["C_CONTIGUOUS", "WRITEABLE"]))


def _derivatives(features: object, name: str, rows: Tensor) -> Tensor:
    """(..., N, 2, C) derivatives of descriptors, in their precision."""
    values = getattr(features, "derivatives", None)
    if values is None:
        raise ValueError(
            f"{name} has no derivatives; max_shift needs features that have: CAPSExtractor.extract(derivatives=True)"
        )
    derivatives = _shared(values)
    *points, dimensions = rows.shape
    lengths = (dimensions, dimensions - 1)
    if (
        derivatives.ndim != rows.ndim + 1
        or list(derivatives.shape[:-2]) != points
        or derivatives.shape[-1] not in lengths
    ):
        raise ValueError(
            f"{name} has derivatives of shape {tuple(derivatives.shape)} and descriptors of {tuple(rows.shape)}; "
            f"expected ({', '.join(map(str, points))}, 2, C)"
        )
    return derivatives.to(rows)


def _shifts(a: Tensor, b: Tensor, derivatives_a: Tensor, derivatives_b: Tensor) -> Tensor:
    """(M, 2) how far, by their derivatives, matched points should move against each other to look alike.

    The least-squares solution o of b + J o = a with the mean J of the derivatives on both sides, which makes the step
    exact to the second order (Malis, ICRA 2004).
    """
    if derivatives_a.shape[-1] < a.shape[-1]:
        a, b = without_reliability(a), without_reliability(b)
    jacobian = (derivatives_a + derivatives_b) / 2
    normal, right = jacobian @ jacobian.mT, jacobian @ (a - b)[..., None]
    shifts: Tensor = torch.linalg.solve_ex(normal, right).result[..., 0]
    return shifts


def _agreeing_views(a: Tensor, b: Tensor) -> tuple[_View, _View]:
    """The views of each, of (..., N, D) and (..., M, D) descriptors, that go together best, as indices.

    Under the right views many mutual nearest neighbours are much nearer than the second nearest, under wrong ones few
    are. It is enough to turn one image, and to shrink one; then the other's last turn, half a step, may fit better.
    """
    views_a = a if a.ndim == 4 else a[None, None]
    views_b = b if b.ndim == 4 else b[None, None]

    def indices(found: _Views) -> tuple[_View, _View]:
        return found[:2] if a.ndim == 4 else ..., found[2:] if b.ndim == 4 else ...

    if (a.ndim == 2 and b.ndim == 2) or a.shape[-2] == 0 or b.shape[-2] == 0:
        return indices((0, 0, 0, 0))
    sample = slice(None, None, max(1, a.shape[-2] // _VIEW_SAMPLE))

    def best(pairs: Iterable[_Views]) -> tuple[float, _Views]:
        rated = ((_distinctiveness(views_a[i, k][sample], views_b[j, m]), (i, k, j, m)) for i, k, j, m in pairs)
        return max(rated, key=lambda pair: pair[0])

    turns, zooms_b, zooms_a = range(len(views_b)), range(views_b.shape[1]), range(1, views_a.shape[1])
    zooms = [*((0, zoom_b) for zoom_b in zooms_b), *((zoom_a, 0) for zoom_a in zooms_a)]
    rating, found = best((0, zoom_a, turn, zoom_b) for zoom_a, zoom_b in zooms for turn in turns)
    if len(views_a) > 1:
        rating_between, found_between = best((len(views_a) - 1, found[1], turn, found[3]) for turn in turns)
        found = found_between if rating_between > rating else found
    return indices(found)


def _distinctiveness(a: Tensor, b: Tensor) -> float:
    """Sum over mutual nearest neighbours of (1 - d1 / d2)^2 for the distances to the two nearest rows of b.

    Only mutual ones: where nothing matches, many rows of a may share a nearest neighbour, nearer than all others.
    """
    if len(b) < 2:
        return 0.0
    neighbours, is_mutual = _nearest(a, b, 2)
    first, second = (torch.linalg.vector_norm(a - b[neighbours[:, k]], dim=1) for k in range(2))
    return float((1 - first / second.clamp_min(1e-12)).square()[is_mutual].sum())


def _match(
    a: Tensor, b: Tensor, mutual: bool, ratio: float | None, max_distance: float | None
) -> tuple[Tensor, Tensor]:
    if len(a) == 0 or len(b) == 0:
        return a.new_empty((0, 2), dtype=torch.int64), a.new_empty(0, dtype=torch.float32)
    neighbours, is_mutual = _nearest(a, b, 1 if ratio is None else min(2, len(b)))
    nearest = neighbours[:, 0]
    # From the differences, not from the expanded square, where descriptors that are close to each other cancel.
    distances = torch.linalg.vector_norm(a - b[nearest], dim=1)
    keep = is_mutual if mutual else torch.ones_like(is_mutual)
    if ratio is not None and neighbours.shape[1] == 2:
        keep &= distances < ratio * torch.linalg.vector_norm(a - b[neighbours[:, 1]], dim=1)
    if max_distance is not None:
        keep &= distances <= max_distance
    rows = keep.nonzero()[:, 0]
    return torch.stack([rows, nearest[rows]], dim=1), distances[rows].to(torch.float32)


def _nearest(a: Tensor, b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(N, k) indices of the k nearest rows of b, and (N,) whether a row is in turn the nearest of its nearest."""
    # A large common offset, as raw features have, would drown the differences in ||a||^2 + ||b||^2 - 2ab.
    offset = b.mean(dim=0)
    a, b = a - offset, b - offset
    norms_a, norms_b = a.square().sum(dim=1, keepdim=True), b.square().sum(dim=1)
    columns = min(len(b), _BLOCK_COLUMNS)
    rows = max(1, min(len(a), _BLOCK_SIZE // columns))
    buffer = a.new_empty(rows * columns)
    indices = a.new_zeros((len(a), k), dtype=torch.int64)
    squares = a.new_full((len(a), k), torch.inf)
    best_of_b = a.new_full((len(b),), torch.inf)
    for top in range(0, len(a), rows):
        a_rows = slice(top, min(top + rows, len(a)))
        for left in range(0, len(b), columns):
            b_rows = slice(left, min(left + columns, len(b)))
            height, width = a_rows.stop - top, b_rows.stop - left
            block = buffer[: height * width].view(height, width)
            torch.add(norms_a[a_rows], norms_b[b_rows], out=block)
            block.addmm_(a[a_rows], b[b_rows].T, alpha=-2)
            best_of_b[b_rows] = torch.minimum(best_of_b[b_rows], block.amin(dim=0))
            found_squares, found = _smallest(block, min(k, width))
            # Stable, with the earlier columns first: at equal distance the lower index stays in front.
            merged, order = torch.cat([squares[a_rows], found_squares], dim=1).sort(dim=1, stable=True)
            squares[a_rows] = merged[:, :k]
            indices[a_rows] = torch.cat([indices[a_rows], found + left], dim=1).gather(1, order[:, :k])
    nearest = indices[:, 0]
    # The same entry of the same block is compared with itself, so that equality is exact.
    candidates = (squares[:, 0] == best_of_b[nearest]).nonzero()[:, 0]
    first = nearest.new_full((len(b),), len(a)).scatter_reduce(0, nearest[candidates], candidates, "amin")
    return indices, first[nearest] == torch.arange(len(a), device=a.device)


def _smallest(block: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k smallest values of each row with their columns, nearest first; overwrites them in the block."""
    values: list[Tensor] = []
    columns: list[Tensor] = []
    for step in range(k):
        if step:
            block.scatter_(1, columns[-1], torch.inf)
        # numpy's argmin is vectorised, torch's on the CPU is not and would take a fifth of the time of the product
        smallest = torch.from_numpy(block.numpy().argmin(axis=1)) if block.device.type == "cpu" else block.argmin(dim=1)
        columns.append(smallest[:, None])
        values.append(block.gather(1, columns[-1]))
    return torch.cat(values, dim=1), torch.cat(columns, dim=1)
