"""Features of many images: the same as of one at a time, resumable, and never mixed; with files read back plainly."""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import numpy.typing as npt
import pytest
import torch

from capsdesc import CAPSExtractor, Features, Keypoints
from capsdesc.commands.main import main
from capsdesc.io.hloc import read_features
from capsdesc.io.npz import load_features, save_features
from capsdesc.keypoints import Detector, SIFTDetector
from capsdesc.pipelines.extract import Extraction, extract_images, name_images
from capsdesc.pipelines.stores import FeatureSink, HlocFile, NpzFolder
from capsdesc.weights import resolve, save_pretrained

Pixels = npt.NDArray[np.uint8]
Array = npt.NDArray[Any]
Capture = pytest.CaptureFixture[str]
Logs = pytest.LogCaptureFixture

FIELDS = ("keypoints", "descriptors", "scores", "scales", "angles")
# The last bits of a descriptor depend on the CPU and on how many threads torch computes with.
ROUNDING = 1e-5


@pytest.fixture(scope="module")
def model(model_folders: Mapping[str, Path]) -> str:
    return str(model_folders["compact"])


@pytest.fixture(scope="module")
def caps(model: str) -> CAPSExtractor:
    return CAPSExtractor(model, device="cpu")


@pytest.fixture
def network(model: str) -> list[str]:
    """The options that choose the small model."""
    return ["--weights", model, "--device", "cpu"]


@pytest.fixture
def image(shifted_pair: tuple[Pixels, Pixels, Array]) -> Pixels:
    return shifted_pair[0][:96, :128]


@pytest.fixture
def photos(tmp_path: Path, image: Pixels) -> Path:
    """A folder of four images that differ, one of them in a folder of its own."""
    for k, name in enumerate(("a.png", "b.png", "c.png", "sub/d.png")):
        write(tmp_path / "photos" / name, np.roll(image, 20 * k, axis=1))
    return tmp_path / "photos"


def write(path: Path, pixels: Pixels) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels[..., ::-1])
    return path


def files_below(folder: Path) -> list[str]:
    """All but the locks, which stay."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return sorted(path.relative_to(folder).as_posix() for path in files)


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def stamps(folder: Path) -> dict[str, int]:
    return {name: (folder / name).stat().st_mtime_ns for name in files_below(folder)}


def assert_same(features: Features, expected: Features) -> None:
    assert features.image_size == expected.image_size
    for name in FIELDS:
        if name == "descriptors":
            np.testing.assert_allclose(features.descriptors, expected.descriptors, rtol=0, atol=ROUNDING)
        else:
            np.testing.assert_array_equal(getattr(features, name), getattr(expected, name))


def assert_holds_features(path: Path, caps: CAPSExtractor, image: Path, count: int) -> None:
    features = caps.extract(image, count)
    with np.load(path) as stored:
        fields = {"angles", "descriptors", "image_size", "keypoints", "model", "scales", "scores", "settings"}
        assert set(stored) - {"derivatives"} == fields  # see test_derivatives_are_kept
        assert stored["image_size"].tolist() == list(features.image_size)
        assert json.loads(str(stored["settings"]))["max_keypoints"] == count
        for name in FIELDS:
            assert stored[name].dtype == np.float32
            np.testing.assert_allclose(stored[name], getattr(features, name), rtol=0, atol=ROUNDING)
    assert_same(load_features(path), features)


def fails(capsys: Capture, arguments: list[str], message: str) -> None:
    """The command ends with 1 and one line on standard error that matches the message."""
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert error.startswith("capsdesc: ")
    assert error.count("\n") == 1, error


class Memory:
    """A sink that keeps features in the order in which they come."""

    def __init__(self) -> None:
        self.features: dict[str, Features] = {}
        self.settings: dict[str, str | None] = {}
        self.finished = 0

    def sole_use(self) -> AbstractContextManager[None]:
        return nullcontext()

    def unfit(self, names: Iterable[str]) -> dict[str, str]:
        return {}

    def stored(self, names: Iterable[str]) -> dict[str, str | None]:
        return {name: self.settings[name] for name in names if name in self.settings}

    def write(self, name: str, features: Features, settings: str) -> None:
        self.features[name], self.settings[name] = features, settings

    def finish(self) -> None:
        self.finished += 1


class Counting:
    """SIFT that counts its calls, and raises what is planned for the n-th."""

    def __init__(self, errors: Mapping[int, BaseException] | None = None) -> None:
        self.calls = 0
        self.errors = errors or {}
        self._lock = threading.Lock()

    def detect(self, image: Pixels, max_keypoints: int, mask: Array | None = None) -> Keypoints:
        with self._lock:
            self.calls += 1
            call = self.calls
        if call in self.errors:
            raise self.errors[call]
        return SIFTDetector().detect(image, max_keypoints, mask)


def with_detector(model: str, detector: Detector) -> CAPSExtractor:
    return CAPSExtractor(model, device="cpu", detector=detector)


# The pipeline


@pytest.mark.parametrize("threads", [None, 1, 3])
def test_features_are_those_of_one_image_at_a_time_and_come_in_order(
    caps: CAPSExtractor, photos: Path, threads: int | None
) -> None:
    images, sink = name_images([photos]), Memory()
    order = ["c.png", "sub/d.png", "a.png", "b.png"]
    done = extract_images(caps, {name: images[name] for name in order}, sink, max_keypoints=30, threads=threads)
    assert done == Extraction(tuple(order), (), {})
    assert list(sink.features) == order
    assert sink.finished == 1
    for name, features in sink.features.items():
        assert len(features) == 30
        assert_same(features, caps.extract(images[name], 30))


def test_few_images_are_in_memory_at_a_time(model: str, image: Pixels, tmp_path: Path) -> None:
    detector = Counting()
    path = write(tmp_path / "a.png", image)
    ahead = []

    class Watching(Memory):
        def write(self, name: str, features: Features, settings: str) -> None:
            super().write(name, features, settings)
            ahead.append(detector.calls - len(self.features))

    extract_images(
        with_detector(model, detector), {f"{k}.png": path for k in range(20)}, Watching(), max_keypoints=5, threads=2
    )
    assert len(ahead) == 20
    assert max(ahead) <= 4


def test_torch_has_as_many_threads_afterwards(model: str, photos: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        inside = []

        class Asking(Counting):
            def detect(self, image: Pixels, max_keypoints: int, mask: Array | None = None) -> Keypoints:
                inside.append(torch.get_num_threads())
                return super().detect(image, max_keypoints, mask)

        extract_images(with_detector(model, Asking()), name_images([photos]), Memory(), max_keypoints=5, threads=2)
        assert inside == [2] * 4
        assert torch.get_num_threads() == 4
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 4
    finally:
        torch.set_num_threads(before)


def test_the_next_image_is_detected_while_this_one_is_at_work(model: str, photos: Path) -> None:
    detector = Counting()

    class Waiting(Memory):
        def write(self, name: str, features: Features, settings: str) -> None:
            super().write(name, features, settings)
            deadline = time.monotonic() + 60
            while detector.calls < 2:
                assert time.monotonic() < deadline, "nothing is done beside the work of the main thread"
                time.sleep(0.01)

    done = extract_images(with_detector(model, detector), name_images([photos]), Waiting(), max_keypoints=5, threads=1)
    assert len(done.described) == 4


def test_any_orientation(caps: CAPSExtractor, photos: Path, tmp_path: Path) -> None:
    images, folder = name_images([photos / "a.png"]), NpzFolder(tmp_path / "features")
    extract_images(caps, images, folder, max_keypoints=3, orientation="any")
    assert_same(load_features(folder.path("a.png")), caps.extract(images["a.png"], 3, orientation="any"))
    with pytest.raises(ValueError, match=r"differ in orientation \(any, now upright\)"):
        extract_images(caps, images, folder, max_keypoints=3)
    with pytest.raises(ValueError, match=r"shape \(9, 3, 3, \d+\); hloc's files hold \(N, D\)"):
        extract_images(caps, images, HlocFile(tmp_path / "features.h5"), max_keypoints=3, orientation="any")


@pytest.mark.parametrize("output", ["features", "features.h5"])
def test_derivatives_are_kept(caps: CAPSExtractor, photos: Path, tmp_path: Path, output: str) -> None:
    path = tmp_path / output
    images = name_images([photos / "a.png"])
    sink = HlocFile(path) if path.suffix else NpzFolder(path)
    extract_images(caps, images, sink, max_keypoints=30, derivatives=True)
    found = read_features(path, "a.png") if path.suffix else load_features(NpzFolder(path).path("a.png"))
    expected = caps.extract(images["a.png"], 30, derivatives=True)
    derivatives = np.asarray(found.derivatives)
    np.testing.assert_allclose(derivatives, np.asarray(expected.derivatives), rtol=1e-3, atol=1e-5)
    assert derivatives.dtype == np.float32
    with pytest.raises(ValueError, match=r"differ in derivatives \(True, now False\)"):
        extract_images(caps, images, sink, max_keypoints=30)


def test_no_images_and_images_without_keypoints(caps: CAPSExtractor, tmp_path: Path) -> None:
    sink = Memory()
    assert extract_images(caps, {}, sink) == Extraction((), (), {})
    flat = write(tmp_path / "flat.png", np.full((40, 50, 3), 90, np.uint8))
    assert extract_images(caps, {"flat.png": flat}, sink).described == ("flat.png",)
    assert sink.features["flat.png"].descriptors.shape == (0, caps.descriptor_dim)
    assert sink.features["flat.png"].image_size == (50, 40)


def test_what_goes_wrong_with_one_image_leaves_the_others(
    model: str, caps: CAPSExtractor, photos: Path, caplog: Logs
) -> None:
    images, sink = name_images([photos]), Memory()
    errors = {2: RuntimeError("out of\nmemory"), 3: cv2.error("too large")}
    with caplog.at_level(logging.WARNING):
        done = extract_images(with_detector(model, Counting(errors)), images, sink, max_keypoints=9, threads=1)
    assert done == Extraction(("a.png", "sub/d.png"), (), {"b.png": "out of memory", "c.png": "too large"})
    assert [record.getMessage() for record in caplog.records] == [
        "left out b.png: out of memory",
        "left out c.png: too large",
    ]
    assert_same(sink.features["sub/d.png"], caps.extract(images["sub/d.png"], 9))


def test_a_mistake_in_the_program_is_no_broken_image(model: str, photos: Path) -> None:
    sink = Memory()
    with pytest.raises(TypeError, match="a mistake"):
        extract_images(
            with_detector(model, Counting({2: TypeError("a mistake")})), name_images([photos]), sink, threads=1
        )
    assert list(sink.features) == ["a.png"]
    assert sink.finished == 0


def test_errors_in_writing_end_the_work(caps: CAPSExtractor, photos: Path) -> None:
    class Full(Memory):
        def write(self, name: str, features: Features, settings: str) -> None:
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        extract_images(caps, name_images([photos]), Full())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_keypoints": -1}, "max_keypoints is -1"),
        ({"threads": 0}, "threads is 0"),
        ({"engine": "ray", "workers": 0}, "workers is 0"),
        ({"workers": 2}, "workers is 2, but engine is 'local'"),
        ({"orientation": "down"}, "orientation is 'down'; expected one of 'upright', 'any'"),
        ({"engine": "ray"}, "the sink is a Memory; expected an NpzFolder or HlocFile"),
        ({"engine": "dask"}, "engine is 'dask'; expected one of 'local', 'ray'"),
    ],
)
def test_arguments_out_of_range(caps: CAPSExtractor, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        extract_images(caps, {}, Memory(), **settings)


@pytest.mark.parametrize("name", ["", "../a.png", "a/../../b.png", "/a.png"])
def test_names_do_not_lead_out_of_the_output(caps: CAPSExtractor, photos: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="refused; expected the name of a file below the output"):
        extract_images(caps, {name: photos / "a.png"}, NpzFolder(tmp_path / "features"))
    assert not (tmp_path / "features").exists()


# Going on where a run stopped


def stopped(model: str, images: Mapping[str, Path], sink: FeatureSink, call: int) -> None:
    """A run that ends when this image is detected."""
    with pytest.raises(SystemExit):
        extract_images(with_detector(model, Counting({call: SystemExit()})), images, sink, threads=1)


@pytest.fixture(params=["features", "features.h5"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / str(request.param)


def sink_at(output: Path) -> FeatureSink:
    return HlocFile(output) if output.suffix == ".h5" else NpzFolder(output)


def test_a_stopped_run_goes_on_where_it_was(model: str, photos: Path, output: Path) -> None:
    images = name_images([photos])
    stopped(model, images, sink_at(output), 3)
    assert not output.is_file()
    for described, kept in ((("c.png", "sub/d.png"), ("a.png", "b.png")), ((), tuple(images))):
        detector = Counting()
        assert extract_images(with_detector(model, detector), images, sink_at(output)) == Extraction(
            described, kept, {}
        )
        assert detector.calls == len(described)
    assert list(sink_at(output).stored(images)) == list(images)


def test_other_settings_are_not_mixed(model: str, photos: Path, output: Path) -> None:
    images = name_images([photos])
    extract_images(CAPSExtractor(model, device="cpu"), images, sink_at(output), max_keypoints=20)
    before = output.read_bytes() if output.is_file() else stamps(output)
    for extractor, message in (
        (CAPSExtractor(model, device="cpu"), r"differ in max_keypoints \(20, now 2048\)"),
        (CAPSExtractor(model, device="cpu", max_size=64), "differ in .*max_size"),
        (CAPSExtractor(model, device="cpu", dtype=torch.bfloat16), "differ in .*dtype"),
        (CAPSExtractor(model, device="cpu", detector=SIFTDetector(edge_threshold=5)), "differ in .*detector"),
        (with_detector(model, Counting()), "differ in .*detector.*Counting"),
    ):
        with pytest.raises(ValueError, match=message + r".*--overwrite"):
            extract_images(extractor, images, sink_at(output))
    assert before == (output.read_bytes() if output.is_file() else stamps(output))
    done = extract_images(CAPSExtractor(model, device="cpu"), images, sink_at(output), max_keypoints=25, overwrite=True)
    assert done.described == tuple(images)
    assert all('"max_keypoints": 25' in str(made_with) for made_with in sink_at(output).stored(images).values())


def test_other_weights_in_the_same_folder_are_not_mixed(model: str, photos: Path, tmp_path: Path, output: Path) -> None:
    images = name_images([photos / "a.png"])
    weights = resolve(model)
    tensors = dict(weights.state_dict)
    save_pretrained(tmp_path / "model", weights.config, tensors)
    extract_images(CAPSExtractor(tmp_path / "model", device="cpu"), images, sink_at(output))
    # The same weights from elsewhere are the same.
    assert extract_images(CAPSExtractor(model, device="cpu"), images, sink_at(output)).kept == ("a.png",)
    name = next(name for name in tensors if name.endswith("conv.weight"))
    save_pretrained(tmp_path / "model", weights.config, tensors | {name: tensors[name] * 1.001})
    with pytest.raises(ValueError, match="differ in weights"):
        extract_images(CAPSExtractor(tmp_path / "model", device="cpu"), images, sink_at(output))


def test_files_of_unknown_origin_are_not_taken_for_features(caps: CAPSExtractor, photos: Path, tmp_path: Path) -> None:
    images = name_images([photos / "a.png"])
    for content in (b"", b"no archive"):
        (tmp_path / "a.png.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.png made with settings that are not known.*--overwrite"):
            extract_images(caps, images, NpzFolder(tmp_path))
        assert (tmp_path / "a.png.npz").read_bytes() == content
    np.savez(tmp_path / "a.png.npz", keypoints=np.zeros((3, 2)))
    with pytest.raises(ValueError, match="not known"):
        extract_images(caps, images, NpzFolder(tmp_path))
    extract_images(caps, images, NpzFolder(tmp_path), max_keypoints=7, overwrite=True)
    assert_holds_features(tmp_path / "a.png.npz", caps, photos / "a.png", 7)


def test_reading_what_holds_no_features(tmp_path: Path) -> None:
    file = tmp_path / "file.npz"
    for content in (b"", b"no archive", b"PK\x03\x04 broken"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"file\.npz|pickle"):
            load_features(file)
    np.savez(file, keypoints=np.zeros((3, 2)))
    with pytest.raises(ValueError, match="no descriptors and no image_size"):
        load_features(file)
    np.save(tmp_path / "file.npy", np.zeros(3))
    with pytest.raises(ValueError, match="no features"):
        load_features(tmp_path / "file.npy")


def test_features_without_scores_come_back_without(tmp_path: Path) -> None:
    features = Features(np.zeros((2, 2), np.float32), np.ones((2, 3), np.float32), None, None, None, (7, 5))
    save_features(tmp_path / "a.npz", features, settings="")
    assert_same(load_features(tmp_path / "a.npz"), features)


# hloc's file


def h5_features(path: Path) -> dict[str, dict[str, Array]]:
    """Everything in a features file by image, read from the description of the format alone."""
    found: dict[str, dict[str, Array]] = {}

    def visit(name: str, entry: object) -> None:
        if isinstance(entry, h5py.Dataset):
            image, _, field = name.rpartition("/")
            found.setdefault(image, {})[field] = entry[()]

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return found


def test_hloc_file_holds_what_the_library_extracts(
    caps: CAPSExtractor, network: list[str], photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    output = tmp_path / "new" / "features.h5"
    assert main(["extract", str(photos), "-o", str(output), *network, "--max-keypoints", "30"]) == 0
    assert "described 4 of 4 images" in capsys.readouterr().out
    assert files_below(output.parent) == ["features.h5"]
    stored = h5_features(output)
    assert sorted(stored) == ["a.png", "b.png", "c.png", "sub/d.png"]
    for name, fields in stored.items():
        features = caps.extract(photos / name, 30)
        assert sorted(fields) == ["derivatives", "descriptors", "image_size", "keypoints", "scores"]
        np.testing.assert_array_equal(fields["keypoints"], features.keypoints)
        np.testing.assert_allclose(fields["descriptors"].T, features.descriptors, rtol=0, atol=ROUNDING)
        np.testing.assert_array_equal(fields["scores"], np.asarray(features.scores))
        np.testing.assert_array_equal(fields["image_size"], [128, 96])
        np.testing.assert_allclose(np.linalg.norm(fields["descriptors"], axis=0), 1, atol=1e-5)


def test_hloc_file_takes_in_more_images(caps: CAPSExtractor, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "features.h5"
    extract_images(caps, name_images([photos / "a.png"]), HlocFile(output), max_keypoints=10)
    before = h5_features(output)
    extract_images(caps, name_images([photos / "b.png"]), HlocFile(output), max_keypoints=10)
    after = h5_features(output)
    assert sorted(after) == ["a.png", "b.png"]
    for field, values in before["a.png"].items():
        np.testing.assert_array_equal(after["a.png"][field], values)
    # Overwriting some would leave the others beside them.
    with pytest.raises(ValueError, match=r"of b\.png made with settings that differ in max_keypoints \(10, now 11\)"):
        extract_images(caps, name_images([photos / "a.png"]), HlocFile(output), max_keypoints=11, overwrite=True)
    assert visible(tmp_path) == ["features.h5", "photos"]


def test_hloc_file_after_a_killed_write(model: str, photos: Path, tmp_path: Path) -> None:
    images, output = name_images([photos]), tmp_path / "features.h5"
    stopped(model, images, HlocFile(output), 3)
    # What a process that is killed in the middle of a write leaves behind.
    (tmp_path / "features.h5.parts" / f".{'0' * 32}.npz").write_bytes(b"PK half a file")
    assert extract_images(with_detector(model, Counting()), images, HlocFile(output)).kept == ("a.png", "b.png")
    assert sorted(h5_features(output)) == sorted(images)
    assert visible(tmp_path) == ["features.h5", "photos"]


def test_hloc_file_that_is_a_folder_or_no_hdf5(
    network: list[str], photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "folder.h5").mkdir()
    fails(capsys, ["extract", str(photos), "-o", str(tmp_path / "folder.h5"), *network], "it is a folder")
    (tmp_path / "text.h5").write_text("text")
    fails(capsys, ["extract", str(photos), "-o", str(tmp_path / "text.h5"), *network], "text|signature")
    assert (tmp_path / "text.h5").read_text() == "text"


def test_missing_packages_are_named(
    network: list[str], photos: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["extract", str(photos), *network, "-o"]
    monkeypatch.setitem(sys.modules, "h5py", None)
    fails(capsys, [*command, str(tmp_path / "features.h5")], r'pip install "capsdesc\[hloc\]"')
    monkeypatch.setitem(sys.modules, "ray", None)
    fails(capsys, [*command, str(tmp_path / "features"), "--engine", "ray"], r'pip install "capsdesc\[ray\]"')
    assert visible(tmp_path) == ["photos"]


# The command


def test_extract_keeps_the_tree_of_a_folder(
    caps: CAPSExtractor, network: list[str], shifted_pair: tuple[Pixels, Pixels, Array], tmp_path: Path, capsys: Capture
) -> None:
    image0, image1, _ = shifted_pair
    tree, output = tmp_path / "images", tmp_path / "new" / "features"
    # The same name with two endings is two images.
    for name, image in (("a.png", image0), ("a.bmp", image1), ("sub/deep/a.png", image1[:100, :90])):
        write(tree / name, image)
    (tree / "notes.txt").write_text("no image")
    alone = write(tmp_path / "elsewhere" / "b.png", image0[:60])
    assert main(["extract", str(tree), str(alone), "-o", str(output), *network, "--max-keypoints", "30"]) == 0
    assert "4 of 4" in capsys.readouterr().out
    assert files_below(output) == ["a.bmp.npz", "a.png.npz", "b.png.npz", "sub/deep/a.png.npz"]
    for name in ("a.bmp", "a.png", "sub/deep/a.png"):
        assert_holds_features(output / f"{name}.npz", caps, tree / name, 30)
    assert_holds_features(output / "b.png.npz", caps, alone, 30)


def test_extract_in_any_orientation(caps: CAPSExtractor, model: str, photos: Path, tmp_path: Path) -> None:
    command = ["extract", str(photos / "a.png"), "-o", str(tmp_path / "out"), "--weights", model, "--device", "cpu"]
    assert main([*command, "--max-keypoints", "3", "--orientation", "any"]) == 0
    written = load_features(NpzFolder(tmp_path / "out").path("a.png"))
    assert_same(written, caps.extract(photos / "a.png", 3, orientation="any"))


def test_extract_leaves_out_a_broken_image_and_says_so(
    caps: CAPSExtractor, network: list[str], image: Pixels, tmp_path: Path, capsys: Capture, caplog: Logs
) -> None:
    tree, output = tmp_path / "images", tmp_path / "features"
    whole = [write(tree / f"{name}.png", image) for name in "ac"]
    (tree / "b.png").write_bytes(whole[0].read_bytes()[:500])
    command = ["extract", str(tree), str(tmp_path / "missing.png"), "-o", str(output), *network]
    assert main(command) == 1
    assert f"described 2 of 4 images in {output}, 2 left out\n" in capsys.readouterr().out
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert lines[0].startswith("left out b.png: ")
    assert "no image file at" in lines[1]
    assert files_below(output) == ["a.png.npz", "c.png.npz"]
    for path in whole:
        assert_holds_features(output / f"{path.name}.npz", caps, path, 2048)

    # Once they are whole, the same command does the rest.
    before = stamps(output)
    for path in (tree / "b.png", tmp_path / "missing.png"):
        write(path, image)
    assert main(command) == 0
    assert f"described 2 of 4 images in {output}, 2 were there already\n" in capsys.readouterr().out
    assert {name: stamp for name, stamp in stamps(output).items() if name in before} == before


def test_extract_refuses_two_images_of_one_name(
    network: list[str], image: Pixels, tmp_path: Path, capsys: Capture
) -> None:
    one, two = (write(tmp_path / folder / "a.png", image) for folder in ("one", "two"))
    output = tmp_path / "features"
    for images in ((one, two), (one.parent, two.parent), (one, two.parent), (one, one)):
        fails(
            capsys,
            ["extract", *map(str, images), "-o", str(output), *network],
            r"would both be called a\.png",
        )
    assert not output.exists()


def test_extract_refuses_a_folder_without_images_and_an_output_that_is_a_file(
    network: list[str], photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "empty").mkdir()
    fails(capsys, ["extract", str(tmp_path / "empty"), "-o", str(tmp_path / "features"), *network], "no image")
    (tmp_path / "file").write_text("here")
    fails(capsys, ["extract", str(photos), "-o", str(tmp_path / "file"), *network], "it is a file")
    assert (tmp_path / "file").read_text() == "here"


def test_extract_replaces_the_features_of_an_earlier_run_where_told_to(
    caps: CAPSExtractor, network: list[str], photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    image, output = photos / "a.png", tmp_path / "features"

    def command(count: int) -> list[str]:
        return ["extract", str(image), "-o", str(output), *network, "--max-keypoints", str(count)]

    assert main(command(5)) == 0
    fails(capsys, command(7), r"features of a\.png made with settings that differ in max_keypoints \(5, now 7\)")
    assert_holds_features(output / "a.png.npz", caps, image, 5)
    assert main([*command(7), "--overwrite", "--threads", "1"]) == 0
    assert_holds_features(output / "a.png.npz", caps, image, 7)
    assert files_below(output) == ["a.png.npz"]
