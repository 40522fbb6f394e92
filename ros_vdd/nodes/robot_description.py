# SPDX-License-Identifier: Apache-2.0
"""The robot description as robot_state_publisher publishes it, latched: read once, when a node is configured."""

from __future__ import annotations

import time

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from std_msgs.msg import String

from ros_vdd.errors import ConfigError
from ros_vdd.nodes.messages import LATCHED_QOS

TOPIC = "robot_description"


def await_description(node: Node, timeout_s: float) -> str:
    """Return the newest description on `robot_description`, heard by a node of its own: configure keeps this one's executor.

    Args:
        node: whose namespace and remappings the topic follows.
        timeout_s: how long to wait, [s].

    Raises:
        ConfigError: nothing came in time.
    """
    topic, heard = node.resolve_topic_name(TOPIC), []
    helper = rclpy.create_node(
        f"{node.get_name()}_description", namespace=node.get_namespace(), context=node.context, use_global_arguments=False
    )
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(helper)
    try:
        helper.create_subscription(String, topic, lambda message: heard.append(message.data), LATCHED_QOS)
        until_s = time.monotonic() + timeout_s
        while not heard and time.monotonic() < until_s:
            executor.spin_once(timeout_sec=min(0.1, timeout_s))
    finally:
        executor.shutdown()
        helper.destroy_node()
    if not heard:
        silent = f"nothing came on '{topic}' (std_msgs/msg/String, transient local) within {timeout_s:g} s"
        remedy = f"start robot_state_publisher, remap '{TOPIC}', or turn it off"
        raise ConfigError(f"{node.get_name()}: 'limits_from_urdf' is on, and {silent}; {remedy}")
    return heard[-1]
