"""Hooks of MkDocs: pages that are kept elsewhere in the repository, and what the commands say of their options."""

from __future__ import annotations

import contextlib
import io
import os
import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from capsdesc.commands import main as cli
from capsdesc.commands import train as training_cli

_ROOT = Path(__file__).resolve().parents[1]
_DOCS = _ROOT / "docs"
_CARDS = {f"models/{card.parent.name}.md": card for card in _ROOT.glob("capsdesc/weights/bundled*/**/README.md")}
_INCLUDED = {
    "index.md": _ROOT / "README.md",
    "changelog.md": _ROOT / "CHANGELOG.md",
    "contributing.md": _ROOT / "CONTRIBUTING.md",
    "examples.md": _ROOT / "examples" / "README.md",
    "notebooks.md": _ROOT / "notebooks" / "README.md",
    "photographs.md": _ROOT / "examples" / "data" / "README.md",
    **_CARDS,
}
_PAGES = {source: page for page, source in _INCLUDED.items()}
_COMMANDS = {"capsdesc": cli.main, "capsdesc-train": training_cli.main}

_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)")
_NESTED = re.compile(r"^ +(?=(?:-|\d+\.) )", re.MULTILINE)
_HELP = re.compile(r"<!-- help: (\S+) ?(.*?) -->")


def on_config(config: MkDocsConfig) -> None:
    """List the models' cards in the navigation."""
    for section in config.nav or []:
        if "Model cards" in section:
            section["Model cards"] = sorted(_CARDS)


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages that are kept elsewhere."""
    for page, source in _INCLUDED.items():
        text = _FRONT_MATTER.sub("", source.read_text(encoding="utf-8"))
        files.append(File.generated(config, page, content=text))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links lead to pages where they lead to files of the repository, and put in the help of commands."""
    here = page.file.src_uri
    folder = _INCLUDED.get(here, _DOCS / here).parent

    def to_page(link: re.Match[str]) -> str:
        target = (folder / link[1]).resolve()
        inside = _PAGES.get(target) or (target.relative_to(_DOCS).as_posix() if _DOCS in target.parents else None)
        return link[1] if inside is None else os.path.relpath(inside, PurePosixPath(here).parent)

    markdown = _NESTED.sub(lambda indent: 2 * indent[0], _LINK.sub(to_page, markdown))  # MkDocs nests by four spaces
    return _HELP.sub(lambda command: _help(command[1], command[2].split()), markdown)


def _help(program: str, subcommand: list[str]) -> str:
    os.environ.update(COLUMNS="76", NO_COLOR="1")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        _COMMANDS[program]([*subcommand, "--help"])
    return f"```text\n{printed.getvalue().rstrip()}\n```"
