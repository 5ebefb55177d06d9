"""HDF5 files out, on disks that may be full."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy.typing as npt

from capsdesc.io.files import atomic_path


def import_h5py() -> Any:
    """The h5py module.

    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError('HDF5 files need h5py: pip install "capsdesc[hloc]"') from error
    return h5py


class _Disk(io.RawIOBase):
    """The file below an HDF5 file that is being written, which takes all of it though the disk has failed.

    HDF5 cannot close a file that it cannot write to: it raises, tries again when the process ends, and brings it down.
    So what comes after the first error is kept in memory, which is little, as the writer stops at once.

    Attributes:
        error: the first error of the disk.
    """

    def __init__(self, path: Path) -> None:
        self._file = open(path, "w+b", buffering=0)  # noqa: SIM115
        self._position = 0
        self._unwritten: list[tuple[int, bytes]] = []
        self.error: OSError | None = None

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = self._file.seek(offset, whence)
        if whence == os.SEEK_END and self._unwritten:
            self._position = max(self._position, *(start + len(data) for start, data in self._unwritten))
        return self._position

    def tell(self) -> int:
        return self._position

    def write(self, buffer: Any) -> int:
        data = bytes(buffer)
        if self.error is None:
            try:
                self._file.seek(self._position)
                done = 0
                while done < len(data):
                    done += self._file.write(data[done:])
            except OSError as error:
                self.error = error
        if self.error is not None:
            self._unwritten.append((self._position, data))
        self._position += len(data)
        return len(data)

    def readinto(self, buffer: Any) -> int:
        start, view = self._position, memoryview(buffer)
        self._file.seek(start)
        found = self._file.readinto(view)
        view[found:] = bytes(len(view) - found)
        for place, data in self._unwritten:
            first, last = max(place, start), min(place + len(data), start + len(view))
            if first < last:
                view[first - start : last - start] = data[first - place : last - place]
        self._position += len(view)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        size = self._position if size is None else size
        if self.error is None:
            try:
                self._file.truncate(size)
            except OSError as error:
                self.error = error
        return size

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:  # some disks tell only now that they are full
            self.error = self.error or error
        super().close()


class HDF5Writer:
    """An HDF5 file that is being written, group by group."""

    def __init__(self, file: Any, disk: _Disk) -> None:
        self.file, self._disk = file, disk

    def write_group(self, name: str, fields: dict[str, npt.NDArray[Any]]) -> Any:
        """Write a group of data sets; returns it.

        Raises:
            OSError: the disk is full or broken.
            ValueError: there is a group of this name.
        """
        if name in self.file:
            raise ValueError(f"{name!r} would be written twice to one file; expected names that differ")
        group = self.file.create_group(name)
        for field, values in fields.items():
            group.create_dataset(field, data=values)
        self.check()
        return group

    def check(self) -> None:
        """Raise what went wrong with the disk so far."""
        if self._disk.error is not None:
            raise self._disk.error


@contextlib.contextmanager
def new_file(path: str | os.PathLike[str]) -> Iterator[HDF5Writer]:
    """Write an HDF5 file whole or not at all.

    Raises:
        OSError: the disk is full or broken; ``path`` is named.
    """
    h5py = import_h5py()
    with atomic_path(path) as temporary:
        with contextlib.closing(_Disk(temporary)) as disk:
            with h5py.File(disk, "w") as file:
                writer = HDF5Writer(file, disk)
                yield writer
            writer.check()
        writer.check()
