# SPDX-License-Identifier: Apache-2.0
"""The goal on its way in: the newest one that could be used counts until the next, whatever happens to the other streams."""

from __future__ import annotations

from typing import Any

import numpy as np

from ros_vdd.errors import StreamError
from ros_vdd.runtime.intake import NotReady
from ros_vdd.runtime.reasons import Reason
from ros_vdd.streams.codecs import decode_goal
from ros_vdd.streams.goal import GoalSpec


class GoalIntake:
    """Decodes goals; called from one thread only, the one that receives.

    Attributes:
        value: the goal in force (G,) float32, or None before the first.
        received: how many messages arrived.
        refused: how many of them couldn't be used.
        refusal: why the newest message was refused; None after a good one.
    """

    name = "goal"

    def __init__(self, spec: GoalSpec):
        self.spec, self.received, self.refused = spec, 0, 0
        self.value: np.ndarray | None = None
        self.refusal: str | None = None

    def set(self, goal: np.ndarray) -> None:
        """Put a goal (G,) in force."""
        self.value, self.refusal = goal, None

    def push(self, message: Any) -> bool:
        """Take a message; return whether it could be used. One that couldn't leaves the goal as it is."""
        self.received += 1
        try:
            self.set(decode_goal(message, self.spec))
        except StreamError as error:
            self.refused += 1
            self.refusal = str(error)
            return False
        return True

    def missing(self) -> NotReady | None:
        """Return why there is no goal, or None where there is one."""
        if self.value is not None:
            return None
        if self.refusal is not None:
            return NotReady(Reason.REFUSED_MESSAGE, self.name, f"goal: {self.refusal}")
        return NotReady(Reason.NO_GOAL, self.name, f"goal: nothing on topic '{self.spec.topic}' ({self.spec.type}) yet")
