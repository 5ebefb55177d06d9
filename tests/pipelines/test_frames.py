"""``capsdesc extract`` and ``capsdesc sfm`` of videos and of folders of frames."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pycolmap
import pytest
from relief import orbit, photograph, pixel_grid

from capsdesc import CAPSExtractor
from capsdesc.commands.main import main
from capsdesc.images import read_image
from capsdesc.images.video import Frame, FrameReader, Sampling
from capsdesc.io.npz import load_features
from capsdesc.pipelines.frames import write_frames

Array = npt.NDArray[Any]
Capture = pytest.CaptureFixture[str]
WIDTH, HEIGHT, FOCAL = 320, 240, 400.0
COUNT = 14


def write_video(path: Path, frames: list[Array]) -> Path:
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (width, height))
    writer.set(cv2.VIDEOWRITER_PROP_QUALITY, 98)
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A walk on an arc around the relief."""
    rays = (pixel_grid(WIDTH, HEIGHT) - (np.array([WIDTH, HEIGHT]) - 1) / 2) / FOCAL
    frames = [photograph(R, t, rays)[0] for R, t in orbit(COUNT)]
    return write_video(tmp_path_factory.mktemp("video") / "walk.avi", frames)


@pytest.fixture(scope="module")
def network(model_folders: Mapping[str, Path]) -> list[str]:
    return ["--weights", str(model_folders["compact"]), "--device", "cpu", "--max-keypoints", "60"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_frames_are_extracted(video: Path, network: list[str], tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "features"
    assert main(["extract", str(video), "-o", str(out), *network, "--every", "5", "--threads", "3"]) == 0
    assert "described 3 of 3 images" in capsys.readouterr().out
    assert names(out) == [f"frame_{number:06d}.npz" for number in (0, 5, 10)]
    caps = CAPSExtractor(network[1], device="cpu")
    for number in (0, 5, 10):
        expected = caps.extract(FrameReader().read(Frame(video, number)), 60)
        features = load_features(out / f"frame_{number:06d}.npz")
        np.testing.assert_array_equal(features.keypoints, expected.keypoints)
        np.testing.assert_allclose(features.descriptors, expected.descriptors, atol=1e-5)
    # More of the same are added.
    command = ["extract", str(video), "-o", str(out), *network, "--fps", "2.5", "--max-frames", "3"]
    assert main(command) == 0
    assert "described 2 of 3 images" in capsys.readouterr().out
    assert names(out) == [f"frame_{number:06d}.npz" for number in (0, 4, 5, 8, 10)]


def test_a_frame_that_is_lost_is_left_out(
    video: Path, network: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As where the file is cut after it was looked through."""
    whole = tmp_path / "cut.avi"
    whole.write_bytes(video.read_bytes())
    found = [Frame(whole, number) for number in (0, 3, 99)]
    monkeypatch.setattr("capsdesc.pipelines.extract.find_frames", lambda *_, **__: found)
    assert main(["extract", str(whole), "-o", str(tmp_path / "features"), *network]) == 1
    assert names(tmp_path / "features") == ["frame_000000.npz", "frame_000003.npz"]
    assert "left out frame_000099" in caplog.text


def test_folders_are_sampled_by_name(video: Path, network: list[str], tmp_path: Path, capsys: Capture) -> None:
    write_frames(video, tmp_path / "images", Sampling(max_frames=6))
    command = ["extract", str(tmp_path / "images"), "-o", str(tmp_path / "features"), *network]
    assert main([*command, "--every", "4"]) == 0
    assert names(tmp_path / "features") == ["frame_000000.png.npz", "frame_000004.png.npz"]
    assert main([*command, "--fps", "2"]) == 1
    assert "fps is 2.0, but the images of" in capsys.readouterr().err


def test_videos_whose_frames_have_one_name_are_refused(
    video: Path, network: list[str], tmp_path: Path, capsys: Capture
) -> None:
    other = write_video(tmp_path / "other.avi", [np.zeros((40, 60, 3), np.uint8)])
    assert main(["extract", str(video), str(other), "-o", str(tmp_path / "features"), *network]) == 1
    assert "walk.avi and" in (error := capsys.readouterr().err)
    assert "would both be called frame_000000" in error
    assert main(["extract", str(video), "--engine", "ray", "-o", str(tmp_path / "features"), *network]) == 1
    assert "videos need engine 'local'" in capsys.readouterr().err


def test_frames_are_written_once(video: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "images"
    assert write_frames(video, folder, Sampling(every=6)) == tuple(f"frame_{k:06d}.png" for k in (0, 6, 12))
    stamp = (folder / "frame_000006.png").stat().st_mtime_ns
    np.testing.assert_array_equal(read_image(folder / "frame_000006.png"), FrameReader().read(Frame(video, 6)))
    assert write_frames(video, folder, Sampling(every=3)) == tuple(f"frame_{k:06d}.png" for k in (0, 3, 6, 9, 12))
    assert (folder / "frame_000006.png").stat().st_mtime_ns == stamp
    other = write_video(tmp_path / "other.avi", [np.zeros((40, 60, 3), np.uint8)])
    with pytest.raises(ValueError, match=r"differ in video \(walk\.avi, now other\.avi\)"):
        write_frames(other, folder)
    (tmp_path / "photographs").mkdir()
    cv2.imwrite(str(tmp_path / "photographs" / "a.jpg"), np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="holds other images"):
        write_frames(video, tmp_path / "photographs")


def test_a_video_is_reconstructed(video: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    command = ["sfm", str(video), str(out), "--every", "2", "--pairs", "sequential", "--single-camera"]
    command += ["--camera-model", "SIMPLE_PINHOLE", "--max-keypoints", "800", "--threads", "1", "--device", "cpu"]
    assert main(command) == 0
    expected = [f"frame_{number:06d}.png" for number in range(0, COUNT, 2)]
    assert sorted((out / "images").glob("*.png")) == [out / "images" / name for name in expected]
    assert json.loads((out / "images" / "video.json").read_text())["video"] == "walk.avi"
    model = pycolmap.Reconstruction(out / "sparse" / "0")
    assert len(model.cameras) == 1
    found = {model.image(i).name: model.image(i).cam_from_world() for i in model.reg_image_ids()}
    assert sorted(found) == expected
    poses = orbit(COUNT)
    first = found[expected[0]]
    for number, name in zip(range(0, COUNT, 2), expected, strict=True):
        R = (found[name] * first.inverse()).rotation.matrix() @ (poses[number][0] @ poses[0][0].T).T
        assert np.degrees(np.arccos(np.clip((np.trace(R) - 1) / 2, -1, 1))) < 1
    # Run again, nothing is left to do.
    stamps = {path: path.stat().st_mtime_ns for path in [*out.rglob("*.bin"), *out.rglob("*.png")]}
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    capsys.readouterr()


def test_some_of_a_folder_are_reconstructed(video: Path, tmp_path: Path, capsys: Capture) -> None:
    write_frames(video, tmp_path / "images", Sampling(max_frames=5))
    command = ["sfm", str(tmp_path / "images"), str(tmp_path / "out"), "--every", "4", "--max-keypoints", "100"]
    main([*command, "--threads", "1", "--device", "cpu"])
    assert "of 2" in capsys.readouterr().out
    assert names(tmp_path / "out" / "features") == ["frame_000000.png.npz", "frame_000004.png.npz"]
