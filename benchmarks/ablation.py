"""What each part of the recipe from an ImageNet encoder is worth: the same short run without it, judged alike.

All that a run's name does not say is the same in all of them; that of another seed shows what a difference must exceed.
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
_NO_KEYPOINTS = ("model.keypoints=false", "loss.keypoints=0")
_PAPER_LOSSES = ("data.planar_share=0", "loss.contrastive=0", "loss.matching=0", *_NO_RELIABILITY, *_NO_KEYPOINTS)
_NO_LIGHT = tuple(
    f"data.augmentation.{name}=0" for name in ("gamma", "white_balance", "night", "shadow", "lamp", "haze")
)
_NO_SENSOR = ("data.augmentation.sensor=0", "data.augmentation.style=0")
_NO_POOR_CAMERA = tuple(f"data.augmentation.{name}=0" for name in ("resample", "blur", "motion", "noise", "jpeg"))


def runs(steps: int, width: int, height: int) -> dict[str, tuple[str, ...]]:
    """The changes to the recipe of each run of so many steps with views of this size."""
    return {
        "the whole recipe": (),
        "another seed": ("seed=1",),
        "half of the steps": (f"steps={steps // 2}",),
        "views of half the size": (f"data.width={width // 2}", f"data.height={height // 2}"),
        "no other light": _NO_LIGHT,
        "no other sensor and style": _NO_SENSOR,
        "no poor camera": _NO_POOR_CAMERA,
        "jitter of colours alone": (*_NO_LIGHT, *_NO_SENSOR, *_NO_POOR_CAMERA),
        "no photometric augmentation": ("data.augmentation=null",),
        "no turns and zooms": (
            "data.turn_sigma=0",
            "data.zoom_sigma=0",
            "data.planar_turn_sigma=0",
            "data.planar_zoom=[1,1]",
        ),
        "no homography pairs": ("data.planar_share=0", *_NO_RELIABILITY, *_NO_KEYPOINTS),
        "no contrastive loss": ("loss.contrastive=0",),
        "no matching loss": ("loss.matching=0",),
        "a quarter of the keypoints to match": ("data.keypoints=384",),
        "no reliability": _NO_RELIABILITY,
        "no keypoints of its own": _NO_KEYPOINTS,
        "no averaged weights": ("ema=0",),
        "the paper's losses and pairs": _PAPER_LOSSES,
        "the same, raw features": (*_PAPER_LOSSES, "model.normalize=false"),
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
    parser.add_argument("--only", nargs="+", default=[], metavar="RUN", help="these runs alone, by their names")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for the runs and table.md")
    options = parser.parse_args(arguments)
    changes = runs(options.steps, *options.size)
    unknown = sorted(set(options.only) - set(changes))
    if unknown:
        parser.error(f"--only {', '.join(unknown)}: there are {', '.join(changes)}")
    models = {
        name: options.out / name.replace(" ", "-").replace(",", "").replace("'", "")
        for name in changes
        if name in (options.only or changes)
    }
    for name, model in models.items():
        if not (model / "config.json").is_file():
            print(f"== {name}", flush=True)
            _train(options, model, changes[name])
    results = _evaluate(options, models)
    with atomic_path(options.out / "table.md") as path:
        path.write_text(results, encoding="utf-8")
    print(results)
    return 0


def _train(options: argparse.Namespace, model: Path, changes: Sequence[str]) -> None:
    width, height = options.size
    settings = [f"steps={options.steps}", f"data.width={width}", f"data.height={height}"]
    settings += ["validation_pairs=4", "checkpoint_every=25", *changes]
    _run(
        *["capsdesc.training", *options.sources, "--config", "compact", "--encoder", options.encoder],
        *["-o", str(model), "--no-tensorboard", "--set", *settings],
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
        row["summary"]
        for row in results
        if row["kind"] == kind and row["method_settings"]["source"] == str(model.resolve())
    )
    return dict(summary)


def _run(module: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", module, *arguments], check=True)


if __name__ == "__main__":
    sys.exit(main())
