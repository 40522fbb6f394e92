# SPDX-License-Identifier: Apache-2.0
"""The newest ticks of an episode, for callers that see one tick at a time; the first is repeated, as in training."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ros_vdd.bundle import Bundle
from ros_vdd.errors import ConfigError, EngineError


def stacked(frames: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the observation of the newest frames, oldest first: each input `(T, ...)`, but the newest "goal" `(G,)`."""
    newest = frames[-1]
    return {name: value if name == "goal" else np.stack([frame[name] for frame in frames]) for name, value in newest.items()}


class History:
    """What a policy has observed in this episode.

    An observation is {input: array}, either all of one tick ("images.<camera>" `(H, W, 3)`, "state" `(S,)`) or all of
    `n_obs_steps` ticks, oldest first. Pictures are uint8, the state is any kind of number. Other names are ignored.

    Of a robot with a goal the first one also has "goal": a task's name or number, or the vector `(G,)`. It has no ticks: the
    newest one counts, also where an observation leaves it out, and after `reset`.
    """

    def __init__(self, bundle: Bundle):
        self._shapes = bundle.robot.observation_shapes()
        self._ticks: deque[dict[str, np.ndarray]] = deque(maxlen=bundle.n_obs_steps)
        self._since: int | None = 0
        self._spec, self._goal = bundle.robot.goal, None

    def reset(self) -> None:
        """Forget everything but the goal."""
        self._ticks.clear()
        self._since = 0

    def elapsed(self) -> int | None:
        """Return how many ticks were added since the newest answer; None where whole histories leave that open."""
        return self._since

    def answered(self) -> None:
        """Note that a chunk answers what was observed so far."""
        self._since = 0

    def add(self, observation: Mapping[str, Any]) -> None:
        """Take one tick, or replace everything by as many ticks as are kept.

        Raises:
            EngineError: a name is missing, a shape or type is another, or single ticks and histories are mixed.
        """
        arrays, goal = self._arrays(observation), self._told(observation)
        length = self._length(arrays)
        self._goal = goal
        if length is None:
            self._ticks.extend([arrays] * (1 if self._ticks else self._ticks.maxlen))
            self._since = None if self._since is None else self._since + 1
        else:
            self._since = None
            self._ticks.extend({name: array[k] for name, array in arrays.items()} for k in range(length))

    def arrays(self) -> dict[str, np.ndarray]:
        """Return each input `(n_obs_steps, ...)`, as `PolicyRunner.act` takes it.

        Raises:
            EngineError: nothing was observed yet.
        """
        if not self._ticks:
            raise EngineError("nothing was observed in this episode yet; give an observation")
        return self._with_goal({name: np.stack([tick[name] for tick in self._ticks]) for name in self._shapes}, self._goal)

    def whole(self, observation: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Return a history that was given as a whole, in the types the policy takes; what is kept stays as it is.

        Raises:
            EngineError: as `add`, or it is one tick of a policy that sees several.
        """
        arrays, goal = self._arrays(observation), self._told(observation)
        if self._length(arrays) is None:
            if self._ticks.maxlen > 1:
                raise EngineError(
                    f"observation is one tick; this policy sees {self._ticks.maxlen}. Give them all, oldest first, "
                    "or None for what the policy has observed"
                )
            arrays = {name: array[None] for name, array in arrays.items()}
        return self._with_goal(arrays, goal)

    def _arrays(self, observation: Mapping[str, Any]) -> dict[str, np.ndarray]:
        if missing := [name for name in self._shapes if name not in observation]:
            raise EngineError(f"observation lacks '{missing[0]}'; it holds {', '.join(sorted(observation)) or 'nothing'}")
        return {name: _typed(name, observation[name]) for name in self._shapes}

    def _told(self, observation: Mapping[str, Any]) -> np.ndarray | None:
        """Return the goal of an observation, or else the one before; None where there is none."""
        if self._spec is None or "goal" not in observation:
            return self._goal
        try:
            return self._spec.encode(observation["goal"])
        except ConfigError as error:
            raise EngineError(f"observation 'goal': {error}") from error

    def _with_goal(self, arrays: dict[str, np.ndarray], goal: np.ndarray | None) -> dict[str, np.ndarray]:
        if self._spec is None:
            return arrays
        if goal is None:
            tasks = f", one of {', '.join(self._spec.tasks)}" if self._spec.tasks else f", {self._spec.size} numbers"
            raise EngineError(f"observation lacks 'goal': this policy must be told what to do{tasks}")
        return {**arrays, "goal": goal.copy()}

    def _length(self, arrays: Mapping[str, np.ndarray]) -> int | None:
        """Return the number of ticks of a history, or None for one tick."""
        steps = self._ticks.maxlen
        for name, array in arrays.items():
            tick = self._shapes[name]
            if array.shape not in (tick, (steps, *tick)):
                raise EngineError(
                    f"observation '{name}' has shape {array.shape}; expected {tick} for one tick, or {(steps, *tick)} for "
                    f"the newest {steps}, oldest first"
                )
        single = [name for name, array in arrays.items() if array.ndim == len(self._shapes[name])]
        if single and len(single) < len(arrays):
            raise EngineError(f"observation mixes one tick ({', '.join(single)}) with histories; give all inputs alike")
        return None if single else steps


def _typed(name: str, value: Any) -> np.ndarray:
    """Return a copy, for simulators that write their next frame into the same memory."""
    array = np.array(value)
    if name.startswith("images."):
        if array.dtype != np.uint8:
            raise EngineError(f"observation '{name}' is {array.dtype}; expected uint8, RGB from 0 to 255")
        return array
    if array.dtype.kind not in "iuf":
        raise EngineError(f"observation '{name}' is {array.dtype}; expected numbers")
    return array.astype(np.float32)
