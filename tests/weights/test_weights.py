"""Weights from every place they may come from, and the refusal of what is not whole."""

from __future__ import annotations

import json
import os
import pickle
import socket
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from hub_server import Hub, in_new_process, serving
from torch import Tensor

from capsdesc.models import ModelConfig, build_network
from capsdesc.models.efficientnet_lite import EfficientNetLiteEncoder
from capsdesc.models.network import normalize_image
from capsdesc.models.resnet import ResNetEncoder
from capsdesc.weights import bundled, convert_official, load_encoder, resolve, save_pretrained, unfold_batch_norm
from capsdesc.weights.hub import parse

CONFIG = ModelConfig(encoder="efficientnet_lite0", coarse_dim=16, fine_dim=16, decoder_dim=16)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return build_network(CONFIG).state_dict()


@pytest.fixture
def folder(tmp_path: Path, state: dict[str, Tensor]) -> Path:
    save_pretrained(tmp_path / "model", CONFIG, state, card="# A model\n")
    return tmp_path / "model"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def is_counter(key: str) -> bool:
    return key.endswith("num_batches_tracked")


# Local files


@pytest.mark.usefixtures("no_network")
def test_saved_model_comes_back(folder: Path, state: dict[str, Tensor]) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert (folder / "README.md").read_text() == "# A model\n"
    for place in (folder, str(folder), folder / "model.safetensors"):
        weights = resolve(place)
        assert weights.config == CONFIG
        assert Path(weights.source) == Path(place)
        built = weights.build()
        assert not built.training
        for key, tensor in built.state_dict().items():
            assert torch.equal(tensor, torch.tensor(0) if is_counter(key) else state[key])


@pytest.mark.usefixtures("no_network")
def test_relative_and_home_paths(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.setenv("USERPROFILE", str(folder.parent))
    for place in ("model", "./model", "~/model", "model/model.safetensors"):
        assert os.path.isabs(resolve(place).source)
    # An existing path is meant before a repository of that name.
    folder.rename(folder.parent / "name")
    (folder.parent / "org").mkdir()
    (folder.parent / "name").rename(folder.parent / "org" / "name")
    assert Path(resolve("org/name").source) == folder.parent / "org" / "name"


def test_half_precision_is_stored_in_half_and_built_in_single(tmp_path: Path, state: dict[str, Tensor]) -> None:
    save_pretrained(tmp_path, CONFIG, state, dtype=torch.float16)
    stored = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    network = resolve(tmp_path).build()
    for key, tensor in network.state_dict().items():
        if not is_counter(key):
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, state[key].half().float())

    as_bfloat16 = {key: tensor.to(torch.bfloat16) for key, tensor in stored.items()}
    safetensors.torch.save_file(as_bfloat16, tmp_path / "model.safetensors")
    assert next(resolve(tmp_path).build().parameters()).dtype == torch.float32


def test_saving_is_all_or_nothing(folder: Path, state: dict[str, Tensor]) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UnicodeEncodeError):
        save_pretrained(folder, CONFIG, state, dtype=torch.float16, card="\ud800")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_saving_refuses_what_could_not_be_read(tmp_path: Path, state: dict[str, Tensor]) -> None:
    target = tmp_path / "model"
    with pytest.raises(ValueError, match="dtype"):
        save_pretrained(target, CONFIG, state, dtype=torch.int8)
    with pytest.raises(ValueError, match="missing"):
        save_pretrained(target, ModelConfig(), state)
    # 1e5 is finite in single precision and infinite in half.
    large = {**state, "fine_head.bias": torch.full((16,), 1e5)}
    with pytest.raises(ValueError, match=r"float16.*fine_head\.bias"):
        save_pretrained(target, CONFIG, large, dtype=torch.float16)
    assert not target.exists()
    save_pretrained(target, CONFIG, large)


def test_incomplete_folder(folder: Path) -> None:
    (folder / "config.json").rename(folder / "other.json")
    for place in (folder, folder / "model.safetensors"):
        with pytest.raises(FileNotFoundError, match=r"config\.json"):
            resolve(place)
    (folder / "other.json").rename(folder / "config.json")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        resolve(folder)


def test_damaged_folder(folder: Path, state: dict[str, Tensor]) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    for damaged in (whole[:-100], whole[:50], b"", b"\xff" * 1000):
        (folder / "model.safetensors").write_bytes(damaged)
        with pytest.raises(ValueError, match="not a whole safetensors file"):
            resolve(folder)

    stored = {key: tensor for key, tensor in state.items() if not is_counter(key)}
    stored["fine_head.bias"] = torch.full((16,), float("inf"))
    safetensors.torch.save_file(stored, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"not finite.*fine_head\.bias"):
        resolve(folder)

    (folder / "model.safetensors").write_bytes(whole)
    for text in ("{", "[]", '{"encoder": "vgg16"}', '{"colour": 1}', "\x80"):
        (folder / "config.json").write_text(text, encoding="latin-1")
        with pytest.raises(ValueError, match=r"config\.json is refused"):
            resolve(folder)
    # A config that fits other weights.
    (folder / "config.json").write_text(ModelConfig(encoder="efficientnet_lite0").to_json())
    with pytest.raises(ValueError, match="wrong shape"):
        resolve(folder)


# Bundled models


@pytest.mark.usefixtures("no_network")
def test_bundled_models(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled, "_FOLDER", folder.parent)
    assert bundled.names() == ("model",)
    assert resolve("model").source == "bundled:model"
    with pytest.raises(FileNotFoundError, match="installation of capsdesc is broken"):
        resolve()
    monkeypatch.setattr(bundled, "DEFAULT", "model")
    assert resolve().source == "bundled:model"
    # A folder of the same name in the working directory does not change what the name means.
    monkeypatch.chdir(folder.parent)
    assert resolve("model").source == "bundled:model"
    assert Path(resolve("./model").source) == folder
    with pytest.raises(ValueError, match="revision"):
        resolve("model", revision="main")


# Names


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    "name",
    ["./org/name", "../org/name", "/org/name", "~/org/name", "a/b/c", "a/b.pth", "org/name.safetensors", "x.ckpt"],
)
def test_missing_paths_never_reach_the_hub(name: str) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        resolve(name)
    with pytest.raises(FileNotFoundError, match="no such file"):
        resolve(Path("org/name"))


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    "name",
    [
        "nosuchmodel",
        "org/..",
        "org/na..me",
        "org\\name",
        "org/na\\me",
        "org/na me",
        "org/",
        "org/name@",
        "org/name@../../x",
        "org/name@a b",
        "",
        "@main",
        "org/näme",
        "org/name.git",
        "org/name\n",
    ],
)
def test_invalid_names(name: str) -> None:
    with pytest.raises(ValueError, match=r"weights|revision|org/name"):
        resolve(name)


def test_invalid_arguments(folder: Path) -> None:
    with pytest.raises(TypeError, match="int"):
        resolve(7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="revision"):
        resolve(folder, revision="main")
    with pytest.raises(ValueError, match="give one of the two"):
        resolve("org/name@a", revision="b")
    (folder / "model.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match="safetensors"):
        resolve(folder / "model.bin")


def test_repository_names() -> None:
    assert parse("org/name") == ("org/name", None)
    assert parse("org/name", "v1.0") == ("org/name", "v1.0")
    assert parse("org/caps-v1.5@refs/pr/3") == ("org/caps-v1.5", "refs/pr/3")
    assert parse("org/name@main", "main") == ("org/name", "main")


# The hub, over real HTTP


@pytest.fixture(scope="module")
def hub(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("hub")
    save_pretrained(folder, CONFIG, state)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    server = Hub()
    server.commits = {"a" * 40: files, "b" * 40: dict(files), "c" * 40: {"config.json": files["config.json"]}}
    server.revisions = {"org/name": {"main": "b" * 40, "v1": "a" * 40}, "org/partial": {"main": "c" * 40}}
    with serving(server):
        yield server


ASK = """
import json, sys
from capsdesc.weights import resolve
answers = []
for arguments in json.loads(sys.argv[1]):
    try:
        weights = resolve(**arguments)
        weights.build()
        answers.append(["ok", weights.source])
    except Exception as error:
        chained = error.__cause__ is not None
        answers.append([type(error).__name__ if chained else "not chained", str(error)])
print(json.dumps(answers))
"""


def ask(environment: dict[str, str], *calls: dict[str, Any]) -> list[list[str]]:
    answers: list[list[str]] = in_new_process(ASK, calls, environment)
    return answers


def test_hub(hub: Hub, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    online = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    newest, first, by_commit, by_argument, no_repository, no_revision, no_file, no_hub = ask(
        online,
        {"weights": "org/name", "cache_dir": cache},
        {"weights": "org/name@v1", "cache_dir": cache},
        {"weights": "org/name@" + "a" * 40, "cache_dir": cache},
        {"weights": "org/name", "revision": "v1", "cache_dir": cache},
        {"weights": "org/nothing", "cache_dir": cache},
        {"weights": "org/name@v2", "cache_dir": cache},
        {"weights": "org/partial", "cache_dir": cache},
        {"weights": "org/portal", "cache_dir": cache},
    )
    assert newest == ["ok", "org/name@" + "b" * 40]
    assert first == by_commit == by_argument == ["ok", "org/name@" + "a" * 40]
    assert no_repository[0] == no_revision[0] == no_file[0] == "FileNotFoundError"
    assert "org/nothing" in no_repository[1]
    assert "token" in no_repository[1]
    assert "'v2'" in no_revision[1]
    assert "org/partial@" + "c" * 40 in no_file[1]
    assert "model.safetensors" in no_file[1]
    assert no_hub[0] == "ConnectionError"
    assert "org/portal@main" in no_hub[1]
    assert any("capsdesc" in agent for agent in hub.agents)

    # What was downloaded is there without the hub, by each of its names.
    asked = len(hub.agents)
    for weights, commit in [("org/name", "b"), ("org/name@v1", "a"), ("org/name@" + "a" * 40, "a")]:
        found = resolve(weights, cache_dir=cache, local_files_only=True)
        assert found.source == "org/name@" + commit * 40
    with pytest.raises(FileNotFoundError, match="not in the local cache"):
        resolve("org/partial", cache_dir=cache, local_files_only=True)
    assert len(hub.agents) == asked

    cached, uncached = ask(
        {**online, "HF_HUB_OFFLINE": "1"},
        {"weights": "org/name", "cache_dir": cache},
        {"weights": "org/other", "cache_dir": cache},
    )
    assert cached == newest
    assert uncached[0] == "FileNotFoundError"
    assert "HF_HUB_OFFLINE" in uncached[1]
    assert len(hub.agents) == asked


def test_a_folder_that_is_not_there_is_told_where_the_hub_is_out_of_reach(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        port = nobody.getsockname()[1]
        environment = {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
        (answer,) = ask(environment, {"weights": "models/elsewhere", "cache_dir": str(tmp_path / "cache")})
    assert answer[0] == "ConnectionError"
    assert "cannot reach the hub for models/elsewhere@main" in answer[1]
    assert f"there is no folder 'models/elsewhere' in {os.getcwd()!r}" in answer[1]


# Official checkpoints as files (their keys: test_models.py)


def test_converting_an_official_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = ModelConfig.paper("resnet18")
    state = build_network(config).state_dict()
    torch.save({"state_dict": {f"net.{key}": tensor for key, tensor in state.items()}}, tmp_path / "caps.pth")
    assert convert_official(tmp_path / "caps.pth", tmp_path / "out").source == str(tmp_path / "caps.pth")
    weights = resolve(tmp_path / "out")
    assert weights.config == config
    assert weights.state_dict.keys() == {key for key in state if not is_counter(key)}
    assert all(torch.equal(tensor, state[key]) for key, tensor in weights.state_dict.items())


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.net.", "net.module.", "module.net._orig_mod."],
)
def test_names_that_wrappers_of_torch_put_before_every_key(tmp_path: Path, prefix: str) -> None:
    torch.manual_seed(0)
    state = build_network(ModelConfig.paper("resnet18")).state_dict()
    # What training loops call their checkpoints, too.
    torch.save({"state_dict": {prefix + key: tensor for key, tensor in state.items()}}, tmp_path / "model.pth.tar")
    weights = resolve(tmp_path / "model.pth.tar")
    assert weights.config == ModelConfig.paper("resnet18")
    assert all(torch.equal(tensor, state[key]) for key, tensor in weights.state_dict.items())


def test_a_prefix_of_some_keys_is_none(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = build_network(ModelConfig.paper("resnet18")).state_dict()
    key = next(iter(state))
    torch.save({f"module.{key}" if k == key else k: tensor for k, tensor in state.items()}, tmp_path / "some.pth")
    with pytest.raises(ValueError, match=rf"1 missing \({key}\); 1 unexpected \(module\.{key}\)"):
        resolve(tmp_path / "some.pth")


class Foreign:
    """An object no checkpoint should hold."""


def test_files_that_are_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "broken.pth"

    def refused(message: str) -> None:
        with pytest.raises(ValueError, match=rf"broken\.pth.*{message}"):
            resolve(path)

    torch.save({"state_dict": {"net.firstconv.weight": torch.zeros(64, 3, 7, 7)}}, path)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:20], b"", b"no checkpoint at all", b"PK\x03\x04" + b"\0" * 100):
        path.write_bytes(damaged)
        refused("refused")
    torch.save({"state_dict": {}, "epoch": Foreign()}, path)
    refused("could run code.*Unsupported global: GLOBAL test_weights.Foreign")
    with pytest.raises(ValueError, match="refused") as refusal:
        resolve(path)
    assert "weights_only" not in str(refusal.value), "advice to load it all the same"
    path.write_bytes(pickle.dumps(Foreign(), protocol=2))
    refused("could run code")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused("refused")
    for content in ([1, 2], {"state_dict": 3}, {}, {"state_dict": {"a": 1}}, {1: torch.zeros(1)}, torch.zeros(2)):
        torch.save(content, path)
        refused("holds no state dict")
    with pytest.raises(ValueError, match="folder"):
        convert_official(tmp_path, tmp_path / "out")
    with pytest.raises(FileNotFoundError):
        convert_official(tmp_path / "missing.pth", tmp_path / "out")


# ImageNet encoders


def random_encoder(encoder: ResNetEncoder | EfficientNetLiteEncoder) -> dict[str, Tensor]:
    """A state dict with random batch statistics."""
    state = encoder.state_dict()
    for key, tensor in state.items():
        if key.endswith("running_mean"):
            tensor.normal_(0, 0.3)
        elif key.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
    return state


def torchvision_name(key: str) -> str:
    return key.replace("firstconv.", "conv1.").replace("firstbn.", "bn1.")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_torchvision_resnet(suffix: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = random_encoder(ResNetEncoder("resnet18"))
    theirs = {torchvision_name(key): tensor for key, tensor in state.items()}
    assert {"conv1.weight", "bn1.running_var", "layer1.0.conv1.weight", "layer1.0.bn1.bias"} < theirs.keys()
    theirs |= {"layer4.0.conv1.weight": torch.zeros(512, 256, 3, 3), "fc.weight": torch.zeros(10, 512)}
    path = tmp_path / f"resnet18{suffix}"

    def write() -> None:
        safetensors.torch.save_file(theirs, path) if suffix == ".safetensors" else torch.save(theirs, path)

    write()
    ours = load_encoder(path, "resnet18")
    assert ours.keys() == {key for key in state if not is_counter(key)}
    assert all(torch.equal(ours[key], state[key]) for key in ours)
    with pytest.raises(ValueError, match="missing"):
        load_encoder(path, "resnet34")
    with pytest.raises(ValueError, match="resnet20"):
        load_encoder(path, "resnet20")
    theirs["head.bias"] = torch.zeros(1)
    write()
    with pytest.raises(ValueError, match=r"unexpected \(head\.bias\)"):
        load_encoder(path, "resnet18")


LOAD_ENCODER = """
import json, sys
import safetensors.torch
from capsdesc.weights import load_encoder
calls, target = json.loads(sys.argv[1])
answers = []
for name, encoder in calls:
    try:
        safetensors.torch.save_file(load_encoder(name, encoder), target)
        answers.append("ok")
    except (OSError, ValueError) as error:
        answers.append(str(error))
print(json.dumps(answers))
"""


def timm_config(architecture: str, mean: float = 0.485) -> bytes:
    # As in the config.json of timm/resnet18.tv_in1k; it has more.
    statistics = {"mean": [mean, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    return json.dumps({"architecture": architecture, "num_classes": 1000, "pretrained_cfg": statistics}).encode()


def test_timm_resnet_on_the_hub(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = random_encoder(ResNetEncoder("resnet18"))
    theirs = {torchvision_name(key): tensor for key, tensor in state.items()}
    theirs |= {"layer4.1.bn2.bias": torch.zeros(512), "fc.bias": torch.zeros(1000)}
    tensors = safetensors.torch.save(theirs)
    hub = Hub()
    for k, (name, files) in enumerate(
        {
            "resnet18.tv_in1k": {"config.json": timm_config("resnet18"), "model.safetensors": tensors},
            "resnetaa18.x": {"config.json": timm_config("resnetaa18"), "model.safetensors": tensors},
            "resnet18.inception": {"config.json": timm_config("resnet18", 0.5), "model.safetensors": tensors},
            "other": {"config.json": b'{"model_type": "resnet"}', "model.safetensors": tensors},
            "pickled": {"config.json": timm_config("resnet18"), "pytorch_model.bin": b""},
        }.items()
    ):
        hub.commits[f"{k:040x}"] = files
        hub.revisions[f"timm/{name}"] = {"main": f"{k:040x}", "old": f"{k:040x}"}
    target = str(tmp_path / "encoder.safetensors")
    with serving(hub):
        calls = [
            ("timm/resnet18.tv_in1k@old", "resnet18"),
            ("timm/resnet18.tv_in1k", "resnet34"),
            ("timm/resnetaa18.x", "resnet18"),
            ("timm/resnet18.inception", "resnet18"),
            ("timm/other", "resnet18"),
            ("timm/pickled", "resnet18"),
            ("timm/nothing", "resnet18"),
            ("./timm/resnet18.tv_in1k", "resnet18"),
        ]
        found, wrong_size, antialiased, other_mean, not_timm, pickled, nothing, path = in_new_process(
            LOAD_ENCODER, (calls, target), {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
        )
    assert found == "ok"
    ours = safetensors.torch.load_file(target)
    assert ours.keys() == {key for key in state if not is_counter(key)}
    assert all(torch.equal(ours[key], state[key]) for key in ours)
    for refused in (wrong_size, antialiased, other_mean):
        assert "is another network than asked for" in refused
    assert "'resnetaa18'" in antialiased
    assert "no model of timm" in not_timm
    assert "has no model.safetensors" in pickled
    assert "there is no timm/nothing on the hub" in nothing
    assert "expected one that ends in" in path


def folded_maps(folded: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """A ResNet-18 of convolutions with biases and no normalisation, up to stride 16; torchvision's names."""

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = folded[f"{name}.weight"]
        return F.conv2d(x, weight, folded[f"{name}.bias"], stride=stride, padding=weight.shape[-1] // 2)

    x = F.max_pool2d(F.relu(conv("conv1", x, 2)), 3, 2, 1)
    maps = []
    for layer in (1, 2, 3):
        for block in (f"layer{layer}.0", f"layer{layer}.1"):
            stride = 2 if layer > 1 and block.endswith(".0") else 1
            y = conv(f"{block}.conv2", F.relu(conv(f"{block}.conv1", x, stride)))
            x = F.relu(y + (conv(f"{block}.downsample.0", x, stride) if stride == 2 else x))
        maps.append(x)
    return maps


def test_unfolding_batch_norm(tmp_path: Path) -> None:
    torch.manual_seed(0)
    folded = {
        torchvision_name(name): tensor
        for name, module in ResNetEncoder("resnet18").named_modules()
        if isinstance(module, torch.nn.Conv2d)
        for name, tensor in (
            (f"{name}.weight", module.weight.detach()),
            (f"{name}.bias", torch.randn(module.out_channels) * 0.2),
        )
    }
    path = tmp_path / "folded.safetensors"
    safetensors.torch.save_file({**folded, "fc.bias": torch.zeros(3)}, path)
    images = torch.rand(3, 3, 64, 80)
    with pytest.raises(ValueError, match="images"):
        load_encoder(path, "resnet18")

    encoder = ResNetEncoder("resnet18")
    encoder.load_state_dict(load_encoder(path, "resnet18", images=lambda: images))
    # The same function on images it never saw.
    other = normalize_image(torch.rand(2, 3, 49, 70))
    with torch.inference_mode():
        found = encoder.eval()(other)
    for one, expected in zip(found[1:], folded_maps(folded, other), strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-4)
    # Its statistics are those of the images: in training mode, which takes the batch's own, the function is the same.
    with torch.inference_mode():
        trained = encoder.train()(normalize_image(images))
    for one, expected in zip(trained[1:], folded_maps(folded, normalize_image(images)), strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-3, atol=1e-3)

    ours = {key.replace("conv1.", "firstconv.") if key.startswith("conv1.") else key: t for key, t in folded.items()}
    encoder = ResNetEncoder("resnet18").train()
    unfold_batch_norm(encoder, ours, images)
    assert encoder.training
    assert all(module.training for module in encoder.modules())
    for shape in [(3, 64, 80), (0, 3, 8, 8), (1, 1, 8, 8)]:
        with pytest.raises(ValueError, match="images"):
            unfold_batch_norm(encoder, ours, torch.zeros(shape))
    del ours["layer3.1.conv2.bias"]
    with pytest.raises(ValueError, match=r"layer3\.1\.conv2\.bias"):
        unfold_batch_norm(encoder, ours, images)


def test_efficientnet_lite(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = EfficientNetLiteEncoder("efficientnet_lite0").eval()
    state = {key: tensor.clone() for key, tensor in random_encoder(encoder).items()}
    past = {"_blocks.11._bn0.weight", "_blocks.15._project_conv.weight", "_conv_head.weight", "_bn1.bias", "_fc.weight"}
    path = tmp_path / "lite0.pth"
    torch.save({**state, **{key: torch.zeros(1) for key in past}}, path)

    image = torch.rand(1, 3, 128, 160)
    with torch.inference_mode():
        theirs = encoder((image * 255 - 127) / 128)
        theirs_stem = encoder._bn0(encoder._conv_stem((image * 255 - 127) / 128))
        encoder.load_state_dict(load_encoder(path, "efficientnet_lite0"))
        ours = encoder(normalize_image(image))
        ours_stem = encoder._bn0(encoder._conv_stem(normalize_image(image)))
    torch.testing.assert_close(ours_stem[..., 1:-1, 1:-1], theirs_stem[..., 1:-1, 1:-1], rtol=1e-4, atol=1e-4)
    # The first map, away from what the border's different padding reaches.
    torch.testing.assert_close(ours[0][..., 6:-6, 6:-6], theirs[0][..., 6:-6, 6:-6], rtol=1e-3, atol=1e-4)

    torch.save({**state, "_blocks.3._se_reduce.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"unexpected \(_blocks\.3\._se_reduce\.weight\)"):
        load_encoder(path, "efficientnet_lite0")
    torch.save({key: tensor for key, tensor in state.items() if not key.startswith("_blocks.10.")}, path)
    with pytest.raises(ValueError, match=r"missing \(_blocks\.10\."):
        load_encoder(path, "efficientnet_lite0")
