"""Localises held-out photographs with several features, in the pipeline of `capsdesc localize`.

Every n-th photograph of a scene is a query, and the others are the map, with the poses that they have. Its features are
matched and triangulated, and each query is matched with the photographs of the map that look most like it. Errors are
those against the pose that the query has in the scene; positions in % of the map's spread, the root mean square
distance of its cameras from their centre.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from capsdesc.evaluation.methods import Pipeline, get_methods
from capsdesc.geometry import rotation_error
from capsdesc.images import read_image
from capsdesc.io.colmap import find_model, read_model
from capsdesc.io.database import pinhole_camera
from capsdesc.io.npz import load_features
from capsdesc.pipelines.extract import feature_settings
from capsdesc.pipelines.localize import CameraOrigin, LocalizeConfig, find_correspondences, guess_camera, localize
from capsdesc.pipelines.scene_map import find_photographs_of, make_map
from capsdesc.pipelines.sfm import sfm_extractor
from capsdesc.pipelines.stores import NpzFolder
from capsdesc.types import Features, PosedImage

OURS = ("caps", "caps-context", "caps-sift")
PEERS = ("rootsift", "aliked", "disk", "xfeat")


class Contestant(NamedTuple):
    """Features, all that they depend on, and how they are matched."""

    extract: Callable[[Path], Features]
    settings: Mapping[str, Any]
    config: LocalizeConfig


class Answer(NamedTuple):
    """Of a query: whether it has a pose, and what is wrong with it, in % of the map's spread and in degrees."""

    found: bool
    position: float
    rotation: float
    inliers: int
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the tables; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "scenes", nargs="+", type=Path, help="folders with images/ and a COLMAP model in sparse/, or of Strecha et al."
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder in which features and maps are kept")
    parser.add_argument("--methods", nargs="+", choices=(*OURS, *PEERS), default=["caps", "rootsift", "aliked"])
    parser.add_argument("--every", type=int, default=4, help="each n-th photograph is a query (%(default)s)")
    parser.add_argument(
        "--sparse", action="store_true", help="the other way round: those are the map, and all others queries"
    )
    parser.add_argument("--folds", type=int, default=1, help="so many choices of queries, each with its map (1)")
    parser.add_argument("--max-keypoints", type=int, default=LocalizeConfig.max_keypoints, help="(%(default)s)")
    parser.add_argument("--ratio", type=float, default=LocalizeConfig.ratio, help="of the ratio test (%(default)s)")
    parser.add_argument("--neighbours", type=int, default=LocalizeConfig.neighbours, help="(%(default)s)")
    parser.add_argument("--threshold", type=float, default=LocalizeConfig.threshold, help="in pixels (%(default)s)")
    options = parser.parse_args(arguments)
    for scene in options.scenes:
        posed = read_scene(scene)
        of = "in the map" if options.sparse else "a query"
        print(f"\n{scene.name}: {len(posed)} photographs, one in {options.every} {of}\n")
        print("| features | camera | localised | within 1 % and 1° | position | rotation | inliers | s a query |")
        print("|---" * 8 + "|")
        for method in options.methods:
            contestant = get_contestant(method, options)
            answers: dict[bool, list[Answer]] = {True: [], False: []}
            for fold in range(options.folds):
                start = (options.every // 2 + fold) % options.every
                chosen = dict(list(posed.items())[start :: options.every])
                others = {name: photograph for name, photograph in posed.items() if name not in chosen}
                mapped, queries = (chosen, others) if options.sparse else (others, chosen)
                folder = options.output / scene.name / method
                kept = folder / f"map {options.every} {'sparse ' if options.sparse else ''}{start}"
                measure(contestant, mapped, queries, folder / "features", kept, answers)
            for known, of_queries in answers.items():
                print(f"| {method} | {'known' if known else 'unknown'} | {row(of_queries)} |", flush=True)
    return 0


def read_scene(folder: Path) -> dict[str, PosedImage]:
    """Posed photographs by name."""
    strecha = folder.parent / "cameras.json"
    if strecha.exists():
        posed = {}
        for camera in json.loads(strecha.read_text())[folder.name]:
            K, R, t = (np.array(camera[key], dtype=np.float64) for key in "KRt")
            lens = pinhole_camera(K, camera["width"], camera["height"])
            path = folder / camera["name"]
            posed[camera["name"]] = PosedImage(path, lens, R, t, np.empty((0, 3)), np.empty(0, np.int64))
        return posed
    images = find_photographs_of(folder)
    return {each.path.relative_to(images).as_posix(): each for each in read_model(find_model(folder), images)}


def get_contestant(method: str, options: argparse.Namespace) -> Contestant:
    """The features of a method; ours as `capsdesc localize` has them."""
    config = LocalizeConfig(
        max_keypoints=options.max_keypoints,
        ratio=options.ratio,
        matcher="context" if method == "caps-context" else "nearest",
        max_shift=LocalizeConfig.max_shift if method in OURS else None,
        neighbours=options.neighbours,
        threshold=options.threshold,
    )
    if method in OURS:
        ours = sfm_extractor(detector="sift" if method == "caps-sift" else None)
        extract = functools.partial(ours.extract, max_keypoints=config.max_keypoints, derivatives=True)
        return Contestant(extract, feature_settings(ours, config.max_keypoints, "upright", True), config)
    (peer,) = get_methods([method])
    assert isinstance(peer, Pipeline)
    settings = {"method": method, **peer.settings, "max_keypoints": config.max_keypoints}
    return Contestant(functools.partial(peer_features, peer, config.max_keypoints), settings, config)


def peer_features(peer: Pipeline, max_keypoints: int, path: Path) -> Features:
    """Features of another method in our form."""
    image = read_image(path)
    points, descriptors = peer.extract(image, max_keypoints)
    return Features(points, descriptors, None, None, None, (image.shape[1], image.shape[0]))


def measure(
    contestant: Contestant,
    mapped: Mapping[str, PosedImage],
    queries: Mapping[str, PosedImage],
    features: Path,
    kept: Path,
    answers: Mapping[bool, list[Answer]],
) -> None:
    """Add the answers with known and with unknown cameras."""
    sink = NpzFolder(features)
    missing = [name for name in (*mapped, *queries) if not sink.path(name).exists()]
    for name in tqdm(missing, desc="features", disable=None):
        found = contestant.extract({**mapped, **queries}[name].path)
        sink.write(name, found, json.dumps(contestant.settings))

    def load(name: str) -> Features:
        return load_features(sink.path(name))

    config = contestant.config
    scene = make_map(mapped, load, kept, config, settings=contestant.settings, device="cpu", progress=True)
    centres = np.array([-posed.R.T @ posed.t for posed in mapped.values()])
    spread = float(np.sqrt(((centres - centres.mean(axis=0)) ** 2).sum(axis=1).mean()))
    for name, true in tqdm(queries.items(), desc="queries", disable=None):
        start = time.perf_counter()
        correspondences = find_correspondences(load(name), scene, config, "cpu")
        for known, of_queries in answers.items():
            camera: tuple[Any, CameraOrigin] = (true.camera, "given") if known else guess_camera(true.path)
            result = localize(correspondences, scene, *camera, config)
            position = rotation = float("inf")
            if result.R is not None and result.t is not None:
                position = 100 * float(np.linalg.norm(result.R.T @ result.t - true.R.T @ true.t)) / spread
                rotation = rotation_error(result.R, true.R)
            seconds = time.perf_counter() - start
            of_queries.append(Answer(result.R is not None, position, rotation, result.inlier_count, seconds))


def row(answers: Sequence[Answer]) -> str:
    """The cells of a table; a query without a pose has an infinite error."""
    right = sum(answer.position <= 1 and answer.rotation <= 1 for answer in answers)
    position, rotation, inliers, seconds = np.median([answer[1:] for answer in answers], axis=0)
    return (
        f"{sum(answer.found for answer in answers)} of {len(answers)} | {right} | {position:.2f} % | {rotation:.3f}° "
        f"| {inliers:.0f} | {seconds:.1f}"
    )


if __name__ == "__main__":
    sys.exit(main())
