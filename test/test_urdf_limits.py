# SPDX-License-Identifier: Apache-2.0
"""Limits of a robot description: the tighter of file and description holds, what is missing is named, and bad XML is refused."""

import dataclasses

import pytest
from test_limits import robot

from ros_vdd.errors import ConfigError
from ros_vdd.offline.live_urdf import judge_urdf
from ros_vdd.runtime.urdf_limits import JointLimits, narrow, read_limits

LIMIT = '<limit lower="-0.5" upper="3.0" effort="10" velocity="2.0"/>'


def urdf(*joints):
    return f'<?xml version="1.0"?><robot name="two"><link name="base"/>{"".join(joints)}</robot>'


def joint(name, kind="revolute", inside=LIMIT):
    return f'<joint name="{name}" type="{kind}"><parent link="base"/><axis xyz="0 0 1"/>{inside}</joint>'


def test_limits_are_read_by_name_and_fixed_joints_have_none():
    wheel = joint("wheel", "continuous", '<limit effort="1" velocity="9"/>')
    read = read_limits(urdf(joint("x"), joint("flange", "fixed", ""), wheel, joint("slide", "prismatic", "")))
    assert read == {
        "x": JointLimits("revolute", -0.5, 3.0, 2.0),
        "wheel": JointLimits("continuous", None, None, 9.0),
        "slide": JointLimits("prismatic"),
    }


@pytest.mark.parametrize("encoding", ["UTF-8", "ISO-8859-1", "utf-16", "no-such-encoding"])
def test_the_encoding_that_a_description_declares_counts_no_more(encoding):
    xml = urdf(joint("große_Achse")).replace('"1.0"', f'"1.0" encoding="{encoding}"')
    assert list(read_limits(xml)) == ["große_Achse"]


def test_joints_of_other_elements_are_no_joints():
    other = joint("x", inside='<limit lower="0" upper="0" velocity="0"/>')
    read = read_limits(urdf(f'<ros2_control name="arm" type="system">{other}</ros2_control>', joint("y")))
    assert read == {"y": JointLimits("revolute", -0.5, 3.0, 2.0)}


def test_the_tighter_limit_holds_on_each_side_and_what_changes_is_told():
    found = narrow(robot(max_velocity=[1.0, 5.0]), urdf(joint("x"), joint("y")))
    action = found.robot.action
    assert (action.lower, action.upper, action.max_velocity) == ((-0.5, -0.5), (1.0, 2.0), (1.0, 2.0))
    assert len(found.changes) == 3 and "lower of 'x' is -0.5 by the robot description, -1 in the robot file" in found.changes
    assert found.open == ()


def test_a_description_that_is_wider_everywhere_changes_nothing():
    wide = '<limit lower="-9" upper="9" velocity="9"/>'
    given = robot(max_velocity=[1.0, 5.0])
    assert narrow(given, urdf(joint("x", inside=wide), joint("y", inside=wide))).robot == given


def test_velocities_come_from_the_description_where_the_file_has_none_and_it_has_all():
    assert narrow(robot(), urdf(joint("x"), joint("y"))).robot.action.max_velocity == (2.0, 2.0)
    partly = narrow(robot(), urdf(joint("x"), joint("y", inside='<limit lower="-1" upper="1" velocity="0"/>')))
    assert partly.robot.action.max_velocity is None
    assert partly.open == ("joint 'y' has no velocity limit in the robot description",)


def test_a_joint_that_is_missing_is_named_and_keeps_the_files_limits():
    found = narrow(robot(), urdf(joint("x"), joint("yy")))
    assert found.robot.action.lower == (-0.5, -2.0)
    assert "joint 'y' isn't in the robot description" in found.open[0] and "did you mean 'yy'" in found.open[0]


def test_a_prismatic_joint_is_not_compared_with_radians():
    found = narrow(robot(), urdf(joint("x"), joint("y", "prismatic")))
    assert found.robot.action.lower[1] == -2.0 and "prismatic (m)" in found.open[0] and "unit is rad" in found.open[0]


BOMB = '<?xml version="1.0"?><!DOCTYPE robot [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><robot name="&b;"/>'
FILE = '<!DOCTYPE robot [<!ENTITY x SYSTEM "file:///etc/passwd">]><robot name="r">&x;</robot>'
MALFORMED = {
    "entities": (BOMB, "DOCTYPE"),
    "external entity": (FILE, "DOCTYPE"),
    "cut off": (urdf(joint("x"))[:-9], "isn't well-formed XML"),
    "no Unicode": (urdf(joint("\ud800")), "isn't well-formed XML"),
    "empty": ("", "isn't well-formed XML"),
    "not a URDF": ("<sdf version='1.9'/>", "begins with <sdf>"),
    "a macro left": (urdf(joint("x", inside='<limit lower="${pi}" upper="1"/>')), 'lower="${pi}"; expected a number'),
    "NaN": (urdf(joint("x", inside='<limit lower="nan" upper="1"/>')), 'lower="nan"'),
    "exchanged": (urdf(joint("x", inside='<limit lower="1" upper="-1"/>')), "lower 1 above upper -1"),
    "twice": (urdf(joint("x"), joint("x")), "two joints 'x'"),
    "another robot": (urdf(joint("elbow")), "is it of this robot?"),
    "no range left": (urdf(joint("x", inside='<limit lower="3" upper="4"/>')), "leave no range"),
}


@pytest.mark.parametrize("xml, words", MALFORMED.values(), ids=MALFORMED)
def test_what_is_malformed_or_of_another_robot_is_refused(xml, words):
    with pytest.raises(ConfigError) as refusal:
        narrow(robot(), xml)
    assert words in str(refusal.value)


def test_the_doctor_says_what_the_executor_would():
    wide = '<limit lower="-9" upper="9" velocity="9"/>'
    given = robot(max_velocity=[1.0, 5.0])
    (agree,) = judge_urdf(given, urdf(joint("x", inside=wide), joint("y", inside=wide)))
    assert agree.level == "ok" and "all 2 action joints" in agree.detail
    (refused,) = judge_urdf(given, BOMB)
    assert refused.level == "error" and "DOCTYPE" in refused.detail
    assert [f.level for f in judge_urdf(given, urdf(joint("x")))] == ["warn"] * 2
    assert list(judge_urdf(given, None)) == []


def test_a_safe_position_outside_the_description_is_refused():
    from ros_vdd.streams.spec import SafeAction

    given = dataclasses.replace(robot(), safe_action=SafeAction(kind="position", positions=(-0.9, 0.0), stale_chunk_s=1.0))
    with pytest.raises(ConfigError, match="'safe_action.positions' is -0.9 for joint 'x'; limits -0.5"):
        narrow(given, urdf(joint("x"), joint("y")))


def test_a_unit_that_no_description_has_is_refused():
    action, safe = dataclasses.replace(robot().action, unit="px"), dataclasses.replace(robot().safe_action, kind="stop")
    pixels = dataclasses.replace(robot(), action=action, safe_action=safe)
    with pytest.raises(ConfigError, match="can't be compared"):
        narrow(pixels, urdf(joint("x")))
