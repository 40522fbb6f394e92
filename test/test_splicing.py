# SPDX-License-Identifier: Apache-2.0
"""Plans that follow each other become one motion: continuous where it is blended, the short way round, grippers at once."""

import numpy as np
import pytest
from scipy.interpolate import PchipInterpolator
from test_limits import robot

from ros_vdd.errors import ConfigError
from ros_vdd.runtime.chunking import ActionChunk
from ros_vdd.runtime.reference import Reference, cubic, hold, linear
from ros_vdd.runtime.splicing import SpliceConfig, Splicer

DT = 100_000_000
MS = 1_000_000


def chunk(actions, stamp_ns=0):
    return ActionChunk(stamp_ns, DT, ("x", "y"), np.asarray(actions, dtype=np.float64))


def walk(seed, stamp_ns=0):
    return chunk(np.random.default_rng(seed).normal(size=(16, 2)).cumsum(axis=0) * 0.1, stamp_ns)


def splicer(method="blend", splice_s=0.2, interpolation="cubic", **action):
    return Splicer(robot(interpolation=interpolation, **action).action, SpliceConfig(method, splice_s))


def still(position):
    return Reference(np.asarray(position, dtype=np.float64), np.zeros(2))


@pytest.mark.parametrize("seed", range(4))
def test_cubic_is_scipys_monotone_interpolation_with_rest_at_both_ends(seed):
    plan = walk(seed)
    times = np.arange(1, 17) * 0.1
    peer = PchipInterpolator(times, plan.actions)
    for now in range(2 * DT, 15 * DT, 7 * MS):  # SciPy's slopes differ at the two ends
        found = cubic(plan, now)
        np.testing.assert_allclose(found.position, peer(now / 1e9), atol=1e-12)
        np.testing.assert_allclose(found.velocity, peer.derivative()(now / 1e9), atol=1e-10)
    assert not cubic(plan, 0).velocity.any() and not cubic(plan, DT).velocity.any()
    np.testing.assert_allclose(cubic(plan, 16 * DT - 1).velocity, 0.0, atol=1e-6)


def test_cubic_leaves_the_span_of_neighbouring_actions_nowhere():
    plan = walk(9)
    for now in range(DT, 16 * DT, 9 * MS):
        step = now // DT
        ends = plan.actions[step - 1 : step + 1]
        position = cubic(plan, now).position
        assert (position >= ends.min(axis=0) - 1e-12).all() and (position <= ends.max(axis=0) + 1e-12).all()


@pytest.mark.parametrize("interpolation", [linear, cubic])
def test_a_references_velocity_is_the_rate_of_its_position(interpolation):
    plan, step = walk(3), 1000
    for now in range(DT + 5 * MS, 15 * DT, 10 * MS):  # never at a point, where lines have a corner
        rate = (interpolation(plan, now + step).position - interpolation(plan, now - step).position) / (2e-9 * step)
        np.testing.assert_allclose(interpolation(plan, now).velocity, rate, atol=1e-6)


def test_hold_and_linear_are_those_of_the_chunk():
    plan = walk(1)
    for now in range(0, 16 * DT, 23 * MS):
        np.testing.assert_array_equal(hold(plan, now).position, plan.hold(now))
        np.testing.assert_array_equal(linear(plan, now).position, plan.linear(now))


@pytest.mark.parametrize("seed", range(5))
def test_a_blend_is_continuous_in_position_and_velocity_and_ends_on_the_new_plan(seed):
    made, old, new = splicer(), walk(seed), walk(seed + 100, 4 * DT)
    made.join([old], 0, still(cubic(old, 0).position))
    before = made.at(6 * DT)
    made.join([old, new], 6 * DT, before)
    after = made.at(6 * DT)
    np.testing.assert_allclose(after.position, before.position, atol=1e-12)
    np.testing.assert_allclose(after.velocity, before.velocity, atol=1e-12)
    end = made.at(8 * DT)
    np.testing.assert_allclose(end.position, cubic(new, 8 * DT).position, atol=1e-12)
    np.testing.assert_allclose(made.at(8 * DT - 10).velocity, end.velocity, atol=1e-5)


@pytest.mark.parametrize("offset", [0.01, 0.3, 2.0])
def test_a_blend_takes_no_more_than_half_of_the_robots_velocity_and_acceleration(offset):
    limits = {"max_velocity": [1.0, 2.0], "max_acceleration": [4.0, 8.0]}
    made = splicer(interpolation="hold", **limits)
    made.join([chunk(np.zeros((100, 2)))], 0, Reference(np.array([offset, -offset]), np.zeros(2)))
    path = np.array([made.at(k * MS).position for k in range(8000)])
    velocity = np.diff(path, axis=0) / 1e-3
    assert (np.abs(velocity).max(axis=0) <= np.array([0.5, 1.0]) * 1.001).all()
    assert (np.abs(np.diff(velocity, axis=0)).max(axis=0) / 1e-3 <= np.array([2.0, 4.0]) * 1.01).all()


def test_replace_jumps_to_the_new_plan():
    made, old, new = splicer("replace"), walk(0), walk(1, 4 * DT)
    made.join([old], 0, still([0, 0]))
    made.join([old, new], 6 * DT, made.at(6 * DT))
    np.testing.assert_array_equal(made.at(6 * DT).position, cubic(new, 6 * DT).position)


def test_a_blend_that_is_not_over_goes_over_into_the_next_without_a_jump():
    made = splicer(splice_s=0.5)
    plans = [walk(k, 2 * k * DT) for k in range(5)]
    made.join(plans[:1], 0, still([1.0, -1.0]))
    for k in range(1, 5):
        now = 2 * k * DT + 30 * MS
        before = made.at(now)
        made.join(plans[: k + 1], now, before)
        np.testing.assert_allclose(made.at(now).position, before.position, atol=1e-12)
        np.testing.assert_allclose(made.at(now).velocity, before.velocity, atol=1e-11)
    assert made.seams == 5


def test_the_same_plan_is_no_new_seam():
    made, plan = splicer(), walk(0)
    for now in range(0, 10 * DT, DT):
        made.join([plan], now, still([0, 0]) if not now else made.at(now))
    assert made.seams == 1


def test_a_switched_joint_is_never_blended():
    made, old, new = splicer(switched=["y"]), chunk(np.zeros((16, 2))), chunk(np.ones((16, 2)), 4 * DT)
    made.join([old], 0, still([0, 0]))
    made.join([old, new], 6 * DT, made.at(6 * DT))
    assert made.at(6 * DT).position[0] == 0.0 and made.at(6 * DT).position[1] == 1.0


def test_a_continuous_joint_goes_the_short_way_round_within_a_plan_and_between_plans():
    made = splicer(continuous=["x"], lower=[-4.0, -2.0], upper=[4.0, 2.0], interpolation="linear")
    turning = made.prepare(chunk(np.c_[(np.linspace(2.0, 5.0, 16) + np.pi) % (2 * np.pi) - np.pi, np.zeros(16)]))
    np.testing.assert_allclose(turning.actions[:, 0], np.linspace(2.0, 5.0, 16), atol=1e-12)
    new = made.prepare(chunk(np.c_[np.full(16, -3.1), np.zeros(16)], 4 * DT))
    made.join([new], 5 * DT, still([3.1, 0.0]))  # 0.083 rad apart, through +-pi
    path = np.array([made.at(5 * DT + k * 10 * MS).position[0] for k in range(60)])
    assert path[0] == pytest.approx(3.1) and path[-1] == pytest.approx(2 * np.pi - 3.1)
    assert np.abs(np.diff(path)).max() < 0.01


def test_an_ensemble_weighs_older_chunks_more():
    made = splicer("ensemble", interpolation="hold", splice_s=1e-6)
    made.config = SpliceConfig("ensemble", 1e-6, 0.5)
    plans = [chunk(np.full((16, 2), k), k * DT) for k in range(3)]
    made.join(plans, 5 * DT, still([0, 0]))
    weights = np.exp(-0.5 * np.arange(3))
    np.testing.assert_allclose(made.at(6 * DT).position, weights @ np.arange(3) / weights.sum())
    np.testing.assert_allclose(made.at(16 * DT).position, weights[1:] @ np.arange(1, 3) / weights[1:].sum())  # the first has ended


@pytest.mark.parametrize("change", [{"method": "mean"}, {"splice_s": 0.0}, {"ensemble_decay": -1.0}])
def test_settings_without_meaning_are_refused(change):
    with pytest.raises(ConfigError):
        SpliceConfig(**change)
