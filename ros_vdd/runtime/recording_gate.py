# SPDX-License-Identifier: Apache-2.0
"""Whether an episode may begin: every topic that matters has come lately, and every topic asked for can be recorded."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping


class StartGate:
    """Knows when each topic was heard.

    Args:
        required: topics without which an episode is worth nothing.
        latched: those whose newest message counts however old it is; they are never silent.
        clock: [ns] steady time.
        silent_after_s: [s] a required topic without a message for so long is silent.
    """

    def __init__(
        self, required: Collection[str], latched: Collection[str], clock: Callable[[], int], silent_after_s: float
    ) -> None:
        self.required, self._latched = tuple(required), frozenset(latched)
        self._clock, self._silent_ns = clock, round(silent_after_s * 1e9)
        self._heard_ns: dict[str, int] = {}
        self.refused: dict[str, str] = {}
        """Topic -> why it can't be recorded, though it was asked for."""

    def hear(self, topic: str, now_ns: int) -> None:
        """Note that a message came."""
        self._heard_ns[topic] = now_ns

    def heard(self) -> frozenset[str]:
        """Return the topics that ever came."""
        return frozenset(self._heard_ns)

    def silent(self, topic: str) -> float | None:
        """Return for how long [s] a topic has been silent for too long, infinite where it never came; None where it hasn't."""
        heard_ns = self._heard_ns.get(topic)
        if heard_ns is None:
            return float("inf")
        silent_ns = self._clock() - heard_ns
        return silent_ns / 1e9 if topic not in self._latched and silent_ns > self._silent_ns else None

    def problems(self, types: Mapping[str, str]) -> list[str]:
        """Return why a start is refused, a sentence each, with the type of each topic; empty where it isn't."""
        found = []
        for topic in self.required:
            if (silent_s := self.silent(topic)) == float("inf"):
                found.append(f"{topic} ({types[topic]}) never came")
            elif silent_s is not None:
                found.append(f"{topic} is silent for {silent_s:.1f} s, limit {self._silent_ns / 1e9:g} s")
        return found + [f"{topic} {reason}" for topic, reason in self.refused.items()]
