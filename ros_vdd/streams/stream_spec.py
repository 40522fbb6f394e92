# SPDX-License-Identifier: Apache-2.0
"""What one robot's streams are: topics, shapes, joint order, units and limits, each as a frozen dataclass.

A robot file (YAML) fills these; recorder, converter, trainer and nodes read nothing else about a robot.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ros_vdd.errors import ConfigError, suggest
from ros_vdd.streams.checks import check_joints, check_per_joint, check_positive, check_topic, check_unique

Stamp = Literal["header", "receive"]
ImageType = Literal["sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"]
Encoding = Literal["rgb8", "bgr8", "mono8", "rgba8", "bgra8"]
Field = Literal["position", "velocity", "effort"]
ActionType = Literal[
    "trajectory_msgs/msg/JointTrajectory", "std_msgs/msg/Float64MultiArray", "sensor_msgs/msg/JointState"
]
MAX_SIDE = 8192  # [px] a larger image is a mistake in a file, or an attack in a message


@dataclass(frozen=True, kw_only=True)
class CameraSpec:
    """One camera: what arrives, and what the policy sees of it after crop, then resize.

    Attributes:
        topic: name of the image topic.
        width, height: [px] size of the image as sent.
        max_age_s: [s] an image older than this at a tick is missing.
        encoding: pixel layout as sent; a compressed image carries its own, so it is not looked at there.
        crop: [px] (x, y, width, height) cut out first, or None.
        resize: [px] (width, height) the crop is scaled to, or None.
        stamp: the time an image belongs to: its header's, or when it was received.
        frozen_after_s: [s] a camera that sends the same bytes for longer is broken; None for simulators, where scenes stand.
    """

    topic: str
    type: ImageType = "sensor_msgs/msg/Image"
    width: int
    height: int
    encoding: Encoding = "rgb8"
    crop: tuple[int, int, int, int] | None = None
    resize: tuple[int, int] | None = None
    stamp: Stamp = "header"
    max_age_s: float
    frozen_after_s: float | None = None

    def __post_init__(self) -> None:
        check_topic("topic", self.topic)
        _check_side("width", self.width)
        _check_side("height", self.height)
        check_positive("max_age_s", [self.max_age_s])
        check_positive("frozen_after_s", [] if self.frozen_after_s is None else [self.frozen_after_s])
        for side in self.resize or ():
            _check_side("resize", side)
        if self.crop is not None:
            x, y, width, height = self.crop
            if min(x, y) < 0 or min(width, height) < 1 or x + width > self.width or y + height > self.height:
                raise ConfigError(
                    f"'crop' (x, y, width, height) = {self.crop} leaves the image of {self.width}x{self.height} pixels"
                )

    @property
    def output_shape(self) -> tuple[int, int, int]:
        """(H, W, 3) after crop and resize."""
        width, height = self.resize or (self.crop[2:] if self.crop else (self.width, self.height))
        return height, width, 3


def _check_side(key: str, side: int) -> None:
    if not 1 <= side <= MAX_SIDE:
        raise ConfigError(f"'{key}' is {side}; expected 1 to {MAX_SIDE} pixels")


@dataclass(frozen=True, kw_only=True)
class JointStateSpec:
    """Joint values read by name from one topic, in the declared order: all of one field, then all of the next.

    Attributes:
        joints: names as in the message, in the order of the array.
        fields: which of position, velocity and effort, in the order of the array.
        unit: of the positions, for example rad, m or px; nothing is converted.
        continuous: joints that turn without end (URDF's word): policies see cosine and sine of their position [rad].
        max_age_s: [s] a joint value older than this at a tick is missing.
    """

    topic: str
    joints: tuple[str, ...]
    fields: tuple[Field, ...] = ("position",)
    unit: str
    continuous: tuple[str, ...] = ()
    stamp: Stamp = "header"
    max_age_s: float

    def __post_init__(self) -> None:
        check_topic("topic", self.topic)
        check_joints("joints", self.joints)
        check_unique("continuous", self.continuous)
        for joint in self.continuous:
            if joint not in self.joints:
                raise ConfigError(f"'continuous' names joint {joint!r}; {suggest(joint, self.joints)}")
        if self.continuous and self.unit != "rad":
            raise ConfigError(f"'continuous' is {self.continuous}, but 'unit' is {self.unit!r}; only an angle in rad turns without end")
        if not self.fields:
            raise ConfigError("'fields' is empty; choose from position, velocity, effort")
        check_unique("fields", self.fields)
        check_positive("max_age_s", [self.max_age_s])

    @property
    def size(self) -> int:
        """Number of values in the array."""
        return len(self.joints) * len(self.fields)

    @property
    def features(self) -> tuple[tuple[str, str], ...]:
        """(joint, field) of each value, in the order of the array."""
        return tuple((joint, field) for field in self.fields for joint in self.joints)


@dataclass(frozen=True, kw_only=True)
class ActionSource:
    """Where demonstrated actions are read from when that is not the command topic, for example a leader arm.

    It carries the action's joints under the same names.
    """

    topic: str
    type: ActionType = "sensor_msgs/msg/JointState"
    stamp: Stamp = "header"
    max_age_s: float = 0.5

    def __post_init__(self) -> None:
        check_topic("topic", self.topic)
        check_positive("max_age_s", [self.max_age_s])


@dataclass(frozen=True, kw_only=True)
class ActionSpec:
    """What the robot is commanded: positions of joints, in this order, inside these limits.

    Attributes:
        lower, upper: [unit] limits per joint; nothing is commanded outside of them. Of a continuous joint those of one turn.
        max_velocity: [unit/s] limit per joint, or None where the device limits itself.
        max_acceleration: [unit/s^2] likewise. With it commands are continuous in velocity, and every stop is a deceleration.
        max_jerk: [unit/s^3] likewise; needs `max_acceleration`.
        command_rate_hz: [Hz] how often the executor publishes.
        interpolation: between two actions of a chunk: hold the earlier, go straight to the next, or on a smooth curve through all.
        switched: joints that are never blended between two plans, such as grippers.
        continuous: joints that turn without end, [rad]: plans are blended the short way round.
        source: where demonstrations are read from, or None for the command topic itself.
    """

    topic: str
    type: ActionType = "trajectory_msgs/msg/JointTrajectory"
    joints: tuple[str, ...]
    unit: str
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    max_velocity: tuple[float, ...] | None = None
    max_acceleration: tuple[float, ...] | None = None
    max_jerk: tuple[float, ...] | None = None
    command_rate_hz: float
    interpolation: Literal["hold", "linear", "cubic"] = "hold"
    switched: tuple[str, ...] = ()
    continuous: tuple[str, ...] = ()
    source: ActionSource | None = None

    def __post_init__(self) -> None:
        check_topic("topic", self.topic)
        check_joints("joints", self.joints)
        check_per_joint("lower", self.lower, self.joints)
        check_per_joint("upper", self.upper, self.joints)
        for joint, low, high in zip(self.joints, self.lower, self.upper):
            if low > high:
                raise ConfigError(f"'lower' is {low} above 'upper' {high} for joint {joint!r}; exchange them")
        for key in ("max_velocity", "max_acceleration", "max_jerk"):
            if (limits := getattr(self, key)) is not None:
                check_per_joint(key, limits, self.joints)
                check_positive(key, limits)
        if self.max_jerk is not None and self.max_acceleration is None:
            raise ConfigError("'max_jerk' is given without 'max_acceleration'; give both")
        for key in ("switched", "continuous"):
            for joint in (names := getattr(self, key)):
                if joint not in self.joints:
                    raise ConfigError(f"'{key}' names {joint!r}, which isn't commanded; {suggest(joint, self.joints)}")
            check_unique(key, names)
        if self.continuous and self.unit != "rad":
            raise ConfigError(f"'continuous' joints need 'unit' rad; it is {self.unit!r}")
        for joint, low, high in zip(self.joints, self.lower, self.upper):
            if joint in self.continuous and high - low < 2 * math.pi - 0.01:
                raise ConfigError(
                    f"'continuous' names {joint!r}, whose limits {low} to {high} leave less than a turn; one that mustn't go round isn't continuous"
                )
        check_positive("command_rate_hz", [self.command_rate_hz])

    @property
    def demonstrated(self) -> ActionSource:
        """Where a demonstration's actions are: `source`, else the commands by the time they were received."""
        return self.source or ActionSource(topic=self.topic, type=self.type, stamp="receive")


@dataclass(frozen=True, kw_only=True)
class SafeAction:
    """What is commanded, once, when there is no valid chunk any more.

    Attributes:
        kind: hold = the measured joint position at that moment; stop = publish nothing more; position = `positions`.
        positions: [action unit] one per action joint, for kind position only.
        stale_chunk_s: [s] a chunk whose stamp is older than this is not executed, even where its horizon goes on.
    """

    kind: Literal["hold", "stop", "position"]
    positions: tuple[float, ...] | None = None
    stale_chunk_s: float

    def __post_init__(self) -> None:
        check_positive("stale_chunk_s", [self.stale_chunk_s])
        if self.kind == "position" and self.positions is None:
            raise ConfigError("'kind' is position, so 'positions' must give one number per action joint")
        if self.kind != "position" and self.positions is not None:
            raise ConfigError(f"'positions' is given, but 'kind' is {self.kind}; write kind: position or remove it")
        if self.positions is not None and not all(map(math.isfinite, self.positions)):
            raise ConfigError(f"'positions' is {self.positions}; expected finite numbers")
