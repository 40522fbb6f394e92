# SPDX-License-Identifier: Apache-2.0
"""Bags whose right episodes are known in closed form: what each tick sees, which action it gets, where it splits."""

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from make_bags import SECOND, floats, image, joint_state, text, trajectory, write_bag, write_mcap

from ros_vdd.config import dump_yaml
from ros_vdd.data import bag_convert
from ros_vdd.data.bag import Bag
from ros_vdd.data.bag_convert import episodes_from_bag
from ros_vdd.data.frame_file import FrameFile
from ros_vdd.errors import ConfigError, DataError
from ros_vdd.streams.codecs import decode_image, decode_joint_state
from ros_vdd.streams.resample import PartialState, StreamBuffer
from ros_vdd.streams.spec import robot_from_mapping

MS = 1_000_000
START = 1000 * SECOND
DT = 100 * MS
JOINTS = ("x", "y")
TRAJECTORY = "trajectory_msgs/msg/JointTrajectory"


def robot(action_source=None, **changes):
    camera = {"topic": "camera", "width": 4, "height": 2, "max_age_s": 0.15}
    state = {"topic": "joint_states", "joints": list(JOINTS), "unit": "m", "max_age_s": 0.15}
    action = {"topic": "command", "joints": list(JOINTS), "unit": "m", "lower": [-1e9] * 2, "upper": [1e9] * 2}
    action |= {"command_rate_hz": 50.0, "source": action_source or {"topic": "command", "type": TRAJECTORY}}
    whole = {"name": "r", "rate_hz": 10.0, "cameras": {"top": camera}, "states": {"arm": state}, "action": action}
    return robot_from_mapping(whole | {"safe_action": {"kind": "hold", "stale_chunk_s": 1.0}} | changes)


def pixels(value):
    return np.full((2, 4, 3), value)


def camera(ticks, delay_ns=30 * MS):
    """Image k shows k, is stamped at tick k and arrives later."""
    return [("/camera", START + k * DT + delay_ns, image(START + k * DT, pixels(k))) for k in ticks]


def arm(times_ms):
    """x is the time since the start in ms, y its negative."""
    stamps = [(ms, START + ms * MS) for ms in times_ms]
    return [("/joint_states", s + 2 * MS, joint_state(s, JOINTS, (ms, -ms))) for ms, s in stamps]


def commands(times_ms):
    """A command's x is the time since the start in ms at which it was given."""
    stamps = [(ms, START + round(ms * MS)) for ms in times_ms]
    return [("/command", s + 5 * MS, trajectory(s, JOINTS, (ms, 0))) for ms, s in stamps]


def bag_of(folder, *events):
    return write_bag(folder, sorted((e for group in events for e in group), key=lambda e: e[1]))


def convert(folder, spec=None, **options):
    return list(episodes_from_bag(folder, spec or robot(), **options))


@pytest.fixture
def plain(tmp_path):
    """Ten ticks: camera on the tick, joint states every 10 ms, a command 40 ms after each tick."""
    return bag_of(tmp_path / "bag", camera(range(10)), arm(range(0, 1000, 10)), commands(range(40, 1000, 100)))


def test_each_tick_has_the_newest_sample_at_or_before_it(plain):
    ((arrays, meta),) = convert(plain)
    assert arrays["stamp_ns"].tolist() == [START + k * DT for k in range(10)]
    assert arrays["images.top"].shape == (10, 2, 4, 3) and arrays["images.top"].dtype == np.uint8
    assert arrays["images.top"][:, 0, 0, 0].tolist() == list(range(10))
    assert arrays["state"].tolist() == [[k * 100.0, -k * 100.0] for k in range(10)]
    assert (meta["refused"], meta["warnings"], meta["segment"]) == ({}, [], 0)


def test_the_action_is_the_last_command_before_the_next_tick(tmp_path):
    given = [40, 100, 130, 170, 299.999, 300, 410]  # two between ticks, and one exactly on a tick
    folder = bag_of(tmp_path / "bag", camera(range(6)), arm(range(0, 600, 10)), commands(given))
    ((arrays, _),) = convert(folder)
    assert arrays["stamp_ns"].tolist() == [START + k * DT for k in range(5)]  # none after the last command, at 410 ms
    assert arrays["action"][:, 0].tolist() == pytest.approx([40, 170, 299.999, 300, 410])
    assert arrays["age_ns.action"].tolist() == [60 * MS - 1, 30 * MS - 1, 1000 - 1, 100 * MS - 1, 90 * MS - 1]


def test_a_command_stamped_with_its_observation_is_that_tick_s_action(tmp_path):
    folder = bag_of(tmp_path / "bag", camera(range(5)), arm(range(0, 500, 100)), commands(range(0, 400, 100)))
    ((arrays, _),) = convert(folder)
    assert arrays["action"][:, 0].tolist() == [0, 100, 200, 300]  # the last observation got no command: no frame


def test_an_observation_never_looks_ahead(tmp_path):
    folder = bag_of(tmp_path / "bag", camera(range(10)), arm(range(1, 1000, 50)), commands(range(40, 1000, 100)))
    ((arrays, _),) = convert(folder)
    ticks_ms = (arrays["stamp_ns"] - START) / MS
    assert arrays["state"][:, 0].tolist() == [t - 49 for t in ticks_ms]
    assert set(arrays["age_ns.states_arm"].tolist()) == {49 * MS}


def test_receive_stamps_use_the_log_time(tmp_path):
    events = [camera(range(5)), arm(range(0, 500, 10)), commands(range(40, 500, 100))]
    folder = bag_of(tmp_path / "bag", *events)
    received = {"topic": "joint_states", "joints": list(JOINTS), "unit": "m", "max_age_s": 0.15, "stamp": "receive"}
    ((arrays, _),) = convert(folder, robot(states={"arm": received}))
    # A joint state arrives 2 ms after its stamp, so the newest that had come at tick k was stamped 10 ms before it.
    assert arrays["state"][:, 0].tolist() == [k * 100.0 - 10 for k in range(1, 5)]


def test_a_leader_arm_s_position_at_the_end_of_the_period_is_the_action(tmp_path):
    leader = [("/leader", t, joint_state(t, JOINTS, (t - START, 0))) for t in range(START, START + 10 * DT, 10 * MS)]
    folder = bag_of(tmp_path / "bag", camera(range(10)), arm(range(0, 1000, 10)), leader)
    source = {"topic": "leader", "type": "sensor_msgs/msg/JointState"}
    ((arrays, _),) = convert(folder, robot(source))
    assert arrays["action"][:, 0].tolist() == [(k + 1) * DT - 10 * MS for k in range(10)]


def test_a_camera_gap_splits_the_episode_and_is_told(tmp_path):
    ticks = [*range(10), *range(15, 25)]
    folder = bag_of(tmp_path / "bag", camera(ticks), arm(range(0, 2500, 10)), commands(range(40, 2500, 100)))
    (first, meta), (second, _) = convert(folder)
    # max_age_s is 0.15: the tick right after the gap began still sees the last image.
    assert (first["stamp_ns"][-1] - START, second["stamp_ns"][0] - START) == (10 * DT, 15 * DT)
    assert first["images.top"][-2:, 0, 0, 0].tolist() == [9, 9]
    assert second["images.top"][:, 0, 0, 0].tolist() == list(range(15, 25))
    assert "4 ticks lack images_top" in meta["left_out_around"] and "0.2 s old, limit 0.15 s" in meta["left_out_around"]


def test_ends_where_a_stream_is_missing_are_left_out(tmp_path):
    folder = bag_of(tmp_path / "bag", camera(range(2, 8)), arm(range(0, 1000, 10)), commands(range(340, 1000, 100)))
    ((arrays, _),) = convert(folder)
    assert ((arrays["stamp_ns"] - START) // DT).tolist() == [3, 4, 5, 6, 7]


def test_a_refused_message_is_missing_and_counted(tmp_path):
    stamps = [START + 395 * MS, START + 396 * MS]
    broken = [("/joint_states", s, joint_state(s, JOINTS, (np.nan, 0))) for s in stamps]
    events = [camera(range(10)), arm(range(0, 1000, 10)), commands(range(40, 1000, 100))]
    folder = bag_of(tmp_path / "bag", *events, broken)
    ((arrays, meta),) = convert(folder)
    assert arrays["state"][4].tolist() == [400, -400]
    assert "2 of 102" in meta["refused"]["states_arm"] and "nan" in meta["refused"]["states_arm"]


def test_every_frame_equals_what_the_live_buffers_hold_at_that_tick(tmp_path):
    """The converter against buffers that are fed in arrival order and asked at each tick, as a node is."""
    random = np.random.default_rng(1)
    stamps = np.cumsum(random.integers(5, 40, 60)).tolist()
    parts = [("x", "y"), ("x",), ("y",)]
    states = []
    for i, ms in enumerate(stamps):
        names = parts[i % 3]
        message = joint_state(START + ms * MS, names, [float(i)] * len(names))
        states.append(("/joint_states", START + ms * MS + int(random.integers(0, 4)) * MS, message))
    frames = camera(range(1, 12), delay_ns=0)
    events = sorted([*frames, *states], key=lambda e: e[1])
    spec = robot()
    ((arrays, _),) = convert(bag_of(tmp_path / "bag", events, commands(range(0, 1200, 50))), spec)
    images, arm_state = StreamBuffer(150 * MS, 64, "i"), PartialState(spec.states["arm"], 64, "s")
    for tick, seen, state in zip(arrays["stamp_ns"].tolist(), arrays["images.top"], arrays["state"]):
        while events and events[0][1] <= tick + 4 * MS:
            topic, _, message = events.pop(0)
            stamp = message.header.stamp.sec * SECOND + message.header.stamp.nanosec
            if topic == "/camera":
                images.push(stamp, decode_image(message, spec.cameras["top"]))
            else:
                arm_state.push(stamp, decode_joint_state(message, spec.states["arm"]), message.name)
        np.testing.assert_array_equal(images.at(tick).value, seen)
        np.testing.assert_array_equal(arm_state.at(tick).value, state)


def test_clocks_that_never_meet_are_told_with_their_spans(tmp_path):
    simulated = [("/joint_states", START + k * DT, joint_state((k + 1) * DT, JOINTS, (k, 0))) for k in range(10)]
    folder = bag_of(tmp_path / "bag", camera(range(10)), simulated, commands(range(40, 1000, 100)))
    with pytest.raises(DataError, match=r"at no time .* states_arm has stamps from 0.100 to 1.000 s \(header\)"):
        convert(folder)


def test_a_stream_that_is_refused_throughout_gives_its_reason(tmp_path):
    grey = [("/camera", START + k * DT, image(START + k * DT, pixels(k), "16UC1")) for k in range(10)]
    folder = bag_of(tmp_path / "bag", grey, arm(range(0, 1000, 10)), commands(range(40, 1000, 100)))
    with pytest.raises(DataError, match="images_top .*all 10 messages were refused: .*16UC1"):
        convert(folder)


def test_zero_stamps_say_what_to_write(tmp_path):
    zero = [("/joint_states", START + k * DT, joint_state(0, JOINTS, (k, 0))) for k in range(10)]
    folder = bag_of(tmp_path / "bag", camera(range(10)), zero, commands(range(40, 1000, 100)))
    with pytest.raises(DataError, match="stamp is zero; write stamp: receive"):
        convert(folder)


def test_a_clock_that_goes_back_is_refused(tmp_path):
    again = [("/joint_states", START + 5 * SECOND + k, joint_state(START + k * DT, JOINTS, (k, 0))) for k in range(9)]
    folder = bag_of(tmp_path / "bag", camera(range(50)), arm(range(0, 4900, 10)), again, commands(range(40, 5000, 100)))
    with pytest.raises(DataError, match="states_arm: its clock goes back"):
        convert(folder)


def test_a_renamed_joint_and_a_missing_topic_suggest_the_nearest(tmp_path):
    events = [camera(range(10)), arm(range(0, 1000, 10)), commands(range(40, 1000, 100))]
    folder = bag_of(tmp_path / "bag", *events)
    state = {"topic": "joint_state", "joints": list(JOINTS), "unit": "m", "max_age_s": 0.15}
    with pytest.raises(DataError, match="'joint_state' of states_arm is absent; .*did you mean '/joint_states'"):
        convert(folder, robot(states={"arm": state}))
    wrong = state | {"topic": "joint_states", "joints": ["x", "y", "z"]}
    with pytest.raises(DataError, match="joint 'z'.*joints on the topic: available: x, y"):
        convert(folder, robot(states={"arm": wrong}))


def test_a_topic_of_another_type_names_both(plain):
    source = {"topic": "command", "type": "sensor_msgs/msg/JointState"}
    action = {"topic": "other", "joints": list(JOINTS), "unit": "m", "lower": [-1, -1], "upper": [1, 1]}
    with pytest.raises(DataError, match=f"'/command' of action holds {TRAJECTORY}; .* says sensor_msgs/msg/JointState"):
        convert(plain, robot(action=action | {"command_rate_hz": 50.0, "source": source}))


def test_a_relative_topic_is_found_under_its_one_namespace(tmp_path):
    events = [camera(range(10)), arm(range(0, 1000, 10)), commands(range(40, 1000, 100))]
    spaced = [[(f"/left{topic}", t, m) for topic, t, m in group] for group in events]
    assert len(convert(bag_of(tmp_path / "one", *spaced))) == 1
    twice = [*spaced, [(f"/right{topic}", t, m) for topic, t, m in events[0]]]
    with pytest.raises(DataError, match="found as /left/camera and /right/camera"):
        convert(bag_of(tmp_path / "two", *twice))


def test_a_robot_file_in_the_bag_that_differs_is_told(tmp_path):
    other = robot(rate_hz=20.0)
    events = [*camera(range(10)), *arm(range(0, 1000, 10)), *commands(range(40, 1000, 100))]
    custom = {"ros_vdd.robot": dump_yaml(other), "ros_vdd.task": "push"}
    folder = write_bag(tmp_path / "bag", events, custom_data=custom)
    ((_, meta),) = convert(folder)
    assert meta["task"] == "push"
    assert meta["warnings"] == ["recorded with another robot file: rate_hz: 20.0 here, 10.0 there"]


def test_a_truncated_mcap_is_refused_and_recovered_on_request(tmp_path):
    events = [*camera(range(10)), *arm(range(0, 1000, 10)), *commands(range(40, 1000, 100))]
    path = write_mcap(tmp_path / "cut.mcap", sorted(events, key=lambda e: e[1]))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match="messages can be read"):
        convert(path)
    ((arrays, meta),) = convert(path, recover=True)
    assert 2 <= len(arrays["action"]) < 10 and any("left out" in w for w in meta["warnings"])


def test_ticks_stay_on_a_rate_that_is_no_whole_number_of_nanoseconds(tmp_path):
    stamps = [START + round(k * 1e9 / 30) for k in range(300)]
    frames = [("/camera", s, image(s, pixels(k % 250))) for k, s in enumerate(stamps)]
    states = [("/joint_states", s, joint_state(s, JOINTS, (k, 0))) for k, s in enumerate(stamps)]
    given = [("/command", s, trajectory(s, JOINTS, (k, 0))) for k, s in enumerate(stamps)]
    ((arrays, _),) = convert(bag_of(tmp_path / "bag", frames, states, given), robot(rate_hz=30.0))
    assert arrays["state"][:, 0].tolist() == list(range(300))
    assert arrays["action"][:, 0].tolist() == list(range(300))


def _recorded(name):
    folder = os.environ.get("ROS_VDD_DATA")
    if not folder:
        pytest.skip("ROS_VDD_DATA names no folder with recorded bags")
    return Path(folder, "bags", name)


def test_a_recorded_bag_gives_gapless_frames_of_its_own_values():
    """Joint states at 19.8 Hz of a mobile manipulator; its own positions serve as the action."""
    bag = Bag.open(_recorded("abitobot_imu_joints"))
    messages = [m.message for m in bag.messages(["/joint_states"])]
    joints = list(messages[0].name)[:3]
    state = {"topic": "/joint_states", "joints": joints, "unit": "rad", "max_age_s": 0.5}
    action = {"topic": "command", "joints": joints, "unit": "rad", "lower": [-9] * 3, "upper": [9] * 3}
    action |= {"command_rate_hz": 10.0, "source": {"topic": "/joint_states"}}
    spec = robot(cameras={}, states={"arm": state}, action=action)
    values = {tuple(np.float32(m.position[:3])) for m in messages}
    episodes = convert(bag.path, spec)
    assert sum(len(a["action"]) for a, _ in episodes) > 800
    for arrays, _ in episodes:
        assert set(np.diff(arrays["stamp_ns"])) == {DT}
        assert set(map(tuple, arrays["state"])) | set(map(tuple, arrays["action"])) <= values


TASKS = {"topic": "goal", "type": "std_msgs/msg/String", "tasks": ["push", "pull", "lift"]}


def goals(*given):
    """Goals by the time in ms at which they are received."""
    return [("/goal", START + round(ms * MS), message if hasattr(message, "data") else text(message)) for ms, message in given]


def told(folder, *given, spec=None):
    """Convert ten ticks with goals beside them; images arrive 30 ms after their stamp."""
    bag_of(folder, camera(range(10)), arm(range(0, 1000, 10)), commands(range(40, 1000, 100)), goals(*given))
    return convert(folder, spec or robot(goal=TASKS))


def test_each_frame_has_the_goal_received_before_its_image(tmp_path):
    ((arrays, _),) = told(tmp_path / "bag", (-50, "push"), (325, "pull"), (326, "lift"), (731, "push"))
    # Image 3 is stamped 300 ms and arrives at 330 ms: on the robot, too, the goal would have been there before it.
    assert arrays["goal"].shape == (10, 3) and arrays["goal"].dtype == np.float32
    assert arrays["goal"].argmax(axis=1).tolist() == [0, 0, 0, 2, 2, 2, 2, 2, 0, 0]
    assert "age_ns.goal" not in arrays


def test_a_goal_needs_no_clock_of_its_own(tmp_path):
    """Recorded by the wall clock, stamped by a simulation that began long ago."""
    late = 77_000 * SECOND
    events = [camera(range(5)), arm(range(0, 500, 10)), commands(range(40, 500, 100)), goals((-1, "pull"), (210, "lift"))]
    folder = bag_of(tmp_path / "bag", [(t, s + late, m) for group in events for t, s, m in group])
    ((arrays, _),) = convert(folder, robot(goal=TASKS))
    assert arrays["goal"].argmax(axis=1).tolist() == [1, 1, 2, 2, 2]


def test_frames_before_the_first_goal_are_left_out(tmp_path):
    ((arrays, _),) = told(tmp_path / "bag", (340, "pull"))
    assert arrays["stamp_ns"].tolist() == [START + k * DT for k in range(4, 10)]


def test_a_goal_that_comes_too_late_is_told(tmp_path):
    with pytest.raises(DataError, match=r"goal \(topic '/goal'\): it came after the last message of the first stream"):
        told(tmp_path / "bag", (3000, "push"))


def test_a_bag_without_the_goal_s_topic_is_refused(tmp_path):
    bag_of(tmp_path / "bag", camera(range(10)), arm(range(0, 1000, 10)), commands(range(40, 1000, 100)))
    with pytest.raises(DataError, match="topic 'goal' of goal is absent"):
        convert(tmp_path / "bag", robot(goal=TASKS))


def test_an_unknown_task_is_refused_and_the_goal_before_stays(tmp_path):
    ((arrays, meta),) = told(tmp_path / "bag", (-50, "push"), (300, "sweep"), (601, "lift"))
    assert arrays["goal"].argmax(axis=1).tolist() == [0] * 6 + [2] * 4
    assert meta["refused"] == {"goal": "1 of 3: 'goal': no task 'sweep'; available: lift, pull, push"}
    with pytest.raises(DataError, match="all 1 messages were refused: 'goal': no task 'sweep'"):
        told(tmp_path / "none", (-50, "sweep"))


def test_a_goal_may_be_a_vector(tmp_path):
    spec = robot(goal={"topic": "goal", "type": "std_msgs/msg/Float32MultiArray", "size": 2})
    ((arrays, _),) = told(tmp_path / "bag", (-50, floats([0.5, -1])), spec=spec)
    assert arrays["goal"].tolist() == [[0.5, -1.0]] * 10


def test_a_goal_of_another_type_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds std_msgs/msg/String; the robot file says std_msgs/msg/Int32"):
        told(tmp_path / "bag", (-50, "push"), spec=robot(goal={**TASKS, "type": "std_msgs/msg/Int32"}))


def test_ticks_by_a_stream_s_clock_are_its_own_stamps(tmp_path):
    """A camera that is nowhere near the grid: each of its images is a frame, none twice and none left out."""
    jitter = [0, 17, -12, 21, -20, 9, 14, -18, 3, 0]
    stamps = [START + k * DT + jitter[k] * MS for k in range(10)]
    frames = [("/camera", s + 30 * MS, image(s, pixels(k))) for k, s in enumerate(stamps)]
    folder = bag_of(tmp_path / "bag", frames, arm(range(0, 1000, 10)), commands(range(5, 1000, 10)))
    ((arrays, _),) = convert(folder, clock="images.top")
    assert arrays["stamp_ns"].tolist() == stamps
    assert arrays["images.top"][:, 0, 0, 0].tolist() == list(range(10))
    assert set(arrays["age_ns.images_top"].tolist()) == {0}
    # The action is the last command before the next image.
    following = [(s - START) / MS for s in stamps[1:]]
    assert arrays["action"][:-1, 0].tolist() == [max(c for c in range(5, 1000, 10) if c < t) for t in following]
    even = convert(folder)[0][0]
    assert even["images.top"][:, 0, 0, 0].tolist() != list(range(10))


def test_a_faster_clock_gives_every_nth_stamp(tmp_path):
    frames = [("/camera", START + k * 33 * MS, image(START + k * 33 * MS, pixels(k))) for k in range(30)]
    folder = bag_of(tmp_path / "bag", frames, arm(range(0, 1000, 10)), commands(range(5, 1000, 10)))
    ((arrays, _),) = convert(folder, clock="images.top")
    assert arrays["images.top"][:, 0, 0, 0].tolist() == list(range(0, 30, 3))


def test_a_silent_clock_splits_the_episode(tmp_path):
    folder = bag_of(tmp_path / "bag", camera([*range(5), *range(9, 14)]), arm(range(0, 1400, 10)), commands(range(5, 1400, 10)))
    (first, meta), (second, _) = convert(folder, clock="images.top")
    assert first["images.top"][:, 0, 0, 0].tolist() == list(range(5))
    assert second["images.top"][:, 0, 0, 0].tolist() == list(range(9, 14))
    assert "'images.top' is silent" in meta["left_out_around"]


def test_an_unknown_clock_is_told(plain):
    with pytest.raises(ConfigError, match="clock 'images.tip' is no observed stream; .*did you mean 'images.top'"):
        convert(plain, clock="images.tip")


def test_stale_samples_are_kept_on_request_with_their_age(tmp_path):
    seen = camera([*range(10), *range(15, 25)])
    folder = bag_of(tmp_path / "bag", seen, arm(range(0, 2500, 10)), commands(range(40, 2500, 100)))
    ((arrays, _),) = convert(folder, stale="keep")
    assert ((arrays["stamp_ns"] - START) // DT).tolist() == list(range(25))
    assert arrays["images.top"][:, 0, 0, 0].tolist() == [*range(10), 9, 9, 9, 9, 9, *range(15, 25)]
    assert (arrays["age_ns.images_top"] // DT).tolist() == [0] * 10 + [1, 2, 3, 4, 5] + [0] * 10
    with pytest.raises(ConfigError, match="'stale' is 'hold'; available: drop, keep"):
        convert(folder, stale="hold")


@pytest.mark.parametrize("rate_hz", [30.0, 29.97, 7.0, 90.0])
def test_the_last_tick_is_not_lost_to_rounding(rate_hz, tmp_path):
    stamps = [START + round(k * 1e9 / rate_hz) for k in range(40)]
    frames = [("/camera", s, image(s, pixels(k))) for k, s in enumerate(stamps)]
    states = [("/joint_states", s, joint_state(s, JOINTS, (k, 0))) for k, s in enumerate(stamps)]
    given = [("/command", s, trajectory(s, JOINTS, (k, 0))) for k, s in enumerate(stamps)]
    ((arrays, _),) = convert(bag_of(tmp_path / "bag", frames, states, given), robot(rate_hz=rate_hz))
    assert arrays["stamp_ns"].tolist() == stamps and arrays["action"][:, 0].tolist() == list(range(40))


def test_the_recorder_s_verdict_travels_with_the_episode(tmp_path):
    events = [*camera(range(10)), *arm(range(0, 1000, 10)), *commands(range(40, 1000, 100))]
    told = {"ros_vdd.verdict": "warn", "ros_vdd.reasons": "idle", "ros_vdd.success": "true"}
    folder = write_bag(tmp_path / "bag", events, custom_data=told)
    ((_, meta),) = convert(folder)
    assert (meta["verdict"], meta["reasons"], meta["success"]) == ("warn", "idle", "true")


def test_joint_states_without_names_are_refused_with_the_reason(tmp_path):
    nameless = [("/joint_states", START + k * DT, joint_state(START + k * DT, (), (k, 0))) for k in range(10)]
    folder = bag_of(tmp_path / "bag", camera(range(10)), nameless, commands(range(40, 1000, 100)))
    with pytest.raises(DataError, match="states_arm .*all 10 messages were refused: JointState names no joints"):
        convert(folder)


def test_joints_in_another_order_and_from_several_publishers_are_put_together(tmp_path):
    """x and y from two publishers at different rates, beside a third with joints nobody asked for; names in any order."""
    xs = [("/joint_states", START + ms * MS, joint_state(START + ms * MS, ("w", "x"), (-1, ms))) for ms in range(0, 1000, 10)]
    late = range(0, 1000, 40)
    ys = [("/joint_states", START + ms * MS + 1, joint_state(START + ms * MS, ("y", "v", "u"), (ms, -1, -1))) for ms in late]
    other = [("/joint_states", START + ms * MS + 2, joint_state(START + ms * MS, ("z",), (7,))) for ms in range(0, 1000, 30)]
    folder = bag_of(tmp_path / "bag", camera(range(10)), xs, ys, other, commands(range(40, 1000, 100)))
    ((arrays, meta),) = convert(folder)
    assert arrays["state"].tolist() == [[k * 100, k * 100 // 40 * 40] for k in range(10)]
    assert (arrays["age_ns.states_arm"] // MS).tolist() == [k * 100 % 40 for k in range(10)]
    assert meta["refused"] == {}


def test_velocity_only_joint_states_are_no_positions(tmp_path):
    moving = [("/joint_states", START + k * DT, joint_state(START + k * DT, JOINTS, (), (k, -k))) for k in range(10)]
    folder = bag_of(tmp_path / "bag", camera(range(10)), moving, commands(range(40, 1000, 100)))
    with pytest.raises(DataError, match="none of 10 messages holds it: states_arm: position of joint 'x': never received"):
        convert(folder)
    elsewhere = {"topic": "joint_states", "joints": ["xx"], "unit": "m", "max_age_s": 0.15}
    with pytest.raises(DataError, match="joint 'xx': never received; joints on the topic: available: x, y; did you mean 'x'"):
        convert(folder, robot(states={"arm": elsewhere}, safe_action={"kind": "stop", "stale_chunk_s": 1.0}))
    state = {"topic": "joint_states", "joints": list(JOINTS), "unit": "m", "fields": ["velocity"], "max_age_s": 0.15}
    spec = robot(states={"arm": state}, safe_action={"kind": "stop", "stale_chunk_s": 1.0})
    ((arrays, _),) = convert(folder, spec)
    assert arrays["state"].tolist() == [[k, -k] for k in range(10)]


def test_velocity_only_commands_are_refused_as_actions(tmp_path):
    given = [("/joint_commands", START + k * DT, joint_state(START + k * DT, JOINTS, (), (k, -k))) for k in range(10)]
    folder = bag_of(tmp_path / "bag", camera(range(10)), arm(range(0, 1000, 10)), given)
    with pytest.raises(DataError, match=r"action .*all 10 messages were refused: JointState has 0 positions for 2 joints"):
        convert(folder, robot({"topic": "joint_commands", "type": "sensor_msgs/msg/JointState"}))


def test_a_header_clock_of_another_domain_is_told_or_bridged_by_the_choice_of_stamp(tmp_path):
    """Joint states stamped by a simulation that began at zero, 1000 s from the wall clock of all else."""
    simulated = [("/joint_states", START + ms * MS, joint_state(ms * MS + 1, JOINTS, (ms, -ms))) for ms in range(0, 1000, 10)]
    folder = bag_of(tmp_path / "bag", camera(range(10)), simulated, commands(range(40, 1000, 100)))
    with pytest.raises(DataError, match=r"at no time is every stream there.*choose stamp: header or stamp: receive per stream"):
        convert(folder)
    state = {"topic": "joint_states", "joints": list(JOINTS), "unit": "m", "max_age_s": 0.15, "stamp": "receive"}
    ((arrays, _),) = convert(folder, robot(states={"arm": state}))
    assert arrays["state"][:, 0].tolist() == [k * 100 for k in range(10)]


def test_pictures_beyond_the_limit_wait_on_disk_and_are_the_same(plain, monkeypatch, tmp_path):
    ((expected, _),) = convert(plain)
    monkeypatch.setattr(bag_convert, "FrameFile", lambda shape, folder: FrameFile(shape, folder, limit=3 * 24))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ((arrays, _),) = convert(plain)
    assert isinstance(arrays["images.top"], np.memmap) and not list(tmp_path.glob("ros_vdd_*"))
    np.testing.assert_array_equal(arrays["images.top"], expected["images.top"])
