# SPDX-License-Identifier: Apache-2.0
"""The executor in its own process: commands by time or by joint-state stamp, one safe action, nothing unasked."""

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 (rclpy) is not installed")

from ros_peers import Peer, good_joints, start, stop  # noqa: E402
from sensor_msgs.msg import JointState  # noqa: E402
from std_msgs.msg import Bool, Float64MultiArray  # noqa: E402
from std_srvs.srv import SetBool  # noqa: E402
from tiny_policy import ROBOT, write_robot  # noqa: E402
from trajectory_msgs.msg import JointTrajectory  # noqa: E402

from ros_vdd.nodes.messages import COMMAND_QOS, chunk_message  # noqa: E402
from ros_vdd.runtime.chunking import ActionChunk  # noqa: E402

DT = 100_000_000
PERIOD = 20_000_000  # of commands
PLAN = np.linspace([0.0, 0.0], [0.7, -0.7], 8)
MEASURED = [0.125, 0.25]  # exact in float32


class Executor:
    """An executor in its own process and a peer that gives it chunks and joint states."""

    def __init__(self, namespace, robot, command_type=JointTrajectory, **parameters):
        self.process = start("chunk_executor_node", namespace, robot=robot, **parameters)
        self.peer = Peer(namespace)
        self.status = self.peer.hear_status("chunk_executor_node")
        self.commands = self.peer.hear(command_type, "command")
        self.chunks = self.peer.node.create_publisher(JointTrajectory, "action_chunk", COMMAND_QOS)
        readers = [self.chunks.get_subscription_count, self.peer.joints.get_subscription_count]
        self.until(lambda: self.status and all(count() for count in readers))

    def until(self, condition, meanwhile=lambda: None):
        self.peer.until(condition, meanwhile)

    def send(self, stamp_ns, actions=PLAN, joints=("a", "b"), dt_ns=DT, spoil=None):
        message = chunk_message(ActionChunk(stamp_ns, dt_ns, joints, actions))
        if spoil:
            spoil(message)
        self.chunks.publish(message)

    def measure(self, stamp_ns=None):
        self.peer.publish(stamp_ns, image=False, joints=good_joints(*MEASURED))

    def code(self):
        return self.status[-1]["code"]

    def close(self):
        self.peer.close()
        return stop(self.process)


@pytest.fixture(scope="module")
def robot_file(tmp_path_factory):
    return write_robot(tmp_path_factory.mktemp("robots") / "tiny.yaml")


@pytest.fixture(scope="module")
def timed(robot_file):
    executor = Executor("timed", robot_file)
    yield executor
    assert executor.close()[0] == 0


@pytest.fixture(scope="module")
def stepped(robot_file):
    executor = Executor("stepped", robot_file, trigger="joint_states", replan_steps=4)
    yield executor
    assert executor.close()[0] == 0


@pytest.fixture
def at_rest(timed):
    timed.peer.call("chunk_executor_node/reset")
    timed.until(lambda: timed.code() == "no_chunk")
    reset = timed.peer.now_ns()  # the safe action of the reset may come after the status that tells of it
    timed.until(lambda: timed.peer.now_ns() - reset > 5 * PERIOD)
    del timed.commands[:]
    return timed


def position(command):
    return list(command.points[0].positions)


def stamp(command):
    return command.header.stamp.sec * 10**9 + command.header.stamp.nanosec


def test_nothing_is_commanded_before_the_first_chunk(at_rest):
    measured = []
    at_rest.until(lambda: len(measured) == 20, lambda: measured.append(at_rest.measure()))
    assert at_rest.commands == [] and at_rest.status[-1]["state"] in ("waiting", "stopped")


def test_each_command_is_the_action_in_force_at_its_stamp(at_rest):
    at_rest.measure()
    began = at_rest.peer.now_ns()
    at_rest.send(began)
    at_rest.until(lambda: len(at_rest.commands) >= 10, at_rest.measure)
    for command in at_rest.commands[:10]:
        assert position(command) == PLAN[(stamp(command) - began) // DT].tolist()
        assert command.points[0].time_from_start.nanosec == PERIOD


def test_a_stale_chunk_ends_in_exactly_one_safe_action_with_its_reason(at_rest):
    at_rest.send(at_rest.peer.now_ns())
    at_rest.until(lambda: at_rest.code() == "chunk_expired", at_rest.measure)
    ended = at_rest.peer.now_ns()
    at_rest.until(lambda: at_rest.peer.now_ns() - ended > 10 * PERIOD, at_rest.measure)
    assert [position(command) for command in at_rest.commands].count(MEASURED) == 1
    assert position(at_rest.commands[-1]) == MEASURED


def spoil_nan(message):
    message.points[2].positions[0] = float("nan")


def spoil_timing(message):
    message.points[2].time_from_start.nanosec += 1000


def spoil_length(message):
    message.points[2].positions = [0.0]


BAD = {
    "NaN": ({"spoil": spoil_nan}, "not_finite"),
    "a point too short": ({"spoil": spoil_length}, "wrong_shape"),
    "another rate": ({"spoil": spoil_timing}, "wrong_timing"),
    "renamed joint": ({"joints": ("a", "c")}, "wrong_joints"),
    "far outside the limits": ({"actions": PLAN * 100}, "out_of_limits"),
    "no points": ({"spoil": lambda message: message.points.clear()}, "wrong_shape"),
}


@pytest.mark.parametrize("changes, code", BAD.values(), ids=BAD)
def test_a_bad_chunk_reaches_no_command_and_names_its_reason(at_rest, changes, code):
    at_rest.send(at_rest.peer.now_ns(), **changes)
    at_rest.until(lambda: at_rest.code() == code)
    assert at_rest.commands == []


def test_a_bad_chunk_stops_a_moving_robot_with_one_safe_action(at_rest):
    at_rest.measure()
    at_rest.send(at_rest.peer.now_ns())
    at_rest.until(lambda: at_rest.commands, at_rest.measure)
    at_rest.send(at_rest.peer.now_ns(), spoil=spoil_nan)
    stopped = lambda: at_rest.code() == "not_finite" and position(at_rest.commands[-1]) == MEASURED  # noqa: E731
    at_rest.until(stopped, at_rest.measure)
    assert [position(command) for command in at_rest.commands].count(MEASURED) == 1


def test_lock_step_gives_exactly_one_command_per_joint_state_stamp(stepped):
    t0 = 5_000_000_000
    for step in range(8):
        now = t0 + step * DT
        if step % 4 == 0:
            stepped.measure(now)  # before the chunk that is due: the command must wait for it
            stepped.send(now, PLAN + 0.01 * step)
        else:
            stepped.measure(now)
        stepped.until(lambda: len(stepped.commands) == step + 1)
        stepped.measure(now)  # the same stamp again asks for nothing new
    assert [stamp(command) for command in stepped.commands] == [t0 + step * DT for step in range(8)]
    expected = [PLAN[step % 4] + 0.01 * (step // 4 * 4) for step in range(8)]
    np.testing.assert_allclose([position(command) for command in stepped.commands], expected)


@pytest.mark.parametrize(
    "type_name, kind, read",
    [
        ("std_msgs/msg/Float64MultiArray", Float64MultiArray, lambda m: list(m.data)),
        ("sensor_msgs/msg/JointState", JointState, lambda m: list(m.position)),
    ],
)
def test_commands_have_the_type_of_the_robot_file(tmp_path, type_name, kind, read):
    robot = write_robot(tmp_path / "robot.yaml", action={**ROBOT["action"], "type": type_name})
    executor = Executor("typed", robot, kind)
    move = lambda: (executor.measure(), executor.send(executor.peer.now_ns()))  # noqa: E731
    executor.until(lambda: executor.commands, move)
    assert read(executor.commands[0]) in PLAN.tolist()
    assert executor.close()[0] == 0


def test_disabled_and_protective_stop_end_motion_until_they_are_taken_back(tmp_path):
    smooth = {**ROBOT["action"], "max_velocity": [1.0, 1.0], "max_acceleration": [4.0, 4.0]}
    executor = Executor("stopped", write_robot(tmp_path / "robot.yaml", action=smooth))
    stops = executor.peer.node.create_publisher(Bool, "protective_stop", COMMAND_QOS)

    def move():
        executor.measure()
        executor.send(executor.peer.now_ns(), np.tile(MEASURED, (8, 1)) + np.linspace(0, 0.1, 8)[:, None])

    executor.until(lambda: executor.code() == "" and executor.commands, move)
    assert not any(executor.commands[-1].points[-1].velocities)  # silence ends in rest
    assert executor.peer.call("chunk_executor_node/enable", SetBool, data=False).message == "disabled"
    executor.until(lambda: executor.code() == "disabled", move)
    executor.peer.call("chunk_executor_node/enable", SetBool, data=True)
    executor.until(lambda: executor.code() == "", move)
    executor.until(lambda: executor.code() == "protective_stop", lambda: (move(), stops.publish(Bool(data=True))))
    assert "still" not in executor.peer.call("chunk_executor_node/reset").message
    executor.until(lambda: executor.code() == "", move)
    assert executor.close()[0] == 0


@pytest.mark.parametrize(
    "parameters, words",
    [
        ({}, "'robot' is empty"),
        ({"robot": "pushed"}, "did you mean 'pusht'"),
        ({"robot": "pusht", "trigger": "joint_states"}, "'replan_steps'"),
        ({"robot": "pusht", "command_rate_hz": 1e6}, "'command_rate_hz'"),
    ],
)
def test_a_bad_parameter_is_refused_in_one_clear_error(parameters, words):
    process = start("chunk_executor_node", **parameters)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1 and words in said and "Traceback" not in said
