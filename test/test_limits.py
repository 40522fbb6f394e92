# SPDX-License-Identifier: Apache-2.0
"""The gate: what is refused whole, what is clamped and counted, and how far one command may go."""

import numpy as np
import pytest

from ros_vdd.runtime.chunking import ActionChunk
from ros_vdd.runtime.limits import SafetyGate
from ros_vdd.runtime.reasons import Reason, Refusal
from ros_vdd.streams.spec import robot_from_mapping

DT = 100_000_000


def robot(**action):
    """Two joints, limits +-1 and +-2, measured."""
    joints = ["x", "y"]
    limits = {"lower": [-1.0, -2.0], "upper": [1.0, 2.0], "command_rate_hz": 10.0}
    return robot_from_mapping(
        {
            "name": "two_joints",
            "rate_hz": 10.0,
            "cameras": {},
            "states": {"joints": {"topic": "joint_states", "joints": joints, "unit": "rad", "max_age_s": 0.2}},
            "action": {"topic": "command", "joints": joints, "unit": "rad", **limits, **action},
            "safe_action": {"kind": "hold", "stale_chunk_s": 1.0},
        }
    )


def chunk(actions=((0.5, 1.0), (0.6, 1.1)), joints=("x", "y")):
    return ActionChunk(0, DT, tuple(joints), np.array(actions, dtype=np.float64))


def test_a_chunk_inside_the_limits_passes_unchanged():
    gate = SafetyGate(robot())
    np.testing.assert_array_equal(gate.check(chunk()).actions, chunk().actions)
    assert gate.clamped == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [(0, 0), (1, 1)])
def test_one_value_that_is_not_finite_refuses_the_whole_chunk(bad, at):
    actions = np.zeros((2, 2))
    actions[at] = bad
    assert SafetyGate(robot()).check(chunk(actions)).code is Reason.NOT_FINITE


@pytest.mark.parametrize("joints", [("x",), ("x", "z"), ("x", "x"), ("x", "y", "z"), ()])
def test_wrong_joints_refuse_the_chunk(joints):
    refusal = SafetyGate(robot()).check(chunk(np.zeros((2, len(joints))), joints))
    assert refusal.code is Reason.WRONG_JOINTS


def test_a_renamed_joint_is_told_with_the_nearest_name():
    assert "'xx'" in SafetyGate(robot()).check(chunk(joints=("xx", "y"))).detail
    assert "available: x, y" in SafetyGate(robot()).check(chunk(joints=("xx", "y"))).detail


def test_joints_in_another_order_are_put_in_the_order_of_the_robot():
    given = chunk([[1.5, 0.5]], ("y", "x"))
    np.testing.assert_array_equal(SafetyGate(robot()).check(given).actions, [[0.5, 1.5]])


@pytest.mark.parametrize("actions", [np.zeros((0, 2)), np.zeros((2, 3)), np.zeros(2)])
def test_a_wrong_shape_refuses_the_chunk(actions):
    assert SafetyGate(robot()).check(chunk(actions)).code is Reason.WRONG_SHAPE


def test_a_small_overshoot_is_clamped_and_counted():
    gate = SafetyGate(robot(), margin=0.05)  # 5 % of x's range of 2 is 0.1
    checked = gate.check(chunk([[1.09, 0.0], [-1.09, 0.0]]))
    np.testing.assert_array_equal(checked.actions[:, 0], [1.0, -1.0])
    assert gate.clamped == 1


@pytest.mark.parametrize("action", [(1.11, 0.0), (-1.11, 0.0), (0.0, 2.21), (0.0, -2.21)])
def test_an_overshoot_beyond_the_margin_refuses_the_chunk(action):
    assert SafetyGate(robot(), margin=0.05).check(chunk([action])).code is Reason.OUT_OF_LIMITS


def test_the_callers_actions_stay_untouched():
    given = chunk([[1.05, 0.0]])
    SafetyGate(robot()).check(given)
    assert given.actions[0, 0] == 1.05


def test_a_step_is_no_longer_than_the_largest_velocity_allows():
    gate = SafetyGate(robot(max_velocity=[1.0, 5.0]))
    step = gate.limit_step(np.array([1.0, 1.0]), np.array([0.0, 0.8]), DT)
    np.testing.assert_allclose(step, [0.1, 1.0])
    assert gate.slowed == 1


def test_without_a_largest_velocity_a_step_passes():
    target = np.array([1.0, 1.0])
    assert SafetyGate(robot()).limit_step(target, np.zeros(2), DT) is target


def test_random_chunks_are_refused_or_end_inside_the_limits():
    rng, gate = np.random.default_rng(0), SafetyGate(robot())
    for _ in range(2000):
        actions = rng.normal(scale=rng.choice([0.3, 1.0, 1e3]), size=(4, 2))
        actions[rng.random((4, 2)) < 0.02] = rng.choice([np.nan, np.inf, -np.inf])
        checked = gate.check(chunk(actions))
        assert isinstance(checked, Refusal) or (np.abs(checked.actions) <= [1.0, 2.0]).all()
