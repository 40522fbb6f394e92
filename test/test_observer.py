# SPDX-License-Identifier: Apache-2.0
"""Observations: exactly the samples in force at the ticks, or the reason why not; bad messages are never used."""

from types import SimpleNamespace

import numpy as np
import pytest

from ros_vdd.errors import StreamError
from ros_vdd.runtime.intake import NotReady
from ros_vdd.runtime.observer import Observer
from ros_vdd.runtime.reasons import Reason
from ros_vdd.streams.spec import robot_from_mapping

MS = 1_000_000
DT = 100 * MS
T0 = 5_000 * MS
WIDTH, HEIGHT = 4, 3


def robot(stamp="header", goal=None, **camera):
    """One camera of 4x3 pixels, joints a and b with position and velocity, 10 Hz."""
    top = {"topic": "top", "width": WIDTH, "height": HEIGHT, "stamp": stamp, "max_age_s": 0.25, **camera}
    arm = {"topic": "joint_states", "joints": ["a", "b"], "fields": ["position", "velocity"], "unit": "rad"}
    return robot_from_mapping(
        {
            "name": "small",
            "rate_hz": 10.0,
            "cameras": {"top": top},
            "states": {"arm": {**arm, "stamp": stamp, "max_age_s": 0.25}},
            "action": {
                "topic": "command",
                "joints": ["a", "b"],
                "unit": "rad",
                "lower": [-1.0, -1.0],
                "upper": [1.0, 1.0],
                "command_rate_hz": 10.0,
            },
            "safe_action": {"kind": "stop", "stale_chunk_s": 1.0},
            **({"goal": goal} if goal else {}),
        }
    )


TASKS = {"topic": "goal", "type": "std_msgs/msg/String", "tasks": ["push", "pull", "lift"]}


def goal(task):
    return SimpleNamespace(data=task)


def header(stamp_ns):
    return SimpleNamespace(stamp=SimpleNamespace(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9), frame_id="")


def image(stamp_ns, value=0, encoding="rgb8", data=None):
    data = bytes([value]) * (WIDTH * HEIGHT * 3) if data is None else data
    fields = {"width": WIDTH, "height": HEIGHT, "step": WIDTH * 3, "encoding": encoding, "is_bigendian": 0}
    return SimpleNamespace(header=header(stamp_ns), data=data, **fields)


def joints(stamp_ns, a=0.0, b=0.0, names=("a", "b")):
    values = {"position": [a, b], "velocity": [10 + a, 10 + b], "effort": []}
    return SimpleNamespace(header=header(stamp_ns), name=list(names), **values)


def fed(*stamps, observer=None, **options):
    """Return an observer that got an image and a joint state at each stamp, valued by their number."""
    observer = observer or Observer(robot(), 2, **options)
    for number, stamp in enumerate(stamps):
        assert observer.push_joint_state("arm", joints(stamp, a=number), stamp)
        assert observer.push_image("top", image(stamp, number), stamp)
    return observer


def test_an_observation_has_the_declared_shapes_and_the_samples_of_its_ticks():
    observation = fed(T0, T0 + DT).snapshot(T0 + DT)
    assert observation.arrays["images.top"].shape == (2, HEIGHT, WIDTH, 3)
    assert observation.arrays["images.top"].dtype == np.uint8
    np.testing.assert_array_equal(observation.arrays["images.top"][:, 0, 0, 0], [0, 1])
    np.testing.assert_array_equal(observation.arrays["state"], np.float32([[0, 0, 10, 10], [1, 0, 11, 10]]))
    assert observation.stamp_ns == T0 + DT


def test_the_tick_is_the_newest_stamp_of_the_first_camera():
    observer = fed(T0)
    observer.push_joint_state("arm", joints(T0 + DT), T0 + DT)
    assert observer.tick_ns == T0


def test_the_first_observation_is_repeated_into_its_history():
    observation = fed(T0).snapshot(T0)
    np.testing.assert_array_equal(observation.arrays["state"][0], observation.arrays["state"][1])


def test_a_history_between_two_ticks_begins_with_the_first_observation():
    observer = fed(T0)
    observer.snapshot(T0)
    fed(T0 + 33 * MS, observer=observer)
    assert observer.snapshot(T0 + 33 * MS).stamp_ns == T0 + 33 * MS


def test_a_sample_newer_than_the_tick_is_not_used():
    observer = fed(T0, T0 + DT)
    observer.push_joint_state("arm", joints(T0 + DT + MS, a=9.0), T0 + DT + MS)
    assert observer.snapshot(T0 + DT).arrays["state"][1, 0] == 1.0


def test_after_a_gap_the_history_begins_anew():
    observer = fed(T0, T0 + DT)
    observer.snapshot(T0 + DT)
    fed(T0 + 10 * DT, observer=observer)
    np.testing.assert_array_equal(observer.snapshot(T0 + 10 * DT).arrays["images.top"][:, 0, 0, 0], [0, 0])


def test_after_the_clock_went_back_nothing_old_is_used():
    observer = fed(T0, T0 + DT)
    observer.snapshot(T0 + DT)
    back = T0 - 3000 * MS
    observer.push_image("top", image(back, 7), back)
    assert isinstance(observer.snapshot(back), NotReady)
    observer.push_joint_state("arm", joints(back, a=7.0), back)
    np.testing.assert_array_equal(observer.snapshot(back).arrays["state"][:, 0], [7.0, 7.0])


def test_reset_forgets_samples_and_keeps_counters():
    observer = fed(T0)
    observer.reset()
    assert observer.tick_ns is None
    assert observer.snapshot(T0).code is Reason.NEVER_RECEIVED
    assert [intake.received for intake in observer.intakes] == [1, 1]


def test_ages_are_told_per_stream():
    observer = Observer(robot(), 1)
    observer.push_joint_state("arm", joints(T0 - 20 * MS), T0)
    observer.push_image("top", image(T0), T0)
    assert observer.snapshot(T0).ages_ns == {"images.top": 0, "states.arm": 20 * MS}


def test_equal_stamps_wait_for_the_late_stream():
    observer = fed(T0, equal_stamps=True)
    observer.push_image("top", image(T0 + DT), T0 + DT)
    assert observer.snapshot(T0 + DT).code is Reason.UNEQUAL_STAMPS
    observer.push_joint_state("arm", joints(T0 + DT), T0 + DT)
    assert observer.snapshot(T0 + DT).stamp_ns == T0 + DT


def test_joint_states_of_two_publishers_are_put_together():
    observer = Observer(robot(), 1)
    for name in "ab":
        message = SimpleNamespace(header=header(T0), name=[name], position=[0.5], velocity=[0.0], effort=[])
        observer.push_joint_state("arm", message, T0)
    observer.push_image("top", image(T0), T0)
    np.testing.assert_array_equal(observer.snapshot(T0).arrays["state"], [[0.5, 0.5, 0.0, 0.0]])


def test_receive_stamps_are_used_where_the_robot_file_says_so():
    observer = Observer(robot(stamp="receive"), 1)
    observer.push_joint_state("arm", joints(0), T0)
    observer.push_image("top", image(0), T0)
    assert observer.snapshot(observer.tick_ns).stamp_ns == T0


def test_a_zero_header_stamp_is_refused():
    assert not Observer(robot(), 1).push_image("top", image(0), T0)


BAD_IMAGES = {"wrong encoding": image(T0, encoding="16UC1"), "truncated": image(T0, data=b"123")}


@pytest.mark.parametrize("message", BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_a_bad_image_is_counted_never_used_and_named(message):
    observer = Observer(robot(), 1)
    assert not observer.push_image("top", message, T0)
    observer.push_joint_state("arm", joints(T0), T0)
    assert observer.tick_ns is None
    assert (observer.intakes[0].received, observer.intakes[0].refused) == (1, 1)
    problem = observer.silence(T0)
    assert (problem.code, problem.stream) == (Reason.REFUSED_MESSAGE, "images.top")


BAD_JOINTS = {
    "NaN": joints(T0, a=float("nan")),
    "twice": joints(T0, names=("a", "a")),
    "nameless": joints(T0, names=()),
}


@pytest.mark.parametrize("message", BAD_JOINTS.values(), ids=BAD_JOINTS)
def test_a_bad_joint_state_is_counted_never_used_and_named(message):
    observer = Observer(robot(), 1)
    observer.push_image("top", image(T0), T0)
    assert not observer.push_joint_state("arm", message, T0)
    problem = observer.snapshot(T0)
    assert (problem.code, problem.stream) == (Reason.REFUSED_MESSAGE, "states.arm")


def test_a_renamed_joint_is_named_with_what_the_topic_has():
    observer = Observer(robot(), 1)
    observer.push_joint_state("arm", joints(T0, names=("a", "bb")), T0)
    observer.push_image("top", image(T0), T0)
    problem = observer.snapshot(T0)
    assert problem.code is Reason.MISSING_JOINT
    assert "joint 'b'" in problem.detail and "bb" in problem.detail


def test_after_bad_messages_the_last_good_sample_is_used_until_it_is_stale_and_no_longer():
    observer = fed(T0)
    stamps = [T0 + DT, T0 + 2 * DT, T0 + 3 * DT]
    results = []
    for stamp in stamps:
        observer.push_joint_state("arm", joints(stamp, a=float("nan")), stamp)
        observer.push_image("top", image(stamp), stamp)
        results.append(observer.snapshot(stamp))
    assert [isinstance(result, NotReady) for result in results] == [False, False, True]
    assert results[2].code is Reason.REFUSED_MESSAGE


def test_a_recovered_stream_gives_no_reason_any_more():
    observer = Observer(robot(), 1)
    observer.push_joint_state("arm", joints(T0, a=float("nan")), T0)
    fed(T0 + DT, observer=observer)
    assert observer.snapshot(T0 + DT).stamp_ns == T0 + DT
    assert observer.silence(T0 + DT) is None


def test_a_topic_that_never_came_is_named():
    problem = Observer(robot(), 1).silence(T0)
    assert problem.code is Reason.NEVER_RECEIVED and "'top'" in problem.detail


def test_a_topic_that_fell_silent_is_named_with_its_limit():
    observer = fed(T0)
    observer.push_image("top", image(T0 + 300 * MS), T0 + 300 * MS)
    problem = observer.silence(T0 + 300 * MS)
    assert (problem.code, problem.stream) == (Reason.STALE, "states.arm")
    assert "limit 0.25 s" in problem.detail


@pytest.fixture
def told():
    """An observer of a robot with a goal, its streams complete, no goal yet."""
    return fed(T0, observer=Observer(robot(goal=TASKS), 2))


def test_without_a_goal_there_is_no_observation_and_the_reason_is_told(told):
    assert told.snapshot(T0) == NotReady(Reason.NO_GOAL, "goal", "goal: nothing on topic 'goal' (std_msgs/msg/String) yet")


def test_the_newest_goal_counts_and_has_no_ticks(told):
    for task, expected in (("push", [1, 0, 0]), ("lift", [0, 0, 1])):
        assert told.push_goal(goal(task))
        arrays = told.snapshot(T0).arrays
        assert arrays["goal"].dtype == np.float32 and arrays["goal"].tolist() == expected
    assert "goal" not in told.snapshot(T0).ages_ns


def test_a_refused_goal_leaves_the_one_before(told):
    assert not told.push_goal(goal("pus"))
    assert told.snapshot(T0).code is Reason.REFUSED_MESSAGE
    assert "did you mean 'push'" in told.snapshot(T0).detail
    assert told.push_goal(goal("pull")) and not told.push_goal(goal("sweep"))
    assert told.snapshot(T0).arrays["goal"].tolist() == [0, 1, 0]
    assert (told.goal.received, told.goal.refused) == (3, 2)


def test_the_goal_outlives_a_reset_and_every_age(told):
    told.push_goal(goal("pull"))
    told.reset()
    fed(T0 + 10_000 * DT, observer=told)
    assert told.snapshot(T0 + 10_000 * DT).arrays["goal"].tolist() == [0, 1, 0]


def test_a_snapshot_keeps_its_goal(told):
    told.push_goal(goal("pull"))
    before = told.snapshot(T0)
    told.push_goal(goal("push"))
    assert before.arrays["goal"].tolist() == [0, 1, 0]


def test_a_robot_without_a_goal_has_none_and_takes_none():
    observer = fed(T0)
    assert observer.goal is None and "goal" not in observer.snapshot(T0).arrays
    with pytest.raises(StreamError, match="no section 'goal'"):
        observer.push_goal(goal("push"))
