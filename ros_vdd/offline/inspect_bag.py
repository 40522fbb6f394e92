# SPDX-License-Identifier: Apache-2.0
"""What `ros-vdd inspect` finds in a bag: topics, gaps, clocks, pictures, joints, and a verdict by the robot file."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ros_vdd.config import parse_yaml, to_plain
from ros_vdd.data.bag import ROBOT_KEY, Bag
from ros_vdd.data.bag_convert import episodes_from_bag
from ros_vdd.data.bag_file import RawMessage
from ros_vdd.data.bag_statistics import TopicStatistics, statistics
from ros_vdd.data.cdr import Decode
from ros_vdd.data.episode_quality import EpisodeFigures, measure
from ros_vdd.data.episode_quality_columns import Scales
from ros_vdd.errors import ConfigError, DataError, StreamError
from ros_vdd.offline.inspect_pictures import spread
from ros_vdd.streams.codecs import decode_image
from ros_vdd.streams.compressed import picture_size
from ros_vdd.streams.image_codec import CHANNELS
from ros_vdd.streams.quality import TopicHealth, Verdict, judge
from ros_vdd.streams.spec import CameraSpec, RobotSpec, robot_from_mapping

IMAGES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
JOINTS = "sensor_msgs/msg/JointState"
RECORDED = ("verdict", "reasons", "success", "operator", "revision", "task")  # what the recorder says, below "ros_vdd."
OTHER_CLOCK_S = 3600.0  # [s] between log and header: no message was on its way that long, so it has no age
GAP = 3.0  # times the usual interval: a silence worth marking on a topic that no robot file bounds
_INNER = ("idle", "outline", "begin", "end")


@dataclass
class BagView:
    """A bag that was looked through.

    Attributes:
        robot: given, or from inside the bag; None without one, with `robot_note` saying why where there is a reason.
        times: topic -> (N,) [s] log times since the first message of the bag.
        gaps: topic -> [s] (from, to) of each silence that is too long.
        pictures: image topic -> (caption, (H, W, 3) uint8 RGB) evenly spread, or why it can't be shown.
        joints: topic -> joint -> (times, positions) of each JointState topic.
        segments: (arrays without images, figures) of each episode that the bag would give; `why_none` says why there is none.
    """

    bag: Bag
    robot: RobotSpec | None
    robot_note: str
    topics: dict[str, TopicStatistics]
    times: dict[str, np.ndarray]
    duration_s: float
    gaps: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    pictures: dict[str, list[tuple[str, np.ndarray]] | str] = field(default_factory=dict)
    joints: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = field(default_factory=dict)
    segments: list[tuple[Mapping[str, np.ndarray], EpisodeFigures]] = field(default_factory=list)
    scales: Scales | None = None
    why_none: str = ""
    verdict: Verdict | None = None

    @property
    def recorded(self) -> dict[str, str]:
        """Return what the recorder left in custom_data, without its prefix."""
        return {key: self.bag.custom_data[f"ros_vdd.{key}"] for key in RECORDED if f"ros_vdd.{key}" in self.bag.custom_data}


def look_at_bag(path: Path, robot: RobotSpec | None = None, recover: bool = False, progress: bool = False) -> BagView:
    """Read a bag once, and what a robot file names of it once more.

    Args:
        robot: by which it is judged and its joints are read; None: the robot file inside.

    Raises:
        DataError: the bag can't be read.
    """
    from tqdm import tqdm

    bag = Bag.open(path, recover)
    robot, note = (robot, "") if robot else _robot_inside(bag)
    seen = _Seen(bag)
    total = sum(info.count for info in bag.topics.values())
    bar = tqdm(bag.raw_messages(bag.topics), total=total, unit="message", disable=not progress, leave=False, delay=2)
    topics = statistics(bag, seen.watch(bar))
    start_ns = min((t[0] for t in seen.log_ns.values() if t), default=0)
    times = {topic: (np.array(t, dtype=np.int64) - start_ns) / 1e9 for topic, t in seen.log_ns.items()}
    duration_s = max((float(t[-1]) for t in times.values() if len(t)), default=0.0)
    view = BagView(bag, robot, note, topics, times, duration_s)
    view.pictures, view.joints = seen.pictures, seen.joint_series(start_ns)
    health = topic_health(view)
    limits = _gap_limits(view)
    view.gaps = {t: gaps(times[t], limits.get(t), duration_s) for t in times}
    if robot:
        _segments(view, path, recover)
        idle = np.concatenate([f.idle for _, f in view.segments]).mean() if view.segments else None
        view.verdict = judge(robot.quality, robot, health, duration_s, None if idle is None else float(idle))
    return view


def describe_bag(view: BagView) -> dict[str, Any]:
    """Return storage, warnings, custom data, the statistics of each topic, the verdicts and the figures of each episode."""
    bag = view.bag
    figures = [{k: v for k, v in asdict(f).items() if k not in _INNER} for _, f in view.segments]
    return {
        "kind": "bag",
        "path": str(bag.path),
        "storage": bag.storage,
        "warnings": bag.warnings,
        "custom_data": bag.custom_data,
        "duration_s": view.duration_s,
        "topics": to_plain(view.topics),
        "gaps": {topic: [list(gap) for gap in found] for topic, found in view.gaps.items()},
        "robot": view.robot.name if view.robot else None,
        "robot_note": view.robot_note,
        "recorded": view.recorded,
        "verdict": None if view.verdict is None else {"level": view.verdict.level, "reasons": list(view.verdict.reasons)},
        "episodes": figures,
        "why_no_episode": view.why_none,
    }


def topic_health(view: BagView) -> dict[str, TopicHealth]:
    """Return what a verdict is given by, for each topic; the silence before its first and after its last message counts."""
    lost = _lost(view.bag)
    found = {}
    for topic, told in view.topics.items():
        times = view.times.get(topic, np.zeros(0))
        silences = np.diff(np.concatenate([[0.0], times, [view.duration_s]]))
        age_s = told.log_minus_header_s[1] if told.log_minus_header_s and not other_clock(told) else None
        rate_hz = told.count / view.duration_s if view.duration_s else 0.0
        found[topic] = TopicHealth(told.count, rate_hz, float(silences.max()), age_s, lost.get(topic, 0))
    return found


def other_clock(told: TopicStatistics) -> bool:
    """Return whether a topic's headers are of another clock than the log, such as a simulator's: an hour or more apart."""
    return told.log_minus_header_s is not None and abs(told.log_minus_header_s[1]) >= OTHER_CLOCK_S


def gaps(times: np.ndarray, limit_s: float | None, duration_s: float) -> list[tuple[float, float]]:
    """Return the silences [s] of a topic that are too long.

    Args:
        times: (N,) [s] of its messages since the start of the bag.
        limit_s: [s] longest silence; None: three times the median interval of a topic that comes evenly, else none.
        duration_s: [s] of the bag.
    """
    if limit_s is not None:
        edges = np.concatenate([[0.0], times, [duration_s]])
    elif len(times) >= 10 and np.percentile(np.diff(times), 75) <= 2 * np.median(np.diff(times)):
        edges, limit_s = times, max(GAP * float(np.median(np.diff(times))), 0.02)
    else:
        return []
    long = np.flatnonzero(np.diff(edges) > limit_s)
    return [(float(edges[i]), float(edges[i + 1])) for i in long]


class _Seen:
    """What the single pass over a bag keeps: times, some pictures, joint positions."""

    def __init__(self, bag: Bag):
        self.log_ns: dict[str, array[int]] = {topic: array("q") for topic in bag.topics}
        self.pictures: dict[str, list[tuple[str, np.ndarray]] | str] = {}
        self._decoders: dict[str, Decode] = {}
        self._wanted: dict[str, set[int]] = {}
        self._joints: dict[str, dict[str, tuple[array[int], array[float]]]] = {}  # log times [ns], positions
        for topic, info in bag.topics.items():
            if info.count and (info.type in IMAGES or info.type == JOINTS):
                try:
                    self._decoders[topic] = bag.decoder(topic)
                except DataError as error:
                    self.pictures |= {topic: str(error)} if info.type in IMAGES else {}
                    continue
                if info.type in IMAGES:
                    self._wanted[topic], self.pictures[topic] = set(spread(info.count)), []
                else:
                    self._joints[topic] = {}

    def watch(self, messages: Iterable[RawMessage]) -> Iterator[RawMessage]:
        for raw in messages:
            place = len(self.log_ns[raw.topic])
            self.log_ns[raw.topic].append(raw.log_time_ns)
            try:
                if raw.topic in self._joints:
                    self._keep_joints(raw)
                elif place in self._wanted.get(raw.topic, ()):
                    self._keep_picture(raw)
            except (DataError, StreamError) as error:
                if isinstance(self.pictures.get(raw.topic), list) and not self.pictures[raw.topic]:
                    self.pictures[raw.topic] = str(error)
            yield raw

    def joint_series(self, start_ns: int) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
        return {
            topic: {
                name: ((np.array(times) - start_ns) / 1e9, np.array(positions))
                for name, (times, positions) in joints.items()
            }
            for topic, joints in self._joints.items()
        }

    def _keep_picture(self, raw: RawMessage) -> None:
        kept = self.pictures[raw.topic]
        if isinstance(kept, list):
            start_ns = min(t[0] for t in self.log_ns.values() if t)
            picture = any_picture(self._decoders[raw.topic](raw.data), raw.topic)
            kept.append((f"{(raw.log_time_ns - start_ns) / 1e9:.1f} s", np.array(picture)))

    def _keep_joints(self, raw: RawMessage) -> None:
        message = self._decoders[raw.topic](raw.data)
        values = message.position if len(message.position) else message.velocity
        names = message.name if len(message.name) == len(values) else [f"[{i}]" for i in range(len(values))]
        unit = "" if len(message.position) else " velocity"
        for name, value in zip(names, values):
            if np.isfinite(value):
                times, positions = self._joints[raw.topic].setdefault(f"{name}{unit}", (array("q"), array("d")))
                times.append(raw.log_time_ns)
                positions.append(value)


def any_picture(message: Any, topic: str) -> np.ndarray:
    """Return an Image or CompressedImage as (H, W, 3) uint8 RGB, by its own size and encoding.

    Raises:
        StreamError: an encoding that isn't known, or damaged.
    """
    if hasattr(message, "format"):
        width, height = picture_size(bytes(message.data))
        type_, encoding = IMAGES[1], "bgr8"
    else:
        width, height, type_, encoding = message.width, message.height, IMAGES[0], message.encoding
        if encoding not in CHANNELS:
            raise StreamError(f"encoding '{encoding}' isn't shown; those that are: {', '.join(CHANNELS)}")
    try:
        spec = CameraSpec(
            topic=topic.strip("/") or "image", type=type_, width=width, height=height, encoding=encoding, max_age_s=1.0
        )
        return decode_image(message, spec)
    except ConfigError as error:
        raise StreamError(f"'{topic}': {error}") from error


def _robot_inside(bag: Bag) -> tuple[RobotSpec | None, str]:
    text = bag.custom_data.get(ROBOT_KEY)
    if text is None:
        return None, "no robot file inside; --robot names one to judge by"
    try:
        return robot_from_mapping(parse_yaml(text, f"robot file inside '{bag.path}'")), ""
    except ConfigError as error:
        return None, f"the robot file inside can't be read: {error}"


def _lost(bag: Bag) -> dict[str, int]:
    """Return how many messages of each topic the recorder knows to be missing."""
    try:
        found = parse_yaml(bag.custom_data.get("ros_vdd.lost", "{}"), "ros_vdd.lost")
    except ConfigError:
        return {}
    return {str(topic): count for topic, count in found.items() if isinstance(count, int)}


def _gap_limits(view: BagView) -> dict[str, float]:
    from ros_vdd.streams.quality import gap_limits, same_topic

    if view.robot is None:
        return {}
    bounds = {t: limit for t, limit in gap_limits(view.robot.quality, view.robot).items() if limit is not None}
    return {topic: limit for topic in view.topics for wanted, limit in bounds.items() if same_topic(wanted, topic)}


def _segments(view: BagView, path: Path, recover: bool) -> None:
    """Convert states and action, without images, and measure each episode."""
    if not view.robot.states:
        view.why_none = "the robot file names no joint states to plot"
        return
    blind = replace(view.robot, cameras={})
    try:
        found = [arrays for arrays, _ in episodes_from_bag(path, blind, recover)]
    except DataError as error:
        view.why_none = str(error)
        return
    view.scales = Scales.of(found, blind)
    view.segments = [(arrays, measure(arrays, blind, view.scales, pictures=False)) for arrays in found]
