# SPDX-License-Identifier: Apache-2.0
"""A robot with large raw images and no Fast DDS profile is warned about; all others are not. Images really arrive."""

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="ROS 2 (rclpy) is not installed")

from rclpy.utilities import get_rmw_implementation_identifier  # noqa: E402
from test_observer import robot  # noqa: E402

from ros_vdd.nodes.transport import image_problem  # noqa: E402
from ros_vdd.resources import FAST_DDS_VARIABLES  # noqa: E402

PROFILE = Path(__file__).resolve().parents[1] / "config" / "fastdds.xml"
VGA = {"width": 640, "height": 480}


def test_large_raw_images_without_a_profile_are_warned_about():
    assert "top" in image_problem(robot(**VGA), "rmw_fastrtps_cpp", {})


@pytest.mark.parametrize("name", FAST_DDS_VARIABLES)
def test_a_profile_ends_the_warning(name):
    assert image_problem(robot(**VGA), "rmw_fastrtps_cpp", {name: str(PROFILE)}) is None


@pytest.mark.parametrize(
    "camera, rmw",
    [
        ({}, "rmw_fastrtps_cpp"),
        (VGA, "rmw_zenoh_cpp"),
        ({**VGA, "type": "sensor_msgs/msg/CompressedImage"}, "rmw_fastrtps_cpp"),
        ({**VGA, "encoding": "mono8"}, "rmw_fastrtps_cpp"),
    ],
    ids=["small images", "another middleware", "compressed images", "grey images"],
)
def test_what_needs_no_profile_gets_no_warning(camera, rmw):
    assert image_problem(robot(**camera), rmw, {}) is None


def test_the_profile_has_room_for_a_raw_full_hd_image():
    sizes = {element.tag.split("}")[-1]: element.text for element in ElementTree.parse(PROFILE).iter()}
    assert int(sizes["maxMessageSize"]) > 1920 * 1080 * 3
    assert int(sizes["segment_size"]) >= 10 * 1920 * 1080 * 3


PUBLISHER = """
import array, sys, rclpy
from ros_vdd.nodes.messages import CAMERA_QOS
from sensor_msgs.msg import Image
rclpy.init()
node = rclpy.create_node("camera")
publisher = node.create_publisher(Image, "vga", CAMERA_QOS)
image = Image(width=640, height=480, step=1920, encoding="rgb8", data=array.array("B", bytes(640 * 480 * 3)))
while True:
    publisher.publish(image)
    rclpy.spin_once(node, timeout_sec=0.03)
"""
READER = """
import rclpy
from ros_vdd.nodes.messages import CAMERA_QOS
from sensor_msgs.msg import Image
rclpy.init()
node, got = rclpy.create_node("reader"), []
node.create_subscription(Image, "vga", got.append, CAMERA_QOS)
for _ in range(300):
    rclpy.spin_once(node, timeout_sec=0.1)
    if len(got) >= 20:
        break
print(len(got), len(got[0].data) if got else 0)
"""


@pytest.mark.skipif("fastrtps" not in get_rmw_implementation_identifier(), reason="the profile is for Fast DDS")
def test_best_effort_vga_images_arrive_in_another_process_with_the_profile():
    environment = {**os.environ, FAST_DDS_VARIABLES[0]: str(PROFILE), FAST_DDS_VARIABLES[1]: str(PROFILE)}
    camera = subprocess.Popen([sys.executable, "-c", PUBLISHER], env=environment, stderr=subprocess.DEVNULL)
    try:
        reader = subprocess.run(
            [sys.executable, "-c", READER], env=environment, capture_output=True, text=True, timeout=60
        )
    finally:
        camera.kill()
        camera.wait()
    assert reader.stdout.split() == ["20", str(640 * 480 * 3)]
