"""Visual localisation: the pose of a photograph in a COLMAP model, by its matches with the model's photographs.

The scene is a folder with images/ and a model in sparse/, as reconstruct.py makes it; run that first.

python examples/localize.py my_scene/query.jpg my_scene
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
import pycolmap

from capsdesc import CAPSExtractor, match
from capsdesc.images import read_image
from capsdesc.io.colmap import find_model
from capsdesc.types import Array
from capsdesc.visualization import draw_points


def match_model(
    caps: CAPSExtractor, query: Array, model: pycolmap.Reconstruction, images: Path, max_keypoints: int
) -> tuple[Array, Array]:
    """Keypoints of the query, (M, 2) pixels, and the scene points that they match, (M, 3)."""
    features = caps.extract(query, max_keypoints)
    pairs = set()
    for image in (image for image in model.images.values() if image.has_pose):
        seen = [point for point in image.points2D if point.has_point3D()]
        # COLMAP's pixels begin at the corner of the top-left one.
        descriptors = caps.describe(images / image.name, np.array([point.xy for point in seen]).reshape(-1, 2) - 0.5)
        indices = match(features.descriptors, descriptors).indices
        pairs |= {(keypoint, seen[k].point3D_id) for keypoint, k in indices.tolist()}
    keypoints = np.array(features.keypoints)[[keypoint for keypoint, _ in sorted(pairs)]]
    return keypoints, np.array([model.points3D[point].xyz for _, point in sorted(pairs)]).reshape(-1, 3)


def query_camera(path: Path, model: pycolmap.Reconstruction) -> pycolmap.Camera:
    """As the EXIF data tell; without them, the first camera of the model."""
    camera = pycolmap.infer_camera_from_image(str(path))
    if not camera.has_prior_focal_length:
        width, height = camera.width, camera.height
        camera = next(iter(model.cameras.values()))
        camera.rescale(width, height)
    return camera


def main() -> None:
    parser = argparse.ArgumentParser(description="Find the pose of a photograph in a COLMAP model.")
    parser.add_argument("query", nargs="?", type=Path, default=Path("scene/query.png"), help="(default: %(default)s)")
    parser.add_argument("scene", nargs="?", type=Path, default=Path("scene"), help="(default: %(default)s)")
    parser.add_argument("-o", "--output", default="localized.png", help="picture (default: %(default)s)")
    parser.add_argument("--max-keypoints", type=int, default=2048, help="of the query (default: %(default)s)")
    parser.add_argument("--threshold", type=float, default=4.0, help="of inliers, pixels (default: %(default)s)")
    options = parser.parse_args()

    query = read_image(options.query)
    model = pycolmap.Reconstruction(find_model(options.scene))
    keypoints, points = match_model(CAPSExtractor(), query, model, options.scene / "images", options.max_keypoints)
    camera = query_camera(options.query, model)
    ransac = pycolmap.RANSACOptions(max_error=options.threshold, random_seed=0)
    estimation = pycolmap.AbsolutePoseEstimationOptions(ransac=ransac)
    found = pycolmap.estimate_and_refine_absolute_pose(keypoints + 0.5, points, camera, estimation)
    if found is None:
        raise SystemExit(f"no pose found from {len(points)} matches")
    pose, inliers = found["cam_from_world"], found["inlier_mask"]
    projected = camera.img_from_cam(pose * points[inliers]) - 0.5
    error = np.median(np.linalg.norm(projected - keypoints[inliers], axis=1))
    print(f"{len(points)} matches, {inliers.sum()} inliers, median reprojection error {error:.2f} px")
    print("R", pose.rotation.matrix(), "t", pose.translation, sep="\n")

    cv2.imwrite(options.output, cv2.cvtColor(draw_points(query, projected), cv2.COLOR_RGB2BGR))
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
