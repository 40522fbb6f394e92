# SPDX-License-Identifier: Apache-2.0
"""A bag as what a replay needs: the messages of the robot file's streams as events, and the actions that were recorded."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ros_vdd.config import parse_yaml
from ros_vdd.data.bag import ROBOT_KEY, Bag
from ros_vdd.data.bag_streams import BagStream, action_stream, goal_stream, observation_streams
from ros_vdd.errors import ConfigError, DataError, StreamError
from ros_vdd.runtime.replay import Event
from ros_vdd.streams.codecs import stamp_ns
from ros_vdd.streams.resample import RESET_NS, Sample
from ros_vdd.streams.spec import RobotSpec, robot_from_mapping

REORDERED = 64  # messages within which lock-step's order of stamps is restored


class Span(NamedTuple):
    """The part of a bag that is replayed, [s] since its first message."""

    from_s: float = 0.0
    to_s: float = float("inf")


def open_bag(path: str | Path, recover: bool = False) -> Bag:
    """Open a bag folder, .mcap or .db3; `recover` takes what is readable of a damaged one.

    Raises:
        DataError: it can't be read, or is an episode store.
    """
    if Path(path, "store.yaml").is_file():
        raise DataError(
            f"'{path}' is an episode store: its frames are aligned and resized already, so nothing of the live path is left to "
            "replay; give the bags it was made of (`source` in each episode's meta.yaml)"
        )
    return Bag.open(path, recover)


def recorded_robot(bag: Bag) -> RobotSpec | None:
    """Return the robot file that our recorder left inside a bag, or None.

    Raises:
        DataError: it can't be read.
    """
    text = bag.custom_data.get(ROBOT_KEY)
    if text is None:
        return None
    try:
        return robot_from_mapping(parse_yaml(text, f"robot file inside '{bag.path}'"))
    except ConfigError as error:
        raise DataError(f"the robot file inside '{bag.path}' can't be read: {error}") from error


class ReplaySource:
    """One bag, read once by `events`; `recorded` then knows its actions.

    Args:
        bag: open.
        robot: which topics, joints and rates.
        span: the part that gives events; the recorded actions are those of the whole bag.
        goal_given: whether a goal needn't be in the bag.

    Raises:
        DataError: the bag lacks a topic or holds it as another type.
    """

    def __init__(self, bag: Bag, robot: RobotSpec, span: Span = Span(), goal_given: bool = False):
        self.bag, self.robot, self._span = bag, robot, span
        observed = observation_streams(bag, robot)
        self._action: BagStream = action_stream(bag, robot)
        self._takers: dict[str, list[tuple[str, str]]] = {}  # topic -> (kind, stream), the goal first, as the node subscribes
        goal = None if goal_given and robot.goal and not self._has(robot.goal.topic) else goal_stream(bag, robot)
        named = [("goal", "goal")] if goal else []
        named += [("image", name) for name in robot.cameras] + [("joint_state", name) for name in robot.states]
        for stream, name in zip([*([goal] if goal else []), *observed], named):
            self._takers.setdefault(stream.topic, []).append(name)

    @property
    def messages(self) -> int:
        """How many messages the bag holds on the topics that are read."""
        return sum(self.bag.topics[topic].count for topic in {*self._takers, self._action.topic})

    def events(self, lock_step: bool = False, progress: Iterator | None = None) -> Iterator[Event]:
        """Yield the messages in the order of log time; in lock-step in that of their stamps, as the simulator waited for the
        policy but not for the recorder.

        Args:
            progress: anything with `update()`, called once a message.

        Raises:
            DataError: while reading, for a damaged bag; at the end, when no action was there or their clock goes back.
        """
        events = self._read(progress)
        yield from _by_stamp(events) if lock_step else events
        if why := self._action.why_empty():
            told = f"'{self.bag.path}', action (topic '{self._action.topic}'): {why}"
            raise DataError(f"{told}; a replay compares with recorded actions")
        if self._action.buffer.resets:
            raise DataError(
                f"'{self.bag.path}', action: its clock goes back by seconds within the recording, so that the actions before it "
                "are no longer known; cut the bag there, or write stamp: receive for its source in the robot file"
            )

    def recorded(self, stamp: int, steps: int) -> np.ndarray:
        """Return the actions `(steps, A)` that were in force after a tick, NaN where there is none.

        Row k is the newest command before `stamp + (k + 1) dt`, as the converter takes it for a frame.
        """
        dt_ns, missing = self.robot.dt_ns, np.full(self.robot.action_size, np.nan)
        found = [self._action.at(stamp + (k + 1) * dt_ns - 1) for k in range(steps)]
        last_ns = self._action.stamps[-1]
        known = [isinstance(f, Sample) and stamp + k * dt_ns <= last_ns for k, f in enumerate(found)]
        return np.array([f.value if there else missing for f, there in zip(found, known)])

    def actions(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the recorded actions by their stamps: `(N,)` [ns] and `(N, A)`."""
        stamps = np.array(self._action.stamps, np.int64)
        found = [self._action.at(int(stamp)) for stamp in stamps]
        return stamps, np.array([sample.value for sample in found])

    def _has(self, topic: str) -> bool:
        return any(name == topic or name.endswith(f"/{topic}") for name in self.bag.topics)

    def _read(self, progress) -> Iterator[Event]:
        topics = {*self._takers, self._action.topic}
        decode = {topic: self.bag.decoder(topic) for topic in topics}
        first_ns = None
        for raw in self.bag.raw_messages(topics):
            first_ns = raw.log_time_ns if first_ns is None else first_ns
            inside = self._span.from_s <= (raw.log_time_ns - first_ns) / 1e9 <= self._span.to_s
            if progress is not None:
                progress.update()
            if not inside and raw.topic != self._action.topic:
                continue
            try:
                message = decode[raw.topic](raw.data)
            except DataError as error:
                raise DataError(f"'{self.bag.path}', topic '{raw.topic}' at {raw.log_time_ns} ns: {error}") from error
            if raw.topic == self._action.topic:
                self._action.push(message, raw.log_time_ns)
            for kind, stream in self._takers.get(raw.topic, ()) if inside else ():
                yield Event(raw.log_time_ns, kind, stream, message)


def _by_stamp(events: Iterator[Event]) -> Iterator[Event]:
    """Yield events in the order of their stamps, at log times that never go back; what has no stamp keeps its place."""
    held: list[tuple[int, int, Event]] = []
    newest_ns = latest_ns = 0
    order = itertools.count()

    def first() -> Event:
        nonlocal latest_ns
        event = heapq.heappop(held)[2]
        latest_ns = max(latest_ns, event.time_ns)
        return event._replace(time_ns=latest_ns)

    for event in events:
        try:
            stamp = stamp_ns(event.message)
        except StreamError:  # the intake will refuse it
            stamp = None
        if stamp is not None and stamp < newest_ns - RESET_NS:  # another simulation began
            while held:
                yield first()
            newest_ns = 0
        newest_ns = max(newest_ns, stamp or 0)
        heapq.heappush(held, (stamp or newest_ns, next(order), event))
        if len(held) > REORDERED:
            yield first()
    while held:
        yield first()
