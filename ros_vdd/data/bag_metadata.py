# SPDX-License-Identifier: Apache-2.0
"""The metadata.yaml of a rosbag2 recording: versions 1 to 9 read, version 9 written."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ros_vdd.config import Section, dump_yaml, read_yaml
from ros_vdd.errors import ConfigError, DataError

METADATA = "metadata.yaml"
VERSION = 9
TOP_KEY = "rosbag2_bagfile_information"


class TopicEntry(NamedTuple):
    """What metadata says of one topic."""

    type: str
    type_hash: str  # RIHS01
    count: int
    qos: tuple[Mapping[str, Any], ...] = ()  # profiles its publishers offer


class FileEntry(NamedTuple):
    """What metadata says of one file of a recording."""

    name: str
    start_ns: int
    duration_ns: int
    count: int


def read_metadata(path: Path) -> Section:
    """Return what stands below the top key of a metadata.yaml.

    Raises:
        DataError: not YAML, not the metadata of a recording, or of one that is compressed in another way than zstd.
    """
    try:
        metadata = read_yaml(path).get(TOP_KEY)
    except ConfigError as error:
        raise DataError(str(error)) from error
    files = metadata.get("relative_file_paths") if isinstance(metadata, Section) else None
    if not isinstance(files, list) or not files or not all(isinstance(f, str) for f in files):
        raise DataError(f"'{path}' is not the metadata of a recording; expected {TOP_KEY}: relative_file_paths")
    form = str(metadata.get("compression_format") or "zstd")
    if str(metadata.get("compression_mode") or "none").lower() != "none" and form != "zstd":
        raise DataError(f"'{path.parent}' is compressed as '{form}'; expected zstd. Write it again with `ros2 bag convert`")
    return metadata


def metadata_text(
    files: Sequence[FileEntry], topics: Mapping[str, TopicEntry], custom_data: Mapping[str, str], ros_distro: str
) -> str:
    """Return the metadata of a finished MCAP recording of one or more files."""
    held = [file for file in files if file.count] or files[:1]
    start_ns = min(file.start_ns for file in held)
    whole = FileEntry("", start_ns, max(f.start_ns + f.duration_ns for f in held) - start_ns, sum(f.count for f in files))
    content = {
        "version": VERSION,
        "storage_identifier": "mcap",
        **_span(whole),
        "topics_with_message_count": [_topic(name, entry) for name, entry in topics.items()],
        "compression_format": "",
        "compression_mode": "",
        "relative_file_paths": [file.name for file in files],
        "files": [{"path": file.name, **_span(file)} for file in files],
        "custom_data": custom_data,
        "ros_distro": ros_distro,
    }
    return dump_yaml({TOP_KEY: content})


def write_metadata(path: Path, text: str) -> None:
    """Write a metadata.yaml so that after a crash there is the old one or the new one, never half of one."""
    temporary = path.with_name(f".{path.name}")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def amend_custom_data(folder: Path, changes: Mapping[str, str]) -> None:
    """Change or add texts that travel with a finished recording.

    Raises:
        DataError: the folder holds no metadata of a recording.
        OSError: the disk refused; the metadata is as it was.
    """
    metadata = read_metadata(folder / METADATA)
    metadata["custom_data"] = {**(metadata.get("custom_data") or {}), **changes}
    write_metadata(folder / METADATA, dump_yaml({TOP_KEY: metadata}))


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _span(file: FileEntry) -> dict[str, Any]:
    return {
        "duration": {"nanoseconds": file.duration_ns},
        "starting_time": {"nanoseconds_since_epoch": file.start_ns},
        "message_count": file.count,
    }


def _topic(name: str, entry: TopicEntry) -> dict:
    described = {
        "name": name,
        "type": entry.type,
        "serialization_format": "cdr",
        "offered_qos_profiles": list(entry.qos),
        "type_description_hash": entry.type_hash,
    }
    return {"topic_metadata": described, "message_count": entry.count}
