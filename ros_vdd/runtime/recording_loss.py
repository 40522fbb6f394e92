# SPDX-License-Identifier: Apache-2.0
"""How many messages are missing, by topic and reason, so that published = recorded + lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Literal

Cause = Literal["dds", "queue", "disk"]
CAUSES: tuple[Cause, ...] = ("dds", "queue", "disk")


class SequenceGaps:
    """Finds messages that never came by the numbers each publisher gives to its own."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, bytes], int] = {}

    def missing(self, topic: str, publisher: bytes, number: int) -> int:
        """Return how many messages of a publisher are missing just before this one; 0 for its first one."""
        last = self._last.get((topic, publisher), number - 1)
        self._last[topic, publisher] = max(last, number)
        return max(0, number - last - 1)


class Losses:
    """Messages lost during a take.

    Causes: `dds`, they never came out of the middleware; `queue`, memory was full because the disk was too slow; `disk`, it
    refused them. Each cause is counted by one thread only.
    """

    def __init__(self) -> None:
        self._counts: dict[Cause, Counter[str]] = {cause: Counter() for cause in CAUSES}

    def add(self, cause: Cause, topic: str, count: int = 1) -> None:
        """Count lost messages."""
        if count:
            self._counts[cause][topic] += count

    def of(self, topic: str) -> int:
        """Return how many messages of a topic are lost."""
        return sum(counts[topic] for counts in self._counts.values())

    def by_topic(self) -> dict[str, int]:
        """Return topic -> messages lost, of the topics that lost some."""
        topics = dict.fromkeys(topic for counts in self._counts.values() for topic, n in counts.items() if n)
        return {topic: self.of(topic) for topic in topics}

    def by_cause(self) -> dict[str, Mapping[str, int]]:
        """Return topic -> cause -> messages lost."""
        return {t: {cause: counts[t] for cause, counts in self._counts.items() if counts[t]} for t in self.by_topic()}
