# SPDX-License-Identifier: Apache-2.0
"""What `ros-vdd convert` can read, unit by unit: a bag, one episode of a data set, a replay buffer, a simulator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ros_vdd import envs
from ros_vdd.errors import DataError
from ros_vdd.streams.spec import RobotSpec

ENV = "env:"
Arrays = Mapping[str, np.ndarray]
VERDICTS = ("accept", "warn", "reject")  # from best to worst


@dataclass(frozen=True)
class Options:
    """How sources are read; plain values, so that they travel to other processes."""

    mapping: tuple[tuple[str, str], ...] = ()
    seed: int = 0
    recover: bool = False
    clock: str | None = None
    stale: str = "drop"
    only: str | None = None


@dataclass(frozen=True)
class Unit:
    """A part of a source that is converted in one go.

    Attributes:
        kind: "bag", "lerobot", "replay_buffer", "store" or "env".
        number: which of a data set's episodes, by its place; None for all.
    """

    kind: str
    source: str
    number: int | None = None

    @property
    def title(self) -> str:
        """What a person calls it."""
        return self.source if self.number is None else f"{self.source} episode {self.number}"


def find_units(source: str, robot: RobotSpec, options: Options) -> list[Unit]:
    """Return the units of a source, in order.

    Raises:
        DataError: it is nothing that can be read, or doesn't fit the robot.
    """
    kind = kind_of(source)
    if kind == "lerobot":
        return [Unit(kind, source, k) for k in range(len(_lerobot(source, robot, options).episodes))]
    if kind == "store":
        return [Unit(kind, source, k) for k in range(len(_store(source, robot)))]
    return [Unit(kind, source)]


def kind_of(source: str) -> str:
    """Return which kind of source it is.

    Raises:
        DataError: there is nothing, or a zarr of something else.
    """
    if source.startswith(ENV):
        return "env"
    path = Path(source)
    if not path.exists():
        raise DataError(f"no file or folder '{source}'")
    from ros_vdd.data.lerobot_info import is_lerobot
    from ros_vdd.data.replay_buffer import is_replay_buffer

    if (path / "store.yaml").is_file():
        return "store"
    if is_lerobot(path):
        return "lerobot"
    if is_replay_buffer(path):
        return "replay_buffer"
    if path.suffix == ".zarr":
        raise DataError(f"'{path}' has no meta/episode_ends; it isn't a replay buffer in Diffusion Policy's layout")
    return "bag"


def content_key(unit: Unit, robot: RobotSpec, options: Options) -> str:
    """Return the sha256 of what a unit holds, whatever it is called."""
    from ros_vdd.data.content_hash import hash_files, hash_folder

    path = Path(unit.source)
    if unit.kind == "bag":
        from ros_vdd.data.bag_layout import find_layout

        return hash_files(find_layout(path).files)
    if unit.kind == "lerobot":
        episode = _lerobot(unit.source, robot, options).episodes[unit.number]
        files = [episode.data, *(place.file for place in episode.videos.values())]
        return hash_files([f for f in files if f.is_file()], "lerobot", episode.index)
    if unit.kind == "store":
        return hash_folder(_store(unit.source, robot)[unit.number].path)
    if unit.kind == "replay_buffer":
        return hash_folder(path)
    return hash_files([], unit.source, options.seed)


def verdict_of(unit: Unit, robot: RobotSpec) -> str:
    """Return what the recorder judged of a take; "accept" where it said nothing."""
    if unit.kind == "bag":
        from ros_vdd.data.bag_layout import METADATA, find_layout
        from ros_vdd.data.bag_mcap import McapFile

        layout = find_layout(Path(unit.source))
        said = layout.metadata.get("custom_data")
        said = said if isinstance(said, dict) else {}
        if not said and not (layout.path / METADATA).is_file() and layout.storage == "mcap":
            said = McapFile(layout.files[0], recover=True).metadata.get("ros_vdd", {})
        return str(said.get("ros_vdd.verdict", "accept"))
    if unit.kind == "store":
        return str(_store(unit.source, robot)[unit.number].meta.get("verdict", "accept"))
    return "accept"


def read(unit: Unit, robot: RobotSpec, options: Options) -> Iterator[tuple[Arrays, dict[str, Any]]]:
    """Yield (arrays, meta) of a unit's episodes.

    Raises:
        DataError: whatever the reader of its kind says.
    """
    if unit.kind == "env":
        return envs.demonstrations(unit.source.removeprefix(ENV), options.seed)
    if unit.kind == "store":
        episode = _store(unit.source, robot)[unit.number]
        return iter([(episode, dict(episode.meta))])
    if unit.kind == "lerobot":
        reader = _lerobot(unit.source, robot, options)
        return iter([reader.read(reader.episodes[unit.number])])
    if unit.kind == "replay_buffer":
        from ros_vdd.data.replay_buffer import episodes_from_replay_buffer

        return episodes_from_replay_buffer(unit.source, robot, dict(options.mapping))
    from ros_vdd.data.bag_convert import episodes_from_bag

    return episodes_from_bag(unit.source, robot, options.recover, options.clock, options.stale)


_OPEN: dict[tuple, Any] = {}  # the data set that was opened last, in this process: its episodes share tables


def _lerobot(source: str, robot: RobotSpec, options: Options):
    from ros_vdd.data.lerobot import LeRobotReader

    key = (source, robot.fingerprint(), options.mapping)
    if key not in _OPEN:
        _OPEN.clear()
        _OPEN[key] = LeRobotReader(source, robot, dict(options.mapping))
    return _OPEN[key]


def _store(source: str, robot: RobotSpec):
    from ros_vdd.data.episodes import EpisodeStore

    key = (source, robot.fingerprint())
    if key not in _OPEN:
        store = EpisodeStore(source)
        if differences := store.robot.difference(robot):
            raise DataError(f"store '{source}' was made for another robot file: {'; '.join(differences)}")
        _OPEN.clear()
        _OPEN[key] = store
    return _OPEN[key]
