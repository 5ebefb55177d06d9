"""Use the installed package as its users do: ``python -I .ci/use_installed.py PHOTOGRAPHS``, outside the repository."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np

import capsdesc

SCRIPTS = Path(sys.executable).parent
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png"}


def refuse_network(event: str, arguments: tuple[object, ...]) -> None:
    """An audit hook."""
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise OSError(f"the network is off: {event} {arguments}")


def describe_and_match() -> None:
    """Points of an image of coloured blocks, found again where it is moved by a whole cell."""
    step = 16
    rng = np.random.default_rng(0)
    wide = rng.integers(0, 256, (240 // 8, (320 + step) // 8, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    image0, image1 = wide[:, :-step], wide[:, step:]
    points = rng.uniform((64, 64), (256, 176), (100, 2)).astype(np.float32)

    caps = capsdesc.CAPSExtractor()
    descriptors0 = caps.describe(image0, points)
    descriptors1 = caps.describe(image1, points - np.array([step, 0], dtype=np.float32))
    if descriptors0.dtype != np.float32 or descriptors0.shape[0] != len(points):
        sys.exit(f"descriptors are {descriptors0.dtype} {descriptors0.shape}")
    indices = capsdesc.match(descriptors0, descriptors1).indices
    correct = np.count_nonzero(indices[:, 0] == indices[:, 1])
    print(f"{correct} of {len(points)} points matched to themselves, by {caps.source}")
    if correct < 90:
        sys.exit("the bundled model does not match an image to itself")


def run(*command: str) -> str:
    """The output of a command that must succeed."""
    print("+", *command, flush=True)
    return subprocess.run([SCRIPTS / command[0], *command[1:]], check=True, stdout=subprocess.PIPE, text=True).stdout


def run_commands(photographs: Path) -> None:
    """Every command's help, and one real match."""
    run("capsdesc-train", "--help")
    listed = re.search(r"\{([\w,-]+)\}", run("capsdesc", "--help"))
    if listed is None:
        sys.exit("capsdesc --help lists no subcommand")
    for subcommand in listed[1].split(","):
        run("capsdesc", subcommand, "--help")

    images = sorted(str(path) for path in photographs.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if len(images) < 2:
        sys.exit(f"{photographs} holds {len(images)} photographs; two are needed")
    print(run("capsdesc", "match", images[0], images[1]), end="")


if __name__ == "__main__":
    if not Path(capsdesc.__file__).is_relative_to(sys.prefix):
        sys.exit(f"capsdesc is {capsdesc.__file__}, not the one installed in {sys.prefix}")
    sys.addaudithook(refuse_network)
    describe_and_match()
    run_commands(Path(sys.argv[1]))
