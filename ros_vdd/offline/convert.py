# SPDX-License-Identifier: Apache-2.0
"""`ros-vdd convert`: recordings of others and of our recorder, and simulators' demonstrations, into a store, and back."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ros_vdd import envs
from ros_vdd.errors import ConfigError, DataError
from ros_vdd.offline.convert_outputs import FORMATS, Output, open_output
from ros_vdd.offline.convert_sources import ENV, Options, Unit, find_units, kind_of
from ros_vdd.offline.convert_staging import staging_folder
from ros_vdd.offline.convert_work import Job, Result, convert_units
from ros_vdd.offline.words import counted
from ros_vdd.streams.spec import RobotSpec, load_robot

HELP = "turn bags, LeRobotDatasets and replay buffers into an episode store, and back"
SOME_REFUSED = 1
SHOWN = 8
"""Warnings that are printed of one source; all of them stand in the episodes' meta."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    kinds = "rosbag2 folder or file, LeRobotDataset, replay-buffer zarr, episode store, or env:NAME"
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help=kinds)
    parser.add_argument(
        "--robot", help="robot file: a path, or a shipped name such as pusht (default for env:NAME and stores: their own)"
    )
    parser.add_argument("--out", required=True, help="folder to write, or to add to")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="store",
        help="store: episode store; lerobot: LeRobotDataset v3.0; rosbag2: a bag an episode",
    )
    parser.add_argument(
        "--map",
        nargs="+",
        default=[],
        metavar="NAME=ARRAY[A:B]",
        help="data sets of others: which array or feature is what, state=state[0:2]",
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="convert N sources or episodes at once (default 1)")
    parser.add_argument(
        "--keep-going", action="store_true", help="go on after a source that is refused; the exit status is then 1"
    )
    parser.add_argument("--only", choices=("accept", "warn"), help="leave out takes whose recorded verdict is worse")
    parser.add_argument(
        "--clock", metavar="STREAM", help="bags: frames at the stamps of images.NAME or states.NAME (default: even frames)"
    )
    parser.add_argument(
        "--stale",
        choices=("drop", "keep"),
        default="drop",
        help="bags: frames with a sample older than its max_age_s (default drop)",
    )
    parser.add_argument("--recover", action="store_true", help="bags: take what is readable of a damaged file")
    parser.add_argument(
        "--video", choices=("auto", "av1", "h264", "lossless"), default="auto", help="lerobot: how pictures are written"
    )
    parser.add_argument("--seed", type=int, default=0, help="env:NAME: seed of its demonstrations (default 0)")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    """Convert every source; return 0, or 1 where some were refused and --keep-going was given."""
    for key, least in (("seed", 0), ("jobs", 1)):
        if getattr(args, key) < least:
            raise ConfigError(f"'{key}' is {getattr(args, key)}; expected at least {least}")
    robot = _robot(args)
    kinds = [kind_of(source) for source in args.sources]
    options = Options(_mapping(args.map), args.seed, args.recover, args.clock, args.stale, args.only)
    out = Path(args.out)
    if any(kind == "store" and Path(s).resolve() == out.resolve() for s, kind in zip(args.sources, kinds)):
        raise DataError(f"'{out}' is a source; choose another --out")
    units, refused = _units(args, robot, options)
    with staging_folder(out) as staging:
        output = open_output(args.format, out, robot, args.video) if _is_begun(out) else None
        job = Job(robot, options, args.format, args.video, staging, _done(output.metas() if output else ()))
        return _convert(args, job, units, refused, output)


def _is_begun(out: Path) -> bool:
    return out.is_file() or out.is_dir() and any(p.name[0] != "." for p in out.iterdir())


def _convert(args: argparse.Namespace, job: Job, units: list[Unit], refused: list[str], output: Output | None) -> int:
    from tqdm import tqdm

    episodes = frames = 0
    skipped: Counter[str] = Counter()
    seen = {key: args.out for key, (_, complete) in job.done.items() if complete}
    bar = tqdm(total=len(units), unit="source", disable=args.no_progress)
    told: set[str] = set()
    for result in convert_units(job, units, args.jobs):
        bar.update()
        bar.set_description(Path(result.unit.source).name)
        if result.refused is not None:
            if not args.keep_going:
                bar.close()
                if output:
                    output.finish()
                if episodes:
                    raise DataError(
                        f"{result.refused} ('{args.out}' has the {counted(episodes, 'episode')} before it; --keep-going goes on after it)"
                    )
                raise DataError(result.refused)
            refused.append(f"{result.unit.title}: {result.refused}")
            continue
        twin = seen.get(result.key) if result.key and result.skipped is None else None
        if result.skipped is not None or twin is not None:
            skipped[f"{result.unit.source}: {result.skipped or f'the same content as {twin}'}"] += 1
            continue
        seen[result.key] = result.unit.title
        _tell(bar, result, told)
        for number, folder in enumerate(result.folders):
            output = output or open_output(job.form, Path(args.out), job.robot, job.video)
            last = {"last_segment": True} if number == len(result.folders) - 1 else {}
            output.take(folder, **last)
        episodes, frames = episodes + len(result.folders), frames + result.frames
    bar.close()
    if output:
        output.finish()  # also where no episode was added: the run that added them may have been killed before
    for line, count in skipped.items():
        print(f"skipped {line}" + f", {count} times" * (count > 1))
    for line in refused:
        print(f"refused {line}")
    if not episodes and not skipped:
        raise DataError(f"no episode in {', '.join(args.sources)}")
    rate = job.robot.rate_hz
    beside = f"; {skipped.total()} skipped" * bool(skipped) + f"; {len(refused)} refused" * bool(refused)
    print(f"{counted(episodes, 'episode')}, {counted(frames, 'frame')} ({frames / rate:.0f} s at {rate:g} Hz) -> {args.out}{beside}")
    return SOME_REFUSED if refused else 0


def _units(args: argparse.Namespace, robot: RobotSpec, options: Options) -> tuple[list[Unit], list[str]]:
    units, refused = [], []
    for source in args.sources:
        try:
            units += find_units(source, robot, options)
        except DataError as error:
            if not args.keep_going:
                raise
            refused.append(f"{source}: {error}")
    return units, refused


def _done(metas: Iterable[Mapping[str, Any]]) -> dict[str, tuple[int, bool]]:
    """Return by content how many of its episodes are there, and whether the last one is."""
    done: dict[str, tuple[int, bool]] = {}
    for meta in metas:
        if key := meta.get("source_sha256"):
            count, complete = done.get(key, (0, False))
            done[key] = (count + 1, complete or str(meta.get("last_segment")) == "True")
    return done


def _tell(bar, result: Result, told: set[str]) -> None:
    """Print what a reader should know of a source, each line once; of a store it was told when that was made."""
    if result.unit.kind == "store":
        return
    new = [line for line in result.warnings if line not in told]
    told.update(new)
    for line in new[:SHOWN]:
        bar.write(f"{result.unit.title}: {line}")


def _robot(args: argparse.Namespace) -> RobotSpec:
    """Return the robot file of the output: the one given, else that of the environment or the store that is read."""
    own = {s: envs.make(s.removeprefix(ENV)).robot for s in args.sources if s.startswith(ENV)}
    stores = [s for s in args.sources if s not in own and (Path(s) / "store.yaml").is_file()]
    if not args.robot and len(own) + len(set(stores)) < len(set(args.sources)):
        raise ConfigError("--robot is missing: recordings don't say which joints and units they hold; give a robot file")
    if args.robot or own:
        robot = load_robot(args.robot or next(iter(own.values())))
    else:
        from ros_vdd.data.episodes import EpisodeStore

        robot = EpisodeStore(stores[0]).robot
    for name, robot_name in own.items():
        if differences := robot.difference(load_robot(robot_name)):
            raise DataError(
                f"environment '{name.removeprefix(ENV)}' has another robot than '{robot.name}': {'; '.join(differences)}"
            )
    return robot


def _mapping(assignments: list[str]) -> tuple[tuple[str, str], ...]:
    pairs = [a.partition("=") for a in assignments]
    for name, equals, array in pairs:
        if not (name and equals and array):
            raise DataError(f"--map '{name}{equals}{array}': expected NAME=ARRAY or NAME=ARRAY[FIRST:LAST]")
    return tuple((name, array) for name, _, array in pairs)
