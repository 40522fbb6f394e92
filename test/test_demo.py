# SPDX-License-Identifier: Apache-2.0
"""The demo's score is the one of `ros-vdd evaluate`, its figures add up, and a node that dies ends it with its words."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ros_vdd import backends, bundle, envs
from ros_vdd.config import to_plain
from ros_vdd.errors import ConfigError, DataError, RosVddError
from ros_vdd.offline import demo_drawing, demo_log, video
from ros_vdd.offline.processes import Processes
from ros_vdd.runtime.inference import PolicyRunner
from ros_vdd.streams.spec import load_robot

SEED, STEPS, HORIZON, N_ACTION_STEPS, EXPERTS = 100000, 40, 16, 8, 4
SHORT_ENV = f"from ros_vdd.envs.pusht import Env as Long\n\n\nclass Env(Long):\n    max_steps = {STEPS}\n"


@pytest.fixture
def short_env(tmp_path, monkeypatch):
    """PushT with few steps, as an environment of another package, also for child processes."""
    folder = tmp_path / "lab"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "short_pusht.py").write_text(SHORT_ENV)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(bundle.__file__).parents[1]}")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "lab.short_pusht"
    sys.modules.pop("lab", None)
    sys.modules.pop("lab.short_pusht", None)


def write_policy(path):
    """Write a mixture whose expert k moves along direction k from where the agent is; the gate depends on where."""
    onnx = pytest.importorskip("onnx", reason="the policy is made with onnx")
    helper, kinds = onnx.helper, onnx.TensorProto
    angles = np.linspace(0, 2 * np.pi, EXPERTS, endpoint=False)
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    offsets = 8.0 * np.arange(1, HORIZON + 1)[None, None, :, None] * directions[None, :, None, :]
    constants = {
        "offsets": offsets.astype(np.float32),
        "newest": np.array(1),
        "low": np.float32(0),
        "high": np.float32(512),
        "weights": (np.random.default_rng(0).normal(size=(2, EXPERTS)) / 30).astype(np.float32),
    }
    nodes = [
        helper.make_node("Gather", ["state", "newest"], ["position"], axis=1),
        helper.make_node("Add", ["position", "offsets"], ["wanted"]),
        helper.make_node("Clip", ["wanted", "low", "high"], ["means"]),
        helper.make_node("MatMul", ["position", "weights"], ["logits"]),
        helper.make_node("Sin", ["logits"], ["waves"]),
        helper.make_node("LogSoftmax", ["waves"], ["log_gate"]),
    ]
    inputs = [("images.top", kinds.UINT8, (1, 2, 96, 96, 3)), ("state", kinds.FLOAT, (1, 2, 2))]
    outputs = [("means", kinds.FLOAT, (1, EXPERTS, HORIZON, 2)), ("log_gate", kinds.FLOAT, (1, EXPERTS))]
    values = [[helper.make_tensor_value_info(*v) for v in group] for group in (inputs, outputs)]
    graph = helper.make_graph(nodes, "walk", *values, [onnx.numpy_helper.from_array(v, n) for n, v in constants.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    manifest = bundle.Manifest(
        name="walk",
        kind="mixture",
        robot=to_plain(load_robot("pusht")),
        network={},
        n_obs_steps=2,
        horizon=HORIZON,
        n_action_steps=N_ACTION_STEPS,
        experts=EXPERTS,
    )
    return bundle.write(path, manifest, {bundle.GRAPH: model.SerializeToString(), bundle.WEIGHTS: b""})


def evaluate(policy, env_name, seed, choice):
    """Play an episode without ROS; return its score and actions."""
    env, runner = envs.make(env_name), PolicyRunner(policy, backends.load(policy), choice, seed)
    frames, actions = [env.reset(seed)] * 2, []
    while not env.done:
        chunk = runner.act({name: np.stack([f[name] for f in frames[-2:]]) for name in frames[0]}).actions
        for action in chunk[:N_ACTION_STEPS]:
            frames.append(env.step(action))
            actions.append(action)
    return env.score, np.array(actions)


@pytest.mark.parametrize("choice", ["argmax", "gumbel"])
def test_lock_step_demo_gives_the_actions_and_scores_of_evaluate(choice, short_env, tmp_path, capsys):
    pytest.importorskip("rclpy", reason="needs ROS 2")
    pytest.importorskip("gym_pusht", reason="needs the simulator")
    from ros_vdd.cli import main

    policy, out = write_policy(tmp_path / "walk"), tmp_path / "demo"
    words = ["--policy", str(policy.path), "--env", short_env, "--mode", "lock-step", "--episodes", "2", "--no-progress"]
    assert main(["demo", *words, "--seed", str(SEED), "--choice", choice, "--out", str(out)]) == 0
    summary = json.loads((out / "summary.json").read_text())
    log = demo_log.read(out / "observed.jsonl")
    for index, result in enumerate(log.results):
        score, actions = evaluate(policy, short_env, SEED + index, choice)
        np.testing.assert_array_equal(np.float32(result["actions"]), actions)
        assert summary["per_episode"][index]["score"] == score
    assert summary["frames"] == {"sent": 2 * STEPS, "received": 2 * STEPS, "lost": 0}
    assert (summary["choice"], summary["temperature"]) == (choice, 1.0 if choice == "gumbel" else None)
    assert summary["chunks"] == 2 * STEPS // N_ACTION_STEPS
    assert (out / "demo.gif").read_bytes()[:4] == b"GIF8" and (out / "demo.png").stat().st_size > 10_000
    assert "0 lost" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, told",
    [(["--episodes", "0"], "'episodes' is 0"), (["--seed", "-1"], "'seed' -1"), (["--out", __file__], "is a file")],
    ids=["no episodes", "negative seed", "a file"],
)
def test_mistakes_are_told_before_a_node_starts(words, told, tmp_path, capsys):
    from ros_vdd.cli import main

    assert main(["demo", "--policy", str(write_policy(tmp_path / "walk").path), *words]) == 2
    assert told in capsys.readouterr().err


def test_a_policy_without_camera_is_refused_before_a_node_starts(tmp_path, capsys):
    from ros_vdd.cli import main

    walk = write_policy(tmp_path / "walk")
    blind = replace(walk.manifest, robot={**walk.manifest.robot, "cameras": {}})
    bundle.write(tmp_path / "blind", blind, {})
    assert main(["demo", "--policy", str(tmp_path / "blind"), "--env", "pusht_state", "--out", str(tmp_path / "out")]) == 2
    assert "sees no camera" in (told := capsys.readouterr().err) and "ros-vdd evaluate" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "env, told", [("pusht_2", "no environment 'pusht_2'"), ("avoiding", "doesn't fit robot 'avoiding': rate_hz: 10.0 here")]
)
def test_an_environment_of_another_robot_is_refused_before_a_node_starts(env, told, tmp_path, capsys):
    from ros_vdd.cli import main

    policy = write_policy(tmp_path / "walk")
    assert main(["demo", "--policy", str(policy.path), "--env", env, "--out", str(tmp_path / "out")]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_node_that_dies_ends_the_demo_with_its_last_lines(short_env, tmp_path, capsys):
    pytest.importorskip("rclpy", reason="needs ROS 2")
    from ros_vdd.cli import main

    policy = bundle.write(tmp_path / "empty", write_policy(tmp_path / "walk").manifest, {bundle.WEIGHTS: b""})
    words = ["--policy", str(policy.path), "--env", short_env, "--no-progress", "--out", str(tmp_path / "demo")]
    assert main(["demo", *words]) == 2
    said = capsys.readouterr().err
    assert "policy_node ended with status 1" in said and "no 'policy.onnx'" in said


def test_children_end_with_the_block_that_started_them(tmp_path):
    pytest.importorskip("rclpy", reason="needs ROS 2")
    with pytest.raises(ZeroDivisionError), Processes(tmp_path, {}) as nodes:
        nodes.start_node("demo_observer_node", path=tmp_path / "lines")
        raise ZeroDivisionError
    assert [child.poll() is None for child in nodes._children.values()] == [False]


def lines(frames_sent=10, received=10):
    values = {"images.top.received": str(received)}
    result = {"seed": 1, "score": 0.5, "success": False, "steps": 9, "frames_sent": frames_sent, "held_steps": 0}
    return [
        {"kind": "chunk", "stamp_ns": 100, "actions": [[1.0, 2.0]]},
        {"kind": "chunk", "stamp_ns": 300, "actions": [[3.0, 4.0]]},
        {"kind": "prediction", "stamp_ns": 100, "latency_ms": 2.0, "compute_ms": 1.0, "expert": 1},
        {"kind": "prediction", "stamp_ns": 300, "latency_ms": 4.0, "compute_ms": 1.0, "expert": 0},
        {"kind": "diagnostics", "name": "policy_node: policy", "message": "running", "values": values},
        {"kind": "result", **result},
        {"kind": "result", **result, "score": 1.0, "success": True, "frames_sent": 0},
    ]


def log_of(contents):
    log = demo_log.DemoLog()
    for content in contents:
        log.add(json.dumps(content))
    return log


def test_frames_sent_are_those_received_and_those_lost():
    summary = demo_log.summarise(log_of(lines(frames_sent=10, received=7)), "top", "latency_ms")
    assert summary["frames"] == {"sent": 10, "received": 7, "lost": 3}


def test_scores_and_latencies_are_summed_up():
    summary = demo_log.summarise(log_of(lines()), "top", "latency_ms")
    assert (summary["score_mean"], summary["success_rate"]) == (0.75, 0.5)
    assert (summary["latency_ms"]["p50"], summary["latency_ms"]["max"], summary["latency_ms"]["count"]) == (3.0, 4.0, 2)
    assert "p50 3.0 ms" in demo_log.table(summary)


def test_the_plan_in_force_is_the_newest_that_is_not_from_the_future():
    log = log_of(lines())
    assert [log.chunk_at(stamp) for stamp in (99, 100, 299, 300)] == [None, 100, 100, 300]


def test_without_predictions_there_are_no_figures():
    with pytest.raises(DataError, match="policy_node published"):
        demo_log.summarise(demo_log.DemoLog(), "top", "latency_ms")


def test_a_video_of_other_commands_than_those_played_is_refused(tmp_path):
    pytest.importorskip("gym_pusht", reason="needs the simulator")
    log = demo_log.DemoLog(results=[{"seed": 1, "score": 0.123, "steps": 1, "stamps_ns": [5], "actions": [[9.0, 9.0]]}])
    policy = write_policy(tmp_path / "walk")
    runner = PolicyRunner(policy, backends.load(policy))
    with pytest.raises(DataError, match="simulated again"):
        demo_drawing.animate("pusht", runner, log, tmp_path / "x.gif", progress=False)


def test_a_video_is_a_gif():
    with pytest.raises(ConfigError, match="only .gif"):
        video.write_gif(Path("x.mp4"), [])


def test_plans_are_drawn_where_the_limits_of_the_robot_file_put_them():
    picture = np.full((256, 256, 3), 255, np.uint8)
    plan = np.array([[100.0, 300.0], [102.0, 300.0]])
    video.draw_plans(picture, load_robot("pusht"), plan)
    rows, columns = np.nonzero((picture < 200).any(axis=2))
    assert abs(rows.mean() - 150) < 1 and abs(columns.mean() - 50.5) < 1


def test_a_failed_child_is_told_with_what_it_said(tmp_path):
    with Processes(tmp_path, {}) as nodes, pytest.raises(RosVddError, match="No module named 'ros_vdd.nodes.no_such_node'"):
        nodes.start_node("no_such_node")
        nodes._children["no_such_node"].wait(30)
        nodes.ended("no_such_node")
