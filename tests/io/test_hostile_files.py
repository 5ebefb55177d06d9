"""Files from people who mean harm, and writing that is interrupted, disturbed or has no room.

The same for files that are merely damaged is in fuzz/.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import signal
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycolmap
import pytest
import torch
import yaml

from capsdesc.evaluation.datasets import read_benchmark
from capsdesc.images import find_images, read_image
from capsdesc.io.colmap import read_model
from capsdesc.io.files import atomic_path
from capsdesc.models import ModelConfig, build_network
from capsdesc.training.config import TrainingConfig
from capsdesc.training.dataset import DataConfig
from capsdesc.training.sources import CapsSource, NerfSource, PairsSource, TumSource, read_sources
from capsdesc.weights import convert_official, resolve, save_pretrained
from capsdesc.weights.files import read_pickle

MEGABYTE = 2**20
CONFIG = ModelConfig(encoder="efficientnet_lite0", coarse_dim=4, fine_dim=4, decoder_dim=4)
LENS = "60 0 31.5 0 60 23.5 0 0 1"
IDENTITY = "1 0 0 0 1 0 0 0 1"
SHIFTED = "1 0 0 0.3 0 1 0 0 0 0 1 0 0 0 0 1"
OUTSIDE = ("../secret.png", "images/../../secret.png", "/secret.png", "..", "")


def in_new_process(code: str, *arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
    """A Python that runs this code, stopped by nobody."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def output(process: subprocess.Popen[str], timeout: float = 120) -> str:
    """What a process printed, once it is seen to have come to a good end in time."""
    try:
        printed, complaint = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"it still ran after {timeout} s")
    assert process.returncode == 0, complaint
    return printed


def write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros((48, 64, 3), np.uint8))


# ---- code in files


class Bomb:
    """What is pickled as a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("function", [os.mkdir, exec, eval])
@pytest.mark.parametrize("form", ["zip", "legacy", "plain"])
def test_code_in_a_checkpoint_does_not_run(tmp_path: Path, form: str, function: Callable[..., Any]) -> None:
    victim, path = tmp_path / "victim", tmp_path / "caps.pth"
    argument = str(victim) if function is os.mkdir else f"__import__('os').mkdir({str(victim)!r})"
    content = {"state_dict": {"net.firstconv.weight": torch.zeros(2)}, "step": Bomb(function, argument)}
    if form == "plain":
        path.write_bytes(pickle.dumps(content["step"], protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    for read in (resolve, lambda path: convert_official(path, tmp_path / "out")):
        with pytest.raises(ValueError, match="could run code"):
            read(path)
    assert sorted(tmp_path.iterdir()) == [path]
    pickle.loads(pickle.dumps(Bomb(os.mkdir, str(victim))))
    assert victim.is_dir(), "the bomb is a dud"


def test_code_in_a_feature_cache_and_in_yaml_does_not_run(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    text = f"steps: !!python/object/apply:os.mkdir [{victim}]"
    with pytest.raises(ValueError, match="YAML"):
        TrainingConfig.from_yaml(text)
    (tmp_path / "sources.yaml").write_text(f"- {text}")
    with pytest.raises(ValueError, match="YAML"):
        read_sources(tmp_path / "sources.yaml")
    assert not victim.exists()
    # The loader that is not ours makes the folder.
    yaml.unsafe_load(text)
    assert victim.is_dir()


# ---- small files that unpack to large ones, and sizes that no file has


def compressed(path: Path, megabytes: int) -> Path:
    """A checkpoint of a few kilobytes whose pickle unpacks to megabytes."""
    torch.save({"a": torch.zeros(4)}, path)
    with zipfile.ZipFile(path) as archive:
        records = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            archive.writestr(name, content + bytes(megabytes * MEGABYTE if name.endswith("data.pkl") else 0))
    return path


def test_compressed_checkpoints_are_refused_before_they_are_unpacked(tmp_path: Path) -> None:
    path = compressed(tmp_path / "bomb.pth", 64)
    assert path.stat().st_size < MEGABYTE
    with pytest.raises(ValueError, match="bytes unpack to 671"):
        read_pickle(path)
    # Of entries that share their bytes an archive may claim any amount too.
    with zipfile.ZipFile(tmp_path / "overlap.pth", "w") as archive:
        archive.writestr("archive/data.pkl", bytes(1000))
        archive.filelist *= 5000
    with pytest.raises(ValueError, match="unpack to 5000000"):
        read_pickle(tmp_path / "overlap.pth")


@pytest.mark.parametrize(
    ("setting", "value"), [("coarse_dim", 10**18), ("coarse_dim", 10**30), ("decoder_dim", 10**12), ("fine_dim", 10**9)]
)
def test_networks_that_no_memory_holds_are_refused(tmp_path: Path, setting: str, value: int) -> None:
    save_pretrained(tmp_path, CONFIG, build_network(CONFIG).state_dict())
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG.to_dict(), setting: value}))
    with pytest.raises(ValueError, match=r"config\.json is refused|does not fit"):
        resolve(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "\0", "\ufeff[", '{"encoder": "\ud800"}'])
def test_absurd_configs_are_refused(tmp_path: Path, text: str) -> None:
    save_pretrained(tmp_path, CONFIG, build_network(CONFIG).state_dict())
    (tmp_path / "config.json").write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(ValueError, match=r"config\.json is refused"):
        resolve(tmp_path)


def test_a_config_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    save_pretrained(tmp_path, CONFIG, build_network(CONFIG).state_dict())
    (tmp_path / "config.json").write_text(CONFIG.to_json(), encoding="utf-8-sig")
    assert resolve(tmp_path).config == CONFIG


@pytest.mark.parametrize(
    ("dtype", "shape", "count"),
    [("F8_E8M0", [1], 1), ("F4", [2], 1), ("F32", [2**63, 0], 0), ("F32", [2**62, 2**62], 4), ("F32", [-1], 4)],
)
def test_tensors_of_no_type_and_no_size_are_refused(tmp_path: Path, dtype: str, shape: list[int], count: int) -> None:
    save_pretrained(tmp_path, CONFIG, build_network(CONFIG).state_dict())
    header = json.dumps({"x": {"dtype": dtype, "shape": shape, "data_offsets": [0, count]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(count))
    with pytest.raises(ValueError, match=r"safetensors|tensors that torch has not"):
        resolve(tmp_path)


def test_tensors_without_their_values_are_refused(tmp_path: Path) -> None:
    config = ModelConfig.paper("resnet18")
    state = build_network(config).state_dict()
    for hollow in (state["firstbn.bias"].to_sparse(), state["firstbn.bias"].to("meta")):
        torch.save({**state, "firstbn.bias": hollow}, tmp_path / "caps.pth")
        with pytest.raises(ValueError, match=r"without all of their values \(firstbn.bias\)"):
            resolve(tmp_path / "caps.pth")


def png(width: int, height: int) -> bytes:
    """A PNG file that says it is of this size and has next to no pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(60_000, 60_000), (2**31 - 1, 1), (20_000, 20_000), (0, 5)])
def test_images_larger_than_their_files_are_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    (tmp_path / "large.png").write_bytes(png(*size))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"large\.png"):
        read_image(tmp_path / "large.png")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


def test_yaml_that_grows_is_refused_in_time_and_in_few_words(tmp_path: Path) -> None:
    lists = "- &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"- &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 20)
    )
    merges = "a0: &a0 {x: 1}\n" + "".join(
        f"a{k}: &a{k} {{<<: [{', '.join([f'*a{k - 1}'] * 9)}]}}\n" for k in range(1, 20)
    )
    for text in (lists, merges):
        (tmp_path / "sources.yaml").write_text(text)
        for refuse in (
            lambda text=text: TrainingConfig.from_yaml(text),
            lambda: read_sources(tmp_path / "sources.yaml"),
        ):
            with pytest.raises(ValueError, match=r"expected|unknown setting") as caught:
                refuse()
            assert len(str(caught.value)) < 50_000


def test_merged_yaml_means_what_it_did() -> None:
    text = "loss: &loss {contrastive: 0.1, matching: 0.2}\nseed: 3\n"
    config = TrainingConfig.from_yaml(text.replace("&loss {", "{<<: [{matching: 9}, {contrastive: 8}], "))
    assert config == TrainingConfig.from_yaml(text)
    config = TrainingConfig.from_yaml("loss: {<<: [{matching: 1.5}, {matching: 2.5, contrastive: 0.5}]}")
    assert (config.loss.matching, config.loss.contrastive) == (1.5, 0.5)


# ---- COLMAP models


@pytest.fixture(scope="module")
def colmap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a.png and b.png in images/, and their model in text/ and binary/."""
    root = tmp_path_factory.mktemp("colmap")
    for name in ("a.png", "b.png"):
        write_image(root / "images" / name)
    (root / "text").mkdir()
    (root / "text" / "cameras.txt").write_text("1 PINHOLE 64 48 60 60 32 24\n")
    (root / "text" / "images.txt").write_text(
        "1 1 0 0 0 0 0 0 1 a.png\n9 9 1 30 4 -1 5 5 2\n2 1 0 0 0 0.3 0 0 1 b.png\n8 9 1 4 5 2\n"
    )
    (root / "text" / "points3D.txt").write_text("1 0 0 4 255 0 0 0.5 1 0 2 0\n2 1 0 5 255 0 0 0.5 1 2 2 1\n")
    (root / "binary").mkdir()
    pycolmap.Reconstruction(str(root / "text")).write_binary(str(root / "binary"))
    return root


# COLMAP's own reader loops or takes all memory on some of these: one that slipped through must not stop the tests.
READ_ALL_CUT = """
import resource, sys
from pathlib import Path
from capsdesc.io.colmap import read_model

whole, cut, images = map(Path, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**31, used + 2**31))
contents = {path.name: path.read_bytes() for path in whole.iterdir()}
huge = [count.to_bytes(8, "little") for count in (3, 10**6, 10**9, 10**18, 2**64 - 1)]
refused = 0
for struck, content in contents.items():
    variants = [content[:end] for end in range(len(content))]
    variants += [content + b"\\0", *(count + content[8:] for count in huge)]
    for variant in variants:
        for name, data in contents.items():
            (cut / name).write_bytes(variant if name == struck else data)
        try:
            read_model(cut, images)
        except ValueError as error:
            assert struck in str(error), error
            refused += 1
        else:
            raise AssertionError(f"{struck} of {len(variant)} bytes instead of {len(content)} was read")
print(refused)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits the memory of a process by Linux's /proc")
def test_binary_models_cut_short_anywhere_are_refused(colmap: Path, tmp_path: Path) -> None:
    sizes = [path.stat().st_size for path in (colmap / "binary").iterdir()]
    printed = output(in_new_process(READ_ALL_CUT, colmap / "binary", tmp_path, colmap / "images"))
    assert int(printed) == sum(sizes) + 6 * len(sizes)


def test_whole_models_of_every_camera_are_read(colmap: Path, tmp_path: Path) -> None:
    kinds = [name for name in pycolmap.CameraModelId.__members__ if name != "INVALID"]
    for kind in kinds:
        model = pycolmap.Reconstruction(str(colmap / "text"))
        camera = pycolmap.Camera.create_from_model_name(1, kind, 60.0, 64, 48)
        model.cameras[1].model, model.cameras[1].params = camera.model, list(camera.params)
        model.write_binary(str(tmp_path))
        if kind == "EQUIRECTANGULAR":  # read, but of no use
            with pytest.raises(ValueError, match="panorama"):
                read_model(tmp_path, colmap / "images")
            continue
        photographs = read_model(tmp_path, colmap / "images")
        assert [photograph.camera.model.name for photograph in photographs] == [kind, kind]
        assert [len(photograph.points) for photograph in photographs] == [2, 2]


def test_poses_that_are_no_rotations_are_refused(colmap: Path, tmp_path: Path) -> None:
    for name in ("cameras.bin", "points3D.bin", "rigs.bin", "frames.bin", "images.bin"):
        content = (colmap / "binary" / name).read_bytes()
        # A frame's quaternion begins behind the count and two ids, an image's behind the count and one.
        place = {"frames.bin": 16, "images.bin": 12}.get(name)
        if place is not None:
            content = content[:place] + struct.pack("<4d", 1, 0, 3, 0) + content[place + 32 :]
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.png: its R is no rotation"):
        read_model(tmp_path, colmap / "images")


# ---- names that lead elsewhere


@pytest.mark.parametrize("name", [name for name in OUTSIDE if name])
def test_colmap_names_stay_below_the_images(colmap: Path, tmp_path: Path, name: str) -> None:
    write_image(tmp_path / "secret.png")
    (tmp_path / "images").mkdir()
    for file in (colmap / "text").iterdir():
        (tmp_path / file.name).write_text(file.read_text().replace("a.png", name))
    with pytest.raises(ValueError, match="is refused; expected the name of a file below"):
        read_model(tmp_path, tmp_path / "images")


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_in_files_stay_below_their_folder(tmp_path: Path, name: str) -> None:
    write_image(tmp_path / "secret.png")
    scene = tmp_path / "scene"
    for path in (scene / "a.png", scene / "images" / "a.png", scene / "s" / "a.png"):
        write_image(path)
    name = str(tmp_path / name.lstrip("/")) if name.startswith("/") else name

    def refused(read: Callable[[], Any]) -> None:
        with pytest.raises(ValueError, match=r"line 1: .*below|frames\[0\]: .*below|entry 0: .*below|fields"):
            read()

    config = DataConfig()
    (scene / "list.txt").write_text(f"{name} a.png 0 0 {LENS} {LENS} {SHIFTED}\n")
    refused(lambda: read_benchmark("pairs", scene / "list.txt"))
    refused(lambda: PairsSource(path=str(scene / "list.txt"), depth=(1.0, 9.0)).scenes(config))
    (scene / "img_cam.txt").write_text(f"{name} 64 48 60 60 32 24 {IDENTITY} 0 0 0\n")
    (scene / "pairs.txt").write_text("")
    refused(lambda: CapsSource(path=str(scene)).scenes(config))
    (scene / "groundtruth.txt").write_text("1 0 0 0 0 0 0 1\n")
    (scene / "rgb.txt").write_text(f"1 {name}\n")
    refused(lambda: TumSource(path=str(scene), intrinsics=(60.0, 60.0, 32.0, 24.0)).scenes(config))
    frame = {"file_path": name.removesuffix(".png"), "transform_matrix": np.eye(4).tolist()}
    (scene / "transforms.json").write_text(json.dumps({"fl_x": 60, "frames": [frame]}))
    if frame["file_path"]:
        refused(lambda: NerfSource(path=str(scene), depth=(1.0, 9.0)).scenes(config))
    camera = {"name": name, "K": [[60, 0, 31.5], [0, 60, 23.5], [0, 0, 1]]}
    (scene / "cameras.json").write_text(json.dumps({"s": [camera]}))
    pair = {"scene": "s", "name1": name, "name2": name, "R": np.eye(3).tolist(), "t": [1, 0, 0]}
    (scene / "pairs.json").write_text(json.dumps([pair]))
    if name and name != "..":
        refused(lambda: read_benchmark("strecha", scene))


# ---- writing


def test_links_in_circles_are_no_place_to_write_to(tmp_path: Path) -> None:
    (tmp_path / "there").symlink_to(tmp_path / "back")
    (tmp_path / "back").symlink_to(tmp_path / "there")
    with pytest.raises(OSError, match=r"symbolic links|does not exist"), atomic_path(tmp_path / "there" / "x") as path:
        path.write_text("new")
    with pytest.raises(OSError, match="symbolic links"):
        read_image(tmp_path / "there")


def test_a_link_is_written_through_and_nothing_else_is_touched(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "target")
    with atomic_path(tmp_path / "link") as path:
        assert path.parent == tmp_path / "elsewhere"
        path.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert {path.name: path.read_text() for path in (tmp_path / "elsewhere").iterdir()} == {
        "kept": "kept",
        "target": "new",
    }


WRITE_OVER_AND_OVER = """
import sys
from capsdesc.io.files import atomic_path

for _ in range(40):
    with atomic_path(sys.argv[1]) as path:
        path.write_bytes(sys.argv[2].encode() * 300_000)
"""


def test_of_two_writers_one_wins_and_readers_see_whole_files_only(tmp_path: Path) -> None:
    path = tmp_path / "shared.bin"
    path.write_bytes(b"0")
    writers = [in_new_process(WRITE_OVER_AND_OVER, path, letter) for letter in "ab"]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        content = path.read_bytes()
        seen.add((content[:1], content.count(content[:1]), len(content)))
        time.sleep(0.002)
    for writer in writers:
        output(writer)
    assert seen <= {(b"0", 1, 1), (b"a", 300_000, 300_000), (b"b", 300_000, 300_000)}
    assert path.read_bytes()[:1] in (b"a", b"b")
    assert list(tmp_path.iterdir()) == [path]


SAVE_SLOWLY = """
import signal, sys, time
from capsdesc.io.files import atomic_path

# Whoever runs the tests in the background may have them ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
with atomic_path(sys.argv[1]) as path:
    path.write_bytes(b"half of it")
    print(path, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_a_writer_that_is_stopped_leaves_the_old_file(tmp_path: Path, stop: signal.Signals) -> None:
    path = tmp_path / "image.png"
    write_image(path)
    old = path.read_bytes()
    writer = in_new_process(SAVE_SLOWLY, path)
    assert writer.stdout is not None
    half = Path(writer.stdout.readline().strip())
    assert half.read_bytes() == b"half of it"
    writer.send_signal(stop)
    writer.communicate(timeout=60)
    assert path.read_bytes() == old
    # What SIGKILL left behind nobody takes for an image, though it ends like one.
    assert half.exists() == (stop == signal.SIGKILL)
    assert find_images(tmp_path) == [path]


SAVE_WITHOUT_ROOM = """
import resource, sys
from pathlib import Path
import torch
from capsdesc.models import ModelConfig, build_network
from capsdesc.weights import save_pretrained

config = ModelConfig(encoder="efficientnet_lite0", coarse_dim=8, fine_dim=4, decoder_dim=4)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
try:
    save_pretrained(sys.argv[1], config, build_network(config).state_dict(), card="new")
except OSError as error:
    print(error)
"""


def test_a_model_that_has_no_room_leaves_the_old_one(tmp_path: Path) -> None:
    save_pretrained(tmp_path, CONFIG, build_network(CONFIG).state_dict(), card="old")
    old = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert "too large" in output(in_new_process(SAVE_WITHOUT_ROOM, tmp_path)).lower()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == old


def test_hidden_files_folders_and_pipes_are_no_images(tmp_path: Path) -> None:
    write_image(tmp_path / "sub" / "a.png")
    write_image(tmp_path / "._a.png")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    assert find_images(tmp_path) == [tmp_path / "sub" / "a.png"]
