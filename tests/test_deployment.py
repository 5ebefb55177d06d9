"""The image and the Space: what they copy exists, what they run is ours, and the page is built."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import gradio
import pytest
import yaml

from capsdesc.commands.main import main
from capsdesc.demo.page import TITLE

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
SPACE = ROOT / "space"


def project() -> dict[str, Any]:
    loaded: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return loaded


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions and their arguments, in order."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines)]


def reaches_docker(name: str) -> bool:
    """Whether .dockerignore, whose last line that fits decides, lets a file of the root through."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    ignored = False
    for line in (line for line in lines if line and not line.startswith("#")):
        if fnmatch(name, line.removeprefix("!")):
            ignored = not line.startswith("!")
    return not ignored


def test_what_the_image_copies_exists() -> None:
    copied = [shlex.split(rest)[:-1] for name, rest in instructions() if name == "COPY"]
    sources = {source for group in copied for source in group}
    for source in sources:
        assert (ROOT / source).exists(), source
        assert reaches_docker(source), source
    assert not reaches_docker("tests")
    # What building the package reads.
    needed = {
        "pyproject.toml",
        "setup.cfg",
        "MANIFEST.in",
        project()["readme"],
        *project()["license-files"],
        "capsdesc",
    }
    assert needed <= sources


def test_the_image_runs_the_command_without_rights(capsys: pytest.CaptureFixture[str]) -> None:
    steps = dict(instructions())
    assert re.fullmatch(r"python:3\.\d+-slim", steps["FROM"])
    python = steps["FROM"].removeprefix("python:").removesuffix("-slim")
    assert f"Programming Language :: Python :: {python}" in project()["classifiers"]
    entry = json.loads(steps["ENTRYPOINT"])
    assert project()["scripts"][entry[0]] == "capsdesc.commands.main:main"
    with pytest.raises(SystemExit) as ended:
        main([*entry[1:], *json.loads(steps["CMD"])])
    assert ended.value.code == 0
    assert "match" in capsys.readouterr().out
    assert steps["USER"] not in ("root", "0")
    names = [name for name, _ in instructions()]
    order = [f"{name} {rest}" for name, rest in instructions()]
    assert any(re.search(rf"^RUN useradd .*\b{steps['USER']}$", line) for line in order[: names.index("USER")])
    assert names.index("USER") < names.index("ENTRYPOINT")


def test_the_image_installs_tested_versions_of_extras_that_exist() -> None:
    (install,) = [rest for name, rest in instructions() if name == "RUN" and rest.startswith("pip ")]
    words = shlex.split(install)
    assert words[words.index("-c") + 1] == "constraints.txt"
    assert set(words[-1].removeprefix(".[").removesuffix("]").split(",")) <= set(project()["optional-dependencies"])
    # Before it is installed, pip must know where PyTorch for the CPU is.
    assert instructions().index(("ARG", "PIP_EXTRA_INDEX_URL")) < instructions().index(("RUN", install))


def test_space() -> None:
    head = yaml.safe_load((SPACE / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    assert (head["sdk"], head["sdk_version"].split(".")[0]) == ("gradio", gradio.__version__.split(".")[0])
    assert f"Programming Language :: Python :: {head['python_version']}" in project()["classifiers"]
    assert len(head["short_description"]) <= 60
    (requirement,) = (SPACE / "requirements.txt").read_text(encoding="utf-8").split()
    extra = requirement.removeprefix("capsdesc[").removesuffix("]")
    assert any(line.startswith("gradio") for line in project()["optional-dependencies"][extra])

    demo = runpy.run_path(str(SPACE / head["app_file"]))["demo"]
    assert isinstance(demo, gradio.Blocks)
    assert demo.title == TITLE
    shown = [block.value for block in demo.blocks.values() if isinstance(block, gradio.Image)]
    assert len(shown) == 2
    assert None not in shown
