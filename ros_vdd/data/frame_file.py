# SPDX-License-Identifier: Apache-2.0
"""Pictures of one size that wait until it is known which of them are frames: in memory, and beyond a limit on disk."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ros_vdd.errors import DataError

LIMIT_BYTES = 64 << 20


def frame_array(shape: tuple[int, ...], limit: int = LIMIT_BYTES, folder: Path | None = None) -> np.ndarray:
    """Return an array (N, H, W, 3) uint8 to be filled, beyond the limit mapped from a file without a name.

    Args:
        limit: [bytes] held in memory.
        folder: for the file; None: that of temporary files.

    Raises:
        DataError: the disk has no room for them.
    """
    if np.prod(shape, dtype=np.int64) <= limit:
        return np.empty(shape, np.uint8)
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".npy") as stream:  # stays mapped after its name is gone
        array = np.lib.format.open_memmap(stream.name, "w+", np.uint8, shape)
        try:
            os.posix_fallocate(stream.fileno(), 0, os.fstat(stream.fileno()).st_size)  # else a full disk is a bus error later
        except OSError as error:
            where, need = Path(stream.name).parent, array.nbytes / 1e6
            raise DataError(f"no room for {need:.0f} MB of pictures in '{where}': {error}; free some or set TMPDIR") from error
    return array


class FrameFile:
    """Pictures by number.

    Args:
        shape: (H, W, 3) of all of them, uint8.
        folder: for the file, which appears only beyond the limit.
        limit: [bytes] held in memory.
    """

    def __init__(self, shape: tuple[int, ...], folder: Path, limit: int = LIMIT_BYTES):
        self._shape, self._folder, self._size = shape, folder, int(np.prod(shape))
        self._most = max(1, limit // self._size)
        self._held: list[np.ndarray] = []
        self._file = None
        self._count = 0

    def put(self, picture: np.ndarray) -> int:
        """Keep a picture; return its number."""
        if len(self._held) < self._most:
            self._held.append(picture)
        else:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder)
            self._file.seek(0, 2)
            self._file.write(np.ascontiguousarray(picture).data)
        self._count += 1
        return self._count - 1

    def gather(self, numbers: Sequence[int]) -> np.ndarray:
        """Return pictures (N, H, W, 3): an array, or beyond the limit one that is mapped from a file without a name."""
        out = frame_array((len(numbers), *self._shape), self._most * self._size, self._folder)
        for k, number in enumerate(numbers):
            out[k] = self._picture(number)
        return out

    def _picture(self, number: int) -> np.ndarray:
        if number < len(self._held):
            return self._held[number]
        self._file.seek((number - len(self._held)) * self._size)
        return np.frombuffer(self._file.read(self._size), np.uint8).reshape(self._shape)
