"""The caller's settings of torch and numpy change no result, and no call changes them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import inspect
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

import capsdesc
from capsdesc import (
    CAPSExtractor,
    CAPSMatcher,
    Features,
    Fundamental,
    Homography,
    Keypoints,
    Located,
    Matches,
    RelativePose,
    estimate_fundamental,
    estimate_homography,
    estimate_pose,
    geometry,
    images,
    match,
    visualization,
)
from capsdesc.isolation import isolated
from capsdesc.keypoints import SIFTDetector
from capsdesc.kornia import CAPSDescriptor, CAPSDetector, keypoints_from_lafs, lafs_from_keypoints
from capsdesc.models import ModelConfig, build_network
from capsdesc.weights import Weights, resolve

World = Callable[[], contextlib.AbstractContextManager[Any]]


@contextlib.contextmanager
def changed(put: Callable[[Any], None], get: Callable[[], Any], value: Any) -> Iterator[None]:
    before = get()
    put(value)
    try:
        yield
    finally:
        put(before)


WORLDS: dict[str, World] = {
    "autocast in bfloat16": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "autocast in float16": lambda: torch.autocast("cpu", dtype=torch.float16),
    "float64 by default": lambda: changed(torch.set_default_dtype, torch.get_default_dtype, torch.float64),
    "bfloat16 by default": lambda: changed(torch.set_default_dtype, torch.get_default_dtype, torch.bfloat16),
    "no device by default": lambda: changed(torch.set_default_device, lambda: None, "meta"),
    "within another device": lambda: torch.device("meta"),
    "rough products": lambda: changed(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision, "medium"),
    "inference mode": torch.inference_mode,
    "without gradients": torch.no_grad,
    "deterministic": lambda: changed(
        torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled, True
    ),
    "numpy raises": lambda: np.errstate(all="raise"),
}


def settings() -> dict[str, Any]:
    return {
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "types": (torch.get_default_dtype(), torch.get_default_device(), torch.get_float32_matmul_precision()),
        "modes": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "numpy": np.geterr(),
    }


@functools.cache
def image(shift: int = 0) -> Any:
    rng = np.random.default_rng(0)
    pixels = cv2.resize(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8), (160, 128), interpolation=cv2.INTER_CUBIC)
    return np.ascontiguousarray(pixels[shift : 96 + shift, shift : 128 + shift])


@functools.cache
def caps() -> CAPSExtractor:
    return CAPSExtractor(device="cpu")


@functools.cache
def with_own_keypoints() -> CAPSExtractor:
    config = ModelConfig(reliability=True, keypoints=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CAPSExtractor(Weights(config, build_network(config).state_dict(), "random"), detector="caps")


@functools.cache
def features(shift: int = 0, tensors: bool = False) -> Features:
    pixels = torch.as_tensor(image(shift)).permute(2, 0, 1) / 255 if tensors else image(shift)
    return caps().extract(pixels, 100, derivatives=True)


@functools.cache
def dense() -> Any:
    return caps().dense(image())


@functools.cache
def descriptor() -> CAPSDescriptor:
    return CAPSDescriptor()


@functools.cache
def pixels_in_torch() -> Tensor:
    return torch.as_tensor(image()).permute(2, 0, 1) / 255


@functools.cache
def lafs() -> Tensor:
    return lafs_from_keypoints([keypoints(tensors=True)])


@functools.cache
def keypoints(tensors: bool = False) -> Keypoints:
    rng = np.random.default_rng(1)
    columns: Any = rng.uniform(4, 90, (20, 2)), rng.random(20), rng.uniform(2, 20, 20), rng.uniform(0, 359, 20)
    return Keypoints(*(torch.from_numpy(column) if tensors else column for column in columns))


def ones(*shape: int) -> Any:
    return np.ones(shape, np.float32)


K = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])


@functools.cache
def scene() -> tuple[Any, Any, Any, Any]:
    """Points in two images, and the pose between them."""
    rng = np.random.default_rng(2)
    points = rng.uniform((-2, -2, 4), (2, 2, 8), (60, 3))
    R, t = cv2.Rodrigues(np.array([0.05, -0.1, 0.02]))[0], np.array([1.0, 0.1, 0.05])
    seen = [X @ K.T for X in (points, points @ R.T + t)]
    x0, x1 = (x[:, :2] / x[:, 2:] + rng.normal(0, 0.3, (60, 2)) for x in seen)
    return x0, x1, R, t / np.linalg.norm(t)


@functools.cache
def matches(tensors: bool = False) -> Matches:
    return match(features(tensors=tensors), features(4, tensors))


def pixels_of(figure: Any) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


F = np.array([[0.0, -1e-6, 1e-3], [2e-6, 0, -2e-3], [-1e-3, 1e-3, 1]])
H = np.array([[1.0, 0.1, 3], [0, 1.1, -2], [1e-4, 0, 1]])

# Of every public name what it is called with here, in the class's own name for its constructor.
CALLS: dict[str, Callable[[], Any]] = {
    "CAPSExtractor": lambda: [*CAPSExtractor(device="cpu")._seeing.network.parameters()],
    "CAPSExtractor.from_pretrained": lambda: [
        *CAPSExtractor.from_pretrained("compact", device="cpu")._seeing.network.parameters()
    ],
    "CAPSExtractor.describe": lambda: [
        caps().describe(image(), keypoints()),
        caps().describe([image()], [keypoints(tensors=True)]),
        caps().describe(image(), np.zeros((0, 2))),
        caps().describe(image(), torch.tensor([[30.0, 40.0]], device="cpu", dtype=torch.float32), orientation="any"),
    ],
    "CAPSExtractor.detect": lambda: [caps().detect(image(), 50), with_own_keypoints().detect(image(), 50)],
    "CAPSExtractor.extract": lambda: [
        caps().extract(image(), 50, derivatives=True),
        caps().extract(image(), 0),
        caps().extract(image(), keypoints=keypoints(tensors=True)),
        with_own_keypoints().extract(image(), 50, derivatives=True),
    ],
    "CAPSExtractor.dense": lambda: caps().dense(image()),
    "CAPSExtractor.locate": lambda: [
        caps().locate(keypoints(), image(), image(4)),
        caps().locate(keypoints(tensors=True), image(), image(4)),
        caps().locate(np.zeros((0, 2)), image(), image(4)),
    ],
    "CAPSExtractor.config": lambda: caps().config,
    "CAPSExtractor.source": lambda: caps().source,
    "CAPSExtractor.reliability": lambda: caps().reliability,
    "CAPSExtractor.descriptor_dim": lambda: caps().descriptor_dim,
    "Features": lambda: Features(ones(1, 2), ones(1, 8), None, None, None, (4, 4)),
    "Fundamental": lambda: Fundamental(np.eye(3), np.ones(1, bool)),
    "Homography": lambda: Homography(np.eye(3), np.ones(1, bool)),
    "Located": lambda: Located(ones(1, 2), ones(1)),
    "Matches": lambda: Matches(np.zeros((1, 2), np.int64), np.ones(1, np.float32)),
    "Matches.points": lambda: [
        matches().points(features(), features(4)),
        matches(True).points(features(tensors=True), features(4, True)),
        matches(True).points(keypoints(), keypoints()) if len(matches(True)) == 0 else None,
    ],
    "Matches.to_cv2": lambda: [(m.queryIdx, m.trainIdx, m.distance) for m in matches().to_cv2()],
    "Matches.from_cv2": lambda: Matches.from_cv2(matches().to_cv2()),
    "RelativePose": lambda: RelativePose(np.eye(3), np.ones(3), np.ones(1, bool), np.eye(3)),
    "Keypoints": lambda: [
        Keypoints(cast(Any, np.arange(6).reshape(3, 2)), scores=cast(Any, np.linspace(0, 1, 3))),
        Keypoints(torch.arange(6, device="cpu").view(3, 2)),
    ],
    "Keypoints.to_cv2": lambda: [(k.pt, k.size, k.angle, k.response) for k in keypoints(tensors=True).to_cv2()],
    "Keypoints.from_cv2": lambda: Keypoints.from_cv2(keypoints().to_cv2()),
    "estimate_fundamental": lambda: estimate_fundamental(*scene()[:2]),
    "estimate_homography": lambda: estimate_homography(*scene()[:2], threshold=60),
    "estimate_pose": lambda: [estimate_pose(*scene()[:2], K, K, backend=name) for name in backends()],
    "match": lambda: [
        match(features(), features(4)),
        match(features(), features(4), ratio=0.95, max_distance=1, max_shift=3),
        match(features(tensors=True), features(4, True), max_shift=3),
        match(np.zeros((0, 8)), np.ones((3, 8))),
        match(features(), features(4), method="context"),
        match(caps().describe(image(), keypoints(), orientation="any"), features(4)),
    ],
    "CAPSMatcher": lambda: str(CAPSMatcher(device="cpu")),
    "CAPSMatcher.config": lambda: CAPSMatcher(device="cpu").config.width,
    "CAPSMatcher.match": lambda: [
        CAPSMatcher(device="cpu", dtype=torch.float32).match(features(), features(4), min_score=0),
        CAPSMatcher(device="cpu", dtype=torch.float32).match(features(tensors=True), features(4, True), max_shift=3),
    ],
    "kornia.CAPSDescriptor": lambda: [*CAPSDescriptor().parameters()],
    "kornia.CAPSDescriptor.forward": lambda: descriptor()(
        torch.as_tensor(image(), device="cpu").permute(2, 0, 1)[None].to(torch.float32) / 255, lafs()
    ),
    "kornia.CAPSDescriptor.descriptor_dim": lambda: descriptor().descriptor_dim,
    "kornia.CAPSDetector": lambda: [*CAPSDetector().parameters()],
    "kornia.CAPSDetector.forward": lambda: CAPSDetector(count=20)(
        torch.as_tensor(image(), device="cpu").permute(2, 0, 1)[None].to(torch.float32) / 255
    ),
    "kornia.lafs_from_keypoints": lambda: [
        lafs_from_keypoints([keypoints(), keypoints(tensors=True)]),
        lafs_from_keypoints([Keypoints(ones(2, 2))]),
        lafs_from_keypoints([]),
    ],
    "kornia.keypoints_from_lafs": lambda: keypoints_from_lafs(lafs(), lafs()[..., 0, 2]),
    "geometry.as_intrinsics": lambda: geometry.as_intrinsics(torch.tensor(K.tolist(), device="cpu")),
    "geometry.as_rotation": lambda: geometry.as_rotation(scene()[2]),
    "geometry.epipolar_distance": lambda: geometry.epipolar_distance(*scene()[:2], F),
    "geometry.essential_from_pose": lambda: geometry.essential_from_pose(*scene()[2:]),
    "geometry.fundamental_from_pose": lambda: geometry.fundamental_from_pose(*scene()[2:], K, K),
    "geometry.homography_corner_error": lambda: geometry.homography_corner_error(H, np.eye(3), 640, 480),
    "geometry.project_homography": lambda: geometry.project_homography(H, scene()[0]),
    "geometry.relative_pose": lambda: geometry.relative_pose(*scene()[2:], np.eye(3), np.ones(3)),
    "geometry.rotation_error": lambda: geometry.rotation_error(scene()[2], np.eye(3)),
    "geometry.sampson_distance": lambda: geometry.sampson_distance(*scene()[:2], F),
    "geometry.translation_error": lambda: geometry.translation_error(scene()[3], np.ones(3)),
    "keypoints.SIFTDetector.detect": lambda: SIFTDetector().detect(image(), 50),
    "geometry.estimate_affine": lambda: geometry.estimate_affine(*scene()[:2], threshold=60),
    "visualization.draw_checkerboard": lambda: visualization.draw_checkerboard(image(), image(4)),
    "visualization.draw_located": lambda: visualization.draw_located(
        image(), image(4), keypoints(tensors=True), keypoints(), np.ones(20)
    ),
    "visualization.draw_matches": lambda: visualization.draw_matches(
        image(), image(4), keypoints(tensors=True), keypoints()
    ),
    "visualization.draw_points": lambda: visualization.draw_points(image(), keypoints(tensors=True)),
    "visualization.plot_descriptors": lambda: pixels_of(visualization.plot_descriptors([image()], [dense()])),
    "visualization.plot_epipolar_lines": lambda: pixels_of(
        visualization.plot_epipolar_lines(image(), image(4), keypoints(), F, keypoints(tensors=True))
    ),
    "visualization.plot_located": lambda: pixels_of(
        visualization.plot_located(image(), image(4), keypoints(), keypoints(tensors=True), np.ones(20))
    ),
    "visualization.plot_matches": lambda: pixels_of(
        visualization.plot_matches(image(), image(4), keypoints(), keypoints(tensors=True))
    ),
    "visualization.plot_reliability": lambda: pixels_of(visualization.plot_reliability(image(), dense())),
    "images.to_gray": lambda: images.to_gray(pixels_in_torch()),
    "images.to_rgb": lambda: [images.to_rgb(pixels_in_torch()), images.to_rgb(image()[..., 0])],
    "images.to_tensor": lambda: [images.to_tensor(image()), images.to_tensor(pixels_in_torch())],
    "images.shrink": lambda: images.shrink(image(), 50),
    "images.image_size": lambda: images.image_size(pixels_in_torch()),
    "weights.resolve": lambda: dict(resolve().state_dict),
    "weights.Weights.build": lambda: [*resolve().build().parameters()],
}


def backends() -> list[Any]:
    return ["opencv", *(["poselib"] if importlib.util.find_spec("poselib") else [])]


def public(module: Any, names: list[str] | None = None, prefix: str = "") -> Iterator[str]:
    """What a module offers to be called: functions, classes, and the methods and properties of these."""
    for name in names or [name for name in vars(module) if not name.startswith("_")]:
        value = getattr(module, name)
        if not callable(value) or (names is None and value.__module__ != module.__name__):
            continue
        yield prefix + name
        for attribute, member in vars(value).items() if inspect.isclass(value) else ():
            fields = {field.name for field in dataclasses.fields(value)} if dataclasses.is_dataclass(value) else set()
            if (
                not attribute.startswith("_")
                and attribute not in fields
                and (inspect.isfunction(member) or isinstance(member, classmethod | property))
            ):
                yield f"{prefix}{name}.{attribute}"


def test_every_public_name_is_here() -> None:
    functions = [name for name in geometry.__all__ if inspect.isfunction(getattr(geometry, name))]
    expected = {
        *public(capsdesc, capsdesc.__all__),
        *public(importlib.import_module("capsdesc.kornia"), prefix="kornia."),
        *public(visualization, prefix="visualization."),
        *(f"geometry.{name}" for name in functions if name not in capsdesc.__all__),
    }
    others = ("images.", "keypoints.", "weights.")
    assert {name for name in CALLS if not name.startswith(others)} == expected


def leaves(value: Any) -> Iterator[Any]:
    """All arrays, tensors and numbers in a result."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, Mapping):
        value = [part for pair in sorted(value.items()) for part in pair]
    if isinstance(value, list | tuple):
        for part in value:
            yield from leaves(part)
    else:
        yield value


@functools.cache
def expected(name: str) -> list[Any]:
    return [*leaves(CALLS[name]())]


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", CALLS)
def test_same_bits_whatever_the_callers_settings(name: str, world: str) -> None:
    here = expected(name)
    assert here
    with WORLDS[world]():
        before = settings()
        there = [*leaves(CALLS[name]())]
        assert settings() == before
    assert len(there) == len(here)
    for one, other in zip(here, there, strict=True):
        assert type(one) is type(other)
        if isinstance(one, Tensor):
            assert (one.dtype, one.device, other.is_inference()) == (other.dtype, other.device, False)
            assert torch.equal(one, other)
        elif isinstance(one, np.ndarray):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
        else:
            assert one == other


@pytest.mark.parametrize("world", WORLDS)
def test_an_error_changes_no_setting_either(world: str) -> None:
    with WORLDS[world]():
        before = settings()
        with pytest.raises(ValueError, match="outside the image"):
            caps().describe(image(), np.array([[1e6, 0.0]]))
        with pytest.raises(ValueError, match="dimensions"):
            match(np.ones((2, 3)), np.ones((2, 4)))
        assert settings() == before


def test_results_within_inference_mode_are_fit_for_gradients_outside() -> None:
    points = torch.tensor([[30.0, 40.0]])
    with torch.inference_mode():
        found = caps().describe(image(), points)
        network = CAPSDescriptor()
    factor = torch.ones((), requires_grad=True)
    (factor * found).sum().backward()
    assert factor.grad == torch.as_tensor(found).sum()
    network(torch.full((1, 3, 64, 64), 0.5), lafs()).sum().backward()
    assert cast(Tensor, network.get_parameter("network.lateral4.weight").grad).any()


def test_gradients_flow_through_kornia_s_face_whatever_the_settings() -> None:
    pixels = torch.as_tensor(image()).permute(2, 0, 1)[None] / 255

    def gradient() -> Tensor:
        leaf = pixels.clone().requires_grad_()
        descriptor()(leaf, lafs()).square().sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    fresh = gradient()
    assert fresh.any()
    for world in ("autocast in bfloat16", "float64 by default", "deterministic"):
        with WORLDS[world]():
            torch.testing.assert_close(gradient(), fresh)
    with torch.no_grad():
        assert not descriptor()(pixels.clone().requires_grad_(), lafs()).requires_grad


@pytest.mark.parametrize("world", [world for world in WORLDS if world != "inference mode"])
def test_maps_are_read_alike_whatever_the_settings(world: str) -> None:
    """They take part in what the caller computes, gradients included; inference mode makes tensors of its own."""
    points = cast(Tensor, keypoints(tensors=True).points)[None]
    read = [dense().describe(points), dense().coarse.columns, dense().fine.rows]
    with WORLDS[world]():
        again = [dense().describe(points), dense().coarse.columns, dense().fine.rows]
    assert all(torch.equal(one, other) and one.dtype == other.dtype for one, other in zip(read, again, strict=True))


def test_isolated_functions_record_gradients_as_they_are_told() -> None:
    def recorded() -> bool:
        return torch.is_grad_enabled()

    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode():
            found = [isolated(gradients)(recorded)() for gradients in (True, False, None)]
        assert found == [True, False, mode is torch.enable_grad]


def test_settings_of_the_process_survive_calls_that_overlap() -> None:
    """The first to come in is the first to go out, so each would put back what it found: the other's."""
    inside, may_leave = [threading.Event(), threading.Event()], [threading.Event(), threading.Event()]
    seen: list[torch.dtype] = []

    @isolated()
    def call(number: int) -> None:
        inside[number].set()
        may_leave[number].wait(60)
        seen.append(torch.get_default_dtype())

    threads = [threading.Thread(target=call, args=(number,)) for number in range(2)]
    before = settings()
    with WORLDS["float64 by default"](), WORLDS["rough products"]():
        changed_ones = settings()
        for thread, event in zip(threads, inside, strict=True):
            thread.start()
            assert event.wait(60)
        for thread, event in zip(threads, may_leave, strict=True):
            event.set()
            thread.join(60)
        assert settings() == changed_ones
    assert settings() == before
    assert seen == [torch.float32] * 2


def test_what_another_thread_sets_meanwhile_stays() -> None:
    with WORLDS["float64 by default"]():
        isolated()(lambda: torch.set_default_dtype(torch.bfloat16))()
        assert torch.get_default_dtype() == torch.bfloat16


def test_kornia_s_face_compiles_in_one_graph() -> None:
    pixels = torch.as_tensor(image()).permute(2, 0, 1)[None] / 255
    compiled = torch.compile(descriptor(), backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(pixels, lafs()), descriptor()(pixels, lafs()))


FORKED = """
import os, signal, sys
import numpy as np, torch
torch.set_num_threads(2)
from capsdesc import CAPSExtractor, Keypoints, match
from capsdesc.keypoints import SIFTDetector

rng = np.random.default_rng(0)
image, points = rng.integers(0, 255, (240, 320, 3), dtype=np.uint8), rng.uniform(10, 200, (50, 2))
rows = rng.normal(size=(2000, 64)).astype(np.float32)
SIFTDetector().detect(image, 100)
if sys.argv[1] != "unused":
    caps = CAPSExtractor(device="cpu")
    caps.describe(image, points)
process = os.fork()
if process:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
signal.alarm(30)
if sys.argv[1] == "one thread":
    torch.set_num_threads(1)
elif sys.argv[1] == "used":
    calls = [lambda: caps.describe(image, points), lambda: caps.detect(image, 100), lambda: match(rows, rows)]
    for call in [*calls, lambda: CAPSExtractor(device="cpu")]:
        try:
            call()
        except RuntimeError as error:
            assert "set_num_threads(1)" in str(error), error
        else:
            raise AssertionError("nothing was raised")
    SIFTDetector().detect(image, 100)
    Keypoints(torch.zeros(3, 2))
    sys.exit()
caps = CAPSExtractor(device="cpu")
caps.describe(image, points)
match(rows, rows)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks as Linux does")
@pytest.mark.parametrize("parent", ["used", "unused", "one thread"])
def test_forked_processes_do_not_hang(parent: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", FORKED, parent], env=environment, timeout=120, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
