# SPDX-License-Identifier: Apache-2.0
"""Records every topic of the robot file, as the bytes that came, into one rosbag2 folder per episode."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.utilities import get_rmw_implementation_identifier
from std_srvs.srv import Trigger

from ros_vdd.errors import ConfigError
from ros_vdd.nodes.messages import CLASSES, LATCHED_QOS
from ros_vdd.nodes.parameters import Parameter, declare
from ros_vdd.nodes.process import run
from ros_vdd.nodes.transport import image_problem
from ros_vdd.runtime.recording import EpisodeRecorder, Reply
from ros_vdd.streams.spec import load_robot

PARAMETERS = (
    Parameter("robot", "", "robot file: a path, or the name of a shipped one"),
    Parameter("root", "~/episodes", "folder of all recordings"),
    Parameter("task", "demonstration", "what is demonstrated; a folder below root"),
    Parameter("silent_after_s", 1.0, "start is refused while a topic has been silent for so long", 0.05, 60.0),
    Parameter("chunk_s", 0.1, "at most this much is lost when the process is killed", 0.01, 10.0),
    Parameter("fsync_s", 1.0, "at most this much is lost in a power cut", 0.1, 60.0),
    Parameter("queue_depth", 50, "messages per topic that wait while the disk is busy", 1, 1000),
)
FLUSH_PERIOD_S = 0.1


class RecorderNode(Node):
    """Subscriptions, services and a timer around an `EpisodeRecorder`, all in the executor's one thread.

    Subscriptions are best effort, which matches reliable and best-effort publishers alike; that of the goal is latched. A
    message's log time is this node's clock when it came: simulation time under `use_sim_time`.
    """

    def __init__(self) -> None:
        super().__init__("recorder_node")
        parameters = declare(self, PARAMETERS)
        if not parameters.robot:
            raise ConfigError("recorder_node: parameter 'robot' is empty; give a robot file or a shipped name")
        robot = load_robot(parameters.robot)
        if problem := image_problem(robot, get_rmw_implementation_identifier(), os.environ):
            self.get_logger().warning(problem)
        names = {topic: self.resolve_topic_name(topic) for topic in robot.topics()}
        observed = [stream.topic for stream in (*robot.cameras.values(), *robot.states.values())]
        latched = [robot.goal.topic] if robot.goal else []
        self._recorder = EpisodeRecorder(
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
            self.create_subscription(CLASSES[type_name], topic, take, LATCHED_QOS if topic in latched else qos, raw=True)
        for service, action in {
            "start_episode": self._recorder.start,
            "stop_episode": self._recorder.stop,
            "discard_episode": self._recorder.discard,
            "undo_discard": self._recorder.undo_discard,
        }.items():
            self.create_service(Trigger, f"~/{service}", partial(self._answer, action))
        self.create_timer(FLUSH_PERIOD_S, self._tick)
        self._told = ""

    def destroy_node(self) -> None:
        """Complete the episode that is being recorded: whoever closes the recorder keeps it."""
        if self._recorder.recording:
            # Not by the logger, which publishes too: after a signal there is nothing left to publish with.
            print(f"{self.get_name()}: {self._recorder.stop().message}", file=sys.stderr, flush=True)
        super().destroy_node()

    def _receive(self, topic: str, data: bytes) -> None:
        self._recorder.receive(topic, self.get_clock().now().nanoseconds, data)

    def _answer(self, action: Callable[[], Reply], _, response: Trigger.Response) -> Trigger.Response:
        reply = action()
        self._say(reply)
        response.success, response.message = reply
        return response

    def _tick(self) -> None:
        self._recorder.tick()
        if self._recorder.failure != self._told:
            self._told = self._recorder.failure
            if self._told:
                self.get_logger().error(self._told)

    def _say(self, reply: Reply) -> None:
        if reply.success:
            self.get_logger().info(reply.message)
        else:
            self.get_logger().warning(reply.message)


def main(args: list[str] | None = None) -> int:
    """Record until the process is asked to end."""
    return run(RecorderNode, args)
