# SPDX-License-Identifier: Apache-2.0
"""Completes an MCAP file of our recorder that was cut off or damaged: every intact chunk is kept, nothing else.

A file that was cut off, as by a killed process or a full disk, is completed in place: cut behind its last intact record,
then given its index. Only damage in the middle has it written anew.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from mcap.data_stream import ReadDataStream, RecordBuilder
from mcap.opcode import Opcode
from mcap.reader import SeekingReader
from mcap.records import (
    Channel,
    ChunkIndex,
    DataEnd,
    Footer,
    MessageIndex,
    Metadata,
    MetadataIndex,
    Schema,
    Statistics,
    SummaryOffset,
)
from mcap.writer import MCAP0_MAGIC

from ros_vdd.config import Section, parse_yaml
from ros_vdd.data.bag_metadata import FileEntry, TopicEntry
from ros_vdd.data.mcap_chunks import Damage, Record, inside, message, scan
from ros_vdd.data.mcap_scan import DAMAGE, check_summary_crc
from ros_vdd.data.mcap_writer import CUSTOM_DATA, McapWriter
from ros_vdd.errors import ConfigError, DataError


class Repaired(NamedTuple):
    """What a file holds after its repair."""

    file: FileEntry
    topics: dict[str, TopicEntry]
    custom_data: dict[str, str]
    lost_bytes: int  # that belonged to no intact record


@dataclass
class _Contents:
    """What the intact records of a file say."""

    schemas: dict[int, Schema] = field(default_factory=dict)
    channels: dict[int, Channel] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    chunks: list[ChunkIndex] = field(default_factory=list)
    metadata: list[MetadataIndex] = field(default_factory=list)
    custom_data: dict[str, str] = field(default_factory=dict)
    indexes: dict[int, MessageIndex] = field(default_factory=dict)  # of the last chunk, as they must be
    end: int = len(MCAP0_MAGIC)  # of the last intact record
    damage: list[Damage] = field(default_factory=list)
    ends: bool = False  # whether the end of the data section was found

    @property
    def span_ns(self) -> tuple[int, int]:
        first = min((c.message_start_time for c in self.chunks), default=0)
        return first, max((c.message_end_time for c in self.chunks), default=first)


def repair(path: Path) -> Repaired:
    """Complete a file and say what it holds; one that is whole is left as it is.

    Raises:
        DataError: an intact chunk holds what our recorder doesn't write.
        OSError: the disk refused.
    """
    contents = _read(path)
    lost = sum(min(d.end, path.stat().st_size) - d.start for d in contents.damage)
    if contents.damage and contents.damage[0].start < contents.end or not _begins_well(path):
        _rewrite(path, contents)
    elif contents.damage or not contents.ends or not _has_index(path):
        _complete(path, contents)
    return _told(path, contents, lost)


def _read(path: Path) -> _Contents:
    contents, size = _Contents(), path.stat().st_size
    for found in scan(path):
        if isinstance(found, Damage):
            contents.damage.append(found)
        elif found.opcode == Opcode.DATA_END:
            contents.ends = True
        else:
            _take(contents, found)
    if contents.ends and not contents.channels and size:
        _take_summary(path, contents)
    return contents


def _take(contents: _Contents, record: Record) -> None:
    if record.opcode == Opcode.CHUNK:
        _take_chunk(contents, record)
    elif record.opcode == Opcode.MESSAGE_INDEX and contents.chunks:
        chunk, found = contents.chunks[-1], MessageIndex.read(_stream(record.content))
        expected = contents.indexes.get(found.channel_id)
        if expected is None or found.records != expected.records or record.start != contents.end:
            return  # not of this chunk: its own was lost with the damage before
        chunk.message_index_offsets[found.channel_id] = record.start
        chunk.message_index_length += record.end - record.start
    elif record.opcode == Opcode.METADATA:
        try:
            told = Metadata.read(_stream(record.content))
        except DAMAGE:  # it has no checksum of its own
            contents.damage.append(Damage(record.start, record.end))
            return
        contents.metadata.append(MetadataIndex(record.start, record.end - record.start, told.name))
        if told.name == CUSTOM_DATA:
            contents.custom_data = told.metadata
    contents.end = record.end


def _take_chunk(contents: _Contents, record: Record) -> None:
    times, contents.indexes = [], {}
    try:
        for opcode, content, offset in inside(record):
            if opcode == Opcode.SCHEMA:
                schema = Schema.read(_stream(content))
                contents.schemas.setdefault(schema.id, schema)
            elif opcode == Opcode.CHANNEL:
                channel = Channel.read(_stream(content))
                contents.channels.setdefault(channel.id, channel)
            elif opcode == Opcode.MESSAGE:
                told = message(content, offset)
                times.append(told.log_time_ns)
                contents.counts[told.channel] += 1
                index = contents.indexes.setdefault(told.channel, MessageIndex(told.channel, []))
                index.records.append((told.log_time_ns, offset))
    except (struct.error, *DAMAGE) as error:
        raise DataError(f"a chunk at byte {record.start} isn't one of our recorder: {error}") from error
    if times:
        size = len(record.content) - 40
        contents.chunks.append(
            ChunkIndex(record.end - record.start, record.start, "", size, max(times), 0, {}, min(times), size)
        )


def _take_summary(path: Path, contents: _Contents) -> None:
    """Take descriptions from the index where the chunk that held them is lost."""
    with path.open("rb") as stream:
        try:
            check_summary_crc(stream)
            stream.seek(0)
            summary = SeekingReader(stream).get_summary()
        except DAMAGE:
            return
    if summary is not None:
        contents.schemas, contents.channels = dict(summary.schemas), dict(summary.channels)


def _complete(path: Path, contents: _Contents) -> None:
    """Cut a file behind its last intact record and give it an index."""
    with path.open("r+b") as stream:
        stream.truncate(contents.end)
        stream.seek(contents.end)
        builder = RecordBuilder()
        missing = [i for i in contents.indexes if contents.chunks and i not in contents.chunks[-1].message_index_offsets]
        for channel in missing:
            contents.chunks[-1].message_index_offsets[channel] = contents.end + builder.count
            contents.indexes[channel].write(builder)
        if missing:
            contents.chunks[-1].message_index_length += builder.count
        DataEnd(0).write(builder)
        stream.write(builder.end())
        stream.write(_summary(contents, stream.tell()))
        stream.flush()
        os.fsync(stream.fileno())


def _summary(contents: _Contents, start: int) -> bytes:
    """Return the bytes that end a file: descriptions, statistics and indexes, and where each group begins."""
    first_ns, last_ns = contents.span_ns
    statistics = Statistics(
        0, len(contents.channels), dict(contents.counts), len(contents.chunks), sum(contents.counts.values()), last_ns,
        first_ns, len(contents.metadata), len(contents.schemas),
    )  # fmt: skip
    groups = {
        Opcode.SCHEMA: contents.schemas.values(),
        Opcode.CHANNEL: contents.channels.values(),
        Opcode.STATISTICS: [statistics],
        Opcode.CHUNK_INDEX: contents.chunks,
        Opcode.METADATA_INDEX: contents.metadata,
    }
    builder, offsets = RecordBuilder(), []
    for opcode, records in groups.items():
        begin = builder.count
        for record in records:
            record.write(builder)
        offsets.append(SummaryOffset(opcode, start + begin, builder.count - begin))
    offset_start = start + builder.count
    for offset in offsets:
        offset.write(builder)
    data = builder.end()
    footer = struct.pack("<BQQQ", Opcode.FOOTER, 20, start, offset_start)
    Footer(start, offset_start, zlib.crc32(footer, zlib.crc32(data))).write(builder)
    return data + builder.end() + MCAP0_MAGIC


def _rewrite(path: Path, contents: _Contents) -> None:
    """Write the intact chunks into a new file that takes the place of the old one."""
    new = path.with_name(f".{path.name}")
    new.unlink(missing_ok=True)
    writer = McapWriter(new, contents.custom_data)
    try:
        topics = _topics(contents)
        for topic, entry in topics.items():
            writer.add_topic(topic, entry)
        names = {i: c.topic for i, c in contents.channels.items()}
        for record in scan(path):
            if isinstance(record, Record) and record.opcode == Opcode.CHUNK:
                for opcode, content, offset in inside(record):
                    if opcode == Opcode.MESSAGE:
                        told = message(content, offset)
                        if told.channel in names:
                            writer.write(names[told.channel], told.log_time_ns, bytes(told.data), told.sequence)
        writer.close()
    except BaseException:
        writer.abandon()
        new.unlink(missing_ok=True)
        raise
    os.replace(new, path)


def _told(path: Path, contents: _Contents, lost_bytes: int) -> Repaired:
    first_ns, last_ns = contents.span_ns
    topics = _topics(contents)
    count = sum(entry.count for entry in topics.values())
    return Repaired(FileEntry(path.name, first_ns, last_ns - first_ns, count), topics, contents.custom_data, lost_bytes)


def _topics(contents: _Contents) -> dict[str, TopicEntry]:
    topics = {}
    for channel in contents.channels.values():
        schema = contents.schemas.get(channel.schema_id)
        if schema is None:
            raise DataError(f"the type of {channel.topic} is lost")
        qos = channel.metadata.get("offered_qos_profiles", "")
        type_hash = channel.metadata.get("topic_type_hash", "")
        topics[channel.topic] = TopicEntry(schema.name, type_hash, contents.counts.get(channel.id, 0), _qos(qos))
    return topics


def _qos(text: str) -> tuple[Mapping[str, object], ...]:
    try:
        profiles = parse_yaml(f"profiles:\n{text}" if text.startswith("-") else f"profiles: {text or '[]'}")["profiles"]
    except ConfigError:
        return ()
    return tuple(p for p in profiles if isinstance(p, Section)) if isinstance(profiles, list) else ()


def _begins_well(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(MCAP0_MAGIC) + 1) == MCAP0_MAGIC + bytes([Opcode.HEADER])


def _has_index(path: Path) -> bool:
    with path.open("rb") as stream:
        try:
            check_summary_crc(stream)
        except DAMAGE:
            return False
    return True


def _stream(content: memoryview) -> ReadDataStream:
    return ReadDataStream(BytesIO(content))
