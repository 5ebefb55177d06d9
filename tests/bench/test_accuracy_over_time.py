"""The picture of accuracy over time has a mark for each method, where its figures say."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from capsdesc.images import read_image

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "accuracy_over_time.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("accuracy_over_time", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def table(title: str, **seconds: float) -> dict[str, Any]:
    return {"title": title, "rows": [{"name": name.replace("_", "-"), "median": s} for name, s in seconds.items()]}


TIMES = {
    "settings": {"threads": 2},
    "tables": [
        table("describe 9 given SIFT keypoints, 640 x 480", caps_keypoints=9.0),
        table("detect and describe at most 2048 keypoints, 640 x 480", caps_keypoints=0.2, orb=0.01, disk=2.0),
        table("detect and describe at most 2048 keypoints, 1024 x 768", caps_keypoints=7.0),
    ],
}
RESULTS = [
    {"method": method, "kind": kind, "summary": {"upright": {"mma@3": value}, "all": {"auc@5": value + 0.1}}}
    for method, value in (("caps-keypoints:compact", 0.75), ("orb", 0.25), ("aliked", 0.5))
    for kind in ("oxford", "strecha")
]


def test_marks_are_where_the_figures_say(script: ModuleType) -> None:
    figure = script.draw(TIMES, RESULTS, "640 x 480")
    assert len(figure.axes) == 2
    for axes, more in zip(figure.axes, (0.0, 0.1), strict=True):
        marks = {text.get_text(): line.get_xydata()[0] for text, line in zip(axes.texts, axes.lines, strict=True)}
        # Who is in one of the tables alone has no mark.
        assert set(marks) == {"capsdesc", "ORB"}
        np.testing.assert_allclose(marks["capsdesc"], [200, 0.75 + more])
        np.testing.assert_allclose(marks["ORB"], [10, 0.25 + more])
        assert "2 threads" in axes.get_xlabel()


def test_the_picture_is_written_and_a_missing_size_named(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text(json.dumps(TIMES))
    (tmp_path / "eval.json").write_text(json.dumps({"results": RESULTS}))
    arguments = [str(tmp_path / "bench.json"), str(tmp_path / "eval.json"), "-o", str(tmp_path / "picture.png")]
    assert script.main(arguments) == 0
    assert read_image(tmp_path / "picture.png").std() > 10
    with pytest.raises(ValueError, match=r"1 x 1; there are .*640 x 480"):
        script.draw(TIMES, RESULTS, "1 x 1")
