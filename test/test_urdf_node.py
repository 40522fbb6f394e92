# SPDX-License-Identifier: Apache-2.0
"""The executor under the limits of a robot description that is published, and its refusal where none is."""

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 (rclpy) is not installed")

from diagnostic_msgs.msg import DiagnosticArray  # noqa: E402
from ros_peers import Peer, good_joints, start, stop  # noqa: E402
from std_msgs.msg import String  # noqa: E402
from test_doctor_live_ros import diagnose  # noqa: E402
from test_urdf_limits import joint, urdf  # noqa: E402
from tiny_policy import write_robot  # noqa: E402
from trajectory_msgs.msg import JointTrajectory  # noqa: E402

from ros_vdd.nodes.messages import COMMAND_QOS, LATCHED_QOS, chunk_message  # noqa: E402
from ros_vdd.runtime.chunking import ActionChunk  # noqa: E402

DT = 100_000_000
NARROW = '<limit lower="-0.3" upper="0.3" velocity="1.0"/>'


def test_commands_keep_the_tighter_limit_and_the_log_names_what_is_missing(tmp_path):
    peer = Peer("described")
    descriptions = peer.node.create_publisher(String, "robot_description", LATCHED_QOS)
    descriptions.publish(String(data=urdf(joint("a", inside=NARROW), joint("c"))))
    process = start("chunk_executor_node", "described", robot=write_robot(tmp_path / "robot.yaml"), limits_from_urdf=True)
    chunks = peer.node.create_publisher(JointTrajectory, "action_chunk", COMMAND_QOS)
    commands, diagnostics = peer.hear(JointTrajectory, "command"), peer.hear(DiagnosticArray, "/diagnostics")
    plan = np.tile([0.32, 0.9], (8, 1))  # a little beyond the description, well within the file

    def move():
        peer.publish(image=False, joints=good_joints(0.2, 0.85))
        chunks.publish(chunk_message(ActionChunk(peer.now_ns(), DT, ("a", "b"), plan)))

    def latency():
        values = {v.key: v.value for d in diagnostics for s in d.status if "chunk_executor" in s.name for v in s.values}
        return float(values.get("latency_ms.p50", "nan").replace("None", "nan"))

    peer.until(lambda: len(commands) > 10, move)
    assert {tuple(command.points[0].positions) for command in commands} == {(0.3, 0.9)}
    peer.until(lambda: 0 <= latency() < 1e4, move)
    peer.close()
    code, said = stop(process)
    assert code == 0 and "lower of 'a' is -0.3 by the robot description, -1 in the robot file" in said
    assert "joint 'b' isn't in the robot description" in said and "Traceback" not in said


def test_the_doctor_holds_the_robot_file_against_the_description(tmp_path):
    peer = Peer("doctor_urdf")
    descriptions = peer.node.create_publisher(String, "robot_description", LATCHED_QOS)
    descriptions.publish(String(data=urdf(joint("a", inside=NARROW), joint("c"))))
    _, found = diagnose(peer, write_robot(tmp_path / "robot.yaml"), "doctor_urdf", peer.publish)
    peer.close()
    told = [finding["detail"] for finding in found["robot_description"]]
    assert any("lower of 'a' is -0.3" in line for line in told) and any("'b' isn't in" in line for line in told)
    assert {finding["level"] for finding in found["robot_description"]} == {"warn"}


@pytest.mark.parametrize("text, words", [(None, "nothing came on '/undescribed/robot_description'"), ("<robot>", "well-formed")])
def test_without_a_description_that_can_be_read_nothing_starts(text, words, tmp_path):
    peer = Peer("undescribed")
    descriptions = peer.node.create_publisher(String, "robot_description", LATCHED_QOS)
    if text:
        descriptions.publish(String(data=text))
    wait_s = 30.0 if text else 0.5
    robot = write_robot(tmp_path / "robot.yaml")
    process = start("chunk_executor_node", "undescribed", robot=robot, limits_from_urdf=True, urdf_timeout_s=wait_s)
    _, said = process.communicate(timeout=60)
    peer.close()
    assert process.returncode == 1 and words in said and "Traceback" not in said
