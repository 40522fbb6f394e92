# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime on an NVIDIA GPU, by its CUDA execution provider: no build ahead, slower than an engine of TensorRT."""

from __future__ import annotations

from ros_vdd.backends.onnxruntime import OnnxRuntimeEngine, open_graph
from ros_vdd.bundle import Bundle


def load(bundle: Bundle) -> OnnxRuntimeEngine:
    """Open `policy.onnx` of a folder on the GPU.

    Raises:
        EngineError: the installed ONNX Runtime lacks the provider or can't start it, or an operator would run on the CPU.
    """
    return open_graph(bundle, provider="CUDAExecutionProvider", engine="onnxruntime_cuda")
