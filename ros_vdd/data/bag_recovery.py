# SPDX-License-Identifier: Apache-2.0
"""Recordings that a crash, a kill or a full disk left as NAME.partial: completed, and given their name."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from ros_vdd.data.bag_metadata import METADATA, metadata_text, sync_folder, write_metadata
from ros_vdd.data.bag_writer import PARTIAL, RESERVE
from ros_vdd.data.folder_lock import lock_folder
from ros_vdd.data.mcap_repair import Repaired, repair
from ros_vdd.errors import DataError

RECOVERED_KEY = "ros_vdd.recovered"


class NothingLeft(DataError):
    """An unfinished recording holds no intact message."""


class Recovery(NamedTuple):
    """What became of an unfinished recording."""

    folder: Path
    counts: dict[str, int]
    custom_data: dict[str, str]


def unfinished(parent: Path) -> Iterator[Path]:
    """Yield the unfinished recordings in a folder that no living recorder holds, by name."""
    for partial in sorted(p for p in parent.glob(f"*{PARTIAL}") if p.is_dir()):
        try:
            os.close(lock_folder(partial))
        except (BlockingIOError, FileNotFoundError):  # gone: its recorder has just completed it
            continue
        except OSError:
            pass  # `recover` tells why
        yield partial


def recover(partial: Path, why: str, custom_data: Mapping[str, str] | None = None, ros_distro: str = "") -> Recovery:
    """Complete an unfinished recording of which at least one message is left.

    Args:
        partial: the NAME.partial folder.
        why: what happened, for whoever reads the custom data.
        custom_data: to be added to what travels inside.
        ros_distro: as in `BagWriter`.

    Raises:
        NothingLeft: no message is left.
        DataError: the damage is not of our recorder's files, or the name is taken.
        OSError: the disk refused.
        BlockingIOError: a living recorder holds it.
    """
    folder = partial.with_name(partial.name.removesuffix(PARTIAL))
    if folder.exists():
        raise DataError(f"'{partial}' isn't recovered: '{folder}' exists as well; rename one of them")
    lock = lock_folder(partial)
    try:
        for left in (partial / RESERVE, *partial.glob(".*.mcap")):
            left.unlink(missing_ok=True)
        parts = [repair(path) for path in sorted(partial.glob("*.mcap"), key=_number)]
        if not any(part.file.count for part in parts):
            raise NothingLeft(f"'{partial}' holds no message")
        topics = _together(parts)
        told = {**parts[0].custom_data, **parts[-1].custom_data, **(custom_data or {})}
        told[RECOVERED_KEY] = f"{why}; {sum(p.lost_bytes for p in parts)} bytes were of no intact chunk and are left out"
        files = [part.file for part in parts]
        write_metadata(partial / METADATA, metadata_text(files, topics, told, ros_distro))
        os.rename(partial, folder)
        sync_folder(folder.parent)
    finally:
        os.close(lock)
    return Recovery(folder, {topic: entry.count for topic, entry in topics.items()}, told)


def _together(parts: list[Repaired]) -> dict:
    topics: dict = {}
    for part in parts:
        for topic, entry in part.topics.items():
            before = topics[topic].count if topic in topics else 0
            topics[topic] = entry._replace(count=before + entry.count)
    return topics


def _number(path: Path) -> int:
    digits = path.stem.rpartition("_")[2]
    return int(digits) if digits.isdecimal() else 0
