# SPDX-License-Identifier: Apache-2.0
"""What the robot is commanded: nothing before the first chunk, its actions, then the safe action exactly once."""

import dataclasses

import numpy as np
import pytest
from test_limits import DT, chunk, robot

from ros_vdd.runtime.command import Commander
from ros_vdd.runtime.execution import ExecutionConfig
from ros_vdd.runtime.reasons import Reason, Refusal
from ros_vdd.runtime.splicing import SpliceConfig
from ros_vdd.streams.spec import SafeAction

MEASURED = np.array([0.1, 0.2])
PLAN = chunk(np.linspace(0.0, 0.9, 10)[:, None] * [1.0, 2.0])  # t0 = 0, good for 10 periods


def commander(safe="hold", positions=None, use_steps=None, **action):
    safe_action = SafeAction(kind=safe, positions=positions, stale_chunk_s=1.0)
    return Commander(dataclasses.replace(robot(**action), safe_action=safe_action), use_steps)


def moving(**options):
    made = commander(**options)
    made.receive(PLAN)
    assert made.command(0, MEASURED).positions is not None
    return made


def test_nothing_is_commanded_before_the_first_chunk():
    positions, refusal = commander().command(0, MEASURED)
    assert positions is None and refusal.code is Reason.NO_CHUNK


def test_a_valid_chunk_is_commanded_action_by_action():
    made = moving()
    for k in range(10):
        np.testing.assert_array_equal(made.command(k * DT, MEASURED).positions, PLAN.actions[k])


@pytest.mark.parametrize("kind, positions, expected", [("hold", None, MEASURED), ("position", (0.3, 0.4), (0.3, 0.4))])
def test_a_stale_chunk_ends_in_exactly_one_safe_action(kind, positions, expected):
    made = moving(safe=kind, positions=positions)
    commands = [made.command(10 * DT + step, MEASURED) for step in range(5)]
    np.testing.assert_array_equal(commands[0].positions, expected)
    assert all(command.positions is None for command in commands[1:])
    assert {command.refusal.code for command in commands} == {Reason.CHUNK_EXPIRED}


def test_stop_publishes_nothing_more():
    assert moving(safe="stop").command(10 * DT, MEASURED).positions is None


def test_hold_without_a_fresh_measurement_publishes_nothing():
    positions, refusal = moving().command(10 * DT, None)
    assert positions is None and "no fresh measured position" in refusal.detail


def test_a_refused_chunk_stops_at_once_though_the_plan_before_it_goes_on():
    made = moving()
    assert made.receive(chunk(np.full((4, 2), np.nan))).code is Reason.NOT_FINITE
    command = made.command(DT, MEASURED)
    np.testing.assert_array_equal(command.positions, MEASURED)
    assert command.refusal.code is Reason.NOT_FINITE
    assert made.command(2 * DT, MEASURED).positions is None


def test_a_refused_first_chunk_commands_nothing():
    made = commander()
    made.receive(chunk(np.full((4, 2), np.nan)))
    assert made.command(0, MEASURED).positions is None


def test_a_valid_chunk_after_a_refused_one_moves_again():
    made = moving()
    made.receive(chunk(np.full((4, 2), np.nan)))
    made.receive(dataclasses.replace(PLAN, stamp_ns=DT))
    np.testing.assert_array_equal(made.command(DT, MEASURED).positions, PLAN.actions[0])


def test_a_late_chunk_changes_nothing():
    made = moving()
    assert made.receive(dataclasses.replace(PLAN, stamp_ns=-DT)).code is Reason.SUPERSEDED
    np.testing.assert_array_equal(made.command(DT, MEASURED).positions, PLAN.actions[1])


def test_another_period_than_the_robots_is_refused():
    assert commander().receive(dataclasses.replace(PLAN, dt_ns=DT // 2)).code is Reason.WRONG_TIMING


def test_a_clock_that_runs_backwards_voids_the_plan():
    made = moving()
    made.command(5 * DT, MEASURED)
    command = made.command(4 * DT, MEASURED)
    np.testing.assert_array_equal(command.positions, MEASURED)
    assert command.refusal.code is Reason.NO_CHUNK


def test_the_first_command_ramps_from_the_measured_position():
    made = commander(max_velocity=[1.0, 1.0])
    made.receive(chunk(np.full((10, 2), 0.9)))
    np.testing.assert_allclose(made.command(0, MEASURED).positions, MEASURED + 0.1)
    np.testing.assert_allclose(made.command(DT, MEASURED).positions, MEASURED + 0.2)


def test_a_pause_of_the_process_is_not_made_up_for_by_a_leap():
    made = commander(max_velocity=[1.0, 1.0])
    made.receive(chunk(np.full((10, 2), 0.9)))
    first = made.command(0, MEASURED).positions
    np.testing.assert_allclose(made.command(5 * DT, MEASURED).positions, first + 0.1)


def test_the_ramp_waits_for_a_measured_position():
    made = commander(max_velocity=[1.0, 1.0])
    made.receive(PLAN)
    positions, refusal = made.command(0, None)
    assert positions is None and refusal.code is Reason.NO_MEASUREMENT


def test_after_the_safe_action_motion_starts_from_the_measured_position_again():
    made = moving(max_velocity=[1.0, 1.0])
    made.command(10 * DT, MEASURED)
    made.receive(dataclasses.replace(chunk(np.full((10, 2), 0.9)), stamp_ns=20 * DT))
    np.testing.assert_allclose(made.command(20 * DT, MEASURED).positions, MEASURED + 0.1)


def test_the_safe_position_is_approached_at_the_largest_velocity_and_then_left_alone():
    made = moving(safe="position", positions=(0.25, 0.0), max_velocity=[1.0, 1.0])
    for k in range(1, 10):
        last = made.command(k * DT, MEASURED).positions
    commands = [made.command(k * DT, MEASURED).positions for k in range(10, 60)]
    steps = [positions for positions in commands if positions is not None]
    assert np.abs(np.diff([last, *steps], axis=0)).max() <= 0.1 + 1e-12
    np.testing.assert_array_equal(steps[-1], (0.25, 0.0))
    assert len(steps) < 15 and not made.moving


def test_a_chunk_on_the_way_to_the_safe_position_goes_on_from_there():
    made = moving(safe="position", positions=(-0.9, -0.9), max_velocity=[1.0, 1.0])
    for k in range(1, 11):
        step = made.command(k * DT, MEASURED).positions
    made.receive(dataclasses.replace(chunk(np.full((10, 2), 0.9)), stamp_ns=11 * DT))
    assert np.abs(made.command(11 * DT, MEASURED).positions - step).max() <= 0.1 + 1e-12


def test_the_latency_of_a_chunk_ends_with_its_first_command_and_counts_once():
    made = moving()
    assert made.latency_ms.percentile(100) == 0.0
    for stamp, first in ((2 * DT, 2.5), (4 * DT, 5.0)):
        late = chunk(np.linspace(0.0, 0.9, 10)[:, None] * [1.0, 2.0])
        made.receive(dataclasses.replace(late, stamp_ns=stamp))
        for k in range(5):
            made.command(int(first * DT) + k * DT // 10, MEASURED)
    assert made.latency_ms.percentile(50) == 50.0 and made.latency_ms.percentile(100) == 100.0


def test_a_chunk_that_is_never_commanded_has_no_latency():
    made = commander()
    made.receive(PLAN)
    made.command(30 * DT, MEASURED)
    assert made.latency_ms.percentile(50) is None


def test_after_a_pause_no_command_goes_farther_than_any_other():
    made = commander(max_velocity=[1.0, 1.0], command_rate_hz=100.0)
    made.receive(chunk(np.full((10, 2), 0.9)))
    times = [0, DT // 10, 2 * DT // 10, 7 * DT // 10, 8 * DT // 10]  # four slots are missed
    commands = np.array([made.command(now, MEASURED).positions for now in times])
    assert np.abs(np.diff([MEASURED, *commands], axis=0)).max() <= 0.01 + 1e-12


def test_a_simulation_whose_time_leaps_is_followed_at_the_largest_velocity():
    robot_spec = robot(max_velocity=[1.0, 1.0], command_rate_hz=100.0)
    made = ExecutionConfig().commander(robot_spec, measured=True, real_time=False)
    made.receive(chunk(np.full((10, 2), 0.9)))
    commands = np.array([made.command(now, MEASURED).positions for now in (0, DT // 2, DT)])
    np.testing.assert_allclose(np.diff(commands, axis=0), 0.05)


GRIPPER = {"switched": ["y"], "lower": [-1.0, 0.0]}


@pytest.mark.parametrize("code", [Reason.CHUNK_EXPIRED, Reason.PROTECTIVE_STOP])
def test_a_gripper_is_held_where_it_was_commanded_and_not_where_what_it_holds_stops_it(code):
    made = moving(**GRIPPER)
    if code is Reason.PROTECTIVE_STOP:
        made.forbid(Refusal(code, "pressed"))
    held = made.command(10 * DT if code is Reason.CHUNK_EXPIRED else DT, MEASURED)
    assert held.refusal.code is code
    np.testing.assert_array_equal(held.positions, [MEASURED[0], PLAN.actions[0, 1]])


@pytest.mark.parametrize("accelerations", [{}, {"max_acceleration": [100.0, 100.0]}], ids=["steps", "smooth"])
def test_a_gripper_goes_on_from_where_it_was_commanded_until_plans_are_forgotten(accelerations):
    """What it holds keeps it at 1.0 though it is told 0.0; a start from there would let go."""
    made = commander(max_velocity=[1.0, 1.0], **GRIPPER, **accelerations)
    measured, closed = np.array([0.1, 1.0]), chunk(np.full((20, 2), [0.1, 0.0]))
    made.receive(closed)
    for k in range(100):
        made.command(k * DT, measured)
    assert not made.moving
    made.receive(dataclasses.replace(closed, stamp_ns=100 * DT))
    assert abs(made.command(100 * DT, measured).positions[1]) < 1e-6
    made.forbid(None)  # by ~/reset or ~/enable: a hand may have been at the gripper
    for k in range(101, 200):
        made.command(k * DT, measured)
    made.forbid(None)
    made.receive(dataclasses.replace(closed, stamp_ns=200 * DT))
    assert made.command(200 * DT, measured).positions[1] > 0.85


def test_a_blend_never_leaves_the_limits():
    """At full speed just below the limit, then told to stand at it: a blend that keeps the velocity would swing beyond."""
    action = robot(max_velocity=[3.0, 3.0], command_rate_hz=100.0, interpolation="linear")
    made, found, period = Commander(action, splicing=SpliceConfig("blend", 0.2)), [], DT // 10
    made.receive(chunk([[k * 0.1, 0.0] for k in range(1, 11)]))
    for now in range(0, 20 * DT, period):
        if now == 98 * period:
            made.receive(dataclasses.replace(chunk(np.tile([1.0, 0.0], (10, 1))), stamp_ns=now))
        command = made.command(now, np.zeros(2))
        found += [] if command.positions is None else [command.positions[0]]
    assert 0.99 < max(found) <= 1.0
