"""The notebooks: they run, and show what their own code printed and drew."""

from __future__ import annotations

import base64
import importlib.util
import re
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import nbformat
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MAX_BYTES = 300_000
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def load_runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("notebooks", ROOT / ".ci" / "notebooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


runner = load_runner()


def read(path: Path) -> Any:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell: Any) -> list[Any]:
    """What a cell shows, but for progress and logs: the kinds of its outputs."""
    return [output.get("name") or sorted(output.data) for output in cell.outputs if output.get("name") != "stderr"]


def figures(notebook: Any, pattern: str) -> list[float]:
    printed = "".join(output.get("text", "") for cell in code_cells(notebook) for output in cell.outputs)
    found = re.search(pattern, printed)
    assert found is not None, printed
    return [float(number) for number in found.groups()]


@each
def test_outputs_are_of_the_cells(path: Path) -> None:
    """Else: python .ci/notebooks.py."""
    notebook = read(path)
    assert notebook.metadata[runner.KEY] == runner.fingerprint(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    pictures = [
        cv2.imdecode(np.frombuffer(base64.b64decode(output.data["image/jpeg"]), np.uint8), cv2.IMREAD_COLOR)
        for cell in cells
        for output in cell.outputs
        if "image/jpeg" in output.get("data", {})
    ]
    assert pictures
    assert all(picture is not None and picture.std() > 10 for picture in pictures)
    assert path.stat().st_size < MAX_BYTES


@each
def test_links_lead_to_files(path: Path) -> None:
    text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    for link in re.findall(r"\]\((?!\w+:)([^)#]+)", text):
        assert (path.parent / link).is_file(), link


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All of them, run one after the other beside a copy of the examples, as in a fresh checkout."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "examples", folder / "examples")
    (folder / "notebooks").mkdir()
    notebooks = {path.stem: read(path) for path in NOTEBOOKS}
    for notebook in notebooks.values():
        runner.execute(notebook, folder / "notebooks")
    return notebooks


@each
def test_shows_what_is_committed(path: Path, executed: dict[str, Any]) -> None:
    again = code_cells(executed[path.stem])
    assert [kinds(cell) for cell in again] == [kinds(cell) for cell in code_cells(read(path))]


def test_what_they_find_is_right(executed: dict[str, Any]) -> None:
    agreeing, of = figures(executed["1_quick_start"], r"(\d+) of (\d+) matches agree")
    assert agreeing > 0.7 * of > 100
    right, of = figures(executed["2_train_on_your_scene"], r"after: (\d+) of (\d+) matches right")
    assert right > 0.9 * of > 200
    (degrees,) = figures(executed["3_localisation"], r"wrong by ([\d.]+) degrees")
    assert degrees < 0.5
