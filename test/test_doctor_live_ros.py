# SPDX-License-Identifier: Apache-2.0
"""`ros-vdd doctor --live` beside real publishers: a good robot passes, a driver with faults is told each; images really move."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("rclpy", reason="ROS 2 (rclpy) is not installed")

from rclpy.qos import DurabilityPolicy, QoSProfile  # noqa: E402
from rclpy.utilities import get_rmw_implementation_identifier  # noqa: E402
from ros_peers import Peer, good_image, good_joints  # noqa: E402
from sensor_msgs.msg import CompressedImage, Image  # noqa: E402
from std_msgs.msg import String  # noqa: E402
from tiny_policy import HEIGHT, ROBOT, TASKS, WIDTH, write_robot  # noqa: E402
from trajectory_msgs.msg import JointTrajectory  # noqa: E402

from ros_vdd.nodes.messages import CAMERA_QOS, time_message  # noqa: E402
from ros_vdd.offline.live_check import check_image_transport  # noqa: E402
from ros_vdd.resources import FAST_DDS_VARIABLES, share_dir  # noqa: E402

PATIENT = {"max_age_s": 20.0}  # of a machine that is busy with other tests
HOUR = 3600 * 10**9


def diagnose(peer, robot, namespace, publish):
    """Run the doctor while publishing; return its status and its findings by check."""
    command = [sys.executable, "-m", "ros_vdd", "doctor", "--live", "--json", "--robot", str(robot)]
    command += ["--namespace", namespace, "--seconds", "3"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)
    try:
        peer.until(lambda: process.poll() is not None, publish)
        found = json.loads(process.communicate()[0])
    finally:
        process.kill()
        process.wait()
    checks = {}
    for finding in found:
        checks.setdefault(finding["check"], []).append(finding)
    return process.returncode, checks


def stamped(message, stamp_ns):
    message.header.stamp = time_message(stamp_ns)
    return message


def test_a_good_robot_passes(tmp_path):
    cameras = {"top": {**ROBOT["cameras"]["top"], **PATIENT}}
    robot = write_robot(tmp_path / "good.yaml", cameras=cameras, states={"arm": {**ROBOT["states"]["arm"], **PATIENT}})
    peer = Peer("doctor_good")
    peer.hear(JointTrajectory, "command")
    status, found = diagnose(peer, robot, "doctor_good", peer.publish)
    peer.close()
    assert [f for findings in found.values() for f in findings if f["level"] == "error"] == [] and status == 0
    assert [found[check][0]["level"] for check in ("cameras.top", "states.arm", "action", "image transport")] == ["ok"] * 4
    assert "'/doctor_good/camera' at" in found["cameras.top"][0]["detail"]


def test_a_driver_with_faults_is_told_each_of_them_and_the_status_is_1(tmp_path):
    top = {**ROBOT["cameras"]["top"], **PATIENT}
    names = {"small": "small", "packed": "packed", "old": "old", "twice": "twice", "gone": "camera_gone", "zero": "zero"}
    cameras = {name: {**top, "topic": topic} for name, topic in names.items()}
    states = {"arm": {**ROBOT["states"]["arm"], **PATIENT}}
    stop = {"kind": "stop", "stale_chunk_s": 1.0}
    robot = write_robot(tmp_path / "faults.yaml", cameras=cameras, states=states, goal=TASKS, safe_action=stop)
    peer = Peer("doctor_bad")
    make = peer.node.create_publisher
    small, old, zero, lost = (make(Image, topic, CAMERA_QOS) for topic in ("small", "old", "zero", "robot/camera_gone"))
    packed, both = make(CompressedImage, "packed", CAMERA_QOS), [make(Image, "twice", CAMERA_QOS) for _ in range(2)]
    volatile = QoSProfile(depth=1, durability=DurabilityPolicy.VOLATILE)
    goal = make(String, "goal", volatile)

    def publish():
        now = peer.now_ns()
        small.publish(stamped(good_image(width=2 * WIDTH, step=6 * WIDTH, data=bytes(6 * WIDTH * HEIGHT)), now))
        packed.publish(stamped(CompressedImage(format="jpeg"), now))
        old.publish(stamped(good_image(), now - HOUR))
        for publisher in (*both, lost):
            publisher.publish(stamped(good_image(), now))
        zero.publish(good_image())
        goal.publish(String(data="push"))
        peer.joints.publish(stamped(good_joints(names=("a", "bb")), now))

    status, found = diagnose(peer, robot, "doctor_bad", publish)
    peer.close()
    assert status == 1
    expected = {
        "cameras.small": "8x3 pixels, the robot file says 4x3",
        "cameras.packed": "as sensor_msgs/msg/CompressedImage; the robot file says sensor_msgs/msg/Image",
        "cameras.old": "60 min behind this machine's clock: another clock",
        "cameras.twice": "has 2 publishers",
        "cameras.gone": "did you mean '/doctor_bad/robot/camera_gone'?",
        "cameras.zero": "the header's stamp is zero",
        "states.arm": "has no b; it has a, bb",
        "goal": "offers reliable, volatile; ours is reliable, transient_local",
        "action": "nobody listens to '/doctor_bad/command'",
    }
    for check, words in expected.items():
        errors = [f for f in found[check] if f["level"] == "error"]
        assert any(words in f["detail"] for f in errors), (check, found[check])
        assert all(f["remedy"] for f in errors)


FAST_DDS = "fastrtps" in get_rmw_implementation_identifier()


@pytest.mark.skipif(not FAST_DDS, reason="the segments are those of Fast DDS")
def test_a_segment_too_small_is_found_and_the_profile_printed_heals_it():
    bare = {name: value for name, value in os.environ.items() if name not in FAST_DDS_VARIABLES}
    found = check_image_transport(640 * 480 * 3, bare)
    assert found.level == "error" and "fastdds.xml" in found.remedy
    name, path = found.remedy.rpartition("export ")[2].split("=")
    assert path == str(share_dir() / "config" / "fastdds.xml")
    assert check_image_transport(640 * 480 * 3, {**bare, name: path}).level in ("ok", "warn")  # warn: a busy machine lost some
