# SPDX-License-Identifier: Apache-2.0
"""Cameras that freeze, clocks that are set, streams that break: told, never acted on, and over when they are over."""

from types import SimpleNamespace

import pytest
from test_observer import DT, HEIGHT, MS, T0, WIDTH, fed, header, image, joints, robot

from ros_vdd.errors import ConfigError
from ros_vdd.runtime.intake import NotReady
from ros_vdd.runtime.observer import Observation, Observer
from ros_vdd.runtime.reasons import Reason
from ros_vdd.runtime.stamp_clock import StampClock, span

S = 1_000 * MS
HOUR = 3_600 * S


def feed(observer, stamps, values=None, receive=None, steady=None):
    """Push a joint state and an image at each stamp; return what the last tick gave."""
    for number, stamp in enumerate(stamps):
        value = number % 250 if values is None else values[number]
        received_ns = stamp if receive is None else receive[number]
        steady_s = None if steady is None else steady[number]
        observer.push_joint_state("arm", joints(stamp), received_ns, steady_s)
        observer.push_image("top", image(stamp, value), received_ns, steady_s)
    return observer.tick_ns and observer.snapshot(observer.tick_ns)


def ticks(count, start=T0, step=DT):
    return [start + k * step for k in range(count)]


@pytest.fixture
def watched():
    """An observer of a camera that counts as frozen after half a second."""
    return Observer(robot(frozen_after_s=0.5), 2)


def test_a_camera_that_repeats_its_bytes_for_longer_than_its_bound_is_frozen(watched):
    assert isinstance(feed(watched, ticks(6), [7] * 6), Observation)  # half a second, not longer
    stands = feed(watched, ticks(1, T0 + 6 * DT), [7])
    assert (stands.code, stands.stream) == (Reason.CAMERA_FROZEN, "images.top")
    assert "the same picture for 0.6 s, limit 0.5 s" in stands.detail
    assert watched.silence(T0 + 6 * DT) == stands


def test_one_pixel_of_one_value_is_life(watched):
    for number, stamp in enumerate(ticks(20)):
        data = bytearray(WIDTH * HEIGHT * 3)
        data[-1] = number % 2
        watched.push_joint_state("arm", joints(stamp), stamp)
        watched.push_image("top", image(stamp, data=bytes(data)), stamp)
        assert isinstance(watched.snapshot(stamp), Observation)


def test_a_picture_sent_twice_after_a_pause_is_not_frozen(watched):
    assert isinstance(feed(watched, [T0, T0 + S], [7, 7]), Observation)


def test_a_camera_that_moves_again_is_used_at_once_and_nothing_frozen_is_its_history(watched):
    feed(watched, ticks(10), [7] * 10)
    moves = feed(watched, ticks(1, T0 + 10 * DT), [8])
    assert moves.arrays["images.top"][:, 0, 0, 0].tolist() == [8, 8]
    assert watched.silence(T0 + 10 * DT) is None and watched.intakes[0].frozen == 1
    feed(watched, ticks(10, T0 + 11 * DT), [8] * 10)
    assert watched.intakes[0].frozen == 2


def test_without_the_key_a_scene_may_stand_still_but_how_long_it_does_is_told():
    observer = Observer(robot(), 2)
    assert isinstance(feed(observer, ticks(100), [7] * 100), Observation)
    assert observer.intakes[0].unchanged_s == pytest.approx(9.9) and observer.intakes[0].frozen == 0


def test_a_bound_without_meaning_is_refused():
    with pytest.raises(ConfigError, match="'frozen_after_s' is 0"):
        robot(frozen_after_s=0.0)


def test_stamps_that_stand_still_are_stale_though_messages_come():
    observer = fed(T0)
    for late in (100 * MS, 200 * MS, 300 * MS):
        observer.push_image("top", image(T0, 9), T0 + late)
        observer.push_joint_state("arm", joints(T0 + late), T0 + late)
    problem = observer.silence(T0 + 300 * MS)
    assert (problem.code, problem.stream) == (Reason.STALE, "images.top")
    assert "sends, but its stamps have stood still for 0.3 s" in problem.detail


JUMPS = {  # stamps and times of receipt of one message and the next; words of what is told
    "a simulation begins anew, and its clock with it": ((T0, T0), (T0 - 3 * S, T0 - 3 * S), "this node's clock went back by 3 s"),
    "a bag loops, and this clock goes on": ((T0, T0), (T0 - 3 * S, T0 + DT), "the stamps went back by 3 s"),
    "this clock is set back": ((T0, T0), (T0 + DT, T0 - HOUR), "this node's clock went back by 60 min"),
    "this clock is set ahead": ((T0, T0), (T0 + DT, T0 + HOUR), "the stamps went 0.1 s on while 60 min passed"),
    "the sender's clock is set ahead": ((T0, T0), (T0 + HOUR, T0 + DT), "the stamps went 60 min on while 0.1 s passed"),
}


@pytest.mark.parametrize("before, after, told", JUMPS.values(), ids=JUMPS)
def test_a_clock_that_was_set_drops_every_stream_is_counted_once_and_is_over_by_itself(before, after, told):
    observer = Observer(robot(), 2, max_skew_s=1e6)
    assert isinstance(feed(observer, [before[0]], [1], [before[1]]), Observation)
    observer.push_image("top", image(after[0], 2), after[1])
    assert observer.clock_jumps == 1 and told in observer.last_jump
    assert isinstance(observer.snapshot(observer.tick_ns), NotReady)
    waits = observer.silence(after[1])
    assert (waits.code, waits.stream) == (Reason.CLOCK_JUMPED, "clock")
    assert told in waits.detail and "states.arm hasn't sent since" in waits.detail
    again = feed(observer, [after[0] + DT], [3], [after[1] + DT])
    assert set(again.arrays["images.top"][:, 0, 0, 0].tolist()) <= {2, 3}
    assert observer.silence(after[1] + DT) is None and observer.clock_jumps == 1


def test_a_clock_set_ahead_together_with_the_senders_is_told_from_a_pause_by_one_that_nobody_sets():
    jumped, paused = Observer(robot(), 2), Observer(robot(), 2)
    feed(jumped, [T0, T0 + HOUR], steady=[10.0, 10.1])
    feed(paused, [T0, T0 + HOUR], steady=[10.0, 3610.0])
    assert (jumped.clock_jumps, paused.clock_jumps) == (1, 0)
    assert "this node's clock went 60 min ahead at once" in jumped.last_jump


def test_a_paused_simulation_is_no_clock_that_was_set():
    observer = Observer(robot(), 2)
    feed(observer, ticks(2), steady=[10.0, 99.0])
    assert observer.clock_jumps == 0


def test_a_bag_that_loops_ten_times_gives_an_observation_in_each_and_ten_resets():
    observer, now_ns, seen = Observer(robot(), 2), T0, 0
    for _ in range(11):
        for stamp in ticks(30, start=100 * S):
            now_ns += DT
            seen += isinstance(feed(observer, [stamp], [1], [now_ns]), Observation)
    # joint state and image go back one after the other: the image's own stamp is no second jump
    assert observer.clock_jumps == 10 and seen == 11 * 30


def test_a_slightly_late_message_is_no_jump():
    observer = fed(T0, T0 + DT)
    observer.push_joint_state("arm", joints(T0 + 50 * MS), T0 + DT)
    assert observer.clock_jumps == 0 and isinstance(observer.snapshot(T0 + DT), Observation)


def test_receive_stamps_follow_this_clock_whatever_the_headers_say():
    observer = Observer(robot(stamp="receive"), 2, max_skew_s=1.0)
    for number, stamp in enumerate([0, 5 * HOUR, 1]):
        received_ns = T0 + number * DT
        assert observer.push_joint_state("arm", joints(stamp), received_ns)
        assert observer.push_image("top", image(stamp), received_ns)
    assert observer.clock_jumps == 0 and observer.snapshot(T0 + 2 * DT).stamp_ns == T0 + 2 * DT


def test_without_max_skew_s_the_two_clocks_are_not_compared():
    observer = Observer(robot(), 2)
    assert isinstance(feed(observer, [T0, T0 + DT], receive=[9 * HOUR, 10 * HOUR]), Observation)
    assert observer.clock_jumps == 0


def test_in_lock_step_a_simulators_stamps_go_at_any_pace_and_only_back_is_a_jump():
    observer = Observer(robot(), 2, equal_stamps=True, max_skew_s=1.0)
    slow = [HOUR, HOUR + 9 * S, HOUR + 9 * S + MS]
    assert isinstance(feed(observer, ticks(3), receive=slow, steady=[0.0, 1e-3, 99.0]), Observation)
    assert observer.clock_jumps == 0
    assert isinstance(feed(observer, [T0 - 3 * S], [5], [HOUR + 10 * S]), Observation)
    assert observer.clock_jumps == 1


@pytest.mark.parametrize("apart, side", [(-HOUR, "behind"), (HOUR, "ahead of")])
def test_a_stamp_of_another_time_is_refused_with_how_far_it_is(apart, side):
    observer, now_ns = Observer(robot(), 2, max_skew_s=5.0), 2 * HOUR
    assert not observer.push_image("top", image(now_ns + apart), now_ns)
    problem = observer.silence(now_ns)
    assert (problem.code, problem.stream) == (Reason.CLOCK_MISMATCH, "images.top")
    assert f"60 min {side} this node's clock, limit 5 s" in problem.detail and "use_sim_time" in problem.detail
    assert observer.intakes[0].refused == 1
    assert isinstance(feed(observer, [now_ns + DT]), Observation)
    assert observer.silence(now_ns + DT) is None


def test_one_wild_stamp_among_good_ones_costs_nothing():
    observer = Observer(robot(), 2, max_skew_s=5.0)
    feed(observer, ticks(3))
    for wild in (T0 + HOUR, 1):
        assert not observer.push_image("top", image(wild, 99), T0 + 2 * DT)
    seen = feed(observer, [T0 + 3 * DT], [3])
    assert seen.arrays["images.top"][:, 0, 0, 0].tolist() == [2, 3] and observer.clock_jumps == 0


def test_simulated_time_that_has_not_come_yet_is_named():
    assert "nothing has come on /clock" in StampClock(header=True, max_skew_s=5.0).skew(2 * T0, 0)


@pytest.mark.parametrize("ns, words", [(-90 * S, "90 s"), (150 * S, "2.5 min"), (9 * HOUR, "9 h"), (72 * HOUR, "3 days")])
def test_time_differences_are_told_in_the_unit_that_fits(ns, words):
    assert span(ns) == words


def partial(stamp, name, value, fields=("position", "velocity")):
    values = {field: [value] if field in fields else [] for field in ("position", "velocity", "effort")}
    return SimpleNamespace(header=header(stamp), name=[name], **values)


def test_of_two_publishers_of_some_joints_each_the_one_that_stops_is_named_by_its_joint():
    observer = Observer(robot(), 1)
    for stamp in ticks(5):
        observer.push_joint_state("arm", partial(stamp, "a", 1.0), stamp)
        if stamp == T0:
            observer.push_joint_state("arm", partial(stamp, "b", 2.0), stamp)
        observer.push_image("top", image(stamp), stamp)
    stale = observer.snapshot(T0 + 4 * DT)
    assert stale.code is Reason.STALE and "joint 'b'" in stale.detail


BAD_STATES = {
    "infinite": joints(T0 + DT, a=float("inf")),
    "a name twice": joints(T0 + DT, names=("a", "a")),
    "no names": joints(T0 + DT, names=()),
    "fewer values than names": joints(T0 + DT, names=("a", "b", "c")),
}


@pytest.mark.parametrize("bad", BAD_STATES.values(), ids=BAD_STATES)
def test_a_bad_joint_state_changes_nothing_of_what_a_good_publisher_sent(bad):
    observer = fed(T0)
    observer.push_image("top", image(T0 + DT), T0 + DT)
    assert not observer.push_joint_state("arm", bad, T0 + DT)
    assert observer.snapshot(T0 + DT).arrays["state"][1].tolist() == [0, 0, 10, 10]


def test_nan_of_a_joint_that_is_not_ours_harms_nobody():
    observer = fed(T0)
    message = joints(T0 + DT, a=3.0, names=("a", "b"))
    message.name, message.position, message.velocity = ["a", "b", "fan"], [3.0, 0.0, float("nan")], [0.0, 0.0, float("nan")]
    assert observer.push_joint_state("arm", message, T0 + DT)


CHANGED = {
    "resolution": SimpleNamespace(width=8, height=6, step=24, encoding="rgb8", data=bytes(144)),
    "encoding": SimpleNamespace(width=4, height=3, step=12, encoding="bgr8", data=bytes(36)),
    "undersized data": SimpleNamespace(width=4, height=3, step=12, encoding="rgb8", data=bytes(35)),
    "big-endian depth": SimpleNamespace(width=4, height=3, step=8, encoding="16UC1", is_bigendian=1, data=bytes(24)),
}


@pytest.mark.parametrize("changed", CHANGED.values(), ids=CHANGED)
def test_a_camera_that_changes_in_the_middle_is_refused_until_it_changes_back(changed):
    observer = fed(T0)
    changed.header = header(T0 + 3 * DT)
    assert not observer.push_image("top", changed, T0 + 3 * DT)
    observer.push_joint_state("arm", joints(T0 + 3 * DT), T0 + 3 * DT)
    problem = observer.silence(T0 + 3 * DT)
    assert (problem.code, problem.stream) == (Reason.REFUSED_MESSAGE, "images.top")
    assert isinstance(feed(observer, [T0 + 4 * DT]), Observation) and observer.silence(T0 + 4 * DT) is None


def test_padding_and_byte_order_of_eight_bit_pixels_change_no_pixel():
    rows = bytes(range(36))
    padded = b"".join(rows[k * 12 : k * 12 + 12] + b"\xee" * 4 for k in range(3))
    pictures = []
    for data, step, big in ((rows, 12, 0), (padded, 16, 0), (rows, 12, 1)):
        observer, message = Observer(robot(), 1), image(T0, data=data)
        message.step, message.is_bigendian = step, big
        observer.push_joint_state("arm", joints(T0), T0)
        observer.push_image("top", message, T0)
        pictures.append(observer.snapshot(T0).arrays["images.top"].tobytes())
    assert set(pictures) == {rows}
