"""Writing files and folders whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What atomic_path writes to: half of the digits tell the name that the file is to have, the others are drawn at random.
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}(\.[^.]*)?")


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file so that ``path`` holds either all of it or what it held before.

    The block writes to the yielded path, which does not exist yet, lies in the same folder and has the same suffix.
    When the block ends, the file is flushed to disk and renamed to ``path``; when the block raises, it is removed.
    Permissions follow the umask, and a symbolic link at ``path`` stays a link. A process that is killed in the block
    leaves a hidden file behind, which :func:`sweep` removes, and ``path`` as it was.

    Args:
        path: The file to write. It may exist; its folder must.

    Yields:
        The path to write to.

    Raises:
        FileNotFoundError: The folder of ``path`` does not exist, or the block wrote no file.
        IsADirectoryError: ``path`` is a folder.
        OSError: The disk is full, or whatever else the block or the system raised. The error names ``path``.
    """
    # Not Path.resolve, which before Python 3.13 raises RuntimeError where links go in circles.
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(f"cannot write {os.fspath(path)!r}: it is a folder, and a file name is expected")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"cannot write {os.fspath(path)!r}: the folder {str(target.parent)!r} does not exist")
    # The writer creates the file itself, with the permissions the umask gives; tempfile would make it private.
    temporary = target.with_name(f".{_digest(target.name)}{uuid.uuid4().hex[16:]}{target.suffix}")
    try:
        yield temporary
        # Windows flushes only what is open for writing.
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        # A write that fails names no file, and others name the temporary one, which nobody knows.
        if error.errno is not None and error.filename in (None, str(temporary)):
            error.filename = os.fspath(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def name_full_disk(path: str | os.PathLike[str]) -> Iterator[None]:
    """Have errors of a full disk in the block name this file, for writers that stay open: the system names none."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            error.filename = os.fspath(path)
        raise


def sweep(*targets: Path) -> None:
    """Remove what killed runs left half written in the place of these files; nobody else may be writing them."""
    # Of links it is what they lead to that is written.
    real = [Path(os.path.realpath(target)) for target in targets]
    digests = {(target.parent, _digest(target.name)) for target in real}
    for folder in {target.parent for target in real}:
        for path in folder.glob(".*"):
            if is_temporary(path) and (folder, path.name[1:17]) in digests:
                path.unlink(missing_ok=True)


def sweep_folder(folder: Path, suffix: str) -> None:
    """Remove files of one ending that killed runs left half written below a folder, where nobody else writes."""
    for path in folder.rglob(f".*{suffix}"):
        if is_temporary(path):
            path.unlink(missing_ok=True)


def is_temporary(path: Path) -> bool:
    """Whether a file is, by its name, one that is half written."""
    return _TEMPORARY.fullmatch(path.name) is not None


def _digest(name: str) -> str:
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:16]


def replace_folder(new: Path, target: Path) -> None:
    """Put a folder in the place of another one, which is removed.

    Whoever is killed in between leaves the old folder or the new one, whole, and :func:`recover_folder` brings it back
    to its place.
    """
    recover_folder(target)
    if target.exists():
        os.replace(target, _aside(target))
    os.replace(new, target)
    shutil.rmtree(_aside(target), ignore_errors=True)


def recover_folder(target: Path) -> None:
    """End what a killed :func:`replace_folder` began: the old folder comes back, or, where the new one is, goes."""
    old = _aside(target)
    if not old.exists():
        return
    if target.exists():
        shutil.rmtree(old)
    else:
        os.replace(old, target)


def _aside(target: Path) -> Path:
    return target.with_name(f"{target.name}.old")
