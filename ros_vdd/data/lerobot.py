# SPDX-License-Identifier: Apache-2.0
"""LeRobotDataset v2.0, v2.1 and v3.0 (parquet and mp4) as episodes, without the lerobot library.

Rows are 1 / fps apart; a policy at rate_hz takes every n-th, n = fps / rate_hz. A tick k has

    observation   of row k n
    action        of row k n + n - 1, the newest before the next tick: the rule of the bag converter

An episode's clock begins at its first row. A row's picture is the frame whose presentation time lies within half a period of
the row's time; counting alone would put every picture behind a dropped frame beside the wrong row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ros_vdd.data.frame_file import frame_array
from ros_vdd.data.goals import encode_goals
from ros_vdd.data.lerobot_check import metadata_warnings
from ros_vdd.data.lerobot_episodes import LeRobotEpisode, read_episodes, read_tasks
from ros_vdd.data.lerobot_info import BOOKKEEPING, POLICY_VIEW, LeRobotInfo, is_lerobot
from ros_vdd.data.lerobot_mapping import TASK, select
from ros_vdd.data.lerobot_pictures import embedded, policy_view
from ros_vdd.data.lerobot_table import column, read_table
from ros_vdd.data.lerobot_video import FrameReader
from ros_vdd.errors import ConfigError, DataError
from ros_vdd.streams.spec import CameraSpec, RobotSpec

__all__ = ["LeRobotReader", "episodes_from_lerobot", "is_lerobot"]
CLOCK_TOLERANCE = 0.5  # periods that a row may lie off its place


def episodes_from_lerobot(
    path: str | Path, robot: RobotSpec, mapping: Mapping[str, str]
) -> Iterator[tuple[dict[str, np.ndarray], dict[str, Any]]]:
    """Yield (arrays, meta) for each episode, as `LeRobotReader.read`."""
    reader = LeRobotReader(path, robot, mapping)
    return (reader.read(episode) for episode in reader.episodes)


class LeRobotReader:
    """A LeRobotDataset, open for reading into the arrays of one robot.

    Args:
        path: the folder that holds meta/info.json.
        robot: whose observation and action names and shapes are to be filled.
        mapping: our name -> feature, as `lerobot_mapping.select`.

    Attributes:
        episodes: all of them, before any frame is read.
        warnings: where the metadata contradicts the files, in words.

    Raises:
        DataError: not a data set this reads, no episodes, a rate that doesn't fit the robot's, a feature that is missing or has
            another shape, or a camera without any video file.
    """

    def __init__(self, path: str | Path, robot: RobotSpec, mapping: Mapping[str, str]):
        self.info, self.robot = LeRobotInfo.read(Path(path)), robot
        self.selections = select(robot, mapping, self.info)
        self.stride = _stride(self.info, robot)
        self.episodes = read_episodes(self.info)
        self._tasks = read_tasks(self.info)
        self._tables = lru_cache(maxsize=1)(read_table)  # many episodes of v3.0 share a file
        self.warnings = metadata_warnings(self.info, self.episodes, self._tasks)
        self._require_videos()

    def read(self, episode: LeRobotEpisode) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return (arrays, meta) of one episode.

        Returns:
            arrays: "images.NAME" (N, H, W, 3) uint8, "state" (N, S) float32, "goal" (N, G) float32, "action" (N, A) float32,
                "stamp_ns" (N,) int64, and every other column of numbers as "extra.NAME".
            meta: source, episode, task, what was mapped, warnings.

        Raises:
            DataError: a file is missing or damaged, the number of rows isn't the episode's length, the rows aren't 1 / fps
                apart, or a picture is missing.
        """
        where = f"'{self.info.root}', episode {episode.index}"
        table = self._rows(episode, where)
        warnings = list(self.warnings)
        times_s = self._times(table, where, warnings)
        count = len(times_s) // self.stride
        if count == 0:
            raise DataError(f"{where} has {len(times_s)} rows, fewer than one period of the robot ({self.stride} rows)")
        seen = np.arange(count) * self.stride
        acted = seen + self.stride - 1
        arrays: dict[str, np.ndarray] = {}
        for ours, (feature, columns) in self.selections.items():
            if ours.startswith("images."):
                camera = self.robot.cameras[ours.removeprefix("images.")]
                arrays[ours] = self._pictures(table, episode, feature, camera, times_s, seen)
            elif feature == TASK:
                arrays[ours] = self._goals(table, episode, where)[seen]
            else:
                values = _column(table, feature, where).reshape(len(times_s), -1)
                values = values if columns is None else values[:, list(columns)]
                values = np.ascontiguousarray(values[acted if ours == "action" else seen], dtype=np.float32)
                arrays[ours] = encode_goals(values, self.robot.goal) if ours == "goal" else values
        arrays["stamp_ns"] = self._stamps(table, where, times_s)[seen]
        arrays |= self._extras(table, seen, warnings, where)
        meta = {
            "source": self.info.root.name,
            "source_format": f"lerobot {self.info.version}",
            "episode": episode.index,
            "task": self._task(table, episode),
            "mapped": sorted({s.feature for s in self.selections.values()}),
            "warnings": warnings,
        }
        return arrays, meta

    def _require_videos(self) -> None:
        """Refuse a camera whose feature has no file at all; a single missing file is told when its episode is read."""
        for ours, (feature, _) in self.selections.items():
            if not ours.startswith("images.") or self.info.features[feature].dtype != "video":
                continue
            files = {e.videos[feature].file for e in self.episodes if feature in e.videos}
            if not any(file.is_file() for file in files):
                placed = [(key, place.file) for e in self.episodes for key, place in e.videos.items()]
                others = sorted({key for key, file in placed if file.is_file()})
                first = f", such as '{min(files)}'" if files else ""
                raise DataError(
                    f"'{self.info.root}': feature '{feature}' for '{ours}' is named in info.json but has no video file{first}; "
                    f"features with files: {', '.join(others) or 'none'}"
                )

    def _rows(self, episode: LeRobotEpisode, where: str):
        import pyarrow.compute as pc

        table = self._tables(episode.data)
        if "episode_index" in table.column_names:
            table = table.filter(pc.equal(table["episode_index"], episode.index))
        if table.num_rows != episode.length:
            raise DataError(
                f"{where}: '{episode.data.name}' holds {table.num_rows} rows of it, the table of episodes says {episode.length}; "
                "copy the data set again"
            )
        if "frame_index" in table.column_names and (column(table, "frame_index").ravel() != np.arange(table.num_rows)).any():
            raise DataError(f"{where}: frame_index doesn't count from 0; rows are missing or out of order")
        return table

    def _times(self, table, where: str, warnings: list[str]) -> np.ndarray:
        """Return the time of each row since the first, [s]."""
        if "timestamp" not in table.column_names:
            raise DataError(f"{where} has no column 'timestamp'; {', '.join(table.column_names)} are there")
        stamps = _column(table, "timestamp", where).reshape(-1).astype(np.float64)
        times_s, period = stamps - stamps[0], 1 / self.info.fps
        if abs(stamps[0]) > CLOCK_TOLERANCE * period:
            warnings.append(f"timestamps begin at {stamps[0]:.3f} s; pictures are matched from the first row on")
        off = np.abs(times_s - np.arange(len(times_s)) * period)
        if not (off <= CLOCK_TOLERANCE * period).all():
            row = int(np.argmax(~(off <= CLOCK_TOLERANCE * period)))
            raise DataError(
                f"{where}: row {row} stands {times_s[row]:.4f} s after the first; at {self.info.fps:g} Hz expected "
                f"{row * period:.4f} s. Rows are missing, or 'fps' in info.json is wrong"
            )
        return times_s

    def _stamps(self, table, where: str, times_s: np.ndarray) -> np.ndarray:
        if "stamp_ns" in table.column_names:  # written by us: the stamps of the recording itself
            return _column(table, "stamp_ns", where).reshape(-1).astype(np.int64)
        return np.rint(np.arange(len(times_s)) * (1e9 / self.info.fps)).astype(np.int64)

    def _pictures(self, table, episode: LeRobotEpisode, feature: str, camera: CameraSpec, times_s: np.ndarray, seen: np.ndarray):
        said = self.info.features[feature]
        as_is = bool(said.info.get(POLICY_VIEW))
        if said.dtype == "image":
            frames = (embedded(table[feature][row].as_py(), said.shape, feature) for row in seen.tolist())
        elif feature not in episode.videos:
            raise DataError(f"'{self.info.root}', episode {episode.index}: the table of episodes names no video of '{feature}'")
        else:
            place = episode.videos[feature]
            frames = FrameReader(place.file, self.info.fps, place.next_s).at(place.start_s + times_s[seen])
        out = frame_array((len(seen), *camera.output_shape))
        for k, frame in enumerate(frames):
            out[k] = policy_view(frame, camera, as_is, f"'{self.info.root}', feature '{feature}'")
        return out

    def _goals(self, table, episode: LeRobotEpisode, where: str) -> np.ndarray:
        goal = self.robot.goal
        if TASK not in table.column_names:
            raise DataError(f"{where} has no column '{TASK}' for 'goal'; say which with --map goal=FEATURE")
        numbers = _column(table, TASK, where).reshape(-1)
        vectors = {}
        for number in np.unique(numbers).tolist():
            text = self._tasks.get(number, "")
            try:
                vectors[number] = goal.encode(text or number)
            except ConfigError as error:
                raise DataError(f"{where}: task {number} for 'goal': {error}") from error
        return np.stack([vectors[n] for n in numbers.tolist()])

    def _task(self, table, episode: LeRobotEpisode) -> str:
        numbers = np.unique(column(table, TASK)).tolist() if TASK in table.column_names else []
        told = [self._tasks[n] for n in numbers if n in self._tasks]
        return "; ".join(told or episode.tasks)

    def _width(self, feature: str) -> int:
        shape = self.info.features[feature].shape
        return shape[0] if shape else 1

    def _extras(self, table, seen: np.ndarray, warnings: list[str], where: str) -> dict[str, np.ndarray]:
        whole = {s.feature for s in self.selections.values() if s.columns is None or len(s.columns) == self._width(s.feature)}
        extras = {}
        for name in table.column_names:
            if name in whole or name in (*BOOKKEEPING, "stamp_ns") or name in self.info.pictures:
                continue
            try:
                values = column(table, name)[seen]
            except DataError as error:
                warnings.append(f"left out: {error}")
                continue
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                warnings.append(f"left out: column '{name}' holds NaN or infinity")
                continue
            kept = _array_name(name)
            if kept in extras:
                warnings.append(f"left out: column '{name}' would be '{kept}', which another column is already")
                continue
            extras[kept] = values
        return extras


def _stride(info: LeRobotInfo, robot: RobotSpec) -> int:
    """Return how many rows make a period of the robot."""
    ratio = info.fps / robot.rate_hz
    if round(ratio) < 1 or abs(ratio - round(ratio)) > 1e-6 * ratio:
        raise DataError(
            f"'{info.root}' has {info.fps:g} rows a second, robot '{robot.name}' asks for {robot.rate_hz:g} Hz; expected the "
            "same rate or a whole multiple of it. Change rate_hz: nothing is resampled here"
        )
    return round(ratio)


def _array_name(column_name: str) -> str:
    """Return the array's name: letters, digits and _ after the prefix, which our own columns have already."""
    prefix, dot, rest = column_name.partition(".")
    if not dot or prefix not in ("extra", "age_ns"):
        prefix, rest = "extra", column_name
    return f"{prefix}.{re.sub('[^A-Za-z0-9_]', '_', rest) or '_'}"


def _column(table, name: str, where: str) -> np.ndarray:
    if name not in table.column_names:
        raise DataError(f"{where} has no column '{name}', which info.json names; there are {', '.join(table.column_names)}")
    try:
        return column(table, name)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
