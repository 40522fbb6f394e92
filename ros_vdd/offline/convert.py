# SPDX-License-Identifier: Apache-2.0
"""`ros-vdd convert`: recordings of others and of our recorder into one episode store."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from ros_vdd.errors import DataError
from ros_vdd.streams.spec import RobotSpec, load_robot

HELP = "turn bags and replay buffers into an episode store"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="rosbag2 folders or files, or a replay-buffer zarr")
    parser.add_argument("--robot", required=True, help="robot file: a path, or a shipped name such as pusht")
    parser.add_argument("--out", required=True, help="episode store to write, or to add to")
    parser.add_argument(
        "--map", nargs="+", default=[], metavar="NAME=ARRAY[A:B]", help="replay buffers: which array is what, state=state[0:2]"
    )
    parser.add_argument("--recover", action="store_true", help="bags: take what is readable of a truncated file")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    """Convert every source in turn."""
    from tqdm import tqdm

    from ros_vdd.data.episodes import EpisodeWriter

    robot, mapping = load_robot(args.robot), _mapping(args.map)
    sources = [Path(s) for s in args.sources]
    for source in sources:
        if not source.exists():
            raise DataError(f"no file or folder '{source}'")
    writer, episodes, frames = None, 0, 0
    for source in sources:
        found = _episodes(source, robot, mapping, args.recover)
        for arrays, meta in tqdm(found, desc=source.name, unit="episode", disable=args.no_progress):
            writer = writer or EpisodeWriter(args.out, robot)
            writer.add(arrays, meta)
            episodes, frames = episodes + 1, frames + len(arrays["action"])
    if not episodes:
        raise DataError(f"no episode in {', '.join(map(str, sources))}")
    print(f"{episodes} episodes, {frames} frames ({frames / robot.rate_hz:.0f} s at {robot.rate_hz:g} Hz) -> {args.out}")
    return 0


def _episodes(source: Path, robot: RobotSpec, mapping: dict[str, str], recover: bool) -> Iterator[tuple[dict, dict]]:
    from ros_vdd.data import replay_buffer

    if replay_buffer.is_replay_buffer(source):
        return replay_buffer.episodes_from_replay_buffer(source, robot, mapping)
    if source.suffix == ".zarr":
        raise DataError(f"'{source}' has no meta/episode_ends; it isn't a replay buffer in Diffusion Policy's layout")
    from ros_vdd.data.bag_convert import episodes_from_bag

    return episodes_from_bag(source, robot, recover=recover)


def _mapping(assignments: list[str]) -> dict[str, str]:
    pairs = [a.partition("=") for a in assignments]
    for name, equals, array in pairs:
        if not (name and equals and array):
            raise DataError(f"--map '{name}{equals}{array}': expected NAME=ARRAY or NAME=ARRAY[FIRST:LAST]")
    return {name: array for name, _, array in pairs}
