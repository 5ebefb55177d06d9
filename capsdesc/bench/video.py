"""Frames a second: what tracking from frame to frame costs with each method, as visual odometry and SLAM do it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch

from capsdesc.bench.timing import Call, Contest, Contestant
from capsdesc.describe.extractor import CAPSExtractor
from capsdesc.evaluation.methods import get_methods
from capsdesc.images import to_gray
from capsdesc.matching import match
from capsdesc.types import UInt8Array

FRAME = (640, 480)
FRAMES = 8
# Pixels that the view moves along x and y from one frame to the next.
STEP = (6, 3)


def moving_view(image: UInt8Array, frames: int = FRAMES, size: tuple[int, int] = FRAME) -> list[UInt8Array]:
    """Frames of a view that moves across an image at a steady pace.

    Args:
        image: (H, W, 3), enlarged where it does not hold all of them.
        frames: how many.
        size: width and height of each.
    """
    least = [edge + (frames - 1) * step for edge, step in zip(size, STEP, strict=True)]
    enlarging = max(1.0, *(need / edge for need, edge in zip(least, image.shape[1::-1], strict=True)))
    if enlarging > 1:
        larger = [max(need, round(edge * enlarging)) for need, edge in zip(least, image.shape[1::-1], strict=True)]
        image = np.asarray(cv2.resize(image, larger, interpolation=cv2.INTER_CUBIC), np.uint8)
    corners = [(number * STEP[0], number * STEP[1]) for number in range(frames)]
    return [np.ascontiguousarray(image[y : y + size[1], x : x + size[0]]) for x, y in corners]


def video_contests(image: UInt8Array, *, max_keypoints: int, weights: str | None, device: str) -> Iterator[Contest]:
    """Extracting a frame's features and matching them with those of the frame before, over and over.

    All methods find their own keypoints and match mutual nearest neighbours: ours and XFeat's by products of
    descriptors, ORB's by OpenCV's Hamming distances.

    Args:
        image: (H, W, 3) RGB over which the view moves.
        max_keypoints: of a frame.
        weights: of ``caps``, as :class:`~capsdesc.CAPSExtractor` takes them.
        device: where networks run.
    """
    frames = moving_view(image)
    width, height = FRAME
    loaders: dict[str, Callable[[], tuple[Callable[[UInt8Array], Any], Callable[[Any, Any], Any]]]] = {
        "caps": partial(_ours, weights, max_keypoints, device),
        "caps-small": partial(_ours, "small", max_keypoints, device),
        "xfeat": partial(_xfeat, max_keypoints, device),
        "orb": partial(_orb, max_keypoints),
    }
    yield Contest(
        "video",
        f"a frame of {width} x {height}: at most {max_keypoints} keypoints, matched with the frame before",
        tuple(Contestant(name, partial(_tracking, load, frames)) for name, load in loaders.items()),
        count=1,
        unit="frames",
    )


def _tracking(
    load: Callable[[], tuple[Callable[[UInt8Array], Any], Callable[[Any, Any], Any]]], frames: Sequence[UInt8Array]
) -> Call:
    """A call that takes the next frame; at the end the view goes back the way it came."""
    extract, match_with = load()
    there_and_back = itertools.cycle([*frames, *frames[-2:0:-1]])
    before = extract(next(there_and_back))

    def call() -> object:
        nonlocal before
        now = extract(next(there_and_back))
        matches = match_with(before, now)
        before = now
        return matches

    return call


def _ours(weights: str | None, max_keypoints: int, device: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    extractor = CAPSExtractor(weights, device=device)
    return partial(extractor.extract, max_keypoints=max_keypoints), match


def _xfeat(max_keypoints: int, device: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    (method,) = get_methods(["xfeat"], device=device)

    def extract(image: UInt8Array) -> torch.Tensor:
        _, descriptors = method.extract(image, max_keypoints)  # type: ignore[attr-defined]
        return torch.as_tensor(descriptors)

    return extract, match


def _orb(max_keypoints: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    orb = cv2.ORB.create(nfeatures=max_keypoints)
    matcher = cv2.BFMatcher(cv2.NORM_HAMMING, crossCheck=True)

    def extract(image: UInt8Array) -> Any:
        _, descriptors = orb.detectAndCompute(to_gray(image), np.empty(0, dtype=np.uint8))
        return descriptors

    return extract, lambda before, now: matcher.match(before, now)
