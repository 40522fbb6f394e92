# SPDX-License-Identifier: Apache-2.0
"""Writes a LeRobotDataset v3.0 without the lerobot library: one parquet and one mp4 a camera for each episode, closed at once.

    meta/info.json  meta/stats.json  meta/tasks.parquet  meta/ros_vdd_robot.yaml
    meta/episodes/chunk-000/file-000.parquet        data/chunk-000/file-000.parquet
    videos/observation.images.NAME/chunk-000/file-000.mp4

An episode counts from the moment its row of the table of episodes appears, by one rename, after its other files. Whatever a
writer that died left behind is overwritten by the next one. Pictures are those of the policy: cropped and resized.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ros_vdd.config import dump_yaml, read_yaml
from ros_vdd.data.episode_check import check_episode
from ros_vdd.data.episodes import Episode, save_episode
from ros_vdd.data.lerobot_info import INFO, POLICY_VIEW, LeRobotInfo, read_json
from ros_vdd.data.lerobot_mapping import value_names
from ros_vdd.data.lerobot_stats import merge, picture_stats, vector_stats
from ros_vdd.data.lerobot_table import column, read_table
from ros_vdd.data.video_writer import Encoding, choose_encoding, write_video
from ros_vdd.errors import DataError
from ros_vdd.streams.spec import RobotSpec, robot_from_mapping

ROBOT = "meta/ros_vdd_robot.yaml"
CHUNK = 1000  # files in a folder
PLACE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
OWN = "ros_vdd/"  # columns of the table of episodes that are ours: what an episode was made from
ORIGIN = {"source": "", "source_sha256": "", "segment": 0, "last_segment": False}
SCALARS = {"timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64", "task_index": "int64"}


def stage_episode(robot: RobotSpec, video: str, folder: Path, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
    """Check one episode and encode its pictures into a new folder, which is part of no data set until `LeRobotWriter.take`.

    Raises:
        DataError: an array is missing, has the wrong shape or type, or the encoder refuses the pictures.
    """
    check_episode(robot, arrays)
    save_episode(folder, {k: arrays[k] for k in arrays if not k.startswith("images.")}, meta)
    for name, encoding in _encodings(robot, video).items():
        frames = arrays[f"images.{name}"]
        write_video(folder / f"{name}.mp4", frames, robot.rate_hz, encoding)
        np.savez(folder / f"{name}.npz", **picture_stats(frames))


class LeRobotWriter:
    """Appends episodes to a LeRobotDataset v3.0, creating it where it doesn't exist.

    Args:
        root: folder of the data set.
        robot: the robot file all its episodes share; a data set made for another one is refused.
        video: how pictures are written, one of `video_writer.KINDS`.

    Raises:
        DataError: the folder holds something else, or was made for another robot file.
    """

    def __init__(self, root: str | Path, robot: RobotSpec, video: str = "auto"):
        self.root, self.robot, self._video = Path(root), robot, video
        self._encodings = _encodings(robot, video)
        if (self.root / ROBOT).is_file():
            if differences := robot_from_mapping(read_yaml(self.root / ROBOT)).difference(robot):
                raise DataError(f"data set '{self.root}' was made for another robot file: {'; '.join(differences)}")
        elif self.root.is_file() or self.root.exists() and any(p.name[0] != "." for p in self.root.iterdir()):
            raise DataError(f"'{self.root}' exists and is no LeRobotDataset of ours; choose another --out")
        else:
            (self.root / "meta").mkdir(parents=True, exist_ok=True)
            _replace(self.root / ROBOT, dump_yaml(robot).encode())
        self._rows = self._read_rows()
        self._tasks = _read_tasks(self.root)

    def metas(self) -> Iterator[Mapping[str, Any]]:
        """Yield what each episode was made from, in order."""
        return ({key.removeprefix(OWN): row[key] for key in row if key.startswith(OWN)} for row in self._rows)

    def add(self, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> str:
        """Check and write one episode; return its name. Raises as `stage_episode`."""
        folder = self.root / ".staging"
        shutil.rmtree(folder, ignore_errors=True)
        stage_episode(self.robot, self._video, folder, arrays, meta)
        return self.take(folder)

    def take(self, folder: Path, **more: Any) -> str:
        """Make a staged episode the next one of the data set; return its name.

        Raises:
            DataError: it holds other arrays than the episodes before it.
        """
        episode, index = Episode(folder), len(self._rows)
        meta = {**episode.meta, **more}
        start = self._rows[-1]["dataset_to_index"] if self._rows else 0
        chunk, file = divmod(index, CHUNK)
        place = PLACE.format(chunk_index=chunk, file_index=file)
        tasks = self._task_numbers(episode, meta)
        features = self._features(episode)
        if self._rows:
            _require_equal(read_json(self.root / INFO)["features"], features, self.root)
        values = {name: episode[name][:] for name in _vectors(episode)}
        frame = np.arange(episode.length)
        bookkeeping = {"timestamp": (frame / self.robot.rate_hz).astype(np.float32), "frame_index": frame}
        bookkeeping |= {"episode_index": np.full(episode.length, index), "index": start + frame, "task_index": tasks}
        columns = {_feature_name(name): array for name, array in values.items()} | bookkeeping
        stats = {name: vector_stats(array) for name, array in columns.items()}
        row = {"episode_index": index, "tasks": [self._tasks[n] for n in dict.fromkeys(tasks.tolist())], "length": episode.length}
        row |= {"dataset_from_index": start, "dataset_to_index": start + episode.length}
        row |= {
            "data/chunk_index": chunk,
            "data/file_index": file,
            "meta/episodes/chunk_index": chunk,
            "meta/episodes/file_index": file,
        }
        for name in self.robot.cameras:
            key = f"observation.images.{name}"
            row |= {f"videos/{key}/chunk_index": chunk, f"videos/{key}/file_index": file}
            row |= {f"videos/{key}/from_timestamp": 0.0, f"videos/{key}/to_timestamp": episode.length / self.robot.rate_hz}
            with np.load(folder / f"{name}.npz", allow_pickle=False) as found:
                stats[key] = dict(found)
            _move(folder / f"{name}.mp4", self.root / f"videos/{key}/{place}.mp4")
        row |= {f"stats/{name}/{kind}": a.tolist() for name, found in stats.items() for kind, a in found.items()}
        row |= {
            OWN + key: type(default)(meta.get(key, default)) for key, default in ORIGIN.items()
        }  # the same columns in every file
        _write_table(self.root / f"data/{place}.parquet", _table(columns))
        _write_table(self.root / "meta/tasks.parquet", _tasks_table(self._tasks))
        if not self._rows:
            self._write_info(features)  # a row never stands without a description to read it by
        _write_table(self.root / f"meta/episodes/{place}.parquet", _rows_table([row]))
        self._rows.append(row)
        self._write_info(features)
        shutil.rmtree(folder)
        return f"episode {index}"

    def finish(self) -> None:
        """Write what sums up all episodes: counts, and the statistics, those of numbers exactly."""
        if not self._rows:
            return
        info = LeRobotInfo.read(self.root)
        files = [info.data_file(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"]) for row in self._rows]
        total = {}
        for name, feature in info.features.items():
            if feature.pictured:
                parts = [_stats_of(row, name) for row in self._rows]
                total[name] = merge(parts)
            else:
                total[name] = vector_stats(np.concatenate([column(read_table(f, only=name), name) for f in files]))
        plain = {name: {kind: a.tolist() for kind, a in found.items()} for name, found in total.items()}
        _replace(self.root / "meta/stats.json", json.dumps(plain, indent=4).encode())
        self._write_info({k: dict(f) for k, f in info.said["features"].items()})

    def _features(self, episode: Episode) -> dict[str, dict]:
        names = value_names(self.robot)
        features = {}
        for name in _vectors(episode):
            array = episode[name]
            shape = [int(n) for n in array.shape[1:]] or [1]
            told = names.get(name) if len(set(names.get(name, ()))) == shape[0] else None
            features[_feature_name(name)] = {"dtype": str(array.dtype), "shape": shape, "names": told}
        for name, encoding in self._encodings.items():
            height, width, _ = self.robot.cameras[name].output_shape
            said = {
                "video.height": height,
                "video.width": width,
                "video.codec": encoding.codec,
                "video.pix_fmt": encoding.pix_fmt,
            }
            said |= {
                "video.is_depth_map": False,
                "video.fps": self._fps,
                "video.channels": 3,
                "has_audio": False,
                POLICY_VIEW: True,
            }
            kind = {"dtype": "video", "shape": [height, width, 3], "names": ["height", "width", "channels"], "info": said}
            features[f"observation.images.{name}"] = kind
        return features | {name: {"dtype": dtype, "shape": [1], "names": None} for name, dtype in SCALARS.items()}

    @property
    def _fps(self) -> int | float:
        rate = self.robot.rate_hz
        return int(rate) if rate == int(rate) else rate

    def _task_numbers(self, episode: Episode, meta: Mapping[str, Any]) -> np.ndarray:
        """Return the number of each frame's task: the robot's goal where that is one of tasks, else what the recording says."""
        goal = self.robot.goal
        if goal is not None and goal.tasks:
            texts = [goal.tasks[int(place)] for place in episode["goal"].argmax(axis=1)]
        else:
            texts = [str(meta.get("task") or "")] * episode.length
        for text in texts:
            if text not in self._tasks:
                self._tasks.append(text)
        return np.array([self._tasks.index(text) for text in texts], np.int64)

    def _read_rows(self) -> list[dict[str, Any]]:
        files = sorted((self.root / "meta/episodes").glob("*/*.parquet"))
        rows = [row for file in files for row in read_table(file).to_pylist()]
        for k, row in enumerate(rows):
            if row["episode_index"] != k:
                raise DataError(f"data set '{self.root}': episode {k} is missing in meta/episodes; convert into a new folder")
        return rows

    def _write_info(self, features: Mapping[str, Any]) -> None:
        count = len(self._rows)
        info = {
            "codebase_version": "v3.0",
            "robot_type": self.robot.name,
            "total_episodes": count,
            "total_frames": self._rows[-1]["dataset_to_index"] if self._rows else 0,
            "total_tasks": len(self._tasks),
            "chunks_size": CHUNK,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "fps": self._fps,
            "splits": {"train": f"0:{count}"},
            "data_path": f"data/{PLACE}.parquet",
            "video_path": "videos/{video_key}/" + f"{PLACE}.mp4" if self.robot.cameras else None,
            "features": features,
        }
        _replace(self.root / INFO, json.dumps(info, indent=4).encode())


def _encodings(robot: RobotSpec, video: str) -> dict[str, Encoding]:
    return {name: choose_encoding(video, *camera.output_shape[:2]) for name, camera in robot.cameras.items()}


def _vectors(episode: Episode) -> list[str]:
    """Return the arrays that become columns: numbers of at most one axis beside the frames."""
    return [name for name in episode if episode[name].ndim <= 2 and episode[name].dtype.kind in "fiub"]


def _feature_name(name: str) -> str:
    return "observation.state" if name == "state" else name


def _require_equal(there: Mapping[str, Any], here: Mapping[str, Any], root: Path) -> None:
    lines = [
        f"'{n}' is {here.get(n, 'absent')} here, {there.get(n, 'absent')} there"
        for n in {**there, **here}
        if there.get(n) != here.get(n)
    ]
    if lines:
        raise DataError(f"data set '{root}' holds other features than this episode: {'; '.join(lines)}; choose another --out")


def _stats_of(row: Mapping[str, Any], name: str) -> dict[str, np.ndarray]:
    start = f"stats/{name}/"
    return {key.removeprefix(start): np.asarray(value) for key, value in row.items() if key.startswith(start)}


def _read_tasks(root: Path) -> list[str]:
    path = root / "meta/tasks.parquet"
    rows = sorted(read_table(path).to_pylist(), key=lambda r: r["task_index"]) if path.is_file() else []
    return [row["task"] for row in rows]


def _table(columns: Mapping[str, np.ndarray]):
    import pyarrow as pa

    def cells(values: np.ndarray):
        if values.ndim == 1 or values.shape[1] == 1:
            return pa.array(values.reshape(-1))
        return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1])

    return pa.table({name: cells(np.asarray(values)) for name, values in columns.items()})


def _rows_table(rows: list[dict[str, Any]]):
    import pyarrow as pa

    return pa.Table.from_pylist(rows)


def _tasks_table(tasks: list[str]):
    """Return the table as pandas writes it with the text as index, which is how lerobot reads it."""
    import pyarrow as pa

    described = [("task_index", "int64", "int64"), ("task", "unicode", "object")]
    columns = [{"name": n, "field_name": n, "pandas_type": p, "numpy_type": t, "metadata": None} for n, p, t in described]
    pandas = {"index_columns": ["task"], "column_indexes": [], "columns": columns, "pandas_version": "2.0.0"}
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "task": pa.array(tasks, pa.string())})
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def _write_table(path: Path, table) -> None:
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.partial")
    pq.write_table(table, staging.absolute(), write_page_checksum=True)
    os.replace(staging, path)


def _move(staged: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.replace(staged, path)


def _replace(path: Path, data: bytes) -> None:
    staging = path.with_name(f".{path.name}.partial")
    staging.write_bytes(data)
    os.replace(staging, path)
