"""Photometric augmentation: what light, lenses, sensors and compression do to a photograph."""

from __future__ import annotations

import dataclasses

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
        blur: probability of a Gaussian blur.
        max_blur_sigma: its largest sigma in pixels.
        jpeg: probability of JPEG compression.
        min_jpeg_quality: its lowest quality.
        noise: probability of Gaussian noise.
        max_noise_sigma: its largest sigma in grey levels.
    """

    brightness: float = 0.5
    contrast: float = 0.5
    saturation: float = 0.5
    hue: float = 0.1
    grey: float = 0.1
    blur: float = 0.25
    max_blur_sigma: float = 2.5
    jpeg: float = 0.25
    min_jpeg_quality: int = 5
    noise: float = 0.2
    max_noise_sigma: float = 10.0

    def __post_init__(self) -> None:
        check_numbers(self, "brightness", "contrast", "saturation", least=0)
        check_numbers(self, "hue", least=0, most=0.5)
        check_numbers(self, "grey", "blur", "jpeg", "noise", least=0, most=1)
        check_numbers(self, "max_blur_sigma", least=0.3)
        check_numbers(self, "min_jpeg_quality", least=0, most=MAX_JPEG_QUALITY)
        check_numbers(self, "max_noise_sigma", least=1)


def augment(rng: np.random.Generator, image: Array, config: AugmentationConfig) -> Array:
    """A changed copy of an (h, w, 3) uint8 RGB image."""
    if config.hue:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
        hsv[..., 0] += np.uint8(round(rng.uniform(-config.hue, config.hue) * 256) % 256)  # wraps, as hue does
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
    pixels: Array = image.astype(np.float32)
    saturation = 0.0 if rng.random() < config.grey else _factor(rng, config.saturation)
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None]
    pixels = grey + (pixels - grey) * saturation
    mean = float(grey.mean())
    pixels = (mean + (pixels - mean) * _factor(rng, config.contrast)) * _factor(rng, config.brightness)
    if rng.random() < config.blur:
        pixels = cv2.GaussianBlur(pixels, (0, 0), rng.uniform(0.3, config.max_blur_sigma))
    if rng.random() < config.noise:
        sigma = np.float32(rng.uniform(1, config.max_noise_sigma))
        pixels += sigma * rng.standard_normal(pixels.shape, dtype=np.float32)
    changed: Array = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    if rng.random() < config.jpeg:
        quality = int(rng.integers(config.min_jpeg_quality, MAX_JPEG_QUALITY + 1))
        _, encoded = cv2.imencode(".jpg", changed, [cv2.IMWRITE_JPEG_QUALITY, quality])
        changed = np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR))
    return changed


def _factor(rng: np.random.Generator, strength: float) -> float:
    return rng.uniform(max(0.0, 1 - strength), 1 + strength)
