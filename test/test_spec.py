# SPDX-License-Identifier: Apache-2.0
"""Claims about robot files: what a mistake is told, and what binds data, policy and robot together."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from ros_vdd.config import dump_yaml, parse_yaml, to_plain
from ros_vdd.errors import ConfigError
from ros_vdd.streams.spec import ActionSource, load_robot, robot_from_mapping

ROBOTS = Path(__file__).parents[1] / "config" / "robots"
SHIPPED = sorted(ROBOTS.glob("*.yaml"))
PUSHT = (ROBOTS / "pusht.yaml").read_text()
ARM = (ROBOTS / "example_arm.yaml").read_text()


def _changed(text: str, old: str, new: str):
    assert old in text
    return robot_from_mapping(parse_yaml(text.replace(old, new, 1), "robot.yaml"))


def _line(text: str, old: str) -> int:
    return text[: text.index(old)].count("\n") + 1


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_robot_survives_plain_values_and_yaml(path):
    robot = load_robot(path)
    assert robot.name == path.stem
    assert robot_from_mapping(to_plain(robot)) == robot
    again = robot_from_mapping(parse_yaml(dump_yaml(robot)))
    assert again == robot and again.fingerprint() == robot.fingerprint()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_topics_are_relative(path):
    assert not any(topic.startswith("/") for topic in load_robot(path).topics())


def test_pusht_shapes_are_those_of_the_simulator():
    robot = load_robot(ROBOTS / "pusht.yaml")
    assert robot.observation_shapes() == {"images.top": (96, 96, 3), "state": (2,)}
    assert (robot.dt_ns, robot.state_size, robot.action_size) == (100_000_000, 2, 2)
    assert robot.topics() == {
        "camera/image_raw": "sensor_msgs/msg/Image",
        "joint_states": "sensor_msgs/msg/JointState",
        "joint_trajectory_controller/joint_trajectory": "trajectory_msgs/msg/JointTrajectory",
    }


def test_arm_shapes_count_fields_and_streams():
    robot = load_robot(ROBOTS / "example_arm.yaml")
    assert robot.observation_shapes() == {"images.table": (224, 224, 3), "images.wrist": (224, 224, 3), "state": (15,)}
    assert robot.states["arm"].features[6:8] == (("joint_7", "position"), ("joint_1", "velocity"))
    assert "leader/joint_states" in robot.topics()


def test_demonstrations_are_read_from_the_command_topic_unless_a_source_is_named():
    assert load_robot(ROBOTS / "example_arm.yaml").action.demonstrated.topic == "leader/joint_states"
    action = dataclasses.replace(load_robot(ROBOTS / "pusht.yaml").action, source=None)
    assert action.demonstrated == ActionSource(
        topic="joint_trajectory_controller/joint_trajectory",
        type="trajectory_msgs/msg/JointTrajectory",
        stamp="receive",
    )


def test_demonstrations_in_the_simulator_are_timed_by_their_stamps():
    assert load_robot(ROBOTS / "pusht.yaml").action.demonstrated.stamp == "header"


@pytest.mark.parametrize(
    "text, old, new, told",
    [
        (PUSHT, "encoding: rgb8", "encodng: rgb8", "unknown key 'cameras.top.encodng'.*did you mean 'encoding'"),
        (PUSHT, "encoding: rgb8", "encoding: rgb", "'cameras.top.encoding' is 'rgb'.*did you mean 'rgb8'"),
        (PUSHT, "fields: [position]", "fields: [positon]", "positon.*did you mean 'position'"),
        (PUSHT, "joints: [x, y]", "joints: [x, x]", "states.agent: 'joints' names 'x' twice"),
        (PUSHT, "joints: [x, y]", "joints: []", "'joints' is empty"),
        (PUSHT, "joints: [x, y]", "joints: [x, 'y y']", "joint 'y y' may hold"),
        (PUSHT, "fields: [position]", "fields: [position, position]", "'fields' names 'position' twice"),
        (PUSHT, "lower: [0.0, 0.0]", "lower: [0.0]", "action: 'lower' has 1 numbers for 2 joints; none for y"),
        (PUSHT, "upper: [512.0, 512.0]", "upper: [1, 2, 3]", "'upper' has 3 numbers for 2 joints"),
        (PUSHT, "lower: [0.0, 0.0]", "lower: [0.0, 600.0]", "'lower' is 600.0 above 'upper' 512.0 for joint 'y'"),
        (PUSHT, "upper: [512.0, 512.0]", "upper: [512.0, .nan]", "'upper' is nan for joint 'y'"),
        (PUSHT, "upper: [512.0, 512.0]", "upper: [512.0, .inf]", "'upper' is inf for joint 'y'"),
        (PUSHT, "rate_hz: 10.0", "rate_hz: 0", "'rate_hz' is 0.0; expected a finite number above 0"),
        (PUSHT, "rate_hz: 10.0", "rate_hz: ten", "'rate_hz' is 'ten' .str.; expected float"),
        (PUSHT, "command_rate_hz: 50.0", "command_rate_hz: -1", "'command_rate_hz' is -1.0"),
        (PUSHT, "max_age_s: 0.25", "max_age_s: 0.0", "'max_age_s' is 0.0"),
        (PUSHT, "name: pusht", "name: push-t", "'name': the name 'push-t' may hold.*write 'push_t'"),
        (PUSHT, "top:", "top cam:", "'cameras.top cam': the name 'top cam' may hold.*write 'top_cam'"),
        (PUSHT, "topic: camera/image_raw", "topic: camera//image", "'topic' is 'camera//image'"),
        (PUSHT, "topic: camera/image_raw", "topic: 1camera", "'topic' is '1camera'"),
        (PUSHT, "width: 96", "width: 0", "'width' is 0; expected 1 to 8192 pixels"),
        (PUSHT, "width: 96", "width: 96.5", "'cameras.top.width' is 96.5 .float.; expected int"),
        (PUSHT, "topic: joint_states", "topic: camera/image_raw", "'states.agent.topic' and 'cameras.top.topic' are"),
        (PUSHT, "kind: hold", "kind: freeze", "'safe_action.kind' is 'freeze'.*available: hold, position, stop"),
        (PUSHT, "kind: hold", "kind: position", "'positions' must give one number per action joint"),
        (ARM, "crop: [80, 0, 480, 480]", "crop: [200, 0, 480, 480]", "'crop'.*leaves the image of 640x480"),
        (ARM, "crop: [80, 0, 480, 480]", "crop: [0, 0, 480]", "'cameras.table.crop' has 3 entries; expected 4"),
        (ARM, "resize: [224, 224]", "resize: [224, 0]", "'resize' is 0"),
        (ARM, "joints: [finger_joint]", "joints: [joint_7]", "'states.gripper.joints' has joint_7, read from"),
        (ARM, "max_velocity: [1.0,", "max_velocity: [-1.0,", "'max_velocity' is -1.0"),
        (ARM, "kind: hold", "kind: hold\n  positions: [0]", "'positions' is given, but 'kind' is hold"),
    ],
)
def test_mistake_is_told_with_file_line_and_key(text, old, new, told):
    with pytest.raises(ConfigError, match=told) as caught:
        _changed(text, old, new)
    line = _line(text, old) + new.count("\n")
    assert str(caught.value).startswith(f"robot.yaml:{line}: "), str(caught.value)


def test_missing_key_is_named():
    with pytest.raises(ConfigError, match="missing key 'action.lower'"):
        _changed(PUSHT, "  lower: [0.0, 0.0]\n", "")


def test_commands_on_an_observed_topic_are_refused():
    joint_state = PUSHT.replace("trajectory_msgs/msg/JointTrajectory", "sensor_msgs/msg/JointState")
    with pytest.raises(ConfigError, match="commands need a topic of their own"):
        _changed(joint_state, "joint_trajectory_controller/joint_trajectory", "joint_states")


def test_hold_needs_every_action_joint_measured():
    with pytest.raises(ConfigError, match="no stream measures the position of joint 'z' in px; available: x, y"):
        _changed(PUSHT, "JointTrajectory\n  joints: [x, y]", "JointTrajectory\n  joints: [x, z]")
    with pytest.raises(ConfigError, match="no stream measures the position of joint 'x' in px"):
        _changed(PUSHT, "fields: [position]", "fields: [velocity]")


def test_safe_position_outside_the_limits_is_refused():
    with pytest.raises(ConfigError, match="'safe_action.positions' is 600.0 for joint 'x'; limits 0.0 to 512.0"):
        _changed(PUSHT, "kind: hold", "kind: position\n  positions: [600.0, 0.0]")


@pytest.mark.parametrize(
    "old, new",
    [
        ("camera/image_raw", "other/image"),
        ("max_age_s: 0.25", "max_age_s: 0.5"),
        ("stamp: header", "stamp: receive"),
        ("name: pusht", "name: pusht_two"),
        ("encoding: rgb8", "encoding: bgr8"),
        ("command_rate_hz: 50.0", "command_rate_hz: 20.0"),
    ],
)
def test_fingerprint_ignores_what_may_differ_between_robots(old, new):
    one, two = load_robot(ROBOTS / "pusht.yaml"), _changed(PUSHT, old, new)
    assert one != two and one.fingerprint() == two.fingerprint() and one.difference(two) == []


@pytest.mark.parametrize(
    "old, new, told",
    [
        ("[x, y]\n    fields", "[y, x]\n    fields", "states[0].joints: ['x', 'y'] here, ['y', 'x'] there"),
        ("rate_hz: 10.0", "rate_hz: 20.0", "rate_hz: 10.0 here, 20.0 there"),
        ("upper: [512.0, 512.0]", "upper: [512.0, 500.0]", "action.upper: [512.0, 512.0] here, [512.0, 500.0] there"),
        ("width: 96", "width: 96\n    resize: [48, 48]", "cameras.top.resize: None here, [48, 48] there"),
        ("encoding: rgb8", "encoding: mono8", "cameras.top.grey: False here, True there"),
    ],
)
def test_fingerprint_and_difference_tell_what_must_agree(old, new, told):
    one, two = load_robot(ROBOTS / "pusht.yaml"), _changed(PUSHT, old, new)
    assert one.fingerprint() != two.fingerprint()
    assert one.difference(two) == [told]


def test_unknown_robot_lists_the_shipped_ones():
    with pytest.raises(ConfigError, match="available: .*example_arm, .*pusht, .*; did you mean 'pusht'"):
        load_robot("pushed")


def _turning(**fields):
    arm = {"topic": "joint_states", "joints": ["lift", "wrist"], "unit": "rad", "max_age_s": 0.5, **fields}
    base = {"topic": "odom", "joints": ["x", "y"], "unit": "m", "max_age_s": 0.5}
    plain = {
        "name": "turning",
        "rate_hz": 10.0,
        "cameras": {},
        "states": {"base": base, "arm": arm},
        "action": {
            "topic": "command",
            "joints": ["lift"],
            "unit": "rad",
            "lower": [-1.0],
            "upper": [1.0],
            "command_rate_hz": 10.0,
        },
        "safe_action": {"kind": "stop", "stale_chunk_s": 1.0},
    }
    return robot_from_mapping(plain)


def test_angles_are_the_positions_of_continuous_joints():
    robot = _turning(continuous=["wrist"], fields=["velocity", "position"])
    assert robot.angles == (5,), "base x, y; velocities of lift and wrist; positions of lift and wrist"
    assert _turning().angles == ()


def test_a_continuous_joint_is_part_of_what_must_agree_and_changes_no_fingerprint_without_one():
    assert "continuous" not in str(_turning().contract())
    assert _turning().fingerprint() != _turning(continuous=["wrist"]).fingerprint()
    assert _turning(continuous=["wrist"]).difference(_turning()) == ["states[1].continuous: ['wrist'] here, absent there"]


@pytest.mark.parametrize(
    "fields, told",
    [
        ({"continuous": ["wirst"]}, "'continuous' names joint 'wirst'; .*did you mean 'wrist'"),
        ({"continuous": ["wrist"], "unit": "deg"}, "only an angle in rad turns without end"),
        ({"continuous": ["wrist", "wrist"]}, "'continuous' names 'wrist' twice"),
    ],
)
def test_continuous_joints_without_meaning_are_refused(fields, told):
    with pytest.raises(ConfigError, match=told):
        _turning(**fields)


def test_policies_see_cosine_and_sine_of_a_continuous_joint():
    torch = pytest.importorskip("torch", reason="the training stack needs torch")
    from ros_vdd.policies.mixture import MixtureConfig, MixturePolicy

    policy = MixturePolicy(
        _turning(continuous=["wrist"]), MixtureConfig(n_obs_steps=1, horizon=2, n_action_steps=1, width=8, depth=1)
    )
    state = torch.tensor([[[0.1, 0.2, 0.3, 0.01]], [[0.1, 0.2, 0.3, 6.2731853]]])  # 0.01 on either side of 2 pi
    seen = policy.condition({"state": state})
    assert seen.shape == (2, policy.condition_size) == (2, 5)
    torch.testing.assert_close(seen[0], torch.tensor([0.1, 0.2, 0.3, 0.99995, 0.0099998]))
    torch.testing.assert_close(seen[1], torch.tensor([0.1, 0.2, 0.3, 0.99995, -0.01]), rtol=1e-3, atol=1e-5)
