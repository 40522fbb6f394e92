# SPDX-License-Identifier: Apache-2.0
"""Writes one rosbag2 recording (MCAP) that survives a crash and is never half a recording.

Chunks are closed by time, with checksums, and handed to the operating system at once, so that a killed process loses
what came after the last chunk and no more; a power cut loses what came after the last fsync. The folder is called
NAME.partial until it is complete, and becomes NAME by one rename.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mcap.writer import CompressionType, Writer

from ros_vdd.data.bag_metadata import METADATA, TopicEntry, metadata_text
from ros_vdd.data.cdr import definition_text
from ros_vdd.errors import DataError

PARTIAL = ".partial"


@dataclass
class _Channel:
    id: int
    type: str
    type_hash: str
    count: int = 0


class BagWriter:
    """One recording, open for writing. Not thread-safe: one thread calls it.

    Args:
        folder: where the recording is to appear; its parent exists, itself not yet.
        topics: topic -> message type, all that will be written.
        custom_data: texts that travel with the recording, in metadata.yaml and inside the MCAP.
        clock: [ns] steady time, for closing chunks and fsync.
        chunk_s: [s] longest time a message waits in an open chunk.
        fsync_s: [s] time between two fsync.
        ros_distro: name of the ROS distribution, "" where there is none.

    Raises:
        DataError: the folder exists already, or a type is not a standard one.
    """

    def __init__(
        self,
        folder: Path,
        topics: Mapping[str, str],
        custom_data: Mapping[str, str],
        clock: Callable[[], int],
        chunk_s: float = 0.1,
        fsync_s: float = 1.0,
        ros_distro: str = "",
    ) -> None:
        self.folder = folder
        self.partial = folder.with_name(folder.name + PARTIAL)
        for taken in (folder, self.partial):
            if taken.exists():
                raise DataError(f"'{taken}' exists already; a recording is never overwritten")
        definitions = {topic: definition_text(type_name) for topic, type_name in topics.items()}
        self._clock, self._chunk_ns, self._fsync_ns = clock, round(chunk_s * 1e9), round(fsync_s * 1e9)
        self._custom_data, self._ros_distro = dict(custom_data), ros_distro
        self._first_ns: int | None = None
        self._last_ns = 0
        self.partial.mkdir()
        self._file = f"{folder.name}_0.mcap"
        self._stream = (self.partial / self._file).open("xb")
        self._writer = Writer(self._stream, compression=CompressionType.NONE, enable_data_crcs=True)
        self._writer.start(profile="ros2", library="ros_vdd")
        self._writer.add_metadata("ros_vdd", self._custom_data)
        self._channels = {t: self._register(t, topics[t], *definitions[t]) for t in topics}
        self._chunk_closed_ns = self._synced_ns = clock()

    @property
    def counts(self) -> dict[str, int]:
        """Messages written so far, by topic."""
        return {topic: channel.count for topic, channel in self._channels.items()}

    def write(self, topic: str, log_time_ns: int, data: bytes) -> None:
        """Append one serialized message.

        Args:
            topic: one of those given at the start.
            log_time_ns: [ns] when it was received.
            data: CDR bytes as they came.
        """
        channel = self._channels[topic]
        self._writer.add_message(channel.id, log_time_ns, data, log_time_ns, channel.count)
        channel.count += 1
        self._first_ns = log_time_ns if self._first_ns is None else min(self._first_ns, log_time_ns)
        self._last_ns = max(self._last_ns, log_time_ns)
        self.flush_if_due()

    def flush_if_due(self) -> None:
        """Close the chunk and sync the file where their time has come; call it also when no message comes."""
        now_ns = self._clock()
        if now_ns - self._chunk_closed_ns >= self._chunk_ns:
            self._writer.flush()
            self._chunk_closed_ns = now_ns
        if now_ns - self._synced_ns >= self._fsync_ns:
            os.fsync(self._stream.fileno())
            self._synced_ns = now_ns

    def close(self) -> Path:
        """Complete the recording and give it its name; return that folder."""
        self._writer.finish()
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        first_ns = self._last_ns if self._first_ns is None else self._first_ns
        topics = {t: TopicEntry(c.type, c.type_hash, c.count) for t, c in self._channels.items()}
        span = (first_ns, self._last_ns - first_ns)
        with (self.partial / METADATA).open("x", encoding="utf-8") as stream:
            stream.write(metadata_text(self._file, topics, *span, self._custom_data, self._ros_distro))
            stream.flush()
            os.fsync(stream.fileno())
        _sync_folder(self.partial)
        os.rename(self.partial, self.folder)
        _sync_folder(self.folder.parent)
        return self.folder

    def abandon(self) -> None:
        """Let go of the file after a failed write; what was written stays in the .partial folder."""
        with contextlib.suppress(OSError):  # closing writes what is buffered, to a disk that has just refused it
            self._stream.close()

    def _register(self, topic: str, type_name: str, text: str, type_hash: str) -> _Channel:
        schema = self._writer.register_schema(type_name, "ros2msg", text.encode())
        described = {"offered_qos_profiles": "[]", "topic_type_hash": type_hash}
        return _Channel(self._writer.register_channel(topic, "cdr", schema, described), type_name, type_hash)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
