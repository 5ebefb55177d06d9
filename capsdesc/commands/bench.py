"""The command ``capsdesc bench``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capsdesc.commands.options import (
    add_device_option,
    add_json_option,
    add_max_keypoints_option,
    add_seed_option,
    add_weights_option,
    positive,
)

if TYPE_CHECKING:
    from capsdesc.bench.timing import Contest, Settings, Table

DESCRIPTION = """\
Measure time and memory on this machine, each beside a peer in the same run:

  describe  the networks alone, describing given keypoints, detecting and describing
  match     mutual nearest neighbours
  train     optimizer steps
  video     frames a second, each matched with the frame before

Contestants take turns, in rounds that go there and back, after a warm-up. Tables give the median, the quartiles, the
time over that of the table's first row (above 1 is slower), and the peak memory of loading and of one call, measured
in a process of its own.
"""
SECTIONS = ("describe", "match", "train", "video")
METHODS = "caps,caps-keypoints,caps-small,caps-small-keypoints,caps-paper,rootsift,xfeat,disk,aliked"
SMALL = ("caps-small", "caps-small-keypoints")


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Register ``bench`` among the subcommands of ``capsdesc``; its ``run`` takes the parsed arguments.

    Args:
        subparsers: what :meth:`argparse.ArgumentParser.add_subparsers` returned.
    """
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "bench",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sections", nargs="*", type=_section, metavar="SECTION", help="(default: all)")
    parser.add_argument("-o", "--output", type=Path, metavar="OUT", help="folder for results.json and results.md")
    add_json_option(parser)
    add_device_option(parser)
    parser.add_argument("--threads", type=positive, metavar="N", help="of torch and OpenCV (default: torch's)")
    parser.add_argument("--repeats", type=positive, default=10, metavar="N", help="timed calls (default: %(default)s)")
    parser.add_argument("--warmup", type=_natural, default=2, metavar="N", help="calls before (default: %(default)s)")
    parser.add_argument(
        "--max-seconds",
        type=float,
        default=60.0,
        metavar="S",
        help="slow contestants get fewer calls: none after this long in a table (default: %(default)g)",
    )
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    add_seed_option(parser, "all that is random")

    describe = parser.add_argument_group("describe")
    describe.add_argument("--methods", default=METHODS, help="by commas (default: %(default)s)")
    add_weights_option(describe, "of caps and caps-keypoints: ")
    describe.add_argument("--image", type=Path, metavar="PATH", help="resized to each edge (default: synthetic, 4:3)")
    describe.add_argument(
        "--edges", type=_positives, default="640,1024", metavar="PX,...", help="longer edges (default: %(default)s)"
    )
    add_max_keypoints_option(describe)

    match = parser.add_argument_group("match")
    match.add_argument(
        "--sizes", type=_positives, default="2000,10000,50000", metavar="N,...", help="(default: %(default)s)"
    )
    match.add_argument(
        "--max-memory",
        type=float,
        default=4.0,
        metavar="GIB",
        help="leave out who holds a larger matrix of distances (default: %(default)g)",
    )
    match.add_argument("--all", action="store_true", help="time OpenCV's matcher where it takes minutes too")

    train = parser.add_argument_group("train")
    train.add_argument("--pairs", type=positive, default=4, metavar="N", help="per batch (default: %(default)s)")
    train.add_argument(
        "--train-size", type=positive, nargs=2, default=(352, 256), metavar=("W", "H"), help="(default: 352 256)"
    )
    train.add_argument("--queries", type=positive, default=300, metavar="N", help="per pair (default: %(default)s)")

    video = parser.add_argument_group("video")
    video.add_argument(
        "--video-keypoints", type=positive, default=1000, metavar="N", help="of a frame (default: %(default)s)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run ``capsdesc bench``.

    Args:
        arguments: as the parser of :func:`add_parser` gives them.

    Returns:
        The exit code.

    Raises:
        OSError, ValueError, ImportError: weights, the image or a setting are wrong.
    """
    # Here and not above: the other commands need none of this, and start sooner without.
    import torch

    from capsdesc.bench import timing
    from capsdesc.bench.contests import PEER_MODULES
    from capsdesc.devices import usable_device
    from capsdesc.evaluation.report import environment, write_text

    settings = timing.Settings(
        device=str(usable_device(arguments.device)),
        threads=arguments.threads or torch.get_num_threads(),
        repeats=arguments.repeats,
        warmup=arguments.warmup,
        max_seconds=arguments.max_seconds,
        memory=not arguments.no_memory,
        preload=PEER_MODULES,
    )
    machine = environment()
    heading = _heading(machine, settings)
    if not arguments.json:
        print(heading, flush=True)
    tables: list[Table] = []
    for contest in _contests(arguments, settings.device):
        tables.append(timing.hold(contest, settings))
        if not arguments.json:
            print(tables[-1].markdown(), flush=True)
        if arguments.output is not None:
            # After each table: a run that is killed keeps what it has.
            write_text(arguments.output / "results.json", _as_json(arguments, machine, settings, tables))
            write_text(arguments.output / "results.md", "\n".join([heading, *(table.markdown() for table in tables)]))
    if arguments.json:
        print(_as_json(arguments, machine, settings, tables), end="")
    return 0


def _contests(arguments: argparse.Namespace, device: str) -> Iterator[Contest]:
    import tempfile

    from capsdesc.bench import contests, video
    from capsdesc.evaluation.methods import METHODS as EVAL_METHODS

    sections, seed = arguments.sections or SECTIONS, arguments.seed
    methods = arguments.methods.split(",")
    known = ("caps-paper", *SMALL, *EVAL_METHODS)
    for name in methods:
        if name not in known:
            raise ValueError(f"no method is called {name!r}; there are {', '.join(known)}")
    if "describe" in sections:
        images = [contests.image_of_edge(arguments.image, edge, seed) for edge in arguments.edges]
        with tempfile.TemporaryDirectory() as folder:
            if "caps-paper" in methods:
                contests.save_paper_network(Path(folder), seed)
            yield from contests.describe_contests(
                methods,
                images,
                weights=arguments.weights,
                paper_weights=folder,
                max_keypoints=arguments.max_keypoints,
                device=device,
            )
    if "match" in sections:
        yield from contests.match_contests(
            arguments.sizes,
            max_bytes=int(arguments.max_memory * 2**30),
            all_contestants=arguments.all,
            seed=seed,
            device=device,
        )
    if "train" in sections:
        width, height = arguments.train_size
        yield from contests.train_contests(
            pairs=arguments.pairs, width=width, height=height, queries=arguments.queries, seed=seed, device=device
        )
    if "video" in sections:
        yield from video.video_contests(
            contests.image_of_edge(arguments.image, 1024, seed),
            max_keypoints=arguments.video_keypoints,
            weights=arguments.weights,
            device=device,
        )


def _heading(machine: dict[str, Any], settings: Settings) -> str:
    versions = ", ".join(f"{package} {version}" for package, version in machine["versions"].items())
    return (
        "# capsdesc bench\n\n"
        f"- {machine['processor']}, {machine['cpus']} cores, {machine['gpu'] or 'no GPU'}; {machine['platform']}\n"
        f"- device {settings.device}, {settings.threads} threads; {settings.repeats} calls each after "
        f"{settings.warmup}, fewer for who has taken {settings.max_seconds:g} s\n"
        f"- Python {machine['python']}, {versions}\n"
    )


def _as_json(
    arguments: argparse.Namespace, machine: dict[str, Any], settings: Settings, tables: Sequence[Table]
) -> str:
    options = {name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()}
    content = {
        "command": sys.argv,
        "environment": machine,
        "settings": {name: value for name, value in options.items() if name != "run"} | dataclasses.asdict(settings),
        "tables": [table.to_dict() for table in tables],
    }
    return json.dumps(content, indent=1) + "\n"


def _section(text: str) -> str:
    # Not as choices: before Python 3.12, no section at all would not be one of them.
    if text not in SECTIONS:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(SECTIONS)}")
    return text


def _natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def _positives(text: str) -> list[int]:
    return [positive(part) for part in text.split(",")]
