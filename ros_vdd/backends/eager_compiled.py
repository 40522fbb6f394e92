# SPDX-License-Identifier: Apache-2.0
"""PyTorch through torch.compile: on a GPU, then captured as a CUDA graph too, or on the CPU with g++."""

from __future__ import annotations

from ros_vdd.backends.eager import EagerEngine, GraphEngine, load_compiled
from ros_vdd.bundle import Bundle


def load(bundle: Bundle) -> EagerEngine | GraphEngine:
    """Load the weights of a folder and compile their evaluation, which takes a minute.

    Raises:
        EngineError: the compiler fails, or the policy can't be captured.
    """
    return load_compiled(bundle, "eager_compiled")
