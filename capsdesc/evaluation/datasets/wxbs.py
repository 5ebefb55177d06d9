"""WxBS, wide baselines of many kinds (Mishkin et al., BMVC 2015; github.com/ducha-aiki/wxbs-benchmark)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from capsdesc.evaluation.datasets.files import folder_with, folders, image_file
from capsdesc.evaluation.datasets.pairs import BenchmarkImage, CorrespondencePair
from capsdesc.io.text import finite_numbers, read_lines

# The pairs that settings may be chosen by. The benchmark's figures are those of the other 32.
WXBS_VALIDATION = frozenset({"kyiv_dolltheater2", "petrzin"})


def read_wxbs(folder: Path) -> list[CorrespondencePair]:
    """The test pairs of WxBS 1.1, grouped by category.

    A pair is ``CATEGORY/NAME/`` with ``01.png``, ``02.png`` (or ``.jpg``) and ``corrs.txt``: lines ``x0 y0 x1 y1`` of
    points that were marked by hand.

    Args:
        folder: of the categories, or with ``v1.1/`` in it.
    """
    pairs = []
    for category in folders(folder_with(folder, "v1.1")):
        for path in folders(category):
            if path.name in WXBS_VALIDATION or not (path / "corrs.txt").is_file():
                continue
            rows = [finite_numbers(fields, where) for where, fields in read_lines(path / "corrs.txt")]
            if not rows or any(len(row) != 4 for row in rows):
                raise ValueError(f"{path / 'corrs.txt'} holds no correspondences; expected lines of 'x0 y0 x1 y1'")
            points = np.array(rows)
            view0, view1 = (BenchmarkImage(image_file(path, stem)) for stem in ("01", "02"))
            name = f"{category.name}/{path.name}"
            pairs.append(CorrespondencePair(name, category.name, view0, view1, points[:, :2], points[:, 2:]))
    return pairs
