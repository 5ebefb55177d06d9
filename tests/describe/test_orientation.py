"""Images described under several turns and zooms, and the views of two images that go together."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch

from capsdesc import CAPSExtractor, match
from capsdesc.describe.orientation import TURNS, ZOOMS, Orientation, TurnedView, turned_views
from capsdesc.images import read_image
from capsdesc.models import Tile

RELIEF = Path(__file__).parents[2] / "examples" / "data" / "relief_0.jpg"
Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def caps() -> CAPSExtractor:
    return CAPSExtractor()


def whole(view: TurnedView) -> torch.Tensor:
    return view.crop(Tile((0, 0), view.size, torch.arange(len(view.points))))


def test_points_stay_on_what_they_show() -> None:
    # Blurring and interpolating leave a ramp as it is, so each view must show at a moved point what the image showed.
    rows, columns = np.mgrid[0:60, 0:90]
    ramp = torch.tensor(np.stack([columns / 90, rows / 60, (columns + rows) / 150]), dtype=torch.float32)
    points = torch.tensor(np.random.default_rng(0).uniform((20, 20), (69, 39), (40, 2)), dtype=torch.float32)
    x, y = points.double().numpy().T
    expected = np.stack([x / 90, y / 60, (x + y) / 150])
    views = list(turned_views(ramp, points))
    assert len(views) == len(TURNS) * len(ZOOMS)
    for view in views:
        width, height = view.size
        assert ((view.points >= 0) & (view.points <= torch.tensor([width - 1, height - 1]))).all()
        maps = view.points.numpy()[None].astype(np.float32)
        shown = cv2.remap(whole(view).permute(1, 2, 0).numpy(), maps[..., 0], maps[..., 1], cv2.INTER_LINEAR)[0].T
        assert np.abs(shown - expected).max() < 0.02


def test_the_first_view_is_the_image_and_quarter_turns_move_whole_pixels() -> None:
    image = torch.rand(3, 21, 34)
    points = torch.tensor([[3.0, 5.0]])
    views = list(turned_views(image, points))
    assert torch.equal(whole(views[0]), image)
    assert torch.equal(views[0].points, points)
    turned = views[TURNS.index(90)]
    torch.testing.assert_close(whole(turned), torch.rot90(image, -1, (1, 2)), atol=1e-6, rtol=0)
    torch.testing.assert_close(turned.points, torch.tensor([[21.0 - 1 - 5, 3.0]]))


def test_parts_of_a_view_are_cut_from_it() -> None:
    image = torch.rand(3, 61, 134)
    for view in turned_views(image, torch.zeros(0, 2)):
        pixels = whole(view)
        right, bottom = view.size
        part = view.crop(Tile((right // 3, bottom // 4), (right, bottom - 2), torch.zeros(0)))
        # Interpolation has steps of a 32nd of a pixel, and the parts' coordinates are rounded on their own.
        torch.testing.assert_close(part, pixels[:, bottom // 4 : bottom - 2, right // 3 :], atol=0.04, rtol=0)


def test_describing_for_any_orientation_begins_with_the_upright_descriptors(caps: CAPSExtractor) -> None:
    image = np.random.default_rng(0).integers(256, size=(64, 96, 3), dtype=np.uint8)
    points = np.array([[10.0, 20.0], [50.5, 30.25]], dtype=np.float32)
    any_way = caps.describe(image, points, orientation="any")
    assert any_way.shape == (len(TURNS), len(ZOOMS), 2, caps.descriptor_dim)
    np.testing.assert_allclose(any_way[0, 0], caps.describe(image, points), atol=1e-6)
    assert caps.describe(image, points[:0], orientation="any").shape == (9, 3, 0, caps.descriptor_dim)
    both = caps.describe([image, image], [points, points[:1]], orientation="any")
    np.testing.assert_allclose(both[0], any_way, atol=1e-6)
    with pytest.raises(ValueError, match="orientation is 'sideways'; expected one of 'upright', 'any'"):
        caps.describe(image, points, orientation="sideways")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="orientation is 'sideways'"):
        caps.extract(image, orientation="sideways")  # type: ignore[arg-type]


@pytest.mark.parametrize(("zoom_a", "turn", "zoom_b"), [(0, 3, 0), (0, 5, 2), (1, 0, 0), (2, 8, 0)])
@pytest.mark.parametrize("half_step", [False, True])
def test_the_views_that_go_together_are_matched(zoom_a: int, turn: int, zoom_b: int, half_step: bool) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 9, 3, 80, 16))
    order = rng.permutation(80)
    b[turn, zoom_b] = (a[0, zoom_a] + 0.5 * rng.normal(size=(80, 16)))[order]
    turn_a = 0
    if half_step:  # both sides seen under turns that agree still better
        turn_a, turn = 8, 4
        b[turn, zoom_b] = (a[turn_a, zoom_a] + 0.1 * rng.normal(size=(80, 16)))[order]
    matches = match(a, b)
    assert len(matches) == 80
    assert (order[matches.indices[:, 1]] == matches.indices[:, 0]).all()
    sides = a[turn_a, zoom_a][matches.indices[:, 0]], b[turn, zoom_b][matches.indices[:, 1]]
    expected = np.linalg.norm(sides[0] - sides[1], axis=1)
    np.testing.assert_allclose(matches.distances, expected, rtol=1e-5)


def test_one_side_may_be_upright_or_empty() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(50, 16)), rng.normal(size=(9, 3, 50, 16))
    b[6, 1] = a + 0.1 * rng.normal(size=a.shape)
    np.testing.assert_array_equal(match(a, b).indices, np.arange(50)[:, None].repeat(2, axis=1))
    assert len(match(a[:0], b)) == 0
    assert len(match(b[:, :, :0], a)) == 0
    with pytest.raises(ValueError, match=r"expected \(N, D\), one descriptor a row, or \(turns, zooms, N, D\)"):
        match(a, b[0])


def photograph_turned(degrees: float, zoom: float) -> tuple[Pixels, Pixels, Floats]:
    """A crop of a photograph, the same turned on a larger canvas, and the (2, 3) map from one to the other."""
    photograph = read_image(RELIEF)[:400, :480]
    matrix = np.asarray(cv2.getRotationMatrix2D((239.5, 199.5), degrees, zoom), dtype=np.float64)
    matrix[:, 2] += 319.5 - np.array([239.5, 199.5])
    source = photograph if zoom == 1 else cv2.GaussianBlur(photograph, (0, 0), 0.5 / zoom)
    turned = cv2.warpAffine(source, matrix, (640, 640))
    return photograph, np.asarray(turned, dtype=np.uint8), matrix


def accuracy(caps: CAPSExtractor, orientation: Orientation, degrees: float, zoom: float) -> float:
    """Share of matches within 3 px between a photograph and the same turned."""
    photograph, turned, matrix = photograph_turned(degrees, zoom)
    sets = [caps.extract(image, 600, orientation=orientation) for image in (photograph, turned)]
    indices = match(*sets).indices
    points0, points1 = (
        np.asarray(features.keypoints, dtype=np.float64)[indices[:, side]] for side, features in enumerate(sets)
    )
    return float((np.linalg.norm(points0 @ matrix[:, :2].T + matrix[:, 2] - points1, axis=1) <= 3).mean())


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_quarter_turn_matches_nearly_as_well_as_an_upright_photograph(caps: CAPSExtractor, degrees: int) -> None:
    assert accuracy(caps, "any", degrees, 1.0) > accuracy(caps, "upright", 0, 1.0) - 0.05
    assert accuracy(caps, "upright", degrees, 1.0) < 0.4


def test_a_turn_between_the_steps_matches_well(caps: CAPSExtractor) -> None:
    assert accuracy(caps, "any", 155, 1.0) > 0.8
    assert accuracy(caps, "upright", 155, 1.0) < 0.4


def test_a_photograph_from_farther_away_is_found(caps: CAPSExtractor) -> None:
    assert accuracy(caps, "any", 65, 0.4) > accuracy(caps, "upright", 65, 0.4) + 0.3
