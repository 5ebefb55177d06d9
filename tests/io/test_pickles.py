from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from capsdesc.io.pickles import load_array, load_arrays

VALUES: dict[str, Any] = {
    "names": np.array(["a.jpg", None, "b.jpg"], dtype=object),
    "poses": np.array([np.eye(4), None, np.arange(16.0).reshape(4, 4)], dtype=object),
    "pairs": [(np.array([0, 2]), np.float64(0.25), np.array([1.5, 2]))],
    "numbers": np.arange(6, dtype=np.uint16).reshape(2, 3),
}


class Bomb:
    def __init__(self, victim: Path) -> None:
        self.victim = str(victim)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (self.victim,)


def assert_values(found: dict[str, Any]) -> None:
    assert found.keys() == VALUES.keys()
    assert found["names"].tolist() == ["a.jpg", None, "b.jpg"]
    np.testing.assert_array_equal(found["poses"][2], np.arange(16.0).reshape(4, 4))
    np.testing.assert_array_equal(found["numbers"], VALUES["numbers"])
    (indices, overlap, _) = found["pairs"][0]
    assert (list(indices), overlap) == ([0, 2], 0.25)


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("core", [b"numpy._core", b"numpy.core"])
def test_a_pickled_dict_of_arrays_is_read(tmp_path: Path, protocol: int, core: bytes) -> None:
    content = pickle.dumps(VALUES, protocol=protocol)
    if protocol < 4:  # names stand there without their lengths
        content = content.replace(b"numpy._core", core).replace(b"numpy.core", core)
    (tmp_path / "scene.npz").write_bytes(content)
    assert_values(load_arrays(tmp_path / "scene.npz"))


def test_an_archive_with_arrays_of_objects_is_read(tmp_path: Path) -> None:
    pairs = np.empty(1, dtype=object)
    pairs[0] = VALUES["pairs"][0]
    np.savez(tmp_path / "scene.npz", **{**VALUES, "pairs": pairs})
    assert_values(load_arrays(tmp_path / "scene.npz"))
    np.save(tmp_path / "names.npy", VALUES["names"])
    assert load_array(tmp_path / "names.npy").tolist() == ["a.jpg", None, "b.jpg"]
    np.save(tmp_path / "keys.npy", np.array(["a-b", "b-c"]))
    assert load_array(tmp_path / "keys.npy").tolist() == ["a-b", "b-c"]


def test_code_does_not_run(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    bomb = np.empty(1, dtype=object)
    bomb[0] = Bomb(victim)
    np.savez(tmp_path / "archive.npz", bomb=bomb)
    np.save(tmp_path / "array.npy", bomb)
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps({"bomb": Bomb(victim)}))
    for name in ("archive.npz", "pickle.npz"):
        with pytest.raises(ValueError, match="could run code"):
            load_arrays(tmp_path / name)
    with pytest.raises(ValueError, match="could run code"):
        load_array(tmp_path / "array.npy")
    assert not victim.exists()
    np.load(tmp_path / "array.npy", allow_pickle=True)
    assert victim.is_dir(), "the bomb is a dud"


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scene.npz"
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ValueError, match=r"scene\.npz holds a list; expected arrays by their names"):
        load_arrays(path)
    np.savez(path, **{"numbers": VALUES["numbers"]})
    content = path.read_bytes()
    for damaged in (b"", content[:-40], pickle.dumps(VALUES)[:200], b"no archive"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"scene\.npz is no archive of arrays"):
            load_arrays(path)
        with pytest.raises(ValueError, match=r"scene\.npz is no array"):
            load_array(path)
