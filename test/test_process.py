# SPDX-License-Identifier: Apache-2.0
"""How a node's process ends: a moving robot is brought to its safe action first, and nothing is left hanging."""

import signal
import time

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 (rclpy) is not installed")
pytest.importorskip("onnx", reason="the tiny policy is made with onnx")

from ros_peers import Peer, good_joints, start, stop  # noqa: E402
from tiny_policy import ROBOT, write_policy, write_robot  # noqa: E402
from trajectory_msgs.msg import JointTrajectory  # noqa: E402

from ros_vdd.nodes.messages import COMMAND_QOS, chunk_message  # noqa: E402
from ros_vdd.runtime.chunking import ActionChunk  # noqa: E402

DT, FASTEST = 100_000_000, 4.0
MEASURED = [0.125, 0.25]
SMOOTH = {**ROBOT["action"], "max_velocity": [1.0, 1.0], "max_acceleration": [FASTEST, FASTEST]}
SLOW = {**ROBOT["action"], "max_velocity": [0.02, 0.02]}  # a minute to the safe position


class Moving:
    """An executor that moves its robot."""

    def __init__(self, namespace, robot):
        self.process, self.peer = start("chunk_executor_node", namespace, robot=robot), Peer(namespace)
        self.commands = self.peer.hear(JointTrajectory, "command")
        self.chunks = self.peer.node.create_publisher(JointTrajectory, "action_chunk", COMMAND_QOS)
        self.sent_ns = 0
        self.peer.until(lambda: len(self.commands) > 5, self.move)

    def move(self):
        self.peer.publish(image=False, joints=good_joints(*MEASURED))
        if self.peer.now_ns() - self.sent_ns > 4 * DT:
            self.sent_ns = self.peer.now_ns()
            plan = np.tile(MEASURED, (8, 1)) + np.linspace(0.01, 0.4, 8)[:, None]
            self.chunks.publish(chunk_message(ActionChunk(self.sent_ns, DT, ("a", "b"), plan)))

    def last(self):
        """Return the first point of the last command once the process has ended."""
        self.peer.until(lambda: self.process.poll() is not None, self.move)
        for _ in range(20):
            self.peer.executor.spin_once(timeout_sec=0.01)
        return self.commands[-1].points[0]

    def close(self):
        self.peer.close()
        _, said = self.process.communicate(timeout=30)
        assert "Traceback" not in said
        return self.process.returncode, said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_holds_the_robot_where_it_was_measured_before_the_process_ends(number, tmp_path):
    moving = Moving("held", write_robot(tmp_path / "robot.yaml"))
    assert list(moving.commands[-1].points[0].positions) != MEASURED
    moving.process.send_signal(number)
    assert list(moving.last().positions) == MEASURED
    assert moving.close()[0] == 0


def test_a_signal_decelerates_a_robot_that_declares_accelerations(tmp_path):
    moving = Moving("braked", write_robot(tmp_path / "robot.yaml", action=SMOOTH))
    moving.peer.until(lambda: np.abs(moving.commands[-1].points[0].velocities).max() > 0.3, moving.move)
    moving.process.send_signal(signal.SIGTERM)
    assert not np.any(moving.last().velocities)
    assert moving.close()[0] == 0


def test_a_second_signal_ends_a_way_to_the_safe_position_that_takes_too_long_and_an_echo_does_not(tmp_path):
    safe = {"kind": "position", "positions": [-1.0, -1.0], "stale_chunk_s": 0.8}
    moving = Moving("impatient", write_robot(tmp_path / "robot.yaml", action=SLOW, safe_action=safe))
    moving.process.send_signal(signal.SIGINT)
    began = time.monotonic()
    moving.process.send_signal(signal.SIGINT)
    before = len(moving.commands)
    moving.peer.until(lambda: time.monotonic() - began > 1.3 and len(moving.commands) > before + 20, moving.move)
    assert moving.process.poll() is None
    moving.process.send_signal(signal.SIGINT)
    assert moving.last().positions[0] < MEASURED[0]
    status, said = moving.close()
    assert status == 0 and "told again to end" in said


@pytest.mark.parametrize("delay_s", [0.2, 0.5, 1.0])
def test_a_signal_during_the_start_ends_it_without_a_word(delay_s, tmp_path):
    process = start("policy_node", policy=write_policy(tmp_path / "tiny").path)
    time.sleep(delay_s)
    status, said = stop(process, signal.SIGTERM)
    assert status in (0, -signal.SIGTERM) and "Traceback" not in said  # the latter before Python has read this package


@pytest.mark.parametrize("module", ["chunk_executor_node", "policy_node"])
def test_a_signal_ends_a_node_that_waits_to_be_configured(module):
    process, peer = start(module, "waiting", autostart=False), Peer("waiting")
    status = peer.hear_status(module)
    peer.until(lambda: status)
    code, said = stop(process, signal.SIGTERM)
    peer.close()
    assert code == 0 and "Traceback" not in said


def test_a_message_that_nobody_sends_again_waits_for_its_reader():
    from types import SimpleNamespace

    from ros_vdd.nodes.process import await_reader

    counts = iter([0, 0, 1])
    assert await_reader(SimpleNamespace(get_subscription_count=lambda: next(counts)))
    assert not await_reader(SimpleNamespace(get_subscription_count=lambda: 0), patience_s=0.02)
