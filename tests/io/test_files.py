"""Files and folders are written whole or not at all, at whatever moment the process is killed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from capsdesc.io.files import atomic_path, name_full_disk, recover_folder, sweep, sweep_folder

KILLED = """
import os, signal, sys
from pathlib import Path
from capsdesc.io.files import replace_folder

left = int(sys.argv[2])

def step(event, arguments):
    # What changes a folder, whichever function of the standard library it is asked of.
    global left
    if event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir"):
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

root = Path(sys.argv[1])
sys.addaudithook(step)
replace_folder(root / "new", root / "target")
"""


def write_folder(folder: Path, content: str) -> None:
    (folder / "0").mkdir(parents=True)
    for name in ("list", "0/cameras", "0/images"):
        (folder / name).write_text(content)


def texts(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def whole(content: str) -> dict[str, str]:
    return dict.fromkeys(("list", "0/cameras", "0/images"), content)


def test_a_folder_that_is_replaced_is_the_old_or_the_new_one(tmp_path: Path) -> None:
    seen = []
    for steps in range(20):
        root = tmp_path / str(steps)
        write_folder(root / "target", "old")
        write_folder(root / "new", "new")
        code = subprocess.run([sys.executable, "-c", KILLED, str(root), str(steps)]).returncode
        recover_folder(root / "target")
        found = texts(root / "target")
        assert found in (whole("old"), whole("new"))
        assert not (root / "target.old").exists()
        seen.append((code, found["list"]))
        if code == 0:
            break
    # Two renames, then three files and two folders to remove.
    assert seen == [(-signal.SIGKILL, "old")] * 2 + [(-signal.SIGKILL, "new")] * 5 + [(0, "new")]


def test_killed_again_and_again_nothing_is_lost(tmp_path: Path) -> None:
    """Each run is killed one step later than the one before, in the folder that it left."""
    write_folder(tmp_path / "target", "old")
    for steps in range(12):
        if not (tmp_path / "new").exists():
            write_folder(tmp_path / "new", "new")
        subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(steps)])
        recover_folder(tmp_path / "target")
        assert texts(tmp_path / "target") in (whole("old"), whole("new"))
    assert texts(tmp_path / "target") == whole("new")


LEAVE = """
import os, signal, sys
from capsdesc.io.files import atomic_path

with atomic_path(sys.argv[1]) as path:
    path.write_bytes(b"half of it")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_later_run_sweeps_its_own_leftovers(tmp_path: Path) -> None:
    names = ("a.npz", "b.npz", "sub/a.npz")
    (tmp_path / "sub").mkdir()
    for name in names:
        assert subprocess.run([sys.executable, "-c", LEAVE, str(tmp_path / name)]).returncode == -signal.SIGKILL
    mine = [".hidden.npz", f".{'0' * 31}.npz", f".{'g' * 32}.npz", "a.npz"]
    for name in mine:
        (tmp_path / name).write_text("mine")

    def leftovers() -> int:
        return sum(path.is_file() and path.read_bytes() == b"half of it" for path in tmp_path.rglob("*"))

    assert leftovers() == 3
    sweep(tmp_path / "a.npz", tmp_path / "c.npz")
    assert leftovers() == 2
    sweep_folder(tmp_path / "sub", ".npz")
    assert leftovers() == 1
    sweep_folder(tmp_path, ".h5")
    assert leftovers() == 1
    sweep_folder(tmp_path, ".npz")
    assert leftovers() == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*mine, "sub"])


def test_leftovers_lie_where_a_link_leads(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link.pt").symlink_to(tmp_path / "real" / "target.pt")
    subprocess.run([sys.executable, "-c", LEAVE, str(tmp_path / "link.pt")])
    assert len(list((tmp_path / "real").iterdir())) == 1
    sweep(tmp_path / "link.pt")
    assert list((tmp_path / "real").iterdir()) == []


def test_an_error_of_the_disk_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    with pytest.raises(OSError, match=r"No space left on device: '.*/file\.bin'$"), atomic_path(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(FileNotFoundError, match=r"'.*/file\.bin'$"), atomic_path(path):
        pass
    with pytest.raises(FileNotFoundError, match=r"'nosuch'$"), atomic_path(path):
        Path("nosuch").read_bytes()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk here is always full")
def test_a_full_disk_names_a_file_that_stays_open() -> None:
    full = pytest.raises(OSError, match=r"No space left on device: 'log'$")
    with full, name_full_disk(Path("log")), open("/dev/full", "w") as file:
        file.write("row")
    with pytest.raises(FileNotFoundError, match=r"'nosuch'$"), name_full_disk(Path("log")):
        Path("nosuch").read_bytes()
