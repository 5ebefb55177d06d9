"""``capsdesc sfm`` on photographs of a relief, rendered from known cameras; and the choice of pairs."""

from __future__ import annotations

import contextlib
import io
import json
import math
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pycolmap
import pytest
from scipy.spatial.transform import Rotation
from test_prepare import POSES, write_photographs

from capsdesc import CAPSExtractor, Features
from capsdesc.commands.main import main
from capsdesc.images import read_image
from capsdesc.io.npz import load_features
from capsdesc.pipelines.colmap import is_mapped, open_workspace, read_models
from capsdesc.pipelines.retrieval import describe_globally, nearest_pairs, visual_words
from capsdesc.pipelines.sfm import SfmConfig, link_photographs, reconstruct, sfm_extractor
from capsdesc.training.dataset import DataConfig
from capsdesc.training.sources import ColmapSource

Array = npt.NDArray[Any]

VIEWS = range(1, 7)
# The last one has its name in another folder, but for the case of the ending.
NAMES = {**{k: f"a walk/photo {k}.png" for k in VIEWS}, VIEWS[-1]: "b walk/photo 1.PNG"}
CONFIG = SfmConfig(max_keypoints=1000, camera_model="SIMPLE_PINHOLE")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six of the views of the relief that ``prepare`` is tested on, one as WebP, and a file that is no photograph."""
    folder = tmp_path_factory.mktemp("photographs")
    write_photographs(folder / "a walk", VIEWS)
    last = folder / NAMES[VIEWS[-1]]
    last.parent.mkdir()
    (folder / "a walk" / f"photo {VIEWS[-1]}.png").rename(last)
    cv2.imwrite(str(folder / "colmap reads none.webp"), read_image(folder / NAMES[VIEWS[0]]))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no photograph")
    return folder


class Stopping:
    """A detector that is interrupted after so many images."""

    def __init__(self, extractor: CAPSExtractor, count: int) -> None:
        self.detector, self.left = extractor.detector, count

    def __repr__(self) -> str:
        return repr(self.detector)

    def detect(self, image: Any, max_keypoints: int, mask: Any = None) -> Any:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return self.detector.detect(image, max_keypoints, mask)


def command(photographs: Path, out: Path, *more: str) -> list[str]:
    options = ["--camera-model", "SIMPLE_PINHOLE", "--threads", "1", "--device", "cpu", "--max-keypoints", "1000"]
    return ["sfm", str(photographs), str(out), *options, *more]


@pytest.fixture(scope="module")
def finished(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run that was stopped and then done again, and what was printed."""
    out = tmp_path_factory.mktemp("sfm") / "out"
    extractor = sfm_extractor(device="cpu")
    extractor.detector = Stopping(extractor, 3)
    with pytest.raises(KeyboardInterrupt):
        reconstruct(photographs, out, extractor, CONFIG, threads=1)
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("*.npz")}
    assert 1 <= len(kept) <= 3
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(command(photographs, out, "--compare", "sift")) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    return out, printed.getvalue()


def summary(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return content


@pytest.mark.parametrize(("folder", "tolerance"), [("sparse/0", 1.0), ("sift/sparse/0", 0.5)])
def test_registered_poses_are_the_true_ones(finished: tuple[Path, str], folder: str, tolerance: float) -> None:
    """As true as so small photographs tell, with a focal length that is not known."""
    model = pycolmap.Reconstruction(finished[0] / folder)
    found = {model.image(i).name: model.image(i).cam_from_world() for i in model.reg_image_ids()}
    true = {NAMES[k]: POSES[k] for k in VIEWS}
    assert set(found) == set(true)
    first = min(true)
    for name, (R, t) in true.items():
        R_relative, t_relative = R @ true[first][0].T, t - R @ true[first][0].T @ true[first][1]
        relative = found[name] * found[first].inverse()
        error = Rotation.from_matrix(relative.rotation.matrix() @ R_relative.T).magnitude()
        assert np.degrees(error) < tolerance
        if name != first:
            cosine = (
                relative.translation @ t_relative / np.linalg.norm(relative.translation) / np.linalg.norm(t_relative)
            )
            assert np.degrees(np.arccos(min(1, cosine))) < 4 * tolerance


def features_of(out: Path, name: str) -> Features:
    return load_features(out / "features" / f"{name}.npz")


def test_the_database_holds_the_pairs_and_the_keypoints(finished: tuple[Path, str]) -> None:
    """Keypoints are moved by COLMAP's half pixel, once."""
    with sqlite3.connect(finished[0] / "database.db") as opened:
        ((pairs,),) = opened.execute("SELECT COUNT(*) FROM matches").fetchall()
        stored = dict(opened.execute("SELECT name, data FROM images JOIN keypoints USING (image_id)").fetchall())
        sizes = opened.execute("SELECT DISTINCT width, height FROM cameras").fetchall()
    assert pairs == math.comb(len(VIEWS), 2)
    assert set(stored) == set(NAMES.values())
    for name, data in stored.items():
        features = features_of(finished[0], name)
        points = np.frombuffer(data, dtype=np.float32).reshape(len(features), -1)[:, :2]
        np.testing.assert_array_equal(points, np.asarray(features.keypoints) + np.float32(0.5))
        assert sizes == [features.image_size]


def test_lost_matches_are_found_again(finished: tuple[Path, str], photographs: Path, tmp_path: Path) -> None:
    """As after a run that was killed between two pairs."""
    out = tmp_path / "out"
    shutil.copytree(finished[0], out, symlinks=True)
    shutil.rmtree(out / "sparse")
    query = "SELECT pair_id, data FROM matches ORDER BY pair_id"
    with sqlite3.connect(out / "database.db") as opened:
        before = opened.execute(query).fetchall()
        opened.execute("DELETE FROM matches WHERE pair_id IN (SELECT pair_id FROM matches LIMIT 4)")
        opened.execute("DELETE FROM two_view_geometries")
    opened.close()
    assert main(command(photographs, out)) == 0
    with sqlite3.connect(out / "database.db") as opened:
        assert opened.execute(query).fetchall() == before
    again, first = (pycolmap.Reconstruction(folder / "sparse" / "0") for folder in (out, finished[0]))
    assert again.num_reg_images() == first.num_reg_images()


def test_the_summary_is_that_of_the_models(finished: tuple[Path, str]) -> None:
    out, printed = finished
    methods = summary(out)["methods"]
    lines = {line.split()[0]: line.split()[1:] for line in printed.splitlines()[1:]}
    for method, folder in (("caps", "sparse/0"), ("sift", "sift/sparse/0")):
        model = pycolmap.Reconstruction(out / folder)
        content = methods[method]
        errors = [point.error for point in model.points3D.values()]
        tracks = [point.track.length() for point in model.points3D.values()]
        assert content["photographs"] == len(VIEWS)
        assert content["unregistered"] == []
        assert content["models"][0]["folder"] == folder
        assert content["models"][0]["registered"] == len(VIEWS)
        assert content["models"][0]["points"] == len(tracks)
        assert content["models"][0]["track_length"] == pytest.approx(np.mean(tracks))
        assert content["models"][0]["reprojection_error"] == pytest.approx(np.mean(errors))
        assert set(content["seconds"]) == {"features", "matches", "verification", "mapping"}
        seconds = sum(content["seconds"].values())
        registered, of, total, *numbers = lines[method]
        assert (registered, of, total) == (str(len(VIEWS)), "of", str(len(VIEWS)))
        expected = [len(tracks), np.mean(tracks), np.mean(errors), seconds]
        assert [float(number) for number in numbers] == pytest.approx(expected, abs=0.06)


def test_a_finished_run_is_not_done_again(
    finished: tuple[Path, str], photographs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = finished[0]
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.bin")}
    assert main(command(photographs, out)) == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.bin")} == before
    assert "left out broken.jpg" in caplog.text
    assert "left out colmap reads none.webp" in caplog.text
    assert "sift" in summary(out)["methods"]


def test_the_folder_is_a_scene_to_train_on(finished: tuple[Path, str], photographs: Path) -> None:
    (scene,) = ColmapSource(path=str(finished[0])).scenes(DataConfig())
    assert {photograph.path.resolve() for photograph in scene.photographs} == {
        (photographs / name).resolve() for name in NAMES.values()
    }
    assert len(scene.pairs) > 0


def test_the_link_to_photographs_follows_them_and_replaces_no_folder(
    photographs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    link = tmp_path / "images"
    link.symlink_to(tmp_path / "where they were")
    link_photographs(photographs, link)
    assert link.resolve() == photographs.resolve()
    link.unlink()
    link.mkdir()
    link_photographs(photographs, link)
    assert not link.is_symlink()
    assert f"{link} is not {photographs}" in caplog.text


ADD = """
import os, signal, sys
from pathlib import Path
from capsdesc.pipelines.colmap import map_photographs, open_workspace

out, photographs, moment = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
names = Path(sys.argv[4]).read_text().splitlines()
left = moment

def step(event, arguments):
    global left
    if event in ("os.rename", "os.remove", "os.rmdir") and "sparse" in str(arguments[0]):
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

with open_workspace(photographs, out, 1) as workspace:
    sys.addaudithook(step)
    map_photographs(workspace.database, photographs, workspace.models, names, 1)
"""


def test_mapping_again_loses_no_model_at_whatever_moment_it_is_killed(
    finished: tuple[Path, str], photographs: Path, tmp_path: Path
) -> None:
    """As after photographs were removed or added."""
    out = tmp_path / "out"
    shutil.copytree(finished[0], out, symlinks=True)
    old, new = sorted(NAMES.values()), sorted(NAMES.values())[:-1]
    (tmp_path / "names").write_text("".join(f"{name}\n" for name in new))
    codes = []
    for moment in range(40):
        # After each kill the next run finds what it left.
        command = [sys.executable, "-c", ADD, str(out), str(photographs), str(moment), str(tmp_path / "names")]
        codes.append(subprocess.run(command).returncode)
        with open_workspace(photographs, out, 1) as workspace:
            assert is_mapped(workspace.models, old) or is_mapped(workspace.models, new)
            (model,) = read_models(workspace.models, [])
            assert model.names in (tuple(old), tuple(new))
        if codes[-1] == 0:
            break
    assert len(codes) > 4
    assert set(codes[:-1]) == {-signal.SIGKILL}
    assert is_mapped(out / "sparse", new)
    assert sorted(path.name for path in out.glob("sparse*")) == ["sparse"]


def test_other_settings_are_refused(
    finished: tuple[Path, str], photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = finished[0]
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.*") if path.is_file() and path.suffix != ".lock"}
    assert main(command(photographs, out, "--pairs", "sequential", "--max-size", "200")) == 1
    message = capsys.readouterr().err
    assert "pairs (exhaustive, now sequential)" in message
    assert "max_size (None, now 200)" in message
    with pytest.raises(ValueError, match=r"reliability \(False, now True\)"):
        reconstruct(photographs, out, CAPSExtractor(device="cpu"), CONFIG, threads=1)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_retrieved_pairs_are_matched(photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = command(photographs, tmp_path / "out", "--pairs", "retrieval", "--neighbours", "2")
    assert main(arguments) == 0
    with sqlite3.connect(tmp_path / "out" / "database.db") as opened:
        ((pairs,),) = opened.execute("SELECT COUNT(*) FROM matches").fetchall()
    assert len(VIEWS) <= pairs < math.comb(len(VIEWS), 2)
    assert main([*arguments, "--compare", "sift"]) == 1
    assert "names have spaces" in capsys.readouterr().err


def test_photographs_of_different_things_are_said_to_be_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "photographs").mkdir()
    for k in range(3):
        noise = rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / "photographs" / f"{k}.png"), cv2.resize(noise, (160, 120)))
    cv2.imwrite(str(tmp_path / "photographs" / "black.png"), np.zeros((120, 160), np.uint8))
    assert main(command(tmp_path / "photographs", tmp_path / "out", "--pairs", "sequential")) == 1
    output = capsys.readouterr()
    assert "0 of 4" in output.out
    assert "no two of the 4 photographs" in output.err
    assert "try --orientation any" in output.err
    assert summary(tmp_path / "out")["methods"]["caps"]["models"] == []
    assert not (tmp_path / "out" / "sparse").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--camera-model", "ROUND"], "camera_model is 'ROUND'"),
        (["--max-keypoints", "0"], "max_keypoints is 0"),
        (["--ratio", "1.5"], "ratio is 1.5"),
        (["--overlap", "0"], "overlap is 0"),
        (["--neighbours", "-1"], "neighbours is -1"),
        (["--threads", "0"], "threads is 0"),
    ],
)
def test_wrong_options_are_refused(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["sfm", str(photographs), str(tmp_path / "out"), "--device", "cpu", *options]) == 1
    assert message in capsys.readouterr().err


def test_folders_that_would_be_spoiled_are_refused(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(photographs, photographs / "out")) == 1
    assert "lies in" in capsys.readouterr().err
    (tmp_path / "out" / "sparse" / "0").mkdir(parents=True)
    assert main(command(photographs, tmp_path / "out")) == 1
    assert "from elsewhere" in capsys.readouterr().err
    (tmp_path / "one").mkdir()
    cv2.imwrite(str(tmp_path / "one" / "only.png"), np.zeros((80, 80, 3), np.uint8))
    assert main(command(tmp_path / "one", tmp_path / "other")) == 1
    assert "expected at least two" in capsys.readouterr().err
    assert main(command(tmp_path / "none", tmp_path / "unmade")) == 1
    assert "no folder" in capsys.readouterr().err
    assert not (tmp_path / "unmade").exists()


@pytest.mark.parametrize("content", ["[]", '{"settings": {}}', '{"settings": 1, "methods": {}}'])
def test_other_files_are_no_summaries(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    (tmp_path / "summary.json").write_text(content)
    assert main(command(photographs, tmp_path)) == 1
    assert "is no summary of this command" in capsys.readouterr().err
    assert (tmp_path / "summary.json").read_text() == content


# retrieval


def test_images_of_one_place_are_nearest_to_each_other() -> None:
    rng = np.random.default_rng(2)
    # Things of two kinds that both places have, and within each kind particular ones.
    kinds = rng.normal(size=(4, 16))
    places = [kinds[rng.integers(4, size=60)] + rng.normal(scale=0.3, size=(60, 16)) for _ in range(3)]
    seen = [
        place[rng.choice(60, 40, replace=False)] + rng.normal(scale=0.05, size=(40, 16))
        for place in places
        for _ in range(4)
    ]
    images = [image.astype(np.float32) for image in seen]
    words = visual_words(np.concatenate(images))
    described = [describe_globally(image, words) for image in images]
    np.testing.assert_allclose(np.linalg.norm(described, axis=1), 1, rtol=1e-5)
    pairs = nearest_pairs([image[None] for image in described], 3)
    assert pairs == [(4 * p + i, 4 * p + j) for p in range(3) for i in range(4) for j in range(i + 1, 4)]


def test_a_global_descriptor_is_made_of_differences_to_the_nearest_word() -> None:
    words = np.array([[0, 0], [10, 0], [0, 10]], dtype=np.float32)
    descriptors = np.array([[1, 0], [0, 1], [10, 3]], dtype=np.float32)
    expected = np.array([1 / np.sqrt(2), 1 / np.sqrt(2), 0, 1, 0, 0]) / np.sqrt(2)
    np.testing.assert_allclose(describe_globally(descriptors, words), expected, atol=1e-6)
    np.testing.assert_array_equal(describe_globally(descriptors[:0], words), np.zeros(6))


def test_pairs_are_found_under_any_view() -> None:
    a, b, c = np.eye(3)
    # The second image is the first one seen under its own second view.
    assert nearest_pairs([np.array([a, b]), np.array([c, a]), np.array([b, c])], 1) == [(0, 1), (0, 2)]
    assert nearest_pairs([np.array([a]), np.array([b])], 5) == [(0, 1)]


def test_no_descriptors_give_no_words() -> None:
    words = visual_words(np.empty((0, 8), dtype=np.float32))
    assert words.shape == (0, 8)
    images = [describe_globally(np.empty((0, 8), dtype=np.float32), words)[None] for _ in range(2)]
    assert nearest_pairs(images, 1) == [(0, 1)]
