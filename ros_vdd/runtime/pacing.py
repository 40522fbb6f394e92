# SPDX-License-Identifier: Apache-2.0
"""A thread that acts at absolute deadlines t0 + n T, whatever happened before; a slot that was missed is counted, never made up for.

Sleeping for what is left until the next deadline keeps the phase: an error never adds up. Where the system permits it the thread
runs with real-time priority (SCHED_FIFO), below the 50 of ros2_control, and the thread that started it with one less: on a busy
machine it would otherwise be put aside while it holds the interpreter's lock, and the deadline would wait for it (p99 5 ms instead of
0.5 at 100 Hz). A thread that computes gives the lock up after half a millisecond instead of five. The garbage collector is frozen
meanwhile: a full collection takes 4 ms with NumPy and 84 ms with PyTorch loaded; young objects are collected in the slack, once a second.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable

from ros_vdd.runtime.statistics import Window

_GC_PERIOD_S = 1.0
_SWITCH_S = 5e-4


class _Sharing:
    """What all pacers of the process need of it; the last one that ends gives it back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pacers = 0
        self._raised: Counter[int] = Counter()  # pacers that each thread was given priority for
        self._switch_s = 0.0

    def __enter__(self) -> None:
        with self._lock:
            self._pacers += 1
            if self._pacers == 1:
                self._switch_s = sys.getswitchinterval()
                sys.setswitchinterval(min(_SWITCH_S, self._switch_s))
                gc.collect()
                gc.freeze()
                gc.disable()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._pacers -= 1
            if not self._pacers:
                gc.enable()
                gc.unfreeze()
                sys.setswitchinterval(self._switch_s)

    def lift(self, thread: int, priority: int) -> bool:
        """Give a thread real-time priority while a pacer runs; return whether it was possible."""
        with self._lock:
            try:
                own = os.sched_getscheduler(thread) != os.SCHED_OTHER  # somebody else decided on it
            except OSError:
                return False  # that thread has ended
            if not self._raised[thread] and (own or priority < 1 or _prioritise(priority, thread)):
                return False
            self._raised[thread] += 1
            return True

    def lower(self, thread: int) -> None:
        """Take it away again, unless another pacer needs it."""
        with self._lock:
            self._raised[thread] -= 1
            if not self._raised[thread]:
                with contextlib.suppress(OSError):  # that thread has ended
                    os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))


_sharing = _Sharing()


class Pacer:
    """Calls a function once a period in a thread of its own.

    Args:
        period_ns: T, [ns].
        act: what to do; what it raises ends the thread and is given to `failed`.
        failed: told of that, in the thread.
        priority: of SCHED_FIFO, 0 for the usual scheduling; the thread that calls `start` has one less until the pacer ends.
        clock, sleep: the monotonic clock [ns] and how to wait [s].
    """

    def __init__(
        self,
        period_ns: int,
        act: Callable[[], None],
        failed: Callable[[BaseException], None],
        priority: int = 0,
        clock: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self._period_ns, self._act, self._failed, self._priority = period_ns, act, failed, priority
        self._clock, self._sleep = clock, sleep
        self._running = False
        self._starter = 0  # whose thread started it
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
        self._starter = threading.get_native_id()
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def stop(self, timeout_s: float = 1.0) -> bool:
        """End after the action in hand; return whether it ended in time."""
        self._running = False
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        self.realtime = _prioritise(self._priority, threading.get_native_id())
        lifted = False
        try:
            lifted = self._priority > 0 and not self.realtime and _sharing.lift(self._starter, self._priority - 1)
            with _sharing:
                self.pace()
        except BaseException as error:  # whatever it is: the robot must hear of it, and nothing more is commanded
            self._failed(error)
        finally:
            if lifted:
                _sharing.lower(self._starter)

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


def _prioritise(priority: int, thread: int) -> str | None:
    """Give a thread real-time priority; return why that wasn't possible."""
    if not priority:
        return "not asked for: priority 0"
    if not hasattr(os, "sched_setscheduler"):
        return "this system has no SCHED_FIFO"
    try:
        fifo = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK  # threads that it starts are usual ones
        os.sched_setscheduler(thread, fifo, os.sched_param(priority))
    except (PermissionError, OSError) as error:
        return f"SCHED_FIFO {priority} isn't permitted ({error.strerror}); allow it with an rtprio limit in /etc/security/limits.conf"
    return None
