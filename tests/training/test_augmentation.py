"""Each change of light, weather and sensor does what it is called after."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from capsdesc.training.augmentation import AugmentationConfig, augment
from capsdesc.types import UInt8Array

CHANCES = [
    *("grey", "style", "sensor", "gamma", "white_balance", "night", "shadow", "lamp", "haze"),
    *("resample", "blur", "motion", "noise", "jpeg"),
]


def picture(seed: int = 0, mean: tuple[int, int, int] = (110, 120, 130)) -> UInt8Array:
    """Smooth colours and fine detail, nothing at the ends of the scale."""
    rng = np.random.default_rng(seed)
    layers = [cv2.GaussianBlur(rng.normal(size=(60, 80, 3)), (0, 0), sigma) * sigma for sigma in (0.8, 3, 8)]
    return np.asarray(np.clip(np.array(mean) + 14 * np.sum(layers, axis=0), 30, 220), dtype=np.uint8)


def changed(seed: int, _other: UInt8Array | None = None, /, **settings: float) -> UInt8Array:
    result = augment(np.random.default_rng(seed), picture(), AugmentationConfig.jitter(**settings), lambda: _other)
    return np.asarray(result, dtype=np.uint8)


def correlation(a: Any, b: Any) -> float:
    return float(np.corrcoef(np.ravel(a).astype(float), np.ravel(b).astype(float))[0, 1])


@pytest.mark.parametrize("name", CHANCES)
def test_each_has_a_switch_and_a_seed(name: str) -> None:
    results = [changed(seed, picture(1, (160, 90, 60)), **{name: 1.0}) for seed in range(4)]
    assert all(result.shape == picture().shape and result.dtype == np.uint8 for result in results)
    assert all((result != picture()).mean() > 0.1 for result in results)
    np.testing.assert_array_equal(results[2], changed(2, picture(1, (160, 90, 60)), **{name: 1.0}))
    np.testing.assert_array_equal(changed(0, **{name: 0.0}), picture())


@pytest.mark.parametrize("name", CHANCES)
def test_chances_are_checked(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        AugmentationConfig(**{name: 1.5})  # type: ignore[arg-type]


def test_every_switch_is_off_in_jitter_unless_named() -> None:
    config = AugmentationConfig.jitter(blur=0.5)
    assert config.blur == 0.5
    assert all(
        getattr(config, name) == 0
        for name in (*CHANCES, "brightness", "contrast", "saturation", "hue")
        if name != "blur"
    )


def test_gamma_keeps_the_order_of_greys() -> None:
    for seed in range(5):
        result = changed(seed, gamma=1.0)
        by_level = [result[picture() == level].astype(float) for level in np.unique(picture())]
        assert all(np.ptp(levels) == 0 for levels in by_level)
        assert (np.diff([levels[0] for levels in by_level]) >= 0).all()
    assert len({round(float(changed(seed, gamma=1.0).mean())) for seed in range(8)}) > 4


def test_a_colour_cast_is_a_factor_for_each_channel() -> None:
    result = changed(3, white_balance=1.0)
    unclipped = (result > 0) & (result < 255)
    for channel in range(3):
        seen = unclipped[..., channel]
        factors = result[..., channel][seen] / picture()[..., channel][seen]
        np.testing.assert_allclose(factors, np.median(factors), atol=0.02)


def test_style_takes_over_the_colours_and_keeps_the_detail() -> None:
    other = picture(7, (170, 80, 60))
    for seed in range(8):
        result = changed(seed, other, style=1.0).astype(float)
        towards = np.linalg.norm(result.mean((0, 1)) - other.mean((0, 1)))
        assert towards < 0.3 * np.linalg.norm(picture().mean((0, 1)) - other.mean((0, 1)))
        detail = [values - cv2.GaussianBlur(values, (0, 0), 2.0) for values in (result, picture().astype(float))]
        assert correlation(*detail) > 0.9
    np.testing.assert_array_equal(changed(0, None, style=1.0), picture())


def test_other_sensors_see_grey_and_half_of_them_dark_for_bright() -> None:
    grey = cv2.cvtColor(picture(), cv2.COLOR_RGB2GRAY)
    signs = []
    for seed in range(40):
        result = changed(seed, sensor=1.0)
        np.testing.assert_array_equal(result[..., 0], result[..., 1])
        np.testing.assert_array_equal(result[..., 0], result[..., 2])
        signs.append(correlation(result[..., 0], grey) > 0)
    assert 8 <= sum(signs) <= 32


def test_night_is_dark_and_of_few_counts() -> None:
    results = [changed(seed, night=1.0) for seed in range(6)]
    assert np.mean([result.mean() for result in results]) < 0.8 * picture().mean()
    assert all(len(np.unique(result)) < len(np.unique(picture())) for result in results)


def test_shadows_only_darken_and_leave_some_of_the_view_alone() -> None:
    for seed in range(6):
        factors = changed(seed, shadow=1.0) / picture().astype(float)
        assert factors.max() < 1.02
        assert factors.min() < 0.75


def test_lamps_are_brightest_around_one_place() -> None:
    for seed in range(6):
        factors = cv2.GaussianBlur(changed(seed, lamp=1.0).astype(float).mean(2) / picture().mean(2), (0, 0), 3)
        y, x = np.unravel_index(factors.argmax(), factors.shape)
        rows, columns = np.mgrid[:60, :80]
        away = np.hypot(rows - y, columns - x)
        assert factors[away < 8].mean() > factors[away > 40].mean()


def test_haze_moves_towards_a_light_grey_more_on_one_side() -> None:
    for seed in range(6):
        result = changed(seed, haze=1.0).astype(float)
        assert np.diff(result, axis=1).std() < np.diff(picture().astype(float), axis=1).std()
        assert result.mean() > picture().mean()


def test_resampling_and_motion_lose_detail_but_no_light() -> None:
    for settings in ({"resample": 1.0}, {"motion": 1.0}):
        for seed in range(4):
            result = changed(seed, **settings).astype(float)
            edges, before = (np.abs(np.diff(values, axis=1)).mean() for values in (result, picture().astype(float)))
            assert edges < 0.98 * before
            assert result.mean() == pytest.approx(picture().mean(), abs=1.5)
            assert (
                correlation(cv2.GaussianBlur(result, (0, 0), 6), cv2.GaussianBlur(picture().astype(float), (0, 0), 6))
                > 0.97
            )
