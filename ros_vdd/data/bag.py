# SPDX-License-Identifier: Apache-2.0
"""Reads a rosbag2 recording, MCAP or SQLite, without ROS: topics, and decoded messages in log-time order."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ros_vdd.config import Section
from ros_vdd.data.bag_decompress import Unpacked
from ros_vdd.data.bag_file import BagChannel, BagFile, RawMessage
from ros_vdd.data.bag_layout import BagLayout, find_layout
from ros_vdd.data.bag_mcap import McapFile
from ros_vdd.data.bag_sqlite import SqliteFile
from ros_vdd.data.cdr import Decode, decoder, full_name, same_layout
from ros_vdd.errors import DataError, suggest

ROBOT_KEY, TASK_KEY = "ros_vdd.robot", "ros_vdd.task"  # what our recorder leaves in custom_data


class TopicInfo(NamedTuple):
    """What a bag holds of one topic."""

    type: str
    count: int


class BagMessage(NamedTuple):
    """A decoded message; `log_time_ns` is when the recorder received it."""

    topic: str
    log_time_ns: int
    message: Any


class Bag:
    """A rosbag2 recording, open for reading; `Bag.open` makes one.

    Attributes:
        path: the folder or file that was opened.
        topics: name -> TopicInfo.
        storage: "mcap" or "sqlite3".
        custom_data: key -> text, as the recorder left it in metadata.yaml or inside the MCAP.
        warnings: what a reader should know, in words: no metadata, parts left out by recovery.
    """

    def __init__(self, layout: BagLayout, files: list[BagFile], unpacked: Unpacked) -> None:
        self.path, self.storage = layout.path, layout.storage
        self.warnings = [*layout.warnings, *(f"left out: {d}" for f in (unpacked, *files) for d in f.damage)]
        self.custom_data = _custom_data(layout.metadata, files)
        self._files, self._unpacked = files, unpacked  # what was compressed lies unpacked as long as the bag is open
        self._distro = layout.metadata.get("ros_distro")
        self._channels: dict[str, list[BagChannel]] = {}
        for channel in itertools.chain.from_iterable(f.channels for f in files):
            self._channels.setdefault(channel.topic, []).append(channel)
        self.topics = {
            topic: TopicInfo(full_name(channels[0].type), sum(c.count for c in channels))
            for topic, channels in sorted(self._channels.items())
        }

    @classmethod
    def open(cls, path: str | Path, recover: bool = False) -> Bag:
        """Open a bag folder or a single file of one.

        Args:
            path: the folder, .mcap or .db3.
            recover: read what is left of a damaged MCAP; `warnings` then says what was left out.

        Raises:
            DataError: nothing there, no metadata where it is needed, a file of the set missing, an unknown storage
                format, a ROS 1 recording, or a damaged file.
        """
        layout = find_layout(Path(path))
        unpacked = Unpacked(layout.files, recover)
        files = [McapFile(p, recover) if layout.storage == "mcap" else SqliteFile(p) for p in unpacked.files]
        return cls(layout, files, unpacked)

    def messages(self, topics: Iterable[str] | None = None) -> Iterator[BagMessage]:
        """Return an iterator over the decoded messages of some topics (None: all), earliest log time first.

        Raises:
            DataError: at once for an unknown topic, a type without definition or messages that are not CDR; while
                reading for a checksum that fails or bytes that are no message of the type.
        """
        chosen = list(self.topics if topics is None else topics)
        decoders = {topic: self.decoder(topic) for topic in chosen}
        return self._read(decoders)

    def raw_messages(self, topics: Collection[str]) -> Iterator[RawMessage]:
        """Return an iterator over messages as they lie in the files, of any type and encoding, by log time."""
        sources = [file.messages(topics) for file in self._files]
        return heapq.merge(*sources, key=lambda message: message.log_time_ns)

    def decoder(self, topic: str) -> Decode:
        """Return the function that decodes a topic's messages.

        Raises:
            DataError: an unknown topic, several types or versions of one on it, a type without definition, or messages
                not in CDR.
        """
        if topic not in self._channels:
            raise DataError(f"'{self.path}' has no topic '{topic}'; {suggest(topic, self.topics)}")
        channels = self._channels[topic]
        encodings = sorted({c.encoding for c in channels} - {"cdr"})
        if encodings:
            raise DataError(f"'{self.path}', topic '{topic}': messages are '{encodings[0]}'; expected 'cdr' (ROS 2)")
        types = sorted({full_name(c.type) for c in channels})
        if len(types) > 1:
            raise DataError(f"'{self.path}', topic '{topic}' carries several types: {', '.join(types)}")
        definitions = [c.definition for c in channels if c.definition.text] or [channels[0].definition]
        if len(set(definitions)) > 1 and not same_layout(types[0], definitions):
            raise DataError(
                f"'{self.path}', topic '{topic}' carries {types[0]} in several versions, whose fields differ; "
                "record again with one version of its package"
            )
        return decoder(types[0], definitions[0], self._distro)

    def _read(self, decoders: dict[str, Decode]) -> Iterator[BagMessage]:
        for raw in self.raw_messages(decoders):
            try:
                message = decoders[raw.topic](raw.data)
            except DataError as error:
                raise DataError(f"'{self.path}', topic '{raw.topic}' at {raw.log_time_ns} ns: {error}") from error
            yield BagMessage(raw.topic, raw.log_time_ns, message)


def _custom_data(metadata: Section, files: list[BagFile]) -> dict[str, str]:
    inside: dict[str, str] = {}
    for file in files:
        inside.update(file.metadata.get("ros_vdd", {}))
    told = metadata.get("custom_data")
    return inside | ({str(key): str(value) for key, value in told.items()} if isinstance(told, dict) else {})
