"""One run at a time on an output: a second one is refused at once, before it touches anything."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

# In a folder that is locked.
LOCK_NAME = ".capsdesc.lock"


def lock_path(output: str | os.PathLike[str], *, is_folder: bool) -> Path:
    """The hidden file by which :func:`sole_use` holds an output."""
    # By any of its names it is the same output.
    path = Path(os.path.realpath(output))
    return path / LOCK_NAME if is_folder else path.parent / f".{path.name}.lock"


@contextlib.contextmanager
def sole_use(output: str | os.PathLike[str], *, is_folder: bool) -> Iterator[None]:
    """Hold an output for the length of the block, so that no other run writes to it.

    The operating system holds the lock, a hidden file in the folder or beside the file, and lets go of it when the
    process ends, however it ends. The hidden file stays: to remove it would open a gap between two runs. Only a folder
    that was made here, and to which nothing was written, goes with it.

    Args:
        output: the folder, made if it does not exist, or the file, whose folder is.
        is_folder: which of the two.

    Raises:
        BlockingIOError: another run is at work there; the message says which.
        OSError: the folder cannot be made or written to.
    """
    file = lock_path(output, is_folder=is_folder)
    folder = file.parent
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    before = _read(file)
    lock = FileLock(file, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        # Some versions of filelock empty the file on trying.
        holder = _read(file) or before
        who = f" ({holder})" if holder else ""
        raise BlockingIOError(
            f"another run{who} is at work on {os.fspath(output)}: wait until it ends, or choose another output"
        ) from None
    try:
        _write(file, _myself())
        yield
    finally:
        # The next holder is not to be taken for this one before it has written its own.
        _write(file, "")
        with contextlib.suppress(OSError):
            if is_folder and is_new and list(folder.iterdir()) == [file]:
                file.unlink()
                folder.rmdir()
        lock.release()


def _myself() -> str:
    command = " ".join(Path(word).name for word in sys.argv[:2])
    now = datetime.now().astimezone().isoformat(" ", "seconds")
    return f"process {os.getpid()} on {socket.gethostname()}, {command!r}, since {now}"


def _write(file: Path, text: str) -> None:
    # On Windows nobody may write to a locked file, and then nobody is named.
    with contextlib.suppress(OSError):
        file.write_text(text, encoding="utf-8", errors="backslashreplace")


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")[:300]
    except OSError:
        return ""
