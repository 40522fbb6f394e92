# SPDX-License-Identifier: Apache-2.0
"""How messages of one topic come: how often, how long not at all, and how old."""

from __future__ import annotations

import statistics

from ros_vdd.streams.quality import TopicHealth

MAX_AGES = 2048  # from then on every second one is kept, and so on: a median needs no more


class TopicMeter:
    """Figures of one topic over a take, or over a second. Times are of one clock."""

    def __init__(self) -> None:
        self.messages = 0
        self.first_ns = self.last_ns = 0
        self._gap_ns = 0
        self._ages: list[int] = []
        self._every = 1

    def add(self, time_ns: int, stamp_ns: int | None = None) -> None:
        """Take one message in.

        Args:
            time_ns: [ns] when it was received.
            stamp_ns: [ns] its header's stamp; None where it has none.
        """
        if self.messages:
            self._gap_ns = max(self._gap_ns, time_ns - self.last_ns)
            self.last_ns = max(self.last_ns, time_ns)
        else:
            self.first_ns = self.last_ns = time_ns
        if stamp_ns and self.messages % self._every == 0:
            self._ages.append(time_ns - stamp_ns)
            if len(self._ages) >= MAX_AGES:
                self._ages, self._every = self._ages[::2], 2 * self._every
        self.messages += 1

    def health(self, begin_ns: int, end_ns: int, lost: int = 0) -> TopicHealth:
        """Return the figures over a span; silence at its begin and at its end counts as well.

        The rate is n - 1 periods over the time from the first to the last message, or n + 1 periods over the span where that is
        less: a topic that began late or died has been silent at an end for longer than a period.
        """
        span_ns = end_ns - begin_ns
        if not self.messages:
            return TopicHealth(0, 0.0, span_ns / 1e9, None, lost)
        gap_ns = max(self._gap_ns, self.first_ns - begin_ns, end_ns - self.last_ns)
        own_ns = self.last_ns - self.first_ns
        rate_hz = (self.messages - 1) * 1e9 / own_ns if own_ns else 0.0
        if span_ns > own_ns:
            rate_hz = min(rate_hz, (self.messages + 1) * 1e9 / span_ns)
        age_s = statistics.median(self._ages) / 1e9 if self._ages else None
        return TopicHealth(self.messages, rate_hz, gap_ns / 1e9, age_s, lost)
