# SPDX-License-Identifier: Apache-2.0
"""One MCAP file that is being recorded: chunks with checksums, closed and handed to the operating system when told."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from mcap.writer import CompressionType, Writer

from ros_vdd.config import dump_yaml
from ros_vdd.data.bag_metadata import FileEntry, TopicEntry
from ros_vdd.data.cdr import definition_text

CUSTOM_DATA = "ros_vdd"  # name of the metadata record that custom data travels in


class McapWriter:
    """One file of a recording.

    Args:
        path: where it is to be; it doesn't exist yet.
        custom_data: texts that travel inside.

    Raises:
        OSError: the file can't be made.
    """

    def __init__(self, path: Path, custom_data: Mapping[str, str]) -> None:
        self.path = path
        self.counts: dict[str, int] = {}
        """Messages written so far, by topic."""
        self._channels: dict[str, int] = {}
        self._first_ns: int | None = None
        self._last_ns = 0
        self._stream = path.open("xb")
        self._writer = Writer(self._stream, compression=CompressionType.NONE, enable_data_crcs=True)
        self._writer.start(profile="ros2", library="ros_vdd")
        self._writer.add_metadata(CUSTOM_DATA, dict(custom_data))
        self._stream.flush()  # whose robot this was is known even if the process dies before the first chunk

    def add_topic(self, topic: str, entry: TopicEntry) -> None:
        """Describe a topic; messages may follow."""
        schema = self._writer.register_schema(entry.type, "ros2msg", definition_text(entry.type)[0].encode())
        described = {"offered_qos_profiles": dump_yaml(entry.qos).strip(), "topic_type_hash": entry.type_hash}
        self._channels[topic] = self._writer.register_channel(topic, "cdr", schema, described)
        self.counts[topic] = 0

    def write(self, topic: str, log_time_ns: int, data: bytes, sequence: int) -> None:
        """Append one serialized message; it lies in memory until the chunk is closed."""
        self._writer.add_message(self._channels[topic], log_time_ns, data, log_time_ns, sequence)
        self.counts[topic] += 1
        self._first_ns = log_time_ns if self._first_ns is None else min(self._first_ns, log_time_ns)
        self._last_ns = max(self._last_ns, log_time_ns)

    @property
    def size(self) -> int:
        """[bytes] written, without the open chunk."""
        return self._stream.tell()

    @property
    def entry(self) -> FileEntry:
        """What metadata.yaml says of the file."""
        first_ns = self._last_ns if self._first_ns is None else self._first_ns
        return FileEntry(self.path.name, first_ns, self._last_ns - first_ns, sum(self.counts.values()))

    def flush(self) -> None:
        """Close the chunk and hand it to the operating system."""
        self._writer.flush()

    def sync(self) -> None:
        """Wait until what was handed over lies on the disk."""
        os.fsync(self._stream.fileno())

    def close(self, custom_data: Mapping[str, str] | None = None) -> None:
        """Complete the file, with the index; custom data, where given, takes the place of that of the start."""
        if custom_data is not None:
            self._writer.add_metadata(CUSTOM_DATA, dict(custom_data))
        self._writer.finish()
        self._stream.flush()
        self.sync()
        self._stream.close()

    def abandon(self) -> None:
        """Let go of the file after a failed write."""
        with contextlib.suppress(OSError):  # closing writes what is buffered, to a disk that has just refused it
            self._stream.close()
