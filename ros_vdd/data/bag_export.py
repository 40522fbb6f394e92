# SPDX-License-Identifier: Apache-2.0
"""Episodes back into rosbag2 recordings: for players, viewers and tools that know bags.

Every frame becomes messages stamped with its tick: raw images in the policy's size, joint states, then the command; a goal
comes just before the first image it counts for. A robot file whose cameras send that size and whose actions are read from the
commands lies beside the bags and inside them; converting with it gives equal arrays again.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ros_vdd.config import dump_yaml, read_yaml
from ros_vdd.data import cdr_message
from ros_vdd.data.bag import ROBOT_KEY, TASK_KEY
from ros_vdd.data.bag_metadata import METADATA, read_metadata
from ros_vdd.data.bag_ticks import even_ticks
from ros_vdd.data.bag_writer import PARTIAL, BagWriter
from ros_vdd.data.episodes import Episode
from ros_vdd.errors import DataError
from ros_vdd.streams.spec import ActionSource, RobotSpec, robot_from_mapping

ROBOT = "robot.yaml"
EARLIEST_NS = 1_000_000_000  # a stamp of zero means "never set"; episodes without a clock are moved to here
EVER = 2**63 - 1
EVEN = 1000  # stamps within period / EVEN of even ticks become those ticks, to the ns as the converter rounds them
OWN = "ros_vdd."


def bag_robot(robot: RobotSpec) -> RobotSpec:
    """Return the robot file of exported bags: what it observes is what the policy saw, so nothing is cropped or resized again."""
    period_s = 2 / robot.rate_hz
    cameras = {}
    for name, camera in robot.cameras.items():
        height, width, _ = camera.output_shape
        size = {"width": width, "height": height, "crop": None, "resize": None, "encoding": "rgb8"}
        cameras[name] = replace(camera, type=cdr_message.IMAGE, max_age_s=max(camera.max_age_s, period_s), **size)
    states = {name: replace(state, max_age_s=max(state.max_age_s, period_s)) for name, state in robot.states.items()}
    stamped = robot.action.type != "std_msgs/msg/Float64MultiArray"
    source = ActionSource(
        topic=robot.action.topic, type=robot.action.type, stamp="header" if stamped else "receive", max_age_s=max(0.5, period_s)
    )
    return replace(robot, cameras=cameras, states=states, action=replace(robot.action, source=source))


class BagExport:
    """Appends episodes to a folder of recordings, one bag an episode.

    Args:
        root: folder of the bags, `episode_NNNNNN` each, and of the robot file to read them with.
        robot: the robot file of the episodes.

    Raises:
        DataError: the folder holds something else, or bags of another robot file.
    """

    def __init__(self, root: str | Path, robot: RobotSpec):
        self.root, self.robot = Path(root), robot
        self._exported = bag_robot(robot)
        if (self.root / ROBOT).is_file():
            if differences := robot_from_mapping(read_yaml(self.root / ROBOT)).difference(self._exported):
                raise DataError(f"the bags in '{self.root}' are of another robot file: {'; '.join(differences)}")
        elif self.root.is_file() or self.root.exists() and any(p.name[0] != "." for p in self.root.iterdir()):
            raise DataError(f"'{self.root}' exists and holds no bags of ours; choose another --out")
        else:
            self.root.mkdir(parents=True, exist_ok=True)
            (self.root / f".{ROBOT}").write_text(dump_yaml(self._exported), encoding="utf-8")
            os.replace(self.root / f".{ROBOT}", self.root / ROBOT)  # never half of it
        for partial in self.root.glob(f"episode_*{PARTIAL}"):
            shutil.rmtree(partial)  # left by a writer that died; its episode is written again
        numbers = [int(p.name[8:]) for p in self._bags()]
        self._next = max(numbers, default=-1) + 1

    def metas(self) -> Iterator[Mapping[str, Any]]:
        """Yield what each bag was made from, in order."""
        for bag in self._bags():
            custom = read_metadata(bag / METADATA).get("custom_data") or {}
            yield {key.removeprefix(OWN): value for key, value in custom.items() if key.startswith(OWN)}

    def take(self, folder: Path, **more: Any) -> str:
        """Write a staged episode as the next bag and remove it; return the bag's name."""
        episode = Episode(folder)
        name = f"episode_{self._next:06d}"
        self.write(self.root / name, episode, {**episode.meta, **more})
        self._next += 1
        shutil.rmtree(folder)
        return name

    def write(self, bag: Path, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
        """Write one episode as a bag."""
        robot = self._exported
        kept = ("source", "source_sha256", "segment", "last_segment", "verdict", "reasons", "success", "operator")
        custom = {OWN + key: str(meta[key]) for key in kept if meta.get(key) is not None}
        custom |= {ROBOT_KEY: dump_yaml(robot), TASK_KEY: str(meta.get("task") or "")}
        topics = {_absolute(topic): type_name for topic, type_name in robot.topics().items()}
        writer = BagWriter(bag, topics, custom, time.monotonic_ns)
        try:
            self._write_frames(writer, arrays)
        except BaseException:
            writer.abandon()
            raise
        writer.close()

    def finish(self) -> None:
        """Do nothing: every bag is complete from the moment it has its name."""

    def _bags(self) -> list[Path]:
        return sorted(p for p in self.root.glob("episode_*") if p.name[8:].isdigit())

    def _write_frames(self, writer: BagWriter, arrays: Mapping[str, np.ndarray]) -> None:
        robot, told = self._exported, None
        stamps = np.asarray(arrays["stamp_ns"])
        stamps = stamps + max(0, EARLIEST_NS - int(stamps[0]))
        ticks = even_ticks(int(stamps[0]), EVER, robot.rate_hz)
        even = np.fromiter((tick for tick, _ in islice(ticks, len(stamps))), np.int64)
        if np.abs(stamps - even).max() <= robot.dt_ns // EVEN:
            stamps = even
        columns = {key: arrays[key] for key in arrays if key in ("state", "action", "goal") or key.startswith("images.")}
        for k, stamp in enumerate(stamps.tolist()):
            if robot.goal and (told is None or (columns["goal"][k] != told).any()):
                told = np.array(columns["goal"][k])
                writer.write(_absolute(robot.goal.topic), stamp - 1, cdr_message.goal(robot.goal, told))
            for name, camera in robot.cameras.items():
                writer.write(_absolute(camera.topic), stamp, cdr_message.image(stamp, columns[f"images.{name}"][k]))
            start = 0
            for state in robot.states.values():
                values = np.asarray(columns["state"][k][start : start + state.size]).reshape(len(state.fields), -1)
                fields = dict(zip(state.fields, values))
                writer.write(_absolute(state.topic), stamp, cdr_message.joint_state(stamp, state.joints, **fields))
                start += state.size
            message = cdr_message.action(robot.action.type, stamp, robot.action.joints, columns["action"][k], robot.dt_ns)
            writer.write(_absolute(robot.action.topic), stamp, message)


def _absolute(topic: str) -> str:
    return topic if topic.startswith("/") else f"/{topic}"
