# SPDX-License-Identifier: Apache-2.0
"""How far a set of points is from another, and how well an energy tells them apart; float arrays in, numbers out."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

DIRECTIONS = 1000


def sliced_wasserstein(x: np.ndarray, y: np.ndarray, rng: np.random.Generator, directions: int = DIRECTIONS) -> float:
    """Return the sliced 2-Wasserstein distance of point clouds `(N, D)`, in their unit.

    SW = (1/L sum_l 1/N sum_i (x_(i) - y_(i))^2)^(1/2), x_(i) the sorted projections onto L random unit directions. Two
    draws of one density aren't 0 apart: compare with that floor.

    Raises:
        ValueError: the clouds differ in shape.

    Source: Bonneel et al. 2015 (Sliced and Radon Wasserstein barycenters of measures), section 2.3.
    """
    if x.shape != y.shape:
        raise ValueError(f"x {x.shape}, y {y.shape}: need as many points of as many dimensions")
    axes = rng.standard_normal((directions, x.shape[1]))
    axes = (axes / np.linalg.norm(axes, axis=1, keepdims=True)).astype(np.float32)
    first, second = (np.sort(axes @ points.T.astype(np.float32), axis=1) for points in (x, y))
    return float(np.sqrt(np.square(first - second, dtype=np.float64).mean()))


def histogram_distance(modes: np.ndarray, count: int) -> float:
    """Return the total variation 1/2 sum_k |h_k - 1/K| between the shares of modes `(N,)`, 0 to K - 1, and K equal ones."""
    shares = np.bincount(modes, minlength=count) / len(modes)
    return float(0.5 * np.abs(shares - 1 / count).sum())


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Return the chance that a positive's score `(N,)` is above a negative's `(M,)`, the area under the ROC curve; ties half."""
    ranks = rankdata(np.concatenate([positive, negative]))[: len(positive)].sum()
    return float((ranks - len(positive) * (len(positive) + 1) / 2) / (len(positive) * len(negative)))
