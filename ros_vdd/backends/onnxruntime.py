# SPDX-License-Identifier: Apache-2.0
"""The embedded default engine: ONNX Runtime on the CPU, one thread, no spinning, no torch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ros_vdd.backends import energy_shapes, input_shapes, likelihood_shapes
from ros_vdd.bundle import CRITIC, GRAPH, LIKELIHOOD, Bundle
from ros_vdd.errors import EngineError


class OnnxRuntimeEngine:
    """A graph in an ONNX Runtime session."""

    name = "onnxruntime"

    def __init__(self, session):
        self._session = session
        self._outputs = [o.name for o in session.get_outputs()]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Evaluate the graph once; see `ros_vdd.backends`."""
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(inputs))))


def load(bundle: Bundle, threads: int = 1) -> OnnxRuntimeEngine:
    """Open `policy.onnx` of a folder.

    Args:
        threads: threads inside one operator; more than one helps only on idle cores.

    Raises:
        EngineError: the graph can't be loaded, or its inputs aren't those of the manifest.
    """
    return _open(bundle, GRAPH, set(input_shapes(bundle)), threads)


def load_likelihood(bundle: Bundle, threads: int = 1) -> OnnxRuntimeEngine:
    """Open `likelihood.onnx` of a folder.

    Raises:
        EngineError: as `load`.
    """
    return _open(bundle, LIKELIHOOD, set(likelihood_shapes(bundle)), threads)


def load_energy(bundle: Bundle, threads: int = 1) -> OnnxRuntimeEngine:
    """Open `critic.onnx` of a folder.

    Raises:
        EngineError: as `load`.
    """
    return _open(bundle, CRITIC, set(energy_shapes(bundle)), threads)


def session(graph: bytes, threads: int = 1):
    """Return a graph's session as the engine sets it up: on the CPU, without spinning."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _open(bundle: Bundle, name: str, wanted: set[str], threads: int) -> OnnxRuntimeEngine:
    path = bundle.file(name, f"Make it with ros-vdd export {bundle.path}")
    try:
        opened = session(path.read_bytes(), threads)
    except Exception as error:  # ONNX Runtime raises a kind of its own for each failure
        raise EngineError(f"ONNX Runtime can't load '{path}': {error}; export the policy again") from error
    found = {i.name for i in opened.get_inputs()}
    if found != wanted:
        raise EngineError(f"'{path}' takes inputs {sorted(found)}, its manifest says {sorted(wanted)}; export the policy again")
    return OnnxRuntimeEngine(opened)
