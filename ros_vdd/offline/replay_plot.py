# SPDX-License-Identifier: Apache-2.0
"""A picture of a replay: the error by horizon step, and every plan over the actions that were recorded, with the drops."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ros_vdd.offline.replay_errors import ActionErrors
from ros_vdd.offline.replay_source import ReplaySource
from ros_vdd.runtime.replay import Replay

SHOWN_JOINTS = 6
_SKY, _RUST = "tab:blue", "tab:red"


def draw(file: Path, source: ReplaySource, replay: Replay, errors: ActionErrors) -> None:
    """Write the errors of all bags, and the plans of one over time.

    Args:
        file: ends in .png, .svg or .pdf.
        source, replay: the bag that is drawn over time.
        errors: of all bags.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    robot = source.robot
    shown = robot.action.joints[:SHOWN_JOINTS]
    figure = pyplot.figure(figsize=(12, 1.6 + 1.9 * len(shown)))
    grid = figure.add_gridspec(len(shown), 2, width_ratios=(1, 2.4))
    _draw_errors(figure.add_subplot(grid[:, 0]), errors, shown, robot.action.unit)
    first_ns = min((f.stamp_ns for f in replay.frames if f.stamp_ns is not None), default=0)
    axes: list = []
    for a, joint in enumerate(shown):
        axes.append(figure.add_subplot(grid[a, 1], sharex=axes[0] if axes else None))
        _draw_plans(axes[-1], a, source, replay, first_ns, robot.dt_ns)
        axes[-1].set_ylabel(f"{joint} [{robot.action.unit}]", fontsize=8)
        axes[-1].tick_params(labelsize=7, labelbottom=a == len(shown) - 1)
    more = len(robot.action.joints) - len(shown)
    axes[0].set_title(f"{source.bag.path.name}{f' ({more} more joints not shown)' if more else ''}", fontsize=9)
    axes[0].legend(fontsize=7, loc="best")
    axes[-1].set_xlabel("time since the first plan [s]", fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=100)
    pyplot.close(figure)


def _draw_errors(axis, errors: ActionErrors, joints: tuple[str, ...], unit: str) -> None:
    by_horizon, best = errors.by_horizon(), errors.best_by_horizon()
    steps = np.arange(1, len(by_horizon) + 1)
    for a, joint in enumerate(joints):
        (line,) = axis.plot(steps, by_horizon[:, a], marker=".", linewidth=1.3, label=joint)
        if best is not None:
            axis.plot(steps, best[:, a], linestyle="--", linewidth=1, color=line.get_color(), label=f"{joint}, best expert")
    axis.set_ylim(bottom=0)
    axis.set_xlabel("step of the horizon", fontsize=8)
    axis.set_ylabel(f"mean absolute error [{unit}]", fontsize=8)
    axis.set_title(f"predicted - recorded, {len(errors)} plans", fontsize=9)
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.2)
    axis.legend(fontsize=7)


def _draw_plans(axis, joint: int, source: ReplaySource, replay: Replay, first_ns: int, dt_ns: int) -> None:
    """Draw one joint: each recorded action until the next, each planned one at the end of its period: be there by then."""
    stamps, values = source.actions()
    silent = 1 + np.flatnonzero(np.diff(stamps) > source.robot.action.demonstrated.max_age_s * 1e9)
    times, told = np.insert(stamps - first_ns, silent, stamps[silent] - first_ns), np.insert(values[:, joint], silent, np.nan)
    axis.step(times / 1e9, told, where="post", color="0.25", linewidth=1.6, label="recorded", zorder=2)
    plans = [frame for frame in replay.frames if frame.prediction]
    for k, frame in enumerate(plans):
        chunk = frame.prediction.actions[:, joint]
        times = (frame.stamp_ns - first_ns + np.arange(1, len(chunk) + 1) * dt_ns) / 1e9
        axis.plot(times, chunk, color=_SKY, alpha=0.55, linewidth=0.9, zorder=3, label="predicted" if k == 0 else None)
        axis.plot(times[:1], chunk[:1], color=_SKY, marker=".", markersize=3, zorder=3)
    begun_ns = replay.frames[0].time_ns if replay.frames else 0
    label = "dropped"
    for frame in replay.frames:
        if frame.reason:
            at_ns = frame.time_ns - begun_ns if frame.stamp_ns is None else frame.stamp_ns - first_ns
            axis.axvline(at_ns / 1e9, color=_RUST, linewidth=0.8, alpha=0.7, zorder=1, label=label)
            label = None
    low = min((f.stamp_ns - first_ns for f in plans), default=0) / 1e9
    high = max((f.stamp_ns - first_ns + len(f.prediction.actions) * dt_ns for f in plans), default=0) / 1e9
    axis.set_xlim(low - 0.02 * (high - low), high + 0.02 * (high - low))
    axis.grid(alpha=0.2)
