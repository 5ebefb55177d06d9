"""Matching in context wherever features are matched, by the bundled weights on the example photographs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from capsdesc import CAPSExtractor, CAPSMatcher, Features, match
from capsdesc.commands.main import main
from capsdesc.evaluation.features import ViewFeatures
from capsdesc.evaluation.methods import PairMatcher, get_methods
from capsdesc.io.hloc import read_features, read_matches

DATA = Path(__file__).parents[2] / "examples" / "data"
NAMES = ("relief_0.jpg", "relief_1.jpg")
PHOTOGRAPHS = [str(DATA / name) for name in NAMES]
NETWORK = ["--device", "cpu", "--max-keypoints", "400"]


@pytest.fixture(scope="module")
def features() -> list[Features]:
    caps = CAPSExtractor(device="cpu")
    return [caps.extract(path, 400, derivatives=True) for path in PHOTOGRAPHS]


def test_match_command(features: list[Features], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["match", *PHOTOGRAPHS, *NETWORK, "--matcher", "context", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = match(*features, method="context", max_shift=3)
    np.testing.assert_array_equal(found["indices"], expected.indices)
    assert main(["match", *PHOTOGRAPHS, *NETWORK, "--matcher", "context", "--ratio", "0.8"]) == 1
    assert "for nearest neighbours" in capsys.readouterr().err


def test_hloc_files_have_the_scores_of_the_matcher(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    files = [str(tmp_path / name) for name in ("features.h5", "matches.h5")]
    (tmp_path / "pairs.txt").write_text(" ".join(NAMES) + "\n")
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for name in NAMES:
        (photographs / name).write_bytes((DATA / name).read_bytes())
    assert main(["extract", str(photographs), "-o", files[0], *NETWORK]) == 0
    arguments = ["match-features", files[0], str(tmp_path / "pairs.txt"), "-o", files[1], "--matcher", "context"]
    assert main(arguments) == 0
    kept = [read_features(files[0], name) for name in NAMES]
    expected = match(*kept, method="context", max_shift=3)
    found = read_matches(files[1], *NAMES)
    np.testing.assert_array_equal(found.indices, expected.indices)
    assert expected.scores is not None
    np.testing.assert_allclose(found.scores, np.asarray(expected.scores), atol=1e-3)  # hloc's are float16


@pytest.mark.parametrize("use", ["caps-keypoints-context", "caps-keypoints-context-checked"])
def test_rows_of_eval(use: str, features: list[Features], keypoint_model: Path) -> None:
    (method,) = get_methods([use], device="cpu")
    assert isinstance(method, PairMatcher)
    checked = use.endswith("checked")
    sides = [
        ViewFeatures(
            np.asarray(one.keypoints),
            np.asarray(one.descriptors),
            one.image_size,
            one.image_size,
            np.asarray(one.derivatives) if checked else None,
        )
        for one in features
    ]
    matcher = CAPSMatcher(device="cpu", dtype=torch.float32)
    expected = matcher.match(features[0], features[1], max_shift=3 if checked else None)
    np.testing.assert_array_equal(method.match(*sides).indices, expected.indices)
    (surer,) = get_methods([use], device="cpu", min_score=0.97)
    assert isinstance(surer, PairMatcher)
    expected = matcher.match(features[0], features[1], min_score=0.97, max_shift=3 if checked else None)
    assert 0 < len(expected) < len(method.match(*sides))
    np.testing.assert_array_equal(surer.match(*sides).indices, expected.indices)
    assert surer.settings["min_score"] == 0.97
    (foreign,) = get_methods([use], device="cpu", weights=[str(keypoint_model)])
    assert isinstance(foreign, PairMatcher)
    with pytest.raises(ValueError, match="was described by the weights"):
        foreign.match(*sides)
