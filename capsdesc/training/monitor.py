"""Training to watch in TensorBoard: curves, and pictures of what is found where."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

from capsdesc.describe.search import coarse_to_fine
from capsdesc.models import inverse_temperatures
from capsdesc.training.batches import network_dtype, pair_features
from capsdesc.training.config import TrainingConfig
from capsdesc.training.dataset import PairDataset, collate
from capsdesc.training.supervision import homogeneous
from capsdesc.training.validation import Validation
from capsdesc.types import Array, UInt8Array

Color = tuple[int, int, int]

FOLDER = "tensorboard"
# Steps between points of a curve.
EVERY = 10
# Query points in a picture, and how much larger than the views it is.
DRAWN = 12
ENLARGEMENT = 2
# OpenCV draws at sub-pixel places given as integers with this many fractional bits.
_SHIFT = 4


def is_available() -> bool:
    """Whether TensorBoard is installed."""
    return importlib.util.find_spec("tensorboard") is not None


class Monitor:
    """Writes a run's events where TensorBoard finds them.

    Args:
        out: the run's folder; events go to ``tensorboard/`` in it.
        step: steps done. What a killed run wrote of later ones will not be shown.

    Raises:
        ImportError: TensorBoard is not installed.
    """

    def __init__(self, out: Path, step: int) -> None:
        if not is_available():
            raise ImportError("curves and pictures need TensorBoard: pip install 'capsdesc[train]'")
        from torch.utils.tensorboard import SummaryWriter

        # It takes time to import.
        self._writer: Any = SummaryWriter(str(out / FOLDER), purge_step=step + 1)

    def step(
        self, step: int, parts: Mapping[str, float], learning_rates: Mapping[str, float], pairs_per_second: float
    ) -> None:
        """Curves of the loss and its parts, of each learning rate, and of the speed."""
        for name, value in parts.items():
            self._writer.add_scalar(f"training/{name}", value, step)
        for name, value in learning_rates.items():
            self._writer.add_scalar(f"learning_rate/{name}", value, step)
        self._writer.add_scalar("speed/pairs_per_second", pairs_per_second, step)

    def validation(self, step: int, result: Validation, picture: UInt8Array) -> None:
        """Curves of the validation's figures, and the picture of a pair."""
        for name, value in dataclasses.asdict(result).items():
            self._writer.add_scalar(f"validation/{name}", value, step)
        self._writer.add_scalar("validation/right_matches", result.right_matches, step)
        self._writer.add_scalar("validation/net_matches", result.net_matches, step)
        self._writer.add_image("validation/answers", picture, step, dataformats="HWC")

    def flush(self) -> None:
        """Put everything on disk, so that what a checkpoint covers is never lost."""
        self._writer.flush()

    def close(self) -> None:
        """Flush and close the files."""
        self._writer.close()


@torch.no_grad()
def draw_answers(network: nn.Module, config: TrainingConfig, pairs: PairDataset, device: torch.device) -> UInt8Array:
    """A picture of the first pair: some query points, their epipolar lines, and where they are found.

    Args:
        network: left in the mode it was in.
        config: of its training.
        pairs: held-out pairs.
        device: where the network is.

    Returns:
        (2 * h, 4 * w, 3) uint8 RGB: the first view, and beside it the second. A point, its line and its answer have one
        colour; the circle around an answer has the radius of its standard deviation.
    """
    was_training = network.training
    network.eval()
    batch = collate([pairs[0]])
    features0, features1 = pair_features(network, config.model, batch, device, network_dtype(config.precision, device))
    supervision = batch.supervision.to(device)
    _, fine = coarse_to_fine(supervision.points, features0, features1, inverse_temperatures(network))
    network.train(was_training)

    valid = supervision.valid[0].nonzero()[:, 0]
    chosen = valid[torch.linspace(0, len(valid) - 1, min(DRAWN, len(valid)), device=device).round().long()]
    queries = supervision.points[0, chosen]
    lines = (homogeneous(queries) @ supervision.fundamental[0].T).cpu().numpy()
    answers = fine.expected[0, chosen].cpu().numpy()
    radii = fine.std[0, chosen].square().mean(-1).sqrt().cpu().numpy()
    left, right = (_enlarged(images[0].permute(1, 2, 0).numpy()) for images in (batch.images0, batch.images1))
    for k, color in enumerate(_colors(len(chosen))):
        _draw_line(right, lines[k], color)
        _draw_point(left, queries[k].cpu().numpy(), 0.0, color)
        _draw_point(right, answers[k], float(radii[k]), color)
    return np.hstack([left, right])


def _enlarged(image: UInt8Array) -> UInt8Array:
    return np.asarray(cv2.resize(image, None, fx=ENLARGEMENT, fy=ENLARGEMENT, interpolation=cv2.INTER_LINEAR), np.uint8)


def _colors(count: int) -> list[Color]:
    """Bright colours that differ as much as possible."""
    levels = np.linspace(20, 235, count).astype(np.uint8).reshape(-1, 1)
    palette = cv2.applyColorMap(levels, cv2.COLORMAP_TURBO)[:, 0] if count else levels
    return [(int(r), int(g), int(b)) for b, g, r in palette]


def _fixed(point: Array) -> tuple[int, int]:
    """A pixel of the view as OpenCV takes it in the picture."""
    x, y = np.rint(((point + 0.5) * ENLARGEMENT - 0.5) * (1 << _SHIFT)).astype(int)
    return int(x), int(y)


def _draw_line(canvas: UInt8Array, line: Array, color: Color) -> None:
    a, b, c = line
    if np.hypot(a, b) == 0:  # a homography pair has no lines
        return
    foot = -c * np.array([a, b]) / (a**2 + b**2)
    along = sum(canvas.shape) * np.array([-b, a]) / np.hypot(a, b)
    # The foot of the origin lies far outside where the line hardly crosses the image: start where it is nearest to it.
    height, width = (edge / ENLARGEMENT for edge in canvas.shape[:2])
    center = np.array([width / 2, height / 2])
    foot += along * ((center - foot) @ along) / (along @ along)
    cv2.line(canvas, _fixed(foot - along), _fixed(foot + along), color, 1, cv2.LINE_AA, _SHIFT)


def _draw_point(canvas: UInt8Array, at: Array, radius: float, color: Color) -> None:
    cv2.circle(canvas, _fixed(at), 4 << _SHIFT, color, -1, cv2.LINE_AA, _SHIFT)
    cv2.circle(canvas, _fixed(at), 4 << _SHIFT, (20, 20, 20), 1, cv2.LINE_AA, _SHIFT)
    if radius > 0:
        cv2.circle(canvas, _fixed(at), round(radius * ENLARGEMENT * (1 << _SHIFT)), color, 1, cv2.LINE_AA, _SHIFT)
