# SPDX-License-Identifier: Apache-2.0
"""The last seconds before an episode, in memory: a demonstration that began before the button was pressed is whole."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple


class Received(NamedTuple):
    """One message as it came."""

    topic: str
    log_time_ns: int
    data: bytes
    sequence: int  # at its publisher, 0 where that isn't known
    missing: int  # messages of that publisher that never came before it
    heard_ns: int  # steady time
    publisher: bytes = b""  # which one it is, b"" where that isn't known


class Ring:
    """Messages of the last seconds.

    Args:
        seconds: [s] how far back; 0 keeps nothing.
        max_bytes: the oldest ones go earlier where all take more.
    """

    def __init__(self, seconds: float, max_bytes: float) -> None:
        self._span_ns, self._max_bytes = round(seconds * 1e9), max_bytes
        self._held: deque[Received] = deque()
        self.bytes = 0
        """Of all messages held."""

    def push(self, message: Received) -> list[Received]:
        """Take a message in and return those that had to go for it, or by their age."""
        self._held.append(message)
        self.bytes += len(message.data)
        return self.expire(message.heard_ns)

    def expire(self, now_ns: int) -> list[Received]:
        """Return those that have to go, oldest first."""
        gone = []
        while self._held and (self._held[0].heard_ns <= now_ns - self._span_ns or self.bytes > self._max_bytes):
            gone.append(self._held.popleft())
            self.bytes -= len(gone[-1].data)
        return gone

    def take(self) -> list[Received]:
        """Return all that is held and forget it."""
        held = list(self._held)
        self._held.clear()
        self.bytes = 0
        return held
