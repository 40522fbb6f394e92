# SPDX-License-Identifier: Apache-2.0
"""Chunks that take effect some ticks after their observation, and how well each follows from the one before."""

from __future__ import annotations

from collections import deque

import numpy as np

from ros_vdd.bundle import Bundle
from ros_vdd.errors import ConfigError
from ros_vdd.runtime.inference import Prediction

SWITCH = 0.1
"""By how much of half the joints' range a plan must depart from the one before, beyond what another expert offered, to be another."""


class Playback:
    """What is executed at each tick, where a chunk is in force only `delay` ticks after the observation it answers.

    Until then the chunk before goes on; the first one is in force at once, as a robot stands still until then.

    Args:
        horizon: H, actions of a chunk.
        replan_steps: ticks from one observation to the next that is answered.
        delay: ticks from an observation to the first action that is executed of its chunk.
        ensemble_decay: None takes the newest chunk in force; else the mean of all, weights exp(-ensemble_decay i), the oldest first.

    Raises:
        ConfigError: chunks are too short to bridge the delay.
    """

    def __init__(self, horizon: int, replan_steps: int, delay: int = 0, ensemble_decay: float | None = None):
        if not 0 <= delay <= horizon - replan_steps:
            raise ConfigError(
                f"'delay-steps' is {delay}; with {replan_steps} steps between plans and {horizon} actions a chunk, 0 to "
                f"{horizon - replan_steps} can be bridged"
            )
        self._delay, self._decay = delay, ensemble_decay
        self._chunks: deque[tuple[int, int, np.ndarray]] = deque(maxlen=horizon)  # tick, in force from, actions

    def add(self, tick: int, actions: np.ndarray) -> None:
        """Take the chunk `(H, A)` that answers the observation of a tick."""
        self._chunks.append((tick, tick + (self._delay if self._chunks else 0), actions))

    def at(self, tick: int) -> np.ndarray:
        """Return the action `(A,)` of a tick."""
        offered = [actions[tick - seen] for seen, begins, actions in self._chunks if begins <= tick < seen + len(actions)]
        if self._decay is None:
            return offered[-1]
        weights = np.exp(-self._decay * np.arange(len(offered)))
        return (weights / weights.sum()) @ np.array(offered)


class Continuity:
    """How well plans follow from the ones before: the jump at the seam, and how often a plan is another.

    A plan is another where some expert would have gone on with what was left of the plan before, better than the chosen one by more
    than `SWITCH`. Distances are root mean squares in halves of the joints' ranges.
    """

    def __init__(self, bundle: Bundle, replan_steps: int, delay: int = 0):
        action = bundle.robot.action
        self._half = np.maximum(np.subtract(action.upper, action.lower) / 2, 1e-9)
        self._steps, self._delay = replan_steps, delay
        self.reset()

    def reset(self) -> None:
        """Begin an episode."""
        self._plan: np.ndarray | None = None
        self.jumps: list[float] = []
        self.switches = 0

    def add(self, prediction: Prediction) -> None:
        """Take the next plan."""
        left, self._plan = None if self._plan is None else self._plan[self._steps :], prediction.actions
        if left is None or not len(left):
            return
        seam = min(self._delay, len(left) - 1)
        self.jumps.append(self._distance(prediction.actions[seam], left[seam]))
        if prediction.means is not None:
            nearest = min(self._distance(mean[: len(left)], left) for mean in prediction.means)
            self.switches += self._distance(prediction.actions[: len(left)], left) - nearest > SWITCH

    def _distance(self, one: np.ndarray, other: np.ndarray) -> float:
        return float(np.sqrt(np.square((one - other) / self._half).mean()))
