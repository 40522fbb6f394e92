# SPDX-License-Identifier: Apache-2.0
"""The actions that a policy which inpaints is told are certain: the next ones of the plan before."""

from __future__ import annotations

import numpy as np

from ros_vdd.backends import PREFIX, input_shapes
from ros_vdd.bundle import Bundle


class CertainActions:
    """Keeps the newest plan of a policy; of one that doesn't inpaint it keeps nothing.

    Args:
        bundle: the policy.
        steps: how many actions of the plan before are executed whatever is decided now.
    """

    def __init__(self, bundle: Bundle, steps: int):
        shapes = input_shapes(bundle)
        self._shapes = [shapes[name] for name in PREFIX] if bundle.inpaints else []
        self._steps = steps
        self.reset()

    def reset(self) -> None:
        """Begin an episode: there is no plan before."""
        self._plan: np.ndarray | None = None

    def add(self, actions: np.ndarray) -> None:
        """Take the newest plan `(H, A)`."""
        self._plan = actions if self._shapes else None

    def inputs(self, elapsed: int) -> dict[str, np.ndarray]:
        """Return "prefix" `(1, H, A)` and "prefix_mask" `(1, H)` so many ticks after the plan before; nothing without inpainting."""
        if not self._shapes:
            return {}
        prefix, mask = (np.zeros(*shape) for shape in self._shapes)
        if self._plan is not None and 0 < elapsed < len(self._plan):
            certain = self._plan[elapsed : elapsed + self._steps]
            prefix[0, : len(certain)], mask[0, : len(certain)] = certain, 1.0
        return dict(zip(PREFIX, (prefix, mask)))
