# SPDX-License-Identifier: Apache-2.0
"""PyTorch on a GPU, one kernel after the other: what the engines that capture or compile are measured against."""

from __future__ import annotations

from ros_vdd.backends.eager import EagerEngine, load_on_gpu
from ros_vdd.bundle import Bundle


def load(bundle: Bundle) -> EagerEngine:
    """Load the weights of a folder onto the GPU.

    Raises:
        EngineError: PyTorch sees no GPU.
    """
    return load_on_gpu(bundle, "eager_cuda")
