# SPDX-License-Identifier: Apache-2.0
"""The episode store: one folder an episode, one plain `.npy` an array, opened by memory map.

    STORE/store.yaml                     format and the robot file the data was made with
    STORE/episode_000000/meta.yaml       length, source, shapes and types of the arrays
    STORE/episode_000000/images.top.npy  (N, H, W, 3) uint8      state.npy (N, S) float32     action.npy (N, A) float32
                         stamp_ns.npy    (N,) int64              age_ns.NAME.npy (N,) int64   extra.NAME.npy (N, ...)
                         goal.npy        (N, G) float32, of a robot with a goal

An episode appears by one rename, so a store is usable at every moment, also after a crash.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ros_vdd.config import build, dump_yaml, read_yaml
from ros_vdd.errors import ConfigError, DataError, suggest
from ros_vdd.streams.spec import RobotSpec

FORMAT = "ros_vdd/episodes/1"
_ARRAY_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?")


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
        elif self.root.is_file() or self.root.exists() and any(self.root.iterdir()):
            raise DataError(f"'{self.root}' exists and is no episode store; choose another --out")
        else:
            self.root.mkdir(parents=True, exist_ok=True)
            text = dump_yaml({"format": FORMAT, "robot": robot})
            (self.root / "store.yaml").write_text(text, encoding="utf-8")
        numbers = [int(p.name[8:]) for p in self.root.glob("episode_*") if p.name[8:].isdigit()]
        self._next = max(numbers, default=-1) + 1

    def add(self, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> str:
        """Check and write one episode; return its name.

        Raises:
            DataError: an array is missing, has the wrong shape or type, or holds a value that isn't finite.
        """
        length = self._check(arrays)
        name = f"episode_{self._next:06d}"
        staging = self.root / f".{name}.partial"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        for key, array in arrays.items():
            np.save(staging / f"{key}.npy", np.ascontiguousarray(array), allow_pickle=False)
        described = {k: {"shape": list(a.shape), "dtype": str(a.dtype)} for k, a in arrays.items()}
        text = dump_yaml({"length": length, "meta": dict(meta), "arrays": described})
        (staging / "meta.yaml").write_text(text, encoding="utf-8")
        os.replace(staging, self.root / name)
        self._next += 1
        return name

    def _check(self, arrays: Mapping[str, np.ndarray]) -> int:
        expected = {
            k: (s, np.uint8 if k.startswith("images.") else np.float32) for k, s in self.robot.observation_shapes().items()
        }
        expected["action"] = ((self.robot.action_size,), np.float32)
        if self.robot.goal:
            expected["goal"] = ((self.robot.goal_size,), np.float32)
        elif "goal" in arrays:
            raise DataError(
                f"episode holds 'goal', but robot '{self.robot.name}' has no section 'goal'; add it, or call the array extra.goal"
            )
        expected["stamp_ns"] = ((), np.int64)
        missing = expected.keys() - arrays.keys()
        if missing:
            raise DataError(f"episode lacks {', '.join(sorted(missing))}; it holds {', '.join(sorted(arrays))}")
        length = len(arrays["action"])
        if length == 0:
            raise DataError("episode has no frames")
        for key, array in arrays.items():
            if not _ARRAY_NAME.fullmatch(key):
                raise DataError(f"array name '{key}': expected letters, digits and _, with at most one dot")
            shape, dtype = expected.get(key, (array.shape[1:], array.dtype))
            if array.shape != (length, *shape) or array.dtype != dtype:
                raise DataError(f"array '{key}' is {array.dtype}{array.shape}; expected {np.dtype(dtype)}{(length, *shape)}")
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise DataError(
                    f"array '{key}' holds NaN or infinity, first at frame {int(np.argwhere(~np.isfinite(array))[0][0])}"
                )
        self._check_goal(arrays)
        return length

    def _check_goal(self, arrays: Mapping[str, np.ndarray]) -> None:
        for frame, goal in enumerate(arrays["goal"] if self.robot.goal else ()):
            try:
                self.robot.goal.encode(goal)
            except ConfigError as error:
                raise DataError(f"array 'goal', frame {frame}: {error}") from error
