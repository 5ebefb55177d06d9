"""The command ``capsdesc publish``: a model's folder to the Hugging Face hub, in one commit."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from huggingface_hub.utils import HfHubHTTPError  # type: ignore[attr-defined]

from capsdesc.weights.files import CARD_FILE, CONFIG_FILE, TENSORS_FILE, read_local
from capsdesc.weights.hub import parse

REQUIRED_FILES = (CONFIG_FILE, TENSORS_FILE, CARD_FILE)
# What capsdesc-train leaves beside the model and others may want to see.
TRAINING_FILES = ("training.yaml", "log.jsonl")
_PICTURE = re.compile(r"(!\[[^\]]*\]\()([^)\s:]+\.(?:gif|jpe?g|png|svg|webp))(?=\))")

# How a broken connection shows. Errors of its HTTP library pass through huggingface_hub; which library that is has
# changed over time, but HfHubHTTPError derives from its base class in all versions. RuntimeError is how the upload of a
# large file fails. No JSON is what a network's login page answers.
_BROKEN_CONNECTION: tuple[type[Exception], ...] = (
    OSError,
    RuntimeError,
    json.JSONDecodeError,
    *HfHubHTTPError.__bases__,
)


def publish(
    folder: str | os.PathLike[str],
    repository: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
) -> str:
    """Upload a model's folder to the Hugging Face hub, in one commit.

    Args:
        folder: with ``config.json``, ``model.safetensors`` and ``README.md``; ``training.yaml`` and ``log.jsonl`` are
            uploaded too if they are there, and so are pictures that the card shows from this machine, which lie beside
            it on the hub. Nothing else is.
        repository: ``"org/name"``; made if it does not exist.
        private: only those with a right to it can see the repository.
        revision: branch; made from the main one if it does not exist. The main branch by default.
        message: of the commit.

    Returns:
        ``"org/name@COMMIT"``. If the hub has the same files already, no commit is made, and it is the latest one.

    Raises:
        FileNotFoundError: a file is missing in ``folder``.
        PermissionError: there is no token, or it may not write to ``repository``.
        ConnectionError: the hub cannot be reached, or refuses the upload.
        ValueError: ``repository`` or ``revision`` is no valid name, the model cannot be loaded, the hub refuses the
            card's metadata, or the repository is public though ``private`` is asked for.
    """
    # Here and not above: it takes half a second, which no other command needs.
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    repository, revision = parse(repository, revision)
    folder = Path(folder)
    read_local(folder).build()
    if not (folder / CARD_FILE).is_file():
        raise FileNotFoundError(
            f"{folder} has no {CARD_FILE}, and no model is published without its card: write one, "
            "or let capsdesc.weights.card.model_card do it"
        )
    # Only now: what is wrong with the model can be told without a token.
    if get_token() is None:
        raise PermissionError(
            "publishing needs a token of the Hugging Face hub with the right to write: run `hf auth login`, or set "
            "the environment variable HF_TOKEN"
        )
    names = [*REQUIRED_FILES, *(name for name in TRAINING_FILES if (folder / name).is_file())]
    files = {**{name: folder / name for name in names}, **_card_and_pictures(folder)}
    api = HfApi(library_name="capsdesc")
    try:
        api.create_repo(repository, private=private or None, exist_ok=True)
        if private and not api.model_info(repository).private:
            raise ValueError(f"{repository} exists and is public; make it private in its settings, or publish publicly")
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        # Not upload_folder, which may split the files over several commits.
        try:
            commit = api.create_commit(
                repository,
                [CommitOperationAdd(name, content) for name, content in files.items()],
                commit_message=message or "Publish with capsdesc",
                revision=revision,
            )
        except json.JSONDecodeError:
            raise
        except ValueError as error:
            raise ValueError(f"the hub refuses the card of {repository}: {error}") from error
    except HfHubHTTPError as error:
        if error.response.status_code == 401:
            raise PermissionError(f"the hub refuses the token; run `hf auth login` again: {error}") from error
        if error.response.status_code == 403:
            raise PermissionError(f"the token has no right to write to {repository}: {error}") from error
        raise ConnectionError(f"the hub refused to publish {repository}: {error}") from error
    except _BROKEN_CONNECTION as error:
        raise ConnectionError(
            f"cannot publish {repository}: {api.endpoint} cannot be reached, or does not answer as a hub does: {error}"
        ) from error
    return f"{repository}@{commit.oid}"


def _card_and_pictures(folder: Path) -> dict[str, Path | bytes]:
    """The card as it is on the hub, and the pictures that it shows, by their names there."""
    files: dict[str, Path | bytes] = {}

    def beside(shown: re.Match[str]) -> str:
        picture = folder / shown[2]
        if not picture.is_file():
            return shown[0]
        files[picture.name] = picture
        return f"{shown[1]}{picture.name}"

    card = _PICTURE.sub(beside, (folder / CARD_FILE).read_text(encoding="utf-8"))
    return files | {CARD_FILE: card.encode()}
