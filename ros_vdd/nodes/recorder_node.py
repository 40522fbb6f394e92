# SPDX-License-Identifier: Apache-2.0
"""Records every topic of the robot file, and others by pattern, as the bytes that came: one rosbag2 folder per episode."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future as Pending
from functools import partial
from pathlib import Path
from typing import Any

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.task import Future
from rclpy.utilities import get_rmw_implementation_identifier
from std_srvs.srv import SetBool, Trigger

from ros_vdd.errors import ConfigError
from ros_vdd.nodes.managed import AUTOSTART, ManagedNode
from ros_vdd.nodes.parameters import Parameter
from ros_vdd.nodes.process import run
from ros_vdd.nodes.recorder_needs import NEEDS  # noqa: F401  before what imports them
from ros_vdd.nodes.recorder_topics import RecordedTopics
from ros_vdd.nodes.transport import image_problem
from ros_vdd.runtime.recording import EpisodeRecorder
from ros_vdd.runtime.recording_options import RecordingOptions
from ros_vdd.runtime.recording_reply import Note, Reply, at_once
from ros_vdd.runtime.revision import revision
from ros_vdd.streams.spec import load_robot

PARAMETERS = (
    Parameter("autostart", True, AUTOSTART),
    Parameter("robot", "", "robot file: a path, or the name of a shipped one"),
    Parameter("root", "~/episodes", "folder of all recordings"),
    Parameter("task", "demonstration", "what is demonstrated; a folder below root"),
    Parameter("operator", "", "who demonstrates; written into each recording"),
    Parameter("revision", "", "of the robot's software, written into each recording; empty: the git revision of ros_vdd"),
    Parameter("extra_topics", "", "shell patterns of further topics, with commas between them, such as /tf*, imu/*"),
    Parameter("silent_after_s", 1.0, "start is refused while a topic has been silent for so long", 0.05, 60.0),
    Parameter("chunk_s", 0.1, "at most this much is lost when the process is killed", 0.01, 10.0),
    Parameter("fsync_s", 1.0, "at most this much is lost in a power cut", 0.1, 60.0),
    Parameter("queue_depth", 200, "messages per topic that may wait in the middleware", 1, 1000),
    Parameter("queue_mb", 512.0, "memory for messages that wait for the disk, shared evenly by the topics", 1.0, 65536.0),
    Parameter("min_free_gb", 1.0, "with less free disk no episode begins, and one in progress ends; 0 for no limit", 0.0, 1e5),
    Parameter("split_gb", 0.0, "a new file of the episode begins after so much; 0 for never", 0.0, 1e5),
    Parameter("split_s", 0.0, "a new file of the episode begins after so long; 0 for never", 0.0, 1e6),
    Parameter("pre_roll_s", 0.0, "what came so long before the start is recorded as well", 0.0, 600.0),
    Parameter("pre_roll_mb", 512.0, "memory for what came before the start", 1.0, 65536.0),
)
TICK_PERIOD_S, GRAPH_PERIOD_S, LIVE_PERIOD_S = 0.05, 0.5, 1.0


class Recorder:
    """Services and timers around an `EpisodeRecorder`, in the executor's thread, which never waits for the disk.

    A message's log time is when it came from the network: this node's clock, simulation time under `use_sim_time`. Inactive it
    listens, but records nothing.
    """

    def __init__(self, node: ManagedNode, parameters: Any):
        self._node, self._active = node, False
        self._pending: list[tuple[Pending[Reply], Future]] = []
        self.recorder, latched = _recorder(node, parameters)
        node.at_cleanup(self._complete)
        patterns = [pattern.strip() for pattern in parameters.extra_topics.split(",") if pattern.strip()]
        self._topics = RecordedTopics(node, self.recorder, latched, patterns, parameters.queue_depth)
        waiting = ReentrantCallbackGroup()  # while an answer waits for the disk, everything else goes on
        for service, ask in {
            "start_episode": self._begin,
            "stop_episode": self.recorder.stop,
            "discard_episode": self.recorder.discard,
            "undo_discard": self.recorder.undo_discard,
        }.items():
            answer = partial(self._answer, lambda _, ask=ask: ask())
            node.create_service(Trigger, f"~/{service}", answer, callback_group=waiting)
        mark = lambda request: self.recorder.mark_success(request.data)  # noqa: E731
        node.create_service(SetBool, "~/mark_success", partial(self._answer, mark), callback_group=waiting)
        node.create_timer(TICK_PERIOD_S, self._tick)
        node.create_timer(GRAPH_PERIOD_S, self._topics.look)
        node.create_timer(LIVE_PERIOD_S, self._look)

    def activate(self) -> None:
        """Let episodes be recorded."""
        self._active = True
        self._node.status.set("running")

    def deactivate(self) -> None:
        """Complete the episode that is being recorded."""
        self._active = False
        if self.recorder.recording:
            self._say(self.recorder.stop().result())

    def _begin(self) -> Pending[Reply]:
        if self._active:
            return self.recorder.start()
        return at_once(Reply(False, f"{self._node.get_name()} is inactive; activate it by ~/change_state"))

    def _complete(self) -> None:
        """Complete the episode that is being recorded: whoever closes the recorder keeps it."""
        if reply := self.recorder.close():
            # Not by the logger, which publishes too: after a signal there is nothing left to publish with.
            print(f"{self._node.get_name()}: {reply.message}", file=sys.stderr, flush=True)

    async def _answer(self, ask: Callable[[Any], Pending[Reply]], request: Any, response: Any) -> Any:
        pending = ask(request)
        if not pending.done():
            future = Future(executor=self._node.executor)
            self._pending.append((pending, future))
            await future
        reply = pending.result()
        self._say(reply)
        response.success, response.message = reply
        return response

    def _tick(self) -> None:
        for done in [both for both in self._pending if both[0].done()]:
            self._pending.remove(done)
            done[1].set_result(None)
        while self.recorder.notes:
            self._tell(self.recorder.notes.popleft())
        if self.recorder.error is not None:
            self._node.fail(self.recorder.error)

    def _look(self) -> None:
        """Say how the topics come: all figures in /diagnostics, a line on the terminal when something changes."""
        recorder, live = self.recorder, self.recorder.live
        healths = live.look(recorder.topics, time.monotonic_ns())
        findings = live.findings(healths)
        changes = live.changes(findings if recorder.recording else [])
        if recorder.recording and changes:
            self._node.get_logger().warning("; ".join(changes))
        values: dict[str, Any] = {"recording": recorder.recording, "queue_mb": round(recorder.waiting_bytes / 1e6, 1)}
        for topic, health in healths.items():
            values[f"{topic}.rate_hz"] = round(health.rate_hz, 1)
            values[f"{topic}.gap_s"] = round(health.largest_gap_s, 3)
            values[f"{topic}.age_s"] = "" if health.age_s is None else round(health.age_s, 4)
            values[f"{topic}.lost"] = health.lost
        self._node.status.diagnose(values, "; ".join(finding.text for finding in findings) or None)

    def _tell(self, note: Note) -> None:
        logger = self._node.get_logger()  # rclpy holds each line that logs to one severity, so there are three
        if note.level == "error":
            logger.error(note.text)
        elif note.level == "warning":
            logger.warning(note.text)
        else:
            logger.info(note.text)

    def _say(self, reply: Reply) -> None:
        if reply.success:
            self._node.get_logger().info(reply.message)
        else:
            self._node.get_logger().warning(reply.message)


def _recorder(node: ManagedNode, parameters: Any) -> tuple[EpisodeRecorder, list[str]]:
    """Return what the parameters ask for, and the topics that are latched."""
    if not parameters.robot:
        raise ConfigError("recorder_node: parameter 'robot' is empty; give a robot file or a shipped name")
    robot = load_robot(parameters.robot)
    if problem := image_problem(robot, get_rmw_implementation_identifier(), os.environ):
        node.get_logger().warning(problem)
    node.status.robot = robot.name
    names = {topic: node.resolve_topic_name(topic) for topic in robot.topics()}
    latched = [names[robot.goal.topic]] if robot.goal else []
    observed = [names[stream.topic] for stream in (*robot.cameras.values(), *robot.states.values())]
    told = {key: getattr(parameters, key) for key in RecordingOptions.__dataclass_fields__ if hasattr(parameters, key)}
    recorder = EpisodeRecorder(
        root=Path(parameters.root).expanduser(),
        task=parameters.task,
        robot=robot,
        topics={names[topic]: type_name for topic, type_name in robot.topics().items()},
        required=dict.fromkeys([*observed, *latched, names[robot.action.demonstrated.topic]]),
        clock=time.monotonic_ns,
        latched=latched,
        options=RecordingOptions(**told, ros_distro=os.environ.get("ROS_DISTRO", "")),
        operator=parameters.operator,
        revision=parameters.revision or revision(),
    )
    return recorder, latched


def make(**options: Any) -> ManagedNode:
    """Return the node, of which `options` are rclpy's."""
    return ManagedNode("recorder_node", "recording", Recorder, PARAMETERS, **options)


def main(args: list[str] | None = None) -> int:
    """Record until the process is asked to end."""
    return run(make, args)
