# SPDX-License-Identifier: Apache-2.0
"""The statistics that a LeRobotDataset carries: min, max, mean, std, count and quantiles of each feature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
MOST_FRAMES = 200  # of one episode, evenly spread; a picture's statistics don't need every frame
Stats = dict[str, np.ndarray]


def vector_stats(values: np.ndarray) -> Stats:
    """Return the statistics of values (N, ...) over N."""
    values = np.asarray(values, np.float64).reshape(len(values), -1)
    spread = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    return spread | {"count": np.array([len(values)])} | {k: np.quantile(values, q, axis=0) for k, q in QUANTILES.items()}


def picture_stats(frames: np.ndarray) -> Stats:
    """Return the statistics of pictures (N, H, W, 3) uint8 per channel, (3, 1, 1), as shares of 255.

    Quantiles are those of the histogram: the least value that a share q of the pixels doesn't exceed.
    """
    chosen = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), MOST_FRAMES)).round().astype(int))
    counts = np.zeros((3, 256), np.int64)
    for k in chosen:
        for channel in range(3):
            counts[channel] += np.bincount(frames[k][..., channel].ravel(), minlength=256)
    levels, total = np.arange(256) / 255, counts.sum(1, keepdims=True)
    mean = (counts * levels).sum(1) / total[:, 0]
    std = np.sqrt((counts * (levels - mean[:, None]) ** 2).sum(1) / total[:, 0])
    below = np.cumsum(counts, 1) / total
    found = {
        "min": levels[(counts > 0).argmax(1)],
        "max": levels[255 - (counts[:, ::-1] > 0).argmax(1)],
        "mean": mean,
        "std": std,
    }
    found |= {k: levels[(below >= q - 1e-12).argmax(1)] for k, q in QUANTILES.items()}
    return {k: v.reshape(3, 1, 1) for k, v in found.items()} | {"count": np.array([len(chosen)])}


def merge(parts: Sequence[Mapping[str, np.ndarray]]) -> Stats:
    """Return the statistics of all episodes from those of each; quantiles become their weighted mean, as in lerobot itself."""
    weight = np.concatenate([np.asarray(p["count"]).reshape(1) for p in parts]).astype(np.float64)
    stacked = {key: np.stack([np.asarray(p[key], np.float64) for p in parts]) for key in parts[0] if key != "count"}
    shares = (weight / weight.sum()).reshape(-1, *[1] * (stacked["mean"].ndim - 1))
    mean = (shares * stacked["mean"]).sum(0)
    std = np.sqrt((shares * (stacked["std"] ** 2 + (stacked["mean"] - mean) ** 2)).sum(0))
    merged = {
        "min": stacked["min"].min(0),
        "max": stacked["max"].max(0),
        "mean": mean,
        "std": std,
        "count": np.array([int(weight.sum())]),
    }
    return merged | {key: (shares * stacked[key]).sum(0) for key in QUANTILES}
