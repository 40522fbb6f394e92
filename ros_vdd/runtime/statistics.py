# SPDX-License-Identifier: Apache-2.0
"""Percentiles of the last measurements, and rates, for diagnostics."""

from __future__ import annotations

import threading
from collections import deque

import numpy as np


class Window:
    """The last `capacity` measurements; one thread adds while another asks, with a lock between them."""

    def __init__(self, capacity: int = 1000):
        self._values: deque[float] = deque(maxlen=capacity)
        self._lock = threading.Lock()

    def add(self, value: float) -> None:
        """Add a measurement."""
        with self._lock:
            self._values.append(value)

    def percentile(self, percent: float) -> float | None:
        """Return the percentile of what is held, or None while nothing is."""
        with self._lock:
            values = list(self._values)
        return float(np.percentile(values, percent)) if values else None


class Rate:
    """How fast a counter grows, from one question to the next."""

    def __init__(self):
        self._before: tuple[int, float] | None = None

    def of(self, count: int, now_s: float) -> float | None:
        """Return the mean rate [Hz] since the question before, or None at the first one."""
        before, self._before = self._before, (count, now_s)
        if before is None or now_s <= before[1]:
            return None
        return (count - before[0]) / (now_s - before[1])
