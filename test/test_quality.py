# SPDX-License-Identifier: Apache-2.0
"""The verdict on a take: each threshold decides at its value, the worst finding wins, every reason names its topic."""

import dataclasses

import pytest

from ros_vdd.config import build, dump_yaml, parse_yaml
from ros_vdd.errors import ConfigError
from ros_vdd.streams.quality import QualitySpec, TopicHealth, Verdict, judge, same_topic
from ros_vdd.streams.spec import RobotSpec, load_robot, robot_from_mapping

ROBOT = load_robot("pusht")  # camera 0.5 s or less, joints, commands
CAMERA, STATE, COMMAND = "/camera/image_raw", "/joint_states", "/joint_trajectory_controller/joint_trajectory"
GOOD = TopicHealth(messages=100, rate_hz=10.0, largest_gap_s=0.11, age_s=0.004)


def verdict(duration_s=10.0, idle=None, others=None, spec=QualitySpec(), robot=ROBOT, **changes):
    topics = {name: GOOD for name in (CAMERA, STATE, COMMAND)} | (others or {})
    topics[CAMERA] = dataclasses.replace(GOOD, **changes)
    return judge(spec, robot, topics, duration_s, idle)


def test_a_good_take_is_accepted_without_a_word():
    assert verdict() == Verdict("accept", ())


@pytest.mark.parametrize(
    "given, level, word",
    [
        ({"duration_s": 0.99}, "reject", "lasted 0.990 s"),
        ({"duration_s": 61.0, "spec": QualitySpec(max_duration_s=60.0)}, "reject", "at most 60 s"),
        ({"messages": 0, "rate_hz": 0.0}, "reject", "camera/image_raw: no messages"),
        ({"messages": 199, "lost": 1}, "accept", ""),
        ({"messages": 198, "lost": 2}, "warn", "2 of 200 messages lost (1.0%)"),
        ({"messages": 197, "lost": 3}, "reject", "3 of 200 messages lost (1.5%)"),
        ({"largest_gap_s": 0.3, "spec": QualitySpec(max_gap_s=0.25)}, "reject", "silent for 0.30 s, limit 0.25 s"),
        ({"age_s": 3.0}, "warn", "old when they come, by 3.000 s"),
        ({"age_s": -3.0}, "warn", "stamped in the future, by 3.000 s"),
        ({"age_s": None}, "accept", ""),
        ({"rate_hz": 8.0, "spec": QualitySpec(min_rate_hz={"camera/image_raw": 9.0})}, "reject", "8.0 Hz, at least 9 Hz"),
        ({"spec": QualitySpec(min_rate_hz={"imu": 9.0})}, "reject", "imu: not recorded"),
        ({"idle": 0.6}, "warn", "nothing moves in 60% of the ticks"),
        ({"idle": 0.5}, "accept", ""),
    ],
)
def test_each_threshold_decides(given, level, word):
    found = verdict(**given)
    assert found.level == level and any(word in reason for reason in found.reasons) or (not word and not found.reasons)


def test_a_silence_is_measured_against_the_age_limit_of_its_own_stream():
    limit_s = ROBOT.cameras["top"].max_age_s
    assert verdict(largest_gap_s=limit_s).level == "accept"
    assert verdict(largest_gap_s=limit_s + 0.01).level == "reject"


def test_topics_beside_the_robot_file_may_be_silent_but_their_loss_is_told():
    assert verdict(others={"/tf": TopicHealth(3, 0.1, 9.0)}).level == "accept"
    assert verdict(others={"/tf": TopicHealth(3, 0.1, 9.0, lost=3)}) == Verdict(
        "warn", ("/tf: 3 of 6 messages lost (50.0%), limit 1.0%",)
    )


def test_the_worst_finding_decides_and_stands_first():
    found = verdict(age_s=3.0, duration_s=0.1)
    assert found.level == "reject" and found.reasons[0].startswith("lasted") and len(found.reasons) == 2


def test_a_goal_must_have_been_said_and_may_be_said_once():
    goal = {"topic": "goal", "type": "std_msgs/msg/String", "tasks": ["push"]}
    robot = robot_from_mapping({**parse_yaml(dump_yaml(ROBOT)), "goal": goal})
    assert verdict(robot=robot).reasons == ("goal: no messages",)
    assert verdict(robot=robot, others={"/goal": TopicHealth(1, 0.0, 10.0)}).level == "accept"


def test_a_topic_is_found_in_a_namespace_and_not_by_the_end_of_a_word():
    assert same_topic("joint_states", "/left/joint_states") and same_topic("/a/b", "/a/b")
    assert not same_topic("joint_states", "/my_joint_states") and not same_topic("/b", "/a/b")


@pytest.mark.parametrize(
    "wrong",
    [{"min_duration_s": -1.0}, {"max_duration_s": 0.5}, {"max_loss": 1.5}, {"max_gap_s": 0.0}, {"max_idle": -0.1},
     {"min_rate_hz": {"imu": 0.0}}, {"min_rate_hz": {"no topic": 1.0}}, {"max_los": 0.1}],
)  # fmt: skip
def test_thresholds_without_meaning_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        build(QualitySpec, wrong)


def test_the_section_is_read_from_the_robot_file_and_binds_no_data():
    plain = parse_yaml(dump_yaml(ROBOT)) | {"quality": {"max_loss": 0.2, "min_rate_hz": {"imu": 5.0}}}
    robot = robot_from_mapping(plain)
    assert isinstance(robot, RobotSpec) and robot.quality.max_loss == 0.2
    assert robot.fingerprint() == ROBOT.fingerprint() and robot.difference(ROBOT) == []
    del plain["quality"]
    assert robot_from_mapping(plain) == ROBOT
