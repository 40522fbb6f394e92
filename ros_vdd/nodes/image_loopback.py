# SPDX-License-Identifier: Apache-2.0
"""Camera images from one process to another, best effort, as a driver's go to the policy: how many arrive.

Two processes, started by `ros-vdd doctor --live` in a domain of their own, with the environment of its shell.
"""

from __future__ import annotations

import argparse
import array
import json
import sys
import time

import rclpy
from rclpy.utilities import get_rmw_implementation_identifier
from sensor_msgs.msg import Image

from ros_vdd.nodes.messages import CAMERA_QOS

TOPIC = "ros_vdd_doctor/image"
RATE_HZ = 15.0
PATIENCE_S = 30.0  # a busy machine takes seconds to start a process
SETTLE_S, LAST_S = 1.0, 3.0


def send(count: int, size: int) -> int:
    """Publish images of `size` bytes once somebody listens, and after them small ones that end it; return how many."""
    node = rclpy.create_node("ros_vdd_doctor_camera")
    publisher = node.create_publisher(Image, TOPIC, CAMERA_QOS)
    by = time.monotonic() + PATIENCE_S
    while not publisher.get_subscription_count():
        if time.monotonic() > by:
            return 0
        time.sleep(0.05)
    time.sleep(SETTLE_S)  # the other side must have matched as well
    data = array.array("B", bytes(size))
    for _ in range(count):
        publisher.publish(Image(height=1, width=size, step=size, encoding="mono8", data=data))
        time.sleep(1 / RATE_HZ)
    for _ in range(10):
        publisher.publish(Image())
        time.sleep(1 / RATE_HZ)
    return count


def receive(size: int) -> int:
    """Return how many images of `size` bytes came before the small one that ends it."""
    node = rclpy.create_node("ros_vdd_doctor_policy")
    heard: list[int] = []
    node.create_subscription(Image, TOPIC, lambda image: heard.append(len(image.data)), CAMERA_QOS)
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until and 0 not in heard:
        before = len(heard)
        rclpy.spin_once(node, timeout_sec=0.1)
        if len(heard) > before:
            until = time.monotonic() + LAST_S
    return heard.count(size)


def main(args: list[str] | None = None) -> int:
    """Send or receive, and print the count as JSON."""
    parser = argparse.ArgumentParser(prog="image_loopback")
    parser.add_argument("side", choices=("send", "receive"))
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--size", type=int, default=640 * 480 * 3, help="bytes of an image")
    options = parser.parse_args(args)
    rclpy.init(args=[])
    count = send(options.count, options.size) if options.side == "send" else receive(options.size)
    print(json.dumps({"images": count, "rmw": get_rmw_implementation_identifier()}), flush=True)
    rclpy.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
