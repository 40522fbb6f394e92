# SPDX-License-Identifier: Apache-2.0
"""The newest ticks of an episode, for callers that see one tick at a time; the first is repeated, as in training."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from ros_vdd.bundle import Bundle
from ros_vdd.errors import EngineError


class History:
    """What a policy has observed in this episode.

    An observation is {input: array}, either all of one tick ("images.<camera>" `(H, W, 3)`, "state" `(S,)`) or all of
    `n_obs_steps` ticks, oldest first. Pictures are uint8, the state is any kind of number. Other names are ignored.
    """

    def __init__(self, bundle: Bundle):
        self._shapes = bundle.robot.observation_shapes()
        self._ticks: deque[dict[str, np.ndarray]] = deque(maxlen=bundle.n_obs_steps)
        self._since: int | None = 0

    def reset(self) -> None:
        """Forget everything."""
        self._ticks.clear()
        self._since = 0

    def elapsed(self) -> int | None:
        """Return how many ticks were added since this was asked last; None where whole histories leave that open."""
        since, self._since = self._since, 0
        return since

    def add(self, observation: Mapping[str, Any]) -> None:
        """Take one tick, or replace everything by as many ticks as are kept.

        Raises:
            EngineError: a name is missing, a shape or type is another, or single ticks and histories are mixed.
        """
        arrays = self._arrays(observation)
        length = self._length(arrays)
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
        return {name: np.stack([tick[name] for tick in self._ticks]) for name in self._shapes}

    def whole(self, observation: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Return a history that was given as a whole, in the types the policy takes; what is kept stays as it is.

        Raises:
            EngineError: as `add`, or it is one tick of a policy that sees several.
        """
        arrays = self._arrays(observation)
        if self._length(arrays) is None:
            if self._ticks.maxlen > 1:
                raise EngineError(
                    f"observation is one tick; this policy sees {self._ticks.maxlen}. Give them all, oldest first, "
                    "or None for what the policy has observed"
                )
            return {name: array[None] for name, array in arrays.items()}
        return arrays

    def _arrays(self, observation: Mapping[str, Any]) -> dict[str, np.ndarray]:
        if missing := [name for name in self._shapes if name not in observation]:
            raise EngineError(f"observation lacks '{missing[0]}'; it holds {', '.join(sorted(observation)) or 'nothing'}")
        return {name: _typed(name, observation[name]) for name in self._shapes}

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
