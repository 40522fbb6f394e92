# SPDX-License-Identifier: Apache-2.0
"""The figures of a replay: under stable keys, as a table for people, and held against thresholds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ros_vdd.errors import ConfigError
from ros_vdd.offline.replay_errors import ActionErrors
from ros_vdd.runtime.replay import Replay
from ros_vdd.runtime.replay_frames import Frame, reasons

SHOWN_STEPS = 8  # of the horizon in the table


@dataclass(frozen=True)
class Limits:
    """What a replay may show at most; None is no limit.

    Args:
        max_error: of `action_error.mean`, [action unit]; with `relative` a share of the joints' ranges.
        max_dropped: share of the frames that were dropped.
    """

    max_error: float | None = None
    relative: bool = False
    max_dropped: float | None = None

    @classmethod
    def parse(cls, max_error: str | None, max_dropped: float | None) -> Limits:
        """Read "12.5" (in the action's unit) or "3%" (of the joints' ranges).

        Raises:
            ConfigError: no number, or a negative one.
        """
        if max_dropped is not None and not 0 <= max_dropped <= 1:
            raise ConfigError(f"'max-dropped' is {max_dropped}; expected a share from 0 to 1")
        if max_error is None:
            return cls(max_dropped=max_dropped)
        relative = max_error.endswith("%")
        try:
            value = float(max_error.removesuffix("%")) / (100 if relative else 1)
        except ValueError:
            value = -1.0
        if not 0 <= value < float("inf"):
            raise ConfigError(f"'max-error' is '{max_error}'; expected 12.5 (in the action's unit) or 3% (of the joints' ranges)")
        return cls(value, relative, max_dropped)

    def passed(self, summary: Mapping[str, Any]) -> list[str]:
        """Return a sentence for each limit that a replay has passed."""
        error, told = summary["action_error"], []
        if self.max_error is not None:
            if self.relative and error["relative"] > self.max_error:
                told.append(f"the mean action error is {error['relative']:.2%} of the range, limit {100 * self.max_error:g}%")
            elif not self.relative and error["mean"] > self.max_error:
                told.append(f"the mean action error is {error['mean']:.4g} {error['unit']}, limit {self.max_error:g}")
        if self.max_dropped is not None and summary["dropped"] > self.max_dropped * summary["frames"]:
            why = ", ".join(f"{code} {count}" for code, count in summary["dropped_reasons"].items())
            told.append(f"{summary['dropped']} of {summary['frames']} plans were dropped ({why}), limit {self.max_dropped:.4g}")
        return told


def summarise(
    bags: Sequence[str], replays: Sequence[Replay], each: Sequence[ActionErrors], errors: ActionErrors
) -> dict[str, Any]:
    """Return the figures of some bags under their stable keys; errors are those of `each`, and of all."""
    frames = [frame for replay in replays for frame in replay.frames]
    dropped = reasons(frames)
    return {
        "frames": len(frames),
        "dropped": sum(dropped.values()),
        "dropped_reasons": dropped,
        "action_error": errors.figures(),
        "latency_ms": _latency(frames),
        "execution": _execution([replay.execution() for replay in replays]),
        "streams": _streams(replays),
        "per_bag": [_bag(*of_one) for of_one in zip(bags, replays, each)],
    }


def _bag(name: str, replay: Replay, errors: ActionErrors) -> dict[str, Any]:
    dropped = reasons(replay.frames)
    counts = {"frames": len(replay.frames), "dropped": sum(dropped.values()), "dropped_reasons": dropped}
    begun_ns = replay.frames[0].time_ns if replay.frames else 0
    drops = [
        {"at_s": round((frame.time_ns - begun_ns) / 1e9, 3), "reason": frame.reason, "detail": frame.detail}
        for frame in replay.frames
        if frame.reason
    ]
    return {"bag": name, **counts, "mean": errors.mean, "drops": drops}


def table(summary: Mapping[str, Any]) -> str:
    """Return the figures for people."""
    error, unit = summary["action_error"], summary["action_error"]["unit"]
    why = ", ".join(f"{code} {count}" for code, count in summary["dropped_reasons"].items())
    lines = [f"{summary['frames']} plans were due, {summary['dropped']} dropped{f' ({why})' if why else ''}"]
    lines += [*_first_drops(summary["per_bag"]), ""]
    steps = _steps(len(error["by_horizon"]))
    rows = {"all": error, **error["joints"]}
    if best := error["best_expert"]:
        rows["best expert"] = best
    width = max(map(len, [*rows, f"error [{unit}]"]))
    head = f"{f'error [{unit}]':{width}}  {'mean':>8}  {'RMS':>8}  {'of range':>8}  step "
    lines.append(head + " ".join(f"{k + 1:>7}" for k in steps))
    for name, row in rows.items():
        cells = " ".join(_cell(row["by_horizon"][k]) for k in steps)
        lines.append(f"{name:{width}}  {row['mean']:8.4g}  {row['rms']:8.4g}  {row['relative']:8.2%}       {cells}")
    latency, done = summary["latency_ms"], summary["execution"]
    lines += ["", "inference: p50 {p50:.2f} ms, p99 {p99:.2f} ms, max {max:.2f} ms on this machine".format(**latency)]
    stops = ", ".join(f"{code} {count}" for code, count in done["interventions"].items()) or "none"
    lines.append(
        f"executor: {done['commands']} commands, {done['chunks_refused']} chunks refused, {done['chunks_clamped']} clamped, "
        f"{done['commands_slowed']} commands slowed; interventions: {stops}"
    )
    for name, count in summary["streams"].items():
        if count["refused"]:
            lines.append(f"{name}: {count['refused']} of {count['received']} messages refused{_why(count['refusal'])}")
    return "\n".join([*lines, *_bags(summary["per_bag"], unit)])


def _first_drops(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each reason: when it first dropped a plan, and its sentence."""
    first: dict[str, str] = {}
    for row in rows:
        for drop in row["drops"]:
            when = f"first {drop['at_s']:g} s after the first plan due in {row['bag']}"
            first.setdefault(drop["reason"], f"  {drop['reason']}, {when}: {drop['detail']}")
    return list(first.values())


def _bags(rows: Sequence[Mapping[str, Any]], unit: str) -> list[str]:
    """Return a line a bag, where there are several."""
    if len(rows) < 2:
        return []
    width = max(len(row["bag"]) for row in rows)
    lines = ["", f"{'bag':{width}}  plans  dropped  mean error [{unit}]"]
    for row in rows:
        mean = "-" if row["mean"] is None else f"{row['mean']:.4g}"
        lines.append(f"{row['bag']:{width}}  {row['frames']:5d}  {row['dropped']:7d}  {mean:>{14 + len(unit)}}")
    return lines


def _steps(horizon: int) -> list[int]:
    """Return the steps that a table shows: all, or some evenly spaced with the first and the last."""
    return sorted(set(np.linspace(0, horizon - 1, min(horizon, SHOWN_STEPS)).round().astype(int).tolist()))


def _why(refusal: str | None) -> str:
    return f": {refusal}" if refusal else ""


def _cell(value: float | None) -> str:
    return f"{'-' if value is None else format(value, '.4g'):>7}"


def _latency(frames: Sequence[Frame]) -> dict[str, float]:
    times = [frame.prediction.latency_ns / 1e6 for frame in frames if frame.prediction]
    p50, p99 = np.percentile(times, [50, 99])
    return {k: round(float(v), 3) for k, v in {"p50": p50, "p99": p99, "mean": np.mean(times), "max": max(times)}.items()}


def _execution(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the sums of the executors' counters."""
    interventions: Counter[str] = Counter()
    for part in parts:
        interventions.update(part["interventions"])
    counts = {key: sum(part[key] for part in parts) for key in parts[0] if key != "interventions"}
    return {**counts, "interventions": dict(interventions.most_common())}


def _streams(replays: Sequence[Replay]) -> dict[str, dict[str, Any]]:
    """Return how many messages of each stream came and were refused, with the first bag's reason."""
    streams: dict[str, dict[str, Any]] = {}
    for replay in replays:
        goal = [replay.observer.goal] if replay.observer.goal else []
        for intake in [*replay.observer.intakes, *goal]:
            counts = streams.setdefault(intake.name, {"received": 0, "refused": 0, "refusal": None})
            counts["received"] += intake.received
            counts["refused"] += intake.refused
            counts["refusal"] = counts["refusal"] or intake.refusal
    return streams
