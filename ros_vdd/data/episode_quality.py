# SPDX-License-Identifier: Apache-2.0
"""The figures of one demonstration, by which a person decides whether to keep it; our own.

What moves is what is measured: the positions among the states, or the actions of a robot that measures none. Each column is
counted in units of its scale, how far it goes in all episodes together, so that metres and radians add up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ros_vdd.data import episode_quality_motion as motion
from ros_vdd.data.episode_quality_columns import Columns, Scales
from ros_vdd.data.episode_quality_lag import measure_lag, offset
from ros_vdd.data.episode_quality_pictures import PictureFigures, measure_pictures
from ros_vdd.data.episode_quality_twins import content_digest, outline
from ros_vdd.streams.spec import RobotSpec

IDLE_S = 0.5  # [s] a shorter stop isn't idle
IDLE_BAND = 5e-3  # of a column's scale: what stays inside for IDLE_S stands still
COMMAND_BAND = 2e-2  # likewise of the commands to joints that are measured: they tremble more than the robot does
ENDLESS = 1e9  # [rad] limits of a joint that turns without end
MOVES = 2e-2  # of a column's scale: one that goes less far in an episode has no jerk worth telling


@dataclass(frozen=True)
class JointFigures:
    """One measured position in one episode: its range [unit], root mean square jerk [unit/s^3], and jerk as a frequency [Hz]."""

    unit: str
    low: float
    high: float
    rms_jerk: float | None
    jerk_hz: float | None


@dataclass(frozen=True)
class ActionFigures:
    """One commanded joint in one episode.

    Attributes:
        low, high: [unit] smallest and largest.
        at_lower_share, at_upper_share: of all ticks, at this limit or beyond.
        beyond: [unit] furthest outside its limits; 0 inside.
        too_fast_share: of all steps, faster than max_velocity; None where the robot file has none.
        offset: [unit] median of action minus the state that follows it; None where the joint isn't measured.
    """

    unit: str
    low: float
    high: float
    at_lower_share: float
    at_upper_share: float
    beyond: float
    too_fast_share: float | None
    offset: float | None


@dataclass(frozen=True)
class AgeFigures:
    """[s] how old the samples of one stream were at the ticks, and the limit of the robot file."""

    median_s: float
    p95_s: float
    max_s: float
    limit_s: float | None


@dataclass(frozen=True)
class EpisodeFigures:
    """Figures of one episode.

    Attributes:
        duration_s: [s] frames / rate.
        idle_share: of all ticks; idle_start_s, idle_end_s: [s] idle before the first and after the last motion.
        path_length: [scale] length of the way of all columns together.
        jerk_hz: [Hz] median over the columns that move; None where none does.
        lag_s, lag_correlation: of action and state, see `Lag`; None where no joint is commanded and measured.
        at_limit_share: of all ticks, with an action at a limit.
        uneven_share: of all steps between ticks, shorter than half a period or longer than one and a half.
        idle: (N,) bool, the ticks that idle_share counts.
        digest: sha256 of the content without times.
        outline: (D,) the motion as a vector, to find twins; begin, end: (C,) [scale] first and last position. In these
            three a joint that turns without end is its cosine and sine.
    """

    frames: int
    duration_s: float
    idle_share: float
    idle_start_s: float
    idle_end_s: float
    path_length: float
    jerk_hz: float | None
    lag_s: float | None
    lag_correlation: float | None
    at_limit_share: float
    uneven_share: float
    actions: dict[str, ActionFigures]
    joints: dict[str, JointFigures]
    ages: dict[str, AgeFigures]
    cameras: dict[str, PictureFigures]
    idle: np.ndarray
    digest: str
    outline: np.ndarray
    begin: np.ndarray
    end: np.ndarray


def measure(arrays: Mapping[str, np.ndarray], robot: RobotSpec, scales: Scales, pictures: bool = True) -> EpisodeFigures:
    """Return the figures of one episode.

    Args:
        arrays: as an episode store holds them.
        scales: of all episodes that it is compared with.
        pictures: look through the images as well; without, `cameras` is empty and `digest` is of the other arrays.
    """
    columns, dt_s = Columns.of(robot), 1 / robot.rate_hz
    positions, actions = columns.positions(arrays), columns.actions(arrays)
    still = _idle(positions, actions, columns, scales, dt_s)
    moving, scale = (positions, scales.positions) if columns.state else (actions, scales.actions)
    places, place_scale = motion.around(moving, scale, columns.turning if columns.state else columns.turning_actions)
    joints = _joints(positions, columns, dt_s) if columns.state else {}
    first, last = motion.edges(still)
    lag_s, correlation, offsets = _follow(positions, actions, columns, scales, dt_s)
    used = place_scale > 0
    at_limit = motion.at_limit(actions, *_limits(robot)).any(axis=1)
    kept = {name: arrays[name] for name in arrays if pictures or not name.startswith(("images.", "extra."))}
    return EpisodeFigures(
        frames=len(actions),
        duration_s=len(actions) * dt_s,
        idle_share=float(still.mean()),
        idle_start_s=first * dt_s,
        idle_end_s=last * dt_s,
        path_length=motion.path_length(moving, scale),
        jerk_hz=_episode_jerk_hz(moving, scale, dt_s),
        lag_s=lag_s,
        lag_correlation=correlation,
        at_limit_share=float(at_limit.mean()),
        uneven_share=_uneven_share(arrays["stamp_ns"], robot.dt_ns),
        actions=_actions(actions, robot, offsets, dt_s),
        joints=joints,
        ages={name[7:]: _age(arrays[name], age_limit_s(name[7:], robot)) for name in arrays if name.startswith("age_ns.")},
        cameras=_cameras(arrays, robot, still, dt_s) if pictures else {},
        idle=still,
        digest=content_digest(kept),
        outline=np.concatenate(
            [
                outline(*motion.around(positions, scales.positions, columns.turning)),
                outline(*motion.around(actions, scales.actions, columns.turning_actions)),
            ]
        ),
        begin=places[0, used] / place_scale[used],
        end=places[-1, used] / place_scale[used],
    )


def age_limit_s(stream: str, robot: RobotSpec) -> float | None:
    """Return max_age_s of a stream by its key, "images_NAME", "states_NAME" or "action"; None for others."""
    kind, _, name = stream.partition("_")
    spec = {"images": robot.cameras, "states": robot.states}.get(kind, {}).get(name)
    if stream == "action":
        return robot.action.demonstrated.max_age_s
    return spec.max_age_s if spec else None


def _idle(positions: np.ndarray, actions: np.ndarray, columns: Columns, scales: Scales, dt_s: float) -> np.ndarray:
    """Return (N,) bool: nothing measured moves, nor a command to a joint that is measured; without measurements, no command."""
    commands = [action for action, _ in columns.pairs] if columns.state else list(range(actions.shape[1]))
    values = np.concatenate([positions, actions[:, commands]], axis=1)
    scale = np.concatenate([scales.positions, scales.actions[commands]])
    bands = np.repeat([IDLE_BAND, COMMAND_BAND if columns.state else IDLE_BAND], [positions.shape[1], len(commands)])
    used = scale > 0
    if not used.any():
        return np.ones(len(actions), dtype=bool)
    return motion.idle(values[:, used], (bands * scale)[used], max(round(IDLE_S / dt_s) + 1, 2))


def _episode_jerk_hz(values: np.ndarray, scale: np.ndarray, dt_s: float) -> float | None:
    moves = (scale > 0) & (np.ptp(values, axis=0) > MOVES * scale)
    return _number(np.median(motion.jerk_hz(values[:, moves], dt_s))) if moves.any() else None


def _joints(positions: np.ndarray, columns: Columns, dt_s: float) -> dict[str, JointFigures]:
    low, high = positions.min(axis=0).tolist(), positions.max(axis=0).tolist()
    jerk, frequency = motion.rms_jerk(positions, dt_s), motion.jerk_hz(positions, dt_s)
    rows = zip(columns.units, low, high, map(_number, jerk), map(_number, frequency))
    return {name: JointFigures(*row) for name, row in zip(columns.names, rows)}


def _follow(
    positions: np.ndarray, actions: np.ndarray, columns: Columns, scales: Scales, dt_s: float
) -> tuple[float | None, float | None, dict[int, float]]:
    """Return lag [s], its correlation, and by action column how far the action is from the state that follows it [unit]."""
    pairs = [(a, s) for a, s in columns.pairs if scales.positions[s] > 0]
    if not pairs:
        return None, None, {}
    commanded, measured = actions[:, [a for a, _ in pairs]], positions[:, [s for _, s in pairs]]
    scale = scales.positions[[s for _, s in pairs]]
    lag_s, correlation = measure_lag(commanded / scale, measured / scale, dt_s)
    turning = [i for i, (a, s) in enumerate(pairs) if a in columns.turning_actions or s in columns.turning]
    apart = offset(commanded, measured, round((lag_s or 0.0) / dt_s), turning)
    return lag_s, correlation, {a: float(value) for (a, _), value in zip(pairs, apart)}


def _actions(actions: np.ndarray, robot: RobotSpec, offsets: Mapping[int, float], dt_s: float) -> dict[str, ActionFigures]:
    spec, (lower, upper) = robot.action, _limits(robot)
    margin = motion.AT_LIMIT * (upper - lower)
    at_lower, at_upper = (actions <= lower + margin).mean(axis=0), (actions >= upper - margin).mean(axis=0)
    outside = motion.beyond(actions, lower, upper)
    fast = None
    if spec.max_velocity is not None and len(actions) > 1:
        fast = motion.too_fast(actions, np.array(spec.max_velocity), dt_s).mean(axis=0)
    return {
        joint: ActionFigures(
            unit=spec.unit,
            low=float(actions[:, i].min()),
            high=float(actions[:, i].max()),
            at_lower_share=float(at_lower[i]),
            at_upper_share=float(at_upper[i]),
            beyond=float(outside[i]),
            too_fast_share=None if fast is None else float(fast[i]),
            offset=offsets.get(i),
        )
        for i, joint in enumerate(spec.joints)
    }


def _limits(robot: RobotSpec) -> tuple[np.ndarray, np.ndarray]:
    """Return lower and upper (A,); a joint that turns without end has none, as those of the robot file are of one turn."""
    action = robot.action
    endless = np.array([joint in action.continuous for joint in action.joints])
    return np.where(endless, -ENDLESS, action.lower), np.where(endless, ENDLESS, action.upper)


def _cameras(arrays: Mapping[str, np.ndarray], robot: RobotSpec, still: np.ndarray, dt_s: float) -> dict[str, PictureFigures]:
    return {name: measure_pictures(arrays[f"images.{name}"], still, dt_s) for name in robot.cameras}


def _age(age_ns: np.ndarray, limit_s: float | None) -> AgeFigures:
    median, p95, largest = (float(v) / 1e9 for v in np.percentile(age_ns, [50, 95, 100]))
    return AgeFigures(median, p95, largest, limit_s)


def _uneven_share(stamp_ns: np.ndarray, dt_ns: int) -> float:
    steps = np.diff(stamp_ns)
    return float((np.abs(steps - dt_ns) > 0.5 * dt_ns).mean()) if len(steps) else 0.0


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
