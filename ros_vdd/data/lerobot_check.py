# SPDX-License-Identifier: Apache-2.0
"""Where the metadata of a LeRobotDataset contradicts itself or its files, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ros_vdd.data.lerobot_episodes import LeRobotEpisode
from ros_vdd.data.lerobot_info import LeRobotInfo


def metadata_warnings(info: LeRobotInfo, episodes: Sequence[LeRobotEpisode], tasks: Mapping[int, str]) -> list[str]:
    """Return one line for each contradiction that doesn't keep an episode from being read."""
    found = {"total_episodes": len(episodes), "total_frames": sum(e.length for e in episodes), "total_tasks": len(tasks)}
    told = [
        f"info.json says {key} {info.said[key]}, the tables hold {count}"
        for key, count in found.items()
        if key in info.said and info.said[key] != count
    ]
    return [*told, *_splits(info, len(episodes)), *_videos(info, episodes), *_rates(info)]


def _splits(info: LeRobotInfo, count: int) -> list[str]:
    splits = info.said.get("splits")
    lines = []
    for name, span in splits.items() if isinstance(splits, dict) else ():
        last = str(span).partition(":")[2]
        if last.isdigit() and int(last) > count:
            lines.append(f"info.json says split {name} {span}, there are {count} episodes")
    return lines


def _videos(info: LeRobotInfo, episodes: Sequence[LeRobotEpisode]) -> list[str]:
    lines = []
    for key in (k for k, f in info.features.items() if f.dtype == "video"):
        lacking = [e.index for e in episodes if key not in e.videos or not e.videos[key].file.is_file()]
        if lacking:
            which = "every episode" if len(lacking) == len(episodes) else f"episodes {', '.join(map(str, lacking[:8]))}"
            lines.append(f"feature '{key}' has no video of {which}")
    return lines


def _rates(info: LeRobotInfo) -> list[str]:
    lines = []
    for key, feature in info.features.items():
        said = feature.info.get("video.fps", feature.info.get("fps"))
        if feature.dtype == "video" and isinstance(said, (int, float)) and abs(said - info.fps) > 1e-6 * info.fps:
            lines.append(f"info.json says fps {info.fps:g}, and {said:g} of the video '{key}'")
    return lines
