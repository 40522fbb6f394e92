# SPDX-License-Identifier: Apache-2.0
"""The recorder's services on buttons of a joystick or on pedals (`sensor_msgs/Joy`, as `joy_node` publishes it)."""

from __future__ import annotations

from typing import Any

from rclpy.node import Node
from sensor_msgs.msg import Joy

from ros_vdd.errors import ConfigError
from ros_vdd.nodes.parameters import Parameter, declare, read
from ros_vdd.nodes.process import run
from ros_vdd.nodes.recorder_client import REQUESTS, RecorderClient

DEFAULTS = {"start": 7, "stop": 6, "discard": 2, "undo": 3, "success": 0, "failure": 1}  # start, back, X, Y, A, B
PARAMETERS = (
    Parameter("recorder", "recorder_node", "name of the recorder that is asked"),
    *(Parameter(f"{what}_button", DEFAULTS[what], f"asks for {what}; from 0, -1 for none", -1, 63) for what in REQUESTS),
)


class RecorderJoystick(Node):
    """Asks the recorder when a button goes down; one that is held asks once."""

    def __init__(self, **options: Any):
        super().__init__("recorder_joystick", **options)
        declare(self, PARAMETERS)
        parameters = read(self, PARAMETERS)
        buttons = {what: getattr(parameters, f"{what}_button") for what in REQUESTS}
        self._meaning: dict[int, str] = {}
        for what, button in buttons.items():
            if button in self._meaning:
                raise ConfigError(f"recorder_joystick: button {button} means {self._meaning[button]} and {what}; choose another")
            if button >= 0:
                self._meaning[button] = what
        self._down: set[int] | None = None
        self._client = RecorderClient(self, parameters.recorder, self._say)
        self.create_subscription(Joy, "joy", self._take, 10)

    def _take(self, message: Joy) -> None:
        down = {number for number, value in enumerate(message.buttons) if value}
        before = down if self._down is None else self._down  # what was held before we came means nothing
        self._down = down
        for button in sorted(down - before):
            if button in self._meaning:
                self._client.ask(self._meaning[button])

    def _say(self, success: bool, message: str) -> None:
        if success:
            self.get_logger().info(message)
        else:
            self.get_logger().warning(message)


def main(args: list[str] | None = None) -> int:
    """Ask until the process is told to end."""
    return run(RecorderJoystick, args)
