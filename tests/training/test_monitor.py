"""Curves and pictures, read back as TensorBoard reads them."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import PIL.Image
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_training import arguments, log_rows, make_scene

from capsdesc.commands.train import main
from capsdesc.training.config import TrainingConfig
from capsdesc.training.dataset import DataConfig, PairDataset
from capsdesc.training.monitor import DRAWN, ENLARGEMENT, FOLDER, Monitor, draw_answers
from capsdesc.training.start import read_scenes
from capsdesc.weights import resolve

Array = npt.NDArray[Any]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_scene(tmp_path_factory.mktemp("scene") / "wall").folder


def events(out: Path) -> EventAccumulator:
    return EventAccumulator(str(out / FOLDER)).Reload()


def curve(read: EventAccumulator, name: str) -> dict[int, float]:
    return {event.step: event.value for event in read.Scalars(name)}


def test_a_run_can_be_watched(scene: Path, tmp_path: Path) -> None:
    assert main(arguments(scene, tmp_path, "validate_every=6", "optimizer.encoder_factor=0.5", steps=12)) == 0
    read, rows = events(tmp_path), {row["step"]: row for row in log_rows(tmp_path)}
    for name, value in rows[12].items():
        if name not in ("step", "precision", "validation"):
            shown = curve(read, f"training/{name}")
            assert sorted(shown) == [10, 12]
            assert shown[12] == pytest.approx(value, abs=2e-5)
            assert shown[10] == pytest.approx(rows[10][name], abs=2e-5)
    for name, value in rows[6]["validation"].items():
        assert sorted(curve(read, f"validation/{name}")) == [6, 12]
        assert curve(read, f"validation/{name}")[6] == pytest.approx(value, rel=1e-5)
    judged = rows[12]["validation"]
    right = curve(read, "validation/right_matches")[12]
    assert right == pytest.approx(judged["matches"] * judged["match_precision"], rel=1e-5)
    net = curve(read, "validation/net_matches")[12]
    assert net == pytest.approx(judged["matches"] * (2 * judged["match_precision"] - 1), rel=1e-5)
    rates = {name: curve(read, f"learning_rate/{name}")[10] for name in ("encoder", "decoder", "temperature")}
    assert rates["encoder"] == pytest.approx(0.5 * rates["decoder"], rel=1e-5)
    assert rates["temperature"] == pytest.approx(5 * rates["decoder"], rel=1e-5)
    assert all(value > 0 for value in curve(read, "speed/pairs_per_second").values())
    pictures = read.Images("validation/answers")
    assert [picture.step for picture in pictures] == [6, 12]
    shown_picture = np.asarray(PIL.Image.open(io.BytesIO(pictures[-1].encoded_image_string)))
    assert shown_picture.shape == (64 * ENLARGEMENT, 2 * 96 * ENLARGEMENT, 3)


def test_what_a_killed_run_wrote_too_much_is_not_shown(tmp_path: Path) -> None:
    for done, value in ((0, 1.0), (10, 2.0)):
        monitor = Monitor(tmp_path, done)
        for step in (10, 20) if done == 0 else (20, 30):
            monitor.step(step, {"loss": value}, {}, 1.0)
        monitor.close()
    assert curve(events(tmp_path), "training/loss") == {10: 1.0, 20: 2.0, 30: 2.0}


def test_nothing_is_written_when_it_is_not_wanted(scene: Path, tmp_path: Path) -> None:
    assert main([*arguments(scene, tmp_path, steps=1), "--no-tensorboard"]) == 0
    assert not (tmp_path / FOLDER).exists()


def test_without_tensorboard(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert main(arguments(scene, tmp_path, steps=1)) == 0
    assert not (tmp_path / FOLDER).exists()
    assert main([*arguments(scene, tmp_path / "wanted", steps=1), "--tensorboard"]) == 1
    assert "pip install 'capsdesc[train]'" in capsys.readouterr().err


def test_lines_and_points_are_drawn_where_they_are(scene: Path, model_folders: Mapping[str, Path]) -> None:
    weights = resolve(str(model_folders["compact"]))
    data = DataConfig(width=192, height=144, queries=40, planar_share=0.0, augmentation=None)
    config = TrainingConfig(model=weights.config, data=data, precision="float32")
    pairs = PairDataset(read_scenes(scene, data), [], data, seed=0, length=1)
    picture = draw_answers(weights.build(), config, pairs, torch.device("cpu"))
    assert picture.shape == (144 * ENLARGEMENT, 2 * 192 * ENLARGEMENT, 3)
    pair = pairs[0]
    left, right = np.hsplit(picture, 2)

    def near_drawn(shown: Array, image: Array) -> Array:
        """Pixels of the picture at most one from where something was drawn over the view."""
        plain = cv2.resize(np.ascontiguousarray(image.transpose(1, 2, 0)), None, fx=ENLARGEMENT, fy=ENLARGEMENT)
        return np.asarray(cv2.dilate((plain != shown).any(2).astype(np.uint8), np.ones((3, 3))) > 0)

    valid = pair.points[pair.valid]
    chosen = valid[np.rint(np.linspace(0, len(valid) - 1, DRAWN)).astype(int)]
    drawn_left, drawn_right = near_drawn(left, pair.image0), near_drawn(right, pair.image1)
    assert drawn_left.mean() < 0.05
    assert drawn_right.mean() < 0.5
    for x, y in np.rint((chosen + 0.5) * ENLARGEMENT - 0.5).astype(int):
        assert drawn_left[y, x]
    columns = np.arange(192.0)
    on_line = []
    for a, b, c in np.c_[chosen, np.ones(len(chosen))] @ pair.fundamental.T:
        rows = -(a * columns + c) / b
        inside = (rows >= 1) & (rows <= 142)
        places = (np.stack([columns, rows], axis=1)[inside] + 0.5) * ENLARGEMENT - 0.5
        column, row = np.rint(places).astype(int).T
        on_line.append(drawn_right[row, column])
    assert len(np.concatenate(on_line)) > 500
    assert np.concatenate(on_line).mean() > 0.99
