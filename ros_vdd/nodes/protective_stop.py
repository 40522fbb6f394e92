# SPDX-License-Identifier: Apache-2.0
"""The topic protective_stop: heard from latched publishers that spoke before this node began, and while no callback runs."""

from __future__ import annotations

from collections.abc import Callable

from rclpy.node import Node
from std_msgs.msg import Bool

from ros_vdd.nodes.messages import COMMAND_QOS, LATCHED_QOS

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks

TOPIC = "protective_stop"


class ProtectiveStop:
    """Calls a function at each message with true; one may come twice.

    Two subscriptions, since a volatile one isn't given what was published before, and a latched one hears latched publishers only.
    """

    def __init__(self, node: Node, stop: Callable[[], None]):
        self._stop = stop
        silent = SubscriptionEventCallbacks(use_default_callbacks=False)  # what doesn't suit the second suits the first
        self._subscriptions = [
            node.create_subscription(Bool, TOPIC, self._take, COMMAND_QOS),
            node.create_subscription(Bool, TOPIC, self._take, LATCHED_QOS, event_callbacks=silent),
        ]

    def poll(self) -> None:
        """Take what has come, in the executor's thread, while a transition keeps it from running callbacks."""
        for subscription in self._subscriptions:
            with subscription.handle:
                while (taken := subscription.handle.take_message(subscription.msg_type, subscription.raw)) is not None:
                    self._take(taken[0])

    def _take(self, message: Bool) -> None:
        if message.data:
            self._stop()
