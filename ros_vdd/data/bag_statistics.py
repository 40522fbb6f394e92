# SPDX-License-Identifier: Apache-2.0
"""What a recording is like, topic by topic: rate, the largest gap, and how its header clock lies to the log clock."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from ros_vdd.data.bag import Bag
from ros_vdd.data.bag_file import RawMessage
from ros_vdd.data.cdr import Decode
from ros_vdd.errors import DataError, StreamError
from ros_vdd.streams.codecs import stamp_ns


@dataclass(frozen=True)
class TopicStatistics:
    """Figures of one topic; None where there are too few messages or no usable header.

    Attributes:
        rate_hz: [Hz] mean, by log time.
        largest_gap_s: [s] longest time between two messages, by log time.
        largest_gap_at_s: [s] since the start of the bag.
        log_minus_header_s: [s] (smallest, median, largest) of log time minus header stamp: the latency where both
            are of one clock, else how far the clocks are apart.
        unstamped: how many messages have a header stamp of zero.
        undecodable: why messages couldn't be decoded, "" where they could.
    """

    type: str
    count: int
    rate_hz: float | None
    largest_gap_s: float | None
    largest_gap_at_s: float | None
    log_minus_header_s: tuple[float, float, float] | None
    unstamped: int
    undecodable: str


@dataclass
class _Times:
    decode: Decode | None
    undecodable: str = ""
    log_ns: list[int] = field(default_factory=list)
    offset_ns: list[int] = field(default_factory=list)
    unstamped: int = 0

    def add(self, raw: RawMessage) -> None:
        self.log_ns.append(raw.log_time_ns)
        if self.decode is None:
            return
        try:
            message = self.decode(raw.data)
            stamp = stamp_ns(message)
        except (DataError, StreamError) as error:
            self.undecodable = self.undecodable or str(error)
            return
        if stamp is not None:
            self.offset_ns.append(raw.log_time_ns - stamp)
        elif hasattr(message, "header"):
            self.unstamped += 1


def statistics(bag: Bag, raw_messages: Iterable[RawMessage] | None = None) -> dict[str, TopicStatistics]:
    """Read a bag once and return the figures of every topic.

    Args:
        bag: an open bag.
        raw_messages: all its messages, where the caller wants to watch them pass (a progress bar).
    """
    times = {topic: _times(bag, topic) if info.count else _Times(None) for topic, info in bag.topics.items()}
    for raw in bag.raw_messages(bag.topics) if raw_messages is None else raw_messages:
        times[raw.topic].add(raw)
    start_ns = min((t.log_ns[0] for t in times.values() if t.log_ns), default=0)
    return {topic: _figures(bag.topics[topic].type, found, start_ns) for topic, found in times.items()}


def _times(bag: Bag, topic: str) -> _Times:
    try:
        return _Times(bag.decoder(topic))
    except DataError as error:
        return _Times(None, str(error))


def _figures(type_name: str, times: _Times, start_ns: int) -> TopicStatistics:
    log_ns = np.array(times.log_ns, dtype=np.int64)
    gaps_ns = np.diff(log_ns)
    several = len(gaps_ns) > 0
    duration_ns = int(log_ns[-1] - log_ns[0]) if several else 0
    widest = int(gaps_ns.argmax()) if several else 0
    return TopicStatistics(
        type=type_name,
        count=len(log_ns),
        rate_hz=len(gaps_ns) * 1e9 / duration_ns if duration_ns else None,
        largest_gap_s=gaps_ns[widest] / 1e9 if several else None,
        largest_gap_at_s=(log_ns[widest] - start_ns) / 1e9 if several else None,
        log_minus_header_s=_spread_s(times.offset_ns) if times.offset_ns else None,
        unstamped=times.unstamped,
        undecodable=times.undecodable,
    )


def _spread_s(offset_ns: list[int]) -> tuple[float, float, float]:
    ordered = sorted(offset_ns)
    return ordered[0] / 1e9, ordered[len(ordered) // 2] / 1e9, ordered[-1] / 1e9
