"""The exported network in ONNX Runtime against torch, and the example that needs no torch."""

from __future__ import annotations

import dataclasses
import importlib.util
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from capsdesc import CAPSExtractor, CAPSMatcher, Features
from capsdesc.commands.main import main
from capsdesc.images import read_image
from capsdesc.io.npz import save_features
from capsdesc.models import ModelConfig, build_network, dense_features
from capsdesc.models.context import ContextConfig, ContextNetwork
from capsdesc.onnx import export, export_matcher_onnx, export_onnx, quantize_onnx
from capsdesc.weights import resolve, save_pretrained
from capsdesc.weights.context import load_context, save_context

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = ("bundled", "compact", "paper", "keypoints")


@pytest.fixture(scope="module")
def weights(model_folders: Mapping[str, Path], keypoint_model: Path) -> Mapping[str, Path | None]:
    return {"bundled": None, **model_folders, "keypoints": keypoint_model}


@pytest.fixture(scope="module")
def files(weights: Mapping[str, Path | None], tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("onnx")
    for name in NAMES:
        export_onnx(folder / f"{name}.onnx", weights[name])
    return {name: folder / f"{name}.onnx" for name in NAMES}


def session_of(path: Path) -> Any:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def module_of(script: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(script, EXAMPLES / f"{script}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return module_of("describe_with_onnxruntime")


@pytest.mark.parametrize("name", NAMES)
def test_maps_of_any_size_are_those_of_torch(
    name: str, files: Mapping[str, Path], weights: Mapping[str, Path | None]
) -> None:
    session, resolved = session_of(files[name]), resolve(weights[name])
    network = resolved.build()
    outputs = [output.name for output in session.get_outputs()]
    config = resolved.config
    assert outputs == ["coarse", "fine"] + ["reliability"] * config.reliability + ["scores"] * config.keypoints
    generator = torch.Generator().manual_seed(1)
    for shape in ((1, 96, 64), (3, 33, 47), (1, 101, 17), (2, 62, 31), (1, 16, 15), (1, 4, 5), (1, 1, 1)):
        batch, height, width = shape
        images = torch.rand(batch, 3, height, width, generator=generator)
        with torch.no_grad():
            dense: Any = dense_features(network, config, images, scores=config.keypoints)
        for output, values in zip(outputs, session.run(None, {"image": images.numpy()}), strict=True):
            expected = getattr(dense, output).values.numpy()
            np.testing.assert_allclose(
                values, expected, atol=1e-4 * np.abs(expected).max(), err_msg=f"{output} {shape}"
            )


def test_the_file_says_what_it_is(files: Mapping[str, Path], weights: Mapping[str, Path | None]) -> None:
    session = session_of(files["paper"])
    properties = session.get_modelmeta().custom_metadata_map
    assert ModelConfig.from_json(properties["config"]) == resolve(weights["paper"]).config
    assert (properties["coarse_stride"], properties["fine_stride"]) == ("16", "4")
    assert properties["source"] == str(weights["paper"])
    assert "0..1" in properties["image"]
    (image,) = session.get_inputs()
    assert (image.name, image.shape) == ("image", ["batch", 3, "height", "width"])
    assert [output.shape[2] for output in session.get_outputs()] == ["coarse_height", "fine_height"]
    onnx.checker.check_model(onnx.load(files["paper"]), full_check=True)


def test_keypoints_are_found_without_torch(files: Mapping[str, Path], keypoint_model: Path, shifted_pair: Any) -> None:
    """From the exported map alone, in numpy: peaks, then the mean around each by its softmax, then the shift."""
    image = shifted_pair[0][:96, :128]
    (scores,) = session_of(files["keypoints"]).run(
        ["scores"], {"image": image.transpose(2, 0, 1)[None] / np.float32(255)}
    )
    assert scores.shape == (1, 3, 96, 128)
    logits, shifts = scores[0, 0], scores[0, 1:]
    windows = np.lib.stride_tricks.sliding_window_view(logits, (5, 5))[2:-2, 2:-2]
    rows, columns = np.nonzero(windows.max((2, 3)) == logits[4:-4, 4:-4])
    order = np.argsort(-logits[rows + 4, columns + 4], kind="stable")[:50]
    expected = []
    for row, column in zip(rows[order] + 4, columns[order] + 4, strict=True):
        around = np.exp(logits[row - 2 : row + 3, column - 2 : column + 3] - logits[row, column])
        weights = around / around.sum()
        steps = np.arange(-2, 3)
        centre = np.array([column + weights.sum(0) @ steps, row + weights.sum(1) @ steps])
        expected.append(centre + shifts[:, row, column])
    found = CAPSExtractor(keypoint_model, detector="caps", device="cpu", dtype=torch.float32).detect(image, 50)
    # Keypoints of nearly equal strength may change places.
    distances = np.linalg.norm(np.array(expected)[:, None] - np.asarray(found.points)[None], axis=-1)
    assert np.mean(distances.min(1) < 1e-3) > 0.95


def test_efficientnet_is_exported(tmp_path: Path) -> None:
    config = ModelConfig(encoder="efficientnet_lite0", coarse_dim=8, fine_dim=8, decoder_dim=8)
    save_pretrained(tmp_path / "model", config, build_network(config).state_dict())
    export_onnx(tmp_path / "model.onnx", tmp_path / "model")
    assert len(session_of(tmp_path / "model.onnx").get_outputs()) == 2


@pytest.mark.parametrize("name", NAMES)
def test_example_describes_as_the_extractor_does(
    name: str,
    files: Mapping[str, Path],
    weights: Mapping[str, Path | None],
    example: ModuleType,
    shifted_pair: Any,
) -> None:
    image = shifted_pair[0][:111, :93]
    rng = np.random.default_rng(0)
    corners = np.array([[-0.5, -0.5], [92.5, 110.5], [0, 110], [92, 0]])
    points = np.vstack([corners, rng.uniform((-0.5, -0.5), (92.5, 110.5), (50, 2))])
    expected = np.asarray(CAPSExtractor(weights[name], device="cpu").describe(image, points))
    found = example.describe(session_of(files[name]), image, points)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4 * max(1, np.abs(expected).max()))
    assert example.describe(session_of(files[name]), image, points[:0]).shape == (0, expected.shape[1])


def test_example_runs_without_torch(files: Mapping[str, Path], tmp_path: Path) -> None:
    image, output = EXAMPLES / "data" / "relief_0.jpg", tmp_path / "descriptors.npy"
    script = EXAMPLES / "describe_with_onnxruntime.py"
    arguments = [str(script), str(files["bundled"]), str(image), "320,240", "100.5,80", "-o", str(output)]
    code = f"import runpy, sys; sys.modules.update(torch=None, capsdesc=None); sys.argv = {arguments!r}"
    code += "; runpy.run_path(sys.argv[0], run_name='__main__')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    expected = CAPSExtractor(device="cpu").describe(image, np.array([[320, 240], [100.5, 80]]))
    np.testing.assert_allclose(np.load(output), expected, atol=1e-4)


def test_command(weights: Mapping[str, Path | None], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "caps.onnx"
    assert main(["export", "--onnx", str(output), "--weights", str(weights["compact"])]) == 0
    assert str(output) in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["caps.onnx"]
    assert main(["export", "--onnx", str(tmp_path / "nowhere" / "caps.onnx")]) == 1
    assert "nowhere" in capsys.readouterr().err


def test_what_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    output = tmp_path / "caps.onnx"
    output.write_bytes(b"before")
    with pytest.raises(FileNotFoundError, match="missing"):
        export_onnx(output, tmp_path / "missing")
    assert output.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [output]


def test_another_network_does_not_pass_the_comparison(
    files: Mapping[str, Path], weights: Mapping[str, Path | None]
) -> None:
    config = ModelConfig()
    resolved = resolve(weights["compact"])
    export._compare(export._Maps(resolved.build(), config), session_of(files["compact"]))
    with pytest.raises(RuntimeError, match="coarse map of an image of 96 x 64 px"):
        export._compare(export._Maps(build_network(config), config), session_of(files["compact"]))


# The matcher


@pytest.fixture(scope="module")
def matcher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("matcher") / "matcher.onnx"
    assert main(["export", "--onnx", str(path), "--matcher"]) == 0
    return path


@pytest.fixture(scope="module")
def photographed() -> list[Features]:
    caps = CAPSExtractor(device="cpu")
    return [caps.extract(EXAMPLES / "data" / f"relief_{k}.jpg", 500) for k in (0, 1)]


def agree(found: tuple[Any, Any], expected: Any) -> bool:
    pairs = [dict(zip(map(tuple, np.asarray(i).tolist()), np.asarray(s), strict=True)) for i, s in (found, expected)]
    return pairs[0].keys() == pairs[1].keys() and all(abs(pairs[0][pair] - pairs[1][pair]) < 1e-3 for pair in pairs[0])


def test_example_matches_as_the_matcher_does(matcher_file: Path, photographed: list[Features]) -> None:
    """Which knows for itself which of two images is the first."""
    script = module_of("match_with_onnxruntime")
    matcher, session = CAPSMatcher(device="cpu", dtype=torch.float32), session_of(matcher_file)
    few = [
        dataclasses.replace(one, keypoints=one.keypoints[:4], descriptors=one.descriptors[:4]) for one in photographed
    ]
    for one, other in (photographed, few, [photographed[0], few[1]]):
        forth, back = matcher.match(one, other, min_score=0.3), matcher.match(other, one, min_score=0.3)
        found_forth = script.match(session, vars(one), vars(other), 0.3)
        found_back = script.match(session, vars(other), vars(one), 0.3)
        assert agree(found_forth, (forth.indices, forth.scores)) or agree(found_back, (back.indices, back.scores))
    assert len(script.match(session, vars(photographed[0]), vars(photographed[1]))[0]) > 200
    nothing = dataclasses.replace(few[0], keypoints=few[0].keypoints[:0], descriptors=few[0].descriptors[:0])
    assert len(script.match(session, vars(nothing), vars(few[1]))[0]) == 0
    with pytest.raises(ValueError, match="features of model None"):
        script.match(session, vars(few[0]), vars(few[1]) | {"model": None})


def test_example_matches_without_torch(matcher_file: Path, photographed: list[Features], tmp_path: Path) -> None:
    files = [tmp_path / f"{k}.npz" for k in (0, 1)]
    for file, features in zip(files, photographed, strict=True):
        save_features(file, features, settings="")
    arguments = [str(EXAMPLES / "match_with_onnxruntime.py"), str(matcher_file), *map(str, files)]
    code = f"import runpy, sys; sys.modules.update(torch=None, capsdesc=None); sys.argv = {arguments!r}"
    code += "; runpy.run_path(sys.argv[0], run_name='__main__')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "matches of 500 and 500 keypoints" in result.stdout


def test_the_matchers_file_says_what_it_is(matcher_file: Path) -> None:
    session = session_of(matcher_file)
    properties = session.get_modelmeta().custom_metadata_map
    assert ContextConfig.from_json(properties["config"]) == load_context().config
    assert properties["source"] == "bundled"
    shapes = {given.name: (given.shape, given.type) for given in session.get_inputs()}
    neighbours = load_context().config.neighbours
    assert shapes == {
        "evidence": (["candidates", 8], "tensor(float)"),
        "places": ([2, "candidates", 2], "tensor(float)"),
        "anchors": (["anchors"], "tensor(int64)"),
        "near": ([2, "candidates", neighbours], "tensor(int64)"),
        "present": ([2, "candidates", neighbours], "tensor(bool)"),
    }
    onnx.checker.check_model(onnx.load(matcher_file), full_check=True)


def test_a_matcher_of_a_folder_is_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = ContextConfig("abc", dimensions=17, width=8, blocks=1, tokens=3, heads=2, neighbours=2)
    save_context(tmp_path / "own", config, ContextNetwork(config).state_dict())
    output = tmp_path / "own.onnx"
    export_matcher_onnx(output, tmp_path / "own")
    assert ContextConfig.from_json(session_of(output).get_modelmeta().custom_metadata_map["config"]) == config
    other = ContextNetwork(config)
    with pytest.raises(RuntimeError, match="gives 40 candidates other scores than torch"):
        export._compare_scores(export._Scores(other), session_of(output))
    before = output.read_bytes()
    assert main(["export", "--onnx", str(output), "--matcher", str(tmp_path / "missing")]) == 1
    assert "is no matcher" in capsys.readouterr().err
    assert main(["export", "--onnx", str(output), "--matcher", "--weights", "compact"]) == 1
    assert "give one of the two" in capsys.readouterr().err
    assert output.read_bytes() == before


@pytest.mark.parametrize("export", [export_onnx, export_matcher_onnx])
@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_without_the_packages(
    package: str, export: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package}: pip install 'capsdesc\[onnx\]'"):
        export(tmp_path / "caps.onnx")


def test_eight_bits_compute_nearly_the_same_maps(
    files: Mapping[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = EXAMPLES / "data"
    output = tmp_path / "int8.onnx"
    calibrated_on = [data / "relief_0.jpg", data / "tankard_0.jpg"]
    assert main(["export", "--onnx", str(output), "--int8", *map(str, calibrated_on)]) == 0
    said = capsys.readouterr().out
    assert output.stat().st_size < 0.35 * files["bundled"].stat().st_size
    before, after = session_of(files["bundled"]), session_of(output)
    properties = after.get_modelmeta().custom_metadata_map
    assert properties.pop("computes") == "8-bit integers"
    assert properties == before.get_modelmeta().custom_metadata_map
    # Another photograph than those it was calibrated on.
    image = read_image(data / "relief_1.jpg")[:240, :320].transpose(2, 0, 1)[None] / np.float32(255)
    names = ["coarse", "fine", "scores"]
    whole, small = (session.run(names, {"image": image}) for session in (before, after))
    for a, b in zip(whole[:2], small[:2], strict=True):
        assert (a * b).sum(axis=1).mean() > 0.98
    assert np.corrcoef(whole[2][:, 0].ravel(), small[2][:, 0].ravel())[0, 1] > 0.98
    assert float(said.split("cosine with float32: ")[1].split()[0]) > 0.98


def test_eight_bits_need_photographs_and_a_descriptor(
    files: Mapping[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="no photograph to calibrate"):
        quantize_onnx(files["bundled"], tmp_path / "int8.onnx", [])
    photograph = str(EXAMPLES / "data" / "relief_0.jpg")
    assert main(["export", "--onnx", str(tmp_path / "x.onnx"), "--matcher", "--int8", photograph]) == 1
    assert "give one of the two" in capsys.readouterr().err
    assert main(["export", "--onnx", str(tmp_path / "x.onnx"), "--int8", str(tmp_path / "none.jpg")]) == 1
    assert "none.jpg" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
