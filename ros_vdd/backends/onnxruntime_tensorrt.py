# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime on an NVIDIA GPU, by its TensorRT execution provider, which builds its engine at each start.

The engine `tensorrt` keeps what it built, and needs no wheel of ONNX Runtime for the GPU.
"""

from __future__ import annotations

from ros_vdd.backends.onnxruntime import OnnxRuntimeEngine, open_graph
from ros_vdd.bundle import Bundle


def load(bundle: Bundle) -> OnnxRuntimeEngine:
    """Open `policy.onnx` of a folder on the GPU, built by TensorRT.

    Raises:
        EngineError: the installed ONNX Runtime lacks the provider or can't start it, or an operator would run elsewhere.
    """
    return open_graph(bundle, provider="TensorrtExecutionProvider", engine="onnxruntime_tensorrt")
