"""Files of weights and names on the hub: models or refusals, and no path leads elsewhere."""

from __future__ import annotations

import io
from pathlib import Path, PurePosixPath

import pytest
import torch
from fuzzing import damaged, examples, put, result_or_refusal
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from capsdesc.models import ModelConfig, build_network
from capsdesc.weights import resolve, save_pretrained
from capsdesc.weights.files import CONFIG_FILE, TENSORS_FILE, read_pickle, read_safetensors
from capsdesc.weights.hub import parse

CONFIG = ModelConfig(encoder="efficientnet_lite0", coarse_dim=4, fine_dim=4, decoder_dim=4)
SMALL = {"layer.weight": torch.arange(12.0).view(3, 4), "layer.bias": torch.ones(3, dtype=torch.float16)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    save_pretrained(folder, CONFIG, build_network(CONFIG).state_dict(), dtype=torch.float16)
    return folder


def saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


CHECKPOINTS = (saved(SMALL), saved({"state_dict": SMALL, "step": 3}))


@examples(12)
@given(st.data())
def test_damaged_models(model: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp() / "damaged model"
    whole = {name: (model / name).read_bytes() for name in (CONFIG_FILE, TENSORS_FILE)}
    struck = data.draw(st.sampled_from(sorted(whole)))
    # Of the tensors' file the header: among the values any bits are numbers.
    head = whole[struck][:4096]
    for name, content in whole.items():
        put(folder / name, data.draw(damaged(head)) + content[4096:] if name == struck else content)
    weights = result_or_refusal(resolve, folder)
    assert weights is None or isinstance(weights.build(), torch.nn.Module)


@examples(200)
@given(st.data())
def test_damaged_safetensors(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    from safetensors.torch import save

    path = put(tmp_path_factory.getbasetemp() / "damaged.safetensors", data.draw(damaged(save(SMALL))))
    tensors = result_or_refusal(read_safetensors, path, str(path))
    assert tensors is None or all(isinstance(tensor, Tensor) for tensor in tensors.values())


@examples(150)
@given(st.data())
def test_damaged_checkpoints(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = data.draw(damaged(data.draw(st.sampled_from(CHECKPOINTS))))
    path = put(tmp_path_factory.getbasetemp() / "damaged.pth", content)
    tensors = result_or_refusal(read_pickle, path)
    assert tensors is None or all(isinstance(tensor, Tensor) for tensor in tensors.values())


names = st.text("ab0.-_/@~\\\0 é", max_size=14) | st.from_regex(r"[\w.-]+/[\w.-]+(@[\w./+-]*)?", fullmatch=True)


@examples(300)
@given(names, st.none() | st.text("ab./-+\\", max_size=8))
def test_hub_names_stay_in_the_cache(name: str, revision: str | None) -> None:
    parsed = result_or_refusal(parse, name, revision)
    if parsed is None:
        return
    repository, found = parsed
    assert repository == name.partition("@")[0]
    for path in (repository, found or "main"):
        parts = PurePosixPath(path).parts
        assert not PurePosixPath(path).is_absolute()
        assert ".." not in parts
        assert parts
    assert repository.count("/") == 1


@examples(100)
@given(names.filter(lambda name: "/" not in name.strip("/") or name.startswith((".", "/", "~"))))
def test_what_is_no_hub_name_is_never_asked_for(name: str) -> None:
    # A name that no file has; there is no network in tests.
    result_or_refusal(resolve, name)


def test_what_is_damaged_was_whole(model: Path, tmp_path: Path) -> None:
    assert resolve(model).config == CONFIG
    for content in CHECKPOINTS:
        assert read_pickle(put(tmp_path / "whole.pth", content)).keys() == SMALL.keys()
