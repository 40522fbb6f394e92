# SPDX-License-Identifier: Apache-2.0
"""A policy as an ONNX graph: static shapes, named inputs and outputs, weights embedded, no random operator."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ros_vdd.errors import EngineError
from ros_vdd.networks.mode_step import ModeStep
from ros_vdd.policies.few_step import Energies, FewStepPolicy
from ros_vdd.policies.mixture import Likelihood, MixturePolicy
from ros_vdd.policies.mode import ModePolicy
from ros_vdd.policies.policy import Policy

OPSET = 18
MAX_BYTES = 2**31 - 2**24
"""Largest weights that a graph can embed: a protobuf message holds 2 GiB, of which the nodes need some."""
_ASKED = ("chunk", "mask", "noise")
_RANDOM = ("Multinomial", "Bernoulli", "Dropout")


class _Positional(nn.Module):
    """A policy with its inputs in a row instead of by name, as the exporter takes them."""

    def __init__(self, policy: Policy, names: list[str]):
        super().__init__()
        self.policy, self.names = policy, names

    def forward(self, *inputs):
        named = dict(zip(self.names, inputs))
        noise = named.pop("noise", None)
        return self.policy(named, noise)


class _Likelihood(_Positional):
    """What a mixture says of a chunk, likewise."""

    def forward(self, *inputs):
        named = dict(zip(self.names, inputs))
        chunk, mask = named.pop("chunk"), named.pop("mask")
        return tuple(self.policy.likelihood(named, chunk, mask))


class _Energy(_Positional):
    """What a student's critic says of a chunk, likewise."""

    def forward(self, *inputs):
        named = dict(zip(self.names, inputs))
        return tuple(self.policy.energy({k: v for k, v in named.items() if k not in _ASKED}, *(named[name] for name in _ASKED)))


class _Condition(_Positional):
    """The features that a policy's network is told of an observation, likewise."""

    def forward(self, *inputs):
        return self.policy.condition(dict(zip(self.names, inputs)))


def to_onnx(policy: Policy, example: Mapping[str, np.ndarray]) -> bytes:
    """Return the graph of a policy, as `deployed`, for inputs named and shaped as in `example`.

    Raises:
        EngineError: the weights are too large to be embedded, or the graph holds a random operator or keeps weights outside.
    """
    outputs = ["means", "log_gate"] if policy.kind == "mixture" else ["actions"]
    return _export(_Positional(policy.eval().deployed(), list(example)), example, outputs)


def likelihood_to_onnx(policy: MixturePolicy, example: Mapping[str, np.ndarray]) -> bytes:
    """Return the graph of a mixture's `likelihood`, whose inputs `example` has "chunk" and "mask" beside the observation.

    Raises:
        EngineError: as `to_onnx`.
    """
    return _export(_Likelihood(policy.eval(), list(example)), example, list(Likelihood._fields))


def energy_to_onnx(policy: FewStepPolicy, example: Mapping[str, np.ndarray]) -> bytes:
    """Return the graph of a student's `energy`, whose inputs `example` has "chunk", "mask" and "noise" beside the observation.

    Raises:
        EngineError: as `to_onnx`.
    """
    return _export(_Energy(policy.eval(), list(example)), example, list(Energies._fields))


def step_to_onnx(policy: ModePolicy, observation: Mapping[str, np.ndarray]) -> tuple[bytes, bytes]:
    """Return two graphs of a MoDE policy that serve any schedule: observation to "condition" `(1, O)`, and one step of a sampler.

    The step takes "x" `(1, H * A)`, "condition", "gates" `(layers, E)`, "c" `(width,)`, "A", "B" and "c_in" `(1,)`, and gives
    "next" `(1, H * A)`; `ros_vdd.policies.mode_deployed.schedule` has the numbers of a schedule.

    Raises:
        ValueError: the router reads tokens.
        EngineError: as `to_onnx`.
    """
    sizes = policy.eval().network.sizes
    shapes = {"x": (1, policy.chunk_size), "condition": (1, policy.condition_size), "gates": (sizes.depth, sizes.experts)}
    shapes |= {"c": (sizes.width,), "A": (1,), "B": (1,), "c_in": (1,)}
    step = _export(ModeStep(policy.network), {name: np.ones(shape, np.float32) for name, shape in shapes.items()}, ["next"])
    return _export(_Condition(policy, list(observation)), observation, ["condition"]), step


def _export(module: nn.Module, example: Mapping[str, np.ndarray], outputs: list[str]) -> bytes:
    _require_size(module)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's advice to its own developers
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            module,
            tuple(torch.from_numpy(v) for v in example.values()),
            input_names=list(example),
            output_names=outputs,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
        path = Path(folder) / "policy.onnx"
        program.save(str(path), external_data=False)
        graph = without_traces(path.read_bytes())
    _require_plain(graph)
    return graph


def _require_size(module: nn.Module) -> None:
    size = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
    if size > MAX_BYTES:
        raise EngineError(
            f"the weights are {size / 1e9:.2f} GB; an ONNX graph holds its weights itself, at most {MAX_BYTES / 1e9:.2f} GB "
            "of them (protobuf's limit). The policy runs in PyTorch: --backend eager, or the node's parameter backend:=eager"
        )


def without_traces(graph: bytes) -> bytes:
    """Return a graph without the exporter's stack traces, which name folders of the machine that it ran on."""
    import onnx

    model = onnx.load_model_from_string(graph)
    for part in (model.graph, *model.functions):
        del part.metadata_props[:]
        for value in (*getattr(part, "input", ()), *getattr(part, "output", ()), *part.value_info):
            if not isinstance(value, str):
                del value.metadata_props[:]
        for node in _nodes(part):
            del node.metadata_props[:]
    return model.SerializeToString()


def _require_plain(graph: bytes) -> None:
    import onnx

    model = onnx.load_model_from_string(graph)
    onnx.checker.check_model(model)
    operators = {n.op_type for part in (model.graph, *model.functions) for n in _nodes(part)}
    random = sorted(o for o in operators if o.startswith("Random") or o in _RANDOM)
    if random:
        raise EngineError(f"the graph holds random operators ({', '.join(random)}); randomness must be an input")
    if any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer):
        raise EngineError("the graph keeps weights outside the file; they must be embedded")


def _nodes(part) -> Iterator:
    """Yield the nodes of a graph or function, also those inside branches and loops."""
    for node in part.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)
