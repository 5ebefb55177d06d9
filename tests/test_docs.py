"""What README and documentation show: every snippet runs, or says why it does not; every command exists."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import capsdesc
from capsdesc.commands import main as cli
from capsdesc.commands import prepare
from capsdesc.commands import train as training_cli

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
COMMANDS = {"capsdesc": cli.main, "capsdesc-train": training_cli.main}
LANGUAGES = {"bash", "python", "text", "yaml"}
BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>\w[^\n]*) -->\n)?```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block: the number of the line before its code, and why it is not run, if it is not."""

    line: int
    language: str
    code: str
    reason: str | None

    def lines(self) -> Iterator[str]:
        """Its lines of shell, continued ones and quotes that go over several of them whole."""
        line = ""
        for part in self.code.replace("\\\n", " ").splitlines(keepends=True):
            line += part
            with contextlib.suppress(ValueError):  # a quote is open
                shlex.split(line, comments=True)
                yield line.strip()
                line = ""


def commands(line: str) -> list[list[str]]:
    """The words of the commands in a line of shell, which ``&&`` and ``|`` part."""
    found: list[list[str]] = [[]]
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    for word in lexer:
        if word in ("&&", "|"):
            found.append([])
        else:
            found[-1].append(word)
    return [words for words in found if words]


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(text.count("\n", 0, found.start("code")), found["language"], found["code"], found["reason"])
        for found in BLOCK.finditer(text)
    ]


def runnable(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.language in ("bash", "python") and block.reason is None]


def title(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def parse(words: list[str]) -> None:
    """As the commands parse their options; exits if they refuse them."""
    if words[:2] == ["capsdesc-train", "prepare"]:
        prepare.build_parser().parse_args(words[2:])
    elif words[0] == "capsdesc":
        cli.build_parser(words[1]).parse_args(words[1:])
    else:
        training_cli.build_parser().parse_args(words[1:])


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_no_snippet_is_overlooked(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.count("```") == 2 * len(blocks(page)), (
        "a block that is indented, not closed, or in a language of two words"
    )
    assert {block.language for block in blocks(page)} <= LANGUAGES
    assert text.count("<!-- not run:") == sum(block.reason is not None for block in blocks(page))
    assert not any("pip install" in block.code for block in runnable(page)), "tests install nothing"
    prose = BLOCK.sub("", text)
    assert re.findall(r"\n\n {4,}.*", prose) == [], "code without a fence"


def test_commands_parse() -> None:
    seen, refused = set(), []
    shell = [(page, block) for page in PAGES for block in blocks(page) if block.language == "bash"]
    for page, words in ((page, words) for page, block in shell for line in block.lines() for words in commands(line)):
        if "capsdesc.training" in words:  # by torchrun
            words = ["capsdesc-train", *words[words.index("capsdesc.training") + 1 :]]
        if words[0] not in COMMANDS:
            continue
        seen.add(words[0])
        try:
            parse(words)
        except SystemExit:
            refused.append(f"{title(page)}: {shlex.join(words)}")
    assert seen == set(COMMANDS)
    assert refused == []


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a page's reader is: a copy of the examples, and nothing else."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)], ids=title)
def test_snippets_run(page: Path, folder: Path) -> None:
    namespace: dict[str, Any] = {}
    for block in runnable(page):
        if block.language == "python":
            # Tracebacks have the page's line numbers.
            exec(compile("\n" * block.line + block.code, str(page), "exec"), namespace)
            continue
        for line in block.lines():
            run_shell(line, folder)


def run_shell(line: str, folder: Path) -> None:
    """In this process what is ours, which saves importing torch; the rest in a shell."""
    words, *others = commands(line) or [[""]]
    if words[0] in COMMANDS and not others:
        assert COMMANDS[words[0]](words[1:]) == 0, line
    else:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        subprocess.run(["bash", "-c", line], cwd=folder, env=os.environ | {"PATH": path}, check=True)


# What is complete


def subcommands(program: str) -> list[str]:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit):
        COMMANDS[program](["--help"])
    listed = re.search(r"\{([\w,-]+)\}", printed.getvalue())
    return listed[1].split(",") if listed else []


def test_every_command_has_its_section_and_example() -> None:
    expected = [*(f"capsdesc {name}" for name in subcommands("capsdesc")), "capsdesc-train", "capsdesc-train prepare"]
    text = (DOCS / "commands.md").read_text(encoding="utf-8")
    sections = {section.partition("\n")[0]: section for section in text.split("\n## ")[1:]}
    assert sorted(sections) == sorted(expected)
    for name, section in sections.items():
        assert f"\n{name} " in section or f"\n{name}\n" in section, f"an example of {name}"
        assert f"<!-- help: {name} -->" in section


def test_figures_of_the_settings_are_those_of_the_other_pages() -> None:
    """So that a page that only repeats them does not stay behind."""

    def figures(text: str) -> set[str]:
        return set(re.findall(r"(?<![\d.])0?(\.\d{3})(?!\d)", text)) | set(re.findall(r"\b\d{2}\.\d %", text))

    quoted = figures((DOCS / "settings.md").read_text(encoding="utf-8"))
    measured = figures(
        "".join((DOCS / f"{name}.md").read_text(encoding="utf-8") for name in ("benchmarks", "training"))
    )
    assert len(quoted) > 15
    assert quoted <= measured


def test_every_public_name_is_in_the_reference() -> None:
    pages = "\n".join(page.read_text(encoding="utf-8") for page in (DOCS / "api").glob("*.md"))
    shown = set(re.findall(r"^::: (\S+)", pages, re.MULTILINE))
    for name in capsdesc.__all__:
        assert shown & {f"capsdesc.{name}", f"capsdesc.geometry.{name}"}, name
