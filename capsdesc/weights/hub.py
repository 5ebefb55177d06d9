"""Models on the Hugging Face hub: ``config.json`` and ``model.safetensors`` of one commit."""

from __future__ import annotations

import importlib.metadata
import os
import re
import socket
import urllib.parse
import urllib.request
from pathlib import Path

from huggingface_hub import constants, hf_hub_download

# `huggingface_hub.errors`, where these are declared, has all of them only since 0.25.
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    validate_repo_id,
)

from capsdesc.weights.files import CONFIG_FILE, TENSORS_FILE, Weights, read_pair


def parse(name: str, revision: str | None = None) -> tuple[str, str | None]:
    """``"org/name[@revision]"`` as repository and revision.

    Raises:
        ValueError: it is no valid name of a repository or a revision, or ``revision`` contradicts it.
    """
    repository, at, named_revision = name.partition("@")
    if at:
        if revision is not None and revision != named_revision:
            raise ValueError(f"{name!r} names a revision, but revision is {revision!r}; give one of the two")
        revision = named_revision
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository, re.ASCII):
        raise ValueError(f"{name!r} is no name on the hub; a model there is called org/name[@revision]")
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ValueError(f"{name!r} is no valid org/name[@revision]: {error}") from error
    # The revision becomes part of a path in the local cache.
    if revision is not None and (".." in revision or not re.fullmatch(r"[\w.+-][\w.+/-]*", revision, re.ASCII)):
        raise ValueError(f"revision is {revision!r}; expected a branch, a tag or a commit")
    return repository, revision


def download(
    repository: str,
    revision: str | None = None,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: bool | str | None = None,
) -> Weights:
    """The model of a repository, from the local cache as far as it is there.

    Args:
        repository: ``"org/name"``.
        revision: branch, tag or commit; the main branch by default.
        cache_dir: the hub's usual cache by default.
        local_files_only: never ask the hub; the environment variable ``HF_HUB_OFFLINE=1`` does the same.
        token: for private repositories; by default the one of ``hf auth login``.

    Returns:
        The weights; their source names the commit, from which both files are.

    Raises:
        FileNotFoundError: repository, revision or file does not exist, or, offline, is not in the cache.
        ConnectionError: the hub cannot be reached and the model is not in the cache.
        ValueError: the files are no model.
    """
    return read_pair(*fetch(repository, revision, cache_dir=cache_dir, local_files_only=local_files_only, token=token))


def fetch(
    repository: str,
    revision: str | None = None,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: bool | str | None = None,
) -> tuple[Path, Path, str]:
    """The files of :func:`download`, in the local cache, as they are.

    Returns:
        ``config.json`` and ``model.safetensors``, both of one commit, and ``"org/name@COMMIT"``.

    Raises:
        FileNotFoundError: as :func:`download`.
        ConnectionError: as :func:`download`.
    """
    offline = local_files_only or constants.HF_HUB_OFFLINE
    out_of_reach = not offline and not _is_in_reach()

    def fetch_file(filename: str, revision: str | None) -> Path:
        where = f"{repository}@{revision or 'main'}"
        try:
            return Path(
                hf_hub_download(
                    repository,
                    filename,
                    revision=revision,
                    cache_dir=None if cache_dir is None else Path(cache_dir),
                    local_files_only=local_files_only or out_of_reach,
                    token=token,
                    library_name="capsdesc",
                    library_version=_version(),
                )
            )
        except LocalEntryNotFoundError as error:
            if offline:
                raise FileNotFoundError(
                    f"{filename} of {where} is not in the local cache, and downloads are off "
                    f"({'local_files_only' if local_files_only else 'HF_HUB_OFFLINE'}); download it once while online"
                ) from error
            raise ConnectionError(
                f"cannot reach the hub for {where}, and {filename} is not in the local cache"
                + ("" if out_of_reach else f": {error}")
            ) from error
        except RevisionNotFoundError as error:
            raise FileNotFoundError(f"{repository} has no revision {revision!r} on the hub") from error
        except RepositoryNotFoundError as error:
            raise FileNotFoundError(
                f"there is no {repository} on the hub, or it is private or gated and needs a token with access to it"
            ) from error
        except EntryNotFoundError as error:
            raise FileNotFoundError(
                f"{where} on the hub has no {filename}; a model has {CONFIG_FILE} and {TENSORS_FILE}"
            ) from error
        except HfHubHTTPError as error:
            raise ConnectionError(f"the hub refused {filename} of {where}: {error}") from error

    config_file = fetch_file(CONFIG_FILE, revision)
    # The cache keeps a file as snapshots/COMMIT/NAME; asking for that commit keeps the two files together.
    commit = config_file.parent.name
    return config_file, fetch_file(TENSORS_FILE, commit), f"{repository}@{commit}"


def _is_in_reach() -> bool:
    """Whether anything answers where the hub is: its own library would try again and again for half a minute.

    Through a proxy that cannot be told, and is taken for granted.
    """
    endpoint = urllib.parse.urlsplit(constants.ENDPOINT)
    if urllib.request.getproxies().keys() & {endpoint.scheme, "all"}:
        return True
    try:
        socket.create_connection((endpoint.hostname, endpoint.port or endpoint.scheme), timeout=10).close()
    except OSError:
        return False
    return True


def _version() -> str | None:
    try:
        return importlib.metadata.version("capsdesc")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        return None
