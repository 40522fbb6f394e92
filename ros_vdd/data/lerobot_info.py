# SPDX-License-Identifier: Apache-2.0
"""What `meta/info.json` of a LeRobotDataset (v2.0, v2.1, v3.0) says: rate, features, and where the files lie."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ros_vdd.errors import DataError, suggest

INFO = "meta/info.json"
VERSIONS = ("v2.0", "v2.1", "v3.0")
BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")
POLICY_VIEW = "ros_vdd.policy_view"  # in a camera's info: crop and resize of the robot file were applied already
MAX_JSON_BYTES = 64 << 20
_PLACE = re.compile(r"\{(\w+)(?::0?(\d)d)?\}")


@dataclass(frozen=True)
class Feature:
    """One column or video of a data set.

    Attributes:
        dtype: "video", "image", or the numpy name of its numbers.
        shape: of one frame; (height, width, channels) of pictures.
        names: of the values, empty where none are given.
        info: what is said of a video.
    """

    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...]
    info: Mapping[str, Any]

    @property
    def pictured(self) -> bool:
        """Whether it holds pictures."""
        return self.dtype in ("video", "image")


@dataclass(frozen=True)
class LeRobotInfo:
    """The head of a data set; `said` is info.json as it is."""

    root: Path
    version: str
    fps: float
    features: Mapping[str, Feature]
    data_path: str
    video_path: str
    chunks_size: int
    said: Mapping[str, Any]

    @classmethod
    def read(cls, root: Path) -> LeRobotInfo:
        """Read meta/info.json.

        Raises:
            DataError: it is missing, not JSON, of another version, or lacks what every data set has.
        """
        said = read_json(root / INFO)
        version = str(said.get("codebase_version", "none"))
        if version not in VERSIONS:
            raise DataError(
                f"'{root}' is a LeRobotDataset of version '{version}'; this reads {', '.join(VERSIONS)}. "
                "Convert it with lerobot's own scripts"
            )
        for key in ("fps", "features", "data_path"):
            if key not in said:
                raise DataError(f"'{root / INFO}' has no '{key}'; {suggest(key, said)}")
        fps = said["fps"]
        if isinstance(fps, bool) or not isinstance(fps, (int, float)) or not 0 < fps < 1e6:
            raise DataError(f"'{root / INFO}': 'fps' is {fps!r}; expected frames per second, above 0")
        size = said.get("chunks_size", 1000)
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise DataError(f"'{root / INFO}': 'chunks_size' is {size!r}; expected files per folder, such as 1000")
        if not isinstance(said["features"], dict):
            raise DataError(
                f"'{root / INFO}': 'features' is a {type(said['features']).__name__}; expected names with dtype and shape"
            )
        features = {name: _feature(root, name, f) for name, f in said["features"].items()}
        return cls(root, version, float(fps), features, str(said["data_path"]), str(said.get("video_path") or ""), size, said)

    @property
    def pictures(self) -> set[str]:
        """Names of the features that hold pictures."""
        return {name for name, feature in self.features.items() if feature.pictured}

    def data_file(self, **numbers: int) -> Path:
        """Return the parquet file of these numbers: episode_chunk and episode_index (v2), or chunk_index and file_index."""
        return self._path(self.data_path, numbers)

    def video_file(self, key: str, **numbers: int) -> Path:
        """Return the mp4 of a video feature and these numbers."""
        return self._path(self.video_path, {"video_key": key, **numbers})

    def _path(self, pattern: str, values: Mapping[str, Any]) -> Path:
        """Fill in a pattern of info.json; it never leads out of the data set."""

        def put(match: re.Match) -> str:
            if match[1] not in values:
                raise DataError(f"'{self.root / INFO}': path '{pattern}' names '{match[1]}'; {suggest(match[1], values)}")
            value = values[match[1]]
            return f"{value:0{match[2]}d}" if match[2] else str(value)

        filled = PurePosixPath(_PLACE.sub(put, pattern))
        if filled.is_absolute() or ".." in filled.parts or not filled.parts:
            raise DataError(f"'{self.root / INFO}': path '{pattern}' leads out of the data set; it may be tampered with")
        return self.root / filled


def is_lerobot(path: str | Path) -> bool:
    """Tell whether a folder looks like a LeRobotDataset."""
    return (Path(path) / INFO).is_file()


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        DataError: the file is missing, too large, or holds no JSON object.
    """
    (value,) = _parsed(path, lambda text: [text])
    return value


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON lines file; raises as `read_json`."""
    return _parsed(path, lambda text: [line for line in text.splitlines() if line.strip()])


def _parsed(path: Path, split) -> list[dict[str, Any]]:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise DataError(f"'{path}' has {path.stat().st_size} bytes; metadata has at most {MAX_JSON_BYTES}")
        values = [json.loads(text) for text in split(path.read_text(encoding="utf-8"))]
    except FileNotFoundError as error:
        raise DataError(f"no file '{path}'; copy the data set with its folder meta") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"'{path}' can't be read as JSON: {error}") from error
    if not all(isinstance(value, dict) for value in values):
        raise DataError(f"'{path}': expected JSON objects")
    return values


def _feature(root: Path, name: str, said: Any) -> Feature:
    shape = said.get("shape") if isinstance(said, dict) else None
    if (
        not isinstance(shape, (list, tuple))
        or not all(isinstance(n, int) for n in shape)
        or not isinstance(said.get("dtype"), str)
    ):
        raise DataError(f"'{root / INFO}': feature '{name}' is {said!r}; expected dtype and shape")
    info = said.get("info") or said.get("video_info") or {}
    shape = tuple(shape)
    if said["dtype"] in ("video", "image") and len(shape) == 3 and shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4):
        shape = (shape[1], shape[2], shape[0])  # some writers put the channels first
    return Feature(said["dtype"], shape, _names(said.get("names")), info if isinstance(info, dict) else {})


def _names(said: Any) -> tuple[str, ...]:
    """Return the names of values, given as a list, or as lists by group."""
    if isinstance(said, dict):
        return tuple(name for group in said.values() for name in _names(group))
    return tuple(said) if isinstance(said, list) and all(isinstance(n, str) for n in said) else ()
