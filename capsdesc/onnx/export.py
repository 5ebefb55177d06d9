"""The networks as ONNX files, for places without torch."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from capsdesc.io.files import atomic_path
from capsdesc.isolation import isolated
from capsdesc.models import ModelConfig, dense_features
from capsdesc.models.context import EVIDENCE, Candidates, ContextConfig, ContextNetwork
from capsdesc.models.network import COARSE_STRIDE, FINE_STRIDE, UpConv
from capsdesc.weights import resolve
from capsdesc.weights.context import load_context

_Seen = TypeVar("_Seen")
# Old enough for runtimes of 2022, and without any operator these maps would gain by.
_OPSET = 17
# At this size every upsampled map lacks a row and a column, so that adding them, as many as it takes, is in the graph.
_TRACED_SIZE = (64, 96)
# Images of which torch's and the runtime's maps are compared: batch, height, width. Odd and even, at every stride.
_CHECKED_SIZES = ((1, 64, 96), (2, 61, 83), (1, 50, 33), (1, 9, 118))
# Largest difference between them, as a part of the largest value.
_TOLERANCE = 1e-4
# Candidates and anchors of which scores are compared; those of the graph's tracing come first.
_CHECKED_CANDIDATES = ((40, 17), (1, 1), (300, 90), (9, 3))


@isolated()
def export_onnx(output: str | os.PathLike[str], weights: str | os.PathLike[str] | None = None) -> None:
    """Write a network as an ONNX file. Needs ``pip install "capsdesc[onnx]"``.

    Its input is ``image``, (batch, 3, height, width) float32 RGB in 0..1; the network's own normalisation is in the
    graph. Its outputs are those of :meth:`capsdesc.CAPSExtractor.dense`: ``coarse`` and ``fine``, of unit length where
    the model's are, and where it has these ``reliability``, logits, and ``scores`` of keypoints, (batch, 3, height,
    width): logits of a pixel's being one, and how far to the right and down it then is, see
    :class:`capsdesc.models.DenseFeatures`. Batch, height and width are free. The metadata are

    - ``config``: the model's config as JSON, see :class:`capsdesc.models.ModelConfig`;
    - ``coarse_stride`` and ``fine_stride``: pixels per cell; where the config's sampling is ``"corners"``, only nearly;
    - ``image``: what is expected of the input, in words;
    - ``source`` and ``capsdesc``: where the weights came from, a local path too, and the version of this package.

    Before the file is written, ONNX Runtime computes maps of images of several sizes with it, which must be torch's.

    Args:
        output: The file, usually called ``*.onnx``; its folder must exist. It is written whole or not at all.
        weights: None for the bundled default; else as for :class:`capsdesc.CAPSExtractor`.

    Raises:
        ImportError: onnx or onnxruntime is not installed.
        FileNotFoundError, ValueError, ConnectionError: The weights cannot be had; see :func:`capsdesc.weights.resolve`.
        OSError: The file cannot be written.
        RuntimeError: ONNX Runtime computes other maps than torch.
    """
    check_packages()
    with atomic_path(output) as temporary:
        resolved = resolve(weights)
        maps = _Maps(resolved.build(), resolved.config)
        _trace(maps, temporary)
        properties = {
            "config": resolved.config.to_json(),
            "coarse_stride": str(COARSE_STRIDE),
            "fine_stride": str(FINE_STRIDE),
            "image": "RGB in 0..1, normalised in the graph",
            "source": resolved.source,
        }
        finish(temporary, properties, lambda session: _compare(maps, session))


@isolated()
def export_matcher_onnx(output: str | os.PathLike[str], weights: str | os.PathLike[str] | None = None) -> None:
    """Write the network of :class:`capsdesc.CAPSMatcher` as an ONNX file. Needs ``pip install "capsdesc[onnx]"``.

    The file judges C candidates, pairs of keypoints of two images, of which A are mutual nearest neighbours, the
    anchors. To find them is not in the graph; ``examples/match_with_onnxruntime.py`` does so in NumPy and SciPy.
    C, at least 1, and A, at least 1, are free; K is ``neighbours`` of the config. Its inputs are

    - ``evidence``, (C, 8) float32: the cosine of the two descriptors, without reliability; four times by how much it
      is above that of the most similar rival in image 1 and in image 0; as 0 or 1 whether the keypoint in image 1 is
      the nearest of that in image 0, the other way round, and both; the reliabilities in image 0 and in image 1, from 0
      to 1;
    - ``places``, (2, C, 2) float32: where the keypoints are in image 0 and in image 1, (x, y) minus the middle
      ((width - 1) / 2, (height - 1) / 2), over half of the longer edge;
    - ``anchors``, (A,) int64: which candidates are mutual nearest neighbours;
    - ``near``, (2, C, K) int64: for each candidate the anchors, as indices into ``anchors``, whose keypoints are
      nearest to its own in image 0 and in image 1, without such as have the very same keypoint there;
    - ``present``, (2, C, K) bool: whether there is such an anchor; where there is none, ``near`` is any index.

    Candidates are the ``candidates`` nearest partners of each keypoint of either image, each pair once, whichever way
    round. The output is ``scores``, (C,) float32 from 0 to 1. Metadata are ``config``, of the matcher as JSON, which
    says whose descriptors it takes, ``source`` and ``capsdesc``, as of :func:`export_onnx`.

    Before the file is written, ONNX Runtime computes scores with it, which must be torch's.

    Args:
        output: The file, usually called ``*.onnx``; its folder must exist. It is written whole or not at all.
        weights: None for the bundled ones; else as for :class:`capsdesc.CAPSMatcher`.

    Raises:
        ImportError: onnx or onnxruntime is not installed.
        FileNotFoundError, ValueError: The weights cannot be read.
        OSError: The file cannot be written.
        RuntimeError: ONNX Runtime computes other scores than torch.
    """
    check_packages()
    with atomic_path(output) as temporary:
        network = load_context(weights)
        scores = _Scores(network)
        counts = {"evidence": {0: "candidates"}, "places": {1: "candidates"}, "anchors": {0: "anchors"}}
        counts |= {name: {1: "candidates"} for name in ("near", "present")} | {"scores": {0: "candidates"}}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as in _trace
            torch.onnx.export(
                scores,
                _some_candidates(network.config, *_CHECKED_CANDIDATES[0]),
                temporary,
                input_names=[name for name in counts if name != "scores"],
                output_names=["scores"],
                dynamic_axes=counts,
                opset_version=_OPSET,
                dynamo=False,
            )
        properties = {
            "config": network.config.to_json(),
            "source": "bundled" if weights is None else os.fspath(weights),
        }
        finish(temporary, properties, lambda session: _compare_scores(scores, session))


class _Scores(nn.Module):
    """What is known of candidates to their scores."""

    def __init__(self, network: ContextNetwork) -> None:
        super().__init__()
        self.network = network
        self.eval()

    def forward(self, evidence: Tensor, places: Tensor, anchors: Tensor, near: Tensor, present: Tensor) -> Tensor:
        # Which keypoints they are of is nothing to the network.
        candidates = Candidates(anchors, anchors, evidence, places, anchors, near, present)
        logits: list[Tensor] = self.network(candidates)
        return logits[-1].sigmoid()


def _some_candidates(config: ContextConfig, count: int, anchors: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(count)
    shape = (2, count, config.neighbours)
    return (
        torch.rand(count, EVIDENCE, generator=generator),
        2 * torch.rand(2, count, 2, generator=generator) - 1,
        torch.randperm(count, generator=generator)[:anchors].sort().values,
        torch.randint(anchors, shape, generator=generator),
        torch.rand(shape, generator=generator) < 0.8,
    )


def _compare_scores(scores: _Scores, session: Any) -> None:
    names = [given.name for given in session.get_inputs()]
    for count, anchors in _CHECKED_CANDIDATES:
        given = _some_candidates(scores.network.config, count, anchors)
        with torch.no_grad():
            expected = scores(*given).numpy()
        (found,) = session.run(["scores"], dict(zip(names, (values.numpy() for values in given), strict=True)))
        if found.shape != expected.shape or not np.abs(found - expected).max() <= _TOLERANCE:
            raise RuntimeError(
                f"the exported matcher gives {count} candidates other scores than torch {torch.__version__}; "
                "nothing is written"
            )


def check_packages() -> None:
    """Raise ImportError, which says how to install them, where onnx or onnxruntime is missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ImportError(f"exporting to ONNX needs {error.name}: pip install 'capsdesc[onnx]'") from error


def finish(path: Path, properties: dict[str, str], compare: Callable[[Any], _Seen]) -> _Seen:
    """Give the graph in a file its metadata, once it is seen to compute the right thing.

    Args:
        path: the file.
        properties: the metadata; the version of this package is added.
        compare: is given the runtime's session of the graph, and raises where that is wrong.

    Returns:
        What ``compare`` does.
    """
    import onnx
    import onnxruntime

    model = onnx.load(path)
    onnx.helper.set_model_props(model, properties | {"capsdesc": metadata.version("capsdesc")})
    onnx.checker.check_model(model)
    data = model.SerializeToString()
    seen = compare(onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]))
    path.write_bytes(data)
    return seen


class _Maps(nn.Module):
    """(B, 3, H, W) RGB in 0..1 to the maps of its dense features."""

    def __init__(self, network: nn.Module, config: ModelConfig) -> None:
        super().__init__()
        for name, module in list(network.named_children()):
            if isinstance(module, UpConv):
                # On a CPU it multiplies by matrices of the traced size instead.
                upsample = nn.Upsample(scale_factor=2.0, mode="bilinear", align_corners=True)
                setattr(network, name, nn.Sequential(upsample, module.conv))
        self.network = network
        self.config = config
        self.names = ("coarse", "fine", *(["reliability"] * config.reliability), *(["scores"] * config.keypoints))
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        dense = dense_features(self.network, self.config, image, scores=self.config.keypoints)
        return tuple(getattr(dense, name).values for name in self.names)


def _trace(maps: _Maps, path: Path) -> None:
    sizes = {"image": "", "coarse": "coarse_", "fine": "fine_", "reliability": "fine_", "scores": ""}
    with warnings.catch_warnings(), _sizes_rounded_down():
        # The exporter through torch.export takes a minute for what this one does in a second, to the same maps. That
        # sizes are traced rightly is compared below.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            maps,
            (torch.zeros(1, 3, *_TRACED_SIZE),),
            path,
            input_names=["image"],
            output_names=list(maps.names),
            dynamic_axes={
                name: {0: "batch", 2: f"{sizes[name]}height", 3: f"{sizes[name]}width"}
                for name in ("image", *maps.names)
            },
            opset_version=_OPSET,
            dynamo=False,
        )


@contextlib.contextmanager
def _sizes_rounded_down() -> Iterator[None]:
    """``//`` of sizes as in Python; the exporter's own rounds a negative quotient up."""

    def floor_divide(graph: Any, a: Any, b: Any) -> Any:
        return graph.op("Div", graph.op("Sub", a, graph.op("Mod", a, b)), b)

    torch.onnx.register_custom_op_symbolic("aten::floor_divide", floor_divide, _OPSET)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.onnx.unregister_custom_op_symbolic("aten::floor_divide", _OPSET)  # type: ignore[attr-defined]


def _compare(maps: _Maps, session: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    for batch, height, width in _CHECKED_SIZES:
        image = torch.rand(batch, 3, height, width, generator=generator)
        with torch.no_grad():
            expected = [values.numpy() for values in maps(image)]
        found = session.run(list(maps.names), {"image": image.numpy()})
        for name, ours, theirs in zip(maps.names, expected, found, strict=True):
            same = ours.shape == theirs.shape and np.abs(ours - theirs).max() <= _TOLERANCE * np.abs(ours).max()
            if not same:
                raise RuntimeError(
                    f"the exported network makes another {name} map of an image of {width} x {height} px than torch "
                    f"{torch.__version__}; nothing is written"
                )
