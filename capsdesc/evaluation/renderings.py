"""Views made of photographs: moved by a homography, and changed as other light, weather, sensors or cameras would.

Each is a pure function of the photograph and a few numbers, so that a benchmark of them is the same for everybody and
needs no files of its own. The changes are not those of training: what is trained on may be tuned, what is measured by
stays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import cv2
import numpy as np

from capsdesc.training.views import render_homography
from capsdesc.types import Float32Array, UInt8Array

Change = Callable[[np.random.Generator, Float32Array], Float32Array]


@dataclasses.dataclass(frozen=True)
class Rendering:
    """How a view is made of a photograph.

    Attributes:
        homography: the nine numbers of H, row by row, x_view ~ H x_photograph.
        size: width and height of the view.
        change: a key of :data:`CHANGES`.
        seed: of the change.
    """

    homography: tuple[float, ...]
    size: tuple[int, int]
    change: str = "none"
    seed: tuple[int, ...] = (0,)

    def render(self, photograph: UInt8Array) -> UInt8Array:
        """The view as (height, width, 3) uint8 RGB; black where it reaches beyond the photograph."""
        view = render_homography(photograph, np.reshape(self.homography, (3, 3)), self.size)
        rng = np.random.default_rng(self.seed)
        pixels = CHANGES[self.change](rng, np.asarray(view.image, dtype=np.float32))
        changed = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
        return np.where(view.valid[..., None], changed, np.uint8(0))


def _light(rng: np.random.Generator, pixels: Float32Array) -> Float32Array:
    """Another hour of the day: a cast shadow, a bright place, a power law and a colour cast."""
    x, y = _coordinates(pixels)
    shadow = 1 - rng.uniform(0.5, 0.8) * _step(rng, pixels, rng.uniform(0.005, 0.1))
    column, row = rng.uniform(-1, 1, 2)
    lamp = 0.6 + rng.uniform(0.5, 1.5) * np.exp(-((x - column) ** 2 + (y - row) ** 2) / 0.5)
    toned = 255 * np.power(pixels / 255, 2 ** (rng.choice([-1, 1]) * rng.uniform(0.5, 1)))
    return _float32(toned * (shadow * lamp)[..., None] * np.exp(rng.normal(0, 0.2, 3)))


def _night(rng: np.random.Generator, pixels: Float32Array) -> Float32Array:
    """A few per cent of the light, counted by a noisy sensor and amplified again."""
    light = rng.uniform(0.05, 0.12)
    counts = np.rint(pixels * light + rng.normal(0, 1, pixels.shape))
    return _float32(counts * rng.uniform(0.4, 0.8) / light * np.exp(rng.normal(0, 0.15, 3)))


def _weather(rng: np.random.Generator, pixels: Float32Array) -> Float32Array:
    """Haze that thickens across the view and takes the colours away."""
    thickness = (rng.uniform(0.4, 0.6) + 0.2 * _step(rng, pixels, 0.7))[..., None]
    return _float32((0.3 * pixels + 0.7 * _grey(pixels)) * (1 - thickness) + rng.uniform(150, 230) * thickness)


def _sensor(rng: np.random.Generator, pixels: Float32Array) -> Float32Array:
    """Another sensor: one channel, a random mixture, through a tone curve that bends and, half of the time, falls."""
    mixture = pixels @ rng.normal((0.3, 0.4, 0.3), 0.5)
    low, high = np.percentile(mixture, (1, 99))
    steps = rng.uniform(-0.3, 1, 5)  # mostly upwards: what is brighter stays mostly brighter
    curve = np.concatenate([[0], np.cumsum(steps)])
    curve = 20 + 215 * (curve - curve.min()) / max(np.ptp(curve), 1e-6)
    if rng.random() < 0.5:
        curve = 255 - curve
    toned = np.interp((mixture - low) / max(high - low, 1e-6), np.linspace(0, 1, 6), curve)
    return _float32(np.repeat(toned[..., None], 3, axis=2))


def _camera(rng: np.random.Generator, pixels: Float32Array) -> Float32Array:
    """A poor camera: shaken along a line, of few pixels, noisy and strongly compressed."""
    length, angle = rng.uniform(3, 9), rng.uniform(0, np.pi)
    path = np.zeros((11, 11), dtype=np.float32)
    for along in np.linspace(-length / 2, length / 2, 41):
        path[round(5 + along * np.sin(angle)), round(5 + along * np.cos(angle))] += 1 / 41
    height, width = pixels.shape[:2]
    factor = rng.uniform(1.3, 2.5)
    few = cv2.resize(
        cv2.filter2D(pixels, -1, path), (round(width / factor), round(height / factor)), interpolation=cv2.INTER_AREA
    )
    few = few + rng.normal(0, rng.uniform(2, 8), few.shape)
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(15, 40))]
    encoded = cv2.imencode(".jpg", np.clip(np.rint(few), 0, 255).astype(np.uint8), quality)[1]
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    if decoded is None:
        raise RuntimeError("OpenCV could not decode the JPEG that it wrote")
    return _float32(cv2.resize(decoded, (width, height), interpolation=cv2.INTER_LINEAR))


def _several(rng: np.random.Generator, pixels: Float32Array) -> Float32Array:
    """Two of the others, one after the other."""
    for index in np.sort(rng.choice(len(_SINGLE), 2, replace=False)).tolist():
        pixels = np.clip(list(_SINGLE.values())[index](rng, pixels), 0, 255)
    return pixels


# In the order in which light comes to the file.
_SINGLE: Mapping[str, Change] = {
    "light": _light,
    "weather": _weather,
    "night": _night,
    "sensor": _sensor,
    "camera": _camera,
}
CHANGES: Mapping[str, Change] = {"none": lambda rng, pixels: pixels, **_SINGLE, "several": _several}
"""What may happen to a view, by name, for (H, W, 3) pixels from 0 to 255."""


def _float32(pixels: np.typing.ArrayLike) -> Float32Array:
    return np.asarray(pixels, dtype=np.float32)


def _grey(pixels: Float32Array) -> Float32Array:
    return _float32(pixels @ np.array([0.299, 0.587, 0.114]))[..., None]


def _coordinates(pixels: Float32Array) -> tuple[Float32Array, Float32Array]:
    """(1, W) and (H, 1) from -1 to 1."""
    height, width = pixels.shape[:2]
    return _float32(np.linspace(-1, 1, width))[None], _float32(np.linspace(-1, 1, height))[:, None]


def _step(rng: np.random.Generator, pixels: Float32Array, softness: float) -> Float32Array:
    """(H, W) from 0 to 1 across a straight edge somewhere in the view."""
    x, y = _coordinates(pixels)
    angle = rng.uniform(0, 2 * np.pi)
    distance = np.cos(angle) * x + np.sin(angle) * y - rng.uniform(-0.5, 0.5)
    return _float32(1 / (1 + np.exp(np.clip(-distance / softness, -50, 50))))
