# SPDX-License-Identifier: Apache-2.0
"""How episodes are written: what may be lost, when a file is full, how much memory and disk is left alone."""

from __future__ import annotations

from dataclasses import dataclass

from ros_vdd.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class RecordingOptions:
    """How episodes are written.

    Attributes:
        silent_after_s: [s] start is refused while a required topic has been silent for so long.
        chunk_s: [s] at most this much is lost when the process is killed.
        fsync_s: [s] at most this much is lost in a power cut.
        queue_mb: [MB] memory for messages that wait for the disk, shared evenly by the topics.
        min_free_gb: [GB] with less free, no episode begins and one in progress ends.
        split_gb, split_s: [GB], [s] after so much the next file of an episode begins; 0: never.
        pre_roll_s: [s] what came so long before the start is in the episode as well.
        pre_roll_mb: [MB] memory for that.
        ros_distro: name of the ROS distribution, "" where there is none.
    """

    silent_after_s: float = 1.0
    chunk_s: float = 0.1
    fsync_s: float = 1.0
    queue_mb: float = 512.0
    min_free_gb: float = 1.0
    split_gb: float = 0.0
    split_s: float = 0.0
    pre_roll_s: float = 0.0
    pre_roll_mb: float = 512.0
    ros_distro: str = ""

    def __post_init__(self) -> None:
        for key in ("min_free_gb", "split_gb", "split_s", "pre_roll_s", "pre_roll_mb"):
            if not 0 <= getattr(self, key) < float("inf"):
                raise ConfigError(f"'{key}' is {getattr(self, key)}; expected 0 or more")
        for key in ("silent_after_s", "chunk_s", "fsync_s", "queue_mb"):
            if not 0 < getattr(self, key) < float("inf"):
                raise ConfigError(f"'{key}' is {getattr(self, key)}; expected more than 0")
