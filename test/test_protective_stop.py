# SPDX-License-Identifier: Apache-2.0
"""The topic protective_stop is heard whenever it was said, in the executor or where no callback runs, and false says nothing."""

import os
import time

import pytest

rclpy = pytest.importorskip("rclpy", reason="ROS 2 (rclpy) is not installed")

from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from std_msgs.msg import Bool  # noqa: E402

from ros_vdd.nodes.messages import COMMAND_QOS, LATCHED_QOS  # noqa: E402
from ros_vdd.nodes.protective_stop import TOPIC, ProtectiveStop  # noqa: E402

PATIENCE_S = 60.0


@pytest.fixture
def robot():
    """A publisher's node, a listener's node and its executor, below a namespace of their own."""
    context = rclpy.Context()
    rclpy.init(context=context)
    said, heard = (rclpy.create_node(name, namespace=f"stop_{os.getpid()}", context=context) for name in ("said", "heard"))
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(heard)
    yield said, heard, lambda: executor.spin_once(timeout_sec=0.05)
    executor.shutdown()
    for node in (said, heard):
        node.destroy_node()
    rclpy.shutdown(context=context)


def until(condition, meanwhile):
    limit_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < limit_s, "it never came true"
        meanwhile()


@pytest.mark.parametrize("in_transition", [False, True], ids=["by the executor", "by poll"])
@pytest.mark.parametrize("qos", [COMMAND_QOS, LATCHED_QOS], ids=["volatile", "latched"])
def test_a_stop_is_heard_and_false_is_none(qos, in_transition, robot):
    said, node, spin = robot
    publisher, stops = said.create_publisher(Bool, TOPIC, qos), []
    listener = ProtectiveStop(node, lambda: stops.append(True))
    listen = (lambda: (listener.poll(), time.sleep(0.02))) if in_transition else spin
    until(lambda: publisher.get_subscription_count() >= (2 if qos is LATCHED_QOS else 1), listen)
    publisher.publish(Bool(data=False))
    for _ in range(10):
        listen()
    assert not stops
    publisher.publish(Bool(data=True))
    until(lambda: stops, listen)


def test_a_latched_stop_is_heard_by_one_that_begins_later(robot):
    said, node, spin = robot
    said.create_publisher(Bool, TOPIC, LATCHED_QOS).publish(Bool(data=True))
    stops = []
    ProtectiveStop(node, lambda: stops.append(True))
    until(lambda: stops, spin)
