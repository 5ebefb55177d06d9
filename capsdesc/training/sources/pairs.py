"""Lists of pairs with cameras and relative poses."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import ClassVar

import numpy as np

from capsdesc.images import image_size
from capsdesc.io.pairs import read_posed_pairs
from capsdesc.training.dataset import DataConfig, Scene
from capsdesc.training.sources.base import PosesSource
from capsdesc.training.sources.cameras import pinhole_of, posed_image, warn_if_off_centre
from capsdesc.training.sources.stand_ins import pose_scene

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairsSource(PosesSource):
    """A text file of pairs, ``name0 name1 rot0 rot1 K0(9) K1(9) T_0to1(16)``, as of ScanNet and MegaDepth.

    Every pair is a world of its own. Pairs of which one photograph lies on its side and the other does not are left
    out: the descriptors are of upright images.

    Attributes:
        images: folder the names are relative to, where it is not that of the file.
    """

    kind: ClassVar[str] = "pairs"

    images: str | None = None

    def scenes(self, config: DataConfig) -> list[Scene]:
        """One scene of all the pairs."""
        path = Path(self.path)
        listed = read_posed_pairs(path, Path(self.images) if self.images is not None else None)
        upright = [pair for pair in listed if pair.turns[0] == pair.turns[1]]
        if len(upright) < len(listed):
            logger.warning("%s: %d pairs turned against each other left out", path, len(listed) - len(upright))
        sizes: dict[Path, tuple[int, int]] = {}
        photographs = []
        for pair in upright:
            where = f"{path}, pair {pair.name}"
            poses = ((np.eye(3), np.zeros(3)), (pair.R, pair.t))
            for image, K, (R, t) in zip(pair.paths, (pair.K0, pair.K1), poses, strict=True):
                if image not in sizes:
                    sizes[image] = image_size(image)
                photographs.append(posed_image(image, pinhole_of(sizes[image], K, where), R, t))
        warn_if_off_centre(photographs, str(path))
        pairs = np.arange(len(photographs)).reshape(-1, 2)
        return [pose_scene(path.stem, photographs, config, self.depth, pairs)]
