# SPDX-License-Identifier: Apache-2.0
"""Messages that count until the next one comes, however old they are: what each episode begins with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ros_vdd.data.bag_writer import Qos
from ros_vdd.runtime.recording_ring import Received

Opening = Mapping[tuple[str, bytes], bytes]
"""Topic and publisher -> message, the newest one last; b"" where it doesn't matter, or isn't known, who publishes."""


class Latched:
    """Keeps the messages in force.

    Args:
        always: topics of which the newest message is in force, whoever published it.
    """

    def __init__(self, always: Iterable[str]) -> None:
        self._always, self._offered = frozenset(always), set[str]()
        self._newest: dict[tuple[str, bytes], bytes] = {}

    def offer(self, topic: str, qos: Sequence[Qos]) -> None:
        """Take note of what publishers offer: where all are transient local, the newest message of each is in force."""
        if not qos:
            return  # what was said holds, though nobody is there to say it again
        if all(profile["durability"] == "transient_local" for profile in qos):
            self._offered.add(topic)
        elif topic in self._offered:
            self._offered.remove(topic)
            self._newest = {key: data for key, data in self._newest.items() if key[0] != topic}

    def hear(self, message: Received) -> None:
        """Take in a message that isn't newer than where the next episode begins."""
        if message.topic in self._always:
            key = message.topic, b""
        elif message.topic in self._offered:
            key = message.topic, message.publisher
        else:
            return
        self._newest.pop(key, None)  # so that the newest one is the last
        self._newest[key] = message.data

    def opening(self) -> Opening:
        """Return the messages in force."""
        return dict(self._newest)
