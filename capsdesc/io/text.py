"""Text files in, whoever wrote them: what does not hold what it should is a ValueError that says where.

Beyond typing errors that is other encodings, damage, absurd nesting, and names that lead out of their folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from capsdesc.checks import shown


def listed_image(folder: Path, name: str, where: str) -> Path:
    """The path of an image below a folder, by the name that a file has for it.

    Args:
        folder: What names are relative to.
        name: As the file has it.
        where: Where it stands in that file, for messages.

    Raises:
        FileNotFoundError: There is no such image.
        ValueError: The name is absolute or leads out of the folder.
    """
    path = below(folder, name, where)
    if not path.is_file():
        raise FileNotFoundError(f"{where}: there is no image {path}")
    return path


class _Loader(yaml.SafeLoader):
    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge (``<<``): a mapping's own keys come before merged ones, and of those the first mapping's.

        PyYAML's own keeps every key of merges of merges, which are exponentially many, and in some versions lets the
        last mapping win.
        """
        merges = [value for key, value in node.value if key.tag == "tag:yaml.org,2002:merge"]
        node.value = [(key, value) for key, value in node.value if key.tag != "tag:yaml.org,2002:merge"]
        super().flatten_mapping(node)
        merged: dict[object, tuple[yaml.Node, yaml.Node]] = {}
        for value in merges:
            for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if not isinstance(source, yaml.MappingNode):
                    raise yaml.constructor.ConstructorError(
                        None, None, f"expected a mapping to merge, but found a {source.id}", source.start_mark
                    )
                self.flatten_mapping(source)
                merged = _by_key(source.value) | merged
        node.value = list((merged | _by_key(node.value)).values())


def _by_key(pairs: list[tuple[yaml.Node, yaml.Node]]) -> dict[object, tuple[yaml.Node, yaml.Node]]:
    """The pairs of a mapping, each key once; of equal keys the last."""
    return {(key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key): (key, value) for key, value in pairs}


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a UTF-8 file.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is not UTF-8.
    """
    try:
        # Editors on Windows put a byte order mark first.
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{os.fspath(path)} is no UTF-8 text: {error}") from error


def not_utf8(names: Iterable[str]) -> dict[str, str]:
    """Those names of files that are no text, with what is wrong with them: the system gives them as bytes."""
    found = {}
    for name in names:
        try:
            name.encode("utf-8")
        except UnicodeEncodeError:
            found[name] = f"its name is no UTF-8 ({os.fsencode(name)!r}): rename the file"
    return found


def parse_json(text: str, what: str) -> Any:
    """The value of a JSON text; ``what`` is what messages call it.

    Raises:
        ValueError: the text is no JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is no valid JSON: {error}") from error


def parse_yaml(text: str, what: str) -> Any:
    """The plain value of a YAML text; ``what`` is what messages call it.

    Raises:
        ValueError: the text is no YAML, has tags of other than plain values, or is nested too deeply.
    """
    try:
        return yaml.load(text, _Loader)
    # On a value that does not fit its tag PyYAML fails with nearly any error there is.
    except Exception as error:
        raise ValueError(f"{what} is no valid YAML: {error}") from error


def read_lines(path: str | os.PathLike[str], *, names_first: bool = False) -> Iterator[tuple[str, list[str]]]:
    """Where each line stands, for messages, and its fields; empty lines and comments (#) are left out.

    Args:
        path: the file.
        names_first: whether lines begin with names of files. These may begin with #, so only a # that stands alone
            makes a comment.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is not UTF-8.
    """
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        fields = line.split()
        if fields and not (fields[0].strip("#") == "" if names_first else fields[0].startswith("#")):
            yield f"{os.fspath(path)}, line {number}", fields


def finite_numbers(fields: Sequence[str], where: str) -> npt.NDArray[np.float64]:
    """The fields as finite numbers.

    Raises:
        ValueError: one is no number, or not finite.
    """
    try:
        values = np.array(fields, dtype=np.float64)
    except ValueError as error:
        raise ValueError(f"{where}: {error}; expected numbers") from error
    if not np.isfinite(values).all():
        raise ValueError(f"{where}: {shown(' '.join(fields))} holds a number that is not finite")
    return values


def below(folder: Path, name: str, where: str) -> Path:
    """The path of a file that another file names, which must lie below the folder.

    Raises:
        ValueError: the name is absolute, leads upwards, or is no name.
    """
    pure = PurePath(name)
    if not pure.name or pure.anchor or ".." in pure.parts or "\0" in name:
        raise ValueError(f"{where}: {shown(name)} is refused; expected the name of a file below {folder}")
    return folder / pure
