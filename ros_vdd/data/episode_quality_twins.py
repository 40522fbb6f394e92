# SPDX-License-Identifier: Apache-2.0
"""Demonstrations that are there twice: equal byte by byte, or nearly the same motion; our own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

POINTS = 32  # of a motion's outline, evenly spread over its duration
_TIMES = ("stamp_ns", "age_ns.")


def content_digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Return a sha256 of all arrays but those of time: copies agree whenever they were recorded or converted."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        if not name.startswith(_TIMES):
            array = np.ascontiguousarray(arrays[name])
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(array)
    return digest.hexdigest()


def outline(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return `(POINTS * C,)`: the motion `(N, C)` at evenly spread times, columns in units of their scale `(C,)`.

    Time is counted from 0 to 1, so the same motion done faster has the same outline.
    """
    used = scale > 0
    places = np.linspace(0, len(values) - 1, POINTS)
    scaled = values[:, used] / scale[used]
    return (
        np.stack([np.interp(places, np.arange(len(values)), column) for column in scaled.T], axis=1).ravel()
        if used.any()
        else np.zeros(0)
    )


def nearest(outlines: np.ndarray, block: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Return for each of E outlines `(E, D)` which other one is nearest, and their root mean square distance.

    Returns:
        (E,) int and (E,) float [scale]; infinite where there is no other.
    """
    count, size = len(outlines), max(outlines.shape[1], 1)
    which, distance = np.zeros(count, dtype=int), np.full(count, np.inf)
    if count < 2:
        return which, distance
    squares = (outlines**2).sum(axis=1)
    for start in range(0, count, block):
        rows = outlines[start : start + block]
        apart = np.maximum(squares[start : start + block, None] + squares - 2 * rows @ outlines.T, 0)
        apart[np.arange(len(rows)), start + np.arange(len(rows))] = np.inf
        which[start : start + block] = apart.argmin(axis=1)
    distance = np.sqrt(((outlines - outlines[which]) ** 2).sum(axis=1) / size)  # the products above lose digits near zero
    return which, distance
