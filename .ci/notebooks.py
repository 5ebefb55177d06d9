"""Run the notebooks and keep what they show: ``python .ci/notebooks.py [NOTEBOOK...]``, all of them by default."""

from __future__ import annotations

import hashlib
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
# Where a notebook says which code its outputs are of.
KEY = "capsdesc_outputs_of"


def fingerprint(notebook: nbformat.NotebookNode) -> str:
    """Of the code of all cells."""
    code = "\0".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(code.encode()).hexdigest()


def execute(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Run all cells, which get their outputs, in a folder; raises what a cell raises."""
    resources = {"metadata": {"path": str(folder)}}
    # What a cell prints is one output, however it comes.
    NotebookClient(notebook, timeout=300, resources=resources, record_timing=False, coalesce_streams=True).execute()


def without_progress(notebook: nbformat.NotebookNode) -> None:
    """Drop progress bars and logs, which are of one machine and one day."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]) if sys.argv[1:] else sorted(FOLDER.glob("*.ipynb")):
        start = time.monotonic()
        notebook = nbformat.read(path, as_version=4)
        execute(notebook, path.resolve().parent)
        without_progress(notebook)
        notebook.metadata = {key: notebook.metadata[key] for key in ("kernelspec",)} | {
            "language_info": {"name": "python"},
            KEY: fingerprint(notebook),
        }
        nbformat.write(notebook, path)
        print(f"{path.name}: {time.monotonic() - start:.0f} s, {path.stat().st_size:,} bytes")
