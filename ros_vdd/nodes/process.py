# SPDX-License-Identifier: Apache-2.0
"""The life of a node's process: start, refuse clearly, spin, and end cleanly on SIGINT or SIGTERM."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.publisher import Publisher

from ros_vdd.errors import RosVddError


def run(factory: Callable[[], Node], args: list[str] | None = None) -> int:
    """Make a node and spin it until the process is asked to end.

    A single-threaded executor: the multi-threaded one costs a millisecond and drops frames, and `spin` of the
    events executor runs no callback in the Kilted wheels.

    Args:
        factory: makes the node; what it raises as a `RosVddError` is the user's to read, without a traceback
        args: command line with ROS arguments, or None for the process's own

    Returns:
        Exit status: 0 after SIGINT or SIGTERM, 1 if the node refused to start.
    """
    rclpy.init(args=args)
    try:
        node = factory()
    except RosVddError as error:
        print(f"refused to start: {error}", file=sys.stderr, flush=True)
        return 1  # the process ends; shutting rclpy down would call destroy_node() of a node that was never finished
    except (KeyboardInterrupt, Exception):  # the signal came before the node was ready; RCLError isn't public
        if rclpy.ok():
            raise
        return 0
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        executor.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except Exception:  # a callback under way when the signal came finds its publishers gone
        if rclpy.ok():
            raise
    finally:
        executor.shutdown()
        node.destroy_node()
        if rclpy.ok():  # not after a signal; `try_shutdown` isn't public in Humble
            rclpy.shutdown()
    return 0


def publish(node: Node, publisher: Publisher, message: Any) -> None:
    """Publish from a thread that may outlive the context by a moment; a process that ends sends nothing more."""
    try:
        publisher.publish(message)
    except Exception:  # RCLError isn't public
        if node.context.ok():
            raise
