"""One argument for all places weights come from."""

from __future__ import annotations

import os
from pathlib import Path

from capsdesc.isolation import isolated
from capsdesc.weights import bundled, hub
from capsdesc.weights.files import PICKLE_SUFFIXES, Weights, read_local
from capsdesc.weights.official import read_official

_SUFFIXES = (".safetensors", *PICKLE_SUFFIXES)


@isolated()
def resolve(
    weights: str | os.PathLike[str] | None = None,
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: bool | str | None = None,
) -> Weights:
    """Find and read weights, strictly: every tensor the network needs, and no other, in its shape.

    ``weights`` is, tried in this order:

    1. ``None``: the bundled default.
    2. The name of a bundled model. For a folder of the same name, say ``"./NAME"``.
    3. A local path that exists: a folder with ``config.json`` and ``model.safetensors``; a ``.safetensors`` file with
       its ``config.json`` beside it; an official checkpoint (``.pth``, ``.pt``, ``.ckpt``).
    4. ``"org/name[@revision]"`` on the Hugging Face hub, of which only safetensors are read.

    The first three never touch the network. Neither does what looks like a path (a ``PathLike``; begins with ``.``,
    ``/`` or ``~``; has more than one ``/`` before any ``@``; ends in a suffix named above) but does not exist.

    Args:
        weights: see above.
        revision: hub only: branch, tag or commit.
        cache_dir: hub only: where downloads are kept.
        local_files_only: hub only: use what is in the cache.
        token: hub only: for private repositories.

    Raises:
        TypeError: ``weights`` is neither text nor a path.
        FileNotFoundError: there is no such file, repository, revision, or, offline, none in the cache.
        ConnectionError: the hub cannot be reached and the model is not in the cache.
        ValueError: ``weights`` is no valid name; ``revision`` is given for what has none; a file is refused.
    """
    if weights is None or (isinstance(weights, str) and weights in bundled.names()):
        _refuse_revision(revision, weights)
        return bundled.read(bundled.DEFAULT if weights is None else weights)
    if not isinstance(weights, (str, os.PathLike)):
        raise TypeError(f"weights is a {type(weights).__name__}; expected None, a name, or a path")
    name = os.fspath(weights)
    if not name:
        raise ValueError("weights is empty; expected None, a name, or a path")
    path = os.path.expanduser(name)
    if os.path.exists(path):
        _refuse_revision(revision, name)
        return _read_path(Path(path))
    if not isinstance(weights, str) or _looks_like_path(name):
        raise FileNotFoundError(f"weights is {name!r}, and there is no such file or folder")
    if "/" not in name:
        known = ", ".join(bundled.names()) or "none"
        raise ValueError(
            f"weights is {name!r}: neither a bundled model (there is {known}), nor an existing path, nor org/name"
        )
    repository, named_revision = hub.parse(name, revision)
    try:
        return hub.download(
            repository, named_revision, cache_dir=cache_dir, local_files_only=local_files_only, token=token
        )
    except (ConnectionError, FileNotFoundError) as error:
        if named_revision is not None:
            raise
        # Said of a folder from elsewhere, the name looks the same.
        raise type(error)(f"{error}; and there is no folder {name!r} in {os.getcwd()!r}") from error


def _read_path(path: Path) -> Weights:
    if path.is_dir() or path.suffix.lower() == ".safetensors":
        return read_local(path)
    if path.name.lower().endswith(PICKLE_SUFFIXES):
        return read_official(path)
    raise ValueError(f"weights is {str(path)!r}; expected a folder or a file that ends in {', '.join(_SUFFIXES)}")


def is_hub_name(name: str) -> bool:
    """Whether a text is meant as ``org/name[@revision]``: it has a slash, but is no path and looks like none."""
    return "/" in name and not _looks_like_path(name) and not os.path.exists(os.path.expanduser(name))


def _looks_like_path(name: str) -> bool:
    return (
        name.startswith((".", "/", "~"))
        or name.partition("@")[0].count("/") > 1
        or name.lower().endswith(_SUFFIXES)
        or Path(name).is_absolute()
    )


def _refuse_revision(revision: str | None, weights: str | None) -> None:
    if revision is not None:
        raise ValueError(f"revision is {revision!r}, but weights is {weights!r}, which is not on the hub; leave it out")
