# SPDX-License-Identifier: Apache-2.0
"""`ros-vdd convert`: recordings of others and of our recorder, and a simulator's own demonstrations, into one episode store."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from ros_vdd import envs
from ros_vdd.errors import ConfigError, DataError
from ros_vdd.streams.spec import RobotSpec, load_robot

HELP = "turn bags and replay buffers into an episode store"
ENV = "env:"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="rosbag2 folder or file, replay-buffer zarr, or env:NAME")
    parser.add_argument("--robot", help="robot file: a path, or a shipped name such as pusht (default for env:NAME: its own)")
    parser.add_argument("--out", required=True, help="episode store to write, or to add to")
    parser.add_argument(
        "--map", nargs="+", default=[], metavar="NAME=ARRAY[A:B]", help="replay buffers: which array is what, state=state[0:2]"
    )
    parser.add_argument("--seed", type=int, default=0, help="env:NAME: seed of its demonstrations (default 0)")
    parser.add_argument("--recover", action="store_true", help="bags: take what is readable of a truncated file")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    """Convert every source in turn."""
    from tqdm import tqdm

    from ros_vdd.data.episodes import EpisodeWriter

    if args.seed < 0:
        raise ConfigError(f"'seed' is {args.seed}; expected at least 0")
    robot, mapping = _robot(args), _mapping(args.map)
    for source in args.sources:
        if not source.startswith(ENV) and not Path(source).exists():
            raise DataError(f"no file or folder '{source}'")
    writer, episodes, frames = None, 0, 0
    for source in args.sources:
        found = _episodes(source, robot, mapping, args)
        for arrays, meta in tqdm(found, desc=Path(source).name, unit="episode", disable=args.no_progress):
            writer = writer or EpisodeWriter(args.out, robot)
            writer.add(arrays, meta)
            episodes, frames = episodes + 1, frames + len(arrays["action"])
    if not episodes:
        raise DataError(f"no episode in {', '.join(args.sources)}")
    print(f"{episodes} episodes, {frames} frames ({frames / robot.rate_hz:.0f} s at {robot.rate_hz:g} Hz) -> {args.out}")
    return 0


def _robot(args: argparse.Namespace) -> RobotSpec:
    """Return the robot file of the store: the one given, else that of the environment that demonstrates."""
    own = {name: envs.make(name).robot for name in (s.removeprefix(ENV) for s in args.sources if s.startswith(ENV))}
    if not args.robot and len(own) < len(set(args.sources)):
        raise ConfigError("--robot is missing: recordings don't say which joints and units they hold; give a robot file")
    robot = load_robot(args.robot or next(iter(own.values())))
    for name, robot_name in own.items():
        if differences := robot.difference(load_robot(robot_name)):
            raise DataError(f"environment '{name}' has another robot than '{robot.name}': {'; '.join(differences)}")
    return robot


def _episodes(text: str, robot: RobotSpec, mapping: dict[str, str], args: argparse.Namespace) -> Iterator[tuple[dict, dict]]:
    if text.startswith(ENV):
        return envs.demonstrations(text.removeprefix(ENV), args.seed)
    from ros_vdd.data import replay_buffer

    source = Path(text)
    if replay_buffer.is_replay_buffer(source):
        return replay_buffer.episodes_from_replay_buffer(source, robot, mapping)
    if source.suffix == ".zarr":
        raise DataError(f"'{source}' has no meta/episode_ends; it isn't a replay buffer in Diffusion Policy's layout")
    from ros_vdd.data.bag_convert import episodes_from_bag

    return episodes_from_bag(source, robot, recover=args.recover)


def _mapping(assignments: list[str]) -> dict[str, str]:
    pairs = [a.partition("=") for a in assignments]
    for name, equals, array in pairs:
        if not (name and equals and array):
            raise DataError(f"--map '{name}{equals}{array}': expected NAME=ARRAY or NAME=ARRAY[FIRST:LAST]")
    return {name: array for name, _, array in pairs}
