# SPDX-License-Identifier: Apache-2.0
"""Action chunks indexed by time, so that an action which comes late is simply in the past.

Action k of a chunk is in force during [t0 + k*dt, t0 + (k+1)*dt), t0 being the stamp of the observation. As a
trajectory point it stands at t0 + (k+1)*dt: "be there by then".
Source: the absolute action times follow Diffusion Policy (arXiv 2303.04137, real-robot evaluation).
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

import numpy as np

from ros_vdd.runtime.reasons import Reason, Refusal


@dataclass(frozen=True)
class ActionChunk:
    """A plan over the next `H` policy periods.

    Args:
        stamp_ns: time of the observation the plan was made from, [ns]
        dt_ns: policy period, [ns]
        joints: names of the A action joints
        actions: (H, A), in the unit of the robot file
    """

    stamp_ns: int
    dt_ns: int
    joints: tuple[str, ...]
    actions: np.ndarray

    @property
    def end_ns(self) -> int:
        """Return when its last action is no longer in force, [ns]."""
        return self.stamp_ns + len(self.actions) * self.dt_ns

    def hold(self, now_ns: int) -> np.ndarray:
        """Return the action in force at `now_ns`; (A,)."""
        return self.actions[(now_ns - self.stamp_ns) // self.dt_ns]

    def linear(self, now_ns: int) -> np.ndarray:
        """Return the point on the lines between trajectory points at `now_ns`; before the first one, that one; (A,)."""
        step, within_ns = divmod(now_ns - self.stamp_ns, self.dt_ns)
        start, end = self.actions[max(step - 1, 0)], self.actions[step]
        return start + (end - start) * (within_ns / self.dt_ns)


def read_chunk(msg, dt_ns: int) -> ActionChunk | Refusal:
    """Read a `JointTrajectory`, by attribute, as a chunk of equally spaced positions.

    Args:
        msg: header.stamp, joint_names, points[k].positions, points[k].time_from_start
        dt_ns: policy period of the robot file, [ns]
    """
    if not msg.points:
        return Refusal(Reason.WRONG_SHAPE, "the chunk has no points")
    lengths = {len(point.positions) for point in msg.points}
    if lengths != {len(msg.joint_names)}:
        given = ", ".join(map(str, sorted(lengths)))
        return Refusal(Reason.WRONG_SHAPE, f"{len(msg.joint_names)} joints, but points of {given} positions")
    for k, point in enumerate(msg.points):
        at_ns = _nanoseconds(point.time_from_start)
        if at_ns != (k + 1) * dt_ns:
            expected = f"the robot file asks for {(k + 1) * dt_ns / 1e9} s"
            return Refusal(Reason.WRONG_TIMING, f"point {k} stands at {at_ns / 1e9} s; {expected}")
    actions = np.array([point.positions for point in msg.points], dtype=np.float64)
    return ActionChunk(_nanoseconds(msg.header.stamp), dt_ns, tuple(msg.joint_names), actions)


def _nanoseconds(time) -> int:
    return time.sec * 1_000_000_000 + time.nanosec


class ChunkBuffer:
    """Holds the newest chunk and those before it; says which of them reach a given time.

    `push` is called from the thread that receives chunks, `reaching` from the control loop; a lock stands between them.

    Args:
        max_age_ns: age of a chunk's observation from which the chunk is no longer used, [ns]
        use_steps: how many actions of a chunk are used; None for all of them
        kept: how many chunks are held; two, so that a plan goes on until the newest begins, or more for a mean over them
    """

    def __init__(self, max_age_ns: int, use_steps: int | None = None, kept: int = 2):
        self._max_age_ns, self._use_steps = max_age_ns, use_steps
        self._chunks: deque[ActionChunk] = deque(maxlen=kept)
        self._lock = threading.Lock()

    def push(self, chunk: ActionChunk) -> Refusal | None:
        """Take `chunk` unless one with the same or a newer stamp is held."""
        with self._lock:
            if self._chunks and chunk.stamp_ns <= self._chunks[-1].stamp_ns:
                late_s = (self._chunks[-1].stamp_ns - chunk.stamp_ns) / 1e9
                return Refusal(Reason.SUPERSEDED, f"the chunk is {late_s:.3f} s older than the newest one")
            self._chunks.append(chunk)
            return None

    def clear(self) -> None:
        """Forget every plan: the clock was reset, or the policy is no longer to be trusted."""
        with self._lock:
            self._chunks.clear()

    def reaching(self, now_ns: int) -> list[ActionChunk] | Refusal:
        """Return the chunks that have begun at `now_ns` and not ended, oldest first, or why the newest begun isn't among them."""
        with self._lock:
            held = list(self._chunks)
        if not held:
            return Refusal(Reason.NO_CHUNK, "no valid action chunk has arrived")
        begun = [chunk for chunk in held if chunk.stamp_ns <= now_ns]
        if not begun:
            ahead_s = (held[0].stamp_ns - now_ns) / 1e9
            return Refusal(Reason.CHUNK_AHEAD, f"the chunk begins {ahead_s:.3f} s in the future; compare the clocks")
        age_ns, lifetime_ns = now_ns - begun[-1].stamp_ns, self._lifetime_ns(begun[-1])
        if age_ns >= lifetime_ns:
            detail = f"the newest chunk is {age_ns / 1e9:.3f} s old and good for {lifetime_ns / 1e9:.3f} s"
            return Refusal(Reason.CHUNK_EXPIRED, detail)
        return [chunk for chunk in begun if now_ns - chunk.stamp_ns < self._lifetime_ns(chunk)]

    def _lifetime_ns(self, chunk: ActionChunk) -> int:
        steps = len(chunk.actions) if self._use_steps is None else min(self._use_steps, len(chunk.actions))
        return min(steps * chunk.dt_ns, self._max_age_ns)
