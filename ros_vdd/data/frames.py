# SPDX-License-Identifier: Apache-2.0
"""Single pictures with labels, to train an image encoder on a signal that the camera must be read for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ros_vdd.data.dataset import Batch
from ros_vdd.errors import ConfigError, DataError


@dataclass(frozen=True)
class Target:
    """One group of columns of an array to predict from a picture.

    `array` is its name in the store, for example "extra.state". A column between `low` and `high` is scaled to [-1, 1];
    with `angle` it becomes its cosine and sine instead.
    """

    array: str
    columns: tuple[int, ...]
    low: float = -1.0
    high: float = 1.0
    angle: bool = False

    def __post_init__(self):
        if not self.low < self.high or not self.columns or min(self.columns) < 0:
            raise ConfigError("'low' must be below 'high', and 'columns' must name at least one column, counted from 0")

    @property
    def size(self) -> int:
        """Return how many numbers this target has."""
        return len(self.columns) * (2 if self.angle else 1)

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Turn `(N, C)` into `(N, size)` float32."""
        if values.ndim != 2 or max(self.columns) >= values.shape[1]:
            raise DataError(f"target '{self.array}' asks for columns {self.columns}; the array has shape {values.shape}")
        chosen = values[:, list(self.columns)].astype(np.float64)
        if self.angle:
            return np.concatenate([np.cos(chosen), np.sin(chosen)], axis=1).astype(np.float32)
        return (2 * (chosen - self.low) / (self.high - self.low) - 1).astype(np.float32)


class LabelledFrames:
    """Pictures from several sources, each a pair of lists of equal length.

    Args:
        camera: observation name, "images.<camera>".
        sources: (pictures (N, H, W, 3) uint8, labels (N, L) float32) each.
    """

    def __init__(self, camera: str, sources: Sequence[tuple[np.ndarray, np.ndarray]]):
        self.camera, self._sources = camera, list(sources)
        self._starts = np.cumsum([0] + [len(pictures) for pictures, _ in sources])
        if any(len(pictures) != len(labels) for pictures, labels in sources) or not self._starts[-1]:
            raise DataError(f"'{camera}': pictures and labels differ in number, or there are none")

    def __len__(self) -> int:
        return int(self._starts[-1])

    def batch(self, indices: np.ndarray) -> Batch:
        """Return "images.<camera>" `(B, 1, H, W, 3)` uint8 and "labels" `(B, L)` at positions `(B,)`."""
        which = np.searchsorted(self._starts, indices, side="right") - 1
        offsets = indices - self._starts[which]
        pictures = np.stack([self._sources[s][0][o] for s, o in zip(which, offsets)])
        labels = np.stack([self._sources[s][1][o] for s, o in zip(which, offsets)])
        return {self.camera: torch.from_numpy(pictures)[:, None], "labels": torch.from_numpy(labels)}
