# SPDX-License-Identifier: Apache-2.0
"""What is wrong with the topics right now, each second: rate, silence, age and loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from ros_vdd.runtime.recording_meter import TopicMeter
from ros_vdd.streams.quality import QualitySpec, TopicHealth, gap_limits, same_topic
from ros_vdd.streams.spec import RobotSpec


class Finding(NamedTuple):
    """Something that is wrong with a topic."""

    topic: str
    kind: str  # "silent", "lost", "slow", "old"
    text: str


class LiveCheck:
    """Figures of every topic since the last look, and what is wrong with them by the thresholds of the robot file.

    Args:
        robot: whose topics are looked at.
        now_ns: [ns] steady time.
    """

    def __init__(self, robot: RobotSpec, now_ns: int) -> None:
        self._quality: QualitySpec = robot.quality
        self._limits = gap_limits(robot.quality, robot)
        self._born_ns = self._began_ns = now_ns
        self._meters: dict[str, TopicMeter] = {}
        self._last_ns: dict[str, int] = {}  # of each topic the newest message
        self._earlier_ns: dict[str, int] = {}  # the newest before the last look
        self._lost: Counter[str] = Counter()
        self._known: dict[tuple[str, str], str] = {}

    def hear(self, topic: str, now_ns: int, age_ns: int | None, lost: int) -> None:
        """Take one message in: when it came by steady time, how old it was by its stamp, how many were lost before it."""
        self._meters.setdefault(topic, TopicMeter()).add(now_ns, None if age_ns is None else now_ns - age_ns)
        self._last_ns[topic] = now_ns
        if lost:
            self._lost[topic] += lost

    def lose(self, topic: str, count: int = 1) -> None:
        """Note messages that are lost."""
        self._lost[topic] += count

    def look(self, topics: Mapping[str, str], now_ns: int) -> dict[str, TopicHealth]:
        """Return the figures of all topics since the last look, and begin anew; a silence counts from its beginning.

        One that is over and was told at the last look doesn't count again.
        """
        healths = {}
        for topic in topics:
            meter = self._meters.get(topic, TopicMeter())
            told_and_over = meter.messages > 0 and (topic, "silent") in self._known
            begin_ns = meter.first_ns if told_and_over else self._earlier_ns.get(topic, self._born_ns)
            health = meter.health(begin_ns, now_ns, self._lost[topic])
            seconds = (now_ns - self._began_ns) / 1e9
            rate_hz = health.messages / seconds if seconds > 0 else 0.0
            healths[topic] = TopicHealth(health.messages, rate_hz, health.largest_gap_s, health.age_s, health.lost)
        self._began_ns, self._meters, self._lost = now_ns, {}, Counter()
        self._earlier_ns = dict(self._last_ns)
        return healths

    def findings(self, healths: Mapping[str, TopicHealth]) -> list[Finding]:
        """Return what is wrong with topics that matter, and the loss of every topic."""
        found = []
        for topic, health in healths.items():
            limit_s = next((limit for wanted, limit in self._limits.items() if same_topic(wanted, topic)), None)
            lowest = next((hz for wanted, hz in self._quality.min_rate_hz.items() if same_topic(wanted, topic)), None)
            if limit_s is not None and health.largest_gap_s > limit_s:
                found.append(Finding(topic, "silent", f"{topic} silent for {health.largest_gap_s:.2f} s, limit {limit_s:g} s"))
            elif lowest is not None and health.rate_hz < lowest:
                found.append(Finding(topic, "slow", f"{topic} at {health.rate_hz:.1f} Hz, at least {lowest:g} Hz is asked for"))
            if limit_s is not None and health.age_s is not None and abs(health.age_s) > limit_s:
                found.append(Finding(topic, "old", f"{topic} {health.age_s:.3f} s old when it comes, limit {limit_s:g} s"))
            if health.lost:
                found.append(Finding(topic, "lost", f"{topic} lost {health.lost} of {health.messages + health.lost} messages"))
        return found

    def changes(self, findings: list[Finding]) -> list[str]:
        """Return what is to be said: each thing when it begins and when it is over, not again meanwhile."""
        now = {(f.topic, f.kind): f.text for f in findings}
        said = [text for key, text in now.items() if key not in self._known]
        said += [f"{topic} is well again ({kind} before)" for topic, kind in self._known if (topic, kind) not in now]
        self._known = now
        return said
