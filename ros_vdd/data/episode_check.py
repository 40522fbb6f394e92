# SPDX-License-Identifier: Apache-2.0
"""Whether arrays are an episode of a robot: names, shapes, types, finite values, goals that exist."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from ros_vdd.errors import ConfigError, DataError
from ros_vdd.streams.spec import RobotSpec

_ARRAY_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?")


def check_episode(robot: RobotSpec, arrays: Mapping[str, np.ndarray]) -> int:
    """Return the number of frames.

    Raises:
        DataError: an array is missing, has the wrong name, shape or type, or holds a value that isn't finite, or a goal that
            doesn't exist.
    """
    expected = {k: (s, np.uint8 if k.startswith("images.") else np.float32) for k, s in robot.observation_shapes().items()}
    expected["action"] = ((robot.action_size,), np.float32)
    if robot.goal:
        expected["goal"] = ((robot.goal_size,), np.float32)
    elif "goal" in arrays:
        raise DataError(
            f"episode holds 'goal', but robot '{robot.name}' has no section 'goal'; add it, or call the array extra.goal"
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
            frame = int(np.argwhere(~np.isfinite(array))[0][0])
            raise DataError(f"array '{key}' holds NaN or infinity, first at frame {frame}")
    _check_goals(robot, arrays)
    return length


def _check_goals(robot: RobotSpec, arrays: Mapping[str, np.ndarray]) -> None:
    for frame, goal in enumerate(arrays["goal"] if robot.goal else ()):
        try:
            robot.goal.encode(goal)
        except ConfigError as error:
            raise DataError(f"array 'goal', frame {frame}: {error}") from error
