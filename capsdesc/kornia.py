"""CAPS among kornia's modules: keypoints as local affine frames (LAFs), a detector of them and a descriptor.

A LAF is the 2 x 3 matrix (A | c) of a patch: c is its centre x, y in pixels, (0, 0) the centre of the top-left one, and
A takes the square from -1 to 1 to the patch around it. Angles are counter-clockwise in kornia, and clockwise in
:class:`capsdesc.Keypoints`. Nothing here needs kornia itself; ``pip install "capsdesc[kornia]"`` gets it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from capsdesc.images.forms import UNIT_TOLERANCE
from capsdesc.isolation import isolated
from capsdesc.keypoints.learned import peaks, refine, strongest
from capsdesc.models import dense_features
from capsdesc.types import Keypoints
from capsdesc.weights import resolve


@isolated(gradients=None, threads=False)
def lafs_from_keypoints(keypoints: Sequence[Keypoints], *, reach: float = 0.5) -> Tensor:
    """Keypoints of several images as kornia's frames, which turn and grow with them.

    Args:
        keypoints: Those of each image.
        reach: Half a patch's edge, as a multiple of a keypoint's diameter ``scales``. 0.5 is the keypoint itself; the
            patches that descriptors such as SIFT or HardNet describe reach 3 or 6 times as far as its diameter.

    Returns:
        (B, N, 2, 3) float32 on the keypoints' device, N the largest number in an image. The rest of another image's
        frames are zero, as kornia pads them. Without scales the diameter is 1, without angles the frame is upright.

    Raises:
        TypeError: ``keypoints`` is no sequence of :class:`~capsdesc.Keypoints`.
        ValueError: ``reach`` is not positive.
    """
    if isinstance(keypoints, Keypoints) or not all(isinstance(one, Keypoints) for one in keypoints):
        raise TypeError(
            f"keypoints must be a sequence of Keypoints, one for each image, got {type(keypoints).__name__}"
        )
    _check_reach(reach)
    if not keypoints:
        return torch.zeros(0, 0, 2, 3)
    return nn.utils.rnn.pad_sequence([_lafs(one, reach) for one in keypoints], batch_first=True)


def _lafs(keypoints: Keypoints, reach: float) -> Tensor:
    points = torch.as_tensor(keypoints.points)
    scales = points.new_ones(len(points)) if keypoints.scales is None else torch.as_tensor(keypoints.scales)
    angles = points.new_zeros(len(points)) if keypoints.angles is None else torch.as_tensor(keypoints.angles)
    # Clockwise in an image whose y points down is how (cos, sin) turns.
    cos, sin = reach * scales * angles.deg2rad().cos(), reach * scales * angles.deg2rad().sin()
    return torch.stack([cos, -sin, points[:, 0], sin, cos, points[:, 1]], dim=1).view(-1, 2, 3)


@isolated(threads=False)
def keypoints_from_lafs(lafs: Tensor, responses: Tensor | None = None, *, reach: float = 0.5) -> list[Keypoints]:
    """Frames of kornia as keypoints, without the zero frames that pad them.

    Args:
        lafs: (B, N, 2, 3). What a frame has beyond position, scale and orientation, shear and reflection, is dropped.
        responses: (B, N), or ``None``.
        reach: As for :func:`lafs_from_keypoints`.

    Returns:
        For each image the keypoints, in torch on the frames' device, with scales, with angles from 0 to 360 and, if
        there are responses, with scores.

    Raises:
        TypeError: ``lafs`` is no tensor.
        ValueError: A shape is another, or ``reach`` is not positive.
    """
    _check_lafs(lafs)
    _check_reach(reach)
    if responses is not None and responses.shape != lafs.shape[:2]:
        raise ValueError(f"responses must have shape {tuple(lafs.shape[:2])}, got {tuple(responses.shape)}")
    lafs = lafs.detach().float()
    scales = torch.linalg.det(lafs[..., :2]).abs().sqrt() / reach
    angles = torch.atan2(-lafs[..., 0, 1], lafs[..., 0, 0]).rad2deg().remainder(360)
    filled = lafs.ne(0).any(dim=-1).any(dim=-1)
    return [
        Keypoints(
            lafs[image, kept, :, 2],
            None if responses is None else responses[image, kept].detach(),
            scales[image, kept],
            angles[image, kept],
        )
        for image, kept in enumerate(filled)
    ]


class CAPSDetector(nn.Module):
    """The network's own keypoints where kornia has a detector: images in, frames and responses out.

    It goes where ``kornia.feature.KeyNetDetector`` goes, for example into ``kornia.feature.LocalFeature``, and has no
    gradients. The network knows no size and no angle of a keypoint: all frames are upright and of one size.
    :meth:`capsdesc.CAPSExtractor.extract` finds and describes in one pass of the network; a detector and a descriptor
    of kornia's are two.

    Args:
        weights: ``None`` for the bundled default; else as for :class:`capsdesc.CAPSExtractor`.
        count: At most so many frames an image.
        diameter: Of a keypoint, in pixels.
        reach: Half a frame's edge, as a multiple of the diameter, as for :func:`lafs_from_keypoints`.

    Raises:
        FileNotFoundError, ValueError, ConnectionError: The weights cannot be had, or find no keypoints; see
            :func:`capsdesc.weights.resolve`.
    """

    @isolated()
    def __init__(
        self,
        weights: str | os.PathLike[str] | None = None,
        *,
        count: int = 2048,
        diameter: float = 8.0,
        reach: float = 0.5,
    ) -> None:
        super().__init__()
        _check_reach(reach)
        if count < 0 or not diameter > 0:
            raise ValueError(f"count is {count} and diameter {diameter}; expected at least 0 and above 0")
        resolved = resolve(weights)
        if not resolved.config.keypoints:
            raise ValueError(f"the model {resolved.source} finds no keypoints; take another or a detector of kornia's")
        self.config = resolved.config
        self.count, self.diameter, self.reach = count, diameter, reach
        self.network = resolved.build()
        self.eval()

    @isolated()
    def forward(self, image: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Frames of the strongest keypoints.

        Args:
            image: (B, 3, H, W) RGB or (B, 1, H, W) grey, as for :class:`CAPSDescriptor`.
            mask: (B, 1, H, W), above 0 where keypoints may lie, or ``None``.

        Returns:
            (B, N, 2, 3) frames, N the largest number in an image, strongest first, zero where an image has fewer; and
            (B, N) responses from 0 to 1, zero there.

        Raises:
            TypeError: An argument is no tensor, or of another type.
            ValueError: A shape is another, or the image has values beyond 0..1.
        """
        _check_image(image, next(self.network.parameters()))
        if mask is not None and mask.shape != (len(image), 1, *image.shape[2:]):
            raise ValueError(
                f"mask must have shape {(len(image), 1, *image.shape[2:])} as image has, got {tuple(mask.shape)}"
            )
        if len(image) == 0:
            return image.new_zeros(0, 0, 2, 3), image.new_zeros(0, 0)
        scores = dense_features(self.network, self.config, image.expand(-1, 3, -1, -1), scores=True).scores
        assert scores is not None
        found, responses = [], []
        for index, maps in enumerate(scores.values):
            pixels = peaks(maps[0])
            if mask is not None:
                pixels = pixels[mask[index, 0, pixels[:, 1], pixels[:, 0]] > 0]
            pixels = strongest(maps[0], pixels, self.count)
            points = refine(maps, pixels)
            found.append(Keypoints(points, scales=points.new_full((len(points),), self.diameter)))
            responses.append(maps[0, pixels[:, 1], pixels[:, 0]].sigmoid())
        frames = lafs_from_keypoints(found, reach=self.reach)
        return frames, nn.utils.rnn.pad_sequence(responses, batch_first=True)


class CAPSDescriptor(nn.Module):
    """CAPS where kornia has a descriptor: images and frames in, descriptors out.

    It goes where ``kornia.feature.LAFDescriptor`` goes, for example into ``kornia.feature.LocalFeature``. CAPS sees the
    whole image, not patches, so of a frame only its centre counts. Gradients reach the network's parameters, the images
    and the centres. The network is in evaluation mode; ``train()`` lets its batch normalisation learn.

    Args:
        weights: ``None`` for the bundled default; else as for :class:`capsdesc.CAPSExtractor`.
        reliability: Whether descriptors say, by their last coordinate, how likely a point is to be found again, where
            the model has that.

    Raises:
        FileNotFoundError, ValueError, ConnectionError: The weights cannot be had; see :func:`capsdesc.weights.resolve`.
    """

    @isolated()
    def __init__(self, weights: str | os.PathLike[str] | None = None, *, reliability: bool = True) -> None:
        super().__init__()
        resolved = resolve(weights)
        self.config = resolved.config
        self.reliability = reliability and resolved.config.reliability
        self.network = resolved.build()
        self.eval()

    @property
    def descriptor_dim(self) -> int:
        """D, the length of a descriptor."""
        return self.config.descriptor_dim - (self.config.reliability and not self.reliability)

    @isolated(gradients=None)
    def forward(self, image: Tensor, lafs: Tensor) -> Tensor:
        """Descriptors at the centres of frames (section 3.3).

        Args:
            image: (B, 3, H, W) RGB or (B, 1, H, W) grey, in 0..1, of the type of the network's weights: float32, unless
                this module was made another by ``to()``. Of colours CAPS sees more than of grey.
            lafs: (B, N, 2, 3), of any floating-point type. The zero frames that kornia pads with are described too, at
                (0, 0).

        Returns:
            (B, N, D) float32; Euclidean distances compare them.

        Raises:
            TypeError: An argument is no tensor, or of another type.
            ValueError: A shape is another, the image has values beyond 0..1 or a centre is not finite; in what
                ``torch.compile`` makes of this, values are not looked at.
        """
        weights = next(self.network.parameters())
        _check_image(image, weights)
        _check_lafs(lafs)
        _check_centres(lafs, weights.device)
        if len(lafs) != len(image):
            raise ValueError(f"lafs must be those of {len(image)} images as image has, got those of {len(lafs)}")
        dense = dense_features(self.network, self.config, image.expand(-1, 3, -1, -1))
        if not self.reliability:
            dense = dense.without_reliability()
        return dense.describe(lafs[..., 2].float())


def _check_image(image: Tensor, weights: Tensor) -> None:
    if not isinstance(image, Tensor):
        raise TypeError(f"image must be a (B, 3, H, W) or (B, 1, H, W) tensor, got {type(image).__name__}")
    if image.dtype != weights.dtype:
        hint = f"image.to({weights.dtype})" + ("" if image.is_floating_point() else " / 255 where values are in 0..255")
        raise TypeError(f"image must be {weights.dtype} as the network's weights are, got {image.dtype}; give {hint}")
    if image.ndim != 4 or image.shape[1] not in (1, 3):
        raise ValueError(f"image must have shape (B, 3, H, W) or (B, 1, H, W), got {tuple(image.shape)}")
    if image.device != weights.device:
        raise ValueError(f"image must be on {weights.device} as the network is, got {image.device}; move one of them")
    if 0 in image.shape[2:]:
        raise ValueError(f"image is empty: {tuple(image.shape)}")
    if len(image) and not torch.compiler.is_compiling():
        low, high = (float(bound) for bound in image.detach().aminmax())
        # Written so that NaN fails too.
        if not (low >= -UNIT_TOLERANCE and high <= 1 + UNIT_TOLERANCE):
            raise ValueError(
                f"image must have values in 0..1, got {low:g}..{high:g}; divide 8-bit values by 255, and look for NaN"
            )


def _check_centres(lafs: Tensor, device: torch.device) -> None:
    if lafs.device != device:
        raise ValueError(f"lafs must be on {device} as the network is, got {lafs.device}; move one of them")
    if not torch.compiler.is_compiling():
        finite = lafs.detach()[..., 2].isfinite().all(dim=-1)
        if not finite.all():
            raise ValueError(
                f"lafs must have finite centres, {int((~finite).sum())} of {finite.numel()} have NaN or infinity"
            )


def _check_lafs(lafs: Tensor) -> None:
    if not isinstance(lafs, Tensor):
        raise TypeError(f"lafs must be a (B, N, 2, 3) tensor, got {type(lafs).__name__}")
    if not lafs.is_floating_point():
        raise TypeError(f"lafs must be of a floating-point type, got {lafs.dtype}; give lafs.float()")
    if lafs.ndim != 4 or lafs.shape[2:] != (2, 3):
        raise ValueError(f"lafs must have shape (B, N, 2, 3), got {tuple(lafs.shape)}")


def _check_reach(reach: float) -> None:
    if not reach > 0:
        raise ValueError(f"reach must be positive, got {reach}")
