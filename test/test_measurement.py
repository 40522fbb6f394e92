# SPDX-License-Identifier: Apache-2.0
"""What counts as where a robot is: fresh, complete, in the action's unit, and measured since it came to rest."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from test_limits import robot
from test_smooth_command import DT, T_NS, commander, plan

from ros_vdd.runtime.chunking import ActionChunk
from ros_vdd.runtime.execution import Execution, ExecutionConfig
from ros_vdd.runtime.measurement import MeasuredPosition
from ros_vdd.runtime.reasons import Reason
from ros_vdd.streams.spec import JointStateSpec, SafeAction

SPEC = dataclasses.replace(
    robot(), states={"arm": JointStateSpec(topic="joint_states", joints=("x", "y"), unit=robot().action.unit, max_age_s=0.5)}
)


def joints(stamp_ns, x, y):
    stamp = SimpleNamespace(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    return SimpleNamespace(header=SimpleNamespace(stamp=stamp), name=["x", "y"], position=[x, y], velocity=[], effort=[])


def test_a_measurement_of_before_an_instant_is_none_since_then():
    measured = MeasuredPosition(SPEC)
    measured.push("arm", joints(10 * DT, 0.25, 0.5), 10 * DT)
    assert measured.at(12 * DT).tolist() == measured.at(12 * DT, 10 * DT).tolist() == [0.25, 0.5]
    assert measured.at(12 * DT, 10 * DT + 1) is None and measured.at(16 * DT) is None


def test_a_robot_begins_anew_where_it_rests_and_not_where_it_was_measured_on_the_way():
    """Measurements come 0.3 s late; a plan comes right after the robot has come to rest."""
    made, measured, places, found = commander("hold", lookahead=5), MeasuredPosition(SPEC), {}, []
    place, now = np.zeros(2), 20 * DT
    made.receive(plan(1, now, size=0.2))
    for k in range(600):
        places[now] = place
        late_ns = now - 30 * T_NS
        measured.push("arm", joints(late_ns, *places.get(late_ns, np.zeros(2))), now)
        was_moving = made.moving
        motion, refusal = made.command(now, measured.at(now, made.rested_ns))
        if motion is not None:
            step = np.abs(motion.positions[0] - place).max()
            assert step <= 2.0 / 100 + 1e-6, (k, was_moving, step)
            found.append(was_moving)
            place = motion.positions[0]
        if was_moving and not made.moving:
            made.receive(plan(k, now, start=place, size=0.2))
        elif not made.moving and refusal.code is not Reason.NO_MEASUREMENT:
            made.receive(plan(k, now, start=place, size=0.2))
        now += T_NS
    assert found.count(False) > 1


def test_of_a_clock_that_is_ahead_an_old_sample_is_not_taken_for_a_fresh_one():
    """Stamps 3 s ahead: the sample stamped now was measured 3 s ago, and would be held or started from."""
    ahead, measured = 30 * DT, MeasuredPosition(SPEC, real_time=True)
    for k in range(60):
        usable = measured.push("arm", joints(k * DT + ahead, 0.01 * k, 0.0), k * DT)
        assert not usable and measured.at(k * DT) is None
    assert "the header's stamp is 3 s ahead of this node's clock, limit 0.5 s" in measured.missing(60 * DT)
    assert measured.push("arm", joints(60 * DT, 0.6, 0.0), 60 * DT) and measured.at(60 * DT) is not None
    assert measured.missing(60 * DT) == ""


def test_in_lock_step_stamps_are_compared_with_no_clock():
    measured = MeasuredPosition(SPEC)
    assert measured.push("arm", joints(5 * DT, 0.1, 0.2), 10**18) and measured.at(5 * DT) is not None


@pytest.mark.parametrize("now, since, told", [(0, 0, "never received"), (20, 0, "1 s old, limit 0.5 s"), (12, 11, "came to rest")])
def test_what_is_missing_is_told(now, since, told):
    measured = MeasuredPosition(SPEC)
    if now:
        measured.push("arm", joints(10 * DT, 0.25, 0.5), 10 * DT)
    assert measured.at(now * DT, since * DT) is None and told in measured.missing(now * DT, since * DT)


def test_a_refusal_says_which_joint_is_not_measured_and_why():
    made = Execution(SPEC, ExecutionConfig())
    made.take_joint_state("arm", joints(10 * DT, 0.25, 0.5), 10 * DT)
    made.take_chunk(ActionChunk(20 * DT, DT, ("x", "y"), np.zeros((8, 2))))
    refusal = made.command(20 * DT).refusal
    assert refusal.code is Reason.NO_MEASUREMENT and "position of joint 'x': 1 s old, limit 0.5 s" in refusal.detail


@pytest.mark.parametrize(
    "limits, unit, leaps", [({}, SPEC.action.unit, True), ({"max_velocity": (1.0, 1.0)}, SPEC.action.unit, False), ({}, "another", False)]
)
def test_a_safe_position_without_a_limit_of_velocity_is_one_jump(limits, unit, leaps):
    """Of a robot whose joints aren't measured, nothing says that the command is a position."""
    free = {"max_velocity": None, "max_acceleration": None, "max_jerk": None, **limits}
    action = dataclasses.replace(SPEC.action, **free)
    home = SafeAction(kind="position", positions=(0.0, 0.0), stale_chunk_s=1.0)
    states = {"arm": dataclasses.replace(SPEC.states["arm"], unit=unit)}
    spec = dataclasses.replace(SPEC, action=action, states=states, safe_action=home)
    assert Execution(spec, ExecutionConfig()).leaps is leaps
    held = dataclasses.replace(spec, safe_action=SafeAction(kind="stop", stale_chunk_s=1.0))
    assert not Execution(held, ExecutionConfig()).leaps
