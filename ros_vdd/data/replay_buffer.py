# SPDX-License-Identifier: Apache-2.0
"""Diffusion Policy's replay buffer (zarr v2, or v3 where zarr 3 is installed: `data/NAME`, `meta/episode_ends`) as episodes.

What each array means isn't in the file, so it is said: a map from our names to `ARRAY` or `ARRAY[FIRST:LAST]` (columns).
Arrays that aren't mapped are kept as `extra.NAME`, in letters, digits and _. A "goal" has its G columns, or one with the task's
number. The buffer holds no stamps; frames are `1 / rate_hz` apart by definition.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from ros_vdd.data.goals import encode_goals
from ros_vdd.errors import DataError, suggest
from ros_vdd.streams.image_codec import as_sent
from ros_vdd.streams.spec import CameraSpec, RobotSpec

_SELECTION = re.compile(r"(\w+)(?:\[(\d+):(\d+)\])?")


def is_replay_buffer(path: Path) -> bool:
    """Tell whether a folder looks like a zarr group with `meta/episode_ends`."""
    return (path / "meta" / "episode_ends").exists()


def episodes_from_replay_buffer(
    path: str | Path, robot: RobotSpec, mapping: Mapping[str, str]
) -> Iterator[tuple[dict[str, np.ndarray], dict]]:
    """Yield (arrays, meta) for each episode.

    Args:
        path: the zarr folder.
        robot: whose observation and action names and shapes are to be filled.
        mapping: our name -> selection, such as {"images.top": "img", "state": "state[0:2]"}; a name that isn't given is
            looked for under its own name, "images.<camera>" also as "img" when there is one camera.

    Raises:
        DataError: an array, a column or a chunk is missing, or a shape doesn't fit the robot file.
    """
    path = Path(path)
    arrays, ends = _open(path)
    selections = _selections(robot, mapping, arrays, path)
    used = {array for array, _ in selections.values()}
    start = 0
    for index, end in enumerate(int(e) for e in ends):
        frames = slice(start, end)
        episode = {ours: _convert(ours, _read(arrays, a, frames, path), columns) for ours, (a, columns) in selections.items()}
        episode |= {f"images.{n}": np.stack([as_sent(p, c) for p in episode[f"images.{n}"]]) for n, c in _grey(robot).items()}
        if robot.goal:
            episode["goal"] = encode_goals(episode["goal"], robot.goal)
        whole = {a for a, columns in selections.values() if columns is None}
        extras, warnings = _extras({name: _read(arrays, name, frames, path) for name in sorted(arrays.keys() - whole)})
        episode |= extras
        episode["stamp_ns"] = np.rint(np.arange(end - start) * (1e9 / robot.rate_hz)).astype(np.int64)
        meta = {"source": path.name, "source_format": "replay_buffer", "episode": index, "mapped": sorted(used)}
        yield episode, {**meta, "warnings": warnings}
        start = end


def _grey(robot: RobotSpec) -> dict[str, CameraSpec]:
    return {name: camera for name, camera in robot.cameras.items() if camera.encoding == "mono8"}


def _extras(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return what a store can hold of arrays nobody asked for, and in words what it can't."""
    extras: dict[str, np.ndarray] = {}
    warnings = []
    for name, values in arrays.items():
        kept = f"extra.{re.sub('[^A-Za-z0-9_]', '_', name)}"
        if values.dtype.kind not in "fiubUS":
            warnings.append(f"left out: array '{name}' holds {values.dtype}; expected numbers")
        elif values.dtype.kind == "f" and not np.isfinite(values).all():
            warnings.append(f"left out: array '{name}' holds NaN or infinity")
        elif kept in extras:
            warnings.append(f"left out: array '{name}' would be '{kept}', which another array is already")
        else:
            extras[kept] = values
    return extras, warnings


def _open(path: Path):
    try:
        import zarr
    except ModuleNotFoundError as error:
        raise DataError("reading a replay buffer needs zarr; pip install 'ros_vdd[data]'") from error
    if not is_replay_buffer(path):
        raise DataError(f"'{path}' has no meta/episode_ends; it isn't a replay buffer in Diffusion Policy's layout")
    try:
        group = zarr.open_group(str(path), mode="r")
        arrays = {name: group["data"][name] for name in group["data"].array_keys()}
        arrays = {name: array for name, array in arrays.items() if array.ndim}  # a single number is of no frame
        _require_chunks(path / "meta" / "episode_ends", group["meta"]["episode_ends"])
        said = np.asarray(group["meta"]["episode_ends"][:])
        ends = said.astype(np.int64)
    except DataError:
        raise
    except Exception as error:  # zarr and its codecs raise many kinds; all of them mean an unreadable buffer
        raise DataError(f"replay buffer '{path}' can't be read: {type(error).__name__}: {error}") from error
    lengths = {name: array.shape[0] for name, array in arrays.items()}
    if ends.ndim != 1 or (ends != said).any():
        raise DataError(
            f"replay buffer '{path}': episode_ends is {said.dtype} {said.shape}; expected one whole number an episode"
        )
    if len(ends) == 0 or (np.diff(ends, prepend=0) <= 0).any() or any(n != ends[-1] for n in lengths.values()):
        raise DataError(f"replay buffer '{path}': episode_ends (last {ends[-1:]}) and array lengths {lengths} disagree")
    for name, array in arrays.items():
        _require_chunks(path / "data" / name, array)
    return arrays, ends


def _require_chunks(folder: Path, array) -> None:
    """Zarr fills a missing chunk with zeros; here missing data is missing."""
    files = getattr(array, "shards", None) or array.chunks
    counts = [-(-size // chunk) for size, chunk in zip(array.shape, files)]
    key = getattr(getattr(array, "metadata", None), "encode_chunk_key", lambda index: ".".join(map(str, index)))
    for index in np.ndindex(*counts):
        name = key(index)
        if not (folder / name).is_file() and not (folder / name.replace(".", "/")).is_file():
            first = index[0] * files[0]
            raise DataError(
                f"replay buffer: '{folder.name}' lacks its chunk '{name}' (frames {first} to "
                f"{min(first + files[0], array.shape[0]) - 1}); copy the folder again, or, where zarr 3 wrote it and left out "
                "what is all zeros, write it with config={'write_empty_chunks': True}"
            )


def _selections(robot: RobotSpec, mapping: Mapping[str, str], arrays: Mapping, path: Path) -> dict:
    wanted = {**robot.observation_shapes(), "action": (robot.action_size,)}
    wanted |= {"goal": (robot.goal_size,)} if robot.goal else {}
    unknown = mapping.keys() - wanted.keys()
    if unknown:
        raise DataError(f"--map names '{sorted(unknown)[0]}'; {suggest(sorted(unknown)[0], wanted)}")
    return {ours: _selection(ours, shape, robot, mapping, arrays, path) for ours, shape in wanted.items()}


def _selection(ours: str, shape: tuple, robot: RobotSpec, mapping: Mapping[str, str], arrays: Mapping, path: Path):
    only_camera = ours.startswith("images.") and len(robot.cameras) == 1
    text = mapping.get(ours, "img" if only_camera and "img" in arrays else ours)
    match = _SELECTION.fullmatch(text)
    if not match or match[1] not in arrays:
        raise DataError(
            f"'{path}' has no array '{text}' for '{ours}'; {suggest(text, arrays)}; say which with --map {ours}=ARRAY[FIRST:LAST]"
        )
    columns = (int(match[2]), int(match[3])) if match[2] else None
    found = arrays[match[1]].shape[1:]
    taken = (max(0, min(columns[1], found[0]) - columns[0]),) if columns and found else found
    numbered = ours == "goal" and robot.goal.tasks and (tuple(taken) == (1,) or not found and not columns)
    if tuple(taken) != tuple(shape) and not numbered:
        raise DataError(
            f"'{ours}' of robot '{robot.name}' has shape {shape}, '{text}' in '{path}' gives {tuple(taken)} (array {found}); "
            + (f"choose columns with --map {ours}={match[1]}[0:{shape[0]}]" if len(shape) == 1 else "change the robot file")
        )
    return match[1], columns


def _read(arrays: Mapping, name: str, frames: slice, path: Path) -> np.ndarray:
    try:
        return np.asarray(arrays[name][frames])
    except Exception as error:  # a damaged chunk raises whatever its codec raises
        raise DataError(
            f"replay buffer '{path}': frames {frames.start} to {frames.stop - 1} of '{name}' can't be decoded "
            f"({type(error).__name__}: {error}); copy the folder again"
        ) from error


def _convert(ours: str, values: np.ndarray, columns: tuple[int, int] | None) -> np.ndarray:
    if columns:
        values = values[:, columns[0] : columns[1]]
    if not ours.startswith("images."):
        return np.ascontiguousarray(values, dtype=np.float32)
    if values.dtype != np.uint8:
        low, high = float(values.min()), float(values.max())
        if not (0 <= low and 1 < high <= 255):  # up to 1 it could be a picture scaled to [0, 1]
            raise DataError(f"'{ours}': {values.dtype} values from {low} to {high}; expected 0 to 255")
        values = np.rint(values).astype(np.uint8)
    return np.ascontiguousarray(values)
