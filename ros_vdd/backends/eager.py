# SPDX-License-Identifier: Apache-2.0
"""PyTorch, as trained: the reference that other engines are held against."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from ros_vdd import policies
from ros_vdd.bundle import Bundle
from ros_vdd.policies.few_step import FewStepPolicy
from ros_vdd.policies.mixture import MixturePolicy


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


class EagerLikelihood:
    """The likelihood of a mixture in evaluation mode."""

    name = "eager"

    def __init__(self, policy: MixturePolicy):
        self._policy = policy

    @torch.inference_mode()
    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Evaluate it once; see `ros_vdd.backends`."""
        tensors = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in inputs.items()}
        answer = self._policy.likelihood(tensors, tensors.pop("chunk"), tensors.pop("mask"))
        return {name: value.numpy() for name, value in answer._asdict().items()}


class EagerEnergy:
    """The critic of a student in evaluation mode."""

    name = "eager"

    def __init__(self, policy: FewStepPolicy):
        self._policy = policy

    @torch.inference_mode()
    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Evaluate it once; see `ros_vdd.backends`."""
        tensors = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in inputs.items()}
        asked = [tensors.pop(name) for name in ("chunk", "mask", "noise")]
        return {name: value.numpy() for name, value in self._policy.energy(tensors, *asked)._asdict().items()}


def load(bundle: Bundle) -> EagerEngine:
    """Load the weights of a folder."""
    return EagerEngine(policies.load(bundle))


def load_likelihood(bundle: Bundle) -> EagerLikelihood:
    """Load the weights of a mixture's folder, which needs no `likelihood.onnx`."""
    return EagerLikelihood(policies.load(bundle))


def load_energy(bundle: Bundle) -> EagerEnergy:
    """Load the weights of a student's folder, which needs no `critic.onnx`."""
    return EagerEnergy(policies.load(bundle))
