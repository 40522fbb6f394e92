# SPDX-License-Identifier: Apache-2.0
"""The recorder's services on keys of a terminal; run it in a shell of its own, not by a launch file."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import tty
from collections.abc import Iterator
from typing import Any

import rclpy
from rclpy.node import Node

from ros_vdd.nodes.parameters import Parameter, declare, read
from ros_vdd.nodes.process import run
from ros_vdd.nodes.recorder_client import RecorderClient

KEYS = {"s": "start", "e": "stop", "d": "discard", "u": "undo", "y": "success", "n": "failure"}
HELP = "s start, e end, d discard, u undo discard, y success, n failure, q quit"
PARAMETERS = (Parameter("recorder", "recorder_node", "name of the recorder that is asked"),)
PERIOD_S = 0.05


class RecorderKeyboard(Node):
    """Reads keys from standard input and asks the recorder for what they mean."""

    def __init__(self, **options: Any):
        super().__init__("recorder_keyboard", **options)
        declare(self, PARAMETERS)
        self._client = RecorderClient(self, read(self, PARAMETERS).recorder, _say)
        self.create_timer(PERIOD_S, self._look)
        print(HELP, flush=True)

    def press(self, key: str) -> None:
        """Do what a key means; of the others say which there are."""
        if key == "q":
            rclpy.shutdown()
        elif key in KEYS:
            self._client.ask(KEYS[key])
        elif key.strip():
            print(HELP, flush=True)

    def _look(self) -> None:
        while self.context.ok() and select.select([sys.stdin], [], [], 0)[0]:
            text = os.read(sys.stdin.fileno(), 64).decode(errors="replace")
            if not text:  # the end of a file or a pipe
                rclpy.shutdown()
                return
            for key in text:
                self.press(key)


def _say(success: bool, message: str) -> None:
    print(message if success else f"NOT DONE: {message}", flush=True)


@contextlib.contextmanager
def single_keys() -> Iterator[None]:
    """Have keys come one by one, without Enter, where standard input is a terminal."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def main(args: list[str] | None = None) -> int:
    """Ask until q is pressed."""
    with single_keys():
        return run(RecorderKeyboard, args)
