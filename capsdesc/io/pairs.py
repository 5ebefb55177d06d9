"""Lists of pairs of images, by name alone or with cameras and relative poses."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np

from capsdesc.checks import as_intrinsics, as_rotation, shown
from capsdesc.io.text import finite_numbers, listed_image, read_lines
from capsdesc.types import Float64Array

PAIRS_LINE = "'name0 name1 rot0 rot1 K0(9) K1(9) T_0to1(16)'"


@dataclasses.dataclass(frozen=True, eq=False)
class PosedPair:
    """A line of a list of pairs with cameras and relative poses: X1 = R X0 + t.

    Attributes:
        name: both names, with a dash between them.
        paths: the image files.
        turns: of each image, quarter turns counter-clockwise that bring it upright.
        K0: (3, 3) intrinsics of camera 0, in pixels of the file.
        K1: (3, 3) intrinsics of camera 1.
        R: (3, 3) rotation from camera 0 to camera 1.
        t: (3,) translation from camera 0 to camera 1.
    """

    name: str
    paths: tuple[Path, Path]
    turns: tuple[int, int]
    K0: Float64Array
    K1: Float64Array
    R: Float64Array
    t: Float64Array


def read_pairs(path: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """The pairs of a list as hloc writes it: two names of images on each line.

    Empty lines are left out, and comments: lines whose first word is #, as names may begin with it.

    Raises:
        OSError: the file cannot be opened.
        ValueError: a line has not two names, which is named, or the file is not UTF-8.
    """
    pairs = []
    for where, names in read_lines(path, names_first=True):
        if len(names) != 2:
            raise ValueError(f"{where}: expected two names of images and found {shown(' '.join(names))}")
        pairs.append((names[0], names[1]))
    return pairs


def read_posed_pairs(path: Path, images: Path | None = None) -> list[PosedPair]:
    """A text file of pairs as published for ScanNet-1500, MegaDepth-1500 and YFCC (SuperGlue, CVPR 2020).

    A line: two names, two numbers of quarter turns (counter-clockwise), K0 and K1 (9 numbers each), the 4 x 4
    transform from camera 0 to camera 1 (16). Glue Factory's ``pairs_calibrated.txt`` (Lindenberger et al., LightGlue,
    ICCV 2023) has no turns, and may have R and t (12) instead of the transform.

    Args:
        path: the file.
        images: folder that names are relative to; that of the file unless given.

    Raises:
        OSError: the file cannot be opened, or an image is missing.
        ValueError: a line is not of this form; it is named.
    """
    folder = images or path.parent
    pairs = []
    for where, fields in read_lines(path, names_first=True):
        if len(fields) not in (32, 36, 38):
            raise ValueError(
                f"{where}: {len(fields)} fields; expected 38, of {PAIRS_LINE}, 36 without turns, or 32 with R(9) t(3)"
            )
        numbers = finite_numbers(fields[2:], where)
        turns, numbers = (numbers[:2], numbers[2:]) if len(fields) == 38 else (np.zeros(2), numbers)
        K0, K1, motion = np.split(numbers, [9, 18])
        if (turns % 1).any():
            raise ValueError(f"{where}: {fields[2]} and {fields[3]} are no numbers of quarter turns")
        if len(motion) == 16:
            T = motion.reshape(4, 4)
            R, t = T[:3, :3], T[:3, 3]
        else:
            R, t = motion[:9].reshape(3, 3), motion[9:]
        pairs.append(
            PosedPair(
                f"{fields[0]}-{fields[1]}",
                (listed_image(folder, fields[0], where), listed_image(folder, fields[1], where)),
                (int(turns[0] % 4), int(turns[1] % 4)),
                as_intrinsics(K0.reshape(3, 3), f"{where}: K"),
                as_intrinsics(K1.reshape(3, 3), f"{where}: K"),
                as_rotation(R, f"{where}: R"),
                t,
            )
        )
    return pairs
