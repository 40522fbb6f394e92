# SPDX-License-Identifier: Apache-2.0
"""Whether a take is worth keeping, by figures that need no decoding: how long, how much is missing, where it was silent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from ros_vdd.errors import ConfigError
from ros_vdd.streams.checks import check_positive, check_topic

if TYPE_CHECKING:
    from ros_vdd.streams.spec import RobotSpec

Level = Literal["accept", "warn", "reject"]
LEVELS: tuple[Level, ...] = ("accept", "warn", "reject")  # from good to bad


@dataclass(frozen=True, kw_only=True)
class QualitySpec:
    """When a take is accepted, warned of or rejected: section `quality` of the robot file.

    Attributes:
        min_duration_s: [s] shorter takes are rejected.
        max_duration_s: [s] longer takes are rejected; None: no bound.
        max_loss: share of a topic's messages that may be missing; above half of it is warned of.
        max_gap_s: [s] longest silence of an observed topic or of the action; None: the `max_age_s` of its stream.
        min_rate_hz: [Hz] topic -> lowest mean rate.
        max_idle: share of ticks without motion above which is warned.
    """

    min_duration_s: float = 1.0
    max_duration_s: float | None = None
    max_loss: float = 0.01
    max_gap_s: float | None = None
    min_rate_hz: Mapping[str, float] = field(default_factory=dict)
    max_idle: float = 0.5

    def __post_init__(self) -> None:
        if not (math.isfinite(self.min_duration_s) and self.min_duration_s >= 0):
            raise ConfigError(f"'min_duration_s' is {self.min_duration_s}; expected a finite number, 0 or more")
        for key in ("max_duration_s", "max_gap_s"):
            check_positive(key, [] if getattr(self, key) is None else [getattr(self, key)])
        if self.max_duration_s is not None and self.max_duration_s < self.min_duration_s:
            raise ConfigError(f"'max_duration_s' is {self.max_duration_s}, below 'min_duration_s' {self.min_duration_s}")
        for key in ("max_loss", "max_idle"):
            if not 0 <= getattr(self, key) <= 1:
                raise ConfigError(f"'{key}' is {getattr(self, key)}; expected a share from 0 to 1")
        for topic, rate_hz in self.min_rate_hz.items():
            check_topic("min_rate_hz", topic)
            check_positive("min_rate_hz", [rate_hz])


@dataclass(frozen=True)
class TopicHealth:
    """How one topic came during a take.

    Attributes:
        messages: that were recorded.
        rate_hz: [Hz] mean.
        largest_gap_s: [s] longest silence, the times before the first and after the last message included.
        age_s: [s] log time minus header stamp, median; None without a header.
        lost: messages known to be missing.
    """

    messages: int
    rate_hz: float
    largest_gap_s: float
    age_s: float | None = None
    lost: int = 0

    @property
    def loss(self) -> float:
        """Share of the messages that are missing: lost / (recorded + lost)."""
        return self.lost / (self.messages + self.lost) if self.lost else 0.0


class Verdict(NamedTuple):
    """What is to be done with a take, and one sentence for each thing that is wrong."""

    level: Level
    reasons: tuple[str, ...] = ()


def judge(
    quality: QualitySpec, robot: RobotSpec, topics: Mapping[str, TopicHealth], duration_s: float, idle: float | None = None
) -> Verdict:
    """Return the verdict on a take; the worst finding decides.

    Args:
        quality: the thresholds.
        robot: whose topics count; the others are only looked at for loss, which is warned of, and for `min_rate_hz`.
        topics: by name as recorded, a namespace before those of the robot file included.
        duration_s: [s] from the first to the last message of the take.
        idle: share of ticks without motion, where somebody measured it.
    """
    findings: list[tuple[Level, str]] = []
    if duration_s < quality.min_duration_s:
        findings.append(("reject", f"lasted {duration_s:.3f} s, at least {quality.min_duration_s:g} s is asked for"))
    if quality.max_duration_s is not None and duration_s > quality.max_duration_s:
        findings.append(("reject", f"lasted {duration_s:.3f} s, at most {quality.max_duration_s:g} s is allowed"))
    limits = gap_limits(quality, robot)
    for wanted in limits:
        if not any(same_topic(wanted, name) and health.messages for name, health in topics.items()):
            findings.append(("reject", f"{wanted}: no messages"))
    for name, health in topics.items():
        limit_s = next((limit for wanted, limit in limits.items() if same_topic(wanted, name)), -1.0)
        if health.messages:
            findings += _flow(quality, name, health, limit_s)
        findings += _loss(quality, name, health, needed=limit_s != -1.0)
    findings += _rates(quality, topics)
    if idle is not None and idle > quality.max_idle:
        findings.append(("warn", f"nothing moves in {idle:.0%} of the ticks, limit {quality.max_idle:.0%}"))
    level = max((level for level, _ in findings), key=LEVELS.index, default="accept")
    return Verdict(level, tuple(text for _, text in sorted(findings, key=lambda f: -LEVELS.index(f[0]))))


def gap_limits(quality: QualitySpec, robot: RobotSpec) -> dict[str, float | None]:
    """Return the longest silence [s] of each topic a take can't do without; None for a goal, which may be said once."""
    limits: dict[str, float | None] = {}
    for stream in (*robot.cameras.values(), *robot.states.values(), robot.action.demonstrated):
        own = quality.max_gap_s or stream.max_age_s
        limits[stream.topic] = min(own, limits.get(stream.topic) or own)
    return limits | ({robot.goal.topic: None} if robot.goal else {})


def same_topic(wanted: str, recorded: str) -> bool:
    """Return whether a topic of the robot file is the recorded one; a relative name may lie in any namespace."""
    return recorded == wanted or not wanted.startswith("/") and f"/{recorded}".endswith(f"/{wanted}")


def _flow(quality: QualitySpec, name: str, health: TopicHealth, limit_s: float | None) -> list[tuple[Level, str]]:
    """Look at the silences and the transport delay of a topic with a limit."""
    findings: list[tuple[Level, str]] = []
    if limit_s is None or limit_s < 0:
        return findings
    if health.largest_gap_s > limit_s:
        findings.append(("reject", f"{name}: silent for {health.largest_gap_s:.2f} s, limit {limit_s:g} s"))
    if health.age_s is not None and not 0 <= health.age_s + 0.001 <= limit_s:
        where = "old when they come" if health.age_s > 0 else "stamped in the future"
        findings.append(("warn", f"{name}: messages are {where}, by {abs(health.age_s):.3f} s; limit {limit_s:g} s"))
    return findings


def _loss(quality: QualitySpec, name: str, health: TopicHealth, needed: bool) -> list[tuple[Level, str]]:
    if health.loss <= quality.max_loss / 2:
        return []
    level: Level = "reject" if needed and health.loss > quality.max_loss else "warn"
    total = health.messages + health.lost
    return [(level, f"{name}: {health.lost} of {total} messages lost ({health.loss:.1%}), limit {quality.max_loss:.1%}")]


def _rates(quality: QualitySpec, topics: Mapping[str, TopicHealth]) -> list[tuple[Level, str]]:
    findings: list[tuple[Level, str]] = []
    for wanted, lowest in quality.min_rate_hz.items():
        rates = {name: health.rate_hz for name, health in topics.items() if same_topic(wanted, name)}
        if not rates:
            findings.append(("reject", f"{wanted}: not recorded, but 'quality.min_rate_hz' names it"))
        findings += [("reject", f"{n}: {r:.1f} Hz, at least {lowest:g} Hz is asked for") for n, r in rates.items() if r < lowest]
    return findings
