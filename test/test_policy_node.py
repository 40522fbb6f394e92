# SPDX-License-Identifier: Apache-2.0
"""The policy node in its own process: good topics give chunks, a wrong start is refused; for bad topics see test_bad_input.py."""

import json
import os
import signal

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 (rclpy) is not installed")
pytest.importorskip("onnx", reason="the tiny policy is made with onnx")

from diagnostic_msgs.msg import DiagnosticArray  # noqa: E402
from ros_peers import Peer, good_joints, start, stop  # noqa: E402
from std_msgs.msg import String  # noqa: E402
from tiny_policy import EXPERTS, HORIZON, LOG_GATE, ROBOT, TASKS, actions, write_policy, write_robot, write_student  # noqa: E402
from trajectory_msgs.msg import JointTrajectory  # noqa: E402

from ros_vdd.nodes.messages import LATCHED_QOS  # noqa: E402

DT = 100_000_000


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return write_policy(tmp_path_factory.mktemp("policies") / "tiny").path


@pytest.fixture(scope="module")
def running(policy):
    """One policy node for all tests below, and a peer that hears it."""
    process, peer = start("policy_node", policy=policy, max_skew_s=0.0), Peer()  # some tests stamp ahead of the clock
    peer.status, peer.chunks = peer.hear_status("policy_node"), peer.hear(JointTrajectory, "action_chunk")
    peer.predictions = peer.hear(String, "policy_node/prediction")
    yield peer
    peer.close()
    assert stop(process)[0] == 0


@pytest.fixture
def peer(running):
    running.call("policy_node/reset")
    running.until(lambda: running.status and running.status[-1]["code"] == "never_received")
    del running.status[:-1], running.chunks[:], running.predictions[:]
    return running


def test_an_observation_gives_the_chunk_of_its_stamp(peer):
    stamps = []

    def publish():
        stamps.append(peer.now_ns())
        peer.publish(stamps[-1])

    peer.until(lambda: peer.chunks and peer.predictions, publish)
    chunk = peer.chunks[0]
    assert chunk.header.stamp.sec * 10**9 + chunk.header.stamp.nanosec in stamps
    assert list(chunk.joint_names) == ["a", "b"] and chunk.header.frame_id == ""
    np.testing.assert_allclose([point.positions for point in chunk.points], actions([0.1, 0.2]), atol=1e-6)
    times = [point.time_from_start.sec * 10**9 + point.time_from_start.nanosec for point in chunk.points]
    assert times == [(k + 1) * DT for k in range(HORIZON)]


def test_what_is_for_drawing_stands_beside_the_command(peer):
    peer.until(lambda: peer.predictions, peer.publish)
    prediction = json.loads(peer.predictions[0].data)
    assert prediction["expert"] == 1 and len(prediction["log_gate"]) == EXPERTS
    np.testing.assert_allclose(prediction["log_gate"], LOG_GATE[0], atol=1e-6)
    assert prediction["latency_ms"] > 0 and prediction["compute_ms"] > prediction["inference_ms"] > 0


def test_chunks_follow_each_other_by_the_steps_that_are_executed(peer):
    ticks = iter(range(peer.now_ns(), peer.now_ns() + 10**14, DT))
    peer.until(lambda: len(peer.chunks) == 3, lambda: peer.publish(next(ticks)))
    stamps = [chunk.header.stamp.sec * 10**9 + chunk.header.stamp.nanosec for chunk in peer.chunks]
    assert set(np.diff(stamps)) == {4 * DT}


def test_the_status_says_running_once(peer):
    peer.until(lambda: peer.status and peer.status[-1]["state"] == "running", peer.publish)
    assert [status["state"] for status in peer.status].count("running") == 1


def refused(**parameters):
    process = start("policy_node", **parameters)
    _, said = process.communicate(timeout=60)
    return process.returncode, said


def test_a_damaged_policy_is_refused_in_one_clear_error(policy, tmp_path):
    damaged = write_policy(tmp_path / "tiny").path / "policy.onnx"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    status, said = refused(policy=damaged.parent)
    assert status == 1 and "policy.onnx" in said and "Traceback" not in said


def test_a_robot_that_differs_from_the_policys_is_refused_with_the_difference(policy, tmp_path):
    robot = write_robot(tmp_path / "other.yaml", action={**ROBOT["action"], "upper": [1.0, 2.0]})
    status, said = refused(policy=policy, robot=robot)
    assert status == 1 and "action.upper" in said and "Traceback" not in said


@pytest.mark.parametrize(
    "parameters, words",
    [({}, "'policy' is empty"), ({"choice": "best"}, "argmax"), ({"seed": -1}, "'seed'"), ({"seed": "x"}, "'seed'")],
    ids=["no policy", "unknown choice", "out of range", "wrong type"],
)
def test_a_bad_parameter_is_refused_in_one_clear_error(parameters, words):
    status, said = refused(**parameters)
    assert status == 1 and words in said and "Traceback" not in said


def test_what_a_mixture_knows_is_told_beside_each_plan_and_in_the_diagnostics(tmp_path):
    process = start("policy_node", "sure", policy=write_policy(tmp_path / "tiny", likelihood=True).path, monitor=True)
    peer = Peer("sure")
    predictions, diagnostics = peer.hear(String, "policy_node/prediction"), peer.hear(DiagnosticArray, "/diagnostics")

    def told():
        pairs = [pair for message in diagnostics for status in message.status for pair in status.values]
        return [float(pair.value) for pair in pairs if pair.key == "plan_log_prob" and pair.value != "None"]

    def answered():
        return [p for p in map(json.loads, (p.data for p in predictions)) if p["plan_log_prob"] is not None]

    peer.until(answered, peer.publish)
    first, answer = json.loads(predictions[0].data), answered()[0]
    sure = {"gate_entropy": pytest.approx(0.5), "expert_spread": pytest.approx(0.2)}
    assert {k: first[k] for k in (*sure, "plan_log_prob")} == {**sure, "plan_log_prob": None}
    assert {k: answer[k] for k in sure} == sure
    stamps = [json.loads(p.data)["stamp_ns"] for p in predictions]
    n = round((answer["stamp_ns"] - stamps[stamps.index(answer["stamp_ns"]) - 1]) / DT)
    # of the plan before HORIZON - n actions were left, each 0.01 n rad further than the one that begins anew at the same place
    assert answer["plan_log_prob"] == pytest.approx(-(HORIZON - n) * 2 * (0.01 * n) ** 2, rel=1e-4)
    peer.until(told)
    assert told()[0] in [p["plan_log_prob"] for p in answered()]
    peer.close()
    assert stop(process)[0] == 0


def test_an_anomaly_is_warned_of_once_and_told_until_it_is_over(tmp_path):
    """An arm that is elsewhere at every plan, then one that stands still: a student's plan before suits the second alone."""
    bound = {"figure": "plan_energy_score", "bound": 5.0, "median": 0.0, "quantile": 0.99, "actions": 2}
    calibrated = {**bound, "windows": 9, "episodes": 1, "data_sha256": "0"}
    policy = write_student(tmp_path / "tiny", calibrated).path
    process = start("policy_node", "strange", policy=policy, monitor=True, max_skew_s=0.0)
    peer = Peer("strange")
    predictions, diagnostics = peer.hear(String, "policy_node/prediction"), peer.hear(DiagnosticArray, "/diagnostics")
    ticks = iter(range(peer.now_ns(), peer.now_ns() + 10**14, DT))
    elsewhere = [0.5]

    def wander():
        if len(predictions) > len(elsewhere) - 1:
            elsewhere.append(-elsewhere[-1])
        peer.publish(next(ticks), joints=good_joints(a=elsewhere[-1]))

    def told(strange):
        return [p for p in map(json.loads, (p.data for p in predictions)) if p["anomaly"] is strange]

    def warned():
        return [s for m in diagnostics for s in m.status if "policy_node" in s.name and "anomaly" in s.message]

    peer.until(lambda: len(told(True)) > 2 and warned(), wander)
    assert told(True)[0]["plan_energy_rank"] == 1 and told(True)[0]["plan_energy_score"] > 5
    values = {pair.key: pair.value for pair in warned()[-1].values}
    assert warned()[-1].level == warned()[-1].WARN and values["anomaly"] == "True"
    del predictions[:]
    peer.until(lambda: len(told(False)) > 1, lambda: peer.publish(next(ticks)))
    assert abs(told(False)[-1]["plan_energy_score"]) < 5 and told(False)[-1]["expert"] is None
    peer.close()
    code, said = stop(process)
    words = ("anomaly: at 3 plans in a row 'plan_energy_score' lay beyond 5", "plans are ordinary again")
    heard = [word for line in said.splitlines() for word in words if word in line]
    assert code == 0 and heard == list(words) * (len(heard) // 2) and heard  # two plans at one place, on a busy machine, end an anomaly


def test_a_monitor_without_its_graph_says_how_it_is_made(policy):
    status, said = refused(policy=policy, monitor=True)
    assert status == 1 and "no 'likelihood.onnx'" in said and "ros-vdd export" in said and "Traceback" not in said


def test_sigterm_ends_the_node_with_status_0(policy):
    process, peer = start("policy_node", "ending", policy=policy), Peer("ending")
    peer.until(peer.hear_status("policy_node").copy)
    status, said = stop(process, signal.SIGTERM)
    peer.close()
    assert status == 0 and "Traceback" not in said


def test_the_newest_goal_that_exists_decides_what_is_done(tmp_path):
    """From none to one published before the node heard it, past one that doesn't exist, to another."""
    process = start("policy_node", "told", policy=write_policy(tmp_path / "told", goal=TASKS).path)
    peer = Peer("told")
    status, chunks = peer.hear_status("policy_node"), peer.hear(JointTrajectory, "action_chunk")
    goals, diagnostics = peer.node.create_publisher(String, "goal", LATCHED_QOS), peer.hear(DiagnosticArray, "/diagnostics")
    peer.until(lambda: status and status[-1]["code"] == "no_goal", peer.publish)
    assert not chunks and "'goal'" in status[-1]["detail"]

    def figures():
        return [(pair.key, pair.value) for status in diagnostics[-1].status for pair in status.values] if diagnostics else []

    def doing(shift):
        return lambda: chunks and np.allclose(chunks[-1].points[0].positions, actions([0.1, 0.2])[0] + shift, atol=1e-6)

    goals.publish(String(data="pull"))
    peer.until(doing(0.1), peer.publish)
    goals.publish(String(data="sweep"))
    peer.until(lambda: ("goal.refused", "1") in figures() and ("goal", "pull") in figures())
    goals.publish(String(data="lift"))
    peer.until(doing(0.2), peer.publish)
    assert peer.call("policy_node/reset").success
    del chunks[:]
    peer.until(doing(0.2), peer.publish)
    peer.close()
    code, said = stop(process)
    assert code == 0 and "goal: pull" in said
    assert "goal refused: 'goal': no task 'sweep'; available: lift, pull, push; the one before stays" in said


def test_the_goal_of_the_parameter_holds_until_one_is_published(tmp_path):
    process = start("policy_node", "parameter", policy=write_policy(tmp_path / "told", goal=TASKS).path, goal="lift")
    peer = Peer("parameter")
    chunks = peer.hear(JointTrajectory, "action_chunk")
    peer.until(lambda: chunks, peer.publish)
    np.testing.assert_allclose(chunks[0].points[0].positions, actions([0.1, 0.2])[0] + 0.2, atol=1e-6)
    goals = peer.node.create_publisher(String, "goal", LATCHED_QOS)
    goals.publish(String(data="push"))
    peer.until(lambda: np.allclose(chunks[-1].points[0].positions, actions([0.1, 0.2])[0], atol=1e-6), peer.publish)
    peer.close()
    assert stop(process)[0] == 0


def test_a_goal_that_does_not_exist_is_refused_at_the_start(policy, tmp_path):
    status, said = refused(policy=write_policy(tmp_path / "told", goal=TASKS).path, goal="sweep")
    assert status == 1 and "parameter 'goal': no task 'sweep'; available: lift, pull, push" in said and "Traceback" not in said
    status, said = refused(policy=policy, goal="push")
    assert status == 1 and "robot 'tiny' has no section 'goal'" in said and "Traceback" not in said


LAB_ENGINE = '''
from ros_vdd.backends import onnxruntime

class Engine:
    """Works for a while."""

    def __init__(self, engine):
        self.name, self.engine, self.calls = "lab.engine", engine, 0

    def run(self, inputs):
        self.calls += 1
        if self.calls > 20:
            FAILURE
        return self.engine.run(inputs)

def load(bundle, threads):
    assert threads == 3, threads
    return Engine(onnxruntime.load(bundle, threads=threads))
'''
SLOW_ENGINE = '''
import time
from ros_vdd.backends import onnxruntime

class Engine:
    """Answers at its leisure: so long after the one before it was given up that the node tells its status in between."""

    def __init__(self, engine):
        self.name, self.run = "lab.slow", lambda inputs: time.sleep(0.3) or engine.run(inputs)

def load(bundle):
    return Engine(onnxruntime.load(bundle))
'''


@pytest.mark.parametrize(
    "failure, told",
    [("raise RuntimeError('CUDA error: device lost')", "device lost"), ("__import__('time').sleep(60)", "no answer within 0.5 s")],
    ids=["raises", "hangs"],
)
def test_an_engine_that_fails_in_the_middle_hands_over_and_chunks_go_on(failure, told, policy, tmp_path, monkeypatch):
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "__init__.py").touch()
    (tmp_path / "lab" / "engine.py").write_text(LAB_ENGINE.replace("FAILURE", failure))
    (tmp_path / "lab" / "slow.py").write_text(SLOW_ENGINE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    order = {"backend": "lab.engine", "fallback": "nothing_like_it, lab.slow", "engine_timeout_s": 0.5, "max_skew_s": 0.0, "threads": 3}
    process, peer = start("policy_node", "handover", policy=policy, **order), Peer("handover")
    states = peer.hear_status("policy_node")
    chunks, diagnostics = peer.hear(JointTrajectory, "action_chunk"), peer.hear(DiagnosticArray, "/diagnostics")

    def engine():
        values = [{v.key: v.value for v in d.status[0].values} for d in diagnostics if "policy" in d.status[0].name]
        return values[-1]["engine"] if values else None

    ticks = iter(range(peer.now_ns(), peer.now_ns() + 10**14, DT))
    peer.until(lambda: len(chunks) > 15, lambda: peer.publish(next(ticks)))
    peer.until(lambda: engine() == "lab.slow", lambda: peer.publish(next(ticks)))
    count = len(chunks)
    peer.until(lambda: len(chunks) > count + 2, lambda: peer.publish(next(ticks)))
    peer.close()
    status, said = stop(process)
    assert status == 0 and said.count("out of service") == 2  # the one that doesn't exist, and the one that failed
    assert told in said and "nothing_like_it" in said
    assert not {"inference_failed", "inference_hangs"} & {state["code"] for state in states}  # the next engine has its time, too


LAB_LIKELIHOOD = '''
from ros_vdd.backends import onnxruntime
from ros_vdd.backends.onnxruntime import load

class Likelihood:
    """Knows nothing of what is certain; fails after a while where it is told to."""

    def __init__(self, engine, answers):
        self.name, self.engine, self.left = __name__, engine, answers

    def run(self, inputs):
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("CUDA error: device lost")
        outputs = self.engine.run(inputs)
        return {**outputs, "continued": outputs["means"]}

def load_likelihood(bundle):
    return Likelihood(onnxruntime.load_likelihood(bundle), ANSWERS)
'''


def test_with_choice_committed_the_diagnostics_tell_of_the_likelihood_that_is_asked(tmp_path, monkeypatch):
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "__init__.py").touch()
    for name, answers in (("first", "20"), ("second", "10**9")):
        (tmp_path / "lab" / f"{name}.py").write_text(LAB_LIKELIHOOD.replace("ANSWERS", answers))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    policy = write_policy(tmp_path / "tiny", likelihood=True).path
    given = {"choice": "committed", "backend": "lab.first", "fallback": "lab.second", "monitor": True, "max_skew_s": 0.0}
    process, peer = start("policy_node", "committed", policy=policy, **given), Peer("committed")
    chunks, diagnostics = peer.hear(JointTrajectory, "action_chunk"), peer.hear(DiagnosticArray, "/diagnostics")

    def told():
        values = [{v.key: v.value for v in d.status[0].values} for d in diagnostics if "policy" in d.status[0].name]
        return values[-1] if values else {"engine": None}

    ticks = iter(range(peer.now_ns(), peer.now_ns() + 10**14, DT))
    peer.until(lambda: chunks and told()["engine"] == "lab.second", lambda: peer.publish(next(ticks)))
    assert "lab.first: RuntimeError: CUDA error: device lost" in told()["engine.failures"] and told()["engine.spares"] == ""
    peer.close()
    assert stop(process)[0] == 0


def test_the_monitor_takes_the_first_engine_that_there_is(tmp_path):
    policy = write_policy(tmp_path / "tiny", likelihood=True).path
    given = {"backend": "nothing_like_it", "fallback": "onnxruntime", "monitor": True}
    process, peer = start("policy_node", "monitored", policy=policy, **given), Peer("monitored")
    predictions = peer.hear(String, "policy_node/prediction")
    peer.until(lambda: predictions, peer.publish)
    assert json.loads(predictions[0].data)["gate_entropy"] == pytest.approx(0.5)
    peer.close()
    assert stop(process)[0] == 0
