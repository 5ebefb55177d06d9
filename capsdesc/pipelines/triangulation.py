"""Scene points of features whose photographs have known poses, by COLMAP's triangulation."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array

from capsdesc.geometry import essential_from_pose, relative_pose, sampson_distance
from capsdesc.io.colmap import import_pycolmap
from capsdesc.io.database import ColmapDatabase
from capsdesc.io.files import recover_folder, replace_folder
from capsdesc.pipelines.match import MatchingConfig, match_listed
from capsdesc.pipelines.retrieval import RetrievalIndex
from capsdesc.types import Array, Features, PosedImage

# Each photograph is matched with so many others.
_NEIGHBOURS = 20
# Largest Sampson distance of a match, in pixels.
_MAX_ERROR = 4.0


def triangulate(
    photographs: Mapping[str, PosedImage],
    load: Callable[[str], Features],
    folder: Path,
    config: MatchingConfig,
    *,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> None:
    """Match photographs and write ``folder/sparse``, a COLMAP model of their features with the poses as they are.

    Matches are kept in ``folder/database.db`` if they agree with the poses. Those that are there are not made again.

    Args:
        photographs: by their names.
        load: the features of each, in numpy, by its name.
        folder: where to write.
        config: how to match.
        device: where to match; ``None``: in numpy.
        progress: whether to show progress on standard error, where that is a terminal.

    Raises:
        ImportError: pycolmap is not installed.
        ValueError: no scene point comes out.
    """
    pycolmap = import_pycolmap()
    pycolmap.logging.minloglevel = int(pycolmap.logging.ERROR)
    pairs = _shared_points(photographs)
    if not pairs:
        pairs = RetrievalIndex.build(list(photographs), load, progress=progress).pairs(_NEIGHBOURS)
    path = folder / "database.db"
    with ColmapDatabase(path) as database:
        _add_photographs(database, photographs, load)
        found = match_listed(
            [pair for pair in pairs if not database.has_matches(*pair)],
            load,
            ratio=config.ratio,
            max_shift=config.max_shift,
            method=config.matcher,
            device=device,
            progress=None if progress else False,
        )
        for pair in found:
            points = [np.asarray(features.keypoints, np.float64) for features in pair.features]
            indices = np.asarray(torch.as_tensor(pair.matches.indices).cpu())
            agree = agree_with_poses(
                photographs[pair.names[0]],
                photographs[pair.names[1]],
                points[0][indices[:, 0]],
                points[1][indices[:, 1]],
            )
            database.write_verified(*pair.names, indices[agree])

    partial = folder / "sparse.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    options = pycolmap.IncrementalPipelineOptions(random_seed=0)
    # Poses are known: two photographs make a point, and small maps have few that three see.
    options.triangulation.ignore_two_view_tracks = False
    model = pycolmap.triangulate_points(
        _posed_model(path, photographs), path, folder, partial, clear_points=True, options=options
    )
    if model.num_points3D() == 0:
        shutil.rmtree(partial)
        raise ValueError(
            f"no scene points come of the matches of {len(photographs)} photographs: do they overlap, and are their "
            "poses right?"
        )
    recover_folder(folder / "sparse")
    replace_folder(partial, folder / "sparse")


def agree_with_poses(
    first: PosedImage, second: PosedImage, points0: Array, points1: Array, max_error: float = _MAX_ERROR
) -> npt.NDArray[np.bool_]:
    """Which matches are near each other's epipolar lines, by known cameras, lens distortion included.

    Args:
        first: a photograph.
        second: another one.
        points0: (M, 2) pixels of the first.
        points1: (M, 2) those that they are matched to.
        max_error: largest Sampson distance, in pixels.

    Returns:
        (M,) bool.
    """
    rays0, rays1 = first.pixels_to_rays(points0).reshape(-1, 2), second.pixels_to_rays(points1).reshape(-1, 2)
    agree = np.asarray(np.isfinite(rays0).all(axis=1) & np.isfinite(rays1).all(axis=1))
    E = essential_from_pose(*relative_pose(first.R, first.t, second.R, second.t))
    focal = (first.camera.mean_focal_length() + second.camera.mean_focal_length()) / 2
    agree[agree] = focal * sampson_distance(rays0[agree], rays1[agree], E) <= max_error
    return agree


def _shared_points(photographs: Mapping[str, PosedImage]) -> list[tuple[str, str]]:
    """Each photograph with those that it shares most scene points with; none where the model has no points."""
    names = list(photographs)
    seen = [posed.point_ids for posed in photographs.values()]
    columns = np.unique(np.concatenate(seen), return_inverse=True)[1]
    rows = np.repeat(np.arange(len(names)), [len(ids) for ids in seen])
    incidence = csr_array((np.ones(len(rows), np.int64), (rows, columns.ravel())), shape=(len(names), len(columns) + 1))
    shared = (incidence @ incidence.T).toarray()
    np.fill_diagonal(shared, 0)
    nearest = np.argsort(-shared, axis=1, kind="stable")[:, :_NEIGHBOURS]
    found = {(min(i, j), max(i, j)) for i, row in enumerate(nearest.tolist()) for j in row if shared[i, j]}
    return [(names[i], names[j]) for i, j in sorted(found)]


def _add_photographs(
    database: ColmapDatabase, photographs: Mapping[str, PosedImage], load: Callable[[str], Features]
) -> None:
    """Cameras, photographs and keypoints that are not there yet; photographs may share a camera."""
    cameras: dict[int, int] = {}
    known = set(database.names)
    for name, posed in photographs.items():
        if name not in known:
            key = id(posed.camera)
            if key not in cameras:
                cameras[key] = database.add_camera(posed.camera)
            database.add_image(name, cameras[key])
        if not database.has_keypoints(name):
            database.write_keypoints(name, load(name).keypoints)


def _posed_model(database: Path, photographs: Mapping[str, PosedImage]) -> Any:
    """A reconstruction without points, with the ids of the database."""
    pycolmap = import_pycolmap()
    model = pycolmap.Reconstruction()
    with pycolmap.Database.open(database) as opened:
        images = opened.read_all_images()
        used = {image.camera_id for image in images}
        for camera in opened.read_all_cameras():
            if camera.camera_id in used:
                model.add_camera_with_trivial_rig(camera)
    for image in images:
        posed = photographs[image.name]
        pose = pycolmap.Rigid3d(np.column_stack([posed.R, posed.t]))
        model.add_image_with_trivial_frame(
            pycolmap.Image(name=image.name, camera_id=image.camera_id, image_id=image.image_id), pose
        )
    return model
