"""Descriptors in smaller types: what they lose is known, and matches hardly change."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from capsdesc import CAPSExtractor, match
from capsdesc.commands.main import main
from capsdesc.io.hloc import read_features
from capsdesc.io.npz import load_features, save_features
from capsdesc.io.storage import STORES, Store, packed, unpacked
from capsdesc.types import Features

EXAMPLES = Path(__file__).parents[2] / "examples" / "data"
# Largest error as a part of the largest value: half a step of the type.
ERROR = {"float32": 0.0, "float16": 2.0**-11, "int8": 0.5 / 127}


@pytest.mark.parametrize("store", STORES)
def test_values_come_back_within_half_a_step(store: Store) -> None:
    values = np.random.default_rng(0).normal(size=(70, 33)).astype(np.float32)
    stored, step = packed(values, store)
    assert stored.dtype == np.dtype(store)
    found = unpacked(stored, step)
    assert found.dtype == np.float32
    assert np.abs(found - values).max() <= ERROR[store] * np.abs(values).max() * 1.001
    nothing, step = packed(np.zeros((0, 5), np.float32), store)
    assert unpacked(nothing, step).shape == (0, 5)
    zeros, step = packed(np.zeros((2, 5), np.float32), store)
    np.testing.assert_array_equal(unpacked(zeros, step), 0)


def test_another_type_is_refused() -> None:
    with pytest.raises(ValueError, match="store is 'uint8'; expected one of float32, float16, int8"):
        packed(np.zeros((1, 2), np.float32), "uint8")  # type: ignore[arg-type]


def test_archives_are_smaller_and_match_alike(tmp_path: Path) -> None:
    caps = CAPSExtractor(device="cpu")
    features = [caps.extract(EXAMPLES / f"relief_{k}.jpg", 400) for k in (0, 1)]
    exact = {tuple(pair) for pair in np.asarray(match(*features).indices).tolist()}
    sizes = {}
    for store in STORES:
        read: list[Features] = []
        for number, each in enumerate(features):
            path = tmp_path / f"{store}_{number}.npz"
            save_features(path, each, settings="", store=store)
            sizes[store] = path.stat().st_size
            read.append(load_features(path))
            for field in dataclasses.fields(Features):
                if field.name != "descriptors":
                    np.testing.assert_array_equal(getattr(read[-1], field.name), getattr(each, field.name))
        same = {tuple(pair) for pair in np.asarray(match(*read).indices).tolist()}
        assert len(same & exact) >= 0.97 * max(len(same), len(exact)), store
    descriptors = 4 * np.asarray(features[1].descriptors).size
    assert sizes["float32"] - sizes["float16"] == pytest.approx(descriptors / 2, rel=0.01)
    assert sizes["float32"] - sizes["int8"] == pytest.approx(descriptors * 3 / 4, rel=0.01)


def test_the_command_stores_and_does_not_mix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photograph = str(EXAMPLES / "relief_0.jpg")
    command = ["extract", photograph, "--max-keypoints", "50", "--no-derivatives", "--threads", "1", "-o"]
    assert main([*command, str(tmp_path / "small"), "--store", "int8"]) == 0
    path = tmp_path / "small" / "relief_0.jpg.npz"
    with np.load(path) as archive:
        assert archive["descriptors"].dtype == np.int8
        assert json.loads(str(archive["settings"]))["store"] == "int8"
    assert main([*command, str(tmp_path / "exact")]) == 0
    exact = load_features(tmp_path / "exact" / "relief_0.jpg.npz").descriptors
    assert np.abs(load_features(path).descriptors - exact).max() < 0.004
    assert main([*command, str(tmp_path / "small")]) == 1
    assert "store" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "half.h5"), "--store", "float16"]) == 0
    assert np.abs(read_features(tmp_path / "half.h5", "relief_0.jpg").descriptors - exact).max() < 3e-4
    assert main([*command, str(tmp_path / "no.h5"), "--store", "int8"]) == 1
    assert "hloc would take the integers for their values" in capsys.readouterr().err
    assert not (tmp_path / "no.h5").exists()
