# SPDX-License-Identifier: Apache-2.0
"""Limits of velocity, acceleration and jerk hold between any two commands, and what can be reached is reached without overshoot."""

import math

import numpy as np
import pytest
from test_limits import robot

from ros_vdd.runtime.motion import MotionLimiter

T = 0.01
LIMITS = {"max_velocity": [1.0, 2.0], "max_acceleration": [4.0, 8.0]}
JERK = {"max_jerk": [100.0, 400.0]}


def limiter(**action):
    return MotionLimiter(robot(**{**LIMITS, **action}).action, T)


def followed(made, targets, velocities=None, start=(0.0, 0.0)):
    """Return positions and velocities `(N + 1, 2)` of following targets."""
    states = [made.at_rest(np.array(start))]
    for k, target in enumerate(targets):
        states.append(made.follow(states[-1], target, None if velocities is None else velocities[k]))
    return np.array([s.position for s in states]), np.array([s.velocity for s in states])


def wild(seed, count=1000):
    """Targets that jump, drift and leave the limits."""
    rng = np.random.default_rng(seed)
    held = np.repeat(rng.uniform(-1.5, 1.5, (count // 20, 2)) * [1.0, 2.0], 20, axis=0)
    return held + 0.2 * rng.standard_normal(held.shape)


@pytest.mark.parametrize("jerk", [{}, JERK], ids=["no jerk limit", "jerk limit"])
@pytest.mark.parametrize("seed", range(5))
def test_no_limit_is_ever_passed_whatever_is_asked(jerk, seed):
    made = limiter(**jerk)
    targets = wild(seed)
    positions, velocities = followed(made, targets, np.gradient(targets, T, axis=0) if seed % 2 else None)
    bounds = robot(**LIMITS).action
    assert (positions >= bounds.lower).all() and (positions <= bounds.upper).all()
    assert (np.abs(velocities) <= np.array(LIMITS["max_velocity"]) + 1e-9).all()
    np.testing.assert_allclose(np.diff(positions, axis=0), velocities[1:] * T, atol=1e-12)
    accelerations = np.diff(velocities, axis=0) / T
    assert (np.abs(accelerations) <= np.array(LIMITS["max_acceleration"]) + 1e-7).all()
    if jerk:
        assert (np.abs(np.diff(accelerations, axis=0)) / T <= np.array(JERK["max_jerk"]) + 1e-4).all()


@pytest.mark.parametrize("jerk", [{}, JERK], ids=["no jerk limit", "jerk limit"])
@pytest.mark.parametrize("distance", [0.003, 0.05, 0.4, 0.9])
def test_a_still_target_is_reached_without_overshoot(jerk, distance):
    positions, velocities = followed(limiter(**jerk), [np.array([distance, -2 * distance])] * 400)
    assert positions[:, 0].max() <= distance + 1e-9 and positions[:, 1].min() >= -2 * distance - 1e-9
    np.testing.assert_allclose(positions[-1], [distance, -2 * distance], atol=1e-9)
    assert not velocities[-1].any()


def test_a_way_takes_the_time_of_the_trapezoid():
    """s = 0.8, v = 1, a = 4: 2 v / a accelerating and braking, the rest at v: 0.5 s + 0.55 s, to within two periods."""
    positions, _ = followed(limiter(), [np.array([0.8, 0.0])] * 200)
    arrived = np.flatnonzero(np.abs(positions[:, 0] - 0.8) < 1e-9)[0] * T
    assert arrived == pytest.approx(0.8 / 1.0 + 1.0 / 4.0, abs=2 * T)


def test_a_motion_within_the_limits_is_followed_exactly():
    time = T * np.arange(1, 300)[:, None]
    targets = 0.2 * (1 - np.cos(np.array([2.0, 3.0]) * time))
    positions, _ = followed(limiter(), targets, 0.2 * np.array([2.0, 3.0]) * np.sin(np.array([2.0, 3.0]) * time))
    np.testing.assert_allclose(positions[50:], targets[49:], atol=1e-9)


def test_a_moving_target_is_caught_at_its_speed():
    time = T * np.arange(1, 400)[:, None]
    targets = np.array([-0.9, 0.0]) + np.array([0.3, 0.0]) * time
    positions, velocities = followed(limiter(), targets, np.full_like(targets, 0.0) + [0.3, 0.0], start=(-0.5, 0.0))
    np.testing.assert_allclose(positions[-1], targets[-1], atol=1e-9)
    np.testing.assert_allclose(velocities[-1], [0.3, 0.0], atol=1e-7)


@pytest.mark.parametrize("jerk", [{}, JERK], ids=["no jerk limit", "jerk limit"])
def test_a_stop_is_the_shortest_and_ends_in_rest(jerk):
    made = limiter(**jerk)
    state = made.at_rest(np.zeros(2))
    for _ in range(60):
        state = made.follow(state, np.array([1.0, 2.0]))
    made_speed = state.pace
    positions, velocities = made.stop(state)
    one_by_one = []
    while not state.resting:
        state = made.brake(state)
        one_by_one.append(state)
    np.testing.assert_allclose(positions, [s.position for s in one_by_one], atol=1e-12)
    np.testing.assert_allclose(velocities, [s.velocity for s in one_by_one], atol=1e-9)
    assert not velocities[-1].any() and not len(made.stop(state)[0])
    speeds, lag = np.abs(made_speed), 0 if not jerk else round(2 * made.lag_s / T)
    assert len(positions) == max(math.ceil(v / (a * T) - 1e-9) for v, a in zip(speeds, LIMITS["max_acceleration"])) + lag


def test_the_jerk_limit_delays_by_half_the_mean():
    time = T * np.arange(1, 300)[:, None]
    targets = np.hstack([0.3 * time, -0.3 * time])[:150]
    made = limiter(**JERK)
    positions, _ = followed(made, targets, np.tile([0.3, -0.3], (150, 1)))
    assert made.lag_s == pytest.approx(7 / 2 * T)  # 2 a / (j T) = 8 positions
    np.testing.assert_allclose(positions[-1], targets[-1] - np.array([0.3, -0.3]) * made.lag_s, atol=1e-9)


@pytest.mark.parametrize("jerk", [{}, JERK], ids=["no jerk limit", "jerk limit"])
def test_a_start_outside_the_limits_is_led_back_by_motions_never_by_a_jump(jerk):
    positions, velocities = followed(limiter(**jerk), [np.array([0.9, 0.0])] * 400, start=(1.3, 0.0))
    assert (np.abs(np.diff(velocities, axis=0)) / T <= np.array(LIMITS["max_acceleration"]) + 1e-7).all()
    assert positions[0, 0] == 1.3 and positions[:, 0].max() <= 1.3 and positions[-1, 0] == pytest.approx(0.9)


def test_a_joint_that_turns_without_end_passes_the_limits_of_one_turn():
    made = limiter(continuous=["x"], lower=[-3.2, -2.0], upper=[3.2, 2.0])
    positions, velocities = followed(made, [np.array([30.0, 0.0])] * 4000)
    assert positions[-1, 0] == pytest.approx(30.0) and np.abs(velocities[:, 0]).max() <= 1.0 + 1e-9
