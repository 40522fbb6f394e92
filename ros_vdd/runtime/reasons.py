# SPDX-License-Identifier: Apache-2.0
"""Why the policy or the executor does nothing, as short stable codes with a sentence beside each."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Reason(str, Enum):
    """Codes that appear in `~/status` and `/diagnostics`; a code never changes its meaning."""

    NEVER_RECEIVED = "never_received"  # a declared topic has been silent since the start
    MISSING_JOINT = "missing_joint"  # joint states arrive, but a declared joint or field was never among them
    STALE = "stale"  # the newest sample of a stream is older than its max_age_s
    REFUSED_MESSAGE = "refused_message"  # the newest message of a stream couldn't be turned into an array
    CAMERA_FROZEN = "camera_frozen"  # a camera sends the same picture for longer than its frozen_after_s
    CLOCK_MISMATCH = "clock_mismatch"  # the newest stamp of a stream is too far from the node's clock to be of one time with it
    CLOCK_JUMPED = "clock_jumped"  # a clock was set or a simulation began anew; the history was dropped and isn't complete yet
    UNEQUAL_STAMPS = "unequal_stamps"  # equal stamps are asked for, and a stream has none at the tick
    NO_GOAL = "no_goal"  # the policy is told what to do by a topic, and nothing has come there yet
    INFERENCE_FAILED = "inference_failed"  # the engine raised; nothing was published for that observation
    INFERENCE_HANGS = "inference_hangs"  # the engine hasn't answered for longer than it may take
    NO_CHUNK = "no_chunk"  # no valid chunk has arrived yet
    CHUNK_EXPIRED = "chunk_expired"  # the newest chunk has no action left for now, or is too old to be used
    CHUNK_AHEAD = "chunk_ahead"  # the newest chunk begins in the future
    SUPERSEDED = "superseded"  # a chunk older than the one in force; ignored, nothing stops
    NOT_FINITE = "not_finite"  # a chunk holds NaN or Inf
    WRONG_SHAPE = "wrong_shape"  # a chunk is empty or a point has the wrong number of positions
    WRONG_JOINTS = "wrong_joints"  # joints of a chunk are missing, unknown or stand twice
    WRONG_TIMING = "wrong_timing"  # points don't stand at (k+1)*dt of the robot file
    OUT_OF_LIMITS = "out_of_limits"  # a position lies outside the limits by more than the margin
    FIRST_JUMP = "first_jump"  # the first action after stillness is too far from where the robot is: a wrong unit or joint
    DISABLED = "disabled"  # ~/enable said so; the robot isn't moved until it says otherwise
    PROTECTIVE_STOP = "protective_stop"  # a message on protective_stop said so; latched until ~/reset
    NO_MEASUREMENT = "no_measurement"  # a fresh measured position is needed and there is none
    INACTIVE = "inactive"  # the node is managed and isn't active; nothing is published until it is activated
    NOT_CONFIGURED = "not_configured"  # configure was refused, as by a wrong parameter; the detail says why
    FAILED = "failed"  # something unforeseen, or a transition that couldn't be made, ended the node's work


class Refusal(NamedTuple):
    """Nothing to act on: the code for machines, the sentence for people."""

    code: Reason
    detail: str

    def __str__(self) -> str:
        return f"{self.code.value}: {self.detail}"
