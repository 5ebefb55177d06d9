"""Frames against kornia's own functions, and CAPS in kornia's pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import kornia
import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from capsdesc import CAPSExtractor, Keypoints
from capsdesc.images import to_gray, to_tensor
from capsdesc.kornia import CAPSDescriptor, CAPSDetector, keypoints_from_lafs, lafs_from_keypoints

Pixels = npt.NDArray[np.uint8]


def keypoints(count: int = 20, seed: int = 0) -> Keypoints:
    rng = np.random.default_rng(seed)
    columns = (
        rng.uniform(0, 200, (count, 2)),
        rng.random(count),
        rng.uniform(2, 40, count),
        rng.uniform(0, 359, count),
    )
    return Keypoints(*(column.astype(np.float32) for column in columns))


def column(values: Any) -> Tensor:
    return torch.as_tensor(values)[None, :, None]


@pytest.mark.parametrize("reach", [0.5, 3.0])
def test_frames_are_those_of_kornia(reach: float) -> None:
    found = keypoints()
    lafs = lafs_from_keypoints([found], reach=reach)
    expected = kornia.feature.laf_from_center_scale_ori(
        torch.as_tensor(found.points)[None], reach * column(found.scales)[..., None], -column(found.angles)
    )
    assert lafs.dtype == torch.float32
    torch.testing.assert_close(lafs, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(kornia.feature.get_laf_scale(lafs).flatten() / reach, torch.as_tensor(found.scales))


@pytest.mark.parametrize(("angle", "direction"), [(0, (1, 0)), (90, (0, 1)), (180, (-1, 0)), (270, (0, -1))])
def test_patches_are_where_the_keypoints_are_and_turn_as_they_do(angle: float, direction: tuple[int, int]) -> None:
    """Angles are clockwise in the image: at 90 degrees the patch's x axis points down."""
    x, y = 13, 21
    ramps = torch.stack(torch.meshgrid(torch.arange(40.0), torch.arange(50.0), indexing="ij")[::-1])[None]
    keypoint = Keypoints(np.array([[x, y]]), scales=np.array([5.0]), angles=np.array([angle]))
    patch = kornia.feature.extract_patches_from_pyramid(ramps, lafs_from_keypoints([keypoint]), 5)[0, 0]
    # The cells of a patch as wide as the keypoint are a pixel apart, and the middle one is the keypoint's.
    for axis, centre in enumerate((x, y)):
        along_x = centre + direction[axis] * np.arange(-2, 3)
        np.testing.assert_allclose(patch[axis, 2], along_x, atol=1e-3)


def test_there_and_back() -> None:
    several = [keypoints(20), keypoints(0), keypoints(7, seed=1)]
    lafs = lafs_from_keypoints(several, reach=3)
    assert lafs.shape == (3, 20, 2, 3)
    assert not lafs[1].any()
    assert kornia.feature.laf.laf_is_filled(lafs).sum(dim=1).tolist() == [20, 0, 7]
    responses = torch.nn.utils.rnn.pad_sequence([torch.as_tensor(one.scores) for one in several], batch_first=True)
    for before, after in zip(several, keypoints_from_lafs(lafs, responses, reach=3), strict=True):
        for name in ("points", "scores", "scales", "angles"):
            assert isinstance(getattr(after, name), Tensor)
            np.testing.assert_allclose(getattr(after, name), getattr(before, name), rtol=1e-5, atol=1e-3)


def test_keypoints_without_scale_or_angle_are_upright_of_diameter_one() -> None:
    lafs = lafs_from_keypoints([Keypoints(torch.tensor([[3.0, 4.0]]))])
    torch.testing.assert_close(lafs[0, 0], torch.tensor([[0.5, 0, 3], [0, 0.5, 4]]))
    (back,) = keypoints_from_lafs(lafs)
    assert back.scores is None
    assert (cast(Tensor, back.scales).tolist(), cast(Tensor, back.angles).tolist()) == ([1], [0])


def test_shear_is_dropped_and_area_kept() -> None:
    lafs = torch.tensor([[[[4.0, 0, 10], [3, 9, 20]]]])
    (back,) = keypoints_from_lafs(lafs)
    assert cast(Tensor, back.scales).tolist() == pytest.approx([2 * (4 * 9) ** 0.5])
    assert cast(Tensor, back.angles).tolist() == [0]


def test_empty_frames() -> None:
    assert lafs_from_keypoints([]).shape == (0, 0, 2, 3)
    assert lafs_from_keypoints([keypoints(0)]).shape == (1, 0, 2, 3)
    (back,) = keypoints_from_lafs(torch.zeros(1, 0, 2, 3))
    assert len(back) == 0


def test_wrong_frames_are_refused() -> None:
    with pytest.raises(TypeError, match="keypoints must be a sequence"):
        lafs_from_keypoints(cast(Any, keypoints()))
    with pytest.raises(ValueError, match=r"reach.*0"):
        lafs_from_keypoints([keypoints()], reach=0)
    with pytest.raises(TypeError, match=r"lafs.*ndarray"):
        keypoints_from_lafs(cast(Any, np.zeros((1, 2, 2, 3))))
    with pytest.raises(ValueError, match=r"lafs.*\(2, 2, 3\)"):
        keypoints_from_lafs(torch.zeros(2, 2, 3))
    with pytest.raises(ValueError, match=r"responses.*\(1, 5\).*\(5,\)"):
        keypoints_from_lafs(torch.zeros(1, 5, 2, 3), torch.zeros(5))


# --- CAPSDetector


def test_detected_frames_are_the_extractors_keypoints(
    keypoint_model: Path, shifted_pair: tuple[Pixels, Pixels, Any]
) -> None:
    images = shifted_pair[:2]
    batch = torch.stack([to_tensor(image) for image in images])
    lafs, responses = CAPSDetector(keypoint_model, count=60, diameter=6.0, reach=2.0)(batch)
    assert lafs.shape == (2, 60, 2, 3)
    assert responses.shape == (2, 60)
    caps = CAPSExtractor(keypoint_model, detector="caps", device="cpu", dtype=torch.float32)
    for frames, strength, image in zip(lafs, responses, images, strict=True):
        found = caps.detect(image, 60)
        np.testing.assert_allclose(frames[:, :, 2], found.points, atol=1e-3)
        np.testing.assert_allclose(frames[:, :, :2], np.broadcast_to(12 * np.eye(2), (60, 2, 2)))
        assert (strength.diff() <= 0).all()
        assert ((strength > 0) & (strength < 1)).all()


def test_detected_frames_keep_to_a_mask(keypoint_model: Path, shifted_pair: tuple[Pixels, Pixels, Any]) -> None:
    batch = to_tensor(shifted_pair[0][:96, :128].copy())[None].expand(2, -1, -1, -1)
    mask = torch.ones(2, 1, 96, 128)
    mask[0, :, :, 64:] = 0
    mask[1] = 0
    lafs, responses = CAPSDetector(keypoint_model, count=40)(batch, mask)
    assert (lafs[0, :, 0, 2] < 66).all()
    # An image without keypoints has zero frames only, as kornia pads them.
    assert not lafs[1].any()
    assert not responses[1].any()
    with pytest.raises(ValueError, match="mask must have shape"):
        CAPSDetector(keypoint_model)(batch, mask[:, 0])


def test_weights_without_keypoints_detect_nothing(model_folders: Mapping[str, Path], keypoint_model: Path) -> None:
    with pytest.raises(ValueError, match="finds no keypoints"):
        CAPSDetector(model_folders["compact"])
    with pytest.raises(ValueError, match="count is -1"):
        CAPSDetector(keypoint_model, count=-1)


# --- CAPSDescriptor


@pytest.mark.parametrize("name", ["compact", "paper"])
def test_descriptors_are_those_of_the_extractor(
    name: str, model_folders: Mapping[str, Path], shifted_pair: tuple[Pixels, Pixels, Any]
) -> None:
    images, several = shifted_pair[:2], [keypoints(20), keypoints(20, seed=1)]
    descriptor = CAPSDescriptor(model_folders[name])
    with torch.no_grad():
        found = descriptor(torch.stack([to_tensor(image) for image in images]), lafs_from_keypoints(several))
    assert found.shape == (2, 20, descriptor.descriptor_dim)
    caps = CAPSExtractor(model_folders[name], device="cpu")
    for row, image, points in zip(found.numpy(), images, several, strict=True):
        np.testing.assert_allclose(row, caps.describe(image, points), atol=1e-4 * np.abs(row).max())


def test_bundled_weights_with_and_without_reliability(shifted_pair: tuple[Pixels, Pixels, Any]) -> None:
    image, points = shifted_pair[0][:96, :128].copy(), np.array([[20.5, 30], [100, 90]], np.float32)
    lafs = lafs_from_keypoints([Keypoints(points)])
    for reliability in (True, False):
        found = CAPSDescriptor(reliability=reliability)(to_tensor(image)[None], lafs)
        expected = CAPSExtractor(reliability=reliability, device="cpu").describe(image, points)
        np.testing.assert_allclose(found[0].detach(), expected, atol=1e-5)


def test_grey_is_a_colour_too(model_folders: Mapping[str, Path]) -> None:
    descriptor = CAPSDescriptor(model_folders["compact"])
    grey = torch.rand(1, 1, 64, 96, generator=torch.Generator().manual_seed(0))
    lafs = lafs_from_keypoints([Keypoints(torch.tensor([[20.0, 30.0], [50.0, 40.0]]))])
    torch.testing.assert_close(descriptor(grey, lafs), descriptor(grey.repeat(1, 3, 1, 1), lafs))
    assert descriptor(grey, lafs[:, :0]).shape == (1, 0, descriptor.descriptor_dim)


def test_gradients_reach_weights_images_and_centres(model_folders: Mapping[str, Path]) -> None:
    descriptor = CAPSDescriptor(model_folders["compact"])
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)).requires_grad_()
    lafs = lafs_from_keypoints([Keypoints(torch.tensor([[20.3, 30.1]]), scales=torch.tensor([9.0]))]).requires_grad_()
    descriptor(image, lafs).sum().backward()
    for gradient in (
        image.grad,
        cast(Tensor, lafs.grad)[..., 2],
        descriptor.get_parameter("network.lateral4.weight").grad,
    ):
        assert gradient is not None
        assert gradient.isfinite().all()
        assert gradient.any()
    # Of a frame only its centre counts.
    assert not cast(Tensor, lafs.grad)[..., :2].any()


def test_wrong_images_and_frames_are_refused(model_folders: Mapping[str, Path]) -> None:
    descriptor = CAPSDescriptor(model_folders["compact"])
    image, lafs = torch.zeros(1, 3, 32, 32), torch.zeros(1, 4, 2, 3)
    with pytest.raises(TypeError, match=r"image.*ndarray"):
        descriptor(np.zeros((1, 3, 32, 32)), lafs)
    for shape in ((3, 32, 32), (1, 2, 32, 32)):
        with pytest.raises(ValueError, match=r"image must have shape"):
            descriptor(torch.zeros(shape), lafs)
    with pytest.raises(ValueError, match=r"lafs must have shape"):
        descriptor(image, lafs[0])
    with pytest.raises(ValueError, match=r"lafs.*1 images.*2"):
        descriptor(image, lafs.repeat(2, 1, 1, 1))
    with pytest.raises(ValueError, match=r"image is empty"):
        descriptor(image[:, :, :0], lafs)
    for other, hint in ((image.double(), ""), (image.half(), ""), (image.byte(), r" / 255")):
        with pytest.raises(TypeError, match=rf"image must be torch.float32 .*{other.dtype}.*to\(torch.float32\){hint}"):
            descriptor(other, lafs)
    for values, came in ((image + 200, r"200\.\.200"), (image - 1, r"-1\.\.-1"), (image * torch.nan, r"nan\.\.nan")):
        with pytest.raises(ValueError, match=rf"image must have values in 0..1, got {came}"):
            descriptor(values, lafs)
    with pytest.raises(TypeError, match=r"lafs.*floating-point.*int64"):
        descriptor(image, lafs.long())
    with pytest.raises(TypeError, match=r"lafs.*floating-point.*int64"):
        keypoints_from_lafs(lafs.long())
    lafs[0, 2, 1, 2] = torch.nan
    with pytest.raises(ValueError, match=r"lafs.*finite centres, 1 of 4"):
        descriptor(image, lafs)
    with pytest.raises(ValueError, match=r"image must be on cpu as the network is, got meta"):
        descriptor(image.to("meta"), lafs)
    with pytest.raises(ValueError, match=r"lafs must be on cpu as the network is, got meta"):
        descriptor(image, lafs.to("meta"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_networks_of_other_types_take_images_of_theirs(dtype: torch.dtype, model_folders: Mapping[str, Path]) -> None:
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    lafs = lafs_from_keypoints([Keypoints(torch.tensor([[20.3, 30.1], [50.0, 40.0]]))])
    expected = CAPSDescriptor(model_folders["compact"])(image, lafs)
    for frames in (lafs, lafs.to(dtype)):
        found = CAPSDescriptor(model_folders["compact"]).to(dtype)(image.to(dtype), frames)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, atol=2e-5 if dtype == torch.float64 else 0.2, rtol=0)


def test_in_the_pipeline_of_kornia(shifted_pair: tuple[Pixels, Pixels, Any]) -> None:
    """Its detector and its matcher find the shift between two windows of one texture."""
    image0, image1, shift = shifted_pair
    feature = kornia.feature
    local_feature = feature.LocalFeature(feature.ScaleSpaceDetector(num_features=100), CAPSDescriptor())
    matcher = feature.LocalFeatureMatcher(local_feature, feature.DescriptorMatcher("mnn"))
    grey0, grey1 = (to_tensor(to_gray(image))[None, :1] for image in (image0, image1))
    with torch.no_grad():
        found = matcher({"image0": grey0, "image1": grey1})
    moved = (found["keypoints1"] - found["keypoints0"]).numpy()
    assert len(moved) > 30
    assert np.mean(np.linalg.norm(moved - shift, axis=1) < 3) > 0.8


def test_its_own_keypoints_in_the_pipeline_of_kornia(
    keypoint_model: Path, shifted_pair: tuple[Pixels, Pixels, Any]
) -> None:
    feature = kornia.feature
    local_feature = feature.LocalFeature(CAPSDetector(keypoint_model, count=50), CAPSDescriptor(keypoint_model))
    with torch.no_grad():
        lafs, responses, descriptors = local_feature(to_tensor(shifted_pair[0])[None])
    assert lafs.shape[:2] == responses.shape == descriptors.shape[:2] == (1, 50)
    expected = CAPSExtractor(keypoint_model, detector="caps", device="cpu", dtype=torch.float32).extract(
        shifted_pair[0], 50
    )
    np.testing.assert_allclose(descriptors[0], expected.descriptors, atol=1e-4)
