# SPDX-License-Identifier: Apache-2.0
"""Episodes become bags that independent readers open, and that convert to equal arrays again."""

from __future__ import annotations

import numpy as np
import pytest
import toy
from make_bags import STORE
from rosbags.highlevel import AnyReader
from ros_vdd.config import to_plain
from ros_vdd.data.bag import Bag
from ros_vdd.data.bag_convert import episodes_from_bag
from ros_vdd.data.bag_export import BagExport, bag_robot
from ros_vdd.data.episodes import EpisodeWriter, stage_episode
from ros_vdd.errors import DataError
from ros_vdd.streams.spec import load_robot, robot_from_mapping

START = 1_795_178_486_591_280_197


def robot(**changes):
    whole = to_plain(toy.SEEING)
    camera = {
        "topic": "side",
        "type": "sensor_msgs/msg/CompressedImage",
        "width": 640,
        "height": 480,
        "resize": [8, 6],
        "max_age_s": 0.01,
    }
    wrist = {"topic": "/wrist_states", "joints": ["c", "a"], "fields": ["velocity", "effort"], "unit": "rad", "max_age_s": 0.01}
    whole["cameras"] = {**whole["cameras"], "side": camera}
    whole["states"] = {**whole["states"], "wrist": wrist}
    return robot_from_mapping(whole | changes)


def episode(spec, length=7, seed=0):
    rng = np.random.default_rng(seed)
    arrays = {
        k: rng.integers(0, 256, (length, *s)).astype(np.uint8) for k, s in spec.observation_shapes().items() if k != "state"
    }
    arrays |= {"state": rng.normal(size=(length, spec.state_size)), "action": rng.normal(size=(length, spec.action_size))}
    arrays = {k: a.astype(np.float32) if a.dtype == np.float64 else a for k, a in arrays.items()}
    if spec.goal:
        arrays["goal"] = np.eye(3, dtype=np.float32)[[0, 0, 2, 2, 1, 0, 0][:length]]
    return arrays | {"stamp_ns": START + np.rint(np.arange(length) * 1e9 / spec.rate_hz).astype(np.int64)}


def export(tmp_path, spec, arrays, meta=None):
    EpisodeWriter(tmp_path / "store", spec)
    bags = BagExport(tmp_path / "bags", spec)
    stage_episode(spec, tmp_path / "staged", arrays, meta or {"task": "push", "source": "x"})
    return tmp_path / "bags" / bags.take(tmp_path / "staged")


ACTIONS = ["trajectory_msgs/msg/JointTrajectory", "sensor_msgs/msg/JointState", "std_msgs/msg/Float64MultiArray"]


@pytest.mark.parametrize("action_type", ACTIONS)
@pytest.mark.parametrize("rate_hz", [10.0, 30.0, 19.7])
def test_converting_an_exported_bag_gives_equal_arrays(action_type, rate_hz, tmp_path):
    spec = robot(rate_hz=rate_hz, action={**to_plain(toy.SEEING)["action"], "type": action_type}, goal=toy.TASKS)
    arrays = episode(spec)
    bag = export(tmp_path, spec, arrays)
    ((again, meta),) = episodes_from_bag(bag, load_robot(tmp_path / "bags" / "robot.yaml"))
    for name, expected in arrays.items():
        np.testing.assert_array_equal(again[name], expected, err_msg=name)
        assert again[name].dtype == expected.dtype
    assert (meta["task"], meta["warnings"], meta["refused"]) == ("push", [], {})


@pytest.mark.parametrize("rate_hz, first_tick", [(28.57, 0), (30.0, 0), (30.0, 1), (30.0, 2)])
def test_stamps_rounded_in_another_way_still_give_every_frame_its_own_pair(rate_hz, first_tick, tmp_path):
    """Simulators count by whole periods; a segment's first tick was itself rounded: neither is k / rate from the first frame."""
    spec = robot(rate_hz=rate_hz)
    arrays = episode(spec)
    if first_tick == 0:
        arrays["stamp_ns"] = START + np.arange(7) * spec.dt_ns
    else:
        arrays["stamp_ns"] = START + np.rint(np.arange(first_tick, first_tick + 7) * 1e9 / rate_hz).astype(np.int64)
    ((again, meta),) = episodes_from_bag(export(tmp_path, spec, arrays), bag_robot(spec))
    for name in arrays.keys() - {"stamp_ns"}:
        np.testing.assert_array_equal(again[name], arrays[name], err_msg=name)
    assert np.abs(again["stamp_ns"] - arrays["stamp_ns"]).max() <= 2 and meta["refused"] == {}


def test_stamps_of_a_stream_s_own_clock_are_kept(tmp_path):
    spec = robot()
    arrays = episode(spec)
    arrays["stamp_ns"] = arrays["stamp_ns"] + np.array([0, 3, -2, 5, 0, -4, 1]) * spec.dt_ns // 50
    ((again, _),) = episodes_from_bag(export(tmp_path, spec, arrays), bag_robot(spec), clock="images.top")
    for name in arrays:
        np.testing.assert_array_equal(again[name], arrays[name], err_msg=name)


def test_actions_shown_by_a_leader_arm_are_exported_as_commands(tmp_path):
    action = {**to_plain(toy.SEEING)["action"], "source": {"topic": "joint_states", "type": "sensor_msgs/msg/JointState"}}
    spec = robot(action=action)
    arrays = episode(spec)
    ((again, _),) = episodes_from_bag(export(tmp_path, spec, arrays), bag_robot(spec))
    np.testing.assert_array_equal(again["action"], arrays["action"])
    np.testing.assert_array_equal(again["state"], arrays["state"])


def test_an_episode_without_a_clock_begins_at_one_second(tmp_path):
    spec = robot()
    arrays = episode(spec)
    arrays["stamp_ns"] = arrays["stamp_ns"] - START
    ((again, _),) = episodes_from_bag(export(tmp_path, spec, arrays), bag_robot(spec))
    np.testing.assert_array_equal(again["stamp_ns"], arrays["stamp_ns"] + 1_000_000_000)
    np.testing.assert_array_equal(again["action"], arrays["action"])


def test_an_independent_reader_finds_every_message(tmp_path):
    spec = robot()
    arrays = episode(spec)
    bag = export(tmp_path, spec, arrays)
    with AnyReader([bag], default_typestore=STORE) as reader:
        found = {}
        for connection, stamp, raw in reader.messages():
            message = reader.deserialize(raw, connection.msgtype)
            found.setdefault(connection.topic, []).append((stamp, message))
    assert {topic: len(messages) for topic, messages in found.items()} == dict.fromkeys(
        ["/camera", "/side", "/joint_states", "/wrist_states", "/command"], 7
    )
    stamp, message = found["/camera"][3]
    assert stamp == arrays["stamp_ns"][3] == message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
    np.testing.assert_array_equal(message.data.reshape(16, 16, 3), arrays["images.top"][3])
    assert Bag.open(bag).custom_data["ros_vdd.source"] == "x"


def test_what_a_dead_writer_left_is_cleared_and_numbers_go_on(tmp_path):
    spec = robot()
    export(tmp_path, spec, episode(spec))
    (tmp_path / "bags" / "episode_000001.partial").mkdir()
    bag = export(tmp_path, spec, episode(spec), {"source_sha256": "ab", "segment": 0})
    assert bag.name == "episode_000001" and not list((tmp_path / "bags").glob("*.partial"))
    assert [m.get("source_sha256") for m in BagExport(tmp_path / "bags", spec).metas()] == [None, "ab"]


def test_another_robot_or_a_folder_of_something_else_is_refused(tmp_path):
    export(tmp_path, robot(), episode(robot()))
    with pytest.raises(DataError, match="of another robot file: rate_hz: 10.0 here, 5.0 there"):
        BagExport(tmp_path / "bags", robot(rate_hz=5.0))
    with pytest.raises(DataError, match="holds no bags of ours"):
        BagExport(tmp_path / "store", robot())
