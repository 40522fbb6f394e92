# SPDX-License-Identifier: Apache-2.0
"""The topics of a simulated robot: observations out, commands in, for a session that runs in its own thread."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.publisher import Publisher
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState

from ros_vdd.errors import ConfigError, EnvError, StreamError
from ros_vdd.nodes.messages import CLASSES, COMMAND_QOS, LATCHED_QOS, goal_message, time_message
from ros_vdd.runtime.sim_session import Command
from ros_vdd.streams.codecs import decode_action, encode_image, stamp_ns
from ros_vdd.streams.spec import RobotSpec

KEPT_COMMANDS = 512  # ten seconds at 50 Hz
GOAL_ARRIVES = Duration(seconds=5)  # at most, before the observation that it belongs to
MATCHING_S = 1.0  # a reader that discovery has announced may still drop what comes before it has matched in turn


class SessionEnd(Exception):
    """The session is to end; unwinds the session's thread."""


class SimLink:
    """Publishes what the simulator shows and keeps the commands that come back.

    The session's thread calls every method but `_receive`, `pause`, `resume` and `end`, which the node's executor calls; a
    condition guards the commands between them, another one what is published.

    Args:
        node: owner of publishers and subscription.
        robot: topics, joints and shapes; every camera and joint state is published as the robot file says.
        publish_clock: publish each stamp on /clock.

    Raises:
        ConfigError: the robot file asks for what a simulator's observation can't be published as.
    """

    def __init__(self, node: Node, robot: RobotSpec, publish_clock: bool):
        self._node, self._robot = node, robot
        self._commands: deque[Command] = deque(maxlen=KEPT_COMMANDS)
        self._changed, self._ended = threading.Condition(), threading.Event()
        self._gate, self._paused = threading.Condition(), False
        publisher = partial(node.create_publisher, qos_profile=COMMAND_QOS)
        self._cameras = {f"images.{n}": (c, publisher(Image, c.topic)) for n, c in robot.cameras.items()}
        self._states = {n: (s, publisher(JointState, s.topic)) for n, s in robot.states.items()}
        self._goal = node.create_publisher(CLASSES[robot.goal.type], robot.goal.topic, LATCHED_QOS) if robot.goal else None
        self._told: np.ndarray | None = None  # the goal published last
        self._clock = node.create_publisher(Clock, "/clock", COMMAND_QOS) if publish_clock else None
        kind, topic = CLASSES[robot.action.type], robot.action.topic
        self._commanded = node.create_subscription(kind, topic, self._receive, COMMAND_QOS)
        self._refuse_unpublishable(publish_clock)

    def now_ns(self) -> int:
        """Return the system time, which the stamps of real time are on."""
        return time.time_ns()

    def sleep_until(self, time_ns: int) -> None:
        """Return at a system time.

        Raises:
            SessionEnd: the session is to end.
        """
        if self._ended.wait(max(time_ns - self.now_ns(), 0) / 1e9):
            raise SessionEnd

    def show(self, stamp: int, observation: Mapping[str, np.ndarray]) -> None:
        """Publish the goal where it is a new one, then the clock, the images and the joint states of one instant.

        Raises:
            EnvError: the robot file has a goal and the observation has none.
        """
        if self._goal:
            self._tell(observation)
        if self._clock:
            self._clock.publish(Clock(clock=time_message(stamp)))
        for name, (camera, publisher) in self._cameras.items():
            message = Image()
            encode_image(message, observation[name], camera.encoding)
            message.header.stamp, message.header.frame_id = time_message(stamp), name.removeprefix("images.")
            publisher.publish(message)
        first = 0
        for spec, publisher in self._states.values():
            values = np.asarray(observation["state"][first : first + spec.size], np.float64)
            first += spec.size
            message = JointState(name=list(spec.joints))
            message.header.stamp = time_message(stamp)
            for field, part in zip(spec.fields, np.split(values, len(spec.fields))):
                setattr(message, field, part.tolist())
            publisher.publish(message)

    def _tell(self, observation: Mapping[str, np.ndarray]) -> None:
        """Publish a new goal and let it arrive: no plan for this observation may be made with the goal before."""
        if "goal" not in observation:
            shown = ", ".join(sorted(observation))
            raise EnvError(f"robot '{self._robot.name}' has a goal, but the simulator shows only {shown}")
        goal = np.asarray(observation["goal"])
        if self._told is None or not np.array_equal(goal, self._told):
            self._goal.publish(goal_message(self._robot.goal, goal))
            self._goal.wait_for_all_acked(GOAL_ARRIVES)
            self._told = goal.copy()

    def newest_command(self, after_ns: int, before_ns: int) -> Command | None:
        """Return the newest command stamped within [after, before), if there is one."""
        with self._changed:
            return next((c for c in reversed(self._commands) if after_ns <= c.stamp_ns < before_ns), None)

    def await_command(self, stamp: int, timeout_s: float) -> Command | None:
        """Return the command with exactly this stamp, or None after the time-out, which begins anew after a pause.

        Raises:
            SessionEnd: the session is to end.
        """
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ended.is_set() or self._with_stamp(stamp), timeout_s)
                if self._ended.is_set():
                    raise SessionEnd
                command = self._with_stamp(stamp)
            if command or not self._paused:
                return command
            with self.running():
                pass

    def await_peers(self, timeout_s: float, *others: Publisher) -> None:
        """Wait until every observation and every other publisher has a reader and the command topic a writer.

        Raises:
            EnvError: they didn't come in time; the message names the topics that are alone.
            SessionEnd: the session is to end.
        """
        limit_ns = self.now_ns() + round(timeout_s * 1e9)
        while alone := self._topics_alone(others):
            if self.now_ns() > limit_ns:
                raise EnvError(
                    f"nobody at the other end of {', '.join(alone)} within {timeout_s:g} s. Expected policy_node and "
                    "chunk_executor_node in the same ROS_DOMAIN_ID and namespace; "
                    "`ros2 topic info -v TOPIC` shows who is there"
                )
            self.sleep_until(self.now_ns() + 50_000_000)
        self.sleep_until(self.now_ns() + round(MATCHING_S * 1e9))

    @contextmanager
    def running(self) -> Iterator[int]:
        """Wait until there is no pause, and keep one from beginning meanwhile; gives for how long was waited, [ns].

        Raises:
            SessionEnd: the session is to end.
        """
        with self._gate:
            paused, began_ns = self._paused, time.monotonic_ns()
            self._gate.wait_for(lambda: self._ended.is_set() or not self._paused)
            if self._ended.is_set():
                raise SessionEnd
            yield time.monotonic_ns() - began_ns if paused else 0

    def pause(self) -> None:
        """Keep the session's thread from `running`; returns when it isn't."""
        with self._gate:
            self._paused = True

    def resume(self) -> None:
        """Let the session's thread go on."""
        with self._gate:
            self._paused = False
            self._gate.notify_all()

    def end(self) -> None:
        """Let the session's thread leave whatever it waits for."""
        self._ended.set()
        for condition in (self._changed, self._gate):
            with condition:
                condition.notify_all()

    def _with_stamp(self, stamp: int) -> Command | None:
        return next((c for c in reversed(self._commands) if c.stamp_ns == stamp), None)

    def _receive(self, message: Any) -> None:
        try:
            action = decode_action(message, self._robot.action)
            stamp = stamp_ns(message) or self.now_ns()  # no stamp, or zero, means "now"
        except StreamError as error:
            self._node.get_logger().error(f"command refused: {error}", throttle_duration_sec=5.0)
            return
        with self._changed:
            self._commands.append(Command(stamp, action))
            self._changed.notify_all()

    def _topics_alone(self, others: Sequence[Publisher]) -> list[str]:
        ours = [publisher for _, publisher in (*self._cameras.values(), *self._states.values())]
        ours += [*([self._goal] if self._goal else []), *others]
        alone = [publisher.topic_name for publisher in ours if not publisher.get_subscription_count()]
        command = self._commanded.topic_name
        return alone + ([] if self._node.count_publishers(command) else [command])

    def _refuse_unpublishable(self, lock_step: bool) -> None:
        for name, (camera, _) in self._cameras.items():
            if camera.type != "sensor_msgs/msg/Image" or camera.output_shape != (camera.height, camera.width, 3):
                raise ConfigError(f"'{name}': a simulated camera is published as a whole, uncompressed Image")
        if lock_step and self._robot.action.type == "std_msgs/msg/Float64MultiArray":
            topic = self._commanded.topic_name
            raise ConfigError(f"'{topic}' carries no stamp; lock-step needs JointTrajectory or JointState")
