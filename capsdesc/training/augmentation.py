"""Photometric augmentation: what light, weather, lenses, sensors and compression do to a photograph.

Each view of a pair is changed by a draw of its own, so that the two show the same place in two different worlds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import cv2
import numpy as np

from capsdesc.checks import check_numbers
from capsdesc.types import Array

MAX_JPEG_QUALITY = 69


@dataclasses.dataclass(frozen=True)
class AugmentationConfig:
    """How strongly views are changed. Each view of a pair is changed independently.

    Attributes:
        brightness: factor drawn from 1 - b to 1 + b, not below 0; likewise the next two.
        contrast: factor on the difference from the mean grey.
        saturation: factor on the difference from the pixel's grey.
        hue: turn of the hue circle, at most this share of it.
        grey: probability that colour is dropped.
        style: probability that the view takes over the colours of another photograph: half of the time its low
            frequencies' amplitudes (FDA, Yang and Soatto, CVPR 2020), else the means and deviations of its channels.
        sensor: probability of another sensor: a random mixture of the channels, seen through a random tone curve that
            may turn bright into dark, as between visible, near infrared and thermal images.
        gamma: probability of a power law.
        max_gamma: its largest exponent; the smallest is the inverse.
        white_balance: probability of a colour cast.
        night: probability that light is nearly gone and the sensor's noise is amplified with what is left.
        shadow: probability of a cast shadow with a soft edge.
        lamp: probability of a cone of light.
        haze: probability of haze that thickens across the view.
        resample: probability that the view is shrunk and enlarged again.
        max_resample: by which factor at most.
        blur: probability of a Gaussian blur.
        max_blur_sigma: its largest sigma in pixels.
        motion: probability of a motion blur.
        max_motion: its longest path in pixels.
        noise: probability of Gaussian noise.
        max_noise_sigma: its largest sigma in grey levels.
        jpeg: probability of JPEG compression.
        min_jpeg_quality: its lowest quality.
    """

    brightness: float = 0.5
    contrast: float = 0.5
    saturation: float = 0.5
    hue: float = 0.1
    grey: float = 0.1
    style: float = 0.1
    sensor: float = 0.12
    gamma: float = 0.25
    max_gamma: float = 2.5
    white_balance: float = 0.2
    night: float = 0.06
    shadow: float = 0.15
    lamp: float = 0.1
    haze: float = 0.08
    resample: float = 0.1
    max_resample: float = 3.0
    blur: float = 0.2
    max_blur_sigma: float = 2.5
    motion: float = 0.08
    max_motion: float = 11.0
    noise: float = 0.2
    max_noise_sigma: float = 15.0
    jpeg: float = 0.2
    min_jpeg_quality: int = 5

    def __post_init__(self) -> None:
        check_numbers(self, "brightness", "contrast", "saturation", least=0)
        check_numbers(self, "hue", least=0, most=0.5)
        check_numbers(self, *_CHANCES, least=0, most=1)
        check_numbers(self, "max_gamma", "max_resample", "max_motion", least=1)
        check_numbers(self, "max_blur_sigma", least=0.3)
        check_numbers(self, "max_noise_sigma", least=1)
        check_numbers(self, "min_jpeg_quality", least=0, most=MAX_JPEG_QUALITY)

    @classmethod
    def jitter(cls, **settings: float) -> AugmentationConfig:
        """Only the changes that are named; all probabilities not named are zero."""
        return cls(**{"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, **_OFF, **settings})  # type: ignore[arg-type]


_CHANCES = (
    *("grey", "style", "sensor", "gamma", "white_balance", "night", "shadow", "lamp", "haze"),
    *("resample", "blur", "motion", "noise", "jpeg"),
)
_OFF = dict.fromkeys(_CHANCES, 0.0)


def augment(
    rng: np.random.Generator,
    image: Array,
    config: AugmentationConfig,
    other: Callable[[], Array | None] = lambda: None,
) -> Array:
    """A changed copy of an (h, w, 3) uint8 RGB image.

    Args:
        rng: source of chance.
        image: the view.
        config: what happens how often.
        other: another photograph whose style the view may take over, (h', w', 3) uint8, or None if there is none.
    """

    def happens(chance: float) -> bool:
        return bool(rng.random() < chance)

    if config.hue:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
        hsv[..., 0] += np.uint8(round(rng.uniform(-config.hue, config.hue) * 256) % 256)  # wraps, as hue does
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
    pixels: Array = image.astype(np.float32)
    if happens(config.style) and (photograph := other()) is not None:
        pixels = _take_style(rng, pixels, photograph)
    if happens(config.sensor):
        pixels = _other_sensor(rng, pixels)
    saturation = 0.0 if happens(config.grey) else _factor(rng, config.saturation)
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None]
    pixels = grey + (pixels - grey) * np.float32(saturation)
    if happens(config.shadow):
        pixels = pixels * _shadow(rng, pixels.shape[:2])
    if happens(config.lamp):
        pixels = pixels * _lamp(rng, pixels.shape[:2])
    if happens(config.haze):
        pixels = _haze(rng, pixels)
    mean = float(grey.mean())
    pixels = (mean + (pixels - mean) * _factor(rng, config.contrast)) * _factor(rng, config.brightness)
    if happens(config.gamma):
        exponent = config.max_gamma ** rng.uniform(-1, 1)
        pixels = 255 * np.power(np.clip(pixels, 0, 255) / np.float32(255), np.float32(exponent))
    if happens(config.white_balance):
        pixels = pixels * np.exp(rng.normal(0, 0.2, 3)).astype(np.float32)
    if happens(config.night):
        pixels = _night(rng, pixels)
    if happens(config.resample):
        pixels = _resample(rng, pixels, config.max_resample)
    if happens(config.blur):
        pixels = cv2.GaussianBlur(pixels, (0, 0), rng.uniform(0.3, config.max_blur_sigma))
    if happens(config.motion):
        pixels = _move(rng, pixels, config.max_motion)
    if happens(config.noise):
        pixels = _add_noise(rng, pixels, rng.uniform(1, config.max_noise_sigma))
    changed: Array = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    if happens(config.jpeg):
        quality = int(rng.integers(config.min_jpeg_quality, MAX_JPEG_QUALITY + 1))
        _, encoded = cv2.imencode(".jpg", changed, [cv2.IMWRITE_JPEG_QUALITY, quality])
        changed = np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR))
    return changed


def _factor(rng: np.random.Generator, strength: float) -> float:
    return rng.uniform(max(0.0, 1 - strength), 1 + strength)


def _add_noise(rng: np.random.Generator, pixels: Array, sigma: float) -> Array:
    return np.asarray(pixels + np.float32(sigma) * rng.standard_normal(pixels.shape, dtype=np.float32))


def _take_style(rng: np.random.Generator, pixels: Array, photograph: Array) -> Array:
    """The view in the light of another photograph."""
    height, width = pixels.shape[:2]
    model = cv2.resize(photograph, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
    if rng.random() < 0.5:
        mean, deviation = (np.float32(f(pixels, axis=(0, 1))) for f in (np.mean, np.std))
        other_mean, other_deviation = (np.float32(f(model, axis=(0, 1))) for f in (np.mean, np.std))
        return np.asarray((pixels - mean) * (other_deviation + 5) / (deviation + 5) + other_mean)
    # Amplitudes of the lowest frequencies are of light and colour, phases of what is seen.
    reach = max(1, round(rng.uniform(0.005, 0.03) * min(height, width)))
    seen, wanted = (np.fft.rfft2(values, axes=(0, 1)) for values in (pixels, model))
    amplitude = np.abs(seen)
    for rows in (slice(0, reach + 1), slice(height - reach, height)):
        amplitude[rows, : reach + 1] = np.abs(wanted[rows, : reach + 1])
    changed = np.fft.irfft2(amplitude * np.exp(1j * np.angle(seen)), s=(height, width), axes=(0, 1))
    return np.asarray(changed.astype(np.float32))


def _other_sensor(rng: np.random.Generator, pixels: Array) -> Array:
    """A random mixture of the channels through a random, mostly monotone tone curve, as grey in three channels."""
    mixed = pixels @ rng.normal((0.3, 0.4, 0.3), 0.5).astype(np.float32)
    low, high = np.percentile(mixed[::4, ::4], (1, 99))
    mixed = (mixed - np.float32(low)) / np.float32(max(high - low, 1))
    knots = np.sort(rng.uniform(0, 255, 5))
    knots += rng.normal(0, 25, 5)
    if rng.random() < 0.5:
        knots = knots[::-1]
    toned = np.interp(mixed, np.linspace(0, 1, 5), knots).astype(np.float32)
    return np.asarray(np.repeat(toned[..., None], 3, axis=2))


def _coordinates(shape: tuple[int, ...]) -> tuple[Array, Array]:
    """(1, w) and (h, 1) coordinates from -1 to 1."""
    height, width = shape
    return np.linspace(-1, 1, width, dtype=np.float32)[None], np.linspace(-1, 1, height, dtype=np.float32)[:, None]


def _ramp(rng: np.random.Generator, shape: tuple[int, ...], softness: float) -> Array:
    """(h, w) from 0 to 1 across a random straight edge."""
    x, y = _coordinates(shape)
    angle = rng.uniform(0, 2 * np.pi)
    distance = np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y - np.float32(rng.uniform(-0.7, 0.7))
    return np.asarray(1 / (1 + np.exp(np.clip(-distance / np.float32(softness), -50, 50))))


def _shadow(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """(h, w, 1) factors: a wedge, bounded by one or two edges, gets 20 to 70 % of the light."""
    covered = _ramp(rng, shape, rng.uniform(0.003, 0.1))
    if rng.random() < 0.5:
        covered = covered * _ramp(rng, shape, rng.uniform(0.003, 0.1))
    return np.asarray(1 - np.float32(rng.uniform(0.3, 0.8)) * covered)[..., None]


def _lamp(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """(h, w, 1) factors: brighter around one place, somewhat darker elsewhere."""
    x, y = _coordinates(shape)
    column, row = (np.float32(value) for value in rng.uniform(-1, 1, 2))
    spot = np.exp(-((x - column) ** 2 + (y - row) ** 2) / np.float32(2 * rng.uniform(0.2, 0.8) ** 2))
    rest = np.float32(rng.uniform(0.3, 1.0))
    return np.asarray(rest + np.float32(rng.uniform(0.5, 2.0)) * spot)[..., None]


def _haze(rng: np.random.Generator, pixels: Array) -> Array:
    """Blended with a light grey, more so on one side."""
    thickness = np.float32(rng.uniform(0.3, 0.8)) * _ramp(rng, pixels.shape[:2], rng.uniform(0.2, 1.0))[..., None]
    return np.asarray(pixels * (1 - thickness) + np.float32(rng.uniform(150, 240)) * thickness)


def _night(rng: np.random.Generator, pixels: Array) -> Array:
    """A few per cent of the light, in whole counts of the sensor with noise, amplified again."""
    light = np.float32(rng.uniform(0.04, 0.25))
    counts = np.rint(_add_noise(rng, np.clip(pixels, 0, 255) * light, rng.uniform(0.5, 2.0)))
    return np.asarray(counts * np.float32(rng.uniform(0.3, 1.0) / light))


def _resample(rng: np.random.Generator, pixels: Array, most: float) -> Array:
    height, width = pixels.shape[:2]
    factor = most ** rng.uniform(0.2, 1)
    smaller = (max(1, round(width / factor)), max(1, round(height / factor)))
    shrunk = cv2.resize(pixels, smaller, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(shrunk, (width, height), interpolation=cv2.INTER_LINEAR))


def _move(rng: np.random.Generator, pixels: Array, longest: float) -> Array:
    """Blurred along a straight path."""
    half = rng.uniform(1, max(longest, 1)) / 2
    angle = rng.uniform(0, np.pi)
    reach = int(np.ceil(half))
    path = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    along = np.linspace(-half, half, 8 * reach + 1)
    column, row = (np.rint(reach + along * f(angle)).astype(int) for f in (np.cos, np.sin))
    np.add.at(path, (row, column), 1)
    return np.asarray(cv2.filter2D(pixels, -1, path / path.sum()))
