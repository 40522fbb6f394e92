# SPDX-License-Identifier: Apache-2.0
"""Chunks are indexed by time: hold and linear agree with closed forms, late chunks are ignored, the newest wins."""

from types import SimpleNamespace

import numpy as np
import pytest

from ros_vdd.runtime.chunking import ActionChunk, ChunkBuffer, read_chunk
from ros_vdd.runtime.reasons import Reason, Refusal

DT = 100_000_000
T0 = 7_000_000_000
ACTIONS = np.random.default_rng(0).normal(size=(16, 2))
FOREVER = 10**12


def chunk(stamp_ns=T0, actions=ACTIONS):
    return ActionChunk(stamp_ns, DT, ("x", "y"), actions)


class Held(ChunkBuffer):
    """A buffer, and what its newest chunk wants."""

    def at(self, now_ns):
        found = self.reaching(now_ns)
        return found if isinstance(found, Refusal) else getattr(found[-1], self.interpolation)(now_ns)


def buffer(interpolation="hold", max_age_ns=FOREVER, use_steps=None, chunks=(chunk(),)):
    made = Held(max_age_ns, use_steps)
    made.interpolation = interpolation
    for one in chunks:
        made.push(one)
    return made


def test_hold_is_the_action_whose_period_contains_now():
    for now in range(T0, T0 + 16 * DT, DT // 7):
        np.testing.assert_array_equal(buffer().at(now), ACTIONS[(now - T0) // DT])


def test_linear_is_numpy_interp_over_the_trajectory_points():
    held = buffer("linear")
    points = [T0 + (k + 1) * DT for k in range(16)]
    for now in range(T0, T0 + 16 * DT, DT // 7):
        expected = [np.interp(now, points, ACTIONS[:, joint]) for joint in range(2)]
        np.testing.assert_allclose(held.at(now), expected, atol=1e-12)


@pytest.mark.parametrize("interpolation", ["hold", "linear"])
def test_nothing_before_the_first_chunk(interpolation):
    assert buffer(interpolation, chunks=()).at(T0).code is Reason.NO_CHUNK


@pytest.mark.parametrize("interpolation", ["hold", "linear"])
def test_a_chunk_ends_with_its_last_period(interpolation):
    held = buffer(interpolation)
    assert isinstance(held.at(T0 + 16 * DT - 1), np.ndarray)
    assert held.at(T0 + 16 * DT).code is Reason.CHUNK_EXPIRED


def test_a_chunk_too_old_is_not_used_even_where_its_horizon_goes_on():
    held = buffer(max_age_ns=5 * DT)
    assert isinstance(held.at(T0 + 5 * DT - 1), np.ndarray)
    assert held.at(T0 + 5 * DT).code is Reason.CHUNK_EXPIRED


def test_only_the_asked_number_of_steps_is_used():
    held = buffer(use_steps=8)
    assert isinstance(held.at(T0 + 8 * DT - 1), np.ndarray)
    assert held.at(T0 + 8 * DT).code is Reason.CHUNK_EXPIRED


@pytest.mark.parametrize("older_ns", [0, 1, DT])
def test_a_late_chunk_is_ignored(older_ns):
    held = buffer()
    assert held.push(chunk(T0 - older_ns, -ACTIONS)).code is Reason.SUPERSEDED
    np.testing.assert_array_equal(held.at(T0), ACTIONS[0])


def test_the_newest_chunk_wins_from_its_stamp_on():
    held = buffer(chunks=(chunk(), chunk(T0 + 3 * DT, -ACTIONS)))
    np.testing.assert_array_equal(held.at(T0 + 3 * DT - 1), ACTIONS[2])
    np.testing.assert_array_equal(held.at(T0 + 3 * DT), -ACTIONS[0])


def test_actions_that_came_late_are_in_the_past():
    held = buffer(chunks=(chunk(), chunk(T0 + 3 * DT, -ACTIONS)))
    np.testing.assert_array_equal(held.at(T0 + 5 * DT), -ACTIONS[2])


def test_a_chunk_that_begins_in_the_future_is_not_used_yet():
    assert buffer().at(T0 - 1).code is Reason.CHUNK_AHEAD


def test_a_buffer_for_means_keeps_all_chunks_that_reach_now_oldest_first():
    held = ChunkBuffer(FOREVER, kept=8)
    for k in range(3):
        held.push(chunk(T0 + 5 * k * DT))
    assert [c.stamp_ns for c in held.reaching(T0 + 12 * DT)] == [T0, T0 + 5 * DT, T0 + 10 * DT]
    assert [c.stamp_ns for c in held.reaching(T0 + 17 * DT)] == [T0 + 5 * DT, T0 + 10 * DT]


def trajectory(actions=ACTIONS, dt_ns=DT, joints=("x", "y")):
    def time(ns):
        return SimpleNamespace(sec=ns // 10**9, nanosec=ns % 10**9)

    points = [SimpleNamespace(positions=list(a), time_from_start=time((k + 1) * dt_ns)) for k, a in enumerate(actions)]
    return SimpleNamespace(header=SimpleNamespace(stamp=time(T0)), joint_names=list(joints), points=points)


def test_a_trajectory_is_read_as_the_chunk_it_was_made_from():
    read = read_chunk(trajectory(), DT)
    assert (read.stamp_ns, read.dt_ns, read.joints) == (T0, DT, ("x", "y"))
    np.testing.assert_array_equal(read.actions, ACTIONS)


@pytest.mark.parametrize(
    "message, code",
    [
        (trajectory(actions=[]), Reason.WRONG_SHAPE),
        (trajectory(actions=[[1.0, 2.0], [1.0]]), Reason.WRONG_SHAPE),
        (trajectory(joints=("x",)), Reason.WRONG_SHAPE),
        (trajectory(dt_ns=DT // 2), Reason.WRONG_TIMING),
    ],
    ids=["no points", "a short point", "a name too few", "another rate"],
)
def test_a_malformed_trajectory_is_refused_with_its_code(message, code):
    assert read_chunk(message, DT).code is code
