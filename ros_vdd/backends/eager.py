# SPDX-License-Identifier: Apache-2.0
"""PyTorch, as trained: the reference that other engines are held against."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from ros_vdd import policies
from ros_vdd.bundle import Bundle


class EagerEngine:
    """A policy module in evaluation mode."""

    name = "eager"

    def __init__(self, policy: policies.Policy):
        self._policy = policy

    @torch.inference_mode()
    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Evaluate the policy once; see `ros_vdd.backends`."""
        tensors = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in inputs.items()}
        noise = tensors.pop("noise", None)
        output = self._policy(tensors, noise)
        if self._policy.kind == "mixture":
            return {"means": output[0].numpy(), "log_gate": output[1].numpy()}
        return {"actions": output.numpy()}


def load(bundle: Bundle) -> EagerEngine:
    """Load the weights of a folder."""
    return EagerEngine(policies.load(bundle))
