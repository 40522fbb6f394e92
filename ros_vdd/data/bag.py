# SPDX-License-Identifier: Apache-2.0
"""Reads a rosbag2 recording, MCAP or SQLite, without ROS.

What may be opened: a bag folder, a single .mcap, or a single .db3. A folder's metadata.yaml says which files belong
to the recording and in what order. An MCAP describes itself, so a folder of .mcap files without metadata.yaml is
read, with a warning; a folder of .db3 files without it is refused, because a missing split would go unnoticed.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from ros_vdd.config import Section, read_yaml
from ros_vdd.data.bag_file import BagChannel, BagFile
from ros_vdd.data.bag_mcap import McapFile
from ros_vdd.data.bag_sqlite import SqliteFile
from ros_vdd.data.cdr import Decode, decoder, full_name
from ros_vdd.errors import ConfigError, DataError, suggest

ROBOT_KEY, TASK_KEY = "ros_vdd.robot", "ros_vdd.task"  # what our recorder leaves in custom_data
STORAGE_OF_SUFFIX = {".mcap": "mcap", ".db3": "sqlite3"}


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

    def __init__(self, path: Path, storage: str, files: list[BagFile], metadata: Section, warnings: list[str]) -> None:
        self.path = path
        self.storage = storage
        self.warnings = [*warnings, *(f"left out: {d}" for f in files for d in f.damage)]
        self.custom_data = _custom_data(metadata, files)
        self._files = files
        self._distro = metadata.get("ros_distro")
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
        path = Path(path)
        if not path.exists():
            beside = path.parent.iterdir() if path.parent.is_dir() else ()
            raise DataError(f"no bag '{path}'; {suggest(path.name, (p.name for p in beside))}")
        metadata, names, warnings = _layout(path)
        storage = _storage(path, metadata, names)
        missing = [p.name for p in names if not p.is_file()]
        if missing:
            raise DataError(f"'{path}': metadata.yaml names {', '.join(missing)}, not in the folder; copy it all")
        files = [McapFile(p, recover) if storage == "mcap" else SqliteFile(p) for p in names]
        return cls(path, storage, files, metadata, warnings)

    def messages(self, topics: Iterable[str] | None = None) -> Iterator[BagMessage]:
        """Return an iterator over the decoded messages of some topics (None: all), earliest log time first.

        Raises:
            DataError: at once for an unknown topic, a type without definition or messages that are not CDR; while
                reading for a checksum that fails or bytes that are no message of the type.
        """
        chosen = list(self.topics if topics is None else topics)
        decoders = {topic: self._decoder(topic) for topic in chosen}
        return self._read(decoders)

    def _read(self, decoders: dict[str, Decode]) -> Iterator[BagMessage]:
        sources = [file.messages(decoders) for file in self._files]
        for raw in heapq.merge(*sources, key=lambda message: message.log_time_ns):
            try:
                message = decoders[raw.topic](raw.data)
            except DataError as error:
                raise DataError(f"'{self.path}', topic '{raw.topic}' at {raw.log_time_ns} ns: {error}") from error
            yield BagMessage(raw.topic, raw.log_time_ns, message)

    def _decoder(self, topic: str) -> Decode:
        if topic not in self._channels:
            raise DataError(f"'{self.path}' has no topic '{topic}'; {suggest(topic, self.topics)}")
        channels = self._channels[topic]
        encodings = sorted({c.encoding for c in channels} - {"cdr"})
        if encodings:
            raise DataError(f"'{self.path}', topic '{topic}': messages are '{encodings[0]}'; expected 'cdr' (ROS 2)")
        types = sorted({full_name(c.type) for c in channels})
        if len(types) > 1:
            raise DataError(f"'{self.path}', topic '{topic}' carries several types: {', '.join(types)}")
        return decoder(types[0], channels[0].definition, self._distro)


def _layout(path: Path) -> tuple[Section, list[Path], list[str]]:
    """Return the metadata, the files in order, and what is to be said about them."""
    if path.is_file():
        return Section(), [path], [f"'{path.name}' is read alone: other files of its recording are not looked for"]
    if (path / "metadata.yaml").is_file():
        metadata = _read_metadata(path / "metadata.yaml")
        # Only the name counts: up to metadata version 3 the paths held the folder's name at recording time.
        return metadata, [path / PurePath(p).name for p in metadata["relative_file_paths"]], []
    found = sorted(p for p in path.iterdir() if p.suffix in STORAGE_OF_SUFFIX)
    if not found:
        inside = suggest("metadata.yaml", (p.name for p in path.iterdir()))
        raise DataError(f"'{path}' is no bag: it holds no metadata.yaml, .mcap or .db3; {inside}")
    if any(p.suffix == ".db3" for p in found):
        raise DataError(
            f"'{path}' has no metadata.yaml, which a SQLite bag needs; write it again with "
            f"`ros2 bag reindex {path} -s sqlite3`, or give one file: {', '.join(p.name for p in found)}"
        )
    return Section(), found, [f"'{path}' has no metadata.yaml; reading {', '.join(p.name for p in found)}"]


def _read_metadata(path: Path) -> Section:
    try:
        metadata = read_yaml(path).get("rosbag2_bagfile_information")
    except ConfigError as error:
        raise DataError(str(error)) from error
    if not isinstance(metadata, Section) or not isinstance(metadata.get("relative_file_paths"), list):
        raise DataError(f"'{path}' is not the metadata of a rosbag2 recording; expected rosbag2_bagfile_information")
    if str(metadata.get("compression_mode") or "none").lower() == "file":
        raise DataError(f"'{path.parent}' is compressed file by file; decompress it first with `ros2 bag convert`")
    return metadata


def _storage(path: Path, metadata: Section, names: list[Path]) -> str:
    known = STORAGE_OF_SUFFIX.values()
    storage = metadata.get("storage_identifier") or STORAGE_OF_SUFFIX.get(names[0].suffix if names else "")
    if storage in known:
        return storage
    if path.suffix == ".bag":
        raise DataError(f"'{path}' is a ROS 1 bag; convert it with `rosbags-convert --src {path} --dst FOLDER`")
    raise DataError(f"'{path}' is stored as '{storage or path.suffix}'; {suggest(str(storage or path.suffix), known)}")


def _custom_data(metadata: Section, files: list[BagFile]) -> dict[str, str]:
    inside: dict[str, str] = {}
    for file in files:
        inside.update(file.metadata.get("ros_vdd", {}))
    return {**inside, **(metadata.get("custom_data") or {})}
