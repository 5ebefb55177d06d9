"""Frames of a video as image files, for programs that read files alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import cv2
from tqdm import tqdm

from capsdesc.images import IMAGE_SUFFIXES
from capsdesc.images.video import FrameReader, Sampling, find_frames
from capsdesc.io.files import atomic_path
from capsdesc.io.settings import refuse_other_settings
from capsdesc.io.text import parse_json, read_text

# Lists what the frames in a folder are of, beside them.
_RECORD = "video.json"


def write_frames(
    video: Path, folder: Path, sampling: Sampling | None = None, *, progress: bool = False
) -> tuple[str, ...]:
    """Write frames of a video as ``frame_000123.png``, by their numbers in it; those that are there stay.

    Args:
        video: the file.
        folder: made if it does not exist; it may hold frames of this video that were written before.
        sampling: which frames; None: all.
        progress: whether to show progress on standard error, where that is a terminal.

    Returns:
        The names of the files, in order.

    Raises:
        FileNotFoundError: the video is not there.
        ValueError: it cannot be read, or the folder holds images of something else.
    """
    frames = find_frames(video, sampling, progress=progress)
    _claim(video, folder)
    reader = FrameReader()
    names = []
    for frame in tqdm(frames, desc="write frames", unit="frame", disable=None if progress else True):
        path = folder / f"{frame.name}.png"
        if not path.exists():
            with atomic_path(path) as temporary:
                encoded = cv2.imencode(".png", cv2.cvtColor(reader.read(frame), cv2.COLOR_RGB2BGR))[1]
                temporary.write_bytes(encoded.tobytes())
        names.append(path.name)
    return tuple(names)


def _claim(video: Path, folder: Path) -> None:
    """Make a folder that of the frames of one video."""
    what = {"video": video.name, "bytes": video.stat().st_size}
    record = folder / _RECORD
    if record.exists():
        earlier = parse_json(read_text(record), str(record))
        refuse_other_settings(f"{folder} has frames", earlier if isinstance(earlier, dict) else None, what)
        return
    if folder.is_symlink() or next(_images(folder), None) is not None:
        raise ValueError(f"{folder} holds other images than frames of {video}; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(record) as temporary:
        temporary.write_text(json.dumps(what) + "\n", encoding="utf-8")


def _images(folder: Path) -> Iterator[Path]:
    return (path for path in folder.glob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
