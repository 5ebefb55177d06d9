"""The demo: its photographs, its answers, and the page over HTTP and in a browser."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
import torch
from gradio_client import Client
from PIL import Image

from capsdesc import CAPSExtractor, match
from capsdesc.commands.main import main
from capsdesc.demo.comparison import Comparison, compare, find
from capsdesc.demo.page import ASK_FOR_BOTH, build_page
from capsdesc.demo.photographs import EXAMPLE, Photograph, read_photograph
from capsdesc.devices import describing_dtype
from capsdesc.geometry import relative_pose, rotation_error
from capsdesc.types import Array

Pixels = npt.NDArray[np.uint8]

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CAMERAS = Path(__file__).parents[2] / "examples" / "data" / "cameras.json"
MAX_SIZE = 480
ORIENTATION, EXIF, FILM_FOCAL = 0x0112, 0x8769, 0xA405


def cameras() -> list[dict[str, Array]]:
    known = json.loads(CAMERAS.read_text(encoding="utf-8"))
    return [{name: np.array(value) for name, value in known[path.name].items()} for path in EXAMPLE]


@pytest.fixture(scope="module")
def example() -> tuple[Photograph, Photograph]:
    first, second = (read_photograph(path, MAX_SIZE) for path in EXAMPLE)
    return first, second


# Photographs


def write(path: Path, pixels: Pixels, orientation: int = 1, film_focal: int | None = None) -> Path:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    if film_focal is not None:
        exif.get_ifd(EXIF)[FILM_FOCAL] = film_focal
    Image.fromarray(pixels).save(path, exif=exif)
    return path


def test_photographs_are_turned_as_browsers_turn_them(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    # Orientation 6: the first row is the right side, seen upright.
    upright = read_photograph(write(tmp_path / "6.png", pixels, orientation=6), 1024)
    np.testing.assert_array_equal(upright.pixels, np.rot90(pixels, -1))
    as_stored = read_photograph(write(tmp_path / "1.png", pixels), 1024)
    np.testing.assert_array_equal(as_stored.pixels, pixels)
    # Pillow turns a TIFF as it opens it; it is turned once all the same.
    Image.fromarray(pixels).save(tmp_path / "6.tif", tiffinfo={ORIENTATION: 6})
    np.testing.assert_array_equal(read_photograph(tmp_path / "6.tif", 1024).pixels, upright.pixels)


def test_photographs_are_read_as_everywhere_else(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    whole = write(tmp_path / "a.jpg", pixels)
    expected = read_photograph(whole, 1024).pixels
    (tmp_path / "b.jpg").write_bytes(whole.read_bytes()[:-2])  # all but the end marker
    np.testing.assert_array_equal(read_photograph(tmp_path / "b.jpg", 1024).pixels, expected)
    (tmp_path / "c.jpg").write_bytes(whole.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"^c\.jpg cannot be read as a photograph: it is broken"):
        read_photograph(tmp_path / "c.jpg", 1024)


@pytest.mark.parametrize("size", [(300, 400), (600, 800), (1200, 900)])
def test_the_focal_length_of_film_keeps_the_diagonal_field_of_view(tmp_path: Path, size: tuple[int, int]) -> None:
    photograph = read_photograph(write(tmp_path / "a.jpg", np.zeros((*size, 3), np.uint8), film_focal=28), 400)
    assert max(photograph.pixels.shape) == 400
    height, width = photograph.pixels.shape[:2]
    field_of_view = 2 * np.arctan(np.hypot(width, height) / 2 / photograph.focal)
    assert field_of_view == pytest.approx(2 * np.arctan(np.sqrt(36**2 + 24**2) / 2 / 28))
    assert "28 mm" in photograph.focal_source


@pytest.mark.parametrize("film_focal", [None, 0])
def test_an_unknown_focal_length_is_said_to_be_a_guess(tmp_path: Path, film_focal: int | None) -> None:
    pixels = np.zeros((300, 400, 3), np.uint8)
    photograph = read_photograph(write(tmp_path / "a.png", pixels, film_focal=film_focal), 1024)
    assert photograph.focal == pytest.approx(1.2 * 400)
    assert "guess" in photograph.focal_source
    np.testing.assert_array_equal(photograph.intrinsics(50.0), [[50, 0, 199.5], [0, 50, 149.5], [0, 0, 1]])
    assert photograph.intrinsics()[0, 0] == photograph.focal


@pytest.mark.parametrize("focal", [0.0, -1.0, np.nan, np.inf])
def test_a_focal_length_must_be_positive(focal: float) -> None:
    with pytest.raises(ValueError, match="focal length is"):
        Photograph(np.zeros((3, 4, 3), np.uint8), 1.0, "").intrinsics(focal)


def test_focal_lengths_of_the_example_are_those_of_structure_from_motion(
    example: tuple[Photograph, Photograph],
) -> None:
    for photograph, camera in zip(example, cameras(), strict=True):
        assert photograph.focal == pytest.approx(camera["K"][0, 0] * MAX_SIZE / 640, rel=0.01)


# Answers


@pytest.mark.parametrize("source", [0, 1])
def test_a_point_is_found_and_marked(
    source: int, model_folders: Mapping[str, Path], shifted_pair: tuple[Pixels, Pixels, Array]
) -> None:
    caps = CAPSExtractor(model_folders["compact"], device="cpu")
    *images, shift = shifted_pair
    pair = Photograph(images[0], 1.0, ""), Photograph(images[1], 1.0, "")
    query = np.array([128.0, 112.0])
    answer = query + (shift if source == 0 else -shift)
    marked, text = find(caps, pair, source, query.tolist())
    located = caps.locate(query[None], images[source], images[1 - source])
    assert np.abs(located.points[0] - answer).max() < 4
    x, y = located.points[0]
    assert f"({x:.1f}, {y:.1f})" in text
    assert f"{located.std[0]:.1f} px" in text
    for image, picture, center, radius in (
        (images[source], marked[source], query, 10),
        (images[1 - source], marked[1 - source], located.points[0], 10 + located.std[0]),
    ):
        rows, columns = np.nonzero((image != picture).any(axis=2))
        assert len(rows) > 20
        assert np.hypot(columns - center[0], rows - center[1]).max() < radius


def as_on_the_page() -> CAPSExtractor:
    """The page is another process, which computes in what its CPU is fastest in."""
    return CAPSExtractor(device="cpu", dtype=describing_dtype(torch.device("cpu")))


@pytest.fixture(scope="module")
def comparison(example: tuple[Photograph, Photograph]) -> Comparison:
    return compare(as_on_the_page(), example)


def test_the_example_has_a_pose_and_every_view_a_picture(comparison: Comparison) -> None:
    for view in vars(comparison).values():
        assert view.figure is not None
        assert view.text
    first, second = cameras()
    R, _ = relative_pose(first["R"], first["t"], second["R"], second["t"])
    angle = float(comparison.pose.text.split("turned by **")[1].split(" degrees")[0])
    assert abs(angle - rotation_error(R, np.eye(3))) < 3
    inliers, matches = (int(word) for word in comparison.pose.text.strip("*").split(" matches")[0].split(" of "))
    assert matches / 2 < inliers < matches
    assert comparison.matches.text.startswith(f"**{matches} matches**")


def test_photographs_of_nothing_have_no_geometry(model_folders: Mapping[str, Path]) -> None:
    black = Photograph(np.zeros((64, 96, 3), np.uint8), 100.0, "")
    nothing = compare(CAPSExtractor(model_folders["compact"], device="cpu"), (black, black))
    assert nothing.matches.text.startswith("**0 matches**")
    for view in (nothing.pose, nothing.epipolar, nothing.homography):
        assert view.figure is None
        assert "found**" in view.text
    with pytest.raises(ValueError, match="focal length is -1"):
        compare(CAPSExtractor(model_folders["compact"], device="cpu"), (black, black), (-1, None))


def test_photographs_are_matched_in_context(example: tuple[Photograph, Photograph], comparison: Comparison) -> None:
    caps = as_on_the_page()
    found = compare(caps, example, method="context")
    features = [caps.extract(photograph.pixels, 2048, derivatives=True) for photograph in example]
    matches = match(*features, max_shift=3, method="context")
    assert found.matches.text.startswith(f"**{len(matches)} matches** of")
    assert "what is around each keypoint" in found.matches.text
    assert found.matches.text != comparison.matches.text
    assert found.pose.figure is not None


# The command


def test_matches_in_context_are_for_the_bundled_weights(
    model_folders: Mapping[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    weights = str(model_folders["compact"])
    assert main(["demo", "--device", "cpu", "--weights", weights, "--detector", "sift", "--matcher", "context"]) == 1
    assert "take nearest neighbours" in capsys.readouterr().err
    caps = CAPSExtractor(weights, detector="sift", device="cpu")
    assert choices(build_page(caps, (None, None), 480)) == ["nearest"]
    assert choices(build_page(as_on_the_page(), (None, None), 480, "context")) == ["nearest", "context"]


def choices(page: Any) -> list[str]:
    """What the page lets one choose from."""
    (radio,) = (component for component in page.config["components"] if component["type"] == "radio")
    return [value for _, value in radio["props"]["choices"]]


def test_a_photograph_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--image1", str(tmp_path / "none.jpg")]) == 1
    assert "none.jpg" in capsys.readouterr().err


def test_without_gradio_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo"]) == 1
    assert "pip install 'capsdesc[demo]'" in capsys.readouterr().err


# The page, served by a process that may talk to nothing but this machine

SERVE = """
import os, sys

def audit(event, arguments):
    if event == "socket.connect":
        host = arguments[1][0] if isinstance(arguments[1], tuple) else "localhost"
    elif event == "socket.getaddrinfo":
        host = arguments[0]
    else:
        return
    if host not in (None, "localhost", "127.0.0.1", "::1", "0.0.0.0"):
        print("OUTSIDE", event, arguments, file=sys.stderr, flush=True)
        raise OSError(f"{event} {arguments}")

sys.addaudithook(audit)
from capsdesc.commands.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the page; when its tests are done, it is seen to have kept to this machine."""
    folder = tmp_path_factory.mktemp("demo")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", SERVE, "demo", "--device", "cpu", "--port", str(port), "--max-size", str(MAX_SIZE)]
    environment = os.environ | {"GRADIO_TEMP_DIR": str(folder), "HF_HUB_OFFLINE": "1"}
    errors = folder / "errors.txt"
    with (
        errors.open("w") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment) as server,
    ):
        assert server.stdout is not None
        line = server.stdout.readline()
        assert line.startswith(f"open http://127.0.0.1:{port}/"), errors.read_text()
        yield f"http://127.0.0.1:{port}/"
        server.terminate()
    assert "OUTSIDE" not in errors.read_text()
    assert "Traceback" not in errors.read_text(), errors.read_text()


def test_the_page_matches_over_http(page: str, comparison: Comparison, example: tuple[Photograph, Photograph]) -> None:
    client = Client(page, verbose=False, analytics_enabled=False)
    answer = client.predict(*(photograph.focal for photograph in example), api_name="/match")
    pictures, texts = answer[::2], answer[1::2]
    assert all(picture["plot"].startswith("data:image/png;base64,") for picture in pictures)
    assert texts[0] == comparison.matches.text
    assert texts[3] == comparison.homography.text
    answer = client.predict(*(photograph.focal for photograph in example), "context", api_name="/match")
    assert answer[1] == compare(as_on_the_page(), example, method="context").matches.text


def answer_to_upload(page: str, file: Path) -> tuple[list[str], list[Any]]:
    """What the page says when a file is dropped into A, and what it then shows."""
    api = f"{page}gradio_api"
    with httpx.Client(timeout=60) as client:
        (path,) = client.post(f"{api}/upload", files={"files": (file.name, file.read_bytes())}).json()
        config = client.get(f"{page}config").json()
        image = next(component["id"] for component in config["components"] if component["type"] == "image")
        (index,) = (each["id"] for each in config["dependencies"] if [image, "upload"] in map(list, each["targets"]))
        data = {"path": path, "orig_name": file.name, "meta": {"_type": "gradio.FileData"}}
        join = {"data": [data], "fn_index": index, "session_hash": file.stem}
        assert client.post(f"{api}/queue/join", json=join).status_code == 200
        said = []
        with client.stream("GET", f"{api}/queue/data", params={"session_hash": file.stem}) as events:
            for line in events.iter_lines():
                event = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
                if event.get("msg") == "log":
                    said.append(event["log"])
                if event.get("msg") == "process_completed":
                    assert event["success"], event
                    return said, event["output"]["data"]
    raise AssertionError("no answer")


def test_uploads_that_are_no_photographs_are_told_in_words(page: str, tmp_path: Path) -> None:
    whole, cut, text, huge = (tmp_path / name for name in ("whole.png", "cut.jpg", "text.jpg", "huge.png"))
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    noise.save(whole)
    noise.save(cut)
    cut.write_bytes(cut.read_bytes()[:900])
    text.write_text("no photograph")
    Image.new("1", (9000, 9000)).save(huge)
    said, (_, shown, *_) = answer_to_upload(page, whole)
    assert said == []
    assert shown is not None
    for file, words in ((cut, "is broken"), (text, "is broken"), (huge, "has 9000 x 9000 pixels: shrink it to")):
        (notice,), (_, shown, *_) = answer_to_upload(page, file)
        assert notice.startswith(file.name)
        assert words in notice
        assert "/" not in notice, "a path on the server"
        assert shown is None


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on PATH")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium's sandbox does not start as root, as in containers.
        chromium = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def test_a_click_in_a_browser_is_answered(
    page: str, browser: Any, example: tuple[Photograph, Photograph], tmp_path: Path
) -> None:
    tab = browser.new_page(viewport={"width": 800, "height": 1000})
    tab.set_default_timeout(60_000)
    hosts = set()
    tab.on("request", lambda request: hosts.add(urllib.parse.urlsplit(request.url).hostname))
    tab.goto(page)

    def click(name: str, x: float, y: float) -> str:
        """Click pixel x, y of a photograph; the answer in words."""
        image = tab.locator(f"#photograph-{name} img")
        box = image.bounding_box()
        width, height = image.evaluate("image => [image.naturalWidth, image.naturalHeight]")
        tab.mouse.click(box["x"] + (x + 0.5) * box["width"] / width, box["y"] + (y + 0.5) * box["height"] / height)
        answer = tab.locator("#answer", has_text=f"in {name} is at")
        answer.wait_for()
        return str(answer.inner_text())

    def numbers(text: str) -> list[float]:
        return [float(number) for number in "".join(c if c in "0123456789." else " " for c in text).split()[:4]]

    caps = as_on_the_page()
    tab.locator("#photograph-A img").wait_for()
    for source, name, point in ((0, "A", (343, 154)), (1, "B", (375, 247))):
        x0, y0, x1, y1 = numbers(click(name, *point))
        # A pixel on the screen is one and a half of the photograph.
        assert np.abs(np.subtract((x0, y0), point)).max() <= 2
        query = np.array([[x0, y0]])
        expected = caps.locate(query, example[source].pixels, example[1 - source].pixels).points[0]
        assert (x1, y1) == pytest.approx(expected.tolist(), abs=0.06)

    # A photograph of one's own, on its side: it is shown upright, and clicks mean what is seen.
    turned = write(tmp_path / "turned.png", np.rot90(example[1].pixels[:, 75:375]), orientation=6, film_focal=50)
    photograph = tab.locator("#photograph-B")
    photograph.get_by_label("Remove Image").click()
    tab.locator("#answer", has_not_text="is at").wait_for(state="attached")
    tab.locator("#photograph-A img").click()
    tab.get_by_text(ASK_FOR_BOTH).wait_for()
    photograph.locator("input[type=file]").set_input_files(turned)
    tab.get_by_text("from EXIF data: 50 mm").wait_for()
    x0, y0, x1, y1 = numbers(click("A", 343, 154))
    expected = caps.locate(np.array([[x0, y0]]), example[0].pixels, example[1].pixels[:, 75:375]).points[0]
    assert (x1, y1) == pytest.approx(expected.tolist(), abs=0.06)

    tab.locator("#match").click()
    tab.locator("#text-matches", has_text="mutual nearest neighbours").wait_for()
    tab.get_by_label("In context").check()
    tab.locator("#match").click()
    tab.locator("#text-matches", has_text="what is around each keypoint").wait_for()
    tab.get_by_role("tab", name="Pose").click()
    tab.locator("#plot-pose img").wait_for()
    assert tab.locator("#plot-pose img").evaluate("image => image.naturalWidth") > 500
    assert hosts <= {"127.0.0.1", None, ""}
    tab.close()
