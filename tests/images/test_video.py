"""Frames of videos that OpenCV wrote: which ones, by which numbers, with which pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from capsdesc.images import read_image
from capsdesc.images.video import Frame, FrameReader, Sampling, find_frames, is_video

Array = npt.NDArray[Any]
DATA = Path(__file__).parents[2] / "examples" / "data"
COUNT, STEP, RATE = 30, 4, 25


def window(k: int) -> Array:
    """What frame k shows: the camera moves to the right."""
    return read_image(DATA / "relief_0.jpg")[100:340, STEP * k : STEP * k + 320]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "walk.AVI"
    writer = cv2.VideoWriter(str(path.with_suffix(".avi")), cv2.VideoWriter.fourcc(*"MJPG"), RATE, (320, 240))
    for k in range(COUNT):
        writer.write(np.ascontiguousarray(window(k)[..., ::-1]))
    writer.release()
    return path.with_suffix(".avi").rename(path)


def numbers(video: Path, **sampling: Any) -> list[int]:
    frames = find_frames(video, Sampling(**sampling))
    assert {frame.video for frame in frames} == {video}
    return [frame.number for frame in frames]


def test_frames_are_sampled(video: Path) -> None:
    assert numbers(video) == list(range(COUNT))
    assert numbers(video, every=7) == [0, 7, 14, 21, 28]
    assert numbers(video, every=7, max_frames=2) == [0, 7]
    assert numbers(video, max_frames=100) == list(range(COUNT))
    # The first frames that are not before 0, 1/10, 2/10, ... of a second.
    assert numbers(video, fps=10) == [int(np.ceil(k * RATE / 10)) for k in range(12)]
    assert numbers(video, fps=5, max_frames=3) == [0, 5, 10]
    assert numbers(video, fps=1000) == list(range(COUNT))


def test_frames_are_named_by_their_numbers() -> None:
    assert [Frame(Path("a.mp4"), number).name for number in (0, 123, 1234567)] == [
        "frame_000000",
        "frame_000123",
        "frame_1234567",
    ]


def test_pixels_are_those_of_the_numbers(video: Path) -> None:
    reader = FrameReader()
    # Forwards, again, and back.
    for number in (0, 1, 9, 9, 29, 3):
        pixels = reader.read(Frame(video, number))
        assert pixels.shape == (240, 320, 3)
        differences = [np.abs(pixels.astype(float) - window(k)).mean() for k in range(COUNT)]
        assert int(np.argmin(differences)) == number
        assert differences[number] < 6


def test_what_is_no_video_is_refused(video: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video" * 100)
    for read in (find_frames, lambda path: FrameReader().read(Frame(path, 0))):
        with pytest.raises(ValueError, match=r"cannot read .*broken\.mp4 as a video"):
            read(broken)
        with pytest.raises(FileNotFoundError, match=r"no video file at .*none\.mp4"):
            read(tmp_path / "none.mp4")
    with pytest.raises(ValueError, match="has no frame 30"):
        FrameReader().read(Frame(video, COUNT))
    (tmp_path / "folder.mp4").mkdir()
    assert is_video(video)
    assert is_video("nosuch.MOV")
    assert not is_video(tmp_path / "folder.mp4")
    assert not is_video("a.jpg")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 0}, "every is 0"),
        ({"fps": 0.0}, "fps is 0"),
        ({"fps": float("nan")}, "fps is nan"),
        ({"fps": 2.0, "every": 3}, "every is 3 and fps is 2"),
        ({"max_frames": 0}, "max_frames is 0"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**settings)
