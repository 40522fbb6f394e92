# SPDX-License-Identifier: Apache-2.0
"""PyTorch, as trained: the reference that exported graphs are held against; and what `eager_cuda` and its like make of it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from ros_vdd import policies
from ros_vdd.backends import random_inputs
from ros_vdd.bundle import Bundle
from ros_vdd.errors import EngineError
from ros_vdd.policies.few_step import FewStepPolicy
from ros_vdd.policies.mixture import MixturePolicy


class EagerEngine:
    """A policy module in evaluation mode, on the CPU or on a GPU."""

    def __init__(self, policy: nn.Module, name: str = "eager", device: str = "cpu"):
        self.name, self._policy, self._device = name, policy.to(device), device

    @torch.inference_mode()
    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Evaluate the policy once; see `ros_vdd.backends`."""
        tensors = {k: torch.from_numpy(np.ascontiguousarray(v)).to(self._device) for k, v in inputs.items()}
        return {name: value.cpu().numpy() for name, value in _evaluated(self._policy, tensors).items()}


class GraphEngine:
    """A policy module on a GPU, captured with the copies to and from it as one CUDA graph: one launch and one wait a chunk.

    Args:
        policy: without branches or copies that depend on data.
        example: inputs whose names, shapes and types are those of every run.
        name: of the engine.
    """

    def __init__(self, policy: nn.Module, example: Mapping[str, np.ndarray], name: str):
        self.name = name
        self._host = {k: torch.from_numpy(np.ascontiguousarray(v)).pin_memory() for k, v in example.items()}
        self._policy, self._device = policy.to("cuda"), {k: v.cuda() for k, v in self._host.items()}
        self._stream, self._graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            for _ in range(3):  # chooses kernels and allocates, which can't be captured
                warm = _evaluated(self._policy, self._device)
            self._answer = {k: torch.empty(v.shape, dtype=v.dtype, pin_memory=True) for k, v in warm.items()}
            self._stream.synchronize()
            # Other threads may go on using the GPU: by default whatever they allocate fails, and the capture with it.
            with torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local"):
                for k, v in self._host.items():
                    self._device[k].copy_(v, non_blocking=True)
                for k, v in _evaluated(self._policy, self._device).items():
                    self._answer[k].copy_(v, non_blocking=True)

    @torch.inference_mode()
    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Evaluate the policy once; see `ros_vdd.backends`."""
        for name, held in self._host.items():
            np.copyto(held.numpy(), inputs[name])
        with torch.cuda.stream(self._stream):
            self._graph.replay()
        self._stream.synchronize()
        return {name: value.numpy().copy() for name, value in self._answer.items()}


def _evaluated(policy: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tensors = dict(inputs)
    output = policy(tensors, tensors.pop("noise", None))
    return {"actions": output} if isinstance(output, Tensor) else dict(zip(("means", "log_gate"), output))


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


def load(bundle: Bundle, threads: int | None = None) -> EagerEngine:
    """Load the weights of a folder; `threads` are those of all that PyTorch computes in this process, None leaves them."""
    if threads is not None:
        torch.set_num_threads(threads)
    return EagerEngine(policies.load(bundle))


def load_on_gpu(bundle: Bundle, name: str) -> EagerEngine:
    """Load the weights of a folder onto the GPU, where its operators are launched one by one.

    Raises:
        EngineError: PyTorch sees no GPU.
    """
    _require_gpu(name)
    return EagerEngine(policies.load(bundle).deployed(), name, "cuda")


def load_captured(bundle: Bundle, name: str) -> GraphEngine:
    """Load the weights of a folder onto the GPU as one CUDA graph.

    Raises:
        EngineError: PyTorch sees no GPU, or the policy can't be captured.
    """
    _require_gpu(name)
    return _captured(policies.load(bundle).deployed(), bundle, name)


def load_compiled(bundle: Bundle, name: str) -> EagerEngine | GraphEngine:
    """Load the weights of a folder, compiled by torch.compile: on the GPU where there is one and then captured, else on the CPU.

    Raises:
        EngineError: the compiler fails, for example for want of a C++ compiler, or the policy can't be captured.
    """
    policy = torch.compile(policies.load(bundle).deployed(), dynamic=False)
    if torch.cuda.is_available():
        _without_tf32()
        return _captured(policy, bundle, name)
    engine = EagerEngine(policy, name)
    try:
        engine.run(random_inputs(bundle, np.random.default_rng(0)))
    except Exception as error:  # the compiler raises a kind of its own for each failure, with advice after an empty line
        reason = " ".join(str(error).partition("\n\n")[0].split())
        raise EngineError(
            f"engine '{name}': torch.compile failed on '{bundle.path}': {reason}; is g++ installed? Otherwise take eager"
        ) from error
    return engine


def _captured(policy: nn.Module, bundle: Bundle, name: str) -> GraphEngine:
    try:
        return GraphEngine(policy, random_inputs(bundle, np.random.default_rng(0)), name)
    except RuntimeError as error:
        raise EngineError(
            f"engine '{name}': '{bundle.path}' can't be captured as a CUDA graph: {error}; take eager_cuda"
        ) from error


def _require_gpu(name: str) -> None:
    if not torch.cuda.is_available():
        raise EngineError(f"engine '{name}' needs a GPU, and PyTorch {torch.__version__} sees none; take eager or onnxruntime")
    _without_tf32()


def _without_tf32() -> None:
    """Let this process compute in fp32: TF32, PyTorch's default for convolutions, has the mantissa of fp16."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def load_likelihood(bundle: Bundle) -> EagerLikelihood:
    """Load the weights of a mixture's folder, which needs no `likelihood.onnx`."""
    return EagerLikelihood(policies.load(bundle))


def load_energy(bundle: Bundle) -> EagerEnergy:
    """Load the weights of a student's folder, which needs no `critic.onnx`."""
    return EagerEnergy(policies.load(bundle))
