# SPDX-License-Identifier: Apache-2.0
"""The streams of a robot file as they lie in a bag: each message decoded, stamped and buffered as in the live nodes."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ros_vdd.data.bag import Bag
from ros_vdd.errors import DataError, StreamError, suggest
from ros_vdd.streams.codecs import decode_action, decode_goal, decode_image, decode_joint_state, stamp_ns
from ros_vdd.streams.resample import Missing, PartialState, Sample, StreamBuffer
from ros_vdd.streams.spec import CameraSpec, GoalSpec, JointStateSpec, RobotSpec

FOREVER_NS = 1 << 62  # a goal never grows old


@dataclass
class BagStream:
    """One stream of the robot file, filled from one topic of a bag.

    Attributes:
        key: "images_NAME", "states_NAME", "goal" or "action".
        topic: as it is called in the bag.
        stamp: "header" or "receive", the log time.
        stamps: [ns] of all messages used, ascending.
        refused: how many messages couldn't be decoded, of `received`; `refusal` is the first reason.
    """

    key: str
    topic: str
    stamp: str
    buffer: StreamBuffer | PartialState
    keep: Callable[[int, Any], bool]  # decode and buffer; False where the message holds nothing of the stream
    stamps: list[int] = field(default_factory=list)
    received: int = 0
    refused: int = 0
    refusal: str = ""

    def push(self, message: Any, log_time_ns: int) -> int | None:
        """Take one message and return its stamp [ns]; one that can't be decoded is counted and never used, as on the robot."""
        self.received += 1
        try:
            stamp = log_time_ns if self.stamp == "receive" else stamp_ns(message)
            if stamp is None:
                raise StreamError("the header stamp is zero; write stamp: receive for this stream in the robot file")
            used = self.keep(stamp, message)
        except StreamError as error:
            self.refused += 1
            self.refusal = self.refusal or str(error)
            return None
        if not used:
            return None
        insort(self.stamps, stamp)
        return stamp

    def why_empty(self) -> str | None:
        """Return why no message was used, or None where one was."""
        if self.stamps:
            return None
        if not self.received:
            return "no messages"
        if self.refused:
            which = "all" if self.refused == self.received else f"{self.refused} of"
            return f"{which} {self.received} messages were refused: {self.refusal}"
        reason = f": {missing.reason}" if isinstance(missing := self.buffer.at(0), Missing) else ""
        return f"none of {self.received} messages holds it{reason}"

    def at(self, tick_ns: int) -> Sample | Missing:
        """Return the sample in force at a tick, or why there is none."""
        return self.buffer.at(tick_ns)


class GoalStream(BagStream):
    """The goal, which has no stamp: it counts from the first message of the reference stream that was received after it.

    So it is on the robot, too; and clocks needn't agree.
    """

    def __init__(self, topic: str, spec: GoalSpec, capacity: int):
        super().__init__("goal", topic, "receive", StreamBuffer(FOREVER_NS, capacity, "goal"), self._wait)
        self._spec, self._next = spec, None

    def _wait(self, stamp: int, message: Any) -> bool:
        self._next = decode_goal(message, self._spec)
        return False

    def begin(self, tick_ns: int) -> None:
        """Let the newest goal count from a stamp of the reference stream on."""
        if self._next is not None:
            self.buffer.push(tick_ns, self._next)
            insort(self.stamps, tick_ns)
            self._next = None

    def why_empty(self) -> str | None:
        """Return why no goal ever counted, or None where one did."""
        if self._next is not None and not self.stamps:
            return "it came after the last message of the first stream; publish it before the demonstration"
        return super().why_empty()


@dataclass(frozen=True)
class Tick:
    """All streams at one tick: samples by stream, or the first reason why there is no frame."""

    stamp_ns: int
    samples: Mapping[str, Sample]
    missing: str | None

    @classmethod
    def sample(cls, tick_ns: int, streams: list[BagStream], dt_ns: int) -> Tick:
        """Look at observations at the tick, and at the action just before the next one."""
        found = {s.key: s.at(tick_ns + dt_ns - 1 if s.key == "action" else tick_ns) for s in streams}
        missing = next((f.reason for f in found.values() if isinstance(f, Missing)), None)
        return cls(tick_ns, {} if missing else found, missing)


def observation_streams(
    bag: Bag, robot: RobotSpec, put: Mapping[str, Callable[[np.ndarray], Any]] | None = None
) -> list[BagStream]:
    """Return the cameras, then the joint states, empty.

    Args:
        put: by camera, what is done with each of its pictures; its result is what the stream holds. None: the picture itself.

    Raises:
        DataError: the bag lacks a topic or holds it as another type.
    """
    cameras = [_camera(bag, name, spec, (put or {}).get(name)) for name, spec in robot.cameras.items()]
    return cameras + [_joint_state(bag, name, spec) for name, spec in robot.states.items()]


def goal_stream(bag: Bag, robot: RobotSpec) -> GoalStream | None:
    """Return the goal, empty; None for a robot without one.

    Raises:
        DataError: the bag lacks the topic or holds it as another type.
    """
    if robot.goal is None:
        return None
    topic, count = _find(bag, "goal", robot.goal.topic, robot.goal.type)
    return GoalStream(topic, robot.goal, count)


def action_stream(bag: Bag, robot: RobotSpec) -> BagStream:
    """Return the stream that demonstrated actions are read from, empty.

    Raises:
        DataError: the bag lacks the topic or holds it as another type.
    """
    source = robot.action.demonstrated
    topic, count = _find(bag, "action", source.topic, source.type)
    buffer = StreamBuffer(round(source.max_age_s * 1e9), count, "action")

    def keep(stamp: int, message: Any) -> bool:
        buffer.push(stamp, decode_action(message, robot.action))
        return True

    return BagStream("action", topic, source.stamp, buffer, keep)


def _camera(bag: Bag, name: str, spec: CameraSpec, put: Callable[[np.ndarray], Any] | None) -> BagStream:
    key = f"images_{name}"
    topic, count = _find(bag, key, spec.topic, spec.type)
    buffer = StreamBuffer(round(spec.max_age_s * 1e9), count, key)

    def keep(stamp: int, message: Any) -> bool:
        picture = decode_image(message, spec)
        buffer.push(stamp, put(picture) if put else picture)
        return True

    return BagStream(key, topic, spec.stamp, buffer, keep)


def _joint_state(bag: Bag, name: str, spec: JointStateSpec) -> BagStream:
    key = f"states_{name}"
    topic, count = _find(bag, key, spec.topic, "sensor_msgs/msg/JointState")
    buffer = PartialState(spec, count, key)

    def keep(stamp: int, message: Any) -> bool:
        values = decode_joint_state(message, spec)
        buffer.push(stamp, values, message.name)
        return bool(values)

    return BagStream(key, topic, spec.stamp, buffer, keep)


def _find(bag: Bag, key: str, topic: str, type_name: str) -> tuple[str, int]:
    """Return a topic's name in the bag, and its number of messages.

    A relative name is found as "/NAME", else under the one namespace it was recorded in.
    """
    names = [n for n in (topic, f"/{topic}") if n in bag.topics]
    if not names and not topic.startswith("/"):
        names = [n for n in bag.topics if n.endswith(f"/{topic}")]
    where = f"'{bag.path}': topic"
    if not names:
        raise DataError(f"{where} '{topic}' of {key} is absent; {suggest(topic, bag.topics)}")
    if len(names) > 1:
        raise DataError(f"{where} '{topic}' of {key} is found as {' and '.join(names)}; write one of them")
    info = bag.topics[names[0]]
    if info.type != type_name:
        raise DataError(f"{where} '{names[0]}' of {key} holds {info.type}; the robot file says {type_name}")
    return names[0], max(info.count, 1)
