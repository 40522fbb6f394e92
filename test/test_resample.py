# SPDX-License-Identifier: Apache-2.0
"""Claims about ticks: never the future, never stale, never invented, and always with the reason."""

from __future__ import annotations

import random
import sys
import threading

import numpy as np
import pytest

from ros_vdd.streams.resample import Missing, PartialState, Sample, StreamBuffer
from ros_vdd.streams.spec import JointStateSpec

MS = 1_000_000


def _buffer(**changes) -> StreamBuffer:
    return StreamBuffer(**{"max_age_ns": 250 * MS, "capacity": 8, "name": "top", **changes})


def _state(fields=("position",)) -> PartialState:
    spec = JointStateSpec(topic="joint_states", joints=("a", "b"), fields=fields, unit="rad", max_age_s=0.25)
    return PartialState(spec, capacity=8, name="arm")


def test_tick_gets_newest_sample_at_or_before_it():
    buffer = _buffer()
    for stamp in (100 * MS, 200 * MS, 300 * MS):
        buffer.push(stamp, stamp)
    assert buffer.at(299 * MS) == Sample(200 * MS, 200 * MS, 99 * MS)
    assert buffer.at(300 * MS) == Sample(300 * MS, 300 * MS, 0)


def test_answers_equal_a_search_through_all_samples():
    rng = random.Random(0)
    for _ in range(200):
        buffer, held = _buffer(capacity=50), {}
        for _ in range(20):
            stamp = rng.randrange(900) * MS  # within the reset limit: every order is a slight reordering
            held[stamp] = rng.random()
            buffer.push(stamp, held[stamp])
        tick = rng.randrange(1200) * MS
        past = [s for s in held if s <= tick]
        found = buffer.at(tick)
        if past and tick - max(past) <= 250 * MS:
            assert found == Sample(held[max(past)], max(past), tick - max(past))
        else:
            assert isinstance(found, Missing)


def test_sample_of_the_future_is_not_used():
    buffer = _buffer()
    buffer.push(500 * MS, "later")
    assert buffer.at(400 * MS) == Missing("top: nothing that old; its first sample is 0.1 s later")


def test_silent_stream_is_missing_with_its_age():
    buffer = _buffer()
    assert buffer.at(0) == Missing("top: never received")
    buffer.push(0, "image")
    assert isinstance(buffer.at(250 * MS), Sample)
    assert buffer.at(420 * MS) == Missing("top: 0.42 s old, limit 0.25 s")


def test_slightly_late_sample_takes_its_place_and_is_no_reset():
    buffer = _buffer()
    buffer.push(300 * MS, "new")
    buffer.push(200 * MS, "late")
    assert (buffer.resets, buffer.reordered) == (0, 1)
    assert buffer.at(250 * MS) == Sample("late", 200 * MS, 50 * MS)
    assert buffer.at(300 * MS) == Sample("new", 300 * MS, 0)


def test_clock_reset_drops_what_was_held_and_is_counted():
    buffer = _buffer()
    buffer.push(10_000 * MS, "before")
    buffer.push(5 * MS, "after")
    assert buffer.resets == 1
    assert buffer.at(5 * MS) == Sample("after", 5 * MS, 0)
    assert isinstance(buffer.at(10_000 * MS), Missing)


def test_stamp_far_in_the_future_does_not_block_the_stream():
    buffer = _buffer()
    buffer.push(3_600_000 * MS, "an hour ahead")
    buffer.push(100 * MS, "right")
    assert buffer.at(100 * MS) == Sample("right", 100 * MS, 0)


def test_equal_stamp_replaces():
    buffer = _buffer()
    buffer.push(1, "first")
    buffer.push(1, "second")
    assert buffer.at(1).value == "second"


def test_oldest_sample_goes_beyond_capacity():
    buffer = _buffer(capacity=2)
    for stamp in (1, 2, 3):
        buffer.push(stamp, stamp)
    buffer.push(0, 0)  # older than all that are held
    assert isinstance(buffer.at(1), Missing)
    assert buffer.at(2).value == 2


def test_joint_state_is_complete_only_when_every_joint_is_fresh():
    state = _state()
    state.push(100 * MS, {("b", "position"): 2.0})
    assert state.at(100 * MS) == Missing("arm: position of joint 'a': never received")
    state.push(150 * MS, {("a", "position"): 1.0})
    sample = state.at(160 * MS)
    np.testing.assert_array_equal(sample.value, np.array([1.0, 2.0], np.float32))
    assert (sample.stamp_ns, sample.age_ns) == (100 * MS, 60 * MS)
    state.push(400 * MS, {("a", "position"): 1.5})
    assert state.at(400 * MS) == Missing("arm: position of joint 'b': 0.3 s old, limit 0.25 s")


def test_renamed_joint_is_told_with_the_names_on_the_topic():
    state = _state()
    state.push(0, {("a", "position"): 1.0}, names=["a", "b_joint"])
    assert "joints on the topic: available: a, b_joint" in state.at(0).reason


def test_array_has_all_positions_then_all_velocities():
    state = _state(fields=("position", "velocity"))
    state.push(0, {("b", "velocity"): 4, ("a", "velocity"): 3, ("b", "position"): 2, ("a", "position"): 1})
    np.testing.assert_array_equal(state.at(0).value, [1, 2, 3, 4])


@pytest.fixture
def eager_threads():
    """Threads change places in the middle of things."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_tick_sees_a_message_whole_while_another_thread_pushes(eager_threads):
    state = _state()
    state.push(0, {("a", "position"): 0, ("b", "position"): 0})

    def push_all():
        for i in range(10_000):
            state.push(i, {("a", "position"): i, ("b", "position"): i})

    thread = threading.Thread(target=push_all)
    thread.start()
    torn = 0
    while thread.is_alive():
        a, b = state.at(10_000).value
        torn += a != b
    thread.join()
    assert torn == 0
