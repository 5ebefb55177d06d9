"""The command ``capsdesc register``."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from capsdesc.commands.options import (
    add_json_option,
    add_matching_options,
    add_network_options,
    add_seed_option,
    extractor_of,
    positive,
)
from capsdesc.commands.results import check_picture, matrix_lines, say_written, write_blink, write_picture
from capsdesc.geometry import project_homography
from capsdesc.images.stretch import as_seen
from capsdesc.images.warp import INTERPOLATIONS, outline, warp
from capsdesc.io.files import atomic_path
from capsdesc.io.rasters import (
    TIFF_SUFFIXES,
    Georeference,
    Raster,
    check_raster_path,
    has_rasterio,
    is_georeferenced,
    read_raster,
    write_raster,
)
from capsdesc.pipelines.register import MIN_INLIERS, TRANSFORMS, Registration, register
from capsdesc.types import UInt8Array
from capsdesc.visualization import draw_checkerboard

logger = logging.getLogger(__name__)

DESCRIPTION = """\
Find the transform that lays one image on another, and move it there. Whatever the depth and the number of channels of
MOVING, they are kept. Without -o the transform is printed alone. Where no transform is found nothing is written, and
the exit code is 1.
"""
# Pictures are to be looked at.
_PICTURE_EDGE = 2048


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Register ``register`` among the subcommands of ``capsdesc``; its ``run`` takes the parsed arguments."""
    parser: argparse.ArgumentParser = commands.add_parser("register", description=DESCRIPTION)
    parser.add_argument("fixed", type=Path, help="image whose grid of pixels stays")
    parser.add_argument("moving", type=Path, help="image that is moved onto it")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="TIF",
        help="MOVING on the grid of FIXED; .tif holds any depth and number of channels, .png up to 16 bits and alpha. "
        "With pip install 'capsdesc[geo]' a .tif has the georeference of FIXED",
    )
    parser.add_argument(
        "--transform-json", type=Path, metavar="JSON", help="the matrix from MOVING to FIXED in pixels, and its quality"
    )
    parser.add_argument(
        "--picture", type=Path, metavar="PNG", help="both images in a checkerboard or, as .gif, one after the other"
    )
    add_json_option(parser)
    parser.add_argument(
        "--transform",
        choices=TRANSFORMS,
        default=TRANSFORMS[0],
        help="homography: of something flat, or seen from one place; affine: without perspective; similarity: turned, "
        "scaled and shifted (%(default)s)",
    )
    parser.add_argument("--threshold", type=float, default=3.0, metavar="PX", help="of inliers (%(default)s)")
    parser.add_argument(
        "--min-inliers",
        type=positive,
        metavar="N",
        help=f"fewer are no transform ({MIN_INLIERS['nearest']}, or {MIN_INLIERS['context']} of the context matcher)",
    )
    parser.add_argument("--interpolation", choices=INTERPOLATIONS, default="linear", help="(%(default)s)")
    parser.add_argument(
        "--fill", type=float, metavar="VALUE", help="where MOVING shows nothing (default: its nodata value, or 0)"
    )
    add_matching_options(parser)
    parser.add_argument("--backend", choices=("opencv", "poselib"), default="opencv", help="estimator of homographies")
    add_seed_option(parser, "the robust estimator")
    add_network_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run ``capsdesc register``; returns the exit code."""
    if options.picture is not None:
        check_picture(options.picture)
    fixed, moving = read_raster(options.fixed), read_raster(options.moving)
    georeference = None if options.output is None else _georeference(options, fixed)
    if options.output is not None:
        check_raster_path(options.output, moving.pixels, georeference)
    found = register(
        fixed,
        moving,
        extractor_of(options, options.detector),
        transform=options.transform,
        max_keypoints=options.max_keypoints,
        orientation=options.orientation,
        ratio=options.ratio,
        max_shift=options.max_shift,
        method=options.matcher,
        threshold=options.threshold,
        min_inliers=options.min_inliers,
        backend=options.backend,
        seed=options.seed,
    )
    summary = {"fixed": str(options.fixed), "moving": str(options.moving)} | found.summary()
    print(json.dumps(summary) if options.json else _described(found))
    seen = as_seen(fixed.pixels, _PICTURE_EDGE, fixed.nodata) if options.picture is not None else None
    del fixed  # as large as the two that are needed now
    if options.output is not None:
        nodata = moving.nodata if options.fill is None else options.fill
        warped = warp(
            moving.pixels,
            found.H,
            found.fixed_size,
            interpolation=options.interpolation,
            fill=0 if nodata is None else nodata,
            progress=True,
        )
        write_raster(options.output, Raster(warped, georeference, nodata))
        say_written(options.output, options)
        del warped
    if options.transform_json is not None:
        with atomic_path(options.transform_json) as temporary:
            temporary.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        say_written(options.transform_json, options)
    if seen is not None:
        _write_comparison(options.picture, seen, moving, found)
        say_written(options.picture, options)
    return 0


def _georeference(options: argparse.Namespace, fixed: Raster) -> Georeference | None:
    """What the output is to say of where it is; warns where that is less than the fixed image says."""
    if not is_georeferenced(options.fixed):
        return None
    if options.output.suffix.lower() not in TIFF_SUFFIXES:
        logger.warning("%s has a georeference, which %s cannot hold; a .tif could", options.fixed, options.output)
        return None
    if not has_rasterio():
        logger.warning(
            "%s has a georeference, which is not passed on to %s: that needs pip install 'capsdesc[geo]'",
            options.fixed,
            options.output,
        )
    return fixed.georeference


def _described(found: Registration) -> str:
    """For people."""
    return "\n".join(
        [
            f"matches    {len(found.inliers)}",
            f"inliers    {int(found.inliers.sum())}",
            f"residual   {found.residual:.2f} px (RMS of the inliers, in the fixed image)",
            f"{found.transform}, moving to fixed",
            matrix_lines(found.H),
        ]
    )


def _write_comparison(path: Path, fixed: UInt8Array, moving: Raster, found: Registration) -> None:
    """Both images at a size to be looked at; where there is nothing of the moving one, the fixed one alone."""
    height, width = fixed.shape[:2]
    x, y = width / found.fixed_size[0], height / found.fixed_size[1]
    shrink = np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]]) @ found.H
    moved = as_seen(warp(moving.pixels, shrink, (width, height)), nodata=moving.nodata)
    shown = np.zeros((height, width), np.uint8)
    corners = project_homography(shrink, outline(*found.moving_size))
    # Corners may be far outside.
    limit = 2.0**20
    cv2.fillConvexPoly(shown, np.rint(np.clip(corners, -limit, limit)).astype(np.int32), 1)
    inside = cv2.erode(shown, np.ones((3, 3), np.uint8))  # edges are half nothing
    moved = np.where(inside[..., None] == 1, moved, fixed)
    if path.suffix.lower() == ".gif":
        write_blink(path, [fixed, moved])
    else:
        write_picture(path, draw_checkerboard(fixed, moved))
