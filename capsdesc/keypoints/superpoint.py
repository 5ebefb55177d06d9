"""SuperPoint's keypoints (DeTone, Malisiewicz and Rabinovich, CVPR workshops 2018), by Hugging Face's transformers."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from capsdesc.devices import usable_device
from capsdesc.images import shrink, to_gray
from capsdesc.isolation import isolated
from capsdesc.keypoints.mask import check_mask, inside_mask
from capsdesc.types import Keypoints

MAGIC_LEAP = "magic-leap-community/superpoint"
LICENCE = "Magic Leap's weights are for non-commercial research only"

# Pixels along an edge of the cells in which SuperPoint ranks pixels.
_CELL = 8


@dataclass(frozen=True)
class SuperPointDetector:
    """SuperPoint's keypoints. Needs ``pip install "capsdesc[superpoint]"``.

    **Magic Leap's weights are for non-commercial research only.** They are no part of this package: unless ``weights``
    names others, they are fetched from the Hugging Face hub when the detector is made, and kept in the hub's cache.

    The network's own descriptors are not used. It sees the image in grey.

    Attributes:
        weights: A model of transformers' ``SuperPointForKeypointDetection`` in safetensors: the name of a repository on
            the hub, or a local folder with ``config.json`` and ``model.safetensors``, which needs no network.
        revision: Of a repository: branch, tag or commit.
        keypoint_threshold: A keypoint's score is above this, between 0 and 1. ``None`` is as the model has it, 0.005 in
            Magic Leap's.
        nms_radius: No two keypoints are so few pixels or fewer apart along both x and y. ``None`` is as the model has
            it, 4 in Magic Leap's.
        max_size: Images with a longer edge are shrunk to this many pixels for the network, whose memory grows with
            their area; ``None`` never shrinks. Coordinates always refer to the image as given.
        device: Where the network runs; ``None`` is a CUDA GPU if there is one, else the CPU.

    Raises:
        ImportError: transformers is not installed.
        OSError: There is no such model, or the hub cannot be reached and the model is not in its cache.
        ValueError: An attribute is out of range, or the model lacks weights.
    """

    weights: str | os.PathLike[str] = MAGIC_LEAP
    revision: str | None = None
    keypoint_threshold: float | None = None
    nms_radius: int | None = None
    max_size: int | None = 1600
    device: torch.device | str | None = field(default=None, repr=False, compare=False)
    _network: Any = field(init=False, repr=False, compare=False)

    @isolated()
    def __post_init__(self) -> None:
        if self.keypoint_threshold is not None and not 0 <= self.keypoint_threshold <= 1:
            raise ValueError(f"keypoint_threshold must be in 0..1, got {self.keypoint_threshold}")
        if self.nms_radius is not None and self.nms_radius < 0:
            raise ValueError(f"nms_radius must not be negative, got {self.nms_radius}")
        if self.max_size is not None and self.max_size < _CELL:
            raise ValueError(f"max_size must be at least {_CELL} pixels, got {self.max_size}")
        settings: dict[str, float] = {}
        if self.keypoint_threshold is not None:
            settings["keypoint_threshold"] = float(self.keypoint_threshold)
        if self.nms_radius is not None:
            settings["nms_radius"] = self.nms_radius
        network = _load(os.fspath(self.weights), self.revision, settings)
        object.__setattr__(self, "_network", network.to(usable_device(self.device)))

    @isolated()
    def detect(
        self, image: npt.NDArray[np.uint8], max_keypoints: int, mask: npt.NDArray[Any] | None = None
    ) -> Keypoints:
        """Keypoints of an image, strongest first.

        Args:
            image: (H, W, 3) uint8 RGB.
            max_keypoints: At most so many come back, the strongest; of equally strong ones those further up, then
                further left.
            mask: (H, W) bool or uint8, non-zero where keypoints may lie; ``None`` is everywhere.

        Returns:
            Keypoints with scores, probabilities of 0..1, and with neither scales nor angles.

        Raises:
            TypeError: The mask is neither bool nor uint8.
            ValueError: ``max_keypoints`` is negative, or the mask has another size than the image.
        """
        if max_keypoints < 0:
            raise ValueError(f"max_keypoints must not be negative, got {max_keypoints}")
        gray = to_gray(image)
        if mask is not None:
            mask = check_mask(mask, gray.shape)
        seen = shrink(gray, self.max_size)
        points, scores = self._detect(seen)
        # A pixel centre p of the image is (p + 0.5) * r - 0.5 in the resized one.
        resize = np.array(seen.shape[::-1]) / gray.shape[::-1]
        found = Keypoints(((points + 0.5) / resize - 0.5).astype(np.float32), scores)
        if mask is not None:
            found = found[inside_mask(found.points, mask)]
        return found[np.argsort(-np.asarray(found.scores), kind="stable")[:max_keypoints]]

    @torch.inference_mode()
    def _detect(self, gray: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32]]:
        """(N, 2) pixels and (N,) scores in a grey image, in the order of its rows."""
        height, width = gray.shape
        if min(height, width) < _CELL:
            return np.zeros((0, 2)), np.zeros(0, np.float32)
        values = torch.as_tensor(gray, device=self._network.device).float() / 255
        found = self._network(pixel_values=values.expand(1, 3, height, width))
        # Pixels come as fractions of width and height. Rounded, not cut off: transformers' own post-processing, which
        # does that, puts some of them a pixel too far left or up.
        size = np.array([width, height])
        points = np.rint(found.keypoints[0].cpu().numpy().astype(np.float64) * size)
        # The network keeps clear of the left and the top border alone.
        border = self._network.config.border_removal_distance
        kept = ((points >= border) & (points < size - border)).all(axis=1)
        return points[kept], found.scores[0].cpu().numpy()[kept]


def _load(weights: str, revision: str | None, settings: dict[str, float]) -> Any:
    """The network of a repository or a folder, in eval mode, with these settings in place of the model's own."""
    try:
        from transformers import SuperPointForKeypointDetection
    except ImportError as error:
        raise ImportError(
            f"detector 'superpoint' needs transformers: pip install 'capsdesc[superpoint]'; {LICENCE}"
        ) from error
    folder = os.path.expanduser(weights)
    try:
        network, report = SuperPointForKeypointDetection.from_pretrained(
            folder if os.path.isdir(folder) else weights,
            revision=revision or "main",
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported, and refused below
            max_keypoints=-1,  # the cut comes after the mask
            **settings,
        )
    except OSError as error:
        raise OSError(
            f"no SuperPoint model at {weights!r} ({error}); give SuperPointDetector a local folder with config.json "
            f"and model.safetensors, or the name of a repository on the Hugging Face hub; {LICENCE}"
        ) from error
    # transformers only warns of these, and leaves them random.
    if lacking := [*report["missing_keys"], *report["mismatched_keys"]]:
        raise ValueError(f"{weights!r} is no SuperPoint model: {len(lacking)} weights are missing or of another shape")
    return network.eval()
