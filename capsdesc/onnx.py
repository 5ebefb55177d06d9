"""The network as an ONNX file, for places without torch."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from capsdesc.io.files import atomic_path
from capsdesc.isolation import isolated
from capsdesc.models import ModelConfig, dense_features
from capsdesc.models.network import COARSE_STRIDE, FINE_STRIDE, UpConv
from capsdesc.weights import resolve

# Old enough for runtimes of 2022, and without any operator these maps would gain by.
_OPSET = 17
# At this size every upsampled map lacks a row and a column, so that adding them, as many as it takes, is in the graph.
_TRACED_SIZE = (64, 96)
# Images of which torch's and the runtime's maps are compared: batch, height, width. Odd and even, at every stride.
_CHECKED_SIZES = ((1, 64, 96), (2, 61, 83), (1, 50, 33), (1, 9, 118))
# Largest difference between them, as a part of the largest value.
_TOLERANCE = 1e-4


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
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise ImportError(f"exporting to ONNX needs {error.name}: pip install 'capsdesc[onnx]'") from error
    with atomic_path(output) as temporary:
        resolved = resolve(weights)
        maps = _Maps(resolved.build(), resolved.config)
        _trace(maps, temporary)
        model = onnx.load(temporary)
        properties = {
            "config": resolved.config.to_json(),
            "coarse_stride": str(COARSE_STRIDE),
            "fine_stride": str(FINE_STRIDE),
            "image": "RGB in 0..1, normalised in the graph",
            "source": resolved.source,
            "capsdesc": metadata.version("capsdesc"),
        }
        onnx.helper.set_model_props(model, properties)
        onnx.checker.check_model(model)
        data = model.SerializeToString()
        _compare(maps, onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]))
        temporary.write_bytes(data)


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
