# SPDX-License-Identifier: Apache-2.0
"""One stream on its way in: messages decoded and buffered, refused ones counted, and why there is no sample."""

from __future__ import annotations

from typing import Any, NamedTuple

from ros_vdd.errors import StreamError
from ros_vdd.runtime.reasons import Reason
from ros_vdd.streams.codecs import decode_image, decode_joint_state, stamp_ns
from ros_vdd.streams.resample import Missing, PartialState, Sample, StreamBuffer
from ros_vdd.streams.spec import CameraSpec, JointStateSpec

# Enough for n_obs_steps periods of a 100 Hz camera or a 1 kHz joint state at a 10 Hz policy.
IMAGES, JOINT_STATES = 64, 1024


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

    Attributes:
        spec, name: the stream in the robot file, and "images.NAME" or "states.NAME".
        received: how many messages arrived.
        refused: how many of them couldn't be used.
    """

    def __init__(self, spec: CameraSpec | JointStateSpec, name: str):
        self.spec, self.name, self.received, self.refused = spec, name, 0, 0
        self.clear()

    def clear(self) -> None:
        """Forget every sample; the counters go on."""
        self._buffer = self._new_buffer()
        self._refusal: str | None = None  # text of the newest refusal that may explain a gap
        self._accepted_ns: int | None = None  # when the newest usable message arrived

    def _new_buffer(self) -> StreamBuffer | PartialState:
        raise NotImplementedError

    def _keep(self, stamp: int, message: Any) -> None:
        """Decode and buffer; raises StreamError."""
        raise NotImplementedError

    def _missing_code(self) -> Reason:
        return Reason.NEVER_RECEIVED if self.newest_stamp_ns is None else Reason.STALE

    @property
    def newest_stamp_ns(self) -> int | None:
        """[ns] stamp of the newest usable message, or None."""
        return self._buffer.newest_stamp_ns

    @property
    def resets(self) -> int:
        """How often the stamps went back and everything held was dropped."""
        return self._buffer.resets

    def push(self, message: Any, receive_ns: int) -> bool:
        """Take a message; return whether it could be used."""
        self.received += 1
        try:
            self._keep(self._stamp(message, receive_ns), message)
        except StreamError as error:
            self.refused += 1
            self._refusal = str(error)
            return False
        self._accepted_ns = receive_ns
        return True

    def at(self, tick_ns: int) -> Sample | NotReady:
        """Return the sample in force at a tick, or why there is none."""
        sample = self._buffer.at(tick_ns)
        if not isinstance(sample, Missing):
            return sample
        return self._not_ready(self._missing_code(), f"{sample.reason} (topic '{self.spec.topic}')")

    def silence(self, now_ns: int) -> NotReady | None:
        """Return why nothing usable has arrived within the stream's max_age_s, judged by receive times, or None."""
        if self._accepted_ns is None:
            return self._not_ready(Reason.NEVER_RECEIVED, f"{self.name}: nothing on topic '{self.spec.topic}' yet")
        silent_s = (now_ns - self._accepted_ns) / 1e9
        if silent_s <= self.spec.max_age_s:
            return None
        silent = f"silent for {silent_s:.3g} s, limit {self.spec.max_age_s:g} s"
        return self._not_ready(Reason.STALE, f"{self.name}: topic '{self.spec.topic}' {silent}")

    def forget_refusal(self) -> None:
        """Note that the stream is good again: a refusal before now explains no later gap."""
        self._refusal = None

    def age_s(self, now_ns: int) -> float | None:
        """[s] since the newest usable message arrived, or None before the first."""
        return None if self._accepted_ns is None else (now_ns - self._accepted_ns) / 1e9

    def _not_ready(self, code: Reason, detail: str) -> NotReady:
        if self._refusal is not None:
            refused = f"{self.name}: {self._refusal} (topic '{self.spec.topic}')"
            return NotReady(Reason.REFUSED_MESSAGE, self.name, refused)
        return NotReady(code, self.name, detail)

    def _stamp(self, message: Any, receive_ns: int) -> int:
        if self.spec.stamp == "receive":
            return receive_ns
        stamp = stamp_ns(message)
        if stamp is None:
            raise StreamError(
                "the header's stamp is zero; have the driver set it, or choose stamp: receive in the robot file"
            )
        return stamp


class CameraIntake(Intake):
    """A camera; samples are (H, W, 3) uint8."""

    def _new_buffer(self) -> StreamBuffer:
        return StreamBuffer(round(self.spec.max_age_s * 1e9), IMAGES, self.name)

    def _keep(self, stamp: int, message: Any) -> None:
        self._buffer.push(stamp, decode_image(message, self.spec))


class JointStateIntake(Intake):
    """A joint-state stream, possibly of several publishers; samples are (S,) float32."""

    def _new_buffer(self) -> PartialState:
        self._seen: set[tuple[str, str]] = set()  # (joint, field) received since the last clear
        return PartialState(self.spec, JOINT_STATES, self.name)

    def _keep(self, stamp: int, message: Any) -> None:
        values = decode_joint_state(message, self.spec)
        self._seen |= values.keys()
        self._buffer.push(stamp, values, message.name)

    def _missing_code(self) -> Reason:
        absent = self._accepted_ns is not None and len(self._seen) < self.spec.size
        return Reason.MISSING_JOINT if absent else super()._missing_code()
