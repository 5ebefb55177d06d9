"""Data flows one way through the house: no module imports one that stands above it."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import capsdesc

PACKAGE = Path(capsdesc.__file__).parent
# From the ground up. Who stands on one line may import each other.
FLOORS = """
    types checks images devices isolation
    io
    keypoints models weights
    describe
    matching
    geometry
    visualization onnx kornia
    pipelines
    training
    evaluation
    bench
    demo
    commands
"""
FLOOR = {name: floor for floor, names in enumerate(FLOORS.strip().splitlines()) for name in names.split()}
# Doors into the house: what `import capsdesc` and `python -m` open.
DOORS = {"__init__.py", "training/__main__.py"}


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Lines and first names below capsdesc of all that a file imports, inside functions and for types as well."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        names = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}, line {node.lineno}: imports are absolute here"
            names = [f"{node.module}.{name}" for name in names]
        for package, _, below in (name.partition(".") for name in names):
            if package == "capsdesc" and below.split(".")[0] in FLOOR:
                yield node.lineno, below.split(".")[0]


def test_every_module_has_its_floor() -> None:
    assert {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()} == {
        *FLOOR,
        "__init__",
    }


def test_the_drawing_shows_these_floors() -> None:
    drawing = (PACKAGE.parent / "docs" / "images" / "floors.svg").read_text(encoding="utf-8")
    boxes = re.findall(r'<text x="\d+" y="(\d+)" font-size="1[67]" font-weight="600" [^>]*>(\w+)</text>', drawing)
    rows: dict[int, set[str]] = {}
    for y, name in boxes:
        rows.setdefault(int(y), set()).add(name)
    drawn = [rows[y] for y in sorted(rows, reverse=True)]
    assert drawn == [set(names.split()) for names in FLOORS.strip().splitlines()]


def test_no_import_runs_up() -> None:
    files = [path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).as_posix() not in DOORS]
    assert len(files) > 50
    up = [
        f"{path.relative_to(PACKAGE)}, line {line}: {name}"
        for path in files
        for line, name in imported(path)
        if FLOOR[name] > FLOOR[path.relative_to(PACKAGE).parts[0].removesuffix(".py")]
    ]
    assert up == []


def loaded_by(code: str) -> set[str]:
    """The modules in a new process after this code."""
    code = f"import sys; {code}; print(*sys.modules)"
    return set(
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    )


def test_importing_the_package_loads_no_networks_and_no_optimizer() -> None:
    assert loaded_by("import capsdesc").isdisjoint({"scipy.optimize", "torch", "capsdesc.models"})
    public = loaded_by("import capsdesc; [getattr(capsdesc, name) for name in capsdesc.__all__]")
    assert "capsdesc.models" in public
    assert "scipy.optimize" not in public


@pytest.mark.skipif(importlib.util.find_spec("h5py") is None, reason="needs h5py")
def test_reading_a_file_of_features_loads_no_networks(tmp_path: Path) -> None:
    import h5py
    import numpy as np

    path = tmp_path / "features.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("a.jpg")
        for name, shape in (("keypoints", (3, 2)), ("descriptors", (8, 3))):
            group.create_dataset(name, data=np.zeros(shape, np.float32))
        group.create_dataset("image_size", data=[640, 480])
    modules = loaded_by(
        f"from capsdesc.io.hloc import read_features; assert len(read_features({str(path)!r}, 'a.jpg')) == 3"
    )
    assert "capsdesc.types" in modules
    floors = {module.split(".")[1] for module in modules if module.startswith("capsdesc.")}
    assert floors <= {"types", "checks", "images", "devices", "isolation", "io"}
