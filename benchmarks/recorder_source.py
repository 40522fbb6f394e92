# SPDX-License-Identifier: Apache-2.0
"""One driver of the throughput measurement: publishes numbered messages at a rate, when told on standard input.

Said to it, a line each: "warm" publishes until the next line; "go N" publishes N messages; "mark" publishes one, so that a gap
just before the end shows; "end". It says when it is ready and then what it published, each as one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import select
import sys
import time

import rclpy
from rclpy.qos import QoSProfile, ReliabilityPolicy
from recorder_robot import CAMERA_HZ, JOINT_HZ, image_bytes, joint_bytes, number
from sensor_msgs.msg import Image, JointState


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("topic")
    parser.add_argument("kind", choices=("image", "joints"))
    args = parser.parse_args()
    rclpy.init(args=[])
    node = rclpy.create_node(f"source_{args.topic}")
    image = args.kind == "image"
    qos = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT) if image else QoSProfile(depth=100)
    publisher = node.create_publisher(Image if image else JointState, args.topic, qos)
    data, period_ns = image_bytes() if image else joint_bytes(), round(1e9 / (CAMERA_HZ if image else JOINT_HZ))
    published = 0
    print(json.dumps({"said": "ready", "published": published}), flush=True)
    for line in sys.stdin:
        word, _, count = line.strip().partition(" ")
        due_ns, left = time.monotonic_ns(), int(count) if count else 1 if word == "mark" else 10**9
        while left and word in ("warm", "go", "mark"):
            number(data, published, time.time_ns())
            publisher.publish(bytes(data))
            published, left, due_ns = published + 1, left - 1, due_ns + period_ns
            time.sleep(max(0, due_ns - time.monotonic_ns()) / 1e9)
            if word == "warm" and select.select([sys.stdin], [], [], 0)[0]:
                break
        print(json.dumps({"said": word, "published": published}), flush=True)
        if word == "end":
            break
    node.destroy_node()
    rclpy.shutdown()


if __name__ == "__main__":
    main()
