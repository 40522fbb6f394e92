# SPDX-License-Identifier: Apache-2.0
"""Who demonstrates Avoiding: smooth ways through chosen gaps, with the variation of a person at a joystick. Our own.

Between two rows x follows y by the minimum-jerk polynomial s(u) = 10 u^3 - 15 u^4 + 6 u^5 (Flash and Hogan 1985), so the way
turns towards a row's gap only after the row before. What differs between two demonstrations of one way: where in a gap it passes,
how early it turns, how fast it goes, and a slow wobble. Demonstrations that come too near to an obstacle are drawn anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ros_vdd.envs import avoiding
from ros_vdd.streams.spec import load_robot

PASS_STD, PASS_MAX = 0.008, 0.016  # [m] where in a gap
TURN_STD = 0.06  # how much earlier or later than the minimum jerk it turns, as a share between the rows
SPEED = (0.0075, 0.0100)  # [m] a step
SPEED_WAVE = 0.15  # depth of the slow change of speed
WOBBLE_STD, WOBBLE_MEMORY = 0.0015, 0.92  # [m]; correlation from one step to the next
START_STEPS = 8  # of acceleration
FASTEST = 0.012  # [m] an axis and step: a person doesn't press the stick to its stop
MARGIN = 0.004  # [m] least clearance of a demonstration
PATH_POINTS = 600


def demonstrate(seed: int, per_way: int) -> Iterator[tuple[dict[str, np.ndarray], dict]]:
    """Yield (arrays, meta) of every way `per_way` times; each round has all ways in an order of its own."""
    robot = load_robot(avoiding.Env.robot)
    orders = np.random.default_rng([seed])
    for round_ in range(per_way):
        for way in orders.permutation(avoiding.MODES).tolist():
            arrays = _one(np.random.default_rng([seed, round_, way]), way)
            arrays["stamp_ns"] = np.arange(len(arrays["action"]), dtype=np.int64) * robot.dt_ns
            yield arrays, {"source": "env:avoiding", "source_format": "demonstrator", "seed": seed, "round": round_, "way": way}


def _one(rng: np.random.Generator, way: int) -> dict[str, np.ndarray]:
    """Return "state" and "action" of one demonstration of a way; about one draw in six is refused."""
    for _ in range(1000):
        env = avoiding.Env()
        arrays, nearest = _drive(env, _path(rng, avoiding.way_gaps(way)), rng)
        if env.mode == way and nearest >= MARGIN:
            return arrays
    raise AssertionError(f"way {way} isn't feasible with this variation")


def _path(rng: np.random.Generator, gaps: Sequence[int]) -> np.ndarray:
    """Draw a path (N, 2) [m] from the start through the gaps over the finish line, its points close together."""
    points = [avoiding.START]
    for gap, (row_y, centres) in zip(gaps, avoiding.ROWS):
        x = centres[0] + (gap - 0.5) * avoiding.SPACING
        points.append((x + np.clip(rng.normal(0.0, PASS_STD), -PASS_MAX, PASS_MAX), row_y))
    points.append((points[-1][0] + rng.normal(0.0, PASS_STD), avoiding.HIGH[1]))
    legs = [_leg(a, b, rng.normal(0.0, TURN_STD)) for a, b in zip(points, points[1:])]
    return np.concatenate(legs)


def _leg(a: Sequence[float], b: Sequence[float], turn: float) -> np.ndarray:
    u = np.linspace(0.0, 1.0, PATH_POINTS // 4)
    bent = u + 4 * np.clip(turn, -0.2, 0.2) * u * (1 - u)  # monotone for |turn| < 1/4
    s = bent**3 * (10 - 15 * bent + 6 * bent**2)
    return np.stack([a[0] + (b[0] - a[0]) * s, a[1] + (b[1] - a[1]) * u], axis=1)


def _drive(env: avoiding.Env, path: np.ndarray, rng: np.random.Generator) -> tuple[dict[str, np.ndarray], float]:
    """Follow a path in the environment; return what was observed and done, and the least clearance [m]."""
    lengths = np.concatenate([[0.0], np.linalg.norm(np.diff(path, axis=0), axis=1).cumsum()])
    speed, phase, period = rng.uniform(*SPEED), rng.uniform(0.0, 2 * np.pi), rng.uniform(40.0, 80.0)
    state = env.reset(0)["state"]
    states, actions, travelled, wobble, nearest = [], [], 0.0, np.zeros(2), np.inf
    while not env.done:
        step = len(actions)
        pace = min((step + 1) / START_STEPS, 1.0) * (1 + SPEED_WAVE * np.sin(2 * np.pi * step / period + phase))
        travelled += speed * pace
        wobble = WOBBLE_MEMORY * wobble + np.sqrt(1 - WOBBLE_MEMORY**2) * rng.normal(0.0, WOBBLE_STD, 2)
        target = np.array([np.interp(travelled, lengths, path[:, axis]) for axis in range(2)]) + wobble
        action = np.clip(target - state[:2], -FASTEST, FASTEST).astype(np.float32)
        states.append(state)
        actions.append(action)
        state = env.step(action)["state"]
        nearest = min(nearest, avoiding.clearance(float(state[2]), float(state[3])))
    return {"state": np.stack(states), "action": np.stack(actions)}, nearest
