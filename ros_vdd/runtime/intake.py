# SPDX-License-Identifier: Apache-2.0
"""One stream on its way in: messages decoded and buffered, refused ones counted, and why there is no sample."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ros_vdd.errors import StreamError
from ros_vdd.runtime.reasons import Reason
from ros_vdd.runtime.stamp_clock import StampClock, span
from ros_vdd.streams.codecs import decode_image, decode_joint_state, stamp_ns
from ros_vdd.streams.resample import Missing, PartialState, Sample, StreamBuffer
from ros_vdd.streams.spec import CameraSpec, JointStateSpec

# Enough for n_obs_steps periods of a 100 Hz camera or a 1 kHz joint state at a 10 Hz policy.
IMAGES, JOINT_STATES = 64, 1024
FROZEN_IMAGES = 3  # equal in a row at least: a driver may send one picture twice


class ClockError(StreamError):
    """A stamp that isn't of the receiver's time."""


class NotReady(NamedTuple):
    """Why there is no observation: a code, the stream it is about, and a sentence."""

    code: Reason
    stream: str
    detail: str

    def __str__(self) -> str:
        return f"{self.code.value}: {self.detail}"


class Intake:
    """Decodes and buffers one stream; a message that can't be decoded is counted and never used.

    Called from one thread only, the one that receives.

    Args:
        spec, name: the stream in the robot file, and "images.NAME" or "states.NAME".
        lock_step, max_skew_s: see `StampClock`

    Attributes:
        received: how many messages arrived.
        refused: how many of them couldn't be used.
        refusal: why the newest of those couldn't, as a sentence, until the stream is good again; or None.
        restarts: how often everything held was dropped.
        jumps: how often a clock was set, upon which that happens.
        jump: the newest of these as a sentence, or None.
    """

    def __init__(self, spec: CameraSpec | JointStateSpec, name: str, lock_step: bool = False, max_skew_s: float = 0.0):
        self.spec, self.name = spec, name
        self.received = self.refused = self.restarts = self.jumps = 0
        self.jump: str | None = None
        self._clock = StampClock(spec.stamp == "header", lock_step, max_skew_s)
        self.clear()

    def clear(self) -> None:
        """Forget every sample; the counters go on."""
        self._clock.clear()
        self.refusal: str | None = None
        self._refusal_code = Reason.REFUSED_MESSAGE
        self._drop()

    def _drop(self) -> None:
        """Forget what was received, but not why it was refused."""
        self.restarts += 1
        self._buffer = self._new_buffer()
        self._usable_ns: int | None = None  # when the newest usable message arrived
        self._advanced_ns: int | None = None  # when the newest one arrived whose stamp was later than all before

    def _new_buffer(self) -> StreamBuffer | PartialState:
        raise NotImplementedError

    def _keep(self, stamp: int, message: Any, receive_ns: int) -> None:
        """Decode and buffer; raises StreamError."""
        raise NotImplementedError

    def _missing_code(self) -> Reason:
        return Reason.NEVER_RECEIVED if self.newest_stamp_ns is None else Reason.STALE

    def _fault(self) -> NotReady | None:
        """Return what is wrong with samples that are there and fresh, or None."""
        return None

    @property
    def newest_stamp_ns(self) -> int | None:
        """[ns] stamp of the newest usable message, or None."""
        return self._buffer.newest_stamp_ns

    def push(self, message: Any, receive_ns: int, steady_s: float | None = None) -> bool:
        """Take a message; return whether it could be used."""
        self.received += 1
        try:
            stamp = self._stamp(message, receive_ns)
            if jump := self._clock.jump(stamp, receive_ns, steady_s):
                self._drop()
                self.jump, self.jumps = jump, self.jumps + 1
            newest_ns = self.newest_stamp_ns
            self._keep(stamp, message, receive_ns)
        except StreamError as error:
            self.refused += 1
            self.refusal = str(error)
            self._refusal_code = Reason.CLOCK_MISMATCH if isinstance(error, ClockError) else Reason.REFUSED_MESSAGE
            return False
        self._usable_ns = receive_ns
        if newest_ns is None or stamp > newest_ns:
            self._advanced_ns = receive_ns
        return True

    def at(self, tick_ns: int) -> Sample | NotReady:
        """Return the sample in force at a tick, or why there is none."""
        sample = self._buffer.at(tick_ns)
        if isinstance(sample, Missing):
            return self._not_ready(self._missing_code(), f"{sample.reason} (topic '{self.spec.topic}')")
        return self._fault() or sample

    def silence(self, now_ns: int) -> NotReady | None:
        """Return why nothing usable has arrived within the stream's max_age_s, judged by receive times, or None."""
        if self._advanced_ns is None:
            return self._not_ready(Reason.NEVER_RECEIVED, f"{self.name}: nothing on topic '{self.spec.topic}' yet")
        silent_ns = now_ns - self._advanced_ns
        if silent_ns <= self.spec.max_age_s * 1e9:
            return self._fault()
        stuck = self._usable_ns > self._advanced_ns
        silent = "sends, but its stamps have stood still" if stuck else "silent"
        told = f"{self.name}: topic '{self.spec.topic}' {silent} for {span(silent_ns)}, limit {self.spec.max_age_s:g} s"
        return self._not_ready(Reason.STALE, told)

    def forget_refusal(self) -> None:
        """Note that the stream is good again: a refusal before now explains no later gap."""
        self.refusal = None

    def age_s(self, now_ns: int) -> float | None:
        """[s] since the newest usable message arrived, or None before the first."""
        return None if self._usable_ns is None else (now_ns - self._usable_ns) / 1e9

    def _not_ready(self, code: Reason, detail: str) -> NotReady:
        if self.refusal is not None:
            refused = f"{self.name}: {self.refusal} (topic '{self.spec.topic}')"
            return NotReady(self._refusal_code, self.name, refused)
        return NotReady(code, self.name, detail)

    def _stamp(self, message: Any, receive_ns: int) -> int:
        if self.spec.stamp == "receive":
            return receive_ns
        stamp = stamp_ns(message)
        if stamp is None:
            raise StreamError(
                "the header's stamp is zero; have the driver set it, or choose stamp: receive in the robot file"
            )
        if skew := self._clock.skew(stamp, receive_ns):
            raise ClockError(skew)
        return stamp


class CameraIntake(Intake):
    """A camera; samples are (H, W, 3) uint8.

    A driver that hangs may go on sending its last picture under new stamps. No real camera sends the same bytes twice for
    long, as its sensor is noisy; a simulator's may, so `frozen_after_s` is off unless the robot file gives it.

    Attributes:
        frozen: how often the picture stood for longer than `frozen_after_s`; what was held before it moved again is dropped.
    """

    def __init__(self, *arguments: Any, **options: Any):
        self.frozen = 0
        super().__init__(*arguments, **options)

    def _drop(self) -> None:
        super()._drop()
        self._picture: np.ndarray | None = None  # the newest message's bytes
        self._equal, self._since_ns, self._stands = 1, 0, False

    @property
    def unchanged_s(self) -> float | None:
        """[s] for which the same picture has come, 0 where the newest one differs from that before; None before the first."""
        return None if self._picture is None else (self._usable_ns - self._since_ns) / 1e9

    def _new_buffer(self) -> StreamBuffer:
        return StreamBuffer(round(self.spec.max_age_s * 1e9), IMAGES, self.name)

    def _keep(self, stamp: int, message: Any, receive_ns: int) -> None:
        image = decode_image(message, self.spec)
        self._watch(np.frombuffer(message.data, np.uint8), receive_ns)
        self._buffer.push(stamp, image)

    def _watch(self, picture: np.ndarray, receive_ns: int) -> None:
        """Hold a picture against the one before; what is held of a camera that stood is dropped when it moves again."""
        same = self._picture is not None and np.array_equal(picture, self._picture)
        if not same:
            if self._stands:
                self._drop()
            self._picture, self._equal, self._since_ns, self._stands = picture, 1, receive_ns, False
            return
        self._equal += 1
        limit_s = self.spec.frozen_after_s
        if limit_s is None or self._stands or self._equal < FROZEN_IMAGES:
            return
        self._stands = receive_ns - self._since_ns > limit_s * 1e9
        self.frozen += self._stands

    def _fault(self) -> NotReady | None:
        if not self._stands:
            return None
        told = f"topic '{self.spec.topic}' has sent the same picture for {self.unchanged_s:.3g} s"
        return NotReady(Reason.CAMERA_FROZEN, self.name, f"{self.name}: {told}, limit {self.spec.frozen_after_s:g} s")


class JointStateIntake(Intake):
    """A joint-state stream, possibly of several publishers; samples are (S,) float32."""

    def _new_buffer(self) -> PartialState:
        self._seen: set[tuple[str, str]] = set()  # (joint, field) received since the last clear
        return PartialState(self.spec, JOINT_STATES, self.name)

    def _keep(self, stamp: int, message: Any, receive_ns: int) -> None:
        values = decode_joint_state(message, self.spec)
        self._seen |= values.keys()
        self._buffer.push(stamp, values, message.name)

    def _missing_code(self) -> Reason:
        absent = self._usable_ns is not None and len(self._seen) < self.spec.size
        return Reason.MISSING_JOINT if absent else super()._missing_code()
