# SPDX-License-Identifier: Apache-2.0
"""What a camera gave during a demonstration: how long it was frozen, and whether there was anything to see; our own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BLOCK = 64  # frames held at a time
CONTRAST = 4.0  # standard deviation of a picture's bytes below which it shows nothing: a lid, no light, a burnt-out exposure


@dataclass(frozen=True)
class PictureFigures:
    """Figures of one camera in one episode.

    Attributes:
        frozen_s: [s] longest time in which every picture equals the one before, bit by bit, although the robot moves.
        repeated_share: of all ticks, with the same picture as the tick before.
        blank_share: of all ticks, with a picture of one shade.
    """

    frozen_s: float
    repeated_share: float
    blank_share: float


def measure_pictures(frames: np.ndarray, idle: np.ndarray, dt_s: float) -> PictureFigures:
    """Read every picture once.

    Args:
        frames: (N, H, W, 3) uint8, may be memory-mapped.
        idle: (N,) bool, True where the robot doesn't move.
        dt_s: [s] between two ticks.
    """
    repeated = np.zeros(len(frames), dtype=bool)
    contrast = np.zeros(len(frames))
    for start in range(0, len(frames), BLOCK):
        first = max(start - 1, 0)
        block = np.asarray(frames[first : start + BLOCK])
        repeated[first + 1 : first + len(block)] = (block[1:] == block[:-1]).all(axis=(1, 2, 3))
        contrast[first : first + len(block)] = block[:, ::4, ::4].reshape(len(block), -1).std(axis=1)
    return PictureFigures(
        frozen_s=longest(repeated & ~idle) * dt_s,
        repeated_share=float(repeated.mean()),
        blank_share=float((contrast < CONTRAST).mean()),
    )


def longest(mask: np.ndarray) -> int:
    """Return the length of the longest run of True in `(N,)`."""
    padded = np.concatenate([[0], mask.astype(int), [0]])
    change = np.diff(padded)
    starts, ends = np.flatnonzero(change == 1), np.flatnonzero(change == -1)
    return int((ends - starts).max(initial=0))
