# SPDX-License-Identifier: Apache-2.0
"""A monitor in a thread of its own: however long it takes for a plan, no observation waits for it.

A plan that isn't looked at before the next one comes is given up, but remembered as the plan before.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from ros_vdd.runtime.chunking import ActionChunk
from ros_vdd.runtime.monitor import PlanMonitor
from ros_vdd.runtime.planning import Plan

Told = Callable[[Any, dict[str, Any], Exception | None], None]


class PlanWatch:
    """Looks at the newest plan.

    `submit`, `reset` and `stop` never wait for the monitor; `told` is called in the watch's thread.

    Args:
        monitor: used by the watch's thread only.
        told: called once for each plan, in their order, with what was submitted beside it, its figures (all None where there are none),
            and what went wrong, if anything did.
    """

    def __init__(self, monitor: PlanMonitor, told: Told):
        self._monitor, self._told = monitor, told
        self._condition = threading.Condition()
        self._plans: deque[tuple[ActionChunk, Plan | None, Any]] = deque()  # all but the newest without what they were made of
        self._anew, self._running = False, True
        self.given_up = 0
        """Plans that the monitor came too late for."""
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)
        self._thread.start()

    def submit(self, plan: Plan, beside: Any = None) -> None:
        """Hand over a plan that was published, and what `told` is to get with it."""
        with self._condition:
            if self._plans:  # it is given up: of a monitor that hangs only chunks pile up, no pictures
                self._plans[-1] = (self._plans[-1][0], None, self._plans[-1][2])
            self._plans.append((plan.chunk, plan, beside))
            self._condition.notify()

    @property
    def waiting(self) -> int:
        """Return how many plans the monitor hasn't begun with."""
        return len(self._plans)

    def reset(self) -> None:
        """Begin an episode: there is no plan before, and what waits is dropped."""
        with self._condition:
            self._plans.clear()
            self._anew = True

    def stop(self, timeout_s: float = 2.0) -> bool:
        """End after the plan in hand; return whether it ended in time."""
        with self._condition:
            self._running = False
            self._condition.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._plans or not self._running)
                if not self._running:
                    return
                plans, anew = list(self._plans), self._anew
                self._plans.clear()
                self._anew = False
            if anew:
                self._monitor.reset()
            for chunk, _, beside in plans[:-1]:
                self.given_up += 1
                self._monitor.skip(chunk)
                self._told(beside, dict.fromkeys(self._monitor.keys), None)
            self._look(*plans[-1][1:])

    def _look(self, plan: Plan, beside: Any) -> None:
        figures, problem = dict.fromkeys(self._monitor.keys), None
        try:
            figures = self._monitor.look(plan.observation, plan.chunk, plan.prediction)
        except Exception as error:  # whatever an engine raises: it is told, and costs no plan
            problem = error
        self._told(beside, figures, problem)
