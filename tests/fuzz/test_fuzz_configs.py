"""Settings: what is written comes back, and everything else is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from fuzzing import anything, damaged, examples, put, result_or_refusal
from hypothesis import given
from hypothesis import strategies as st

from capsdesc.models import ModelConfig
from capsdesc.training.augmentation import AugmentationConfig
from capsdesc.training.config import OptimizerConfig, TrainingConfig
from capsdesc.training.dataset import DataConfig
from capsdesc.training.losses import LossConfig
from capsdesc.training.sources import read_sources
from capsdesc.weights.card import read_licenses

WHOLE = TrainingConfig().to_yaml().encode()
SOURCES = b"""\
- {kind: colmap, path: a, weight: 2}
- kind: pairs
  path: b/pairs.txt
  depth: [0.5, 9]
- kind: tum
  path: d
  intrinsics: &lens [500, 500, 320, 240]
- {kind: tum, path: e, intrinsics: *lens, distortion: [0, 0, 0, 0, 0.1], every: 3}
"""
TREACHEROUS = (
    '!!int ""',
    '!!float ""',
    '!!bool "x"',
    '!!timestamp "x"',
    "!!binary x",
    "2001-99-99",
    "!!python/object/apply:os.system [ls]",
    "&a [*a]",
    "{<<: 3}",
    "? [1]",
    "1" + "0" * 400,
    ".nan",
    "-.inf",
    "\0",
    "- " * 3000,
)
model_configs = st.builds(
    ModelConfig,
    encoder=st.sampled_from(["resnet18", "resnet50", "efficientnet_lite0"]),
    coarse_dim=st.integers(1, 512),
    fine_dim=st.integers(1, 512),
    normalize=st.booleans(),
    sampling=st.sampled_from(["corners", "stride"]),
)


@examples(60)
@given(model_configs)
def test_model_configs_come_back(config: ModelConfig) -> None:
    assert ModelConfig.from_json(config.to_json()) == config
    assert ModelConfig.from_dict(config.to_dict()) == config


@examples(60)
@given(
    model_configs,
    st.builds(DataConfig, width=st.integers(16, 4000), max_zoom=st.floats(0.01, 100), sift_share=st.floats(0, 1)),
    st.builds(OptimizerConfig, learning_rate=st.floats(0, 1), halve_every=st.integers(1, 10**9)),
    st.integers(0, 10**18),
)
def test_training_configs_come_back(
    model: ModelConfig, data: DataConfig, optimizer: OptimizerConfig, seed: int
) -> None:
    config = TrainingConfig(model=model, data=data, optimizer=optimizer, seed=seed)
    assert TrainingConfig.from_yaml(config.to_yaml()) == config


@examples(150)
@given(
    st.sampled_from([ModelConfig, DataConfig, OptimizerConfig, LossConfig, AugmentationConfig, TrainingConfig]),
    st.data(),
)
def test_whatever_is_no_setting_is_refused(kind: type[Any], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([field.name for field in dataclasses.fields(kind)]))
    value = data.draw(anything)
    if kind is not TrainingConfig or name not in ("model", "data", "loss", "optimizer"):
        result_or_refusal(kind, **{name: value})
    result_or_refusal(ModelConfig.from_dict, {name: value})
    result_or_refusal(ModelConfig.from_dict, value)
    result_or_refusal(ModelConfig.from_json, json.dumps({name: value}))
    config = result_or_refusal(TrainingConfig.from_yaml, yaml.safe_dump({name: value}))
    assert config is None or TrainingConfig.from_yaml(config.to_yaml()) == config


@examples(150)
@given(damaged(WHOLE) | damaged(b"steps: 5\nmodel: {encoder: resnet18}\n"))
def test_damaged_training_configs(text: bytes) -> None:
    result_or_refusal(TrainingConfig.from_yaml, text.decode(errors="replace"))


@examples(100)
@given(damaged(ModelConfig().to_json().encode()))
def test_damaged_model_configs(text: bytes) -> None:
    result_or_refusal(ModelConfig.from_json, text.decode(errors="replace"))


@examples(150)
@given(damaged(SOURCES))
def test_damaged_lists_of_sources(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = put(tmp_path_factory.getbasetemp() / "sources" / "sources.yaml", content)
    result_or_refusal(read_sources, path)
    result_or_refusal(read_licenses, path)


@pytest.mark.parametrize("value", TREACHEROUS)
def test_treacherous_yaml(tmp_path: Path, value: str) -> None:
    with pytest.raises(ValueError, match=r"YAML|steps"):
        TrainingConfig.from_yaml(f"steps: {value}")
    path = put(tmp_path / "sources.yaml", f"- kind: colmap\n  path: a\n  weight: {value}".encode())
    with pytest.raises(ValueError, match=r"sources\.yaml"):
        read_sources(path)
    with pytest.raises(ValueError, match=r"sources\.yaml"):
        read_licenses(path)


def test_what_is_damaged_was_whole(tmp_path: Path) -> None:
    assert TrainingConfig.from_yaml(WHOLE.decode()) == TrainingConfig()
    assert len(read_sources(put(tmp_path / "sources.yaml", SOURCES))) == 4
