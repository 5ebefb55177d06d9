"""The command ``capsdesc eval``."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from capsdesc.commands.options import (
    add_device_option,
    add_json_option,
    add_max_keypoints_option,
    add_max_shift_option,
    add_ratio_option,
    add_seed_option,
    add_shared_detector_option,
    positive,
)
from capsdesc.evaluation.datasets import LAYOUTS
from capsdesc.evaluation.methods import SHARED_DETECTORS
from capsdesc.matching.context import MIN_SCORE

logger = logging.getLogger(__name__)

DESCRIPTION = """\
Measure descriptors on benchmarks, given as pairs of a kind and a path:

{layouts}

Features are computed once and kept in a cache, so an interrupted run goes on where it was, and another matcher or
estimator setting costs no network again. OUT receives results.json (all figures, every pair, every setting),
results.md (tables) and, with --plot, curves.
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Register ``eval`` among the subcommands of ``capsdesc``; its ``run`` takes the parsed arguments.

    Args:
        subparsers: what :meth:`argparse.ArgumentParser.add_subparsers` returned.
    """
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "eval",
        description=DESCRIPTION.format(layouts="\n".join(f"  {kind:12} {layout}" for kind, layout in LAYOUTS.items())),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("benchmarks", nargs="+", metavar="KIND PATH", help="benchmarks; as many as wanted")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="folder for the results")
    add_json_option(parser)
    parser.add_argument(
        "--methods",
        default="rootsift,caps",
        help="of rootsift, caps, caps-any (any orientation), caps-plain (without reliability), xfeat, disk, aliked, "
        "kornia-sift and kornia-mkd, by commas; aliked-lightglue and disk-lightglue, matched by LightGlue instead of "
        "nearest neighbours; with matches that pass --max-shift, caps-checked, caps-any-checked and "
        "caps-plain-checked; caps-context and caps-context-checked, matched by the one that sees context; and each of "
        "the caps with the network's own keypoints, as caps-keypoints, caps-keypoints-any, ... (default: %(default)s)",
    )
    parser.add_argument(
        "--weights",
        action="append",
        metavar="W",
        help="weights of caps, instead of the bundled ones: a file, a folder or a name; again for more rows, where the "
        "first find the keypoints of --detector caps",
    )
    parser.add_argument("--matcher", metavar="DIR", help="weights of the matcher that sees context (default: bundled)")
    parser.add_argument(
        "--keypoints",
        choices=("shared", "own", "both"),
        default="shared",
        help="describe the same keypoints, compare whole methods with their own, or both (default: %(default)s); a "
        "method that finds none has SIFT's for its own",
    )
    add_shared_detector_option(parser, SHARED_DETECTORS)
    add_max_keypoints_option(parser)
    parser.add_argument("--max-edge", type=positive, default=1024, metavar="PX", help="shrink to (%(default)s)")
    parser.add_argument(
        "--edge", choices=("longer", "shorter"), default="longer", help="which edge that is (default: %(default)s)"
    )
    add_ratio_option(parser)
    add_max_shift_option(parser, more="; of checked methods")
    parser.add_argument(
        "--min-score",
        type=float,
        default=MIN_SCORE,
        metavar="S",
        help="of matches in context: the higher, up to 1, the fewer and the surer (default: %(default)s)",
    )
    parser.add_argument(
        "--estimator",
        choices=("opencv", "poselib", "paper", "fundamental"),
        default="opencv",
        help="of geometry; of poses also paper, the protocol of the CAPS paper, and fundamental, that of the Image "
        "Matching Challenge: without intrinsics (default: %(default)s)",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        default=1.0,
        metavar="PX",
        help="of poses and fundamental matrices (default: %(default)s)",
    )
    parser.add_argument(
        "--homography-threshold", type=float, default=3.0, metavar="PX", help="of homographies (default: %(default)s)"
    )
    add_seed_option(parser, "estimators, --max-pairs and homographies")
    parser.add_argument("--max-pairs", type=positive, metavar="N", help="draw N pairs of every benchmark")
    parser.add_argument(
        "--min-overlap", type=float, default=0.1, metavar="SHARE", help="of colmap and imc pairs (%(default)s)"
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="of pairs, colmap, megadepth and scannet: where the images are",
    )
    parser.add_argument("--cache", type=Path, metavar="DIR", help="features (default: OUT/features)")
    add_device_option(parser)
    parser.add_argument("--plot", action="store_true", help="draw curves, with matplotlib")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run ``capsdesc eval``.

    Args:
        arguments: as the parser of :func:`add_parser` gives them.

    Returns:
        The exit code.

    Raises:
        OSError, ValueError, ImportError: data, weights or a package are missing or wrong.
    """
    # Here and not above: the other commands need none of this, and start sooner without.
    from capsdesc.evaluation import report
    from capsdesc.evaluation.datasets import read_benchmark
    from capsdesc.evaluation.features import FeatureStore
    from capsdesc.evaluation.methods import Describer, features_of, get_methods, get_shared_detector
    from capsdesc.evaluation.protocols import Settings, evaluate

    kinds, paths = arguments.benchmarks[::2], arguments.benchmarks[1::2]
    if len(kinds) != len(paths):
        raise ValueError(f"benchmarks are pairs of a kind and a path; {kinds[-1]!r} has no path")
    settings = Settings(
        max_keypoints=arguments.max_keypoints,
        max_edge=arguments.max_edge,
        edge=arguments.edge,
        ratio=arguments.ratio,
        max_shift=arguments.max_shift,
        estimator=arguments.estimator,
        threshold=arguments.threshold,
        homography_threshold=arguments.homography_threshold,
        seed=arguments.seed,
        detector=arguments.detector,
    )
    methods = get_methods(
        arguments.methods.split(","),
        weights=arguments.weights,
        device=arguments.device,
        matcher=arguments.matcher,
        min_score=arguments.min_score,
        max_shift=arguments.max_shift,
    )
    benchmarks = [
        read_benchmark(
            kind,
            Path(path),
            images=arguments.images,
            min_overlap=arguments.min_overlap,
            max_pairs=arguments.max_pairs,
            seed=arguments.seed,
        )
        for kind, path in zip(kinds, paths, strict=True)
    ]
    names = [benchmark.name for benchmark in benchmarks]
    if len(set(names)) < len(names):
        raise ValueError(f"benchmarks are told apart by the last part of their path, but they are {names}")
    store = FeatureStore(
        arguments.cache or arguments.output / "features",
        max_keypoints=settings.max_keypoints,
        max_edge=settings.max_edge,
        edge=settings.edge,
        detector=get_shared_detector(
            arguments.detector, weights=next(iter(arguments.weights or ()), None), device=arguments.device
        ),
    )
    results = []
    for keypoints in ("shared", "own") if arguments.keypoints == "both" else (arguments.keypoints,):
        for method in methods:
            if keypoints == "shared" and not isinstance(features_of(method), Describer):
                logger.warning("%s cannot describe given keypoints: left out of that table", method.name)
                continue
            if keypoints == "shared" and arguments.detector != "sift" and getattr(method, "needs_frames", False):
                logger.warning(
                    "%s describes keypoints with scales and angles, and those of %s have none: left out of that table",
                    method.name,
                    arguments.detector,
                )
                continue
            results += [evaluate(benchmark, method, keypoints, store, settings) for benchmark in benchmarks]
    report.write_json(results, arguments.output / "results.json", command=sys.argv)
    report.write_markdown(results, arguments.output / "results.md")
    if arguments.plot:
        report.plot(results, arguments.output)
    if arguments.json:
        print((arguments.output / "results.json").read_text(encoding="utf-8"), end="")
    else:
        print(report.markdown(results))
    return 0
