# SPDX-License-Identifier: Apache-2.0
"""A goal on its whole way: robot file, message, episode store, window, policy, observer."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

import toy
from ros_vdd import backends
from ros_vdd.config import build, to_plain
from ros_vdd.data.episodes import EpisodeStore, EpisodeWriter
from ros_vdd.errors import ConfigError, DataError, StreamError
from ros_vdd.streams.codecs import decode_goal, encode_goal
from ros_vdd.streams.goal import GoalSpec
from ros_vdd.streams.spec import RobotSpec, load_robot, robot_from_mapping

STRING, INT, FLOATS = (f"std_msgs/msg/{name}" for name in ("String", "Int32", "Float32MultiArray"))
TASKS = ("push", "pull", "lift")
WORDS = GoalSpec(topic="goal", type=STRING, tasks=TASKS)
NUMBERS = GoalSpec(topic="goal", type=INT, tasks=TASKS)
VECTOR = GoalSpec(topic="goal", type=FLOATS, size=3)


def message(data):
    return SimpleNamespace(data=data)


def with_goal(goal):
    return robot_from_mapping({**to_plain(toy.BLIND), "goal": goal})


@pytest.mark.parametrize("place, task", list(enumerate(TASKS)))
@pytest.mark.parametrize("spec", [WORDS, NUMBERS])
def test_a_task_is_the_one_hot_of_its_place(spec, place, task):
    expected = np.eye(3, dtype=np.float32)[place]
    for told in (task, place, np.int64(place), expected, expected.tolist()):
        encoded = spec.encode(told)
        assert encoded.dtype == np.float32
        np.testing.assert_array_equal(encoded, expected)
    assert spec.task(expected) == task


def test_a_vector_is_taken_as_it_is():
    np.testing.assert_array_equal(VECTOR.encode([0.5, -1e3, 0]), np.float32([0.5, -1e3, 0]))
    assert VECTOR.length == 3 and VECTOR.task([1, 2, 3]) is None


@pytest.mark.parametrize(
    "spec, told, words",
    [
        (WORDS, "pus", "no task 'pus'; available: lift, pull, push; did you mean 'push'"),
        (WORDS, 3, "no task 3; available: 0 push, 1 pull, 2 lift"),
        (WORDS, -1, "no task -1"),
        (WORDS, [0, 1], r"shape \(2,\); expected one of the tasks push, pull, lift"),
        (WORDS, [0, 0.5, 0.5], "no one-hot"),
        (WORDS, [0, -1, 1], "no one-hot"),
        (WORDS, True, "shape"),
        (WORDS, [0, np.nan, 1], "nan; expected finite"),
        (VECTOR, "push", "names no tasks; expected 3 numbers"),
        (VECTOR, 1, "numbers no tasks; expected 3 numbers"),
        (VECTOR, [1, 2], "expected 3 numbers"),
        (VECTOR, [1, 2, np.inf], "inf; expected finite"),
        (VECTOR, [1, 2, 1e300], "expected finite"),
        (VECTOR, [1, 2, "x"], "expected 3 numbers"),
        (VECTOR, None, "expected 3 numbers"),
    ],
)
def test_what_is_no_goal_is_refused_with_what_exists(spec, told, words):
    with pytest.raises(ConfigError, match=words):
        spec.encode(told)


def test_text_is_a_task_its_number_or_a_vector():
    for text, place in (("pull", 1), (" pull ", 1), ("1", 1), ("0,1,0", 1)):
        assert WORDS.parse(text).argmax() == place
    np.testing.assert_array_equal(VECTOR.parse("0.5, -1,2e-1"), np.float32([0.5, -1, 0.2]))
    for spec, text in ((WORDS, "pulll"), (WORDS, "3"), (WORDS, "a,b"), (VECTOR, "push"), (VECTOR, "1,2"), (VECTOR, "")):
        with pytest.raises(ConfigError):
            spec.parse(text)


@pytest.mark.parametrize(
    "keys, words",
    [
        ({"type": STRING}, "'tasks' is empty"),
        ({"type": INT, "tasks": ["a"], "size": 1}, "'size' is 1, but 'type' is std_msgs/msg/Int32"),
        ({"type": FLOATS}, "'size' is None"),
        ({"type": FLOATS, "size": 0}, "'size' is 0"),
        ({"type": FLOATS, "size": 2, "tasks": ["a", "b"]}, "'tasks' is given"),
        ({"tasks": ["a", "b", "a"]}, "'tasks' names 'a' twice"),
        ({"tasks": ["a", ""]}, "'tasks' names ''"),
        ({"tasks": ["a", "7"]}, "'tasks' names '7'"),
        ({"tasks": ["a"], "topic": "no topic"}, "'topic' is 'no topic'"),
        ({"tasks": ["a"], "type": "std_msgs/msg/Bool"}, "available"),
    ],
)
def test_the_section_holds_exactly_what_its_type_needs(keys, words):
    with pytest.raises(ConfigError, match=words):
        build(GoalSpec, {"topic": "goal", **keys})


def test_a_goal_is_no_array_of_a_tick_but_a_topic_of_the_robot():
    assert (toy.TOLD.goal_size, toy.BLIND.goal_size) == (3, 0)
    assert toy.TOLD.observation_shapes() == toy.BLIND.observation_shapes()
    assert toy.TOLD.topics() == {**toy.BLIND.topics(), "goal": STRING}
    with pytest.raises(ConfigError, match="'goal.topic' and 'states.arm.topic' are both"):
        with_goal({"topic": "joint_states", "tasks": ["a"]})


def test_a_robot_written_out_is_read_back():
    for goal in (WORDS, NUMBERS, VECTOR):
        robot = with_goal(to_plain(goal))
        assert robot_from_mapping(to_plain(robot)) == robot and robot.goal == goal


def test_robots_agree_on_tasks_not_on_how_they_travel():
    words, numbers, vector = (with_goal(to_plain(goal)) for goal in (WORDS, NUMBERS, VECTOR))
    assert words.fingerprint() == numbers.fingerprint() != vector.fingerprint()
    assert words.difference(toy.BLIND) == ["goal.tasks: ['push', 'pull', 'lift'] here, absent there"]
    turned = with_goal({"topic": "goal", "tasks": TASKS[::-1]})
    assert len(words.difference(turned)) == 1


def test_a_robot_without_a_goal_keeps_its_fingerprint():
    assert load_robot("pusht").fingerprint().startswith(PUSHT)
    assert "goal" not in toy.BLIND.contract()


PUSHT = "e82765a853fc5659"


@pytest.mark.parametrize("spec, data", [(WORDS, "pull"), (NUMBERS, 1), (VECTOR, [0.0, 1.0, 0.0])])
def test_messages_and_arrays_are_turned_into_each_other(spec, data):
    vector = decode_goal(message(data), spec)
    np.testing.assert_array_equal(vector, np.float32([0, 1, 0]))
    encode_goal(made := message(None), spec, vector)
    assert made.data == data and type(made.data) is type(data)


@pytest.mark.parametrize(
    "spec, data, words",
    [
        (WORDS, "sweep", "'goal': no task 'sweep'"),
        (WORDS, 1, "gave a SimpleNamespace; the robot file says std_msgs/msg/String"),
        (NUMBERS, "pull", "the robot file says std_msgs/msg/Int32"),
        (NUMBERS, 9, "'goal': no task 9"),
        (VECTOR, np.float32([1, 2]), "expected 3 numbers"),
        (VECTOR, "abc", "the robot file says std_msgs/msg/Float32MultiArray"),
        (VECTOR, np.float32([1, 2, np.nan]), "expected finite numbers"),
    ],
)
def test_a_message_without_a_goal_of_this_robot_is_refused(spec, data, words):
    with pytest.raises(StreamError, match=words):
        decode_goal(message(data), spec)


def test_no_goal_is_sent_that_nobody_would_take():
    with pytest.raises(StreamError, match="nothing is sent"):
        encode_goal(message(None), WORDS, np.zeros(3))


def episode(robot: RobotSpec, **changed):
    return {**toy.arrays(robot, 5, np.random.default_rng(0)), **changed}


def test_a_store_takes_one_goal_a_frame(tmp_path):
    writer = EpisodeWriter(tmp_path / "store", toy.TOLD)
    goals = np.eye(3, dtype=np.float32)[[0, 0, 1, 1, 2]]
    writer.add(episode(toy.TOLD, goal=goals), {})
    np.testing.assert_array_equal(EpisodeStore(tmp_path / "store")[0]["goal"], goals)


@pytest.mark.parametrize(
    "goal, words",
    [
        (np.eye(3, dtype=np.float32)[:2], "expected float32"),
        (np.ones((5, 4), np.float32), "expected float32"),
        (np.ones((5, 3)), "expected float32"),
        (np.float32([[1, 0, 0]] * 3 + [[1, 1, 0]] * 2), "frame 3: goal .* is no one-hot"),
    ],
)
def test_a_store_refuses_what_is_no_goal(goal, words, tmp_path):
    with pytest.raises(DataError, match=words):
        EpisodeWriter(tmp_path / "store", toy.TOLD).add(episode(toy.TOLD, goal=goal), {})


def test_a_store_refuses_episodes_without_a_goal_or_goals_without_a_section(tmp_path):
    with pytest.raises(DataError, match="episode lacks goal"):
        EpisodeWriter(tmp_path / "told", toy.TOLD).add(episode(toy.BLIND), {})
    with pytest.raises(DataError, match="has no section 'goal'"):
        EpisodeWriter(tmp_path / "blind", toy.BLIND).add(episode(toy.TOLD), {})


def test_the_fingerprint_of_a_store_depends_on_its_goals(tmp_path):
    told = []
    for place in (0, 1):
        writer = EpisodeWriter(tmp_path / str(place), toy.TOLD)
        writer.add(episode(toy.TOLD, goal=np.tile(toy.TOLD.goal.encode(place), (5, 1))), {})
        told.append(EpisodeStore(writer.root).fingerprint())
    assert told[0] != told[1]


def test_random_inputs_are_goals_of_the_robot():
    manifest = SimpleNamespace(export={})
    rng = np.random.default_rng(0)
    for goal, spread in ((WORDS, 3), (VECTOR, 20)):
        robot = with_goal(to_plain(goal))
        bundle = SimpleNamespace(robot=robot, manifest=manifest, noise_shape=None, past_shape=None, inpaints=False)
        bundle.input_shapes = {"goal": (3,)}
        drawn = [backends.random_inputs(bundle, rng)["goal"] for _ in range(20)]
        assert all(goal.encode(d[0]).tolist() == d[0].tolist() and d.shape == (1, 3) for d in drawn)
        assert len({tuple(d[0].tolist()) for d in drawn}) == spread
