# SPDX-License-Identifier: Apache-2.0
"""The life of a node's process: start, refuse clearly, spin, and on SIGINT or SIGTERM bring what is under way to a good end."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Literal

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.signals import SignalHandlerOptions

from ros_vdd.errors import RosVddError

IMPATIENT_S = 1.0  # of two signals within that time the second is an echo: a terminal and a launch file both send one


class _Signals:
    """SIGINT and SIGTERM. Those of rclpy end the context, and with it the way to the robot, before anything could be said to it.

    A node that isn't made yet is given up at once. One that spins leaves its spin; a second signal `IMPATIENT_S` later gives up what
    that has begun.
    """

    def __init__(self):
        self._phase: Literal["making", "spinning", "ending", "over"] = "making"
        self._first_s: float | None = None
        self._leave: Callable[[], None] = lambda: None
        self._read, write = os.pipe()
        os.set_blocking(write, False)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._take)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)  # the main thread may be in a wait that no signal ends
        threading.Thread(target=self._wake, name="signals", daemon=True).start()

    def spin(self, leave: Callable[[], None]) -> None:
        """Call `leave`, in a thread of its own, at the first signal from now on."""
        self._leave, self._phase = leave, "spinning"

    def end(self) -> None:
        """Let one more signal interrupt what ends the node."""
        self._first_s = self._first_s or time.monotonic()
        self._phase = "ending"

    def over(self) -> None:
        """Ignore all that come."""
        self._phase = "over"

    def _take(self, number: int, frame: Any) -> None:
        """Run in the main thread, where it may be interrupted."""
        late = self._first_s is not None and time.monotonic() - self._first_s > IMPATIENT_S
        self._first_s = self._first_s or time.monotonic()
        if self._phase == "making" or (self._phase == "ending" and late):
            raise KeyboardInterrupt
        if self._phase == "spinning":
            self._leave()

    def _wake(self) -> None:
        while os.read(self._read, 1):
            if self._phase == "spinning":
                self._leave()


def run(factory: Callable[[], Node], args: list[str] | None = None) -> int:
    """Make a node and spin it until the process is asked to end; call it in the main thread.

    A node that has a method `end` is ended by it, with the graph still there: a robot is brought to its safe action.
    A single-threaded executor: the multi-threaded one costs a millisecond and drops frames, and `spin` of the
    events executor runs no callback in the Kilted wheels.

    Args:
        factory: makes the node; what it raises as a `RosVddError` is the user's to read, without a traceback
        args: command line with ROS arguments, or None for the process's own

    Returns:
        Exit status: 0 after SIGINT or SIGTERM, 1 if the node refused to start.
    """
    signals = _Signals()
    try:
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
        node = factory()
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        signals.spin(node.create_guard_condition(_leave).trigger)
    except RosVddError as error:
        print(f"refused to start: {error}", file=sys.stderr, flush=True)
        return 1  # the process ends; shutting rclpy down would call destroy_node() of a node that was never finished
    except KeyboardInterrupt:  # the signal came before the node was ready
        signals.over()
        return 0
    try:
        executor.spin()
    except ExternalShutdownException:
        pass
    finally:
        signals.end()
        try:
            getattr(node, "end", lambda: None)()
        except KeyboardInterrupt:
            print(f"{node.get_name()}: told again to end; it ends at once", file=sys.stderr, flush=True)
        signals.over()
        executor.shutdown()
        node.destroy_node()
        if rclpy.ok():  # `try_shutdown` isn't public in Humble
            rclpy.shutdown()
    return 0


def _leave() -> None:
    """Leave the executor's spin, in its thread."""
    raise ExternalShutdownException


def publish(node: Node, publisher: Publisher, message: Any) -> None:
    """Publish from a thread that may outlive the context by a moment; a process that ends sends nothing more."""
    try:
        publisher.publish(message)
    except Exception:  # RCLError isn't public
        if node.context.ok():
            raise


def await_reader(publisher: Publisher, patience_s: float = 5.0) -> bool:
    """Wait until somebody listens, and return whether somebody does.

    What a reliable publisher sends before it knows a reader is lost to it. A simulator in lock-step waits for that one message.
    """
    until = time.monotonic() + patience_s
    while not publisher.get_subscription_count():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True
