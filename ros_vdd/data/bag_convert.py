# SPDX-License-Identifier: Apache-2.0
"""A bag into episodes, by the codecs and stream buffers of the live nodes.

Ticks lie 1 / rate_hz apart, from the first stamp of the reference stream (first camera, else first state) at which
every stream has a sample, to the last at or before the end of the shortest stream. A tick t has

    observation   of each stream the newest sample stamped at or before t, no older than its max_age_s
    goal          the newest one received before the message of the reference stream that is in force at t, however old
    action        the newest command stamped before the next tick t + dt, no older than the source's max_age_s there

An observation never looks ahead of its tick. The action does by up to dt, because it is what the demonstrator did in
[t, t + dt): a command given in answer to the observation at t comes after t, and a leader arm that streams its
position is, just before t + dt, where the follower has to be by then. That is the time rule of a chunk: action k is
in force in [t0 + k dt, t0 + (k + 1) dt) and stands at its end. No tick lies after the last command.

With `clock` the ticks are the stamps of one stream instead, the nearest to one period after the tick before it; the action
is then looked at just before the next tick. A stream that gives no stamp for more than one and a half periods splits the bag.

Ticks that lack a stream at the ends of a bag, or come before its first goal, are left out; in the middle they split it
into several episodes, so that no training window reaches over a gap. What was left out and why is in the episode's meta.
With `stale="keep"` no sample is too old, and only what never came is missing; ages are in the arrays.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from ros_vdd.config import parse_yaml
from ros_vdd.data.bag import ROBOT_KEY, TASK_KEY, Bag
from ros_vdd.data.bag_streams import BagStream, GoalStream, Tick, action_stream, goal_stream, observation_streams
from ros_vdd.data.bag_ticks import clock_ticks, even_ticks
from ros_vdd.data.frame_file import FrameFile
from ros_vdd.errors import ConfigError, DataError, suggest
from ros_vdd.streams.resample import Missing
from ros_vdd.streams.spec import RobotSpec, robot_from_mapping

MIN_FRAMES = 2  # a single frame shows no motion
STALE = ("drop", "keep")
FOREVER_S = 1e9
CLOCKS = ". Where the clocks differ, choose stamp: header or stamp: receive per stream in the robot file"
VERDICT_KEYS = ("verdict", "reasons", "success", "operator")  # what the recorder says of a take, below "ros_vdd."


def episodes_from_bag(
    path: str | Path, robot: RobotSpec, recover: bool = False, clock: str | None = None, stale: str = "drop"
) -> Iterator[tuple[dict[str, np.ndarray], dict[str, Any]]]:
    """Yield (arrays, meta) of every unbroken demonstration in a bag.

    Args:
        path: a bag folder, .mcap or .db3.
        robot: which topics, joints, rates and ages.
        recover: read what is left of a damaged MCAP.
        clock: "images.NAME" or "states.NAME", whose stamps are the ticks; None for even ticks.
        stale: what becomes of ticks with a sample older than its max_age_s: "drop" or "keep".

    Returns:
        arrays: "images.NAME" (N, H, W, 3) uint8, "state" (N, S) float32, "goal" (N, G) float32, "action" (N, A) float32,
            "stamp_ns" (N,) int64 (the ticks), and "age_ns.STREAM" (N,) int64: of an observation at t, of the action at t + dt.
        meta: source, task, segment (its number within the bag), warnings, refused messages by stream, and why
            ticks beside it were left out.

    Raises:
        DataError: the bag can't be read, lacks a topic or holds it as another type; a stream's clock goes back; or no
            two ticks in a row are complete, with the reason.
    """
    if stale not in STALE:
        raise ConfigError(f"'stale' is {stale!r}; {suggest(stale, STALE)}")
    robot = _ageless(robot) if stale == "keep" else robot
    with tempfile.TemporaryDirectory(prefix="ros_vdd_frames_") as folder:
        frames = {name: FrameFile(spec.output_shape, Path(folder)) for name, spec in robot.cameras.items()}
        yield from _episodes(Bag.open(path, recover), robot, frames, clock)


def _episodes(
    bag: Bag, robot: RobotSpec, frames: Mapping[str, FrameFile], clock: str | None
) -> Iterator[tuple[dict[str, np.ndarray], dict[str, Any]]]:
    observed = observation_streams(bag, robot, {name: file.put for name, file in frames.items()})
    goal = goal_stream(bag, robot)
    streams = [*observed, *([goal] if goal else []), action_stream(bag, robot)]  # the action stands last
    _fill(bag, streams, goal)
    ticks = _ticks(bag, streams, robot, clock)
    runs = [(whole, list(run)) for whole, run in groupby(ticks, key=lambda tick: tick.missing is None)]
    if not any(whole and len(run) >= MIN_FRAMES for whole, run in runs):
        why = _reasons([tick for tick in ticks if tick.missing]) or "it has a single tick"
        raise DataError(f"'{bag.path}' gives no episode: {why}; {_spans(streams)}{CLOCKS}")
    meta = {"source": str(bag.path), "task": bag.custom_data.get(TASK_KEY, ""), "warnings": _warnings(bag, robot)}
    meta |= {key: bag.custom_data[f"ros_vdd.{key}"] for key in VERDICT_KEYS if f"ros_vdd.{key}" in bag.custom_data}
    meta["refused"] = {s.key: f"{s.refused} of {s.received}: {s.refusal}" for s in streams if s.refused}
    segment = 0
    for index, (whole, run) in enumerate(runs):
        if whole and len(run) >= MIN_FRAMES:
            around = [t for _, r in runs[max(index - 1, 0) : index + 2] for t in r if t.missing]
            left_out = _reasons(around) if around else ""
            yield _arrays(run, robot, frames), {**meta, "segment": segment, "left_out_around": left_out}
            segment += 1


def _fill(bag: Bag, streams: list[BagStream], goal: GoalStream | None) -> None:
    by_topic: dict[str, list[BagStream]] = {}
    for stream in streams:
        by_topic.setdefault(stream.topic, []).append(stream)
    for topic, log_time_ns, message in bag.messages(by_topic):
        for stream in by_topic[topic]:
            stamp = stream.push(message, log_time_ns)
            if goal and stamp is not None and stream is streams[0]:
                goal.begin(stamp)
    for stream in streams:
        if why := stream.why_empty():
            raise DataError(f"'{bag.path}', {stream.key} (topic '{stream.topic}'): {why}")
        if stream.buffer.resets:
            raise DataError(
                f"'{bag.path}', {stream.key}: its clock goes back by seconds within the recording; cut the bag there, "
                "or write stamp: receive for this stream in the robot file"
            )


def _ageless(robot: RobotSpec) -> RobotSpec:
    """Return the robot with streams whose samples never grow old."""
    cameras = {name: replace(spec, max_age_s=FOREVER_S) for name, spec in robot.cameras.items()}
    states = {name: replace(spec, max_age_s=FOREVER_S) for name, spec in robot.states.items()}
    source = replace(robot.action.demonstrated, max_age_s=FOREVER_S)
    return replace(robot, cameras=cameras, states=states, action=replace(robot.action, source=source))


def _ticks(bag: Bag, streams: list[BagStream], robot: RobotSpec, clock: str | None) -> list[Tick]:
    end_ns = min(s.stamps[-1] for s in streams if not isinstance(s, GoalStream))
    observed = streams[:-1]
    reference = _reference(observed, clock)
    start_ns = next((s for s in reference.stamps if not any(isinstance(o.at(s), Missing) for o in observed)), None)
    if start_ns is None or start_ns > end_ns:
        why = next((m.reason for s in streams if isinstance(m := s.at(end_ns), Missing)), "they follow each other")
        raise DataError(f"'{bag.path}': at no time is every stream there; {why}. {_spans(streams)}{CLOCKS}")
    if clock is None:
        return [Tick.sample(t, streams, length_ns) for t, length_ns in even_ticks(start_ns, end_ns, robot.rate_hz)]
    ticks = []
    for stamp, length_ns in clock_ticks(reference.stamps, start_ns, end_ns, robot.rate_hz):
        missing = Tick(stamp, {}, f"clock: '{clock}' is silent for more than one and a half periods")
        ticks.append(Tick.sample(stamp, streams, length_ns) if length_ns else missing)
    return ticks


def _reference(observed: list[BagStream], clock: str | None) -> BagStream:
    """Return the stream whose stamps begin the ticks, or are them."""
    by_name = {s.key.replace("_", ".", 1): s for s in observed if not isinstance(s, GoalStream)}
    if clock is not None and clock not in by_name:
        raise ConfigError(f"clock '{clock}' is no observed stream; {suggest(clock, by_name)}")
    return observed[0] if clock is None else by_name[clock]


def _arrays(run: list[Tick], robot: RobotSpec, frames: Mapping[str, FrameFile]) -> dict[str, np.ndarray]:
    keys = list(run[0].samples)
    values = {key: np.stack([tick.samples[key].value for tick in run]) for key in keys}
    arrays = {f"images.{name}": frames[name].gather(values[f"images_{name}"].tolist()) for name in robot.cameras}
    if robot.states:
        arrays["state"] = np.concatenate([values[f"states_{name}"] for name in robot.states], axis=1)
    if robot.goal:
        arrays["goal"] = values["goal"]
    arrays["action"] = values["action"]
    arrays["stamp_ns"] = np.array([tick.stamp_ns for tick in run], dtype=np.int64)
    for key in (key for key in keys if key != "goal"):
        arrays[f"age_ns.{key}"] = np.array([tick.samples[key].age_ns for tick in run], dtype=np.int64)
    return arrays


def _warnings(bag: Bag, robot: RobotSpec) -> list[str]:
    text = bag.custom_data.get(ROBOT_KEY)
    if text is None:
        return bag.warnings
    try:
        recorded = robot_from_mapping(parse_yaml(text, f"robot file inside '{bag.path}'"))
    except ConfigError as error:
        return [*bag.warnings, f"the robot file inside the bag can't be read: {error}"]
    return [*bag.warnings, *(f"recorded with another robot file: {line}" for line in recorded.difference(robot))]


def _reasons(ticks: list[Tick]) -> str:
    """Return the most frequent reason of each stream, with the first time it held."""
    first: dict[str, Tick] = {}
    count: Counter[str] = Counter()
    for tick in ticks:
        stream = tick.missing.partition(":")[0]
        first.setdefault(stream, tick)
        count[stream] += 1
    told = {stream: f"first at {tick.stamp_ns} ns: {tick.missing}" for stream, tick in first.items()}
    return "; ".join(f"{n} ticks lack {stream} ({told[stream]})" for stream, n in count.items())


def _spans(streams: list[BagStream]) -> str:
    spans = [(s, s.stamps[0] / 1e9, s.stamps[-1] / 1e9) for s in streams]
    return ", ".join(f"{s.key} has stamps from {first:.3f} to {last:.3f} s ({s.stamp})" for s, first, last in spans)
