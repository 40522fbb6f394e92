# SPDX-License-Identifier: Apache-2.0
"""What became of each plan that was due in a replay: a prediction, or the reason why there was none."""

from __future__ import annotations

import math
from collections import Counter
from typing import NamedTuple

from ros_vdd.runtime.inference import Prediction
from ros_vdd.runtime.intake import NotReady
from ros_vdd.runtime.reasons import Refusal

REPLACED = "observations_replaced"
"""Why a plan was dropped that gave way to a newer one; not a `Reason`, but a key of policy_node's diagnostics."""
_EARLY = 0.25  # of the time between two plans: so much before its time a plan counts as the one that was due


class Frame(NamedTuple):
    """One plan that was due.

    Attributes:
        time_ns: when it was handed over or missed, on the clock of the replay, [ns].
        stamp_ns: the tick of its observation, [ns]; None where there was none.
        prediction: what the policy answered, also where the gate refused that.
        reason: why no plan came of it, a code of the live path; None where one did.
        detail: the reason as a sentence.
    """

    time_ns: int
    stamp_ns: int | None = None
    prediction: Prediction | None = None
    reason: str | None = None
    detail: str = ""


class MissedPlans:
    """The plans that became due and got no observation: at most one each `replan_ns`, with the first reason told meanwhile.

    Times are of one clock, whichever: that of the log, or in lock-step the ticks.

    Args:
        replan_ns: from one plan to the next, [ns].
    """

    def __init__(self, replan_ns: int):
        self._replan_ns = replan_ns
        self._noted: list[tuple[int, str, str]] = []  # since the newest plan
        self._last_ns: int | None = None  # that plan, or one period before the beginning

    def begin(self, time_ns: int) -> None:
        """Note that a plan is due from now on; what was noted before is forgotten."""
        self._last_ns, self._noted = time_ns - self._replan_ns, []

    def note(self, time_ns: int, why: NotReady | Refusal) -> None:
        """Take the reason why there is no observation now."""
        if self._last_ns is None:
            self.begin(time_ns)
        self._noted.append((time_ns, why.code.value, why.detail))

    def planned(self, time_ns: int) -> list[Frame]:
        """Note that an observation was handed over; return the plans that were missed before it."""
        missed = [] if self._last_ns is None else self._missed(self._slot(time_ns))
        self._last_ns, self._noted = time_ns, []
        return missed

    def end(self) -> list[Frame]:
        """Return the plans that were missed since the newest one."""
        return self._missed(math.inf)

    def _missed(self, before: float) -> list[Frame]:
        first: dict[int, Frame] = {}
        for time_ns, code, detail in self._noted:
            slot = self._slot(time_ns)
            if 1 <= slot < before:
                first.setdefault(slot, Frame(time_ns, reason=code, detail=detail))
        return list(first.values())

    def _slot(self, time_ns: int) -> int:
        """Return which plan after the newest one is due at a time; 0 before the first of them."""
        return math.floor((time_ns - self._last_ns) / self._replan_ns + _EARLY)


def reasons(frames: list[Frame]) -> dict[str, int]:
    """Return how many frames were dropped for each reason, the most frequent first."""
    return dict(Counter(frame.reason for frame in frames if frame.reason).most_common())
