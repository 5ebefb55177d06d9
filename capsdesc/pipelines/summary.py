"""The file in which a reconstruction tells its settings, times and results."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from capsdesc.io.files import atomic_path, sweep
from capsdesc.io.settings import refuse_other_settings
from capsdesc.io.text import parse_json, read_text
from capsdesc.pipelines.colmap import ModelSummary


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """What became of photographs.

    Attributes:
        names: the photographs that could be read.
        models: the one with most photographs first; none if no two photographs could be related to each other.
        seconds: taken by each stage, over all runs in the folder but for those that were killed.
    """

    names: tuple[str, ...]
    models: tuple[ModelSummary, ...]
    seconds: Mapping[str, float]


class Record:
    """The file ``summary.json``; it holds the settings from the start, so that none are mixed in one folder."""

    def __init__(self, out: Path, settings: Mapping[str, Any]) -> None:
        self._path = out / "summary.json"
        sweep(self._path)
        self._content: dict[str, Any] = {"settings": dict(settings), "methods": {}}
        if self._path.exists():
            self._content = parse_json(read_text(self._path), str(self._path))
            self._refuse_other(settings)
        else:
            self._write()

    def _refuse_other(self, settings: Mapping[str, Any]) -> None:
        content = self._content if isinstance(self._content, dict) else {}
        if not all(isinstance(content.get(key), dict) for key in ("settings", "methods")):
            raise ValueError(f"{self._path} is no summary of this command; choose another folder")
        # What COLMAP's SIFT is told is a part of what CAPS is.
        earlier = {key: content["settings"].get(key) for key in settings}
        refuse_other_settings(f"{self._path.parent} has results", earlier, settings)

    def _method(self, name: str) -> dict[str, Any]:
        method: dict[str, Any] = self._content["methods"].setdefault(name, {"seconds": {}, "models": []})
        return method

    @contextmanager
    def stage(self, method: str, stage: str) -> Iterator[None]:
        """Add the time that the block takes, also where it is stopped."""
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = self._method(method)["seconds"]
            seconds[stage] = round(seconds.get(stage, 0) + time.perf_counter() - start, 2)
            self._write()

    def finish(self, method: str, names: Sequence[str], models: Sequence[ModelSummary]) -> Reconstruction:
        """Write what came out."""
        content = self._method(method)
        content["photographs"] = len(names)
        content["models"] = [
            {
                "folder": model.folder.relative_to(self._path.parent).as_posix(),
                "registered": len(model.names),
                "points": model.points,
                "track_length": model.track_length,
                "reprojection_error": model.reprojection_error,
            }
            for model in models
        ]
        registered = {name for model in models for name in model.names}
        content["unregistered"] = [name for name in names if name not in registered]
        self._write()
        return Reconstruction(tuple(names), tuple(models), dict(content["seconds"]))

    def _write(self) -> None:
        with atomic_path(self._path) as temporary:
            temporary.write_text(json.dumps(self._content, indent=1) + "\n", encoding="utf-8")
