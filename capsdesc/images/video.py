"""Frames of videos, read through OpenCV."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import cv2
from tqdm import tqdm

from capsdesc.types import UInt8Array

VIDEO_SUFFIXES = (
    *(".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mjpeg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv"),
    *(".ts", ".webm", ".wmv"),
)
"""Endings, in small letters, of files that are taken for videos."""

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Which frames of a video, or images of a folder, are taken.

    Attributes:
        every: the first, and each so many after it.
        fps: of a video in place of ``every``: so many a second, by the times of its frames; all where it has fewer.
        max_frames: at most so many, the first ones; None for all.

    Raises:
        ValueError: an attribute is out of range, or both ``every`` and ``fps`` are given.
    """

    every: int = 1
    fps: float | None = None
    max_frames: int | None = None

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every is {self.every}; expected a number, at least 1")
        if self.fps is not None and not 0 < self.fps < float("inf"):
            raise ValueError(f"fps is {self.fps}; expected a positive number of frames a second")
        if self.fps is not None and self.every != 1:
            raise ValueError(f"every is {self.every} and fps is {self.fps}; expected one of them")
        if self.max_frames is not None and self.max_frames < 1:
            raise ValueError(f"max_frames is {self.max_frames}; expected a number, at least 1, or None")

    def of(self, images: Sequence[T], where: str | os.PathLike[str]) -> Sequence[T]:
        """Those of a folder's images, in order.

        Raises:
            ValueError: ``fps`` is given, and images have no times.
        """
        if self.fps is not None:
            raise ValueError(f"fps is {self.fps}, but the images of {os.fspath(where)} have no times; use every")
        return images[:: self.every][: self.max_frames]


@dataclasses.dataclass(frozen=True)
class Frame:
    """A frame of a video.

    Attributes:
        video: the file.
        number: of the frame in the file, from 0.
    """

    video: Path
    number: int

    @property
    def name(self) -> str:
        """Such as ``frame_000123``, by its number in the video."""
        return f"frame_{self.number:06d}"


class FrameReader:
    """Reads frames; quick where those of a video come in order."""

    def __init__(self) -> None:
        self._video: Path | None = None
        self._capture: Any = None
        self._next = 0

    def read(self, frame: Frame) -> UInt8Array:
        """A frame's pixels, turned as the file says.

        Returns:
            (H, W, 3) uint8 RGB.

        Raises:
            FileNotFoundError: the video is not there.
            ValueError: it cannot be read, or has no such frame.
        """
        if frame.video != self._video or frame.number < self._next:
            self._video, self._capture, self._next = frame.video, _open(frame.video), 0
        # To jump is quicker, and with some codecs leads to another frame.
        while self._next <= frame.number:
            if not self._capture.grab():
                self._video = None
                raise ValueError(f"{frame.video} has no frame {frame.number}, or is damaged before it")
            self._next += 1
        done, pixels = self._capture.retrieve()
        if not done:
            raise ValueError(f"frame {frame.number} of {frame.video} cannot be decoded")
        return cast(UInt8Array, cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB if pixels.ndim == 2 else cv2.COLOR_BGR2RGB))


def is_video(path: str | os.PathLike[str]) -> bool:
    """Whether a path is taken for a video, by its ending."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES and not Path(path).is_dir()


def find_frames(
    video: str | os.PathLike[str], sampling: Sampling | None = None, *, progress: bool = False
) -> list[Frame]:
    """The frames that are taken of a video. All are passed by up to the last of them: headers miscount.

    Args:
        video: the file.
        sampling: which frames; None: all.
        progress: whether to show progress on standard error, where that is a terminal.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it cannot be read, or has no frame.
    """
    path, sampling = Path(video), sampling or Sampling()
    capture = _open(path)
    frames: list[Frame] = []
    number = 0
    with tqdm(desc="frames", unit="frame", disable=None if progress else True) as bar:
        while (sampling.max_frames is None or len(frames) < sampling.max_frames) and capture.grab():
            if sampling.fps is None:
                is_taken = number % sampling.every == 0
            else:
                # Half a millisecond early is in time: files round.
                is_taken = capture.get(cv2.CAP_PROP_POS_MSEC) + 0.5 >= 1000 * len(frames) / sampling.fps
            if is_taken:
                frames.append(Frame(path, number))
            number += 1
            bar.update()
    if not frames:
        raise ValueError(f"cannot read {path} as a video: it has no frame that OpenCV decodes")
    return frames


def _open(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"no video file at {str(path)!r}")
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise ValueError(
            f"cannot read {path} as a video: it is damaged, or in no format that this OpenCV decodes; ffmpeg can write "
            "its frames as images"
        )
    return capture
