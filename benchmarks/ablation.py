"""What each part of the default training recipe is worth: the same short run without it, judged on the same benchmarks.

Every run has the same data, steps and seed; the last one has another seed, and so shows what a difference must exceed.
A killed script goes on where it was when it is called again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from capsdesc.io.files import atomic_path

_NO_RELIABILITY = ("model.reliability=false", "model.fine_dim=128", "loss.reliability=0")
_PAPER_LOSSES = ("data.planar_share=0", "loss.contrastive=0", "loss.matching=0", *_NO_RELIABILITY)
_NO_LIGHT = ("data.augmentation.gamma=0", *(f"data.augmentation.{name}=0" for name in ("white_balance", "night")))
_NO_LIGHT += tuple(f"data.augmentation.{name}=0" for name in ("shadow", "lamp", "haze"))
_NO_SENSOR = ("data.augmentation.sensor=0", "data.augmentation.style=0")
_NO_POOR_CAMERA = tuple(f"data.augmentation.{name}=0" for name in ("resample", "blur", "motion", "noise", "jpeg"))
# The changes to the default recipe of each run.
RUNS: dict[str, tuple[str, ...]] = {
    "the whole recipe": (),
    "no homography pairs": ("data.planar_share=0", *_NO_RELIABILITY),
    "no contrastive loss": ("loss.contrastive=0",),
    "no matching loss": ("loss.matching=0",),
    "no reliability": _NO_RELIABILITY,
    "no turns and zooms": (
        "data.turn_sigma=0",
        "data.zoom_sigma=0",
        "data.planar_turn_sigma=0",
        "data.planar_zoom=[1,1]",
    ),
    "no photometric augmentation": ("data.augmentation=null",),
    "no other light": _NO_LIGHT,
    "no other sensor and style": _NO_SENSOR,
    "no poor camera": _NO_POOR_CAMERA,
    "jitter of colours alone": (*_NO_LIGHT, *_NO_SENSOR, *_NO_POOR_CAMERA),
    "a quarter of the keypoints": ("data.keypoints=384",),
    "no averaged weights": ("ema=0",),
    "keypoints of its own": ("model.keypoints=true", "loss.keypoints=1"),
    "the paper's losses and pairs": _PAPER_LOSSES,
    "the same, raw features": (*_PAPER_LOSSES, "model.normalize=false"),
    "the whole recipe, another seed": ("seed=1",),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, evaluate and print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", help="scenes to train on, as capsdesc-train takes them")
    parser.add_argument("--encoder", required=True, help="as of capsdesc-train")
    parser.add_argument("--oxford", type=Path, required=True, help="the eight sequences of Oxford affine")
    parser.add_argument("--strecha", type=Path, required=True, help="the three scenes of Strecha")
    parser.add_argument("--change", type=Path, help="pairs over other light and sensors, in HPatches' layout")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--size", type=int, nargs=2, default=(224, 160), metavar=("W", "H"), help="of training views")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for the runs and table.md")
    options = parser.parse_args(arguments)
    models = {name: options.out / name.replace(" ", "-").replace(",", "").replace("'", "") for name in RUNS}
    for name, model in models.items():
        if not (model / "config.json").is_file():
            print(f"== {name}", flush=True)
            _train(options, model, RUNS[name])
    results = _evaluate(options, models)
    with atomic_path(options.out / "table.md") as path:
        path.write_text(results, encoding="utf-8")
    print(results)
    return 0


def _train(options: argparse.Namespace, model: Path, changes: Sequence[str]) -> None:
    width, height = options.size
    settings = [f"data.width={width}", f"data.height={height}", "validation_pairs=4", "checkpoint_every=25", *changes]
    _run(
        *["capsdesc.training", *options.sources, "--encoder", options.encoder, "-o", str(model)],
        *["--steps", str(options.steps), "--no-tensorboard", "--set", *settings],
    )


def _evaluate(options: argparse.Namespace, models: dict[str, Path]) -> str:
    weights = [argument for model in models.values() for argument in ("--weights", str(model))]
    benchmarks = ["oxford", str(options.oxford), "strecha", str(options.strecha)]
    benchmarks += [] if options.change is None else ["hpatches", str(options.change)]
    _run("capsdesc.commands.main", "eval", *benchmarks, "--methods", "caps", *weights, "-o", str(options.out / "eval"))
    results = json.loads((options.out / "eval" / "results.json").read_text(encoding="utf-8"))["results"]
    head = ["run", "upright, MMA at 3 px", "matches", "all eight, MMA at 3 px", "Strecha, AUC at 5 degrees"]
    head += [] if options.change is None else ["change, MMA at 3 px"]
    rows = [head, ["---"] * len(head)]
    for name, model in models.items():
        oxford, strecha = (_summary(results, kind, model) for kind in ("oxford", "strecha"))
        upright, every = oxford["upright"], oxford["all"]
        row = [name, f"{upright['mma@3']:.3f}", f"{upright['matches']:.0f}", f"{every['mma@3']:.3f}"]
        row.append(f"{strecha['all']['auc@5']:.3f}")
        if options.change is not None:
            row.append(f"{_summary(results, 'hpatches', model)['all']['mma@3']:.3f}")
        rows.append(row)
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _summary(results: Sequence[dict[str, Any]], kind: str, model: Path) -> dict[str, dict[str, float]]:
    (summary,) = (
        row["summary"] for row in results if row["kind"] == kind and row["method_settings"]["source"] == str(model)
    )
    return dict(summary)


def _run(module: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", module, *arguments], check=True)


if __name__ == "__main__":
    sys.exit(main())
