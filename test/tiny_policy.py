# SPDX-License-Identifier: Apache-2.0
"""A robot and a policy small enough for tests: each expert's action k is the newest position plus a known offset."""

from __future__ import annotations

import numpy as np

from ros_vdd import bundle
from ros_vdd.config import dump_yaml
from ros_vdd.streams.spec import robot_from_mapping

WIDTH, HEIGHT = 4, 3
HORIZON, N_ACTION_STEPS, EXPERTS = 8, 4, 2
# Expert 1 is the likelier one; it moves both joints by 0.01 per period.
OFFSETS = np.stack([-0.01 * np.arange(HORIZON), 0.01 * np.arange(HORIZON)]).astype(np.float32)
LOG_GATE = np.log(np.float32([[0.25, 0.75]]))
ROBOT = {
    "name": "tiny",
    "rate_hz": 10.0,
    "cameras": {"top": {"topic": "camera", "width": WIDTH, "height": HEIGHT, "max_age_s": 0.5}},
    "states": {"arm": {"topic": "joint_states", "joints": ["a", "b"], "unit": "rad", "max_age_s": 0.5}},
    "action": {
        "topic": "command",
        "joints": ["a", "b"],
        "unit": "rad",
        "lower": [-1.0, -1.0],
        "upper": [1.0, 1.0],
        "command_rate_hz": 50.0,
    },
    "safe_action": {"kind": "hold", "stale_chunk_s": 0.8},
}


def write_robot(path, **changes):
    """Write the robot as a YAML file with some top-level keys changed, and return its path."""
    path.write_text(dump_yaml({**ROBOT, **changes}), encoding="utf-8")
    return path


def write_policy(path):
    """Write a policy folder whose graph runs, and return it opened."""
    manifest = bundle.Manifest(
        name="tiny",
        kind="mixture",
        robot=ROBOT,
        network={},
        n_obs_steps=2,
        horizon=HORIZON,
        n_action_steps=N_ACTION_STEPS,
        experts=EXPERTS,
    )
    return bundle.write(path, manifest, {bundle.GRAPH: _graph().SerializeToString(), bundle.WEIGHTS: b""})


def actions(position):
    """Return what the likelier expert answers to the newest position (A,): (H, A)."""
    return np.float32(position) + OFFSETS[1][:, None]


def _graph():
    from onnx import TensorProto, checker, helper, numpy_helper

    shapes = {name: (1, 2, *shape) for name, shape in robot_from_mapping(ROBOT).observation_shapes().items()}
    constants = {"offsets": OFFSETS[None, :, :, None], "gate": LOG_GATE, "last": np.array(1)}
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["state", "last"], ["position"], axis=1),  # (1, A), spread over (1, K, H, A)
            helper.make_node("Add", ["position", "offsets"], ["means"]),
            helper.make_node("Identity", ["gate"], ["log_gate"]),
        ],
        "tiny",
        [
            helper.make_tensor_value_info("images.top", TensorProto.UINT8, shapes["images.top"]),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, shapes["state"]),
        ],
        [
            helper.make_tensor_value_info("means", TensorProto.FLOAT, (1, EXPERTS, HORIZON, 2)),
            helper.make_tensor_value_info("log_gate", TensorProto.FLOAT, (1, EXPERTS)),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    checker.check_model(model)
    return model
