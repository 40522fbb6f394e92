# SPDX-License-Identifier: Apache-2.0
"""Asks a recorder for what an operator wants, and says what it answered; keyboard and joystick are made of it."""

from __future__ import annotations

from collections.abc import Callable

from rclpy.node import Node
from rclpy.task import Future
from std_srvs.srv import SetBool, Trigger

REQUESTS = {
    "start": ("start_episode", None),
    "stop": ("stop_episode", None),
    "discard": ("discard_episode", None),
    "undo": ("undo_discard", None),
    "success": ("mark_success", True),
    "failure": ("mark_success", False),
}
"""What can be asked for -> service of the recorder, and what is said with it."""


class RecorderClient:
    """The services of one recorder.

    Args:
        node: that calls them
        recorder: name of the recorder; a relative one is of the node's namespace
        say: what an answer is given to: whether it was done, and what the recorder said
    """

    def __init__(self, node: Node, recorder: str, say: Callable[[bool, str], None]):
        self._say, self._recorder = say, recorder
        self._clients = {
            service: node.create_client(Trigger if value is None else SetBool, f"{recorder}/{service}")
            for service, value in REQUESTS.values()
        }

    def ask(self, what: str) -> None:
        """Ask for one of `REQUESTS`; the answer comes later."""
        service, value = REQUESTS[what]
        client = self._clients[service]
        if not client.service_is_ready():
            self._say(False, f"{what}: no answer from '{self._recorder}'; is it running, in this namespace?")
            return
        request = Trigger.Request() if value is None else SetBool.Request(data=value)
        client.call_async(request).add_done_callback(self._answered)

    def _answered(self, future: Future) -> None:
        answer = future.result()
        self._say(answer.success, answer.message)
