"""ORB among the methods that are compared."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from capsdesc import match
from capsdesc.evaluation.methods import OWN_KEYPOINTS_ONLY, Describer, Pipeline, get_methods
from capsdesc.images import read_image, to_gray

EXAMPLES = Path(__file__).parents[2] / "examples" / "data"


def test_orb_is_opencvs_and_its_distances_are_those_of_hamming() -> None:
    (method,) = get_methods(["orb"])
    assert isinstance(method, Pipeline)
    assert not isinstance(method, Describer)
    assert "orb" in OWN_KEYPOINTS_ONLY
    images = [read_image(EXAMPLES / f"relief_{k}.jpg") for k in (0, 1)]
    found = [method.extract(image, 400) for image in images]
    expected = []
    for image, (points, descriptors) in zip(images, found, strict=True):
        keypoints, bits = cv2.ORB.create(nfeatures=400).detectAndCompute(to_gray(image), None)
        np.testing.assert_allclose(points, [point.pt for point in keypoints][:400])
        assert descriptors.shape == (len(points), 256)
        expected.append(bits[:400])
    a, b = (descriptors for _, descriptors in found)
    squares = ((a[:, None] - b[None]) ** 2).sum(-1) * 256
    hamming = np.array([[cv2.norm(x, y, cv2.NORM_HAMMING) for y in expected[1]] for x in expected[0][:20]])
    np.testing.assert_allclose(squares[:20], hamming, atol=1e-3)
    # Mutual nearest neighbours agree wherever no two are equally near.
    ours = {tuple(pair) for pair in np.asarray(match(a, b).indices).tolist()}
    theirs = {(m.queryIdx, m.trainIdx) for m in cv2.BFMatcher(cv2.NORM_HAMMING, crossCheck=True).match(*expected)}
    assert len(ours & theirs) > 0.9 * max(len(ours), len(theirs))


def test_orb_finds_nothing_where_nothing_is() -> None:
    (method,) = get_methods(["orb"])
    assert isinstance(method, Pipeline)
    points, descriptors = method.extract(np.full((80, 100, 3), 7, np.uint8), 50)
    assert points.shape == (0, 2)
    assert descriptors.shape == (0, 256)
