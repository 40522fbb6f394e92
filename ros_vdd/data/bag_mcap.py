# SPDX-License-Identifier: Apache-2.0
"""One MCAP file of a bag: its channels and raw messages in log-time order, every checksum verified.

A file whose index is whole is read chunk by chunk through it. A file that was cut off or damaged is refused with
the number of messages that are left, or, when recovery is asked for, read from its start, leaving out what fails.
"""

from __future__ import annotations

import heapq
from array import array
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO

import numpy as np
from mcap.exceptions import InvalidMagic
from mcap.reader import SeekingReader
from mcap.records import Channel, Header, Message, Metadata, Schema
from mcap.summary import Summary

from ros_vdd.data.bag_file import BagChannel, RawMessage
from ros_vdd.data.cdr import Definition
from ros_vdd.data.mcap_chunks import MAX_BYTES
from ros_vdd.data.mcap_scan import DAMAGE, MAX_RECORD_BYTES, check_summary_crc, describe, records
from ros_vdd.errors import DataError

_LATEST_NS = 2**63 - 1  # MCAP's times are unsigned


class McapFile:
    """An MCAP file of a rosbag2 recording.

    Args:
        path: the file.
        recover: read what is left of a damaged file instead of refusing it.

    Raises:
        DataError: not an MCAP, a ROS 1 recording, or damaged and `recover` is not set.
    """

    def __init__(self, path: Path, recover: bool = False) -> None:
        self.path = path
        self.damage: list[str] = []
        self._displaced = 0  # how many places a message stands too late in the file, at most
        self.channels: list[BagChannel] = []
        self.metadata: dict[str, dict[str, str]] = {}
        with path.open("rb") as stream:
            self._indexed = self._read_index(stream) and not recover
            if not self._indexed:
                stream.seek(0)
                self._read_through(stream, recover)

    def messages(self, topics: Collection[str]) -> Iterator[RawMessage]:
        """Yield the messages of some topics, earliest log time first.

        Raises:
            DataError: a chunk fails its checksum, and the file was not opened for recovery.
        """
        with self.path.open("rb") as stream:
            source = self._through_index(stream, topics) if self._indexed else self._sorted(stream, topics)
            try:
                yield from source
            except DAMAGE as error:
                raise DataError(
                    f"'{self.path}' is damaged: {describe(error)}; recovery (--recover) leaves the bad parts out"
                ) from error

    def _read_index(self, stream: IO[bytes]) -> bool:
        """Take channels and counts from the summary; False where there is none to rely on."""
        try:
            reader = SeekingReader(stream, validate_crcs=True, record_size_limit=MAX_RECORD_BYTES)
            _check_profile(self.path, reader.get_header())
            check_summary_crc(stream)
            summary = reader.get_summary()
            if summary is None or not _is_complete(summary):
                return False
            counts = summary.statistics.channel_message_counts
            self.channels = [_channel(c, summary.schemas, counts) for c in summary.channels.values()]
            self.metadata = {record.name: record.metadata for record in reader.iter_metadata()}
        except InvalidMagic as error:
            raise DataError(f"'{self.path}' is not an MCAP file") from error
        except DAMAGE:
            return False
        return True

    def _read_through(self, stream: IO[bytes], recover: bool) -> None:
        schemas: dict[int, Schema] = {}
        channels: dict[int, Channel] = {}
        counts: Counter[int] = Counter()
        times_ns = array("q")
        for record in records(stream, self.damage):
            if isinstance(record, Header):
                _check_profile(self.path, record)
            elif isinstance(record, Schema):
                schemas.setdefault(record.id, record)  # a later copy is outside the data's checksum
            elif isinstance(record, Channel):
                channels.setdefault(record.id, record)
            elif isinstance(record, Message):
                counts[record.channel_id] += 1
                times_ns.append(min(record.log_time, _LATEST_NS))
            elif isinstance(record, Metadata):
                self.metadata[record.name] = record.metadata
        self.channels = [_channel(c, schemas, counts) for c in channels.values()]
        order = np.argsort(np.frombuffer(times_ns, np.int64), kind="stable") if times_ns else np.zeros(0, np.int64)
        self._displaced = int((order - np.arange(len(order))).max(initial=0))
        left = sum(c.count for c in self.channels)
        if counts.total() > left:
            self.damage.append(f"{counts.total() - left} messages are of a topic whose description is lost")
        if self.damage and not (recover and left):
            todo = f"{left} messages can be read: ask for recovery (--recover)" if left else "No message is left in it"
            raise DataError(f"'{self.path}' is damaged: {'; '.join(self.damage[:3])}. {todo}")

    def _through_index(self, stream: IO[bytes], topics: Collection[str]) -> Iterator[RawMessage]:
        reader = SeekingReader(stream, validate_crcs=True, record_size_limit=MAX_RECORD_BYTES)
        for _, channel, message in reader.iter_messages(topics):
            yield RawMessage(channel.topic, message.log_time, message.data)

    def _sorted(self, stream: IO[bytes], topics: Collection[str]) -> Iterator[RawMessage]:
        """Read from the start, holding back as many messages as the first reading found one to be out of order."""
        names = {c.id: c.topic for c in self.channels if c.topic in topics}
        wanted = (r for r in records(stream, []) if isinstance(r, Message) and r.channel_id in names)
        waiting: list[tuple[int, int, RawMessage]] = []
        for number, record in enumerate(wanted):
            heapq.heappush(waiting, (record.log_time, number, RawMessage(names[record.channel_id], record.log_time, record.data)))
            if len(waiting) > self._displaced:
                yield heapq.heappop(waiting)[2]
        while waiting:
            yield heapq.heappop(waiting)[2]


def _is_complete(summary: Summary) -> bool:
    """Return whether it says all that is needed: writers may leave out any part of it."""
    told, channels = summary.statistics, summary.channels
    return (
        told is not None
        and 0 < told.chunk_count == len(summary.chunk_indexes)
        and told.message_count == sum(told.channel_message_counts.values())  # by channel they may be absent
        and told.channel_message_counts.keys() <= channels.keys()
        and all(c.schema_id in summary.schemas for c in channels.values() if c.schema_id)
        and all(c.uncompressed_size <= MAX_BYTES for c in summary.chunk_indexes)
    )


def _channel(channel: Channel, schemas: dict[int, Schema], counts: dict[int, int]) -> BagChannel:
    schema = schemas.get(channel.schema_id)
    has_text = schema is not None and schema.data
    definition = Definition(schema.data.decode("utf-8", "replace"), schema.encoding) if has_text else Definition()
    name, count = schema.name if schema else "", counts.get(channel.id, 0)
    return BagChannel(channel.id, channel.topic, name, channel.message_encoding, definition, count)


def _check_profile(path: Path, header: Header) -> None:
    if header.profile not in ("ros2", ""):
        raise DataError(f"'{path}' has the profile '{header.profile}'; expected ros2. Convert it, or record with ROS 2")
