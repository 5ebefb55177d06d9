"""The command ``capsdesc localize``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.contrib.logging import logging_redirect_tqdm

from capsdesc.commands.options import (
    add_json_option,
    add_matching_options,
    add_network_options,
    add_threads_option,
)
from capsdesc.commands.results import say_written, write_picture
from capsdesc.io.files import atomic_path
from capsdesc.io.localization import read_query_cameras, write_poses
from capsdesc.io.locks import sole_use
from capsdesc.pipelines.extract import name_images
from capsdesc.pipelines.localize import LocalizeConfig, LocalizedQuery, localize_images
from capsdesc.pipelines.scene_map import SceneMap, open_map
from capsdesc.pipelines.sfm import sfm_extractor
from capsdesc.visualization import draw_matches

logger = logging.getLogger(__name__)

# Of more matches nothing would be seen in a picture.
_DRAWN = 150


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Register ``localize`` among the subcommands of ``capsdesc``; its ``run`` takes the parsed arguments."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "localize",
        description="Find the poses of photographs in a COLMAP model. Its photographs are described and, unless the "
        "model is of capsdesc sfm with the same settings, matched and triangulated with the poses that it has; this is "
        "kept for the next call. A query that cannot be read or localised is reported, and the exit code is 1.",
    )
    parser.add_argument("model", type=Path, help="folder of a COLMAP model, or one with sparse/")
    parser.add_argument("queries", nargs="+", type=Path, help="image files, or folders that are searched for them")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="folder for poses.txt, summary.json and pictures in matches/"
    )
    parser.add_argument("--images", type=Path, help="folder of the model's photographs (default: images/ beside it)")
    parser.add_argument("--map", type=Path, help="folder in which the map is kept (default: MODEL/map)")
    parser.add_argument(
        "--intrinsics",
        type=Path,
        metavar="FILE",
        help="a line NAME MODEL WIDTH HEIGHT PARAMS... for each query whose camera is known, MODEL being COLMAP's name "
        "of the lens model (default: the focal length is that of EXIF data, refined, or else estimated)",
    )
    parser.add_argument(
        "--neighbours",
        type=int,
        default=LocalizeConfig.neighbours,
        metavar="N",
        help="a query is matched with the N photographs that look most like it (%(default)s)",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        default=LocalizeConfig.threshold,
        metavar="PX",
        help="largest reprojection error of inliers (%(default)s)",
    )
    parser.add_argument(
        "--min-inliers",
        type=int,
        default=LocalizeConfig.min_inliers,
        metavar="N",
        help="a pose with fewer counts as not found (%(default)s)",
    )
    add_matching_options(parser, LocalizeConfig.max_keypoints, LocalizeConfig.ratio)
    parser.add_argument("--no-pictures", action="store_true", help="write no pictures of the matches")
    add_threads_option(parser)
    add_json_option(parser)
    add_network_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run ``capsdesc localize``; returns the exit code: 1 where a query has no pose."""
    config = LocalizeConfig(
        **{field.name: getattr(options, field.name) for field in dataclasses.fields(LocalizeConfig)}
    )
    queries = name_images(options.queries)
    cameras = _cameras(options.intrinsics, queries)
    with logging_redirect_tqdm(), sole_use(options.output, is_folder=True):
        extractor = sfm_extractor(
            options.weights, detector=options.detector, device=options.device, max_size=options.max_size
        )
        scene = open_map(
            extractor,
            options.model,
            options.model / "map" if options.map is None else options.map,
            config,
            images=options.images,
            threads=options.threads,
            progress=True,
        )
        done: list[LocalizedQuery] = []
        try:
            for query in localize_images(
                extractor, scene, queries, config, cameras=cameras, threads=options.threads, progress=True
            ):
                done.append(query)
                _warn(query, config)
                if not options.no_pictures:
                    _draw(query, scene, options.output / "matches")
        finally:  # what is done is kept where the rest is interrupted
            if done:
                summary = _write(done, scene, config, options)
    print(json.dumps(summary) if options.json else _table(done))
    return 0 if all(query.pose is not None for query in done) else 1


def _cameras(path: Path | None, queries: Mapping[str, Path]) -> dict[str, Any]:
    """The cameras that are known."""
    if path is None:
        return {}
    cameras = read_query_cameras(path)
    missing = [name for name in queries if name not in cameras]
    if len(missing) == len(queries):
        raise ValueError(
            f"{path} lists none of the queries, the first of which is {missing[0]}, but {', '.join(list(cameras)[:3])}"
            "; expected names of files, or their paths below the folder that is given as a query"
        )
    if missing:
        logger.warning("%s lists no camera of %d of %d queries, as %s", path, len(missing), len(queries), missing[0])
    return cameras


def _warn(query: LocalizedQuery, config: LocalizeConfig) -> None:
    if isinstance(query.result, str):
        logger.warning("left out %s: %s", query.name, query.result)
    elif query.pose is None:
        logger.warning(
            "no pose of %s: %d inliers of %d keypoints with scene points; at least %d make a pose",
            query.name,
            query.result.inlier_count,
            query.result.keypoint_count,
            config.min_inliers,
        )


def _draw(query: LocalizedQuery, scene: SceneMap, folder: Path) -> None:
    """The inliers with the photograph of the map that has most of them."""
    if query.pose is None or isinstance(query.result, str) or query.result.best_view is None:
        return
    found, view = query.result.found, query.result.best_view
    inliers = np.flatnonzero(query.result.inliers & (found.views == view))
    shown = np.random.default_rng(0).permutation(inliers)[:_DRAWN]
    picture = draw_matches(
        query.path, scene.photographs[found.names[view]].path, found.pixels[shown], found.map_pixels[shown]
    )
    path = folder / f"{query.name}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_picture(path, picture)


def _write(
    done: Sequence[LocalizedQuery], scene: SceneMap, config: LocalizeConfig, options: argparse.Namespace
) -> dict[str, Any]:
    """The poses and the summary, which is returned."""
    poses = {query.name: query.pose for query in done if query.pose is not None}
    summary = {
        "model": str(options.model),
        "photographs": len(scene.photographs),
        "points": len(scene.points),
        "settings": dataclasses.asdict(config),
        "localized": len(poses),
        "queries": [query.summary() for query in done],
    }
    write_poses(options.output / "poses.txt", poses)
    with atomic_path(options.output / "summary.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    for name in ("poses.txt", "summary.json"):
        say_written(options.output / name, options)
    return summary


def _table(done: Sequence[LocalizedQuery]) -> str:
    """A line for each query with a pose: name, inliers, keypoints with scene points, the most helpful photograph."""
    lines = []
    for query in done:
        if query.pose is None or isinstance(query.result, str) or query.result.best_view is None:
            continue
        result, best = query.result, query.result.found.names[query.result.best_view]
        lines.append(f"{query.name}\t{result.inlier_count}\t{result.keypoint_count}\t{best}")
    return "\n".join([*lines, f"localized {len(lines)} of {len(done)}"])
