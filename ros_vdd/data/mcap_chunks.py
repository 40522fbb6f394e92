# SPDX-License-Identifier: Apache-2.0
"""What is intact of an MCAP file as our recorder writes it: every chunk whose checksum holds, wherever the damage lies.

Lengths and offsets in a damaged file can't be trusted. Where the chain of records breaks, the next chunk is searched for
and believed only if its checksum holds.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import IO, NamedTuple

from mcap.data_stream import ReadDataStream
from mcap.opcode import Opcode
from mcap.records import Chunk
from mcap.stream_reader import MAGIC_SIZE, breakup_chunk

_HEAD = struct.Struct("<BQ")  # opcode, length of the content
_CHUNK = struct.Struct("<QQQIIQ")  # first and last time, size, checksum, length of the compression's name (0), size
_SIZE = struct.Struct("<I")
_MESSAGE = struct.Struct("<HIQQ")  # channel, sequence, log time, publish time
MAX_BYTES = 1 << 30  # of an opened chunk
_NEXT_CHUNK_OF_ANY = re.compile(rb"(?=\x06.{4}\0{4}.{28}[\0\x03\x04]\0{3})", re.DOTALL)  # "", "lz4" or "zstd"
_NEXT_CHUNK = re.compile(rb"\x06.{4}\0{4}.{24}.{4}\0{4}", re.DOTALL)  # shorter than 4 GiB, without compression


class Record(NamedTuple):
    """A record at the top level of a file; of a chunk the checksum holds."""

    opcode: int
    start: int
    end: int
    content: memoryview


class Damage(NamedTuple):
    """Bytes that belong to no intact record."""

    start: int
    end: int


class IndexedMessage(NamedTuple):
    """A message in a chunk, and where in the chunk it begins."""

    channel: int
    sequence: int
    log_time_ns: int
    data: memoryview
    offset: int


def scan(path: Path) -> Iterator[Record | Damage]:
    """Yield what is intact of a file's data section, and where it is damaged, in the order of the file."""
    size = path.stat().st_size
    if size <= MAGIC_SIZE:
        return
    with path.open("rb") as stream:
        data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)  # closed when the last view of it is gone
    view = memoryview(data)
    position, lost_at = MAGIC_SIZE, None
    while position < size:
        record = _record(view, position)
        if record is None:
            lost_at = position if lost_at is None else lost_at
            found = _NEXT_CHUNK.search(data, position + 1)
            position = found.start() if found else size
            continue
        if lost_at is not None:
            yield Damage(lost_at, position)
            lost_at = None
        yield record
        position = record.end
        if record.opcode == Opcode.DATA_END:
            return
    if lost_at is not None:
        yield Damage(lost_at, size)


def inside(chunk: Record) -> Iterator[tuple[int, memoryview, int]]:
    """Yield (opcode, content, offset) of each record in a chunk."""
    records = chunk.content[_CHUNK.size :]
    offset = 0
    while offset < len(records):
        opcode, length = _HEAD.unpack_from(records, offset)
        begin = offset + _HEAD.size
        yield opcode, records[begin : begin + length], offset
        offset = begin + length


def message(content: memoryview, offset: int) -> IndexedMessage:
    """Return a message record taken apart."""
    channel, sequence, log_time_ns, _ = _MESSAGE.unpack_from(content)
    return IndexedMessage(channel, sequence, log_time_ns, content[_MESSAGE.size :], offset)


def next_chunk(stream: IO[bytes], start: int) -> int | None:
    """Return where the next chunk of a file begins whose checksum holds, compressed or not; None where there is none.

    The position in the stream stays.
    """
    if start >= os.fstat(stream.fileno()).st_size:
        return None
    with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for candidate in _NEXT_CHUNK_OF_ANY.finditer(data, start):
            begin = candidate.start() + _HEAD.size
            (length,) = struct.unpack_from("<Q", data, candidate.start() + 1)
            if begin + length <= len(data) and _can_be_opened(data[begin : begin + length]):
                return candidate.start()
    return None


def _can_be_opened(content: bytes) -> bool:
    try:
        chunk = Chunk.read(ReadDataStream(BytesIO(content)))
        if not chunk.uncompressed_crc or chunk.uncompressed_size > MAX_BYTES:
            return False
        breakup_chunk(chunk, validate_crc=True)
    except Exception:  # of the library and of three decompressors, on bytes that are no chunk
        return False
    return True


def _record(view: memoryview, position: int) -> Record | None:
    """Return the record at a position; None where there is none that can be believed."""
    if position + _HEAD.size > len(view):
        return None
    opcode, length = _HEAD.unpack_from(view, position)
    begin, end = position + _HEAD.size, position + _HEAD.size + length
    if opcode not in _IS_WHOLE or end > len(view) or not _IS_WHOLE[opcode](view[begin:end]):
        return None
    return Record(opcode, position, end, view[begin:end])


def _is_chunk(content: memoryview) -> bool:
    if len(content) < _CHUNK.size:
        return False
    _, _, size, expected, named, again = _CHUNK.unpack_from(content)
    if named or size != again or len(content) != _CHUNK.size + size:
        return False
    return zlib.crc32(content[_CHUNK.size :]) == expected


def _is_index(content: memoryview) -> bool:
    return len(content) >= 6 and len(content) == 6 + _SIZE.unpack_from(content, 2)[0]


def _texts(content: memoryview) -> list[memoryview] | None:
    """Return the texts a content consists of, each behind its length; None where the lengths don't add up."""
    found = []
    while len(content):
        if len(content) < _SIZE.size:
            return None
        end = _SIZE.size + _SIZE.unpack_from(content)[0]
        if end > len(content):
            return None
        found.append(content[_SIZE.size : end])
        content = content[end:]
    return found


def _is_header(content: memoryview) -> bool:
    return len(_texts(content) or ()) == 2


def _is_metadata(content: memoryview) -> bool:
    """Return whether the content is a name and a list of pairs of texts."""
    parts = _texts(content)
    inner = _texts(parts[1]) if parts is not None and len(parts) == 2 else None
    return inner is not None and len(inner) % 2 == 0


_IS_WHOLE = {
    Opcode.HEADER: _is_header,
    Opcode.METADATA: _is_metadata,
    Opcode.CHUNK: _is_chunk,
    Opcode.MESSAGE_INDEX: _is_index,
    Opcode.DATA_END: lambda content: len(content) == 4,
}
