# SPDX-License-Identifier: Apache-2.0
"""Writes one rosbag2 recording (MCAP) that survives a crash and is never half a recording.

Chunks are closed by time, with checksums, and handed to the operating system at once, so that a killed process loses
what came after the last chunk and no more; a power cut loses what came after the last fsync. The folder is called
NAME.partial until it is complete, and becomes NAME by one rename. While it is being written its folder is locked.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ros_vdd.data.bag_metadata import METADATA, TopicEntry, metadata_text, sync_folder, write_metadata
from ros_vdd.data.bag_sync import Syncer
from ros_vdd.data.cdr import definition_text
from ros_vdd.data.folder_lock import lock_folder
from ros_vdd.data.mcap_writer import McapWriter
from ros_vdd.errors import DataError

PARTIAL = ".partial"
RESERVE = ".reserve"  # space for the index of a file that a full disk cut off
RESERVE_BYTES, RESERVE_PER_CHUNK = 256 << 10, 512

Qos = Mapping[str, Any]
"""One offered QoS profile as metadata version 9 writes it: history, depth, reliability, durability, ..."""


class BagWriter:
    """One recording, open for writing. Not thread-safe: one thread calls it.

    Args:
        folder: where the recording is to appear; its parent exists, itself not yet.
        topics: topic -> message type, all that are known at the start.
        custom_data: texts that travel with the recording, in metadata.yaml and inside the MCAP.
        clock: [ns] steady time, for closing chunks and fsync.
        chunk_s: [s] longest time a message waits in an open chunk.
        fsync_s: [s] time between two fsync.
        ros_distro: name of the ROS distribution, "" where there is none.
        qos: topic -> profiles its publishers offer.
        split_bytes: a file that has grown so large is followed by the next one; None: never.
        split_s: [s] likewise by log time.
        sync_beside: sync in a thread of its own, so that a slow disk holds up no write.

    Raises:
        DataError: the folder exists already, or a type is not a standard one.
        OSError: the disk refused.
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
        qos: Mapping[str, Sequence[Qos]] | None = None,
        split_bytes: float | None = None,
        split_s: float | None = None,
        sync_beside: bool = False,
    ) -> None:
        self.folder = folder
        self.partial = folder.with_name(folder.name + PARTIAL)
        for taken in (folder, self.partial):
            if taken.exists():
                raise DataError(f"'{taken}' exists already; a recording is never overwritten")
        offered = qos or {}
        self._topics = {t: _entry(type_name, offered.get(t, ())) for t, type_name in topics.items()}
        self._clock, self._chunk_ns, self._fsync_ns = clock, round(chunk_s * 1e9), round(fsync_s * 1e9)
        self._custom_data, self._ros_distro = dict(custom_data), ros_distro
        self._split_bytes, self._split_ns = split_bytes, None if split_s is None else round(split_s * 1e9)
        self._done: list[McapWriter] = []
        self._reserved = self._chunks = 0
        self.partial.mkdir()
        self._lock = lock_folder(self.partial)
        try:
            self._file = self._open()
        except BaseException:
            shutil.rmtree(self.partial, ignore_errors=True)  # it holds nothing that could be recovered
            os.close(self._lock)
            raise
        self._syncer = Syncer(sync_beside)
        self._chunk_closed_ns = self._synced_ns = clock()

    @property
    def counts(self) -> dict[str, int]:
        """Messages written so far, by topic."""
        return {t: sum(f.counts.get(t, 0) for f in (*self._done, self._file)) for t in self._topics}

    def add_topic(self, topic: str, type_name: str, qos: Sequence[Qos] = ()) -> None:
        """Take in a topic that was found after the start.

        Raises:
            DataError: the type is not a standard one.
        """
        self._topics[topic] = _entry(type_name, qos)
        self._file.add_topic(topic, self._topics[topic])

    def write(self, topic: str, log_time_ns: int, data: bytes, sequence: int = 0) -> None:
        """Append one serialized message.

        Args:
            topic: one of those given.
            log_time_ns: [ns] when it was received.
            data: CDR bytes as they came.
            sequence: its number at its publisher, 0 where that isn't known.
        """
        if self._is_full(log_time_ns):
            self._split()
        self._file.write(topic, log_time_ns, data, sequence)
        self.flush_if_due()

    def flush_if_due(self) -> None:
        """Close the chunk and sync the file where their time has come; call it also when no message comes."""
        now_ns = self._clock()
        if now_ns - self._chunk_closed_ns >= self._chunk_ns:
            self._file.flush()
            self._chunk_closed_ns = now_ns
            self._chunks += 1
        if now_ns - self._synced_ns >= self._fsync_ns:
            self._reserve(self._chunks + (self._file.size >> 20))
            self._syncer.request(self._file.sync)
            self._synced_ns = now_ns

    def close(self, custom_data: Mapping[str, str] | None = None) -> Path:
        """Complete the recording and give it its name; return that folder.

        Args:
            custom_data: what is known only now, in addition to that of the start.
        """
        self._custom_data.update(custom_data or {})
        self.release_reserve()
        self._syncer.wait()
        self._file.close(self._custom_data)
        self._syncer.close()
        files = [f.entry for f in (*self._done, self._file)]
        counts = self.counts
        topics = {t: entry._replace(count=counts[t]) for t, entry in self._topics.items()}
        write_metadata(self.partial / METADATA, metadata_text(files, topics, self._custom_data, self._ros_distro))
        os.rename(self.partial, self.folder)
        sync_folder(self.folder.parent)
        os.close(self._lock)
        return self.folder

    def abandon(self) -> None:
        """Let go after a failed write; what was written stays in the .partial folder, for `bag_recovery.recover`."""
        self._syncer.close()
        self._file.abandon()
        with contextlib.suppress(OSError):  # a disk that can only be read: the recovery tries again
            self.release_reserve()
        os.close(self._lock)

    def release_reserve(self) -> None:
        """Give back the space that was kept for the index."""
        (self.partial / RESERVE).unlink(missing_ok=True)

    def _is_full(self, log_time_ns: int) -> bool:
        entry = self._file.entry
        if not entry.count:
            return False
        by_time = self._split_ns is not None and log_time_ns - entry.start_ns >= self._split_ns
        return by_time or self._split_bytes is not None and self._file.size >= self._split_bytes

    def _split(self) -> None:
        self._syncer.wait()
        self._file.close()
        self._done.append(self._file)
        self._chunks = 0
        self._file = self._open()

    def _open(self) -> McapWriter:
        self._reserve(0)
        file = McapWriter(self.partial / f"{self.folder.name}_{len(self._done)}.mcap", self._custom_data)
        for topic, entry in self._topics.items():
            file.add_topic(topic, entry)
        return file

    def _reserve(self, chunks: int) -> None:
        """Keep enough space for the index: a disk that is full must not keep a recording from being completed."""
        needed = RESERVE_BYTES + RESERVE_PER_CHUNK * chunks
        if needed <= self._reserved:
            return
        with (self.partial / RESERVE).open("ab") as stream:
            os.posix_fallocate(stream.fileno(), 0, 2 * needed)
        self._reserved = 2 * needed


def _entry(type_name: str, qos: Sequence[Qos]) -> TopicEntry:
    return TopicEntry(type_name, definition_text(type_name)[1], 0, tuple(dict(profile) for profile in qos))
