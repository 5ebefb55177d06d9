"""What the programs have in common: ``--version``, how much they say, and the one handler of errors."""

from __future__ import annotations

import argparse
import contextlib
import dis
import logging
import os
import re
import sys
import traceback
from pathlib import Path
from typing import Any

import capsdesc

_PACKAGE = Path(__file__).parents[1]
# Of a traceback as text: the file, and the line of code.
_FRAME = re.compile(r'^  File "(.*?)", line \d+, in .*\n    (.*)$', re.MULTILINE)
# Whoever reads what we write has gone, as `head` does.
_GONE = 128 + 13
_INTERRUPTED = 128 + 2


def add_version_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--version``, which says the program's name and the version of the package."""
    parser.add_argument("--version", action="version", version=f"%(prog)s {capsdesc.__version__}")


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that every command has; :func:`run` reads them."""
    common = parser.add_argument_group("what is said")
    common.add_argument("-q", "--quiet", action="store_true", help="results and errors only: no progress, no warnings")
    common.add_argument("-v", "--verbose", action="store_true", help="say more of what is done")
    common.add_argument("--debug", action="store_true", help="show where an error comes from")


def run(program: str, options: argparse.Namespace, level: int = logging.WARNING) -> int:
    """Run the command that the options choose, by their ``run``, and answer for its errors.

    An error of the user's or of the world, such as a file that is not there, is one line on standard error. What should
    not have happened is ours to mend and keeps its traceback.

    Args:
        program: what messages begin with.
        options: with ``run``, which takes them and returns the exit code, and those of :func:`add_common_options`.
        level: of what is logged where neither ``--quiet`` nor ``--verbose`` is given.

    Returns:
        The exit code: that of the command, or 1 after an error.
    """
    if options.quiet:
        level = logging.ERROR
    elif options.verbose:
        level -= 10
    logging.basicConfig(level=level, format="%(message)s")
    try:
        with contextlib.redirect_stderr(_NoTerminal()) if options.quiet else contextlib.nullcontext():
            code: int = options.run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        # What is left in the buffer would fail again at the end of the process.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _GONE
    except Exception as error:
        if not is_expected(error):
            raise
        if options.debug:
            traceback.print_exc()
        print(f"{program}: {message(error)}", file=sys.stderr)
        return 1
    return code


class _NoTerminal:
    """Standard error, which passes for a file: then nothing shows progress on it."""

    def __init__(self) -> None:
        self._stream = sys.stderr

    def isatty(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def is_expected(error: Exception) -> bool:
    """Whether an error tells of the user's input or of the machine, rather than of a mistake in this package.

    So do errors of the system, and those that a ``raise`` of this package speaks: their messages say what to do. A
    ValueError out of numpy, say, or a KeyError tells that something was not checked.
    """
    import torch  # not above: it takes seconds, and help needs none

    if isinstance(error, OSError | MemoryError | torch.OutOfMemoryError):
        return True
    if not isinstance(error, ValueError | ImportError | ArithmeticError | RuntimeError):
        return False
    if _is_from_worker(error):
        frames = _FRAME.findall(str(error))
        return bool(frames) and Path(frames[-1][0]).is_relative_to(_PACKAGE) and frames[-1][1].startswith("raise ")
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    if place is None or not place.tb_frame.f_globals.get("__name__", "").startswith("capsdesc."):
        return False
    return dis.opname[place.tb_frame.f_code.co_code[place.tb_lasti]] == "RAISE_VARARGS"


def message(error: Exception) -> str:
    """What an error says, in one line; messages that OpenCV or torch had a part in have several."""
    text = str(error)
    if _is_from_worker(error):
        text = text.rpartition(f"\n{type(error).__name__}: ")[2]
    return " ".join(text.split())


def _is_from_worker(error: Exception) -> bool:
    """Whether torch hands an error on from a process that loads data: with the traceback there, as text."""
    return str(error).startswith("Caught ") and " in DataLoader worker process " in str(error).partition("\n")[0]
