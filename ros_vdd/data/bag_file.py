# SPDX-License-Identifier: Apache-2.0
"""What the storage formats of a bag have in common: channels and raw messages."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple, Protocol

from ros_vdd.data.cdr import Definition


class BagChannel(NamedTuple):
    """One channel of a bag file; several may carry the same topic."""

    id: int
    topic: str
    type: str
    encoding: str  # of its messages: "cdr" in a ROS 2 bag
    definition: Definition
    count: int


class RawMessage(NamedTuple):
    """A message as it lies in the file."""

    topic: str
    log_time_ns: int
    data: bytes


class BagFile(Protocol):
    """A storage file that is open for reading."""

    channels: list[BagChannel]
    damage: list[str]  # what recovery left out, in words
    metadata: dict[str, dict[str, str]]  # named records beside the messages

    def messages(self, topics: Collection[str]) -> Iterator[RawMessage]:
        """Yield the messages of some topics, earliest log time first."""
        ...
