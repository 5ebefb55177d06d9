"""Two runs on one output, in processes of their own: the second is told at once who is at work, and touches nothing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest

from capsdesc import Features
from capsdesc.commands.main import main
from capsdesc.commands.train import main as train
from capsdesc.io.hloc import read_names, write_features
from capsdesc.io.locks import sole_use

HOLD = """
import sys
from pathlib import Path
from capsdesc.io.locks import sole_use

with sole_use(Path(sys.argv[1]), is_folder=sys.argv[2] == "folder"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(output: Path, kind: str) -> Iterator[subprocess.Popen[str]]:
    """A process that is at work on an output."""
    command = [sys.executable, "-c", HOLD, str(output), kind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in "ab":
        cv2.imwrite(str(folder / f"{name}.png"), rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))
    return folder


def features() -> Features:
    return Features(np.zeros((3, 2), np.float32), np.eye(3, 8, dtype=np.float32), None, None, None, (60, 40))


@pytest.mark.parametrize(
    ("run", "arguments", "output", "kind"),
    [
        (main, ["extract", "photographs", "-o", "out"], "out", "folder"),
        (main, ["extract", "photographs", "-o", "out.h5"], "out.h5", "file"),
        (main, ["match-features", "features.h5", "pairs.txt", "-o", "out.h5"], "out.h5", "file"),
        (main, ["sfm", "photographs", "out"], "out", "folder"),
        (train, ["prepare", "photographs", "out"], "out", "folder"),
        (train, ["nosuch", "-o", "out"], "out", "folder"),
    ],
)
def test_the_second_run_does_nothing(
    photographs: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    run: Callable[[list[str]], int],
    arguments: list[str],
    output: str,
    kind: str,
) -> None:
    root = photographs.parent
    monkeypatch.chdir(root)
    write_features(root / "features.h5", [(name, features()) for name in "ab"])
    (root / "pairs.txt").write_text("a b\n")
    if kind == "folder":
        # By another name it is the same output.
        (root / "real").mkdir()
        (root / "out").symlink_to("real")
    with holder(root / output, kind) as first:
        before = content(root)
        assert run(arguments) == 1
        assert content(root) == before
        message = capsys.readouterr().err
        assert re.search(rf"another run \(process {first.pid} on .*\) is at work on {re.escape(output)}", message)


def test_a_run_that_is_killed_locks_nothing(tmp_path: Path) -> None:
    with holder(tmp_path / "out", "folder") as first:
        with pytest.raises(BlockingIOError, match=f"process {first.pid} "), sole_use(tmp_path / "out", is_folder=True):
            pass
        first.send_signal(signal.SIGKILL)
        first.wait()
        with sole_use(tmp_path / "out", is_folder=True):
            pass


def test_a_run_is_named_whatever_its_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/program", os.fsdecode(b"caf\xe9")])
    with (
        sole_use(tmp_path, is_folder=True),
        pytest.raises(BlockingIOError, match=rf"process {os.getpid()} on .*program caf"),
        sole_use(tmp_path, is_folder=True),
    ):
        pass
    # Whoever comes next is not taken for it.
    assert [path.read_text() for path in tmp_path.iterdir()] == [""]


def test_a_folder_to_which_nothing_was_written_goes_with_the_lock(tmp_path: Path) -> None:
    with sole_use(tmp_path / "made", is_folder=True):
        assert (tmp_path / "made").is_dir()
    assert not (tmp_path / "made").exists()
    (tmp_path / "there").mkdir()
    with sole_use(tmp_path / "there", is_folder=True), sole_use(tmp_path / "written", is_folder=True):
        (tmp_path / "written" / "file").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there", "written"]


def test_of_two_extractions_into_one_file_the_first_loses_nothing(
    photographs: Path, model_folders: Mapping[str, Path], tmp_path: Path
) -> None:
    """The first is at work for as long as it waits for the pixels of an image, which come through a pipe."""
    os.mkfifo(tmp_path / "pipe.png")
    output = tmp_path / "out.h5"

    def command(images: Path) -> list[str]:
        network = ["--weights", str(model_folders["compact"]), "--device", "cpu", "--threads", "1"]
        return [sys.executable, "-m", "capsdesc.commands.main", "extract", str(images), "-o", str(output), *network]

    first = subprocess.Popen(command(tmp_path / "pipe.png"), stdout=subprocess.PIPE, text=True)
    # Opening waits for the reader.
    with open(tmp_path / "pipe.png", "wb") as pipe:
        second = subprocess.run(command(photographs), capture_output=True, text=True)
        assert second.returncode == 1
        assert f"process {first.pid} " in second.stderr
        assert not output.exists()
        pipe.write((photographs / "a.png").read_bytes())
    printed, _ = first.communicate(timeout=100)
    assert first.returncode == 0
    assert "described 1 of 1" in printed
    assert read_names(output) == ["pipe.png"]
    subprocess.run(command(photographs), check=True, stdout=subprocess.DEVNULL)
    assert read_names(output) == ["a.png", "b.png", "pipe.png"]
