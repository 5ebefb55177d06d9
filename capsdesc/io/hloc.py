"""The HDF5 files of hloc (Hierarchical-Localization): features and matches, out and in.

hloc's own files put pixel (0, 0) at the centre of the top-left pixel, as this library does; hloc adds COLMAP's half
pixel when it fills a COLMAP database. So coordinates are written and read as they are.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from capsdesc.io.hdf5 import import_h5py, new_file
from capsdesc.io.storage import Store, packed
from capsdesc.types import Features

logger = logging.getLogger(__name__)

DERIVATIVES_DTYPE = np.float16
"""Of derivatives in files: precise enough to check matches by, and they are most of what is kept."""

# An attribute of the file, where hloc does not look.
_SETTINGS = "capsdesc_settings"
# The attribute of keypoints that hloc scales its inlier thresholds by. Detectors see images in full size, where hloc
# gives every detector this many pixels.
_UNCERTAINTY = 1.0
_UNIT_TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True, eq=False)
class ScoredMatches:
    """Matches of two images as hloc keeps them.

    Attributes:
        indices: (M, 2) int64, keypoint i of the first image and keypoint j of the second; each i occurs once.
        scores: (M,) float32, higher is better.
    """

    indices: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.indices)


def write_features(
    path: str | os.PathLike[str],
    features: Iterable[tuple[str, Features]],
    *,
    settings: str | None = None,
    store: Store = "float32",
) -> None:
    """Write a features file, whole or not at all.

    There is a group for each image, called by its name, with ``keypoints`` (N, 2) float32, ``descriptors`` (D, N)
    float32, ``scores`` (N,) float32 unless there are none, and ``image_size``, width and height; and, which hloc does
    not know, ``derivatives`` (2, C, N) float16 if there are any. Scales and angles have no place in the format.

    hloc's nearest neighbours compare by the dot product, which needs descriptors of unit length. Others are written
    with a warning: :func:`capsdesc.pipelines.match.match_pairs` matches them rightly, hloc does not.

    Args:
        path: the file; replaced if it exists.
        features: name and features of each image, in numpy or in torch. A name is the path below the folder of images,
            with slashes.
        settings: text kept in the file, which :func:`read_settings` gives back.
        store: type of the descriptors; hloc reads ``"float16"`` too, and knows nothing of ``"int8"``.

    Raises:
        ImportError: h5py is not installed.
        ValueError: a name comes twice, descriptors are not (N, D), or ``store`` is ``"int8"``.
        FileNotFoundError: the folder of ``path`` does not exist.
    """
    refuse_integers(path, store)
    unit_length = True
    with new_file(path) as writer:
        if settings is not None:
            writer.file.attrs[_SETTINGS] = settings
        for name, image in features:
            keypoints, descriptors = _to_numpy(image.keypoints), _to_numpy(image.descriptors)
            if descriptors.ndim != 2 or len(descriptors) != len(keypoints):
                raise ValueError(
                    f"descriptors of {name!r} have shape {descriptors.shape}; expected ({len(keypoints)}, D), one a "
                    "keypoint: hloc's files hold upright descriptors only"
                )
            fields: dict[str, npt.NDArray[Any]] = {
                "keypoints": keypoints,
                "descriptors": packed(descriptors.T, store)[0],
            }
            if image.scores is not None:
                fields["scores"] = _to_numpy(image.scores)
            if image.derivatives is not None:
                fields["derivatives"] = np.moveaxis(_to_numpy(image.derivatives), 0, -1).astype(DERIVATIVES_DTYPE)
            fields["image_size"] = np.asarray(image.image_size, dtype=np.int64)
            writer.write_group(name, fields)["keypoints"].attrs["uncertainty"] = _UNCERTAINTY
            unit_length &= bool(np.all(np.abs(np.linalg.norm(descriptors, axis=1) - 1) < _UNIT_TOLERANCE))
    if not unit_length:
        logger.warning(
            "the descriptors in %s are not of unit length: match them with capsdesc, not by hloc's nearest neighbours",
            os.fspath(path),
        )


def refuse_integers(path: str | os.PathLike[str], store: Store) -> None:
    """Refuse to write integers to a file of hloc.

    Raises:
        ValueError: ``store`` is ``"int8"``.
    """
    if store == "int8":
        raise ValueError(
            f"cannot write descriptors as int8 to {os.fspath(path)}: hloc would take the integers for their values; "
            "expected float32 or float16, or a folder for the output"
        )


def read_names(path: str | os.PathLike[str]) -> list[str]:
    """Names of the images of a features file, in alphabetical order.

    Raises:
        ImportError: h5py is not installed.
        OSError: there is no such file, or it is no HDF5 file.
    """
    h5py = import_h5py()
    names = []

    def visit(name: str, entry: Any) -> None:
        if isinstance(entry, h5py.Group) and isinstance(entry.get("keypoints"), h5py.Dataset):
            names.append(name)

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return sorted(names)


def read_settings(path: str | os.PathLike[str]) -> str | None:
    """The text that :func:`write_features` kept in a features file; ``None`` where there is none, as in hloc's own.

    Raises:
        ImportError: h5py is not installed.
        OSError: there is no such file, or it is no HDF5 file.
    """
    with import_h5py().File(path, "r") as file:
        settings = file.attrs.get(_SETTINGS)
    return None if settings is None else str(settings)


def read_features(path: str | os.PathLike[str], name: str) -> Features:
    """The features of one image of a features file, hloc's own included.

    Args:
        path: the file.
        name: of the image.

    Returns:
        Features in numpy, float32 whatever the file holds, without scales and angles; without scores where it has none.

    Raises:
        ImportError: h5py is not installed.
        OSError: there is no such file, or it is no HDF5 file.
        ValueError: the image is not in it, is no group, or lacks keypoints, descriptors or the image's size.
    """
    with import_h5py().File(path, "r") as file:
        return _features_in(file, name, path)


def have_derivatives(path: str | os.PathLike[str], names: Iterable[str]) -> bool:
    """Whether all of these images that are in a features file have derivatives there.

    Raises:
        ImportError: h5py is not installed.
        OSError: there is no such file, or it is no HDF5 file.
    """
    h5py = import_h5py()
    with h5py.File(path, "r") as file:
        images = [file[name] for name in names if name in file]
        return all("derivatives" in image for image in images if isinstance(image, h5py.Group))


def check_features(path: str | os.PathLike[str], names: Iterable[str]) -> dict[str, str]:
    """What is wrong with the features of those images that cannot be matched.

    Raises:
        ImportError: h5py is not installed.
        OSError: there is no such file, or it is no HDF5 file.
    """
    broken = {}
    with import_h5py().File(path, "r") as file:
        for name in sorted(names):
            try:
                check_descriptors(name, _features_in(file, name, path).descriptors, path)
            except ValueError as error:
                broken[name] = str(error)
    return broken


def check_descriptors(name: str, descriptors: Any, path: str | os.PathLike[str]) -> None:
    """Refuse descriptors of an image that hloc's files hold no matches of.

    Raises:
        ValueError: they are not finite, or under several views.
    """
    if not np.isfinite(descriptors).all():
        raise ValueError(f"descriptors of {name!r} in {os.fspath(path)} are not finite")
    if descriptors.ndim != 2:
        raise ValueError(
            f"descriptors of {name!r} in {os.fspath(path)} have shape {tuple(descriptors.shape)}; expected (N, D), as "
            "orientation 'upright' gives"
        )


def _features_in(file: Any, name: str, path: str | os.PathLike[str]) -> Features:
    group = _existing_group(file, name, ("keypoints", "descriptors", "image_size"), path)
    width, height = (int(value) for value in group["image_size"][()])
    return Features(
        keypoints=group["keypoints"][()].astype(np.float32),
        descriptors=np.ascontiguousarray(group["descriptors"][()].T, dtype=np.float32),
        scores=group["scores"][()].astype(np.float32) if "scores" in group else None,
        scales=None,
        angles=None,
        image_size=(width, height),
        derivatives=(
            np.ascontiguousarray(np.moveaxis(group["derivatives"][()], -1, 0), dtype=np.float32)
            if "derivatives" in group
            else None
        ),
    )


def write_matches(path: str | os.PathLike[str], matches: Iterable[tuple[tuple[str, str], int, ScoredMatches]]) -> None:
    """Write a matches file, whole or not at all.

    There is a group for each pair, called by both names with their slashes made dashes and a slash between them, with
    ``matches0`` (N,) int32, for each keypoint of the first image the one of the second or -1, and ``matching_scores0``
    (N,) float32, 0 where there is no match.

    Args:
        path: the file; replaced if it exists.
        matches: for each pair the names of the images, N, the number of keypoints in the first, and the matches.

    Raises:
        ImportError: h5py is not installed.
        ValueError: two pairs have the same group, or an index is not below N.
        FileNotFoundError: the folder of ``path`` does not exist.
    """
    with new_file(path) as writer:
        for names, count, found in matches:
            rows = found.indices[:, 0]
            if len(rows) and (rows.min() < 0 or rows.max() >= count):
                raise ValueError(
                    f"matches of {names} have indices {rows.min()} to {rows.max()} in the first image; "
                    f"expected 0 to {count - 1}"
                )
            matches0 = np.full(count, -1, dtype=np.int32)
            scores0 = np.zeros(count, dtype=np.float32)
            matches0[rows], scores0[rows] = found.indices[:, 1], found.scores
            writer.write_group(pair_name(*names), {"matches0": matches0, "matching_scores0": scores0})


def read_matches(path: str | os.PathLike[str], name0: str, name1: str) -> ScoredMatches:
    """The matches of one pair of a matches file, hloc's own included, in whichever order it has them.

    Args:
        path: the file.
        name0: of the first image.
        name1: of the second.

    Returns:
        Matches from the first image to the second, in the order of the image that the file names first.

    Raises:
        ImportError: h5py is not installed.
        OSError: there is no such file, or it is no HDF5 file.
        ValueError: the pair is not in it, or lacks matches or scores.
    """
    with import_h5py().File(path, "r") as file:
        # Older files of hloc have an underscore where newer ones have a slash.
        named = [
            (name, reverse)
            for separator in "/_"
            for name, reverse in (
                (pair_name(name0, name1, separator), False),
                (pair_name(name1, name0, separator), True),
            )
        ]
        pair, reverse = next((found for found in named if found[0] in file), named[0])
        group = _existing_group(file, pair, ("matches0", "matching_scores0"), path)
        matches0 = group["matches0"][()].astype(np.int64)
        scores0 = group["matching_scores0"][()].astype(np.float32)
    rows = np.flatnonzero(matches0 >= 0)
    indices = np.stack([rows, matches0[rows]], axis=1)
    return ScoredMatches(indices[:, ::-1] if reverse else indices, scores0[rows])


def pair_name(name0: str, name1: str, separator: str = "/") -> str:
    """What hloc's files call a pair of images: their names with dashes for slashes."""
    return separator.join(name.replace("/", "-") for name in (name0, name1))


def _existing_group(file: Any, name: str, fields: tuple[str, ...], path: str | os.PathLike[str]) -> Any:
    if name not in file:
        raise ValueError(f"{name!r} is not in {os.fspath(path)}")
    group = file[name]
    if isinstance(group, import_h5py().Dataset):
        raise ValueError(f"{name!r} in {os.fspath(path)} is a data set; expected a group with {', '.join(fields)}")
    missing = [field for field in fields if field not in group]
    if missing:
        raise ValueError(f"{name!r} in {os.fspath(path)} has no {' and no '.join(missing)}")
    return group


def _to_numpy(values: Any) -> npt.NDArray[np.float32]:
    return np.asarray(torch.as_tensor(values).cpu().numpy(), dtype=np.float32)
