"""Follow points through a video, from frame to frame, and draw where they came from.

Without a video it renders one (make_scene.py).

python examples/track.py walk.mp4 -o tracks.mp4
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
from make_scene import make_walk

from capsdesc import CAPSExtractor, match
from capsdesc.images import find_images, read_image
from capsdesc.images.video import FrameReader, Sampling, find_frames, is_video
from capsdesc.types import Array, UInt8Array

CODECS = {".avi": "MJPG", ".mp4": "mp4v"}
# Positions of a track that are drawn in a video; in a picture all are.
TAIL = 15

# Where a keypoint was in the frames before, the last position being the present one.
Track = list[Array]


def read_frames(source: Path, sampling: Sampling) -> Iterator[UInt8Array]:
    """Frames of a video, or of a folder by name."""
    if is_video(source):
        reader = FrameReader()
        yield from (reader.read(frame) for frame in find_frames(source, sampling))
    else:
        yield from (read_image(path) for path in sampling.of(find_images(source), source))


def follow(
    caps: CAPSExtractor, frames: Iterable[UInt8Array], max_keypoints: int, max_motion: float
) -> Iterator[tuple[UInt8Array, list[Track]]]:
    """Each frame with the tracks that go through it, one a keypoint."""
    before, tracks = None, list[Track]()
    for pixels in frames:
        features = caps.extract(pixels, max_keypoints, derivatives=True)
        now: list[Track] = [[point] for point in np.asarray(features.keypoints)]
        if before is not None:
            for i, j in match(before, features, max_shift=3).indices:
                if np.linalg.norm(now[j][0] - tracks[i][-1]) <= max_motion * max(pixels.shape):
                    now[j] = [*tracks[i], now[j][0]]
        before, tracks = features, now
        yield pixels, tracks


def draw(pixels: UInt8Array, tracks: Iterable[Track], tail: int | None = None) -> UInt8Array:
    """Tracks over a frame; the longer a track, the warmer its colour."""
    canvas = pixels.copy()
    for track in sorted((track for track in tracks if len(track) > 1), key=len):
        level = np.array([[min(255, 40 + 12 * len(track))]], np.uint8)
        color = cv2.applyColorMap(level, cv2.COLORMAP_TURBO)[0, 0, ::-1].tolist()
        places = np.rint(16 * np.array(track[-tail:] if tail else track)).astype(np.int32)
        cv2.polylines(canvas, [places], False, color, 1, cv2.LINE_AA, 4)
        cv2.circle(canvas, places[-1].tolist(), 2 << 4, color, -1, cv2.LINE_AA, 4)
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(description="Follow points through a video.")
    parser.add_argument("source", nargs="?", type=Path, help="video, or folder of frames (default: walk/rgb, rendered)")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("tracks.png"),
        help="picture of the last frame, or video (.mp4, .avi) (default: %(default)s)",
    )
    parser.add_argument("--max-keypoints", type=int, default=800, help="a frame (default: %(default)s)")
    parser.add_argument(
        "--max-motion",
        type=float,
        default=0.1,
        help="from frame to frame, as a share of the longer edge (default: %(default)s)",
    )
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take each N-th frame")
    parser.add_argument("--max-frames", type=int, metavar="N", help="stop after so many")
    options = parser.parse_args()

    if options.source is None:
        options.source = Path("walk/rgb")
        make_walk(Path("walk"))
    frames = read_frames(options.source, Sampling(options.every, None, options.max_frames))
    codec = CODECS.get(options.output.suffix.lower())
    writer, count, longest = None, 0, 0
    for pixels, tracks in follow(CAPSExtractor(), frames, options.max_keypoints, options.max_motion):
        count, longest = count + 1, max([longest, *map(len, tracks)])
        if codec is not None:
            size = pixels.shape[1], pixels.shape[0]
            writer = writer or cv2.VideoWriter(str(options.output), cv2.VideoWriter.fourcc(*codec), 10, size)
            writer.write(cv2.cvtColor(draw(pixels, tracks, TAIL), cv2.COLOR_RGB2BGR))
    if writer is not None:
        writer.release()
    else:
        cv2.imwrite(str(options.output), cv2.cvtColor(draw(pixels, tracks), cv2.COLOR_RGB2BGR))
    lengths = sorted(len(track) for track in tracks)
    print(f"{count} frames; the longest track goes through {longest}")
    print(f"in the last one, {sum(length > 1 for length in lengths)} of {len(lengths)} keypoints have been seen before")
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
