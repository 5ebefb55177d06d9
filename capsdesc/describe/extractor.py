"""Images and keypoints to descriptors."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from capsdesc.checks import check_inside
from capsdesc.describe.orientation import TURNS, ZOOMS, Orientation, TurnedView, check_orientation, turned_views
from capsdesc.describe.search import coarse_to_fine
from capsdesc.describe.seeing import SeeingNetwork, Seen
from capsdesc.devices import describing_dtype, usable_device
from capsdesc.images import ImageLike, image_size, shrink, to_rgb, to_tensor
from capsdesc.isolation import isolated
from capsdesc.keypoints import OWN, Detector, default_detector, get_detector
from capsdesc.keypoints.mask import check_mask
from capsdesc.models import DenseFeatures, ModelConfig
from capsdesc.types import (
    ArrayOrTensor,
    Features,
    Keypoints,
    KeypointsLike,
    Located,
    UInt8Array,
    as_keypoints,
    as_points,
)
from capsdesc.weights import Weights, resolve

# Locating n points holds n times the fine map's cells of probabilities; so many floats (64 MB) at a time.
_LOCATE_FLOATS = 2**24


class CAPSExtractor:
    """Describes points of images.

    Args:
        weights: None for the bundled default, which needs no network; else the name of a bundled model, a local file or
            folder, ``"org/name[@revision]"`` on the Hugging Face hub, or :class:`capsdesc.weights.Weights` as read.
        detector: finds keypoints for :meth:`detect` and :meth:`extract`; not needed to describe points of one's own.
            ``"caps"``, the network's own, where the model has them (see :class:`CAPSDetector`); ``"sift"``;
            ``"superpoint"`` (see :class:`capsdesc.keypoints.SuperPointDetector`, also for its weights' licence); or an
            object with a ``detect`` method, see :class:`capsdesc.keypoints.Detector`. None:
            :data:`capsdesc.keypoints.DEFAULT_DETECTOR`, or ``"sift"`` where that is ``"caps"`` and the model has no
            keypoints, which is logged.
        device: where the network runs, for example ``"cuda"``. None: a CUDA GPU if there is one, else the CPU.
        dtype: what the network computes in: ``torch.float32``, ``torch.bfloat16`` or ``torch.float16``. None:
            bfloat16 on CPUs that are faster in it, float32 elsewhere. Descriptors are always float32.
        max_size: images with a longer edge are shrunk to this many pixels for the network. Coordinates always refer to
            the image as given.
        reliability: whether descriptors say, by their last coordinate, how likely a point is to be found again, where
            the model has that; see :meth:`capsdesc.models.DenseFeatures.describe`. It keeps points without a partner
            from matching. Without it descriptors are shorter by one and only tell what a point looks like.

    Raises:
        FileNotFoundError, ValueError, ConnectionError: the weights cannot be had; see :func:`capsdesc.weights.resolve`.
        TypeError, ValueError: another argument is refused; it is named.
    """

    @isolated()
    def __init__(
        self,
        weights: Weights | str | os.PathLike[str] | None = None,
        *,
        detector: str | Detector | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        max_size: int | None = None,
        reliability: bool = True,
    ) -> None:
        if dtype not in (None, torch.float32, torch.bfloat16, torch.float16):
            raise ValueError(f"dtype is {dtype}; expected torch.float32, torch.bfloat16 or torch.float16")
        if max_size is not None and not _is_count(max_size, least=1):
            raise ValueError(f"max_size is {max_size!r}; expected a positive number of pixels, or None")
        self.weights: Weights = weights if isinstance(weights, Weights) else resolve(weights)
        self.device = usable_device(device)
        self.dtype = dtype or describing_dtype(self.device)
        self.max_size = max_size
        self._seeing = SeeingNetwork(
            self.weights, self.device, self.dtype, bool(reliability) and self.weights.config.reliability
        )
        if detector is None:
            detector = default_detector(self.config.keypoints, self.source)
        self.detector: Detector = CAPSDetector(self) if detector == OWN else get_detector(detector, self.device)

    @classmethod
    @isolated()
    def from_pretrained(
        cls,
        weights: str | os.PathLike[str],
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        token: bool | str | None = None,
        **settings: Any,
    ) -> CAPSExtractor:
        """An extractor with weights from the Hugging Face hub, with the hub's own options.

        Args:
            weights: as for the class.
            revision: branch, tag or commit; :attr:`source` names the commit it resolved to.
            cache_dir: where downloads are kept.
            local_files_only: never touch the network.
            token: for private repositories.
            settings: the other arguments of the class.
        """
        resolved = resolve(
            weights, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only, token=token
        )
        return cls(resolved, **settings)

    @property
    def config(self) -> ModelConfig:
        """What the network is made of."""
        return self.weights.config

    @property
    def source(self) -> str:
        """Where the weights came from; see :class:`capsdesc.weights.Weights`."""
        return self.weights.source

    @property
    def reliability(self) -> bool:
        """Whether descriptors say how likely a point is to be found again."""
        return self._seeing.reliability

    def __repr__(self) -> str:
        return f"CAPSExtractor({self.source!r}, device={str(self.device)!r}, dtype={self.dtype})"

    @property
    def descriptor_dim(self) -> int:
        """D, the length of a descriptor."""
        return self._seeing.descriptor_dim

    @overload
    def describe(
        self, image: ImageLike, keypoints: KeypointsLike, *, orientation: Orientation = "upright"
    ) -> ArrayOrTensor: ...
    @overload
    def describe(
        self,
        image: Sequence[ImageLike],
        keypoints: Sequence[KeypointsLike],
        *,
        orientation: Orientation = "upright",
    ) -> list[ArrayOrTensor]: ...
    @isolated()
    def describe(self, image: Any, keypoints: Any, *, orientation: Orientation = "upright") -> Any:
        """Descriptors at the user's own points (section 3.3).

        They are upright: images may be turned against each other by some 20 degrees and differ in scale by a factor of
        some 1.5. With ``orientation="any"`` the image is described under 9 turns and 3 zooms, and
        :func:`capsdesc.match` finds the ones under which two images agree. This takes some 15 times as long.

        Args:
            image: a path, an (H, W, 3) RGB or (H, W) grey uint8 array, a PIL image, or a (3, H, W) float tensor in
                0..1; or a list of images.
            keypoints: (N, 2) x, y in pixels in numpy or torch, a list of ``cv2.KeyPoint``, or
                :class:`~capsdesc.keypoints.Keypoints`; for a list of images a list of these.
            orientation: ``"upright"``, or ``"any"`` for images that may be turned or zoomed at will. One of two images
                may stay upright if it does not show things larger than the other.

        Returns:
            (N, D) float32, or (9, 3, N, D) for any orientation, the first of them the upright ones; in torch on the
            keypoints' device where they are a tensor, in numpy otherwise. For a list of images a list, each the same as
            from a call of its own.

        Raises:
            FileNotFoundError: a path with nothing at it.
            TypeError: an argument is none of these forms.
            ValueError: an image is empty or cannot be decoded, a shape is wrong, a coordinate is not finite or outside
                the image, or the lists differ in length.
        """
        check_orientation(orientation)
        if not isinstance(image, (list, tuple)):
            return self._describe_one(image, keypoints, orientation)[0]
        if not isinstance(keypoints, (list, tuple)) or len(keypoints) != len(image):
            came = f"{len(keypoints)}" if isinstance(keypoints, (list, tuple)) else f"a {type(keypoints).__name__}"
            raise ValueError(f"for a list of {len(image)} images keypoints must be a list as long, got {came}")
        return [
            self._describe_one(one, points, orientation, at=f"[{index}]")[0]
            for index, (one, points) in enumerate(zip(image, keypoints, strict=True))
        ]

    def _describe_one(
        self,
        image: ImageLike,
        keypoints: KeypointsLike,
        orientation: Orientation,
        derivatives: bool = False,
        *,
        at: str = "",
    ) -> tuple[ArrayOrTensor, ArrayOrTensor | None]:
        """Descriptors at points of one image, and their derivatives if they are asked for.

        ``at`` is where both stand in the lists they come from, for error messages.
        """
        points = as_points(keypoints, f"keypoints{at}")
        views = () if orientation == "upright" else (len(TURNS), len(ZOOMS))
        if len(points) == 0:
            to_rgb(image, name=f"image{at}")  # a wrong image is an error all the same
            empty = torch.zeros(*views, 0, 2, self.config.descriptor_dim - self.config.reliability)
            none = torch.zeros(*views, 0, self.descriptor_dim)
            return _like(none, points), _like(empty, points) if derivatives else None
        pixels = to_tensor(image, self.device, name=f"image{at}")
        check_inside(points, pixels.shape[2], pixels.shape[1], f"keypoints{at}")
        pixels, resize = self._resized(pixels)
        queries = _resized_points(torch.as_tensor(points, device=self.device), resize)
        if orientation == "upright":
            descriptors, changes = self._seeing.describe(TurnedView.of(pixels, queries), derivatives)
        else:
            seen = (self._seeing.describe(view, derivatives) for view in turned_views(pixels, queries))
            descriptors, changes = (_by_turn_and_zoom(parts) for parts in zip(*seen, strict=True))
        return _like(descriptors, points), None if changes is None else _like(_by_original(changes, resize), points)

    @isolated(threads=False)
    def detect(
        self, image: ImageLike, max_keypoints: int = 2048, mask: npt.NDArray[Any] | Tensor | None = None
    ) -> Keypoints:
        """Keypoints from the configured detector, strongest first.

        Args:
            image: as for :meth:`describe`.
            max_keypoints: at most so many.
            mask: (H, W) bool or uint8, non-zero where keypoints may lie.

        Returns:
            At most ``max_keypoints`` keypoints, in numpy.
        """
        mask = mask.cpu().numpy() if isinstance(mask, Tensor) else mask
        found = self.detector.detect(to_rgb(image), _checked_count(max_keypoints), mask)
        if not isinstance(found, Keypoints):
            raise TypeError(f"the detector must return capsdesc.Keypoints, got {type(found).__name__}")
        return found

    @isolated()
    def extract(
        self,
        image: ImageLike,
        max_keypoints: int = 2048,
        mask: npt.NDArray[Any] | Tensor | None = None,
        *,
        orientation: Orientation = "upright",
        derivatives: bool = False,
        keypoints: KeypointsLike | None = None,
    ) -> Features:
        """Detect keypoints and describe them, or describe given ones.

        Args:
            image: as for :meth:`describe`.
            max_keypoints: at most so many.
            mask: (H, W) bool or uint8, non-zero where keypoints may lie.
            orientation: as for :meth:`describe`.
            derivatives: whether to take the descriptors' derivatives too, three times as many numbers in all, so that
                :func:`capsdesc.match` can check matches with ``max_shift``.
            keypoints: any form of keypoints that :meth:`describe` takes, to describe in place of detected ones.

        Returns:
            Features in torch on the image's device where it is a tensor, in numpy otherwise.
        """
        check_orientation(orientation)
        if isinstance(image, (str, os.PathLike)):
            image = to_rgb(image)  # decode once
        descriptors: ArrayOrTensor | None
        changes: ArrayOrTensor | None
        if keypoints is None and orientation == "upright" and isinstance(self.detector, CAPSDetector):
            seen = self.detector.see(image, _checked_count(max_keypoints), mask, describe=True, derivatives=derivatives)
            found, points = Keypoints(seen.points, seen.scores), seen.points
            descriptors, changes = seen.descriptors, seen.derivatives
        else:
            found = self.detect(image, max_keypoints, mask) if keypoints is None else as_keypoints(keypoints)
            points = torch.as_tensor(found.points)
            descriptors, changes = self._describe_one(image, points, orientation, derivatives)
        like = image if isinstance(image, Tensor) else np.empty(0)

        def field(values: ArrayOrTensor | None) -> ArrayOrTensor | None:
            return None if values is None else _like(torch.as_tensor(values), like)

        return Features(
            keypoints=_like(points, like),
            descriptors=_like(torch.as_tensor(descriptors), like),
            scores=field(found.scores),
            scales=field(found.scales),
            angles=field(found.angles),
            image_size=image_size(image),
            derivatives=field(changes),
            model=self.weights.fingerprint,
        )

    @isolated()
    def dense(self, image: ImageLike) -> DenseFeatures:
        """The coarse and the fine descriptor map of an image, with the transform from its pixels to their cells.

        Args:
            image: as for :meth:`describe`.

        Returns:
            Maps of (1, C, h, w) float32 on the extractor's device; ``dense.describe(points[None])`` reads the
            descriptors of an (N, 2) tensor of points on that device.
        """
        return self._dense(to_tensor(image, self.device))

    @isolated()
    def locate(self, points: KeypointsLike, image0: ImageLike, image1: ImageLike) -> Located:
        """Where points of one image are in another, by the coarse-to-fine search (sections 3.2 and 3.3).

        Needs no keypoints in the second image. Every point gets an answer; the standard deviation ranks them.

        Args:
            points: in ``image0``; any form of keypoints that :meth:`describe` takes.
            image0: any form of image that :meth:`describe` takes.
            image1: likewise.

        Returns:
            N locations in ``image1`` and their standard deviations in pixels; torch for torch points.
        """
        queries = as_points(points, "points")
        if len(queries) == 0:
            to_rgb(image0, name="image0")
            to_rgb(image1, name="image1")
            return Located(_like(torch.zeros(0, 2), queries), _like(torch.zeros(0), queries))
        pixels0, pixels1 = (
            to_tensor(image, self.device, name=name) for image, name in ((image0, "image0"), (image1, "image1"))
        )
        check_inside(queries, pixels0.shape[2], pixels0.shape[1], "points")
        dense0, dense1 = self._dense(pixels0), self._dense(pixels1)
        chunk = max(1, _LOCATE_FLOATS // (dense1.fine.values.shape[-1] * dense1.fine.values.shape[-2]))
        found, stds = [], []
        for part in torch.split(torch.as_tensor(queries, device=self.device), chunk):
            _, fine = coarse_to_fine(part[None], dense0, dense1, self._seeing.inverse_temperatures)
            found.append(fine.expected[0])
            stds.append(fine.std[0].square().mean(-1).sqrt())
        return Located(_like(torch.cat(found), queries), _like(torch.cat(stds), queries))

    def _dense(self, image: Tensor) -> DenseFeatures:
        """Maps of a (3, H, W) image on the device, in the coordinates of the image as given."""
        resized, resize = self._resized(image)
        return self._seeing.dense(resized).seen_at(resize, (image.shape[2], image.shape[1]))

    def _resized(self, image: Tensor) -> tuple[Tensor, tuple[float, float]]:
        """The image as large as the network is to see it, and the factors along x and y that make it so."""
        height, width = image.shape[1:]
        if self.max_size is None or max(width, height) <= self.max_size:
            return image, (1.0, 1.0)
        smaller = shrink(image.permute(1, 2, 0).cpu().numpy(), self.max_size)
        resized = torch.from_numpy(smaller).permute(2, 0, 1).to(self.device)
        return resized, (smaller.shape[1] / width, smaller.shape[0] / height)


class CAPSDetector:
    """The keypoints of the network that describes: ``CAPSExtractor(detector="caps")``.

    They have a position between the pixels and a score, how likely they are to be found again, but neither scale nor
    angle: for ``orientation="any"`` the keypoints of the upright image are described under all turns and zooms.

    Args:
        extractor: whose network finds them.

    Raises:
        ValueError: its model finds no keypoints.
    """

    def __init__(self, extractor: CAPSExtractor) -> None:
        if not extractor.config.keypoints:
            raise ValueError(
                f"detector is 'caps', but the model {extractor.source} finds no keypoints; give detector='sift', or "
                "weights whose config has keypoints"
            )
        self._extractor = extractor

    def __repr__(self) -> str:
        return "CAPSDetector()"

    @isolated()
    def detect(self, image: UInt8Array, max_keypoints: int, mask: npt.NDArray[Any] | None = None) -> Keypoints:
        """Keypoints of an (H, W, 3) RGB image, strongest first; see :class:`capsdesc.keypoints.Detector`."""
        seen = self.see(image, max_keypoints, mask)
        assert seen.scores is not None
        return Keypoints(seen.points.cpu().numpy(), seen.scores.cpu().numpy())

    def see(
        self,
        image: ImageLike,
        max_keypoints: int,
        mask: npt.NDArray[Any] | Tensor | None,
        *,
        describe: bool = False,
        derivatives: bool = False,
    ) -> Seen:
        """Keypoints and, if asked for, their descriptors and derivatives, in pixels of the image as given."""
        extractor = self._extractor
        pixels = to_tensor(image, extractor.device)
        height, width = pixels.shape[1:]
        pixels, resize = extractor._resized(pixels)
        allowed = None
        if mask is not None:
            mask = mask.cpu().numpy() if isinstance(mask, Tensor) else mask
            inside = torch.as_tensor(check_mask(mask, (height, width)) > 0, device=extractor.device)

            def allowed(points: Tensor) -> Tensor:
                columns, rows = _original_points(points, resize).round().long().unbind(-1)
                return inside[rows, columns]

        seen = extractor._seeing.find(pixels, max_keypoints, allowed, describe=describe, derivatives=derivatives)
        changes = None if seen.derivatives is None else _by_original(seen.derivatives, resize)
        return dataclasses.replace(seen, points=_original_points(seen.points, resize), derivatives=changes)


def _resized_points(points: Tensor, resize: tuple[float, float]) -> Tensor:
    """Where (N, 2) pixels are in the image resized by these factors."""
    # A pixel centre p is (p + 0.5) * r - 0.5 there; written so that r = 1 changes no digit.
    factors = points.new_tensor(resize)
    return points * factors + (0.5 * factors - 0.5)


def _original_points(points: Tensor, resize: tuple[float, float]) -> Tensor:
    """Where (N, 2) pixels of the image resized by these factors were before."""
    factors = points.new_tensor(resize)
    return (points - (0.5 * factors - 0.5)) / factors


def _by_original(derivatives: Tensor, resize: tuple[float, float]) -> Tensor:
    """(..., 2, C) derivatives by pixels of the image before it was resized by these factors."""
    return derivatives * derivatives.new_tensor(resize)[:, None]


def _by_turn_and_zoom(views: Sequence[Any]) -> Any:
    """Tensors of all views, in the order they are made in, as one of (turns, zooms, ...); None if there are none."""
    if views[0] is None:
        return None
    return torch.stack(list(views)).view(len(ZOOMS), len(TURNS), *views[0].shape).transpose(0, 1).contiguous()


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and int(value) >= least


def _checked_count(max_keypoints: object) -> int:
    if not _is_count(max_keypoints, least=0):
        raise ValueError(f"max_keypoints is {max_keypoints!r}; expected a number, at least 0")
    return int(max_keypoints)  # type: ignore[call-overload, no-any-return]


def _like(values: Tensor, reference: object) -> ArrayOrTensor:
    """The values in torch on the reference's device if that is a tensor, else in numpy."""
    values = values.detach()
    return values.to(reference.device) if isinstance(reference, Tensor) else values.cpu().numpy()
