"""A disk that is full in the middle of a write: the error is reported, and what was there before stays whole."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("resource", reason="no limit on the size of files on this system")

# The operating system ends a write at this size, as it does where no block is left.
LIMIT = 64 * 1024

PREPARE = """
import resource, signal, sys
from pathlib import Path
import numpy as np
import torch

folder = Path(sys.argv[1])
count = 40 if sys.argv[2] == "before" else 4000
rng = np.random.default_rng(count)
"""
FEATURES = """
from capsdesc import Features
features = Features(
    keypoints=rng.random((count, 2), dtype=np.float32) * 100,
    descriptors=rng.random((count, 64), dtype=np.float32),
    scores=None, scales=None, angles=None, image_size=(100, 100),
)
"""
NETWORK = """
from capsdesc.models import ModelConfig, build_network
torch.manual_seed(count)
config = ModelConfig(encoder="resnet18", decoder_dim=8, coarse_dim=8, fine_dim=8)
network = build_network(config)
"""
WRITERS = {
    "npz": FEATURES
    + """
from capsdesc.pipelines.stores import NpzFolder
write = lambda: NpzFolder(folder).write("a.png", features, "settings")
""",
    "hloc features": FEATURES
    + """
from capsdesc.io.hloc import write_features
write = lambda: write_features(folder / "features.h5", [("a.png", features)])
""",
    "hloc matches": """
from capsdesc.io.hloc import ScoredMatches, write_matches
found = ScoredMatches(np.tile(np.arange(count)[:, None], 2), np.ones(count, np.float32))
write = lambda: write_matches(folder / "matches.h5", [(("a.png", f"{k}.png"), count, found) for k in range(50)])
""",
    "model": NETWORK
    + """
from capsdesc.weights import save_pretrained
write = lambda: save_pretrained(folder, config, network.state_dict(), card="card")
""",
    "checkpoint": NETWORK
    + """
from capsdesc.training.averaging import MovingAverage
from capsdesc.training.checkpoint import RunFolder
from capsdesc.training.config import TrainingConfig
run = RunFolder(folder, TrainingConfig(), "data")
optimizer = torch.optim.Adam(network.parameters())
write = lambda: run.save(count, network, MovingAverage(network, 0.5), optimizer)
""",
}
WRITE = f"""
if sys.argv[2] == "before":
    write()
    sys.exit()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({LIMIT}, {LIMIT}))
try:
    write()
except OSError as error:
    print(error)
"""
NAMES = {
    "npz": "a.png.npz",
    "hloc features": "features.h5",
    "hloc matches": "matches.h5",
    "model": "model.safetensors",
    "checkpoint": "checkpoint.pt",
}


@pytest.mark.parametrize("writer", list(WRITERS))
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, writer: str) -> None:
    code = textwrap.dedent(PREPARE + WRITERS[writer] + WRITE)

    def run(when: str) -> str:
        command = [sys.executable, "-c", code, str(tmp_path), when]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    assert run("before") == ""
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert before
    reported = run("full")
    assert str(tmp_path / NAMES[writer]) in reported, reported
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


def test_the_limit_is_what_stops_the_write(tmp_path: Path) -> None:
    # Without it the same features replace those before.
    code = textwrap.dedent(PREPARE + WRITERS["npz"] + "write()")
    for when in ("before", "full"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path), when], check=True)
    with np.load(tmp_path / "a.png.npz") as stored:
        assert len(stored["keypoints"]) == 4000


DATABASE = """
import resource, signal, sys
import numpy as np
from capsdesc.io.database import ColmapDatabase, pinhole_camera

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    with ColmapDatabase(sys.argv[1]) as database:
        camera = database.add_camera(pinhole_camera(np.diag([100.0, 100.0, 1.0]), 100, 100))
        for k in range(100):
            database.add_image(f"{k}.png", camera)
            database.write_keypoints(f"{k}.png", np.zeros((2000, 2), np.float32))
except OSError as error:
    print(error)
"""


@pytest.mark.parametrize("limit", [2**14, 2**19])
def test_a_full_disk_does_not_end_the_process_that_fills_a_database(tmp_path: Path, limit: int) -> None:
    path = tmp_path / "database.db"
    command = [sys.executable, "-c", DATABASE, str(path), str(limit)]
    reported = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert str(path) in reported
    assert "cannot be" in reported or "cannot write" in reported
