"""Describing many photographs: one after the other, and as `capsdesc extract` does it, which decodes and detects ahead.

Both in turns on the same photographs, into memory, with the same number of threads for the network.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch

from capsdesc import CAPSExtractor, Features
from capsdesc.bench.timing import measure
from capsdesc.pipelines.extract import extract_images, name_images


class Memory:
    """Features kept in a dictionary."""

    def __init__(self) -> None:
        self.features: dict[str, Features] = {}

    def sole_use(self) -> AbstractContextManager[None]:
        """Nobody else knows of it."""
        return nullcontext()

    def unfit(self, names: Iterable[str]) -> Mapping[str, str]:
        """A dictionary takes any name."""
        return {}

    def stored(self, names: Iterable[str]) -> Mapping[str, str | None]:
        """Nothing counts as there already."""
        return {}

    def write(self, name: str, features: Features, settings: str) -> None:
        """Keep the features of an image."""
        self.features[name] = features

    def finish(self) -> None:
        """There is nothing to close."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", nargs="+", type=Path, help="image files, or folders of them")
    parser.add_argument("--max-size", type=int, help="as of capsdesc extract")
    parser.add_argument("--repeats", type=int, default=3, help="rounds that count (default: %(default)s)")
    options = parser.parse_args(arguments)
    images = name_images(options.photographs)
    caps = CAPSExtractor(max_size=options.max_size)
    one_by_one, pipeline = Memory(), Memory()

    def describe_one_by_one() -> None:
        for name, path in images.items():
            one_by_one.write(name, caps.extract(path), "")

    calls = {"one by one": describe_one_by_one, "extract": lambda: extract_images(caps, images, pipeline)}
    seconds = {name: float(np.median(samples)) for name, samples in measure(calls, repeats=options.repeats).items()}
    for name, features in one_by_one.features.items():
        if not np.allclose(features.descriptors, pipeline.features[name].descriptors, atol=1e-5):
            raise RuntimeError(f"{name} is described differently")
    print(f"{len(images)} photographs, {torch.get_num_threads()} threads of the network, median of {options.repeats}")
    for name, value in seconds.items():
        print(f"{name:11} {value:6.2f} s, {len(images) / value:.2f} photographs a second")
    print(f"speed-up    {seconds['one by one'] / seconds['extract']:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
