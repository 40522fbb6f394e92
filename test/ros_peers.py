# SPDX-License-Identifier: Apache-2.0
"""What tests of nodes need: the node in a process of its own, and a peer that publishes to it and hears it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import rclpy
from rclpy.executors import SingleThreadedExecutor
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger
from tiny_policy import HEIGHT, WIDTH

from ros_vdd.nodes.messages import CAMERA_QOS, COMMAND_QOS, LATCHED_QOS, time_message

SPINS = 1500  # of at most 20 ms: a busy machine gets half a minute, an idle one needs none of it


def start(module, namespace="tests", **parameters):
    """Start a node of ros_vdd as its console script does, below a namespace of its own."""
    words = ["-r", f"__ns:=/{namespace}"]
    words += [word for name, value in parameters.items() for word in ("-p", f"{name}:={value}")]
    code = f"import sys; from ros_vdd.nodes.{module} import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "--ros-args", *words]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ)


def stop(process, with_signal=signal.SIGINT):
    """Ask a node to end; return its exit status and what it said."""
    process.send_signal(with_signal)
    _, said = process.communicate(timeout=30)
    return process.returncode, said


class Peer:
    """The robot's side of the tests, in this process."""

    def __init__(self, namespace="tests"):
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node("peer", namespace=namespace, context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.cameras = self.node.create_publisher(Image, "camera", CAMERA_QOS)
        self.joints = self.node.create_publisher(JointState, "joint_states", 10)

    def hear(self, kind, topic, latched=False):
        """Subscribe; return the list that fills."""
        heard = []
        self.node.create_subscription(kind, topic, heard.append, LATCHED_QOS if latched else COMMAND_QOS)
        return heard

    def hear_status(self, node):
        """Subscribe to the latched status of a node; return the list of its contents."""
        heard = []
        take = lambda message: heard.append(json.loads(message.data))  # noqa: E731
        self.node.create_subscription(String, f"{node}/status", take, LATCHED_QOS)
        return heard

    def until(self, condition, meanwhile=lambda: None):
        """Spin until something is true, doing something between."""
        for _ in range(SPINS):
            if condition():
                return
            meanwhile()
            self.executor.spin_once(timeout_sec=0.02)
        raise AssertionError("it never came true")

    def call(self, service, kind=Trigger, **request):
        """Call a service; return its response."""
        client = self.node.create_client(kind, service)
        self.until(client.service_is_ready)
        future = client.call_async(kind.Request(**request))
        self.until(future.done)
        return future.result()

    def now_ns(self):
        """Return the time of the ROS clock."""
        return self.node.get_clock().now().nanoseconds

    def publish(self, stamp_ns=None, image=None, joints=None):
        """Publish an image and a joint state with one stamp; None publishes a good one, False none."""
        stamp = time_message(self.now_ns() if stamp_ns is None else stamp_ns)
        for publisher, message, good in ((self.joints, joints, good_joints), (self.cameras, image, good_image)):
            message = good() if message is None else message
            if message:
                message.header.stamp = stamp
                publisher.publish(message)

    def close(self):
        """Leave the graph."""
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)


def good_image(**changes):
    """Return an image of the tiny robot."""
    size = {"width": WIDTH, "height": HEIGHT, "step": 3 * WIDTH}
    return Image(**{**size, "encoding": "rgb8", "data": bytes(3 * WIDTH * HEIGHT), **changes})


def good_joints(a=0.1, b=0.2, names=("a", "b")):
    """Return a joint state of the tiny robot."""
    return JointState(name=list(names), position=[a, b][: len(names)])
