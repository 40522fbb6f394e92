# SPDX-License-Identifier: Apache-2.0
"""A robot file held against topics: each fault is found, with what was expected, what is, and what to do. No ROS needed."""

import copy

import pytest
from test_observer import TASKS, robot

from ros_vdd.offline import live_check
from ros_vdd.offline.live_graph import judge, nearest
from ros_vdd.resources import FAST_DDS_VARIABLES

NOW = 1_700_000_000_000_000_000
IMAGE, STATE, COMMAND = "sensor_msgs/msg/Image", "sensor_msgs/msg/JointState", "trajectory_msgs/msg/JointTrajectory"
QOS = "best_effort, volatile"


def end(node, kind, **changes):
    return {"node": node, "type": kind, "qos": QOS, "matches": True, **changes}


def sensor(topic, kind, **changes):
    seen = {"received": 150, "refused": 0, "refusal": None, "incomplete": None, "frozen": 0, "jumps": 0, "jump": None}
    times = {"rate_hz": 30.0, "gap_s": 0.04, "age_s": 0.01, "stamp_ns": NOW, "names": []}
    graph = {"topic": topic, "type": kind, "asked": QOS, "publishers": [end("/driver", kind)], "subscribers": []}
    return {**graph, **seen, **times, **changes}


def facts(camera=(), arm=(), action=(), goal=None, **changes):
    """What is seen of the small robot when all is well, with changes."""
    command = {"topic": "/command", "type": COMMAND, "asked": "reliable, volatile", "publishers": []}
    streams = {
        "cameras.top": sensor("/top", IMAGE, **dict(camera)),
        "states.arm": sensor("/joint_states", STATE, **{"names": [["a", "b"]], **dict(arm)}),
        "action": {**command, "subscribers": [end("/controller", COMMAND)], **dict(action)},
    }
    if goal is not None:
        streams["goal"] = {"topic": "/goal", "type": TASKS["type"], "asked": "reliable, transient_local", "subscribers": []} | goal
    topics = {"/top": [IMAGE], "/arm/joint_states": [STATE], "/side/image_raw": [IMAGE]}
    clocks = {"rmw": "rmw_fastrtps_cpp", "use_sim_time": False, "now_ns": NOW, "wall_ns": NOW, "clock_ns": None}
    return {**clocks, "published": topics, "subscribed": {"/arm/command": [COMMAND]}, "streams": streams, **changes}


def findings(seen, spec=None):
    return list(judge(spec or robot(), copy.deepcopy(seen), 5.0))


def the_problem(seen, spec=None):
    (found,) = [f for f in findings(seen, spec) if f.level != "ok"]
    assert found.remedy
    return found


def test_when_all_is_well_each_stream_says_how_it_is():
    found = findings(facts(arm={"names": [["a", "b", "gripper"]]}))
    assert [(f.check, f.level) for f in found] == [("cameras.top", "ok"), ("states.arm", "ok"), ("action", "ok")]
    assert found[0].detail == "'/top' at 30 Hz from /driver, 10 ms old"
    assert found[1].detail.endswith("not ours: gripper")


TWO = [end("/driver", IMAGE), end("/bag", IMAGE)]
TWO_ARMS = [end("/arm", STATE), end("/gui", STATE)]
CAMERA = {
    "another type": ({"publishers": [end("/driver", "sensor_msgs/msg/CompressedImage")]}, "error", ("Compressed", IMAGE)),
    "QoS": ({"publishers": [end("/driver", IMAGE, matches=False, qos="x")]}, "error", ("offers x", f"ours is {QOS}")),
    "two publishers": ({"publishers": TWO}, "error", ("2 publishers (/bag, /driver)",)),
    "nothing comes": ({"received": 0}, "error", ("nothing came in 5 s",)),
    "one message": ({"rate_hz": None, "gap_s": None}, "error", ("one message only",)),
    "too slow": ({"rate_hz": 2.0, "gap_s": 0.6}, "error", ("at 2 Hz, 0.5 s apart; 'max_age_s' is 0.25",)),
    "a gap": ({"gap_s": 0.6}, "warn", ("once nothing for 0.6 s",)),
    "slower than the policy": ({"rate_hz": 6.0, "gap_s": 0.2}, "warn", ("at 6 Hz; the policy runs at 10",)),
    "clock behind": ({"age_s": 7200.0, "stamp_ns": NOW - 7200 * 10**9}, "error", ("2 h behind", "another clock")),
    "clock ahead": ({"age_s": -0.1}, "error", ("0.1 s ahead of", "begin in the future")),
    "old pictures": ({"age_s": 0.9}, "warn", ("0.9 s behind", "'max_age_s' is 0.25")),
    "another size": ({"refused": 150, "refusal": "8x6 pixels"}, "error", ("150 of 150 messages are unusable", "8x6 pixels")),
    "a bag that loops": ({"jumps": 2, "jump": "the stamps went back by 9 s"}, "warn", ("went back by 9 s",)),
}
ARM = {
    "renamed joint": ({"names": [["a", "bb"]]}, "error", ("has no b; it has a, bb; did you mean bb?",)),
    "no velocity": ({"incomplete": "velocity of joint 'a': never received"}, "error", ("velocity of joint 'a'",)),
    "two of one joint": ({"publishers": TWO_ARMS, "names": [["a"], ["a", "b"]]}, "warn", ("more than one sends a",)),
    "two of all joints": ({"publishers": TWO_ARMS}, "warn", ("some send the same joints",)),
}


@pytest.mark.parametrize("changes, level, words", CAMERA.values(), ids=CAMERA)
def test_what_is_wrong_with_a_camera_is_told(changes, level, words):
    found = the_problem(facts(camera=changes))
    assert (found.check, found.level) == ("cameras.top", level)
    assert all(word in found.detail for word in words)


@pytest.mark.parametrize("changes, level, words", ARM.values(), ids=ARM)
def test_what_is_wrong_with_joint_states_is_told(changes, level, words):
    found = the_problem(facts(arm=changes))
    assert (found.check, found.level) == ("states.arm", level)
    assert all(word in found.detail for word in words)


def test_two_publishers_of_different_joints_are_as_it_should_be():
    seen = facts(arm={"publishers": TWO_ARMS, "names": [["a"], ["b"]]})
    assert all(f.level == "ok" for f in findings(seen))


def test_a_missing_topic_is_told_with_the_nearest_of_its_type():
    found = the_problem(facts(arm={"publishers": [], "received": 0}))
    assert "nobody publishes '/joint_states'" in found.detail and "did you mean '/arm/joint_states'?" in found.detail


def test_the_nearest_topic_has_the_same_last_word_or_a_like_name_and_always_the_type():
    topics = {"/arm/joint_states": [STATE], "/top_camera": [IMAGE], "/joint_states_raw": [IMAGE]}
    assert nearest("/joint_states", topics, STATE) == "did you mean '/arm/joint_states'?"
    assert nearest("/top_cam", topics, IMAGE) == "did you mean '/top_camera'?"
    assert nearest("/z", topics, IMAGE) == "topics of that type: /joint_states_raw, /top_camera"
    assert nearest("/z", {}, IMAGE) == "topics of that type: none"


BAG_NS = 100 * 10**9
SIMULATED = {"age_s": (NOW - BAG_NS) / 1e9, "stamp_ns": BAG_NS}


def test_simulated_stamps_under_a_wall_clock_are_known_by_the_topic_clock():
    found = the_problem(facts(camera=SIMULATED, clock_ns=BAG_NS))
    assert "simulated time, that of /clock" in found.detail and "use_sim_time:=true" in found.remedy


def test_wall_stamps_under_simulated_time_are_known():
    behind = {"age_s": (BAG_NS - NOW) / 1e9}
    seen = facts(camera=behind, arm={"age_s": 0.0}, use_sim_time=True, clock_ns=BAG_NS, now_ns=BAG_NS)
    assert "are wall time, and the nodes would run on /clock" in the_problem(seen).detail


def test_simulated_time_without_a_clock_is_told_once():
    behind = {"age_s": -NOW / 1e9}
    found = the_problem(facts(camera=behind, arm=behind, use_sim_time=True, now_ns=0))
    assert found.check == "clock" and "nothing came on /clock" in found.detail


def test_receive_stamps_have_no_age():
    assert all(f.level == "ok" for f in findings(facts(camera={"age_s": 9e9}, arm={"age_s": None}), robot(stamp="receive")))


def test_commands_that_nobody_takes_are_an_error_and_a_second_commander_is_told():
    found = the_problem(facts(action={"subscribers": []}))
    assert found.level == "error" and "did you mean '/arm/command'?" in found.detail
    found = the_problem(facts(action={"publishers": [end("/ns/chunk_executor_node", COMMAND), end("/teleop", COMMAND)]}))
    assert found.level == "warn" and "commanded by /teleop as well" in found.detail


def test_a_goal_that_is_not_latched_never_arrives():
    told = robot(goal=TASKS)
    volatile = end("/task", TASKS["type"], matches=False, qos="reliable, volatile")
    found = the_problem(facts(goal={"publishers": [volatile]}), told)
    assert "offers reliable, volatile; ours is reliable, transient_local" in found.detail
    assert the_problem(facts(goal={"publishers": []}), told).level == "warn"


def test_two_streams_of_one_topic_are_told_of_it_once():
    spec = robot()
    arm = spec.states["arm"]
    both = {"arm": arm, "hand": type(arm)(topic="joint_states", joints=("hand",), unit="rad", max_age_s=0.25)}
    seen = facts(arm={"age_s": 7200.0, "stamp_ns": NOW - 7200 * 10**9, "names": [["a", "b", "hand"]]})
    seen["streams"]["states.hand"] = seen["streams"]["states.arm"]
    object.__setattr__(spec, "states", both)
    assert [f.check for f in findings(seen, spec) if f.level == "error"] == ["states.arm"]


FEW = (921_600, 30, 1)


def test_images_that_are_lost_are_told_with_the_profile_to_set():
    found = live_check.judge_transport(*FEW, "rmw_fastrtps_cpp", {})
    assert found.level == "error" and "1 of 30 arrived" in found.detail
    assert f"export {FAST_DDS_VARIABLES[0]}=" in found.remedy and "fastdds.xml" in found.remedy
    assert f"export {FAST_DDS_VARIABLES[1]}=" in live_check.judge_transport(*FEW, "rmw_fastrtps_cpp", {"ROS_DISTRO": "humble"}).remedy


def test_a_profile_that_is_too_small_is_named():
    assert "'/my.xml'" in live_check.judge_transport(*FEW, "rmw_fastrtps_cpp", {FAST_DDS_VARIABLES[0]: "/my.xml"}).remedy


def test_another_middleware_has_another_remedy():
    assert "net.core.rmem_max" in live_check.judge_transport(*FEW, "rmw_cyclonedds_cpp", {}).remedy


@pytest.mark.parametrize("received, level", [(30, "ok"), (29, "warn"), (15, "error"), (0, "error")])
def test_how_many_images_must_arrive(received, level):
    assert live_check.judge_transport(921_600, 30, received, "rmw_fastrtps_cpp", {}).level == level


def test_processes_that_do_not_meet_are_told_apart_from_lost_images():
    assert "didn't find each other" in live_check.judge_transport(921_600, 0, 0, "rmw_fastrtps_cpp", {}).detail


def test_the_image_that_is_moved_is_the_robots_largest_raw_one():
    assert live_check.largest_image(None) == 640 * 480 * 3
    assert live_check.largest_image(robot(width=8, height=6, encoding="rgba8")) == 192
    assert live_check.largest_image(robot(type="sensor_msgs/msg/CompressedImage")) == 0


def test_without_ros_the_live_check_says_what_to_install(monkeypatch):
    monkeypatch.setattr(live_check.importlib.util, "find_spec", lambda name: None)
    (found,) = live_check.examine_live("pusht", 1.0, "", False)
    assert found.level == "error" and "ros_vdd[ros]" in found.remedy
