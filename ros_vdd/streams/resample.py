# SPDX-License-Identifier: Apache-2.0
"""Asynchronous samples to ticks: the newest sample at or before a tick, with its age, or the reason why there is none.

No clock inside: stamps and ticks are handed in, so the live node and the converter run the same code. Our own.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np

from ros_vdd.errors import suggest
from ros_vdd.streams.spec import JointStateSpec

# A simulation that starts again or a bag that loops goes back by seconds; two threads or two network paths
# exchange samples that are some milliseconds apart.
RESET_NS = 1_000_000_000


@dataclass(frozen=True)
class Sample:
    """A value in force at a tick: received with `stamp_ns`, `age_ns` before the tick."""

    value: Any
    stamp_ns: int
    age_ns: int


@dataclass(frozen=True)
class Missing:
    """There is no value at a tick, and why."""

    reason: str


@dataclass(frozen=True)
class _Stamped:
    stamp_ns: int
    value: Any


_STAMP = attrgetter("stamp_ns")


class StreamBuffer:
    """The last samples of one stream, by stamp.

    `push` is called from the thread that receives, `at` from any other.

    Attributes:
        resets: how often the stamps went back by more than `reset_ns`, upon which everything held was dropped.
        reordered: how many samples came later than one with a newer stamp, and were put in their place.
    """

    def __init__(self, max_age_ns: int, capacity: int, name: str, reset_ns: int = RESET_NS):
        self.name = name
        self.resets = 0
        self.reordered = 0
        self._max_age_ns, self._capacity, self._reset_ns = max_age_ns, capacity, reset_ns
        self._samples: list[_Stamped] = []
        self._lock = threading.Lock()

    def push(self, stamp_ns: int, value: Any) -> None:
        """Keep a sample; an equal stamp replaces the one held, and beyond `capacity` the oldest goes."""
        with self._lock:
            if self._samples and stamp_ns < self._samples[-1].stamp_ns - self._reset_ns:
                self._samples.clear()
                self.resets += 1
            if self._samples and stamp_ns < self._samples[-1].stamp_ns:
                self.reordered += 1
            self._insert(_Stamped(stamp_ns, value))

    def _insert(self, sample: _Stamped) -> None:
        place = bisect_left(self._samples, sample.stamp_ns, key=_STAMP)
        if place < len(self._samples) and self._samples[place].stamp_ns == sample.stamp_ns:
            self._samples[place] = sample
            return
        self._samples.insert(place, sample)
        del self._samples[: -self._capacity]

    def at(self, tick_ns: int) -> Sample | Missing:
        """Return the newest sample with a stamp at or before the tick; later ones are never looked at."""
        with self._lock:
            place = bisect_right(self._samples, tick_ns, key=_STAMP)
            held = self._samples[place - 1] if place else None
            first = self._samples[0] if self._samples else None
        if first is None:
            return Missing(f"{self.name}: never received" + (" since the clock went back" if self.resets else ""))
        if held is None:
            return Missing(f"{self.name}: nothing that old; its first sample is {_s(first.stamp_ns - tick_ns)} later")
        age_ns = tick_ns - held.stamp_ns
        if age_ns > self._max_age_ns:
            return Missing(f"{self.name}: {_s(age_ns)} old, limit {_s(self._max_age_ns)}")
        return Sample(held.value, held.stamp_ns, age_ns)

    @property
    def newest_stamp_ns(self) -> int | None:
        """[ns] stamp of the newest sample, or None before the first."""
        with self._lock:
            return self._samples[-1].stamp_ns if self._samples else None


def _s(duration_ns: int) -> str:
    return f"{duration_ns / 1e9:.3g} s"


class PartialState:
    """One joint-state stream, put together from messages that hold some of its joints each.

    Every (joint, field) keeps its own stamp. A tick has a value when all of them are there and fresh; the sample's
    stamp is then that of its oldest part.
    """

    def __init__(self, spec: JointStateSpec, capacity: int, name: str, reset_ns: int = RESET_NS):
        self.name = name
        max_age_ns = round(spec.max_age_s * 1e9)
        self._parts = {
            (joint, field): StreamBuffer(max_age_ns, capacity, f"{name}: {field} of joint '{joint}'", reset_ns)
            for joint, field in spec.features
        }
        self._seen_names: set[str] = set()
        self._lock = threading.Lock()  # a tick sees a message whole or not at all

    def push(self, stamp_ns: int, values: Mapping[tuple[str, str], float], names: Iterable[str] = ()) -> None:
        """Keep what `decode_joint_state` found in one message.

        Args:
            values: by (joint, field); others than the stream's are not accepted.
            names: all joint names of the message, told when one is missing, since it may have been renamed.
        """
        with self._lock:
            self._seen_names.update(names)
            for feature, value in values.items():
                self._parts[feature].push(stamp_ns, value)

    def at(self, tick_ns: int) -> Sample | Missing:
        """Return the stream's float32 array (S,) at a tick, or the reason of the first part that is missing."""
        with self._lock:
            parts = {feature: part.at(tick_ns) for feature, part in self._parts.items()}
            seen = set(self._seen_names)
        for (joint, _), part in parts.items():
            if isinstance(part, Missing):
                renamed = seen and joint not in seen
                return Missing(f"{part.reason}; joints on the topic: {suggest(joint, seen)}") if renamed else part
        values = np.array([part.value for part in parts.values()], dtype=np.float32)
        oldest = min(parts.values(), key=_STAMP)
        return Sample(values, oldest.stamp_ns, oldest.age_ns)

    @property
    def newest_stamp_ns(self) -> int | None:
        """[ns] newest stamp of any part, or None before the first."""
        with self._lock:
            stamps = [part.newest_stamp_ns for part in self._parts.values()]
        return max((s for s in stamps if s is not None), default=None)

    @property
    def resets(self) -> int:
        """How often the stamps of a part went back, the largest count among the parts."""
        with self._lock:
            return max(part.resets for part in self._parts.values())
