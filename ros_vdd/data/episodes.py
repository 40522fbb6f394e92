# SPDX-License-Identifier: Apache-2.0
"""The episode store: one folder an episode, one plain `.npy` an array, opened by memory map.

    STORE/store.yaml                     format and the robot file the data was made with
    STORE/episode_000000/meta.yaml       length, source, shapes and types of the arrays
    STORE/episode_000000/images.top.npy  (N, H, W, 3) uint8      state.npy (N, S) float32     action.npy (N, A) float32
                         stamp_ns.npy    (N,) int64              age_ns.NAME.npy (N,) int64   extra.NAME.npy (N, ...)
                         goal.npy        (N, G) float32, of a robot with a goal
    STORE/.left_out/episode_000000/      what a person moved there: read by nothing, converted no second time

An episode appears by one rename, so a store is usable at every moment, also after a crash.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ros_vdd.config import build, dump_yaml, read_yaml
from ros_vdd.data.episode_check import check_episode
from ros_vdd.errors import ConfigError, DataError, suggest
from ros_vdd.streams.spec import RobotSpec

FORMAT = "ros_vdd/episodes/1"
LEFT_OUT = ".left_out"


@dataclass(frozen=True)
class _StoreHead:
    format: str
    robot: RobotSpec


@dataclass(frozen=True)
class _ArrayHead:
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class _EpisodeHead:
    length: int
    meta: dict[str, Any]
    arrays: dict[str, _ArrayHead]


def _build(cls, path: Path):
    try:
        return build(cls, read_yaml(path))
    except ConfigError as error:
        raise DataError(f"the episode store is damaged: {error}; convert again") from error


class Episode(Mapping):
    """Arrays of one demonstration by name, memory-mapped, all of the same length."""

    def __init__(self, path: Path):
        self.path = path
        head = _build(_EpisodeHead, path / "meta.yaml")
        self.length, self.meta, self._arrays = head.length, head.meta, head.arrays

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._arrays:
            raise DataError(f"episode '{self.path}' has no array '{name}'; {suggest(name, self._arrays)}")
        try:
            array = np.lib.format.open_memmap(self.path / f"{name}.npy", mode="r")  # refuses pickled objects
        except (OSError, ValueError) as error:
            raise DataError(f"'{self.path / name}.npy' can't be read ({error}); convert the episode again") from error
        said = self._arrays[name]
        if array.shape != said.shape or str(array.dtype) != said.dtype or len(array) != self.length:
            raise DataError(
                f"'{self.path / name}.npy' holds {array.dtype}{array.shape}, meta.yaml says {said.dtype}{said.shape} and "
                f"{self.length} frames; convert the episode again"
            )
        return array

    def __contains__(self, name: object) -> bool:
        return name in self._arrays

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


def save_episode(folder: Path, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
    """Write arrays of one length and their description into a new folder, which `Episode` reads."""
    folder.mkdir()
    for key, array in arrays.items():
        np.save(folder / f"{key}.npy", np.ascontiguousarray(array), allow_pickle=False)
    described = {k: {"shape": list(a.shape), "dtype": str(a.dtype)} for k, a in arrays.items()}
    text = dump_yaml({"length": len(next(iter(arrays.values()))), "meta": dict(meta), "arrays": described})
    (folder / "meta.yaml").write_text(text, encoding="utf-8")


def stage_episode(robot: RobotSpec, folder: Path, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
    """Check one episode and write it into a new folder, which is part of no store until `EpisodeWriter.take`.

    Raises:
        DataError: an array is missing, has the wrong shape or type, or holds a value that isn't finite.
    """
    check_episode(robot, arrays)
    save_episode(folder, arrays, meta)


class EpisodeStore:
    """All episodes of a store, in order."""

    def __init__(self, root: str | Path):
        """Open a store.

        Raises:
            DataError: there is no store, or its description isn't valid.
        """
        self.root = Path(root)
        if not (self.root / "store.yaml").is_file():
            raise DataError(f"'{self.root}' is not an episode store (no store.yaml); make one with ros-vdd convert")
        head = _build(_StoreHead, self.root / "store.yaml")
        if head.format != FORMAT:
            raise DataError(f"'{self.root}/store.yaml': format is '{head.format}'; this version reads '{FORMAT}'")
        self.robot: RobotSpec = head.robot
        self.names = sorted(p.name for p in self.root.glob("episode_*") if p.is_dir())

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Episode:
        return Episode(self.root / self.names[index])

    def __iter__(self) -> Iterator[Episode]:
        return (self[i] for i in range(len(self)))

    def fingerprint(self) -> str:
        """Return a sha256 over robot, episode names and their actions and stamps: which data a policy was trained on."""
        digest = hashlib.sha256(self.robot.fingerprint().encode())
        for name, episode in zip(self.names, self):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(episode["action"]).tobytes())
            digest.update(np.ascontiguousarray(episode["stamp_ns"]).tobytes())
            if self.robot.goal:
                digest.update(np.ascontiguousarray(episode["goal"]).tobytes())
        return digest.hexdigest()


class EpisodeWriter:
    """Appends episodes to a store, creating it when it doesn't exist.

    Args:
        root: folder of the store.
        robot: the robot file all its episodes share; an existing store made for another one is refused.
    """

    def __init__(self, root: str | Path, robot: RobotSpec):
        self.root, self.robot = Path(root), robot
        if (self.root / "store.yaml").exists():
            differences = EpisodeStore(self.root).robot.difference(robot)
            if differences:
                raise DataError(f"store '{self.root}' was made for another robot file: {'; '.join(differences)}")
        elif self.root.is_file() or self.root.exists() and any(p.name[0] != "." for p in self.root.iterdir()):
            raise DataError(f"'{self.root}' exists and is no episode store; choose another --out")
        else:
            self.root.mkdir(parents=True, exist_ok=True)
            text = dump_yaml({"format": FORMAT, "robot": robot})
            (self.root / ".store.yaml").write_text(text, encoding="utf-8")
            os.replace(self.root / ".store.yaml", self.root / "store.yaml")  # never half of it
        folders = [*self.root.glob("episode_*"), *self._left_out()]
        numbers = [int(p.name[8:]) for p in folders if p.name[8:].isdigit()]
        self._next = max(numbers, default=-1) + 1

    def add(self, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> str:
        """Check and write one episode; return its name.

        Raises:
            DataError: an array is missing, has the wrong shape or type, or holds a value that isn't finite.
        """
        staging = self.root / f".episode_{self._next:06d}.partial"
        shutil.rmtree(staging, ignore_errors=True)
        stage_episode(self.robot, staging, arrays, meta)
        return self.take(staging)

    def take(self, folder: Path, **more: Any) -> str:
        """Make a staged episode the next one of the store, by one rename; return its name.

        Args:
            folder: what `stage_episode` wrote, on the same file system.
            more: what is known of it only now, for its meta.
        """
        if more:
            head = dict(read_yaml(folder / "meta.yaml"))
            (folder / "meta.yaml").write_text(dump_yaml({**head, "meta": {**head["meta"], **more}}), encoding="utf-8")
        name = f"episode_{self._next:06d}"
        os.replace(folder, self.root / name)
        self._next += 1
        return name

    def metas(self) -> Iterator[Mapping[str, Any]]:
        """Yield the meta of each episode, in order, then of those that were left out and can be read."""
        yield from (episode.meta for episode in EpisodeStore(self.root))
        for folder in self._left_out():
            with suppress(DataError):  # a damaged one is converted again
                yield Episode(folder).meta

    def finish(self) -> None:
        """Do nothing: a store is complete at every moment."""

    def _left_out(self) -> list[Path]:
        return sorted(p for p in (self.root / LEFT_OUT).glob("episode_*") if p.is_dir())
