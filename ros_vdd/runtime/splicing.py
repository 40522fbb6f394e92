# SPDX-License-Identifier: Apache-2.0
"""From plan to plan without a jump: how chunks that overlap in time become one motion.

    replace   the newest chunk that has begun, as it is
    blend     r(t) = new(t) + e(t): e goes from what was commanded less what is newly wanted to 0, in position and velocity; a
              cubic. So the motion is continuous in both wherever the new plan is. It takes `splice_s`, or longer where it would
              need more than half of the robot's velocity or acceleration: sqrt(6 |e| / (a/2)), 4 |e'| / (a/2), 1.5 |e| / (v/2)
    ensemble  the mean of all chunks that reach now, weights exp(-ensemble_decay i), i = 0 the oldest; then as `blend`

`blend` switches the joints that the robot file calls `switched`, such as grippers, and goes the short way round with `continuous`
ones. `ensemble` is for comparison: it takes the mean of different ways too, and so may lead between them.

Sources: temporal ensembling by Zhao et al. 2023 (ACT, arXiv 2304.13705), section IV-B, where the decay is 0.01; blending our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from ros_vdd.errors import ConfigError
from ros_vdd.runtime.chunking import ActionChunk
from ros_vdd.runtime.reference import INTERPOLATIONS, Reference
from ros_vdd.streams.spec import ActionSpec

METHODS = ("replace", "blend", "ensemble")
TURN = 2 * np.pi


@dataclass(frozen=True)
class SpliceConfig:
    """How chunks are joined.

    Args:
        method: see the module.
        splice_s: how long a blend takes at least, [s].
        ensemble_decay: of the weights of `ensemble`, a chunk.
    """

    method: Literal["replace", "blend", "ensemble"] = "replace"
    splice_s: float = 0.2
    ensemble_decay: float = 0.01

    def __post_init__(self):
        if self.method not in METHODS:
            raise ConfigError(f"'splicing' is '{self.method}'; expected one of {', '.join(METHODS)}")
        if not 0 < self.splice_s < float("inf"):
            raise ConfigError(f"'splice_s' is {self.splice_s}; expected a time above 0 s")
        if not 0 <= self.ensemble_decay < float("inf"):
            raise ConfigError(f"'ensemble_decay' is {self.ensemble_decay}; expected 0 or more")


class _Seam(NamedTuple):
    """Where two plans meet: the N chunks from then on, in which turn of endless joints `(N, A)` [rad], when, for how long, and the
    offset and its velocity, each `(A,)`."""

    chunks: tuple[ActionChunk, ...]
    turns: np.ndarray
    begun_ns: int
    span_s: float
    offset: np.ndarray
    velocity: np.ndarray


class Splicer:
    """Turns the chunks in force into one reference; remembers the newest seam.

    Args:
        action: joints, limits, interpolation, which are switched and which turn without end.
        config: how chunks are joined.
    """

    def __init__(self, action: ActionSpec, config: SpliceConfig = SpliceConfig()):
        self.config = config
        self._interpolate = INTERPOLATIONS[action.interpolation]
        self._switched = np.array([joint in action.switched for joint in action.joints])
        self._endless = np.array([joint in action.continuous for joint in action.joints])
        self._velocity, self._acceleration = _half(action.max_velocity), _half(action.max_acceleration)
        self._seam: _Seam | None = None
        self.seams = 0
        """How often the plan in force has changed."""

    def reset(self) -> None:
        """Forget the newest seam: the joints rest."""
        self._seam = None

    def prepare(self, chunk: ActionChunk) -> ActionChunk:
        """Return a chunk in which `continuous` joints never go round the long way from one action to the next."""
        if not self._endless.any():
            return chunk
        actions = np.where(self._endless, np.unwrap(chunk.actions, axis=0), chunk.actions)
        return ActionChunk(chunk.stamp_ns, chunk.dt_ns, chunk.joints, actions)

    def used(self, chunks: Sequence[ActionChunk]) -> tuple[ActionChunk, ...]:
        """Return those of some chunks, oldest first, that count: all for a mean, else the newest."""
        return tuple(chunks) if self.config.method == "ensemble" else tuple(chunks[-1:])

    def join(self, chunks: Sequence[ActionChunk], now_ns: int, current: Reference) -> None:
        """Take the chunks to follow from now on; if they are others than before, begin a seam.

        Args:
            chunks: those that reach `now_ns`, oldest first, at least one.
            current: what is commanded at `now_ns`.
        """
        used = self.used(chunks)
        if self._seam is None or [c.stamp_ns for c in used] != [c.stamp_ns for c in self._seam.chunks]:
            self._seam = self._seam_at(used, now_ns, current)
            self.seams += 1

    def alone(self, chunk: ActionChunk, now_ns: int) -> np.ndarray:
        """Return what a chunk wants `(A,)` when nobody knows where the robot is: no seam can be bridged."""
        return self._interpolate(chunk, now_ns).position

    def at(self, then_ns: int) -> Reference:
        """Return the reference at an instant that the chunks of `join` reach, at least one of them."""
        return self._offset(self._wanted(self._seam.chunks, self._seam.turns, then_ns), then_ns)

    def _seam_at(self, chunks: tuple[ActionChunk, ...], now_ns: int, current: Reference) -> _Seam:
        distances = [current.position - self._interpolate(chunk, now_ns).position for chunk in chunks]
        turns = np.where(self._endless, np.rint(np.array(distances) / TURN) * TURN, 0.0)
        wanted = self._wanted(chunks, turns, now_ns)
        offset = np.where(self._switched, 0.0, current.position - wanted.position)
        velocity = np.where(self._switched, 0.0, current.velocity - wanted.velocity)
        return _Seam(chunks, turns, now_ns, self._span_s(np.abs(offset), np.abs(velocity)), offset, velocity)

    def _span_s(self, offset: np.ndarray, velocity: np.ndarray) -> float:
        """Return how long a blend of such offsets and velocities `(A,)` takes, [s]."""
        spans = [np.full(1, self.config.splice_s)]
        if self._acceleration is not None:
            spans += [np.sqrt(6 * offset / self._acceleration), 4 * velocity / self._acceleration]
        if self._velocity is not None:
            spans += [1.5 * offset / self._velocity]
        return float(max(span.max() for span in spans))

    def _wanted(self, chunks: tuple[ActionChunk, ...], turns: np.ndarray, then_ns: int) -> Reference:
        """Return what the chunks that reach an instant want, of several the mean."""
        reach = [k for k, chunk in enumerate(chunks) if then_ns < chunk.end_ns]
        each = [self._interpolate(chunks[k], then_ns) for k in reach]
        if not each:
            raise ValueError("no chunk reaches the instant that is asked for")
        if len(each) == 1:
            return Reference(each[0].position + turns[reach[0]], each[0].velocity)
        weights = np.exp(-self.config.ensemble_decay * np.arange(len(each)))
        weights /= weights.sum()
        positions = np.array([one.position + turns[k] for k, one in zip(reach, each)])
        return Reference(weights @ positions, weights @ np.array([one.velocity for one in each]))

    def _offset(self, wanted: Reference, now_ns: int) -> Reference:
        """Return a reference with what is left of the seam's offset: the cubic from (offset, velocity) to (0, 0)."""
        seam, span_s = self._seam, self._seam.span_s
        share = (now_ns - seam.begun_ns) / (1e9 * span_s)
        if self.config.method == "replace" or not 0 <= share < 1:
            return wanted
        value, slope = _hermite(share)
        moved, steepened = _hermite_rate(share)
        return Reference(
            wanted.position + seam.offset * value + seam.velocity * (span_s * slope),
            wanted.velocity + seam.offset * (moved / span_s) + seam.velocity * steepened,
        )


def _half(limits: Sequence[float] | None) -> np.ndarray | None:
    return None if limits is None else np.asarray(limits) / 2


def _hermite(s: float) -> tuple[float, float]:
    """Return the weights at s in [0, 1] of a value and of a slope at 0 that both end in 0."""
    return (1 + 2 * s) * (1 - s) ** 2, s * (1 - s) ** 2


def _hermite_rate(s: float) -> tuple[float, float]:
    """Return how fast the weights of `_hermite` change with s."""
    return 6 * s * (s - 1), (1 - s) * (1 - 3 * s)
