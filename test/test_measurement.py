# SPDX-License-Identifier: Apache-2.0
"""What counts as where a robot is: fresh, complete, in the action's unit, and measured since it came to rest."""

import dataclasses
from types import SimpleNamespace

import numpy as np
from test_limits import robot
from test_smooth_command import DT, T_NS, commander, plan

from ros_vdd.runtime.measurement import MeasuredPosition
from ros_vdd.runtime.reasons import Reason
from ros_vdd.streams.spec import JointStateSpec

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
