# SPDX-License-Identifier: Apache-2.0
"""The checks and the damage of MCAP files: what the mcap library leaves to its caller."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import IO, Any

import zstandard
from mcap.exceptions import EndOfFile, McapError
from mcap.opcode import Opcode
from mcap.reader import FOOTER_SIZE
from mcap.records import Chunk, Footer, Message, MessageIndex
from mcap.stream_reader import MAGIC_SIZE, CRCValidationError, StreamReader, breakup_chunk

from ros_vdd.data.mcap_chunks import MAX_BYTES, next_chunk

MAGIC = b"\x89MCAP"
MAX_RECORD_BYTES = 1 << 30
# What the mcap library and its decompressors raise on damaged bytes; lz4 raises RuntimeError.
DAMAGE = (McapError, ValueError, struct.error, zstandard.ZstdError, RuntimeError, MemoryError, OverflowError, KeyError)


def records(stream: IO[bytes], damage: list[str]) -> Iterator[Any]:
    """Yield the records from the start of a file, chunks opened; note in `damage` what can't be read.

    A damaged length breaks the chain of records: it is taken up again at the next chunk whose checksum holds.
    """
    source, chunked = _source(stream), False
    while True:
        begin = stream.tell()
        try:
            record = next(source)
            chunked = chunked or isinstance(record, Chunk)
            if chunked and isinstance(record, Message):  # no checksum holds there: another record with a damaged opcode
                raise McapError("a message lies outside of the chunks")
            took = stream.tell() - begin
            if _size(record) not in (None, took) or begin and _declared(stream, begin) < took and not isinstance(record, Footer):
                raise McapError(f"the length of a {type(record).__name__} is wrong")
            if isinstance(record, Chunk) and _claimed(record) > MAX_BYTES:
                raise McapError(f"a chunk claims to hold {_claimed(record)} bytes; at most {MAX_BYTES} are read")
            inner = breakup_chunk(record, validate_crc=True) if isinstance(record, Chunk) else [record]
        except StopIteration:
            return
        except DAMAGE as error:
            damage.append(f"{describe(error)} (near byte {stream.tell()})")
            follows = next_chunk(stream, begin + 1)
            if follows is not None:
                stream.seek(follows)
                source = _source(stream, skip_magic=True)
            elif source.gi_frame is None:  # the reader itself gave up, not one chunk
                return
            continue
        yield from inner


def _declared(stream: IO[bytes], begin: int) -> int:
    """Return how many bytes the record that begins there takes by its own length; the position in the stream stays."""
    position = stream.tell()
    stream.seek(begin + 1)
    (length,) = struct.unpack("<Q", stream.read(8))
    stream.seek(position)
    return 9 + length


def _claimed(chunk: Chunk) -> int:
    """Return how many bytes a chunk unpacks to by what it says, in its record and in the frame of its compression."""
    framed = zstandard.frame_content_size(chunk.data) if chunk.compression == "zstd" else 0
    return max(chunk.uncompressed_size, framed)


def _size(record: Any) -> int | None:
    """Return how many bytes a record takes by what it holds, where chunks may stand behind it; None elsewhere."""
    if isinstance(record, MessageIndex):
        return 15 + 16 * len(record.records)
    return 49 + len(record.compression) + len(record.data) if isinstance(record, Chunk) else None


def _source(stream: IO[bytes], skip_magic: bool = False) -> Any:
    return StreamReader(
        stream, skip_magic=skip_magic, emit_chunks=True, validate_crcs=True, record_size_limit=MAX_RECORD_BYTES
    ).records


def check_summary_crc(stream: IO[bytes]) -> None:
    """Verify the end of the file and the checksum of the summary, which the library writes but doesn't check."""
    tail = FOOTER_SIZE + MAGIC_SIZE
    if stream.seek(0, 2) < tail + MAGIC_SIZE:
        raise EndOfFile()
    footer_start = stream.seek(-tail, 2)
    opcode, _, summary_start, _, expected, magic = struct.unpack(f"<BQQQI{MAGIC_SIZE}s", stream.read(tail))
    if opcode != Opcode.FOOTER or magic[:5] != MAGIC or summary_start > footer_start:
        raise EndOfFile()
    if summary_start and expected:
        stream.seek(summary_start)
        if zlib.crc32(stream.read(footer_start + FOOTER_SIZE - 4 - summary_start)) != expected:
            raise McapError("the index fails its checksum")


def describe(error: BaseException) -> str:
    """Return in words what one of `DAMAGE` means."""
    if isinstance(error, (EndOfFile, struct.error)):
        return "it ends in the middle of a record"
    if isinstance(error, CRCValidationError):
        return "a chunk fails its checksum"
    return f"{type(error).__name__}: {error}"
