# SPDX-License-Identifier: Apache-2.0
"""Records every topic of the robot file, as the bytes that came, into one rosbag2 folder per episode."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.utilities import get_rmw_implementation_identifier
from std_srvs.srv import Trigger

from ros_vdd.errors import ConfigError
from ros_vdd.nodes.managed import AUTOSTART, ManagedNode
from ros_vdd.nodes.messages import CLASSES, LATCHED_QOS
from ros_vdd.nodes.parameters import Parameter
from ros_vdd.nodes.process import run
from ros_vdd.nodes.transport import image_problem
from ros_vdd.runtime.recording import EpisodeRecorder, Reply
from ros_vdd.streams.spec import load_robot

PARAMETERS = (
    Parameter("autostart", True, AUTOSTART),
    Parameter("robot", "", "robot file: a path, or the name of a shipped one"),
    Parameter("root", "~/episodes", "folder of all recordings"),
    Parameter("task", "demonstration", "what is demonstrated; a folder below root"),
    Parameter("silent_after_s", 1.0, "start is refused while a topic has been silent for so long", 0.05, 60.0),
    Parameter("chunk_s", 0.1, "at most this much is lost when the process is killed", 0.01, 10.0),
    Parameter("fsync_s", 1.0, "at most this much is lost in a power cut", 0.1, 60.0),
    Parameter("queue_depth", 50, "messages per topic that wait while the disk is busy", 1, 1000),
)
FLUSH_PERIOD_S = 0.1


class Recorder:
    """Subscriptions, services and a timer around an `EpisodeRecorder`, in the executor's thread: the work of a `ManagedNode`.

    Subscriptions are best effort, which matches reliable and best-effort publishers alike; that of the goal is latched. A
    message's log time is this node's clock when it came: simulation time under `use_sim_time`. Inactive it listens, but
    records nothing.
    """

    def __init__(self, node: ManagedNode, parameters: Any):
        self._node, self._active = node, False
        if not parameters.robot:
            raise ConfigError("recorder_node: parameter 'robot' is empty; give a robot file or a shipped name")
        robot = load_robot(parameters.robot)
        if problem := image_problem(robot, get_rmw_implementation_identifier(), os.environ):
            node.get_logger().warning(problem)
        node.status.robot = robot.name
        names = {topic: node.resolve_topic_name(topic) for topic in robot.topics()}
        observed = [stream.topic for stream in (*robot.cameras.values(), *robot.states.values())]
        latched = [robot.goal.topic] if robot.goal else []
        self.recorder = EpisodeRecorder(
            root=Path(parameters.root).expanduser(),
            task=parameters.task,
            robot=robot,
            topics={names[topic]: type_name for topic, type_name in robot.topics().items()},
            required=[names[topic] for topic in dict.fromkeys([*observed, *latched, robot.action.demonstrated.topic])],
            clock=time.monotonic_ns,
            silent_after_s=parameters.silent_after_s,
            latched=[names[topic] for topic in latched],
            chunk_s=parameters.chunk_s,
            fsync_s=parameters.fsync_s,
            ros_distro=os.environ.get("ROS_DISTRO", ""),
        )
        qos = QoSProfile(depth=parameters.queue_depth, reliability=ReliabilityPolicy.BEST_EFFORT)
        for topic, type_name in robot.topics().items():
            take = partial(self._receive, names[topic])
            node.create_subscription(CLASSES[type_name], topic, take, LATCHED_QOS if topic in latched else qos, raw=True)
        for service, action in {
            "start_episode": self._begin,
            "stop_episode": self.recorder.stop,
            "discard_episode": self.recorder.discard,
            "undo_discard": self.recorder.undo_discard,
        }.items():
            node.create_service(Trigger, f"~/{service}", partial(self._answer, action))
        node.create_timer(FLUSH_PERIOD_S, self._tick)
        self._told = ""
        node.at_cleanup(self._complete)

    def activate(self) -> None:
        """Let episodes be recorded."""
        self._active = True
        self._node.status.set("running")

    def deactivate(self) -> None:
        """Complete the episode that is being recorded."""
        self._active = False
        if self.recorder.recording:
            self._say(self.recorder.stop())

    def _begin(self) -> Reply:
        if not self._active:
            return Reply(False, f"{self._node.get_name()} is inactive; activate it by ~/change_state")
        return self.recorder.start()

    def _complete(self) -> None:
        """Complete the episode that is being recorded: whoever closes the recorder keeps it."""
        if self.recorder.recording:
            # Not by the logger, which publishes too: after a signal there is nothing left to publish with.
            print(f"{self._node.get_name()}: {self.recorder.stop().message}", file=sys.stderr, flush=True)

    def _receive(self, topic: str, data: bytes) -> None:
        self.recorder.receive(topic, self._node.get_clock().now().nanoseconds, data)

    def _answer(self, action: Callable[[], Reply], _, response: Trigger.Response) -> Trigger.Response:
        reply = action()
        self._say(reply)
        response.success, response.message = reply
        return response

    def _tick(self) -> None:
        self.recorder.tick()
        if self.recorder.failure != self._told:
            self._told = self.recorder.failure
            if self._told:
                self._node.get_logger().error(self._told)

    def _say(self, reply: Reply) -> None:
        if reply.success:
            self._node.get_logger().info(reply.message)
        else:
            self._node.get_logger().warning(reply.message)


def make(**options: Any) -> ManagedNode:
    """Return the node, of which `options` are rclpy's."""
    return ManagedNode("recorder_node", "recording", Recorder, PARAMETERS, **options)


def main(args: list[str] | None = None) -> int:
    """Record until the process is asked to end."""
    return run(make, args)
