"""An extension of griffe, which reads docstrings for the documentation: Sphinx's roles in them become links."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`(~?)([\w.]+)`")
# What announces a literal block, which Markdown needs no announcement for.
_LITERAL = re.compile(r"^ *::$\n", re.MULTILINE)


class Roles(griffe.Extension):
    """``:func:`match``` in the docstring of something in ``capsdesc.matching`` leads to ``capsdesc.matching.match``."""

    def on_object(self, *, obj: griffe.Object, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        """Rewrite the docstring of an object."""
        if obj.docstring is None:
            return

        def link(role: re.Match[str]) -> str:
            short, name = role.groups()
            shown = name.rpartition(".")[2] if short else name
            # Optional: not all that a docstring names is in the reference.
            return f'<autoref optional identifier="{_resolve(obj, name)}"><code>{shown}</code></autoref>'

        obj.docstring.value = _LITERAL.sub("", _ROLE.sub(link, obj.docstring.value))


def _resolve(obj: griffe.Object, name: str) -> str:
    first, dot, rest = name.partition(".")
    try:
        return f"{obj.resolve(first)}{dot}{rest}"
    except griffe.NameResolutionError:
        return name
