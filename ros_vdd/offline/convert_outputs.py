# SPDX-License-Identifier: Apache-2.0
"""What `ros-vdd convert` can write: `stage`, the costly half, runs in any process; `take`, which numbers, in one, in order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ros_vdd.streams.spec import RobotSpec

FORMATS = ("store", "lerobot", "rosbag2")


class Output(Protocol):
    """An episode store, a LeRobotDataset or a folder of bags."""

    def metas(self) -> Iterator[Mapping[str, Any]]:
        """Yield what each episode that is there was made from."""
        ...

    def take(self, folder: Path, **more: Any) -> str:
        """Make a staged episode the next one; return its name."""
        ...

    def finish(self) -> None:
        """Write what sums up all episodes."""
        ...


def open_output(form: str, root: Path, robot: RobotSpec, video: str) -> Output:
    """Open or create what is written to.

    Raises:
        DataError: the folder holds something else, or was made for another robot file.
    """
    if form == "lerobot":
        from ros_vdd.data.lerobot_writer import LeRobotWriter

        return LeRobotWriter(root, robot, video)
    if form == "rosbag2":
        from ros_vdd.data.bag_export import BagExport

        return BagExport(root, robot)
    from ros_vdd.data.episodes import EpisodeWriter

    return EpisodeWriter(root, robot)


def stage(
    form: str, folder: Path, robot: RobotSpec, video: str, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]
) -> None:
    """Check an episode and write it into a new folder that `Output.take` accepts.

    Raises:
        DataError: the arrays are no episode of the robot, or the encoder refuses the pictures.
    """
    if form == "lerobot":
        from ros_vdd.data.lerobot_writer import stage_episode

        return stage_episode(robot, video, folder, arrays, meta)
    from ros_vdd.data.episodes import stage_episode

    return stage_episode(robot, folder, arrays, meta)
