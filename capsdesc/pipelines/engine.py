"""Features of many images in this process, several images side by side."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeAlias

import cv2
import torch

from capsdesc.describe.extractor import CAPSDetector, CAPSExtractor
from capsdesc.describe.orientation import Orientation
from capsdesc.images import read_image
from capsdesc.images.video import Frame, FrameReader
from capsdesc.types import Features, UInt8Array

# The features of an image, or what is wrong with it.
Outcome: TypeAlias = "Features | str"
# What one broken image may raise: files that cannot be read, shapes that OpenCV refuses, more memory than a GPU has.
_IMAGE_ERRORS = (OSError, ValueError, RuntimeError, MemoryError, cv2.error)
MAX_THREADS = 8


class How(NamedTuple):
    """How each image is described, as for :meth:`CAPSExtractor.extract`."""

    max_keypoints: int
    orientation: Orientation
    derivatives: bool


def describe_images(
    extractor: CAPSExtractor, images: Mapping[str, Path | Frame], how: How, threads: int
) -> Iterator[tuple[str, Outcome]]:
    """The features of each image in turn, or what is wrong with it.

    On the CPU each thread describes images of its own, with its share of torch's threads: several images side by side
    keep the cores busier than one image on all of them. A GPU is left to this thread, and the others decode and detect;
    the network's own keypoints come with their descriptors, from this thread's one pass. Frames of a video come one
    after the other, and are decoded here.
    """
    on_cpu = extractor.device.type == "cpu"
    frames = FrameReader()

    def started(source: Path | Frame) -> Path | UInt8Array | Exception:
        if isinstance(source, Path):
            return source
        try:
            return frames.read(source)
        except _IMAGE_ERRORS as error:
            return error

    def prepare(source: Path | UInt8Array | Exception) -> Callable[[], Features]:
        if isinstance(source, Exception):
            raise source
        image = read_image(source) if isinstance(source, Path) else source
        extract = functools.partial(
            extractor.extract, image, how.max_keypoints, orientation=how.orientation, derivatives=how.derivatives
        )
        if on_cpu:
            features = extract()
            return lambda: features
        if isinstance(extractor.detector, CAPSDetector):
            return extract
        return functools.partial(extract, keypoints=extractor.detect(image, how.max_keypoints))

    ahead: deque[tuple[str, Future[Callable[[], Features]]]] = deque()
    left = iter(images.items())
    with _share_torch_threads(threads) if on_cpu else ThreadPoolExecutor(threads) as pool:
        while True:
            for name, source in itertools.islice(left, 2 * threads - len(ahead)):
                ahead.append((name, pool.submit(prepare, started(source))))
            if not ahead:
                return
            name, prepared = ahead.popleft()
            outcome: Outcome
            try:
                outcome = prepared.result()()
            except _IMAGE_ERRORS as error:
                # Messages that OpenCV or torch had a part in have several lines.
                outcome = " ".join(str(error).split()) or type(error).__name__
            yield name, outcome


@contextlib.contextmanager
def _share_torch_threads(threads: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of so many threads, among which those that torch may use are shared out."""
    number = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(
            threads, initializer=torch.set_num_threads, initargs=(max(1, number // threads),)
        ) as pool:
            yield pool
    finally:
        # Each thread has a number of its own, but threads to come begin with what was set last.
        torch.set_num_threads(number)
