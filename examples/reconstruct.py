"""Structure from motion: a folder of photographs to cameras and scene points, drawn from above and from the side.

Without photographs it renders some (make_scene.py). localize.py and train_on_my_scene.py go on from the result.

python examples/reconstruct.py my_scene/images -o my_scene
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pycolmap
from make_scene import make_scene
from matplotlib.figure import Figure

from capsdesc.pipelines.sfm import SfmConfig, reconstruct, sfm_extractor
from capsdesc.types import Array


def upright(images: list[pycolmap.Image]) -> Array:
    """(3, 3) rotation of the world to right, down and ahead, as the cameras have them on average."""
    U, _, V = np.linalg.svd(np.mean([image.cam_from_world().rotation.matrix() for image in images], axis=0))
    rotation: Array = U @ np.diag([1, 1, np.linalg.det(U @ V)]) @ V
    return rotation


def outline(image: pycolmap.Image, camera: pycolmap.Camera, depth: float) -> Array:
    """(10, 3) the pyramid of a camera's view in one line."""
    width, height = camera.width, camera.height
    rays = camera.cam_from_img(np.array([[0, 0], [width, 0], [width, height], [0, height]]))
    tips = np.vstack([np.column_stack([rays, np.ones(4)]) * depth, np.zeros(3)])
    return np.asarray(image.cam_from_world().inverse() * tips[[0, 1, 2, 3, 0, 4, 1, 2, 4, 3]])


def draw(model: pycolmap.Reconstruction) -> Figure:
    """The points in their colours and the cameras in red."""
    images = [image for image in model.images.values() if image.has_pose]
    rotation = upright(images)
    points = np.array([point.xyz for point in model.points3D.values()]) @ rotation.T
    colors = np.array([point.color for point in model.points3D.values()]) / 255
    distances = np.linalg.norm(points - np.median(points, axis=0), axis=1)
    near = distances < 5 * np.median(distances)  # wrong points may lie anywhere
    points, colors, depth = points[near], colors[near], 0.5 * np.median(distances)
    cameras = [outline(image, model.cameras[image.camera_id], depth) @ rotation.T for image in images]
    figure = Figure(figsize=(12, 6), layout="constrained")
    views = (("from above", [0, 2], (1, 1)), ("from the side", [2, 1], (1, -1)))
    for panel, (title, axes, signs) in zip(figure.subplots(1, 2), views, strict=True):
        panel.scatter(*(points[:, axes] * signs).T, s=6, c=colors, linewidths=0)
        for camera in cameras:
            panel.plot(*(camera[:, axes] * signs).T, color="red", linewidth=0.8)
        panel.set(title=title, aspect="equal")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description="Reconstruct photographs.")
    parser.add_argument("photographs", nargs="?", type=Path, help="folder (default: OUT/images, rendered)")
    parser.add_argument("-o", "--out", type=Path, default=Path("scene"), help="(default: %(default)s)")
    parser.add_argument("--max-keypoints", type=int, default=2048, help="(default: %(default)s)")
    parser.add_argument("--single-camera", action="store_true", help="one camera took all, without zooming")
    options = parser.parse_args()
    if options.photographs is None:
        make_scene(options.out)
        options.photographs, options.single_camera = options.out / "images", True

    config = SfmConfig(max_keypoints=options.max_keypoints, single_camera=options.single_camera)
    found = reconstruct(options.photographs, options.out, sfm_extractor(), config)
    if not found.models:
        raise SystemExit("no two photographs could be related to each other")
    best = found.models[0]
    print(
        f"{len(best.names)} of {len(found.names)} photographs, {best.points} points, {best.reprojection_error:.2f} px"
    )
    picture = options.out / "reconstruction.png"
    draw(pycolmap.Reconstruction(best.folder)).savefig(picture)
    print(f"wrote {best.folder} and {picture}")


if __name__ == "__main__":
    main()
