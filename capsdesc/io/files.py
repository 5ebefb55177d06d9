"""Writing files whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file so that ``path`` holds either all of it or what it held before.

    The block writes to the yielded path, which does not exist yet, lies in the same folder and has the same suffix.
    When the block ends, the file is flushed to disk and renamed to ``path``; when the block raises, it is removed.
    Permissions follow the umask, and a symbolic link at ``path`` stays a link. A process that is killed in the block
    leaves a hidden file behind, and ``path`` as it was.

    Args:
        path: The file to write. It may exist; its folder must.

    Yields:
        The path to write to.

    Raises:
        FileNotFoundError: The folder of ``path`` does not exist, or the block wrote no file.
        IsADirectoryError: ``path`` is a folder.
    """
    # Not Path.resolve, which before Python 3.13 raises RuntimeError where links go in circles.
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(f"cannot write {os.fspath(path)!r}: it is a folder, and a file name is expected")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"cannot write {os.fspath(path)!r}: the folder {str(target.parent)!r} does not exist")
    # The writer creates the file itself, with the permissions the umask gives; tempfile would make it private.
    temporary = target.with_name(f".{uuid.uuid4().hex}{target.suffix}")
    try:
        yield temporary
        # Windows flushes only what is open for writing.
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
