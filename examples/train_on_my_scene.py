"""Fine-tune the descriptors on a scene of one's own and see what two photographs gain that were kept from training.

The scene is a folder with images/ and a model in sparse/, as reconstruct.py makes it; run that first.

python examples/train_on_my_scene.py my_scene -o my_model
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np

from capsdesc import CAPSExtractor, match
from capsdesc.geometry import epipolar_distance, fundamental_from_pose, relative_pose, rotation_error
from capsdesc.io.colmap import find_model, read_model
from capsdesc.training.config import OptimizerConfig, TrainingConfig
from capsdesc.training.dataset import PairDataset, Scene, covisible_pairs
from capsdesc.training.loop import train
from capsdesc.types import Array, PosedImage
from capsdesc.visualization import draw_matches
from capsdesc.weights import resolve, save_pretrained

RIGHT_WITHIN = 3.0  # pixels from the epipolar line


def undistorted(photograph: PosedImage, points: Array) -> Array:
    """Where a lens without distortion would show the (N, 2) points."""
    return np.column_stack([photograph.pixels_to_rays(points), np.ones(len(points))]) @ photograph.K[:2].T


def judge(caps: CAPSExtractor, photograph0: PosedImage, photograph1: PosedImage) -> tuple[str, Array]:
    """How many matches agree with the poses: in words, and as a picture in which the wrong ones are grey."""
    features0, features1 = caps.extract(photograph0.path), caps.extract(photograph1.path)
    points0, points1 = map(np.asarray, match(features0, features1).points(features0, features1))
    R, t = relative_pose(photograph0.R, photograph0.t, photograph1.R, photograph1.t)
    F = fundamental_from_pose(R, t, photograph0.K, photograph1.K)
    right = epipolar_distance(undistorted(photograph0, points0), undistorted(photograph1, points1), F) < RIGHT_WITHIN
    picture = draw_matches(photograph0.path, photograph1.path, points0, points1, right)
    return f"{right.sum()} of {len(right)} matches right, {right.mean():.1%}", picture


def main() -> None:
    parser = argparse.ArgumentParser(description="Fine-tune on a COLMAP scene.")
    parser.add_argument("scene", nargs="?", type=Path, default=Path("scene"), help="(default: %(default)s)")
    parser.add_argument("-o", "--out", type=Path, default=Path("my_model"), help="(default: %(default)s)")
    parser.add_argument("--steps", type=int, default=100, help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=4, help="(default: %(default)s)")
    options = parser.parse_args()

    start = resolve(None)
    optimizer = OptimizerConfig(learning_rate=5e-4)
    config = TrainingConfig(start.config, steps=options.steps, batch_size=options.batch_size, optimizer=optimizer)
    photographs = read_model(find_model(options.scene), options.scene / "images")
    pairs = covisible_pairs(photographs, config.data)
    if len(pairs) == 0:
        raise SystemExit("no two photographs overlap and differ enough")
    # The pair that is hardest to match.
    i, j = max(pairs, key=lambda pair: rotation_error(*(photographs[k].R for k in pair)))
    others = [photograph for k, photograph in enumerate(photographs) if k not in (i, j)]
    scene = Scene(options.scene.name, others, covisible_pairs(others, config.data))
    print(f"{photographs[i].path.name} and {photographs[j].path.name} are kept from training")

    caps = CAPSExtractor()
    before, picture_before = judge(caps, photographs[i], photographs[j])
    print(f"before: {before}")
    network = start.build()
    training_pairs = PairDataset([scene], [], config.data, config.seed, config.steps * config.batch_size)
    train(config, network, training_pairs, None, options.out, device=caps.device)
    save_pretrained(options.out, config.model, network.cpu().state_dict())
    after, picture_after = judge(CAPSExtractor(options.out), photographs[i], photographs[j])
    print(f"after:  {after}")

    picture = np.vstack([picture_before, picture_after])
    cv2.imwrite(str(options.out / "matches.png"), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    print(f"wrote {options.out} with matches.png, before above and after below")


if __name__ == "__main__":
    main()
