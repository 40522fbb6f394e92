# SPDX-License-Identifier: Apache-2.0
"""The metadata.yaml of a rosbag2 recording: versions 1 to 9 read, version 9 written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

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


def read_metadata(path: Path) -> Section:
    """Return what stands below the top key of a metadata.yaml.

    Raises:
        DataError: not YAML, not the metadata of a recording, or of one that is compressed file by file.
    """
    try:
        metadata = read_yaml(path).get(TOP_KEY)
    except ConfigError as error:
        raise DataError(str(error)) from error
    files = metadata.get("relative_file_paths") if isinstance(metadata, Section) else None
    if not isinstance(files, list) or not files or not all(isinstance(f, str) for f in files):
        raise DataError(f"'{path}' is not the metadata of a recording; expected {TOP_KEY}: relative_file_paths")
    if str(metadata.get("compression_mode") or "none").lower() == "file":
        raise DataError(f"'{path.parent}' is compressed file by file; decompress it first with `ros2 bag convert`")
    return metadata


def metadata_text(
    file: str,
    topics: Mapping[str, TopicEntry],
    start_ns: int,
    duration_ns: int,
    custom_data: Mapping[str, str],
    ros_distro: str,
) -> str:
    """Return the metadata of a finished MCAP recording of one file."""
    span = {
        "duration": {"nanoseconds": duration_ns},
        "starting_time": {"nanoseconds_since_epoch": start_ns},
        "message_count": sum(entry.count for entry in topics.values()),
    }
    content = {
        "version": VERSION,
        "storage_identifier": "mcap",
        **span,
        "topics_with_message_count": [_topic(name, entry) for name, entry in topics.items()],
        "compression_format": "",
        "compression_mode": "",
        "relative_file_paths": [file],
        "files": [{"path": file, **span}],
        "custom_data": custom_data,
        "ros_distro": ros_distro,
    }
    return dump_yaml({TOP_KEY: content})


def _topic(name: str, entry: TopicEntry) -> dict:
    described = {
        "name": name,
        "type": entry.type,
        "serialization_format": "cdr",
        "offered_qos_profiles": [],
        "type_description_hash": entry.type_hash,
    }
    return {"topic_metadata": described, "message_count": entry.count}
