# SPDX-License-Identifier: Apache-2.0
"""PyTorch on a GPU, the whole evaluation with its copies captured as one CUDA graph."""

from __future__ import annotations

from ros_vdd.backends.eager import GraphEngine, load_captured
from ros_vdd.bundle import Bundle


def load(bundle: Bundle) -> GraphEngine:
    """Load the weights of a folder onto the GPU and capture their evaluation.

    Raises:
        EngineError: PyTorch sees no GPU, or the policy can't be captured.
    """
    return load_captured(bundle, "eager_graph")
