# SPDX-License-Identifier: Apache-2.0
"""Commands of a robot that declares `max_acceleration`: no jump in velocity, whatever chunks come, and every silence ends in rest."""

import dataclasses

import numpy as np
import pytest
from test_limits import robot

from ros_vdd.errors import ConfigError
from ros_vdd.runtime.chunking import ActionChunk
from ros_vdd.runtime.command import Commander
from ros_vdd.runtime.reasons import Reason, Refusal
from ros_vdd.runtime.reference import cubic
from ros_vdd.runtime.splicing import SpliceConfig
from ros_vdd.streams.spec import SafeAction

DT, RATE = 100_000_000, 100.0
T_NS = round(1e9 / RATE)
LIMITS = {"max_velocity": [1.0, 2.0], "max_acceleration": [4.0, 8.0], "command_rate_hz": RATE, "interpolation": "cubic"}
BLEND = SpliceConfig("blend", 0.2)
ACTION = ("type", "max_velocity", "max_jerk", "switched", "max_acceleration", "continuous", "lower", "upper")


def commander(safe="hold", positions=None, splicing=BLEND, lookahead=1, **options):
    action = {"type": "trajectory_msgs/msg/JointTrajectory"}
    action |= {key: options.pop(key) for key in list(options) if key in ACTION}
    safe_action = SafeAction(kind=safe, positions=positions, stale_chunk_s=1.0)
    return Commander(dataclasses.replace(robot(**{**LIMITS, **action}), safe_action=safe_action), splicing=splicing, lookahead=lookahead, **options)


def plan(seed, stamp_ns, start=(0.0, 0.0), size=0.06):
    rng = np.random.default_rng(seed)
    actions = np.clip(np.asarray(start) + size * rng.normal(size=(16, 2)).cumsum(axis=0), [-1, -2], [1, 2])
    return ActionChunk(stamp_ns, DT, ("x", "y"), actions)


def run(made, splices, every=4, delay=1, seed=0, related=True):
    """Return positions and velocities `(N, 2)` of commands while plans follow each other every 4 periods, 1 period late."""
    positions, velocities, state, now = [], [], np.zeros(2), 0
    for k in range(splices):
        made.receive(plan(seed * 10_000 + k, now - delay * DT, state if related else (0.0, 0.0)))
        for _ in range(every * DT // T_NS):
            command = made.command(now, state)
            assert command.refusal is None
            state = command.positions
            positions.append(state)
            velocities.append(command.motion.velocities[0])
            now += T_NS
    return np.array(positions), np.array(velocities)


@pytest.mark.parametrize("related", [True, False], ids=["plans that begin where the robot is", "plans from anywhere"])
@pytest.mark.parametrize("options", [{}, {"max_jerk": (100.0, 200.0)}, {"lookahead": 5}], ids=["plain", "jerk", "look-ahead"])
def test_no_splice_steps_more_in_velocity_than_the_acceleration_allows_in_one_period(related, options):
    positions, velocities = run(commander(**options), 60, related=related)
    steps = np.abs(np.diff(velocities, axis=0))
    assert (steps <= np.array(LIMITS["max_acceleration"]) / RATE + 1e-7).all()
    np.testing.assert_allclose(np.diff(positions, axis=0) * RATE, velocities[1:], atol=1e-8)


def test_plain_replacement_would_step_many_times_as_much():
    free = commander(splicing=SpliceConfig("replace"), max_acceleration=(1e6, 1e6))
    _, velocities = run(free, 60, related=False)
    assert np.abs(np.diff(velocities, axis=0)).max() > 20 * 4.0 / RATE


def test_a_plan_within_the_limits_is_followed_to_the_digit_after_the_seam():
    wave = 0.2 * np.sin(0.2 * np.arange(1, 17)[:, None] + [0.0, 1.0])
    made, chunk = commander(), ActionChunk(0, DT, ("x", "y"), wave)
    made.receive(chunk)
    times = range(0, 9 * DT, T_NS)
    found = np.array([made.command(now, np.zeros(2)).positions for now in times])
    wanted = np.array([cubic(chunk, now + T_NS).position for now in times])
    np.testing.assert_allclose(found[75:], wanted[75:], atol=1e-9)


@pytest.mark.parametrize("lookahead", [1, 10])
def test_every_motion_ends_in_rest_within_the_limits(lookahead):
    made = commander(lookahead=lookahead)
    made.receive(plan(1, 0, size=0.2))
    for now in range(0, 9 * DT, T_NS):
        motion = made.command(now, np.zeros(2)).motion
        assert not motion.velocities[-1].any() and len(motion.positions) >= lookahead
        assert (np.abs(np.diff(motion.velocities, axis=0)) <= np.array([4.0, 8.0]) / RATE + 1e-7).all()
        np.testing.assert_allclose(np.diff(motion.positions, axis=0) * RATE, motion.velocities[1:], atol=1e-8)


def test_the_points_ahead_are_those_that_will_be_commanded_if_no_new_plan_comes():
    made = commander(lookahead=8)
    made.receive(plan(1, 0))
    ahead = made.command(0, np.zeros(2)).motion.positions[:8]
    came = [ahead[0]] + [made.command(k * T_NS, np.zeros(2)).positions for k in range(1, 8)]
    np.testing.assert_allclose(came, ahead, atol=1e-12)


@pytest.mark.parametrize("kind, positions", [("hold", None), ("position", (0.3, 0.4))])
def test_a_plan_that_ends_is_left_by_deceleration_into_the_safe_action(kind, positions):
    made = commander(kind, positions)
    made.receive(plan(5, 0, size=0.2))
    commands = [made.command(now, np.zeros(2)) for now in range(0, 60 * DT, T_NS)]
    end = 10 * DT // T_NS  # stale_chunk_s
    assert all(c.refusal is None for c in commands[:end]) and all(c.refusal.code is Reason.CHUNK_EXPIRED for c in commands[end:])
    moved = [c.motion for c in commands if c.motion is not None]
    velocities = np.array([m.velocities[0] for m in moved])
    assert (np.abs(np.diff(velocities, axis=0)) <= np.array([4.0, 8.0]) / RATE + 1e-7).all()
    assert not velocities[-1].any() and commands[-1].motion is None
    if positions:
        np.testing.assert_allclose(moved[-1].positions[0], positions, atol=1e-9)


@pytest.mark.parametrize("type_name", ["trajectory_msgs/msg/JointTrajectory", "std_msgs/msg/Float64MultiArray"])
def test_stop_decelerates_before_it_is_silent(type_name):
    made = commander("stop", type=type_name)
    made.receive(plan(5, 0, size=0.2))
    for now in range(0, 10 * DT, T_NS):
        velocity = made.command(now, np.zeros(2)).motion.velocities[0]
    for k in range(200):
        motion = made.command(10 * DT + k * T_NS, np.zeros(2)).motion
        faster = np.zeros(2) if motion is None else motion.velocities[0]
        assert (np.abs(faster - velocity) <= np.array([4.0, 8.0]) / RATE + 1e-7).all()
        velocity = faster
    assert motion is None


def test_a_protective_stop_goes_nowhere_even_where_a_safe_position_is_declared():
    made = commander("position", (-0.9, -0.9))
    made.receive(plan(5, 0))
    state = [made.command(now, np.zeros(2)).positions for now in range(0, 5 * DT, T_NS)][-1]
    made.forbid(Refusal(Reason.PROTECTIVE_STOP, "pressed"))
    moved = [made.command(5 * DT + k * T_NS, state).motion for k in range(300)]
    assert moved[-1] is None and max(np.abs(m.positions[0] - state).max() for m in moved if m) < 0.1


def test_a_continuous_joint_takes_the_short_way_to_its_safe_position():
    turning = {"continuous": ["x"], "lower": [-3.2, -2.0], "upper": [3.2, 2.0]}
    made = commander("position", (0.0, 0.0), **turning)
    made.receive(ActionChunk(0, DT, ("x", "y"), np.zeros((16, 2))))
    made.command(0, np.array([6.2, 0.0]))
    made.forbid(Refusal(Reason.DISABLED, "off"))
    found = [made.command(k * T_NS, None).positions for k in range(1, 300)]
    arrived = [f for f in found if f is not None]
    assert arrived[-1][0] == pytest.approx(2 * np.pi) and min(f[0] for f in arrived) > 6.1


def test_a_newer_chunk_that_ends_earlier_is_left_by_deceleration():
    made, start = commander(lookahead=10, max_jerk=(100.0, 200.0)), np.array([0.9, 0.9])
    made.receive(ActionChunk(0, DT, ("x", "y"), np.tile(start, (20, 1))))
    made.command(0, start)
    made.receive(ActionChunk(DT, DT, ("x", "y"), np.tile(start, (1, 1))))
    for now in range(T_NS, 4 * DT, T_NS):
        motion = made.command(now, start).motion
        assert motion is None or np.abs(motion.positions - start).max() < 1e-9


def test_a_mean_over_chunks_with_a_jerk_limit_outlives_the_ends_of_its_chunks():
    made, state = commander(splicing=SpliceConfig("ensemble"), max_jerk=(40.0, 80.0)), np.zeros(2)
    for now in range(0, 30 * DT, T_NS):
        if now % (5 * DT // 2) == 0:
            made.receive(ActionChunk(now, DT, ("x", "y"), plan(now, 0, state).actions[:8]))
        state = made.command(now, state).positions
        assert np.isfinite(state).all()


def test_in_lock_step_a_clock_that_goes_back_voids_the_plans_that_are_waited_with():
    made = commander(max_acceleration=None)
    made.receive(plan(0, 100 * DT))
    assert made.command(100 * DT, np.zeros(2)).refusal is None
    assert made.awaits_chunk(0)
    assert made.receive(plan(1, 0)) is None and not made.awaits_chunk(0)


@pytest.mark.parametrize("options", [{}, {"max_jerk": (100.0, 200.0)}], ids=["plain", "jerk"])
@pytest.mark.parametrize("lookahead", [1, 5])
def test_after_missed_slots_the_motion_goes_on_from_where_a_robot_is_that_followed_the_last_message(lookahead, options):
    """To the stop at its end, where the pause was as long."""
    rng, made, before, now = np.random.default_rng(3), commander(lookahead=lookahead, **options), None, 0
    limit, followed = np.array([4.0, 8.0]) / RATE + 1e-7, 0
    for k in range(600):
        missed = int(rng.choice([0, 0, 0, 0, 0, 0, 1, 2, 4, 30]))
        now += (1 + missed) * T_NS
        if k % 10 == 0:
            made.receive(plan(k, now - DT, np.zeros(2) if before is None else before.positions[0], size=0.2))
        went_on = made.moving
        motion = made.command(now, np.zeros(2) if before is None else before.positions[-1]).motion
        if motion is None:
            continue
        if went_on:
            rest = np.tile(before.positions[-1], (40, 1))
            positions, velocities = np.concatenate([before.positions, rest]), np.concatenate([before.velocities, 0 * rest])
            assert (np.abs(motion.velocities[0] - velocities[missed]) <= limit).all()
            np.testing.assert_allclose(motion.positions[0] - positions[missed], motion.velocities[0] / RATE, atol=1e-8)
            followed += missed > 0
        before = motion
    assert followed > 60


def test_commands_that_come_late_but_miss_no_slot_skip_nothing():
    rng, made, skipped = np.random.default_rng(0), commander(), []
    made.receive(plan(1, 0))
    made._drive.skip = skipped.append
    for k in range(90):
        made.command(k * T_NS + int(rng.uniform(0, 0.95) * T_NS) * (k > 0), np.zeros(2))
    assert skipped == [0] * 89
    made.command(95 * T_NS, np.zeros(2))
    assert skipped[-1] == 5


def test_nothing_moves_without_a_measured_start():
    made = commander()
    made.receive(plan(0, 0))
    assert made.command(0, None).refusal.code is Reason.NO_MEASUREMENT


def test_a_stale_measurement_stops_a_robot_that_is_to_be_watched():
    made = commander(measured=True)
    made.receive(plan(0, 0))
    assert made.command(0, np.zeros(2)).refusal is None
    braking = made.command(T_NS, None)
    assert braking.refusal.code is Reason.NO_MEASUREMENT and not braking.motion.velocities[-1].any()


@pytest.mark.parametrize("smooth", [True, False])
def test_a_first_action_far_from_where_the_robot_is_is_refused_by_name(smooth):
    made = commander(first_jump=0.1, **({} if smooth else {"max_acceleration": None}))
    made.receive(ActionChunk(0, DT, ("x", "y"), np.full((16, 2), 0.5)))
    refused = made.command(0, np.array([0.45, 0.0]))
    assert refused.motion is None and refused.refusal.code is Reason.FIRST_JUMP and "'y'" in refused.refusal.detail
    assert made.command(T_NS, np.array([0.45, 0.2])).refusal is None  # somebody moved it nearer


def test_what_is_forbidden_decelerates_forgets_the_plan_and_begins_anew_when_allowed():
    made = commander()
    made.receive(plan(2, 0, size=0.2))
    for now in range(0, 3 * DT, T_NS):
        state = made.command(now, np.zeros(2)).positions
    made.forbid(Refusal(Reason.DISABLED, "~/enable was called with false"))
    made.receive(plan(3, 2 * DT, state))
    stopped = [made.command(3 * DT + k * T_NS, state) for k in range(200)]
    assert all(c.refusal.code is Reason.DISABLED for c in stopped) and stopped[-1].motion is None
    velocities = np.array([c.motion.velocities[0] for c in stopped if c.motion])
    assert (np.abs(np.diff(velocities, axis=0)) <= np.array([4.0, 8.0]) / RATE + 1e-7).all() and not velocities[-1].any()
    made.forbid(None)
    assert made.command(6 * DT, state).refusal.code is Reason.NO_CHUNK
    made.receive(plan(4, 6 * DT, state))
    assert made.command(6 * DT, state).refusal is None


BAD = (np.nan, np.inf, -np.inf, 1e30, -1e30, 3.0, -3.0)


def test_of_three_thousand_bad_chunks_nothing_reaches_the_command():
    """Poisoned, out of limits, of a wrong length or jumping: each is refused or limited, and what is commanded stays a motion."""
    rng, made, state, now = np.random.default_rng(0), commander(), np.zeros(2), 0
    velocity, refused = np.zeros(2), 0
    for k in range(3_000):
        chunk = plan(k, now, state)
        kind = rng.integers(4)
        if kind == 0:
            chunk.actions[tuple(rng.integers((16, 2)))] = BAD[rng.integers(len(BAD))]
        elif kind == 1:
            chunk = dataclasses.replace(chunk, actions=chunk.actions[:, :1])
        elif kind == 2:
            chunk = dataclasses.replace(chunk, actions=rng.uniform([-1, -2], [1, 2], (16, 2)))
        refused += made.receive(chunk) is not None
        command = made.command(now, state)
        if command.motion is not None:
            step = np.abs(command.motion.velocities[0] - velocity)
            assert np.isfinite(command.motion.positions).all() and (np.abs(command.motion.positions) <= [1, 2]).all()
            assert (step <= np.array([4.0, 8.0]) / RATE + 1e-7).all()
            state, velocity = command.positions, command.motion.velocities[0]
        else:
            velocity = np.zeros(2)
        now += T_NS
    assert refused > 1_200


def test_a_look_ahead_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="lookahead"):
        commander(lookahead=0)


@pytest.mark.parametrize("options", [{}, {"max_jerk": (100.0, 200.0)}], ids=["plain", "jerk"])
@pytest.mark.parametrize("ended", [True, False], ids=["the plan is over", "the plan goes on"])
def test_after_a_long_pause_a_robot_that_is_told_positions_alone_starts_from_rest(ended, options):
    """It stood at the last position meanwhile: no command may ask for the velocity of before."""
    made, now = commander(type="std_msgs/msg/Float64MultiArray", **options), 0
    made.receive(ActionChunk(0, DT, ("x", "y"), np.linspace(0, 1, 16)[:, None] * [0.9, 0.9]))
    while now < 5 * DT:
        before = made.command(now, np.zeros(2)).motion
        now += T_NS
    assert before.velocities[0, 0] > 0.3
    now += 80 * T_NS if ended else 30 * T_NS
    motion = made.command(now, before.positions[0]).motion
    steps = 0.0 if motion is None else np.abs(motion.positions[0] - before.positions[0]) * RATE
    assert (steps <= np.array([4.0, 8.0]) / RATE + 1e-9).all()


def test_commands_that_the_limits_keep_behind_the_plan_are_counted():
    line = np.linspace(0, 0.8, 16)[:, None] * [1.0, 0.0]
    for fastest, slowed in ((1.0, False), (0.2, True)):
        made = commander(max_velocity=(fastest, 2.0), max_acceleration=(100.0, 100.0))
        made.receive(ActionChunk(0, DT, ("x", "y"), line))
        for now in range(0, 9 * DT, T_NS):
            made.command(now, line[0])
        assert (made.gate.slowed > 30) is slowed and (slowed or made.gate.slowed == 0)
