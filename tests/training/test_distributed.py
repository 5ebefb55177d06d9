"""Several processes on the CPU, started by torchrun, against one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distributed_run import CONFIG, GRADIENTS, gradients, run
from safetensors.torch import load_file
from test_training import arguments, log_rows, make_scene

import capsdesc
from capsdesc.training.checkpoint import BEST, CHECKPOINT
from capsdesc.training.distributed import SynchronizedBatchNorm2d
from capsdesc.weights import resolve


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_scene(tmp_path_factory.mktemp("scene") / "wall").folder


def torchrun(*arguments: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(capsdesc.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=300)


def test_two_processes_take_the_steps_of_one(scene: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    run(scene, one)
    ended = torchrun(str(Path(__file__).with_name("distributed_run.py")), str(scene), str(two))
    assert ended.returncode == 0, ended.stderr
    # AdamW hardly sees the scale of gradients: look at them as they are.
    gathered = torch.load(two / GRADIENTS, weights_only=True)
    for name, value in gradients(scene).items():
        torch.testing.assert_close(gathered[name], value, rtol=1e-5, atol=1e-7, msg=name)
    rows, expected = log_rows(two), log_rows(one)
    assert [row["step"] for row in rows] == list(range(CONFIG.steps + 1))
    for row, row_of_one in zip(rows, expected, strict=True):
        judged, judged_by_one = row.pop("validation", {}), row_of_one.pop("validation", {})
        # The log has five decimals.
        assert row == pytest.approx(row_of_one, abs=2e-5)
        assert judged == pytest.approx(judged_by_one, rel=1e-5)
    state, state_of_one = (torch.load(out / CHECKPOINT, weights_only=True) for out in (two, one))
    for part in ("network", "average"):
        for name, value in state_of_one[part].items():
            torch.testing.assert_close(state[part][name], value, rtol=1e-5, atol=1e-6, msg=name)
    assert load_file(two / BEST).keys() == load_file(one / BEST).keys()


def test_the_command_under_torchrun(scene: Path, tmp_path: Path) -> None:
    command = [*arguments(scene, tmp_path, "data.keypoints=0", steps=1), "--no-tensorboard"]
    ended = torchrun("-m", "capsdesc.training", *command)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("posed pairs to train on") == 1
    assert ended.stderr.count("CAPSExtractor(") == 1
    assert ended.stdout.count("step 1: ") == 1
    assert [row["step"] for row in log_rows(tmp_path)] == [0, 1]
    assert resolve(str(tmp_path)).config.encoder == "efficientnet_lite0"


def test_synchronized_batch_norm_in_eval_mode_is_plain() -> None:
    torch.manual_seed(0)
    plain = torch.nn.BatchNorm2d(5)
    plain(3 * torch.randn(4, 5, 6, 7) + 1)
    same = SynchronizedBatchNorm2d.like(plain.eval())
    x = torch.randn(2, 5, 3, 3)
    torch.testing.assert_close(same(x), plain(x))
