"""Where features of many images are kept: a folder of archives, or a file of hloc."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path, PurePath
from typing import Any, Protocol

from capsdesc.io.files import atomic_path, is_temporary, sweep, sweep_folder
from capsdesc.io.hdf5 import import_h5py
from capsdesc.io.hloc import (
    check_descriptors,
    check_features,
    have_derivatives,
    read_features,
    read_names,
    read_settings,
    refuse_integers,
    write_features,
)
from capsdesc.io.locks import lock_path, sole_use
from capsdesc.io.npz import holds_derivatives, load_features, save_features, settings_in
from capsdesc.io.storage import Store
from capsdesc.io.text import not_utf8
from capsdesc.types import Features

HLOC_SUFFIXES = (".h5", ".hdf5")


class FeatureSink(Protocol):
    """Where features are kept by the names of their images.

    One that keeps descriptors in a smaller type says which in an attribute ``store``, see :mod:`capsdesc.io.storage`.
    """

    def sole_use(self) -> AbstractContextManager[None]:
        """For the length of the block no other run writes here; what killed runs left half written is removed.

        Raises:
            BlockingIOError: another run is at work here.
        """
        ...

    def unfit(self, names: Iterable[str]) -> Mapping[str, str]:
        """Those names of images under which nothing can be kept here, with the reason."""
        ...

    def stored(self, names: Iterable[str]) -> Mapping[str, str | None]:
        """What is kept already and must agree with features of these images: for each image the settings it was made
        with, ``None`` where they are not known.
        """
        ...

    def write(self, name: str, features: Features, settings: str) -> None:
        """Keep the features of an image, whole or not at all, in the place of earlier ones."""
        ...

    def finish(self) -> None:
        """All images are done."""
        ...


def feature_sink(path: str | os.PathLike[str], store: Store = "float32") -> FeatureSink:
    """A file of hloc where the path ends as HDF5 files do, in whatever case, and a folder of archives elsewhere."""
    return HlocFile(path, store) if Path(path).suffix.lower() in HLOC_SUFFIXES else NpzFolder(path, store)


def feature_source(path: str | os.PathLike[str]) -> NpzFolder | HlocFile:
    """Features that were written: a folder of archives, or else a file of hloc, whatever it is called."""
    return NpzFolder(path) if Path(path).is_dir() else HlocFile(path)


class NpzFolder:
    """A folder with a file ``NAME.npz`` for each image, see :func:`save_features`.

    Args:
        folder: made when the first features are written.
        store: type of the descriptors in its files.

    Raises:
        NotADirectoryError: ``folder`` is a file.
    """

    def __init__(self, folder: str | os.PathLike[str], store: Store = "float32") -> None:
        self.folder, self.store = Path(folder), store
        if self.folder.exists() and not self.folder.is_dir():
            raise NotADirectoryError(f"cannot write features to {folder}: it is a file, and a folder is expected")

    @property
    def lock(self) -> Path:
        """The file that is there while :meth:`sole_use` lasts."""
        return lock_path(self.folder, is_folder=True)

    def absolute(self) -> NpzFolder:
        """The same folder, whatever the working directory: for workers."""
        return NpzFolder(self.folder.absolute(), self.store)

    def path(self, name: str) -> Path:
        """The file of an image."""
        return self.folder / f"{name}.npz"

    def names(self) -> list[str]:
        """Names of all images whose features are here, sorted."""
        files = (path for path in self.folder.rglob("*.npz") if not is_temporary(path))
        return sorted(path.relative_to(self.folder).as_posix().removesuffix(".npz") for path in files)

    def read(self, name: str) -> Features:
        """The features of an image, see :func:`load_features`."""
        return load_features(self.path(name))

    def have_derivatives(self, names: Iterable[str]) -> bool:
        """Whether all of these images that are here have derivatives."""
        return all(holds_derivatives(path) for path in map(self.path, names) if path.exists())

    def check(self, names: Iterable[str]) -> dict[str, str]:
        """What is wrong with the features of those images that cannot be matched upright."""
        broken = {}
        for name in sorted(names):
            try:
                check_descriptors(name, self.read(name).descriptors, self.folder)
            except (OSError, ValueError) as error:
                broken[name] = str(error)
        return broken

    def origin(self) -> dict[str, Any]:
        """What tells these features from others of the same images, for JSON: one folder holds those of one kind."""
        return {"settings": next((settings_in(self.path(name)) for name in self.names()), None)}

    @contextlib.contextmanager
    def sole_use(self) -> Iterator[None]:
        """See :meth:`FeatureSink.sole_use`."""
        with sole_use(self.folder, is_folder=True):
            sweep_folder(self.folder, ".npz")
            yield

    def unfit(self, names: Iterable[str]) -> dict[str, str]:
        """Names that the file system does not take; it is asked, as each has rules of its own."""
        existing = next(folder for folder in (self.folder, *self.folder.absolute().parents) if folder.is_dir())
        found = {}
        for name in names:
            *folders, file = PurePath(name).parts
            for part in (*folders, f"{file}.npz"):
                try:
                    os.lstat(existing / part)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    found[name] = f"no file can be called {part!r} in {self.folder}: {error.strerror}"
        return found

    def stored(self, names: Iterable[str]) -> dict[str, str | None]:
        """The settings of those images that have a file."""
        return {name: settings_in(self.path(name)) for name in names if self.path(name).exists()}

    def write(self, name: str, features: Features, settings: str) -> None:
        """Write the file of an image, whole or not at all."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            save_features(file, features, settings=settings, store=self.store)

    def finish(self) -> None:
        """Nothing is left to do: each file was whole when it was written."""


class HlocFile:
    """A features file of hloc, see :mod:`capsdesc.io.hloc`.

    An HDF5 file that is being written when the process is killed is lost. So features are kept in a folder beside it,
    ``NAME.h5.parts``, until all images are done.

    Args:
        path: the file; images it holds already stay in it.
        store: type of the descriptors in the file.

    Raises:
        ImportError: h5py is not installed.
        IsADirectoryError: ``path`` is a folder.
        ValueError: ``store`` is ``"int8"``.
    """

    def __init__(self, path: str | os.PathLike[str], store: Store = "float32") -> None:
        import_h5py()
        refuse_integers(path, store)
        self.path, self.store = Path(path), store
        if self.path.is_dir():
            raise IsADirectoryError(f"cannot write features to {path}: it is a folder, and a file is expected")
        self._parts = NpzFolder(self.path.with_name(f"{self.path.name}.parts"), store)
        self._settings: str | None = None

    @property
    def lock(self) -> Path:
        """See :attr:`NpzFolder.lock`."""
        return lock_path(self.path, is_folder=False)

    def absolute(self) -> HlocFile:
        """See :meth:`NpzFolder.absolute`."""
        return HlocFile(self.path.absolute(), self.store)

    @contextlib.contextmanager
    def sole_use(self) -> Iterator[None]:
        """See :meth:`FeatureSink.sole_use`."""
        with sole_use(self.path, is_folder=False):
            sweep(self.path)
            if self._parts.folder.is_dir():
                sweep_folder(self._parts.folder, ".npz")
            yield

    def unfit(self, names: Iterable[str]) -> dict[str, str]:
        """Names that are no UTF-8, or too long for the folder beside the file."""
        names = list(names)
        return {**self._parts.unfit(names), **not_utf8(names)}

    def stored(self, names: Iterable[str]) -> dict[str, str | None]:
        """The settings of every image in the file or in the folder beside it: they would all be in one file."""
        return {**dict.fromkeys(self._written(), self._written_settings()), **self._parts.stored(self._spooled())}

    def write(self, name: str, features: Features, settings: str) -> None:
        """Keep the features of an image in the folder.

        Raises:
            ValueError: they are described under several views, which hloc's format does not hold.
        """
        if features.descriptors.ndim != 2:
            raise ValueError(
                f"descriptors of {name} have shape {tuple(features.descriptors.shape)}; hloc's files hold (N, D): "
                "use orientation 'upright', or a folder for the output"
            )
        self._settings = settings
        self._parts.write(name, features, settings)

    def names(self) -> list[str]:
        """Names of all images in the file, sorted; see :func:`read_names`."""
        return read_names(self.path)

    def read(self, name: str) -> Features:
        """The features of an image in the file, see :func:`read_features`."""
        return read_features(self.path, name)

    def have_derivatives(self, names: Iterable[str]) -> bool:
        """See :func:`capsdesc.io.hloc.have_derivatives`."""
        return have_derivatives(self.path, names)

    def check(self, names: Iterable[str]) -> dict[str, str]:
        """See :func:`check_features`."""
        return check_features(self.path, names)

    def origin(self) -> dict[str, Any]:
        """What tells this file from another one of its name, for JSON; to read all of it would take too long."""
        status = self.path.stat()
        return {"size": status.st_size, "modified": status.st_mtime_ns}

    def require(self, names: Iterable[str]) -> None:
        """Make sure that the features of these images, which were written here or by workers, are in the folder.

        Raises:
            FileNotFoundError: some are not.
        """
        missing = sorted(set(names) - set(self._spooled()))
        if missing:
            raise FileNotFoundError(
                f"features of {len(missing)} images were written and are not in {self._parts.folder}, the first is "
                f"{missing[0]!r}: storage that machines share may show files late; run the same again"
            )

    def finish(self) -> None:
        """Write the file, whole or not at all, and remove the folder."""
        spooled = self._spooled()
        if not spooled:
            shutil.rmtree(self._parts.folder, ignore_errors=True)
            return
        settings = self._settings or settings_in(self._parts.path(spooled[0]))
        kept = sorted(set(self._written()) - set(spooled))
        features = itertools.chain(
            ((name, self.read(name)) for name in kept),
            ((name, self._parts.read(name)) for name in spooled),
        )
        write_features(self.path, features, settings=settings, store=self.store)
        shutil.rmtree(self._parts.folder)

    def _spooled(self) -> list[str]:
        names = self._parts.names()
        return sorted(set(names) - set(not_utf8(names)))

    def _written(self) -> list[str]:
        return self.names() if self.path.exists() else []

    def _written_settings(self) -> str | None:
        return read_settings(self.path) if self.path.exists() else None
