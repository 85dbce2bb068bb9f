"""onnxfix: make ONNX models acceptable to TensorRT, and prove it."""

__version__ = "0.1.0.dev0"
