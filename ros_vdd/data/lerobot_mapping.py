# SPDX-License-Identifier: Apache-2.0
"""Which feature of a LeRobotDataset fills which array of a robot: by name or by `--map`, columns by joint name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ros_vdd.data.lerobot_info import LeRobotInfo
from ros_vdd.errors import DataError, suggest
from ros_vdd.streams.spec import RobotSpec

TASK = "task_index"
SUFFIX = {"position": ".pos", "velocity": ".vel", "effort": ".effort"}  # LeRobot's way to name a value of a joint
_SELECTION = re.compile(r"([\w.\-]+?)(?:\[(\d+):(\d+)\])?")


class Selection(NamedTuple):
    """A feature, and which of its values in which order; None takes it whole."""

    feature: str
    columns: tuple[int, ...] | None


def value_names(robot: RobotSpec) -> dict[str, list[str]]:
    """Return what the values of "state" and "action" are called, for example "shoulder.pos"."""
    state = [joint + SUFFIX[kind] for stream in robot.states.values() for joint, kind in stream.features]
    return {"state": state, "action": [joint + SUFFIX["position"] for joint in robot.action.joints]}


def select(robot: RobotSpec, mapping: Mapping[str, str], info: LeRobotInfo) -> dict[str, Selection]:
    """Return the selection for each array of a robot.

    Args:
        robot: whose arrays are to be filled.
        mapping: our name -> FEATURE or FEATURE[FIRST:LAST]. What isn't given is looked for as "observation.state", "action",
            "observation.images.NAME" and "goal"; a goal of tasks otherwise comes from the episodes' tasks.

    Raises:
        DataError: a name or feature that doesn't exist, or one whose shape doesn't fit the robot file.
    """
    wanted: dict[str, tuple[int, ...]] = {**robot.observation_shapes(), "action": (robot.action_size,)}
    wanted |= {"goal": (robot.goal_size,)} if robot.goal else {}
    for name in mapping:
        if name not in wanted:
            raise DataError(f"--map names '{name}'; {suggest(name, wanted)}")
    return {ours: _selection(ours, shape, robot, mapping, info) for ours, shape in wanted.items()}


def _selection(ours: str, shape: tuple[int, ...], robot: RobotSpec, mapping: Mapping[str, str], info: LeRobotInfo) -> Selection:
    text = mapping.get(ours) or _default(ours, robot, info)
    match = _SELECTION.fullmatch(text)
    features = {**info.features, **({TASK: None} if ours == "goal" else {})}
    if not match or match[1] not in features:
        raise DataError(
            f"'{info.root}' has no feature '{text}' for '{ours}'; {suggest(text, features)}; "
            f"say which with --map {ours}=FEATURE[FIRST:LAST]"
        )
    name, feature = match[1], features[match[1]]
    if name == TASK:
        return Selection(name, None)
    if feature.pictured != ours.startswith("images."):
        raise DataError(f"'{info.root}': '{ours}' can't be '{name}', which holds {feature.dtype}s")
    if feature.pictured:
        return Selection(name, None)
    size = feature.shape[0] if feature.shape else 1
    columns = tuple(range(int(match[2]), min(int(match[3]), size))) if match[2] else _by_name(ours, robot, feature.names)
    if columns is None:
        _require_places(ours, robot, name, feature.names, info)
    taken = len(columns) if columns is not None else size
    numbered = ours == "goal" and robot.goal.tasks and taken == 1
    if len(feature.shape) > 1 or (taken,) != shape and not numbered:
        raise DataError(
            f"'{ours}' of robot '{robot.name}' has shape {shape}, '{text}' in '{info.root}' gives {(taken,)} "
            f"(feature {feature.shape}, {_told(feature.names)}); choose columns with --map {ours}={name}[0:{shape[0]}]"
        )
    return Selection(name, columns)


def _default(ours: str, robot: RobotSpec, info: LeRobotInfo) -> str:
    if ours == "state":
        return "observation.state"
    if ours == "goal":
        return "goal" if "goal" in info.features else TASK
    if not ours.startswith("images."):
        return ours
    named = f"observation.{ours}"
    pictured = [name for name, feature in info.features.items() if feature.pictured]
    return pictured[0] if named not in info.features and len(robot.cameras) == len(pictured) == 1 else named


def _by_name(ours: str, robot: RobotSpec, names: Sequence[str]) -> tuple[int, ...] | None:
    """Return the columns of the robot's joints where the feature names them all; None where it must be taken by position."""
    if ours not in ("state", "action"):
        return None
    wanted = value_names(robot)[ours]
    plain = [name.removesuffix(SUFFIX["position"]) for name in wanted]
    for told in (wanted, plain):
        if len(set(told)) == len(told) and set(told) <= set(names) and len(set(names)) == len(names):
            return tuple(names.index(name) for name in told)
    return None


def _require_places(ours: str, robot: RobotSpec, feature: str, names: Sequence[str], info: LeRobotInfo) -> None:
    """Refuse to take by position what the feature names in another order."""
    wanted = value_names(robot).get(ours, [])
    for told in (wanted, [name.removesuffix(SUFFIX["position"]) for name in wanted]):
        if len(set(told)) < len(told) or len(set(names)) < len(names):
            continue
        for place, value in enumerate(told):
            if value in names and names.index(value) != place:
                lacking = ", ".join(n for n in told if n not in names)
                raise DataError(
                    f"'{info.root}': '{value}' is value {names.index(value)} of '{feature}' and {place} of '{ours}', and not all "
                    f"go by name, for '{feature}' doesn't name {lacking}. Use its names in the robot file, or take the values as "
                    f"they stand with --map {ours}={feature}[0:{len(told)}]"
                )


def _told(names: Sequence[str]) -> str:
    return f"of {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}" if names else "without names"
