"""Training of the matcher: its labels against numpy, whole runs of the command on a small synthetic reconstruction."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import save_file
from test_training import make_scene

from capsdesc import CAPSExtractor, CAPSMatcher
from capsdesc.commands.train import main
from capsdesc.geometry import fundamental_from_pose
from capsdesc.models.context import ContextConfig, ContextNetwork
from capsdesc.training.dataset import PairDataset
from capsdesc.training.loop import Outcome
from capsdesc.training.matcher.config import MatcherTrainingConfig
from capsdesc.training.matcher.learning import labels, matcher_loss, train_matcher, validate_matcher
from capsdesc.training.matcher.pairs import (
    DescribedPair,
    candidate_errors,
    candidates_of,
    changed,
    describe_pairs,
    read_pair,
)
from capsdesc.training.start import read_scenes

Array = npt.NDArray[Any]

SIZE = (320, 240)
NETWORK = ContextConfig(descriptor="abc", dimensions=17, width=16, blocks=2, tokens=8, neighbours=4)
H = np.array([[1.02, 0.05, -6], [-0.04, 0.97, 9], [1e-4, -5e-5, 1]])
K = np.array([[300.0, 0, 160], [0, 300, 120], [0, 0, 1]])
R, T = np.array([[0.995, 0, 0.0998], [0, 1, 0], [-0.0998, 0, 0.995]]), np.array([-0.4, 0.05, 0.1])
FUNDAMENTAL = fundamental_from_pose(R, T, K, K)


def move(points: Array) -> Array:
    moved = np.c_[points, np.ones(len(points))] @ H.T
    return np.asarray(moved[:, :2] / moved[:, 2:])


def unit(rows: Array) -> Array:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def planar_pair(seed: int, count: int = 80, noise: float = 0.5) -> DescribedPair:
    """Half of the keypoints are found again; descriptors are so noisy that many nearest neighbours are wrong."""
    rng = np.random.default_rng(seed)
    points = rng.uniform((0, 0), (319, 239), (count, 2))
    looks = unit(rng.normal(size=(count, 16)))
    again = move(points)
    again[count // 2 :] = rng.uniform((0, 0), (319, 239), (count - count // 2, 2))
    seen = looks + noise * rng.normal(size=(count, 16)) / 4
    seen[count // 2 :] = rng.normal(size=(count - count // 2, 16))
    order = rng.permutation(count)
    return described((points, again[order]), (looks, unit(seen)[order]), planar=True)


def described(points: tuple[Array, Array], rows: tuple[Array, Array], planar: bool) -> DescribedPair:
    return DescribedPair(
        (torch.tensor(points[0], dtype=torch.float32), torch.tensor(points[1], dtype=torch.float32)),
        tuple(torch.tensor(np.c_[r * np.sqrt(0.9), np.full(len(r), np.sqrt(0.1))]).half() for r in rows),  # type: ignore[arg-type]
        torch.tensor(FUNDAMENTAL if not planar else np.zeros((3, 3)), dtype=torch.float32),
        torch.tensor(H if planar else np.eye(3), dtype=torch.float32),
        planar,
        SIZE,
    )


def written(folder: Path, pairs: list[DescribedPair]) -> list[Path]:
    """Pairs as training reads them."""
    folder.mkdir()
    files = [folder / f"{index:06d}.safetensors" for index in range(len(pairs))]
    for file, pair in zip(files, pairs, strict=True):
        tensors = {f"points{k}": pair.points[k] for k in (0, 1)}
        tensors |= {f"descriptors{k}": pair.descriptors[k].contiguous() for k in (0, 1)}
        tensors |= {"fundamental": pair.fundamental, "homography": pair.homography}
        tensors |= {"planar": torch.tensor([pair.planar]), "image_size": torch.tensor(pair.image_size)}
        save_file(tensors, file)
    return files


def test_labels_of_planar_pairs_are_distances_to_the_place() -> None:
    pair = planar_pair(0)
    candidates = candidates_of(pair, NETWORK)
    i, j = candidates.rows.numpy(), candidates.columns.numpy()
    expected = np.linalg.norm(move(pair.points[0].numpy()[i]) - pair.points[1].numpy()[j], axis=1)
    np.testing.assert_allclose(candidate_errors(pair, candidates), expected, atol=1e-3)
    right, wrong = labels(pair, candidates)
    np.testing.assert_array_equal(right, expected <= 3)
    np.testing.assert_array_equal(wrong, expected > 5)
    assert right.sum() >= 30


def test_labels_of_posed_pairs_are_distances_to_both_lines() -> None:
    rng = np.random.default_rng(1)
    X = np.c_[rng.uniform(-1.5, 1.5, (60, 2)), rng.uniform(3, 5, 60)]
    first, second = X @ K.T, (X @ R.T + T) @ K.T
    points = first[:, :2] / first[:, 2:], second[:, :2] / second[:, 2:]
    looks = unit(rng.normal(size=(60, 16)))
    pair = described(points, (looks, unit(looks + 0.1 * rng.normal(size=(60, 16)))), planar=False)
    candidates = candidates_of(pair, NETWORK)
    i, j = candidates.rows.numpy(), candidates.columns.numpy()
    one = np.ones((len(i), 1))
    p, q = np.c_[points[0][i], one], np.c_[points[1][j], one]
    lines1, lines0 = p @ FUNDAMENTAL.T, q @ FUNDAMENTAL
    product = np.abs((q * lines1).sum(1))
    expected = np.maximum(product / np.hypot(*lines0.T[:2]), product / np.hypot(*lines1.T[:2]))
    np.testing.assert_allclose(candidate_errors(pair, candidates), expected, rtol=1e-2, atol=2e-2)
    right, wrong = labels(pair, candidates)
    assert right[torch.tensor(i == j)].all()
    assert not (right & wrong).any()
    # What is the nearest of neither of its keypoints is never called right.
    assert not right[(candidates.evidence[:, 3:5] == 0).all(1)].any()


def test_the_loss_is_a_balanced_cross_entropy_of_all_blocks() -> None:
    rng = np.random.default_rng(2)
    logits = [rng.normal(size=200) for _ in range(3)]
    right, wrong = rng.random(200) < 0.3, rng.random(200) < 0.5
    wrong &= ~right

    def of(values: Array) -> float:
        p = 1 / (1 + np.exp(-values))
        return float(-np.log(p[right]).mean() - np.log(1 - p[wrong]).mean())

    expected = 0.4 * of(logits[0]) + 0.4 * of(logits[1]) + of(logits[2])
    found = matcher_loss([torch.tensor(x) for x in logits], torch.tensor(right), torch.tensor(wrong))
    assert float(found) == pytest.approx(expected, rel=1e-6)
    nothing = torch.zeros(200, dtype=torch.bool)
    assert float(matcher_loss([torch.tensor(logits[0])], nothing, nothing)) == 0


def test_changed_pairs_are_still_right() -> None:
    pair = planar_pair(3)
    for seed in range(6):
        other = changed(pair, np.random.default_rng(seed))
        candidates = candidates_of(other, NETWORK, (True, False))
        right, _ = labels(other, candidates)
        # In either direction half of the keypoints have a partner, and it is mostly among the candidates.
        assert right.sum() > 0.3 * min(map(len, other.points)) / 2


def config(**changes: Any) -> MatcherTrainingConfig:
    settings: dict[str, Any] = {"network": NETWORK, "steps": 6, "batch_size": 1, "precision": "float32"}
    return MatcherTrainingConfig(**(settings | {"validate_every": 3, "checkpoint_every": 2, "warmup": 2} | changes))


def network() -> ContextNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ContextNetwork(NETWORK)


def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    files = written(tmp_path / "pairs", [planar_pair(seed) for seed in range(4)])
    whole, pieces = network(), network()
    assert train_matcher(config(), whole, files, files[:1], tmp_path / "whole", data="d") == Outcome(True, 6)
    steps = 0
    while True:
        pieces = network()
        outcome = train_matcher(
            config(), pieces, files, files[:1], tmp_path / "pieces", data="d", max_minutes=0 if steps < 4 else None
        )
        steps += 1
        if outcome.finished:
            break
    assert steps == 5
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, pieces.state_dict()[name]), name
    logs = [(tmp_path / run / "log.jsonl").read_text() for run in ("whole", "pieces")]
    assert logs[0] == logs[1]
    with pytest.raises(ValueError, match="holds a run"):
        train_matcher(config(seed=1), network(), files, [], tmp_path / "whole", data="d")
    torch.set_num_threads(threads)


def test_training_tells_right_from_wrong(tmp_path: Path) -> None:
    files = written(tmp_path / "pairs", [planar_pair(seed, noise=1.2) for seed in range(16)])
    held_out = written(tmp_path / "held_out", [planar_pair(100 + seed, noise=1.2) for seed in range(8)])
    trained = network()
    train_matcher(config(steps=250, learning_rate=5e-3, ema=0.9), trained, files, [], tmp_path / "run", data="d")
    result = validate_matcher(trained, held_out)
    assert result.precision > result.nearest_precision + 0.2
    assert result.right > 0.85 * result.nearest_right


def test_views_without_keypoints_are_no_obstacle(tmp_path: Path) -> None:
    pair = planar_pair(0)
    blank = dataclasses.replace(
        pair, points=(pair.points[0][:0], pair.points[1]), descriptors=(pair.descriptors[0][:0], pair.descriptors[1])
    )
    files = written(tmp_path / "pairs", [blank])
    trained = network()
    assert train_matcher(config(), trained, files, files, tmp_path / "blank", data="d").finished
    for name, tensor in network().state_dict().items():
        assert torch.isfinite(trained.state_dict()[name]).all(), name
        assert tensor.shape == trained.state_dict()[name].shape
    assert validate_matcher(trained, files).right == 0
    mixed = written(tmp_path / "mixed", [blank, pair])
    assert train_matcher(config(steps=12), trained, mixed, mixed, tmp_path / "run", data="d").finished
    assert validate_matcher(trained, mixed).nearest_right > 5
    assert all(torch.isfinite(tensor).all() for tensor in trained.state_dict().values())


def test_descriptors_without_reliability_are_learned_from_whole() -> None:
    pair = planar_pair(4)
    bare = dataclasses.replace(
        pair, descriptors=(3 * pair.descriptors[0][:, :-1].float(), 3 * pair.descriptors[1][:, :-1].float())
    )
    whole = candidates_of(pair, NETWORK)
    found = candidates_of(bare, dataclasses.replace(NETWORK, dimensions=16, reliability=False))
    np.testing.assert_array_equal(found.rows, whole.rows)
    np.testing.assert_array_equal(found.columns, whole.columns)
    np.testing.assert_allclose(found.evidence[:, :6], whole.evidence[:, :6], atol=1e-2)
    assert (found.evidence[:, 6:] == 1).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pairs": 0}, "pairs is 0"),
        ({"precision": "half"}, "precision is 'half'"),
        ({"ema": 2}, "ema is 2"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_settings_go_through_yaml() -> None:
    assert MatcherTrainingConfig.from_yaml(config().to_yaml()) == config()


def test_the_command_makes_a_matcher(tmp_path: Path, keypoint_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene = make_scene(tmp_path / "wall").folder
    small = ["data.width=96", "data.height=64", "pairs=4", "keypoints=60", "validation_pairs=2", "network.width=16"]
    arguments = ["matcher", str(scene), "-o", str(tmp_path / "out"), "--weights", str(keypoint_model)]
    arguments += ["--validation", str(scene), "--set", *small, "network.blocks=1", "validate_every=2", "--steps", "3"]
    assert main(arguments) == 0
    matcher = CAPSMatcher(tmp_path / "out", device="cpu")
    extractor = CAPSExtractor(keypoint_model, device="cpu")
    assert matcher.config.descriptor == extractor.weights.fingerprint
    image = np.random.default_rng(0).integers(256, size=(64, 96, 3), dtype=np.uint8)
    features = extractor.extract(image, 50)
    assert len(matcher.match(features, features, min_score=0)) > 0

    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == [1, 2, 3]
    assert "validation" in log[1]
    card = (tmp_path / "out" / "README.md").read_text()
    assert matcher.config.descriptor in card
    assert "| wall |" in card
    pairs = sorted((tmp_path / "out" / "pairs").iterdir())
    assert len(pairs) == 4
    assert read_pair(pairs[0]).image_size == (96, 64)

    capsys.readouterr()
    assert main([*arguments, "--seed", "5"]) == 1
    assert "holds pairs" in capsys.readouterr().err
    # Nor are held-out pairs of one scene taken for those of another, be it before the first step.
    (tmp_path / "out" / "checkpoint.pt").unlink()
    other = make_scene(tmp_path / "other").folder
    arguments[arguments.index("--validation") + 1] = str(other)
    assert main(arguments) == 1
    assert "holds pairs made with settings that differ in drawn_from" in capsys.readouterr().err


def test_pairs_are_described_once(tmp_path: Path, keypoint_model: Path) -> None:
    settings = dataclasses.replace(MatcherTrainingConfig().data, width=96, height=64, queries=20)
    pairs = PairDataset(read_scenes(make_scene(tmp_path / "wall").folder, settings), [], settings, 0, 3)
    extractor = CAPSExtractor(keypoint_model, detector="caps", device="cpu", dtype=torch.float32)
    files = describe_pairs(pairs, extractor, 40, tmp_path / "pairs")
    first = files[0].stat().st_mtime_ns
    files[1].unlink()
    assert describe_pairs(pairs, extractor, 40, tmp_path / "pairs") == files
    assert files[0].stat().st_mtime_ns == first
    pair, sample = read_pair(files[1]), pairs[1]
    expected = extractor.extract(np.ascontiguousarray(sample.image0.transpose(1, 2, 0)), 40)
    np.testing.assert_array_equal(pair.points[0], expected.keypoints)
    np.testing.assert_allclose(pair.descriptors[0].float(), expected.descriptors, atol=1e-3)
    np.testing.assert_allclose(pair.fundamental, sample.fundamental, atol=1e-6)
