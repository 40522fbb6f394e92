# SPDX-License-Identifier: Apache-2.0
"""A robot and a policy small enough for tests: each expert's action k is the newest position plus a known offset."""

from __future__ import annotations

import numpy as np

from ros_vdd import bundle
from ros_vdd.backends import ENERGY_SAMPLES
from ros_vdd.config import dump_yaml
from ros_vdd.streams.spec import robot_from_mapping

WIDTH, HEIGHT = 4, 3
HORIZON, N_ACTION_STEPS, EXPERTS = 8, 4, 2
# Expert 1 is the likelier one; it moves both joints by 0.01 per period.
OFFSETS = np.stack([-0.01 * np.arange(HORIZON), 0.01 * np.arange(HORIZON)]).astype(np.float32)
LOG_GATE = np.log(np.float32([[0.25, 0.75]]))
OWN_ENERGIES = np.linspace(0, 0.02, ENERGY_SAMPLES, dtype=np.float32)  # median 0.01
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
TASKS = {"topic": "goal", "type": "std_msgs/msg/String", "tasks": ["push", "pull", "lift"]}
SHIFTS = np.float32([[0.0], [0.1], [0.2]])  # what each task adds to every action


def write_robot(path, **changes):
    """Write the robot as a YAML file with some top-level keys changed, and return its path."""
    path.write_text(dump_yaml({**ROBOT, **changes}), encoding="utf-8")
    return path


def write_policy(path, likelihood=False, goal=None, calibration=None):
    """Write a policy folder whose graph runs, with a likelihood of sorts or a goal of three if asked for; return it opened."""
    manifest = bundle.Manifest(
        name="tiny",
        kind="mixture",
        robot={**ROBOT, "goal": goal},
        network={},
        calibration=calibration or {},
        n_obs_steps=2,
        horizon=HORIZON,
        n_action_steps=N_ACTION_STEPS,
        experts=EXPERTS,
    )
    files = {bundle.GRAPH: _graph(goal is not None).SerializeToString(), bundle.WEIGHTS: b""}
    if likelihood:
        files[bundle.LIKELIHOOD] = _likelihood().SerializeToString()
    return bundle.write(path, manifest, files)


def write_student(path, calibration=None):
    """Write the folder of a student that does what the likelier expert does; its critic says how far a chunk is from that."""
    from onnx import helper

    made = bundle.Manifest(
        name="tiny_student",
        kind="few_step",
        robot=ROBOT,
        network={"walk": "posterior", "sampler": {"steps": 2}, "critic": {}},
        calibration=calibration or {},
        n_obs_steps=2,
        horizon=HORIZON,
        n_action_steps=N_ACTION_STEPS,
    )
    noise = (2, HORIZON, 2)
    likelier = {"likelier": np.array(1)}
    mean = helper.make_node("Gather", ["means", "likelier"], ["actions"], axis=1)
    graph = _model([*_means(), mean], {"noise": (1, *noise)}, {"actions": (1, HORIZON, 2)}, likelier)
    constants = {**likelier, "over": np.array([1, 2]), "end": np.array([2]), "own": OWN_ENERGIES[None]}
    nodes = [*_means(), mean, *_distance("actions", "energy"), helper.make_node("Identity", ["own"], ["samples"])]
    asked = {"chunk": (1, HORIZON, 2), "mask": (1, HORIZON), "noise": (1, len(OWN_ENERGIES), *noise)}
    critic = _model(nodes, asked, {"energy": (1,), "samples": OWN_ENERGIES[None].shape}, constants)
    files = {bundle.GRAPH: graph.SerializeToString(), bundle.CRITIC: critic.SerializeToString(), bundle.WEIGHTS: b""}
    return bundle.write(path, made, files)


def actions(position):
    """Return what the likelier expert answers to the newest position (A,): (H, A)."""
    return np.float32(position) + OFFSETS[1][:, None]


def _graph(told):
    from onnx import helper

    gate = helper.make_node("Identity", ["gate"], ["log_gate"])
    outputs = {"means": (1, EXPERTS, HORIZON, 2), "log_gate": (1, EXPERTS)}
    if not told:
        return _model([*_means(), gate], {}, outputs, {"gate": LOG_GATE})
    shift = helper.make_node("MatMul", ["goal", "shifts"], ["shift"])
    added = helper.make_node("Add", ["unshifted", "shift"], ["means"])
    return _model([*_means("unshifted"), shift, added, gate], {"goal": (1, 3)}, outputs, {"gate": LOG_GATE, "shifts": SHIFTS})


def _likelihood():
    """Return a graph whose log-density is minus the squared distance to the likelier expert, over the actions that count."""
    from onnx import helper

    constants = {
        "gate": LOG_GATE,
        "likelier": np.array(1),
        "weight": np.array([[1, 2]]).T.astype(np.float32)[None, :, :, None] * np.full((1, EXPERTS, HORIZON, 2), 0.1, np.float32),
        "entropy": np.float32([0.5]),
        "over": np.array([1, 2]),
        "end": np.array([2]),
    }
    nodes = [
        *_means(),
        helper.make_node("Gather", ["means", "likelier"], ["mean"], axis=1),
        *_distance("mean", "distance"),
        helper.make_node("Neg", ["distance"], ["log_prob"]),
        helper.make_node("Identity", ["gate"], ["log_responsibilities"]),
        helper.make_node("Identity", ["entropy"], ["gate_entropy"]),
        helper.make_node("Identity", ["weight"], ["stds"]),
    ]
    shape = (1, EXPERTS, HORIZON, 2)
    outputs = {"log_prob": (1,), "log_responsibilities": (1, EXPERTS), "gate_entropy": (1,), "means": shape, "stds": shape}
    return _model(nodes, {"chunk": (1, HORIZON, 2), "mask": (1, HORIZON)}, outputs, constants)


def _distance(mean, name):
    """Return the nodes of the squared distance of the chunk to a mean (1, H, A), over the actions that count."""
    from onnx import helper

    return [
        helper.make_node("Sub", ["chunk", mean], ["off"]),
        helper.make_node("Mul", ["off", "off"], ["squared"]),
        helper.make_node("Unsqueeze", ["mask", "end"], ["counts"]),
        helper.make_node("Mul", ["squared", "counts"], ["counted"]),
        helper.make_node("ReduceSum", ["counted", "over"], [name], keepdims=0),
    ]


def _means(name="means"):
    from onnx import helper

    return [
        helper.make_node("Gather", ["state", "last"], ["position"], axis=1),  # (1, A), spread over (1, K, H, A)
        helper.make_node("Add", ["position", "offsets"], [name]),
    ]


def _model(nodes, inputs, outputs, constants):
    """Return the model of nodes that take the observation and further inputs."""
    from onnx import TensorProto, checker, helper, numpy_helper

    def floats(shapes):
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]

    seen = {name: (1, 2, *shape) for name, shape in robot_from_mapping(ROBOT).observation_shapes().items()}
    picture = helper.make_tensor_value_info("images.top", TensorProto.UINT8, seen.pop("images.top"))
    constants = {"offsets": OFFSETS[None, :, :, None], "last": np.array(1), **constants}
    values = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "tiny", [picture, *floats({**seen, **inputs})], floats(outputs), values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    checker.check_model(model)
    return model
