"""Which type a CPU computes in: what its instructions tell, and what a measurement does."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from capsdesc import devices

CPU = torch.device("cpu")
X86 = platform.machine().lower() in ("x86_64", "amd64")


@pytest.mark.parametrize(
    ("machine", "amx", "bf16", "known"),
    [
        ("x86_64", True, True, True),
        ("AMD64", False, False, False),  # it would be emulated
        ("x86_64", False, True, None),  # twice as fast with Zen 4, half as fast on Intel's
        ("aarch64", False, False, None),
    ],
)
def test_what_instructions_tell(
    machine: str, amx: bool, bf16: bool, known: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: bf16, raising=False)
    assert devices._known_of_cpu() is known
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert devices._known_of_cpu() is None


def test_torch_that_cannot_tell_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("torch.cpu._is_amx_tile_supported", raising=False)
    assert devices._known_of_cpu() is None


def fastest(home: Path, **environment: str) -> str:
    """What a new process computes in."""
    code = "import torch; from capsdesc.devices import fastest_dtype; print(fastest_dtype(torch.device('cpu')))"
    variables = {**os.environ, "TORCH_HOME": str(home), **environment}
    return subprocess.run(
        [sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True, env=variables
    ).stdout.strip()


@pytest.mark.skipif(not X86, reason="limits the instructions of an x86")
def test_what_is_measured_is_kept_for_the_machine(tmp_path: Path) -> None:
    # With AVX2 alone bfloat16 is emulated, several times slower than float32.
    assert fastest(tmp_path, ONEDNN_MAX_CPU_ISA="AVX2") == "torch.float32"
    file = tmp_path / "capsdesc" / "faster_in_bfloat16.json"
    (answer,) = json.loads(file.read_text()).items()
    assert answer[1] is False
    assert torch.__version__ in answer[0]
    assert platform.node() in answer[0]
    # The next process takes the answer as it stands.
    file.write_text(json.dumps({answer[0]: True}))
    assert fastest(tmp_path, ONEDNN_MAX_CPU_ISA="AVX2") == "torch.bfloat16"
    # Broken, it is measured and written again.
    file.write_text("[")
    assert fastest(tmp_path, ONEDNN_MAX_CPU_ISA="AVX2") == "torch.float32"
    assert json.loads(file.read_text()) == dict([answer])
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.skipif(not X86, reason="limits the instructions of an x86")
def test_homes_that_cannot_be_written_are_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert fastest(tmp_path / "file", ONEDNN_MAX_CPU_ISA="AVX2") == "torch.float32"


@pytest.mark.skipif(not getattr(torch.cpu, "_is_amx_tile_supported", bool)(), reason="needs AMX")
def test_the_measurement_finds_amx() -> None:
    assert devices._time_convolution(torch.bfloat16) * devices._WORTH_IT < devices._time_convolution(torch.float32)


def test_the_measurement_leaves_the_callers_world_alone() -> None:
    state = torch.get_rng_state()
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert 0 < devices._time_convolution(torch.float32, repeats=1) < 60
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(state, torch.get_rng_state())


def test_layouts_of_training() -> None:
    assert devices.training_format(CPU, torch.bfloat16) == torch.channels_last
    assert devices.training_format(CPU, torch.float32) == torch.contiguous_format
    assert devices.training_format(torch.device("cuda"), torch.float32) == torch.channels_last


@pytest.mark.skipif(not sys.platform.startswith("linux") or not X86, reason="reads /proc/cpuinfo of an x86")
def test_the_processor_has_a_name() -> None:
    assert f": {devices.processor_name()}\n" in Path("/proc/cpuinfo").read_text()
