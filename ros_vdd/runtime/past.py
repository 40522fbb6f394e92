# SPDX-License-Identifier: Apache-2.0
"""The actions that a window policy gave in this episode, as it takes them for its next answer."""

from __future__ import annotations

from collections import deque

import numpy as np

from ros_vdd.bundle import Bundle


class PastActions:
    """The newest T-1 actions of a window policy; of any other policy none are kept."""

    def __init__(self, bundle: Bundle):
        self._shape = bundle.past_shape
        self._actions: deque[np.ndarray] = deque(maxlen=self._shape[0] if self._shape else 0)

    def reset(self) -> None:
        """Forget everything."""
        self._actions.clear()

    def add(self, action: np.ndarray) -> None:
        """Take the action `(A,)` that is executed next."""
        self._actions.append(np.array(action, np.float32))

    def inputs(self) -> dict[str, np.ndarray]:
        """Return "past_actions" `(1, T-1, A)`, oldest first, and "past_mask" `(1, T-1)`, 1 where there is one; else {}."""
        if self._shape is None:
            return {}
        actions, mask = np.zeros((1, *self._shape), np.float32), np.zeros((1, self._shape[0]), np.float32)
        if count := len(self._actions):
            actions[0, -count:], mask[0, -count:] = self._actions, 1.0
        return {"past_actions": actions, "past_mask": mask}
