# SPDX-License-Identifier: Apache-2.0
"""The topic protective_stop: heard from latched publishers that spoke before this node began, and while no callback runs."""

from __future__ import annotations

from collections.abc import Callable

from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy
from std_msgs.msg import Bool

from ros_vdd.nodes.messages import COMMAND_QOS, LATCHED_QOS

TOPIC = "protective_stop"
LOOK_S = 0.1


class ProtectiveStop:
    """Calls a function at each message with true; one may come twice.

    A volatile subscription isn't given what was published before, and a latched one hears latched publishers only and makes ROS warn all
    others. So the second is made when a latched publisher is there.
    """

    def __init__(self, node: Node, stop: Callable[[], None]):
        self._node, self._stop = node, stop
        self._subscriptions = [node.create_subscription(Bool, TOPIC, self._take, COMMAND_QOS)]
        self._timer = node.create_timer(LOOK_S, self._look, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self._look()

    def poll(self) -> None:
        """Take what has come, in the executor's thread, while a transition keeps it from running callbacks."""
        self._look()
        for subscription in self._subscriptions:
            with subscription.handle:
                while (taken := subscription.handle.take_message(subscription.msg_type, subscription.raw)) is not None:
                    self._take(taken[0])

    def _look(self) -> None:
        if len(self._subscriptions) > 1:
            return
        publishers = self._node.get_publishers_info_by_topic(self._subscriptions[0].topic_name)
        if any(publisher.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL for publisher in publishers):
            self._subscriptions.append(self._node.create_subscription(Bool, TOPIC, self._take, LATCHED_QOS))
            self._timer.cancel()

    def _take(self, message: Bool) -> None:
        if message.data:
            self._stop()
