# SPDX-License-Identifier: Apache-2.0
"""Toy2d: one decision, a point in the plane, drawn from eight equal Gaussians on a circle whose density is known exactly.

    p(x; sigma) = 1/8 sum_k N(x; mu_k, (std^2 + sigma^2) I),   mu_k = 2 (cos(k pi/4), sin(k pi/4)),   std = 0.5

The functions are float64 and closed: `score` is the gradient of `log_prob`, so a student can be held against the true teacher.
After the toy of VDD (Zhou et al. 2024, arXiv 2406.12538); the numbers are our own.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

from ros_vdd.streams.spec import load_robot

MODES, RADIUS, STD = 8, 2.0, 0.5
LIMIT = 4.5  # [m] edge of the picture, as in the robot file
_ANGLES = np.arange(MODES) * (2 * np.pi / MODES)
means = RADIUS * np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)
"""(8, 2) centres, counter-clockwise from the x axis."""
means.setflags(write=False)


def log_prob(x: np.ndarray, sigma: float | np.ndarray = 0.0) -> np.ndarray:
    """Return ln p(x; sigma) `(...)` of points `(..., 2)`, smoothed by noise of standard deviation sigma, a number or `(...)`."""
    variance, exponents = _components(x, sigma)
    largest = exponents.max(axis=-1)
    total = np.exp(exponents - largest[..., None]).sum(axis=-1)
    return largest + np.log(total / MODES) - np.log(2 * np.pi * variance)


def score(x: np.ndarray, sigma: float | np.ndarray = 0.0) -> np.ndarray:
    """Return the gradient of ln p(x; sigma) `(..., 2)`: sum_k r_k(x) (mu_k - x) / (std^2 + sigma^2), r the responsibilities."""
    variance, exponents = _components(x, sigma)
    weights = np.exp(exponents - exponents.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return (weights @ means - np.asarray(x, np.float64)) / np.asarray(variance)[..., None]


def sample(count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw points (count, 2) of p."""
    return means[rng.integers(MODES, size=count)] + STD * rng.standard_normal((count, 2))


def nearest(x: np.ndarray) -> np.ndarray:
    """Return the index `(...)` of the centre nearest to points `(..., 2)`."""
    return np.linalg.norm(np.asarray(x, np.float64)[..., None, :] - means, axis=-1).argmin(axis=-1)


def demonstrations(seed: int = 0, episodes: int = 64, samples: int = 64) -> Iterator[tuple[dict[str, np.ndarray], dict]]:
    """Yield (arrays, meta) of episodes whose frames are independent draws of p: for a policy with horizon 1."""
    robot = load_robot(Env.robot)
    for index in range(episodes):
        rng = np.random.default_rng([seed, index])
        arrays = {"state": np.zeros((samples, 1), np.float32), "action": sample(samples, rng).astype(np.float32)}
        arrays["stamp_ns"] = np.arange(samples, dtype=np.int64) * robot.dt_ns
        yield arrays, {"source": "env:toy2d", "source_format": "demonstrator", "seed": seed, "episode": index}


class Env:
    """One step: the action `(2,)` [m] is the point; "state" `(1,)` is always 0."""

    robot = "toy2d"
    max_steps = 1
    modes = MODES

    def __init__(self):
        self._point: np.ndarray | None = None

    def reset(self, seed: int) -> dict[str, np.ndarray]:
        """Start an episode; there is one start state, whatever the seed."""
        self._point = None
        return {"state": np.zeros(1, np.float32)}

    def step(self, action: np.ndarray) -> dict[str, np.ndarray]:
        """Choose the point `(2,)` [m]; the first one counts."""
        if self._point is None:
            self._point = np.array(action, np.float64)
        return {"state": np.zeros(1, np.float32)}

    @property
    def score(self) -> float:
        """exp(-d^2 / (2 std^2)) with the distance d to the nearest centre: 1 on it, 1/2 on average over draws."""
        return 0.0 if self._point is None else float(np.exp(-0.5 * (self._distance / STD) ** 2))

    @property
    def success(self) -> bool:
        """Whether the point lies within three standard deviations of a centre."""
        return self._point is not None and self._distance <= 3 * STD

    @property
    def done(self) -> bool:
        return self._point is not None

    @property
    def failed(self) -> bool:
        """Whether the point lies outside of all Gaussians."""
        return self.done and not self.success

    @property
    def mode(self) -> int | None:
        """Index of the nearest centre; None without success."""
        return int(nearest(self._point)) if self.success else None

    def project(self, actions: np.ndarray) -> np.ndarray:
        """Return points (..., 2) [m] as shares (right, down) of the picture."""
        return np.stack([actions[..., 0] + LIMIT, LIMIT - actions[..., 1]], axis=-1) / (2 * LIMIT)

    def render(self, size: int = 384) -> np.ndarray:
        """Return the density, and the point once chosen, `(size, size, 3)` uint8, y upwards."""
        axis = (np.arange(size) + 0.5) / size * 2 * LIMIT - LIMIT
        density = np.exp(log_prob(np.stack(np.meshgrid(axis, -axis), axis=-1)))
        shade = (density / density.max())[..., None]
        picture = np.rint(250 - shade * (250 - np.array([90.0, 140.0, 200.0]))).astype(np.uint8)
        if self._point is not None:
            x, y = np.rint(self.project(self._point) * size).astype(int).tolist()
            cv2.circle(picture, (x, y), max(size // 80, 2), (40, 140, 70) if self.success else (190, 50, 40), -1, cv2.LINE_AA)
        return picture

    @property
    def _distance(self) -> float:
        return float(np.linalg.norm(means - self._point, axis=1).min())


def _components(x: np.ndarray, sigma: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the variance, and -|x - mu_k|^2 / (2 variance) `(..., 8)`."""
    variance = STD**2 + np.square(np.asarray(sigma, np.float64))
    squares = np.square(np.asarray(x, np.float64)[..., None, :] - means).sum(axis=-1)
    return variance, -0.5 * squares / variance[..., None]
