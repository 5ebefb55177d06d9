"""The kinds of sources, and files that list sources."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from capsdesc.checks import shown
from capsdesc.io.settings import build
from capsdesc.io.text import parse_yaml, read_text
from capsdesc.training.sources.base import Source
from capsdesc.training.sources.caps import CapsSource
from capsdesc.training.sources.colmap import ColmapSource
from capsdesc.training.sources.nerf import NerfSource
from capsdesc.training.sources.pairs import PairsSource
from capsdesc.training.sources.tum import TumSource

SOURCES: Mapping[str, type[Source]] = {
    source.kind: source for source in (ColmapSource, CapsSource, PairsSource, NerfSource, TumSource)
}


def read_sources(path: str | os.PathLike[str]) -> list[Source]:
    """The sources that a YAML file lists, each a mapping of ``kind``, ``path``, ``weight`` and the kind's own settings.

    Paths are relative to the file's folder. Nothing but the list is read; :meth:`Source.scenes` reads the scenes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no YAML list of mappings, or a setting is unknown, missing or refused; it is named.
    """
    path = Path(path)
    entries = parse_yaml(read_text(path), str(path))
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(
            f"{path} holds {shown(entries)}; expected a list of sources, each '- kind: ...' and 'path: ...'"
        )
    return [
        _source(entry, path.parent, f"{path}, source {number} of {len(entries)}")
        for number, entry in enumerate(entries, start=1)
    ]


def _source(entry: dict[str, Any], folder: Path, where: str) -> Source:
    named = entry.get("kind")
    if not isinstance(named, str) or named not in SOURCES:
        raise ValueError(f"{where}: kind is {shown(named)}; expected one of {', '.join(SOURCES)}")
    kind = SOURCES[named]
    values = {key: value for key, value in entry.items() if key != "kind"}
    required = [field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING]
    missing = [name for name in required if name not in values]
    if missing:
        raise ValueError(f"{where}: a {kind.kind} source needs {', '.join(missing)}")
    for name in ("path", "images"):
        if isinstance(values.get(name), str):
            values[name] = str(folder / values[name])
    try:
        return build(kind, values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
