# SPDX-License-Identifier: Apache-2.0
"""One episode from its start to its verdict; all but `losses` is touched by the writing thread only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ros_vdd.config import dump_yaml
from ros_vdd.data.bag_metadata import amend_custom_data
from ros_vdd.data.bag_recovery import recover
from ros_vdd.data.bag_writer import BagWriter, Qos
from ros_vdd.data.cdr_header import has_header, header_stamp_ns
from ros_vdd.errors import DataError
from ros_vdd.runtime.recording_latched import Opening
from ros_vdd.runtime.recording_loss import Losses
from ros_vdd.runtime.recording_meter import TopicMeter
from ros_vdd.runtime.recording_ring import Received
from ros_vdd.streams.quality import LEVELS, Verdict, judge
from ros_vdd.streams.spec import RobotSpec

VERDICT_KEY, REASONS_KEY, SUCCESS_KEY = "ros_vdd.verdict", "ros_vdd.reasons", "ros_vdd.success"
LOST_KEY, CAUSES_KEY = "ros_vdd.lost", "ros_vdd.lost_by_cause"


@dataclass
class Finished:
    """A completed episode."""

    folder: Path
    counts: dict[str, int]
    lost: dict[str, int]
    verdict: Verdict

    def __str__(self) -> str:
        counts = ", ".join(f"{topic} {count}" for topic, count in self.counts.items())
        lost = ", ".join(f"{topic} {count}" for topic, count in self.lost.items())
        text = f"{self.folder}: {sum(self.counts.values())} messages ({counts})"
        text += f"; lost: {lost}" if lost else ""
        text += f"; verdict: {self.verdict.level}"
        return f"{text}: {'; '.join(self.verdict.reasons)}" if self.verdict.reasons else text


@dataclass
class Take:
    """An episode that is being recorded.

    Attributes:
        open_bag: makes the bag of these topics, in the writing thread.
        robot: by whose `quality` the verdict is given.
        topics: name as recorded -> message type.
        opening: latched messages in force at the start; they are written at the log time of the first message.
        before: messages of the last seconds before the start.
        success: what the operator said; None while nothing was said.
        on_failure: called once, in the writing thread, when the disk refuses.
        closing: why it is about to end by itself: what waits is still written, no more is to come.
        ended: why it ended by itself, "" while it goes on.
    """

    open_bag: Callable[[Mapping[str, str]], BagWriter]
    robot: RobotSpec
    topics: Mapping[str, str]
    opening: Opening = field(default_factory=dict)
    before: Sequence[Received] = ()
    on_failure: Callable[[Take], None] = lambda take: None
    losses: Losses = field(default_factory=Losses)
    success: bool | None = None
    closing: str = ""
    ended: str = ""
    bag: BagWriter | None = None
    _meters: dict[str, TopicMeter] = field(default_factory=dict)
    _handed: Counter[str] = field(default_factory=Counter)  # messages that were given to the bag

    @property
    def goes_on(self) -> bool:
        """Whether messages that come now belong to it."""
        return not (self.closing or self.ended)

    def open(self) -> Path:
        """Make the bag and write what came before the start; return the folder the episode will have.

        Raises:
            OSError, DataError: the bag can't be made; the take has ended then.
        """
        try:
            self.bag = self.open_bag(self.topics)
        except (OSError, DataError) as error:
            self.ended = str(error)
            raise
        self._meters = {topic: TopicMeter() for topic in self.topics}
        for message in self.before:
            self.write(message.topic, message.log_time_ns, message.data, message.sequence)
        self.before = ()
        return self.bag.folder

    def add_topic(self, topic: str, type_name: str, qos: Sequence[Qos]) -> None:
        """Take in a topic that was found meanwhile."""
        self.topics = {**self.topics, topic: type_name}
        self._meters[topic] = TopicMeter()
        if self.bag is not None and not self.ended:
            self._guard(lambda bag: bag.add_topic(topic, type_name, qos))

    def write(self, topic: str, log_time_ns: int, data: bytes, sequence: int) -> None:
        """Write one message; a disk that refuses ends the take."""
        if self.ended or self.bag is None:
            self.losses.add("disk", topic)
            return
        opening, self.opening = self.opening, {}
        for (name, publisher), latched in opening.items():
            if (name, publisher) != (topic, b""):  # else this message takes its place
                self._append(name, log_time_ns, latched, 0)
        self._append(topic, log_time_ns, data, sequence)

    def flush_if_due(self) -> None:
        """Let no message wait longer than a chunk may stay open."""
        if self.bag is not None and not self.ended:
            self._guard(lambda bag: bag.flush_if_due())

    def finish(self, why: str = "") -> Finished:
        """Complete the bag.

        Args:
            why: the take ends by itself, for this reason.

        Raises:
            OSError: the disk refused; see `salvage`.
        """
        self.ended = why or self.ended
        assert self.bag is not None
        counts = self.bag.counts
        verdict = self._verdict(counts)
        folder = self.bag.close(self._told(verdict))
        return Finished(folder, counts, self.losses.by_topic(), verdict)

    def salvage(self, ros_distro: str) -> Finished:
        """Complete the bag from what lies on a disk that has refused more.

        Raises:
            OSError, DataError: it can't be completed now; it stays .partial.
        """
        assert self.bag is not None
        recovered = recover(self.bag.partial, self.ended, self._told(Verdict("reject", (self.ended,))), ros_distro)
        for topic, count in self._handed.items():
            self.losses.add("disk", topic, count - recovered.counts.get(topic, 0))
        verdict = self._verdict(recovered.counts)
        amend_custom_data(recovered.folder, self._told(verdict))
        return Finished(recovered.folder, recovered.counts, self.losses.by_topic(), verdict)

    def _append(self, topic: str, log_time_ns: int, data: bytes, sequence: int) -> None:
        self._handed[topic] += 1
        if self._guard(lambda bag: bag.write(topic, log_time_ns, data, sequence)):
            stamped = has_header(self.topics[topic])
            self._meters[topic].add(log_time_ns, header_stamp_ns(data) if stamped else None)

    def _guard(self, action: Callable[[BagWriter], None]) -> bool:
        assert self.bag is not None
        try:
            action(self.bag)
        except OSError as error:
            self.ended = f"a write error ended it: {error}"
            self.bag.abandon()
            self.on_failure(self)
            return False
        return True

    def _verdict(self, counts: Mapping[str, int]) -> Verdict:
        heard = [meter for meter in self._meters.values() if meter.messages]
        begin = min((m.first_ns for m in heard), default=0)
        end = max((m.last_ns for m in heard), default=0)
        health = {
            topic: replace(meter.health(begin, end, self.losses.of(topic)), messages=counts.get(topic, 0))
            for topic, meter in self._meters.items()
        }
        found = judge(self.robot.quality, self.robot, health, (end - begin) / 1e9)
        if not self.ended:
            return found
        return Verdict(max(found.level, "warn", key=LEVELS.index), (self.ended, *found.reasons))

    def _told(self, verdict: Verdict) -> dict[str, str]:
        told = {VERDICT_KEY: verdict.level, REASONS_KEY: "\n".join(verdict.reasons)}
        told |= {LOST_KEY: dump_yaml(self.losses.by_topic()), CAUSES_KEY: dump_yaml(self.losses.by_cause())}
        return told if self.success is None else told | {SUCCESS_KEY: str(self.success).lower()}
