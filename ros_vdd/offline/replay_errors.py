# SPDX-License-Identifier: Apache-2.0
"""How far predicted actions are from recorded ones: by horizon step and joint, and for the best expert of a mixture."""

from __future__ import annotations

from typing import Any

import numpy as np

from ros_vdd.streams.spec import ActionSpec

TURN = 2 * np.pi


class ActionErrors:
    """Collects predictions and recordings, and tells their distance.

    e = predicted - recorded, of `continuous` joints the short way round. The best expert of a plan is the one with the smallest
    root mean square of e in halves of the joints' ranges, over the actions that were recorded: what the gate could have reached.

    Args:
        action: joints, unit and limits.
        executed: how many actions of a chunk are executed before the next.
    """

    def __init__(self, action: ActionSpec, executed: int):
        self._action, self._executed = action, executed
        self._range = np.maximum(np.subtract(action.upper, action.lower), 1e-9)
        self._endless = np.array([joint in action.continuous for joint in action.joints])
        self._errors: list[np.ndarray] = []  # (H, A) each
        self._best: list[np.ndarray] = []  # likewise

    def add(self, predicted: np.ndarray, recorded: np.ndarray, means: np.ndarray | None = None) -> None:
        """Take a plan `(H, A)`, what was recorded `(H, A)`, NaN where nothing was, and what each expert proposed `(K, H, A)`."""
        if np.isnan(recorded).all():
            return
        self._errors.append(self._distance(predicted, recorded))
        if means is not None:
            each = self._distance(means, recorded[None])
            squares = np.nanmean(np.square(each / (self._range / 2)), axis=(1, 2))
            self._best.append(each[int(np.argmin(squares))])

    def take(self, other: ActionErrors) -> None:
        """Take all plans of another."""
        self._errors += other._errors
        self._best += other._best

    def __len__(self) -> int:
        return len(self._errors)

    def by_horizon(self) -> np.ndarray:
        """Return the mean absolute error `(H, A)` by step and joint, [action unit]; NaN where nothing was recorded."""
        return _mean(np.abs(np.array(self._errors)), 0)

    def best_by_horizon(self) -> np.ndarray | None:
        """Return the same of the best expert, or None where the policy has none."""
        return _mean(np.abs(np.array(self._best)), 0) if self._best else None

    @property
    def mean(self) -> float | None:
        """Mean absolute error of all steps and joints, [action unit]; None without plans."""
        return _number(np.nanmean(np.abs(np.array(self._errors)))) if self._errors else None

    def figures(self) -> dict[str, Any]:
        """Return the figures under their stable keys, [action unit]; `relative` ones are shares of the joints' ranges."""
        errors = np.array(self._errors)
        size = np.abs(errors)
        return {
            "unit": self._action.unit,
            **_summary(errors, self._range),
            "executed": _number(np.nanmean(size[:, : self._executed])),
            "by_horizon": _numbers(_mean(size, (0, 2))),
            "rms_by_horizon": _numbers(np.sqrt(_mean(np.square(errors), (0, 2)))),
            "plans_by_horizon": np.isfinite(errors).all(axis=2).sum(axis=0).tolist(),
            "joints": {
                joint: {
                    **_summary(errors[:, :, a], self._range[a]),
                    "by_horizon": _numbers(_mean(size[:, :, a], 0)),
                    "rms_by_horizon": _numbers(np.sqrt(_mean(np.square(errors[:, :, a]), 0))),
                }
                for a, joint in enumerate(self._action.joints)
            },
            "best_expert": self._best_expert(),
        }

    def _best_expert(self) -> dict[str, Any] | None:
        if not self._best:
            return None
        best = np.array(self._best)
        return {**_summary(best, self._range), "by_horizon": _numbers(_mean(np.abs(best), (0, 2)))}

    def _distance(self, predicted: np.ndarray, recorded: np.ndarray) -> np.ndarray:
        apart = np.asarray(predicted, np.float64) - recorded
        return np.where(self._endless, np.remainder(apart + TURN / 2, TURN) - TURN / 2, apart)


def _summary(errors: np.ndarray, ranges: np.ndarray) -> dict[str, float]:
    return {
        "mean": _number(np.nanmean(np.abs(errors))),
        "rms": _number(np.sqrt(np.nanmean(np.square(errors)))),
        "relative": _number(np.nanmean(np.abs(errors) / ranges)),
    }


def _mean(values: np.ndarray, axes: int | tuple[int, ...]) -> np.ndarray:
    """Return the mean of what isn't NaN; NaN, without a warning, where all is."""
    there = np.isfinite(values)
    count = there.sum(axis=axes)
    return np.where(count > 0, np.where(there, values, 0.0).sum(axis=axes) / np.maximum(count, 1), np.nan)


def _number(value: float) -> float:
    return float(f"{value:.6g}")


def _numbers(values: np.ndarray) -> list[float | None]:
    return [_number(v) if np.isfinite(v) else None for v in values]
