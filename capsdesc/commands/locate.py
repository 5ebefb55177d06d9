"""The command ``capsdesc locate``."""

from __future__ import annotations

import argparse
import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from capsdesc.commands.options import add_json_option, add_network_options, add_pair_options, extractor_of
from capsdesc.commands.results import check_picture, say_written, write_picture
from capsdesc.images import read_image
from capsdesc.types import Array
from capsdesc.visualization import draw_located


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Register ``locate`` among the subcommands of ``capsdesc``; its ``run`` takes the parsed arguments."""
    parser = commands.add_parser(
        "locate",
        description="Where are these points of image0 in image1? Prints a line of x0,y0,x1,y1,std for each.",
    )
    add_pair_options(parser)
    parser.add_argument("-o", "--output", type=Path, metavar="PNG", help="picture with circles of one deviation")
    add_json_option(parser)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--points", nargs="+", type=_point, metavar="X,Y", help="points in image0, in pixels")
    where.add_argument("--points-file", type=Path, metavar="CSV", help="a file with x,y on each line")
    add_network_options(parser)
    parser.set_defaults(run=run)


def _point(text: str) -> tuple[float, float]:
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not X,Y") from None
    return x, y


def _read_points(path: Path) -> Array:
    rows = []
    with open(path, newline="", encoding="utf-8-sig") as file:
        for number, row in enumerate(csv.reader(file), start=1):
            if not row:
                continue
            try:
                x, y = (float(value) for value in row)
                if not (math.isfinite(x) and math.isfinite(y)):
                    raise ValueError
            except ValueError:
                raise ValueError(f"{path}, line {number}: expected x,y and found {','.join(row)!r}") from None
            rows.append((x, y))
    return np.asarray(rows, dtype=np.float32).reshape(-1, 2)


def run(options: argparse.Namespace) -> int:
    """Run ``capsdesc locate``; returns the exit code."""
    if options.output is not None:
        check_picture(options.output)
    points = np.asarray(options.points, dtype=np.float32) if options.points else _read_points(options.points_file)
    image0, image1 = read_image(options.image0), read_image(options.image1)
    located = extractor_of(options).locate(points, image0, image1)
    found, std = np.asarray(located.points), np.asarray(located.std)
    if options.json:
        print(json.dumps({"points0": points.tolist(), "points1": found.tolist(), "std": std.tolist()}))
    else:
        print("x0,y0,x1,y1,std")
        for row in np.column_stack([points, found, std]):
            print(",".join(f"{value:.2f}" for value in row))
    if options.output is not None:
        write_picture(options.output, draw_located(image0, image1, points, found, std))
        say_written(options.output, options)
    return 0
