# SPDX-License-Identifier: Apache-2.0
"""A thread that acts at absolute deadlines t0 + n T, whatever happened before; a slot that was missed is counted, never made up for.

Sleeping for what is left until the next deadline keeps the phase: an error never adds up. Where the system permits it the thread
runs with real-time priority (SCHED_FIFO), below the 50 of ros2_control. The garbage collector is frozen meanwhile: a full collection
takes 4 ms with NumPy and 84 ms with PyTorch loaded; young objects are collected in the slack, once a second.
"""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable

from ros_vdd.runtime.statistics import Window

_GC_PERIOD_S = 1.0


class Pacer:
    """Calls a function once a period in a thread of its own.

    Args:
        period_ns: T, [ns].
        act: what to do; what it raises ends the thread and is given to `failed`.
        failed: told of that, in the thread.
        priority: of SCHED_FIFO, 0 for the usual scheduling.
        clock, sleep: the monotonic clock [ns] and how to wait [s].
    """

    def __init__(
        self,
        period_ns: int,
        act: Callable[[], None],
        failed: Callable[[Exception], None],
        priority: int = 0,
        clock: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self._period_ns, self._act, self._failed, self._priority = period_ns, act, failed, priority
        self._clock, self._sleep = clock, sleep
        self._running = False
        self._thread = threading.Thread(target=self._run, name="pacer", daemon=True)
        self.slots = 0
        """Deadlines that were kept or missed."""
        self.missed = 0
        """Slots without an action: the one before took, or the thread was kept from running, for longer."""
        self.late_us = Window(10_000)
        """How late the newest actions began, [us]."""
        self.realtime: str | None = None
        """Why there is no real-time priority; None where there is, or wasn't to be."""

    def start(self) -> None:
        """Begin; the first deadline is one period from now."""
        self._running = True
        self._thread.start()

    def stop(self, timeout_s: float = 1.0) -> bool:
        """End after the action in hand; return whether it ended in time."""
        self._running = False
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        self.realtime = _prioritise(self._priority)
        gc.collect()
        gc.freeze()
        gc.disable()
        try:
            self.pace()
        except Exception as error:  # whatever it is: the robot must hear of it, and nothing more is commanded
            self._failed(error)
        finally:
            gc.enable()
            gc.unfreeze()

    def pace(self) -> None:
        """Act at each deadline until `stop`."""
        deadline_ns = self._clock() + self._period_ns
        collected_ns = deadline_ns
        while self._running:
            wait_ns = deadline_ns - self._clock()
            if wait_ns > 0:
                self._sleep(wait_ns / 1e9)
            now_ns = self._clock()
            skipped = max(0, (now_ns - deadline_ns) // self._period_ns)
            self.slots += 1 + skipped
            self.missed += skipped
            deadline_ns += skipped * self._period_ns
            self.late_us.add(max(0, now_ns - deadline_ns) / 1e3)
            self._act()
            deadline_ns += self._period_ns
            if now_ns - collected_ns > _GC_PERIOD_S * 1e9:
                gc.collect(0)
                collected_ns = now_ns


def _prioritise(priority: int) -> str | None:
    """Give the calling thread real-time priority; return why that wasn't possible."""
    if not priority:
        return None
    if not hasattr(os, "sched_setscheduler"):
        return "this system has no SCHED_FIFO"
    try:
        os.sched_setscheduler(threading.get_native_id(), os.SCHED_FIFO, os.sched_param(priority))
    except (PermissionError, OSError) as error:
        return f"SCHED_FIFO {priority} isn't permitted ({error.strerror}); allow it with an rtprio limit in /etc/security/limits.conf"
    return None
