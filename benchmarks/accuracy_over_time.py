"""Draws accuracy over time: results of ``capsdesc eval`` and ``capsdesc bench``, one mark a method."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

# How a table of times calls a method, how a table of accuracy does, and what people do.
METHODS = {
    "caps-keypoints": ("caps-keypoints:compact", "capsdesc"),
    "caps-small-keypoints": ("caps-keypoints:small", "capsdesc small"),
    "xfeat": ("xfeat", "XFeat"),
    "aliked": ("aliked", "ALIKED"),
    "disk": ("disk", "DISK"),
    "rootsift": ("rootsift", "RootSIFT"),
    "orb": ("orb", "ORB"),
}
OURS = ("caps-keypoints", "caps-small-keypoints")
# Where labels are, in points from their marks: these lie close together.
OFFSETS = {"caps-small-keypoints": (-102, -4), "rootsift": (-26, 9)}
PANELS = (
    ("oxford", "upright", "mma@3", "Oxford affine, upright: MMA at 3 px"),
    ("strecha", "all", "auc@5", "Strecha: pose AUC at 5 degrees"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the picture; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", type=Path, help="results.json of capsdesc bench describe")
    parser.add_argument("eval", type=Path, help="results.json of capsdesc eval, oxford and strecha, own keypoints")
    parser.add_argument("--size", default="640 x 480", help="of the image that was timed (default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the picture")
    options = parser.parse_args(arguments)
    times = json.loads(options.bench.read_text(encoding="utf-8"))
    accuracy = json.loads(options.eval.read_text(encoding="utf-8"))
    figure = draw(times, accuracy["results"], options.size)
    figure.savefig(options.output, dpi=110)
    print(f"wrote {options.output}")
    return 0


def draw(times: dict[str, Any], results: Sequence[dict[str, Any]], size: str) -> Figure:
    """A panel for each benchmark: time along x, accuracy along y.

    Raises:
        ValueError: no table of times is of detecting and describing an image of this size.
    """
    tables = [table for table in times["tables"] if table["title"].startswith("detect and describe")]
    tables = [table for table in tables if table["title"].endswith(size)]
    if not tables:
        raise ValueError(f"no table of detecting and describing at {size}; there are {_titles(times)}")
    milliseconds = {row["name"]: 1e3 * row["median"] for row in tables[0]["rows"]}
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axes = figure.subplots(1, len(PANELS))
    for panel, (kind, group, metric, title) in zip(axes, PANELS, strict=True):
        scores = {row["method"]: row["summary"][group][metric] for row in results if row["kind"] == kind}
        for timed, (judged, label) in METHODS.items():
            if timed not in milliseconds or judged not in scores:
                continue
            ours = timed in OURS
            x, y = milliseconds[timed], scores[judged]
            panel.plot(x, y, "o", markersize=9 if ours else 7, color="#c62828" if ours else "#546e7a")
            panel.annotate(
                label,
                (x, y),
                xytext=OFFSETS.get(timed, (7, 4)),
                textcoords="offset points",
                weight="bold" if ours else None,
            )
        panel.set_xscale("log")
        panel.margins(x=0.22, y=0.12)
        panel.set_title(title)
        panel.set_xlabel(f"ms to detect and describe {size}, {times['settings']['threads']} threads")
        panel.grid(alpha=0.3, which="both")
    return figure


def _titles(times: dict[str, Any]) -> str:
    return "; ".join(table["title"] for table in times["tables"])


if __name__ == "__main__":
    sys.exit(main())
