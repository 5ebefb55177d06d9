"""Check what a wheel and an sdist hold: ``python .ci/check_packages.py DIST...``, at the root of the repository."""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path

from capsdesc.weights import DEFAULT

MAX_BYTES = 12_000_000
PICKLES = (".pt", ".pth", ".ckpt")
# What setuptools writes into an sdist.
GENERATED = ("PKG-INFO", "capsdesc.egg-info/")
PROJECT_FILES = {"CHANGELOG.md", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.cfg"}


def package_files() -> set[str]:
    """Files of the package in the working tree."""
    return {path.as_posix() for path in Path("capsdesc").rglob("*") if path.is_file() and path.suffix != ".pyc"}


def wheel_files(path: Path) -> set[str]:
    """Files of a wheel but its metadata, once that is seen to be whole."""
    with zipfile.ZipFile(path) as wheel:
        names = {name for name in wheel.namelist() if not name.endswith("/")}
    metadata = {name for name in names if name.partition("/")[0].endswith(".dist-info")}
    for needed in ("METADATA", "RECORD", "entry_points.txt", "licenses/LICENSE"):
        if not any(name.partition("/")[2] == needed for name in metadata):
            sys.exit(f"{path.name} has no {needed}")
    return names - metadata


def sdist_files(path: Path) -> set[str]:
    """Files of an sdist but the generated ones, once the project's own are seen to be there."""
    with tarfile.open(path) as sdist:
        names = {member.name.partition("/")[2] for member in sdist if member.isfile()}
    if missing := PROJECT_FILES - names:
        sys.exit(f"{path.name} lacks {sorted(missing)}")
    return {name for name in names - PROJECT_FILES if not name.startswith(GENERATED)}


def check(path: Path) -> None:
    """The package's files, whole, and nothing else; exits with what is wrong."""
    files = wheel_files(path) if path.suffix == ".whl" else sdist_files(path)
    model = f"capsdesc/weights/bundled/{DEFAULT}"
    if missing := {"capsdesc/py.typed", f"{model}/config.json", f"{model}/model.safetensors"} - files:
        sys.exit(f"{path.name} lacks {sorted(missing)}")
    if pickles := sorted(name for name in files if name.endswith(PICKLES)):
        sys.exit(f"{path.name} holds {pickles}")
    expected = package_files()
    if files != expected:
        sys.exit(f"{path.name} lacks {sorted(expected - files)}, and should not hold {sorted(files - expected)}")
    size = path.stat().st_size
    if size > MAX_BYTES:
        sys.exit(f"{path.name} has {size:,} bytes; at most {MAX_BYTES:,} are wanted")
    print(f"{path.name}: {len(files)} files of the package, {size:,} bytes")


if __name__ == "__main__":
    packages = [Path(argument) for argument in sys.argv[1:]]
    if sorted(package.suffix for package in packages) != [".gz", ".whl"]:
        sys.exit(f"expected one wheel and one sdist, got {[package.name for package in packages]}")
    for package in packages:
        check(package)
