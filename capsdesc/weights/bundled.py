"""The models that come with the package."""

from __future__ import annotations

import importlib.resources

from capsdesc.weights.files import CONFIG_FILE, TENSORS_FILE, Weights, read_pair

DEFAULT = "compact"

_FOLDER = importlib.resources.files("capsdesc.weights") / "bundled"


def names() -> tuple[str, ...]:
    """Names of the bundled models, sorted."""
    if not _FOLDER.is_dir():
        return ()
    return tuple(sorted(entry.name for entry in _FOLDER.iterdir() if (entry / CONFIG_FILE).is_file()))


def read(name: str) -> Weights:
    """The bundled model of this name.

    Raises:
        FileNotFoundError: it is not there, though it belongs to the package.
    """
    config_file, tensors_file = (_FOLDER / name / file for file in (CONFIG_FILE, TENSORS_FILE))
    for file in (config_file, tensors_file):
        if not file.is_file():
            raise FileNotFoundError(f"the installation of capsdesc is broken: {file} is missing; install it again")
    return read_pair(config_file, tensors_file, f"bundled:{name}")
