# SPDX-License-Identifier: Apache-2.0
"""One SQLite file of a bag: its channels and raw messages in log-time order."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import apsw
from rosbags.interfaces import MessageDefinitionFormat
from rosbags.rosbag2 import Reader, ReaderError

from ros_vdd.data.bag_file import BagChannel, RawMessage
from ros_vdd.data.cdr import Definition
from ros_vdd.errors import DataError

ENCODINGS = {MessageDefinitionFormat.MSG: "ros2msg", MessageDefinitionFormat.IDL: "ros2idl"}


class SqliteFile:
    """A .db3 file of a rosbag2 recording.

    Raises:
        DataError: not a rosbag2 database, or damaged; SQLite's own tools recover one (`sqlite3 FILE .recover`).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damage: list[str] = []
        self.metadata: dict[str, dict[str, str]] = {}
        try:
            with Reader(path) as reader:
                self.channels = [_channel(c) for c in reader.connections]
        except (ReaderError, apsw.Error) as error:
            raise self._damaged(error) from error

    def messages(self, topics: Collection[str]) -> Iterator[RawMessage]:
        """Yield the messages of some topics, earliest log time first.

        Raises:
            DataError: the database is damaged.
        """
        try:
            with Reader(self.path) as reader:
                wanted = [c for c in reader.connections if c.topic in topics]
                for connection, log_time_ns, data in reader.messages(wanted) if wanted else ():
                    yield RawMessage(connection.topic, log_time_ns, bytes(data))
        except (ReaderError, apsw.Error) as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> DataError:
        return DataError(
            f"'{self.path}' can't be read as a rosbag2 database: {error}. "
            "If it was cut off, try `sqlite3 FILE .recover` on a copy"
        )


def _channel(connection) -> BagChannel:
    encoding = ENCODINGS.get(connection.msgdef.format)
    definition = Definition(connection.msgdef.data, encoding) if encoding else Definition()
    form = connection.ext.serialization_format
    return BagChannel(connection.id, connection.topic, connection.msgtype, form, definition, connection.msgcount)
