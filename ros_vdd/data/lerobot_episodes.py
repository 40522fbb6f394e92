# SPDX-License-Identifier: Apache-2.0
"""Which episodes a LeRobotDataset holds, and in which file and at which time each of them lies."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ros_vdd.data.lerobot_info import LeRobotInfo, read_jsonl
from ros_vdd.data.lerobot_table import read_table
from ros_vdd.errors import DataError, suggest


@dataclass(frozen=True)
class VideoPlace:
    """Where one episode lies in one camera's video: from `start_s` until the next one; `shared` with others or not."""

    file: Path
    start_s: float
    shared: bool
    next_s: float = math.inf


@dataclass(frozen=True)
class LeRobotEpisode:
    """One episode before any of its frames is read.

    Attributes:
        tasks: what the operator was told, in words.
        row: what the episodes table says, as it is.
    """

    index: int
    length: int
    tasks: tuple[str, ...]
    data: Path
    videos: Mapping[str, VideoPlace]
    row: Mapping[str, Any] = field(repr=False, default_factory=dict)


def read_episodes(info: LeRobotInfo) -> list[LeRobotEpisode]:
    """Return all episodes, in the order of their numbers.

    Raises:
        DataError: the table is missing, damaged or empty, or a number stands there twice.
    """
    rows = _rows_v3(info) if info.version == "v3.0" else read_jsonl(info.root / "meta" / "episodes.jsonl")
    place = _place_v3 if info.version == "v3.0" else _place_v2
    try:
        episodes = sorted((place(info, row) for row in rows), key=lambda e: e.index)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        told = f"'{info.root}': the table of episodes lacks or misstates {error}"
        raise DataError(f"{told}; {suggest(str(error), rows[0])}") from error
    if not episodes:
        raise DataError(f"'{info.root}': the table of episodes is empty")
    numbers = [e.index for e in episodes]
    if twice := [n for n, m in zip(numbers, numbers[1:]) if n == m]:
        raise DataError(f"'{info.root}': episode {twice[0]} stands twice in the table of episodes")
    return _bounded(episodes)


def _bounded(episodes: list[LeRobotEpisode]) -> list[LeRobotEpisode]:
    """Return the episodes with the time at which the next one begins in each of their videos."""
    starts: dict[Path, list[float]] = {}
    for place in (p for e in episodes for p in e.videos.values() if p.shared):
        starts.setdefault(place.file, []).append(place.start_s)
    for found in starts.values():
        found.sort()

    def until(place: VideoPlace) -> VideoPlace:
        found = starts.get(place.file, [])
        later = bisect_right(found, place.start_s)
        return replace(place, next_s=found[later]) if later < len(found) else place

    return [replace(e, videos={key: until(place) for key, place in e.videos.items()}) for e in episodes]


def read_tasks(info: LeRobotInfo) -> dict[int, str]:
    """Return the text of each task by its number; empty where there is no table of them."""
    if info.version != "v3.0":
        path = info.root / "meta" / "tasks.jsonl"
        rows = read_jsonl(path) if path.is_file() else []
    else:
        path = info.root / "meta" / "tasks.parquet"
        rows = read_table(path).to_pylist() if path.is_file() else []
    return {int(row["task_index"]): _text(row) for row in rows if "task_index" in row}


def _text(row: Mapping[str, Any]) -> str:
    """Return the task's text: `task`, else the one other column, which pandas wrote as index."""
    return next((str(row[key]) for key in ("task", *row) if key in row and key != "task_index"), "")


def _rows_v3(info: LeRobotInfo) -> list[dict[str, Any]]:
    files = sorted((info.root / "meta" / "episodes").glob("*/*.parquet"))
    if not files:
        raise DataError(f"'{info.root}' has no meta/episodes/chunk-*/file-*.parquet; copy the data set with its folder meta")
    return [row for file in files for row in read_table(file, leave_out="stats/").to_pylist()]


def _place_v2(info: LeRobotInfo, row: Mapping[str, Any]) -> LeRobotEpisode:
    index = int(row["episode_index"])
    numbers = {"episode_chunk": index // info.chunks_size, "episode_index": index}
    filmed = [key for key, feature in info.features.items() if feature.dtype == "video"]
    videos = {key: VideoPlace(info.video_file(key, **numbers), 0.0, False) for key in filmed}
    return LeRobotEpisode(index, int(row["length"]), _texts(row), info.data_file(**numbers), videos, row)


def _place_v3(info: LeRobotInfo, row: Mapping[str, Any]) -> LeRobotEpisode:
    data = info.data_file(chunk_index=int(row["data/chunk_index"]), file_index=int(row["data/file_index"]))
    videos = {}
    for key in (k for k, f in info.features.items() if f.dtype == "video" and row.get(f"videos/{k}/file_index") is not None):
        at = f"videos/{key}"
        file = info.video_file(key, chunk_index=int(row[f"{at}/chunk_index"]), file_index=int(row[f"{at}/file_index"]))
        videos[key] = VideoPlace(file, float(row[f"{at}/from_timestamp"]), True)
    return LeRobotEpisode(int(row["episode_index"]), int(row["length"]), _texts(row), data, videos, row)


def _texts(row: Mapping[str, Any]) -> tuple[str, ...]:
    said = row.get("tasks") or ()
    return (said,) if isinstance(said, str) else tuple(map(str, said))
