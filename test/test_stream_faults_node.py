# SPDX-License-Identifier: Apache-2.0
"""The policy node in its own process while its camera freezes and clocks are set: reasons, counts, recovery."""

import pytest

pytest.importorskip("rclpy", reason="ROS 2 (rclpy) is not installed")
pytest.importorskip("onnx", reason="the tiny policy is made with onnx")

from itertools import count  # noqa: E402

from diagnostic_msgs.msg import DiagnosticArray  # noqa: E402
from ros_peers import Peer, good_image, start, stop  # noqa: E402
from tiny_policy import HEIGHT, ROBOT, WIDTH, write_policy, write_robot  # noqa: E402
from trajectory_msgs.msg import JointTrajectory  # noqa: E402

HOUR = 3600 * 10**9


def test_a_frozen_camera_and_clocks_that_are_set_stop_the_plans_and_all_of_it_heals(tmp_path):
    policy = write_policy(tmp_path / "tiny").path
    cameras = {"top": {**ROBOT["cameras"]["top"], "frozen_after_s": 0.5}}
    robot = write_robot(tmp_path / "arm.yaml", cameras=cameras)
    process, peer = start("policy_node", "streams", policy=policy, robot=robot), Peer("streams")
    chunks, status = peer.hear(JointTrajectory, "action_chunk"), peer.hear_status("policy_node")
    diagnostics, pictures = peer.hear(DiagnosticArray, "/diagnostics"), count()

    def alive(shift_ns=0):
        data = next(pictures).to_bytes(4, "big") + bytes(3 * WIDTH * HEIGHT - 4)
        peer.publish(peer.now_ns() + shift_ns, image=good_image(data=data))

    def runs(shift_ns=0):
        del chunks[:]
        peer.until(lambda: chunks and status[-1]["state"] == "running", lambda: alive(shift_ns))

    def figures():
        ours = [s for s in (diagnostics[-1].status if diagnostics else ()) if "policy_node" in s.name]
        return {pair.key: pair.value for s in ours for pair in s.values}

    peer.until(lambda: status)
    runs()
    peer.until(lambda: status[-1]["code"] == "camera_frozen", peer.publish)
    del chunks[:]
    peer.until(lambda: figures().get("images.top.frozen") == "1", peer.publish)
    assert not chunks and "the same picture for" in status[-1]["detail"]
    runs()
    peer.until(lambda: status[-1]["code"] == "clock_mismatch", lambda: alive(-HOUR))
    assert "60 min behind" in status[-1]["detail"]
    runs()
    runs(shift_ns=-3 * 10**9)  # within max_skew_s, but back by three seconds: a bag that loops
    peer.until(lambda: int(figures().get("clock_jumps", 0)) >= 1, lambda: alive(-3 * 10**9))
    peer.close()
    code, said = stop(process)
    assert code == 0 and said.count("clock_jumped: ") == 1 and "Traceback" not in said
