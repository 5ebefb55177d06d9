"""The networks, against an implementation of their own written here from the paper's description."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from capsdesc.models import ModelConfig, build_network, fold_batch_norm
from capsdesc.models.efficientnet_lite import EfficientNetLiteEncoder
from capsdesc.models.network import normalize_image
from capsdesc.models.resnet import ResNetEncoder
from capsdesc.weights import Weights, resolve

BLOCKS = {
    "resnet18": (2, 2, 2),
    "resnet34": (3, 4, 6),
    "resnet50": (3, 4, 6),
    "resnet101": (3, 4, 23),
    "resnet152": (3, 8, 36),
}
Shapes = dict[str, tuple[int, ...]]


def official_shapes(encoder: str) -> Shapes:
    """Keys (without ``net.``) and shapes of an official checkpoint's state dict."""
    shapes: Shapes = {}

    def conv(name: str, inputs: int, outputs: int, kernel: int, bias: bool = False) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs, kernel, kernel)
        if bias:
            shapes[f"{name}.bias"] = (outputs,)

    def norm(name: str, channels: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{part}"] = (channels,)
        shapes[f"{name}.num_batches_tracked"] = ()

    def unit(name: str, inputs: int, outputs: int, kernel: int) -> None:
        conv(f"{name}.conv", inputs, outputs, kernel, bias=True)
        norm(f"{name}.bn", outputs)

    basic = encoder in ("resnet18", "resnet34")
    expansion = 1 if basic else 4
    conv("firstconv", 3, 64, 7)
    norm("firstbn", 64)
    inputs = 64
    for layer, (width, count) in enumerate(zip((64, 128, 256), BLOCKS[encoder], strict=True), start=1):
        for index in range(count):
            block = f"layer{layer}.{index}"
            kernels = (3, 3) if basic else (1, 3, 1)
            channels = [inputs] + [width] * (len(kernels) - 1) + [width * expansion]
            for i, kernel in enumerate(kernels):
                conv(f"{block}.conv{i + 1}", channels[i], channels[i + 1], kernel)
                norm(f"{block}.bn{i + 1}", channels[i + 1])
            if index == 0 and not (basic and layer == 1):
                conv(f"{block}.downsample.0", inputs, width * expansion, 1)
                norm(f"{block}.downsample.1", width * expansion)
            inputs = width * expansion
    stride4, stride8, stride16 = (width * expansion for width in (64, 128, 256))
    unit("conv_coarse", stride16, 128, 1)
    unit("upconv3.conv", stride16, 512, 3)
    unit("iconv3", stride8 + 512, 512, 3)
    unit("upconv2.conv", 512, 256, 3)
    unit("iconv2", stride4 + 256, 256, 3)
    unit("conv_fine", 256, 128, 1)
    return shapes


def random_state(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    """Random parameters and batch statistics that keep activations of order one."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, shape in shapes.items():
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(1234)
        elif len(shape) == 4:
            fan_in = shape[1] * shape[2] * shape[3]
            state[key] = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
        elif key.endswith((".running_var", "bn1.weight", "bn2.weight", "bn3.weight", "bn.weight", "1.weight")):
            state[key] = 0.5 + torch.rand(shape, generator=generator)
        else:
            state[key] = 0.3 * torch.randn(shape, generator=generator)
    return state


def zero_state(encoder: str) -> dict[str, Tensor]:
    """An official state dict of zeros, one element each in memory and on disk, however large the tensor."""
    shapes = official_shapes(encoder)
    return {key: torch.zeros(1).expand(shape) if shape else torch.tensor(0) for key, shape in shapes.items()}


def save_official(path: Path, state: dict[str, Tensor]) -> Path:
    """A checkpoint as the authors' training code writes it."""
    moments = {"step": 200000, "exp_avg": torch.zeros(3), "exp_avg_sq": torch.zeros(3)}
    group = {"lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "amsgrad": False, "params": [1407]}
    content = {
        "step": 200000,
        "state_dict": OrderedDict((f"net.{key}", tensor) for key, tensor in state.items()),
        "optimizer": {"state": {1407: moments}, "param_groups": [group]},
        "scheduler": {"step_size": 80000, "gamma": 0.5, "base_lrs": [1e-4], "last_epoch": 200000},
    }
    torch.save(content, path)
    return path


def doubled(x: Tensor) -> Tensor:
    """Corner-aligned linear interpolation to twice the size, as two matrix products."""

    def matrix(n: int) -> Tensor:
        positions = torch.arange(2 * n, dtype=torch.float64) * (n - 1) / (2 * n - 1)
        return (1 - (positions[:, None] - torch.arange(n)).abs()).clamp(min=0).to(x.dtype)

    return matrix(x.shape[-2]) @ x @ matrix(x.shape[-1]).T


def centred(x: Tensor, height: int, width: int) -> Tensor:
    """x on a canvas of zeros, the smaller margin at the left and the top; cropped where it is larger."""
    top, left = (height - x.shape[-2]) // 2, (width - x.shape[-1]) // 2
    x = x[..., max(-top, 0) :, max(-left, 0) :][..., :height, :width]
    canvas = x.new_zeros(*x.shape[:-2], height, width)
    top, left = max(top, 0), max(left, 0)
    canvas[..., top : top + x.shape[-2], left : left + x.shape[-1]] = x
    return canvas


def paper_maps(state: dict[str, Tensor], encoder: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """The paper's network as a function of its parameters."""

    def norm(name: str, x: Tensor) -> Tensor:
        weight, bias, mean, var = (
            state[f"{name}.{part}"].view(-1, 1, 1) for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def unit(name: str, x: Tensor) -> Tensor:
        weight = state[f"{name}.conv.weight"]
        x = F.conv2d(x, weight, state[f"{name}.conv.bias"], padding=weight.shape[-1] // 2)
        return F.elu(norm(f"{name}.bn", x))

    x = F.max_pool2d(F.relu(norm("firstbn", F.conv2d(x, state["firstconv.weight"], stride=2, padding=3))), 3, 2, 1)
    maps = []
    basic = encoder in ("resnet18", "resnet34")
    for layer, count in enumerate(BLOCKS[encoder], start=1):
        for index in range(count):
            block = f"layer{layer}.{index}"
            stride = 2 if layer > 1 and index == 0 else 1
            y = x
            for i, conv_stride in enumerate((stride, 1) if basic else (1, stride, 1), start=1):
                weight = state[f"{block}.conv{i}.weight"]
                y = F.conv2d(F.relu(y) if i > 1 else y, weight, stride=conv_stride, padding=weight.shape[-1] // 2)
                y = norm(f"{block}.bn{i}", y)
            if f"{block}.downsample.0.weight" in state:
                x = norm(f"{block}.downsample.1", F.conv2d(x, state[f"{block}.downsample.0.weight"], stride=stride))
            x = F.relu(x + y)
        maps.append(x)
    stride4, stride8, stride16 = maps
    up = unit("upconv3.conv", doubled(stride16))
    up = unit("iconv3", torch.cat([stride8, centred(up, *stride8.shape[-2:])], 1))
    up = unit("upconv2.conv", doubled(up))
    up = unit("iconv2", torch.cat([stride4, centred(up, *stride4.shape[-2:])], 1))
    return unit("conv_coarse", stride16), unit("conv_fine", up)


@pytest.fixture(scope="module")
def official18(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    state = random_state(official_shapes("resnet18"))
    return save_official(tmp_path_factory.mktemp("official") / "caps.pth", state), state


@pytest.mark.parametrize(
    ("encoder", "sizes"), [("resnet18", [(64, 96), (65, 97), (50, 70)]), ("resnet50", [(32, 48), (49, 38)])]
)
def test_official_checkpoint_computes_the_paper(encoder: str, sizes: list[tuple[int, int]], tmp_path: Path) -> None:
    state = random_state(official_shapes(encoder))
    weights = resolve(save_official(tmp_path / "caps.pth", state))
    assert weights.config == ModelConfig.paper(encoder)
    network = weights.build()
    assert not network.training
    # In double precision rounding cannot hide a difference: the random bottlenecks amplify it.
    network.double()
    state = {key: tensor.double() for key, tensor in state.items()}
    for height, width in sizes:
        generator = torch.Generator().manual_seed(height)
        image = torch.randn(1, 3, height, width, generator=generator, dtype=torch.float64)
        with torch.inference_mode():
            coarse, fine = network(image)
        expected_coarse, expected_fine = paper_maps(state, encoder, image)
        assert coarse.shape == (1, 128, -(-height // 16), -(-width // 16))
        assert fine.shape == (1, 128, -(-height // 4), -(-width // 4))
        assert coarse.std() > 0.1
        assert fine.std() > 0.1
        torch.testing.assert_close(coarse, expected_coarse, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(fine, expected_fine, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("encoder", list(BLOCKS))
def test_encoder_is_inferred_and_every_key_used(encoder: str, tmp_path: Path) -> None:
    state = zero_state(encoder)
    weights = resolve(save_official(tmp_path / "caps.pth", state))
    assert weights.config == ModelConfig.paper(encoder)
    assert list(weights.state_dict) == [key for key in state if not key.endswith("num_batches_tracked")]


def test_number_of_official_keys() -> None:
    # Stem 6, 13 bottlenecks of 18, 3 shortcuts of 6, 6 decoder units of 7.
    with torch.device("meta"):
        network = build_network(ModelConfig.paper("resnet50"))
    assert len(network.state_dict()) == 6 + 13 * 18 + 3 * 6 + 6 * 7
    assert {key: tuple(t.shape) for key, t in network.state_dict().items()} == official_shapes("resnet50")


def test_a_bare_state_dict_is_the_same(official18: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    path, state = official18
    torch.save(state, tmp_path / "bare.pt")
    torch.save({f"net.{key}": tensor for key, tensor in state.items()}, tmp_path / "prefixed.ckpt")
    expected = resolve(path).state_dict
    for name in ("bare.pt", "prefixed.ckpt"):
        found = resolve(tmp_path / name).state_dict
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_checkpoint_of_the_old_file_format(official18: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    _, state = official18
    torch.save({"step": 1, "state_dict": state}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(resolve(tmp_path / "old.pth").state_dict["firstconv.weight"], state["firstconv.weight"])


def test_wrong_keys_are_named(tmp_path: Path) -> None:
    state = zero_state("resnet18")
    path = tmp_path / "broken.pth"

    missing = dict(state)
    del missing["iconv2.conv.bias"]
    with pytest.raises(ValueError, match=r"1 missing \(net\.iconv2\.conv\.bias\)"):
        resolve(save_official(path, missing))

    renamed = dict(state)
    renamed["layer2.0.bn9.weight"] = renamed.pop("layer2.0.bn1.weight")
    with pytest.raises(ValueError, match=r"missing \(net\.layer2\.0\.bn1\.weight\).*unexpected \(net\.layer2\.0\.bn9"):
        resolve(save_official(path, renamed))

    reshaped = {**state, "conv_fine.conv.weight": torch.zeros(64, 256, 1, 1)}
    with pytest.raises(ValueError, match=r"net\.conv_fine\.conv\.weight \(64, 256, 1, 1\) instead of \(128, 256"):
        resolve(save_official(path, reshaped))

    with pytest.raises(ValueError, match=r"unexpected \(net\.other\.num_batches_tracked\)"):
        resolve(save_official(path, {**state, "other.num_batches_tracked": torch.tensor(1)}))

    with pytest.raises(ValueError, match=r"not of a floating-point type \(net\.firstbn\.bias\)"):
        resolve(save_official(path, {**state, "firstbn.bias": torch.zeros(64, dtype=torch.int64)}))

    # One key without the prefix that all others have.
    mixed = {f"net.{key}": tensor for key, tensor in state.items()}
    mixed["firstbn.bias"] = mixed.pop("net.firstbn.bias")
    torch.save({"state_dict": mixed}, path)
    with pytest.raises(ValueError, match=r"missing \(net\.firstbn\.bias\).*unexpected \(firstbn\.bias\)"):
        resolve(path)


def test_build_refuses_what_does_not_fit() -> None:
    config = ModelConfig()
    state = build_network(config).state_dict()
    state["encoder.firstconv.weight"][0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"somewhere has values that are not finite.*encoder\.firstconv\.weight"):
        Weights(config, state, "somewhere").build()
    with pytest.raises(ValueError, match=r"somewhere does not fit.*\d+ missing \(.* and \d+ more\)"):
        Weights(config, {}, "somewhere").build()


def test_build_shares_nothing_and_draws_no_random_numbers() -> None:
    config = ModelConfig()
    weights = Weights(config, build_network(config).state_dict(), "here")
    before = torch.get_rng_state()
    first, second = weights.build(), weights.build()
    assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.zero_()
    for key, tensor in second.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(tensor, weights.state_dict[key])
    assert all(parameter.requires_grad for parameter in second.parameters())


def test_config_round_trip() -> None:
    for config in (ModelConfig(), ModelConfig.paper(), ModelConfig(encoder="efficientnet_lite2", coarse_dim=64)):
        assert ModelConfig.from_json(config.to_json()) == config
        assert ModelConfig.from_dict(config.to_dict()) == config
    assert ModelConfig.paper().descriptor_dim == 256
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig().encoder = "resnet50"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"encodr": "resnet18"}, "encodr"),
        ({"encoder": "vgg16"}, "vgg16"),
        ({"encoder": ["resnet18"]}, "encoder"),
        ({"architecture": "caps", "encoder": "efficientnet_lite0"}, "efficientnet_lite0"),
        ({"coarse_dim": 0}, "coarse_dim"),
        ({"fine_dim": 128.0}, "fine_dim"),
        ({"decoder_dim": True}, "decoder_dim"),
        ({"normalize": 1}, "normalize"),
        ({"sampling": "corner"}, "sampling"),
    ],
)
def test_config_refuses(values: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ModelConfig.from_dict(values)


def test_config_refuses_other_json() -> None:
    with pytest.raises(ValueError, match="JSON"):
        ModelConfig.from_json("{")
    with pytest.raises(TypeError, match="list"):
        ModelConfig.from_json("[1]")
    with pytest.raises(ValueError, match="no valid JSON"):
        ModelConfig.from_json("[" * 100_000)


@pytest.mark.parametrize("encoder", ["resnet18", "resnet_light", "efficientnet_lite0"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (33, 50), (64, 95), (17, 31)])
def test_compact_map_sizes(encoder: str, height: int, width: int) -> None:
    network = build_network(ModelConfig(encoder=encoder, coarse_dim=24, fine_dim=40)).eval()
    with torch.inference_mode():
        coarse, fine = network(torch.zeros(1, 3, height, width))
    assert coarse.shape == (1, 24, -(-height // 16), -(-width // 16))
    assert fine.shape == (1, 40, -(-height // 4), -(-width // 4))


def randomized(network: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """The network with random batch statistics too, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.05, 0.2, generator=generator)
    return network.eval()


@pytest.mark.parametrize("encoder", ["resnet18", "resnet_light", "efficientnet_lite0"])
def test_compact_network_moves_with_the_image(encoder: str) -> None:
    torch.manual_seed(0)
    network = randomized(build_network(ModelConfig(encoder=encoder)))
    image = torch.randn(1, 3, 33, 656)
    with torch.inference_mode():
        coarse, fine = network(image[..., :640])
        moved_coarse, moved_fine = network(image[..., 16:])
    # 18 coarse cells at either side are out of the border's reach.
    torch.testing.assert_close(coarse[..., 19:-17], moved_coarse[..., 18:-18], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(fine[..., 76:-68], moved_fine[..., 72:-72], rtol=1e-3, atol=1e-4)
    assert (coarse[..., 19:-18] - coarse[..., 18:-19]).abs().max() > 0.01


@pytest.mark.parametrize("encoder", ["resnet18", "resnet_light", "efficientnet_lite0"])
def test_compact_cells_lie_on_multiples_of_the_stride(encoder: str) -> None:
    """With kernels that are their own mirror image, and 16 n + 1 pixels, mirroring the image mirrors the maps: this
    holds only if cell i is centred on pixel 16 i (coarse) and 4 i (fine)."""
    torch.manual_seed(0)
    network = randomized(build_network(ModelConfig(encoder=encoder)))
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.weight.copy_((module.weight + module.weight.flip(-1)) / 2)
                module.weight.copy_((module.weight + module.weight.flip(-2)) / 2)
        image = torch.randn(1, 3, 65, 97)
        maps = network(image)
        mirrored = network(image.flip((-1, -2)))
    for expected, found in zip(maps, mirrored, strict=True):
        assert (expected - expected.flip((-1, -2))).abs().max() > 0.01
        torch.testing.assert_close(found.flip((-1, -2)), expected, rtol=1e-3, atol=1e-4)


NETWORKS = [
    ModelConfig(reliability=True),
    ModelConfig(encoder="resnet50"),
    ModelConfig(encoder="efficientnet_lite0"),
    ModelConfig.small(),
    ModelConfig.paper("resnet18"),
]


@pytest.mark.parametrize("config", NETWORKS)
def test_folded_normalisation_computes_the_same(config: ModelConfig) -> None:
    torch.manual_seed(0)
    network = randomized(build_network(config)).double()
    image = torch.randn(1, 3, 33, 50, dtype=torch.float64)
    with torch.no_grad():
        expected = network(image)
        folded = fold_batch_norm(network)(image)
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in network.modules())
    for found, values in zip(folded, expected, strict=True):
        torch.testing.assert_close(found, values, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("config", NETWORKS)
@pytest.mark.parametrize("size", [(33, 50), (1, 1), (64, 31)])
def test_single_cells_are_those_of_the_whole_maps(config: ModelConfig, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network = randomized(build_network(config)).double()
    image = torch.randn(1, 3, *size, dtype=torch.float64)
    height, width = (-(-edge // 4) for edge in size)
    read = torch.rand(height, width) < 0.3
    read[[0, 0, -1, -1], [0, -1, 0, -1]] = True
    with torch.no_grad():
        coarse, *maps = network(image)
        same, *cells = network.maps(network.pyramid(image), read)  # type: ignore[operator]
    torch.testing.assert_close(same, coarse)
    assert len(maps) == len(cells) == 1 + config.reliability
    for values, whole in zip(cells, maps, strict=True):
        torch.testing.assert_close(values[0, :, 0], whole[0][:, read], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "encoder", ["resnet18", "resnet50", "resnet_light", "efficientnet_lite0", "efficientnet_lite2"]
)
def test_cells_depend_on_pixels_within_reach(encoder: str) -> None:
    network = build_network(ModelConfig(encoder=encoder)).eval().double()
    reach = network.reach
    assert isinstance(reach, int)
    middle = 16 * (reach // 16 + 2)
    # Nothing is negative, so nothing cancels and no activation hides a change; each image has another bright pixel.
    images = torch.zeros(17, 3, 1, 2 * middle + 1, dtype=torch.float64)
    for index in range(16):
        images[index, :, 0, middle + index] = 1e6
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.abs_()
        coarse, fine = network(images)
    farthest = []
    for values, stride in ((coarse, 16), (fine, 4)):
        changed = (values[:16] != values[16]).any(1)[:, 0]
        index, cell = changed.nonzero(as_tuple=True)
        farthest.append(int((cell * stride - middle - index).abs().max()))
    assert max(farthest) == reach


def test_encoder_channels() -> None:
    with torch.device("meta"):
        resnets = {name: ResNetEncoder(name) for name in BLOCKS}
        lites = {name: EfficientNetLiteEncoder(f"efficientnet_{name}") for name in ("lite0", "lite1", "lite2")}
    for name, resnet in resnets.items():
        assert resnet.channels == ((64, 64, 128, 256) if name in ("resnet18", "resnet34") else (64, 256, 512, 1024))
    # Tan and Le, 2019: width 1.0 and 1.1, depth 1.0, 1.1 and 1.2, rounded as TensorFlow's code does.
    assert {name: lite.channels for name, lite in lites.items()} == {
        "lite0": (16, 24, 40, 112),
        "lite1": (16, 24, 40, 112),
        "lite2": (16, 24, 48, 120),
    }
    assert {name: len(lite._blocks) for name, lite in lites.items()} == {"lite0": 11, "lite1": 15, "lite2": 15}


@pytest.mark.parametrize("encoder", [ResNetEncoder("resnet50"), EfficientNetLiteEncoder("efficientnet_lite2")])
def test_encoder_maps_have_the_channels_it_states(encoder: ResNetEncoder | EfficientNetLiteEncoder) -> None:
    with torch.inference_mode():
        maps = encoder.eval()(torch.zeros(1, 3, 32, 48))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (channels, 32 // stride, 48 // stride) for channels, stride in zip(encoder.channels, (2, 4, 8, 16), strict=True)
    ]


def test_normalize_image() -> None:
    image = torch.rand(2, 3, 4, 5)
    expected = torch.stack(
        [
            (image[:, 0] - 0.485) / 0.229,
            (image[:, 1] - 0.456) / 0.224,
            (image[:, 2] - 0.406) / 0.225,
        ],
        dim=1,
    )
    torch.testing.assert_close(normalize_image(image), expected)
