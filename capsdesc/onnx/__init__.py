"""The networks as ONNX files, for places without torch."""

from capsdesc.onnx.export import export_matcher_onnx, export_onnx
from capsdesc.onnx.quantization import Agreement, quantize_onnx

__all__ = ["Agreement", "export_matcher_onnx", "export_onnx", "quantize_onnx"]
