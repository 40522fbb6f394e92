# SPDX-License-Identifier: Apache-2.0
"""The embedded default engine: ONNX Runtime on the CPU, one thread, no spinning, no torch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ros_vdd.backends import input_shapes
from ros_vdd.bundle import GRAPH, Bundle
from ros_vdd.errors import EngineError


class OnnxRuntimeEngine:
    """A policy graph in an ONNX Runtime session."""

    name = "onnxruntime"

    def __init__(self, session):
        self._session = session
        self._outputs = [o.name for o in session.get_outputs()]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Evaluate the policy once; see `ros_vdd.backends`."""
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(inputs))))


def load(bundle: Bundle, threads: int = 1) -> OnnxRuntimeEngine:
    """Open `policy.onnx` of a folder.

    Args:
        threads: threads inside one operator; more than one helps only on idle cores.

    Raises:
        EngineError: the graph can't be loaded, or its inputs aren't those of the manifest.
    """
    import onnxruntime

    path = bundle.file(GRAPH, f"Make it with ros-vdd export {bundle.path}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises a kind of its own for each failure
        raise EngineError(f"ONNX Runtime can't load '{path}': {error}; export the policy again") from error
    found, wanted = {i.name for i in session.get_inputs()}, set(input_shapes(bundle))
    if found != wanted:
        raise EngineError(f"'{path}' takes inputs {sorted(found)}, its manifest says {sorted(wanted)}; export the policy again")
    return OnnxRuntimeEngine(session)
