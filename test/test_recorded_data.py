# SPDX-License-Identifier: Apache-2.0
"""Recordings of others (docs/data.md): each converts with the counts of the table there, or is refused for its reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ros_vdd.data.bag_convert import episodes_from_bag
from ros_vdd.errors import DataError
from ros_vdd.streams.spec import robot_from_mapping

DATA = os.environ.get("ROS_VDD_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="ROS_VDD_DATA names no folder with recorded data")
JOINT_STATE = "sensor_msgs/msg/JointState"
ARM = ["arm_1_link_joint", "arm_2_link_joint", "arm_3_link_joint"]
LEG = ["leg3base_link_link2", *(f"leg3link{i}_link{i + 1}" for i in range(2, 8))]
WHEELED = [*LEG, "leg3grip1", "leg3grip2", "wheel11_left_joint", "wheel11_right_joint"]
BASE = [f"base_link{i}_joint" for i in range(1, 10)]
FOUR = ["shoulder_joint", "elbow_joint", "wrist_joint", "gripper_joint"]
ALIGN = "motion_stack/self_assembly/align_arm_to_wheel_mocap_simu"
FULL = "motion_stack/self_assembly/self_assembly_full_v3"


def robot(topic, joints, source=None, acted=None, rate_hz=10.0, max_age_s=0.5, cameras=None, **stream):
    """Joint states of a topic, and actions from `source`: by default the same topic, that is, the positions reached."""
    state = {"topic": topic, "joints": joints, "unit": "rad", "max_age_s": max_age_s, **stream}
    acted = acted or joints
    action = {"topic": "command", "type": JOINT_STATE, "joints": acted, "unit": "rad", "command_rate_hz": 10.0}
    action |= {"lower": [-9.0] * len(acted), "upper": [9.0] * len(acted)}
    action |= {"source": {"topic": topic, "max_age_s": max_age_s, **stream, **(source or {})}}
    return robot_from_mapping(
        {"name": "r", "rate_hz": rate_hz, "cameras": cameras or {}, "states": {"arm": state}, "action": action}
        | {"safe_action": {"kind": "stop", "stale_chunk_s": 1.0}}
    )


CONVERTS = {
    "abitobot": ("abitobot_imu_joints", robot("/joint_states", ARM), [933], {}),
    "three publishers": (
        ALIGN,
        robot("/joint_states", WHEELED, acted=LEG),
        [486],
        {"action": "1303 of 2760: JointState has no joint"},
    ),
    "commands that are mostly velocities": (
        ALIGN,
        robot("/joint_states", LEG, {"topic": "/joint_commands"}),
        [205, 151],
        {"action": "362 of 434: JointState has 0 positions"},
    ),
    "SQLite, header clock": (f"{FULL}/test", robot("/leg3/joint_states", BASE), [79], {}),
    "SQLite, log clock": (f"{FULL}/test1", robot("/leg3/joint_states", BASE, stamp="receive"), [88], {}),
    "every message type once": ("rerun_all_sensor_msgs", robot("/joint_state", FOUR, rate_hz=9.0), [14], {}),
}
IMAGE = {"top": {"topic": "/image", "width": 640, "height": 480, "resize": [96, 96], "max_age_s": 0.2}}
REFUSED = {
    "velocities are no positions": (
        f"{FULL}/test",
        robot("/leg3/joint_states", BASE, {"topic": "/leg3/joint_commands"}),
        "all 79 messages were refused: JointState has 0 positions",
    ),
    "clocks days apart": (
        f"{FULL}/test1",
        robot("/leg3/joint_states", BASE, {"stamp": "receive"}),
        "lack action .*5.11e.05 s later.*choose stamp: header or stamp: receive",
    ),
    "one image": (
        "rerun_all_sensor_msgs",
        robot("/joint_state", FOUR, cameras=IMAGE),
        "at no time is every stream there.*images_top has stamps from 1757502238.483",
    ),
    "a joint of another robot": (
        "abitobot_imu_joints",
        robot("/joint_states", LEG),
        "joints on the topic: available: arm_1_link_joint",
    ),
    "a topic that isn't there": (
        "abitobot_imu_joints",
        robot("/joint_state", ARM),
        "'/joint_state' of states_arm is absent.*did you mean '/joint_states'",
    ),
}


@pytest.mark.parametrize("name", CONVERTS)
def test_it_converts_with_the_counts_of_the_table(name):
    source, spec, frames, refused = CONVERTS[name]
    found = list(episodes_from_bag(Path(DATA, "bags", source), spec))
    assert [len(arrays["action"]) for arrays, _ in found] == frames
    for key, told in refused.items():
        assert told in found[0][1]["refused"][key]
    if not refused:
        assert found[0][1]["refused"] == {}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_for_its_reason(name):
    source, spec, told = REFUSED[name]
    with pytest.raises(DataError, match=told):
        list(episodes_from_bag(Path(DATA, "bags", source), spec))
