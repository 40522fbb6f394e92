# SPDX-License-Identifier: Apache-2.0
"""LeRobotDatasets of three versions become episodes; frames go by time; what contradicts itself is told by name."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="LeRobotDatasets need pyarrow")
pytest.importorskip("av", reason="LeRobotDatasets need PyAV")

import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import toy  # noqa: E402
from make_lerobot import CAMERA, LENGTHS, TASKS, pictures, write_lerobot, write_video  # noqa: E402
from ros_vdd.config import to_plain  # noqa: E402
from ros_vdd.data import lerobot  # noqa: E402
from ros_vdd.data.episode_check import check_episode  # noqa: E402
from ros_vdd.data.episodes import Episode, stage_episode  # noqa: E402
from ros_vdd.data.frame_file import frame_array  # noqa: E402
from ros_vdd.data.lerobot import LeRobotReader, episodes_from_lerobot, is_lerobot  # noqa: E402
from ros_vdd.errors import DataError  # noqa: E402
from ros_vdd.streams.image_codec import decode_image  # noqa: E402
from ros_vdd.streams.spec import robot_from_mapping  # noqa: E402

VERSIONS = ("v2.0", "v2.1", "v3.0")
MAP = {"state": "observation.state[1:3]"}


def read(root, mapping=MAP, robot=toy.SEEING):
    return list(episodes_from_lerobot(root, robot, mapping))


def robot_with(**changes):
    return robot_from_mapping(to_plain(toy.SEEING) | changes)


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def root(tmp_path):
    write_lerobot(tmp_path / "set", "v2.1")
    return tmp_path / "set"


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_gives_the_rows_and_pictures_that_were_written(version, tmp_path):
    written = write_lerobot(tmp_path / "set", version)
    assert is_lerobot(tmp_path / "set")
    episodes = read(tmp_path / "set")
    assert len(episodes) == len(LENGTHS)
    for e, ((arrays, meta), (columns, frames)) in enumerate(zip(episodes, written)):
        np.testing.assert_array_equal(arrays["images.top"], frames)
        np.testing.assert_array_equal(arrays["state"], columns["observation.state"][:, 1:3])
        np.testing.assert_array_equal(arrays["action"], columns["action"])
        np.testing.assert_array_equal(arrays["stamp_ns"], np.arange(LENGTHS[e]) * 100_000_000)
        np.testing.assert_array_equal(arrays["extra.next_reward"], columns["next.reward"])
        np.testing.assert_array_equal(arrays["extra.observation_state"], columns["observation.state"])
        assert (meta["episode"], meta["task"], meta["source_format"]) == (e, TASKS[e % 2], f"lerobot {version}")
        assert meta["warnings"] == []
        assert {a.dtype.str[1:] for k, a in arrays.items() if k in ("state", "action")} == {"f4"}


def test_pictures_in_av1_are_read(tmp_path):
    flat = np.stack([np.full((64, 64, 3), 20 * k, np.uint8) for k in range(9)])
    written = write_lerobot(tmp_path / "set", "v2.1", size=(64, 64))
    for e, length in enumerate(LENGTHS):
        write_video(
            tmp_path / "set" / "videos/chunk-000" / CAMERA / f"episode_{e:06d}.mp4", flat[e : e + length], 10, "libsvtav1"
        )
    camera = {**to_plain(toy.SEEING)["cameras"]["top"], "width": 64, "height": 64}
    for e, (arrays, _) in enumerate(read(tmp_path / "set", robot=robot_with(cameras={"top": camera}))):
        assert np.abs(arrays["images.top"].astype(int) - flat[e : e + LENGTHS[e]]).max() <= 3
    assert len(written) == 3


def test_pictures_go_through_the_camera_of_the_robot_file(root):
    camera = {**to_plain(toy.SEEING)["cameras"]["top"], "crop": [2, 4, 10, 8], "resize": [5, 4]}
    spec = robot_with(cameras={"top": camera})
    (arrays, _), *_ = read(root, robot=spec)
    frame = pictures(LENGTHS[0])[2]
    message = type("Image", (), {"encoding": "rgb8", "height": 16, "width": 16, "step": 48, "data": frame.ravel()})
    np.testing.assert_array_equal(arrays["images.top"][2], decode_image(message, spec.cameras["top"]))


def test_pictures_of_the_policy_s_size_are_taken_as_they_are(root):
    camera = {**to_plain(toy.SEEING)["cameras"]["top"], "width": 640, "height": 480, "resize": [16, 16]}
    (arrays, _), *_ = read(root, robot=robot_with(cameras={"top": camera}))
    np.testing.assert_array_equal(arrays["images.top"], pictures(LENGTHS[0]))


@pytest.mark.parametrize("encoding", ["mono8", "rgb8"])
def test_a_grey_camera_s_pictures_are_grey_whatever_the_data_set_holds(encoding, root):
    camera = {**to_plain(toy.SEEING)["cameras"]["top"], "encoding": encoding}
    (arrays, _), *_ = read(root, robot=robot_with(cameras={"top": camera}))
    red, green, blue = np.moveaxis(arrays["images.top"].astype(int), -1, 0)
    assert (np.array_equal(red, green) and np.array_equal(green, blue)) == (encoding == "mono8")
    luma = pictures(LENGTHS[0]) @ [0.299, 0.587, 0.114]  # ITU-R BT.601
    assert (np.abs(red - luma).max() <= 1) == (encoding == "mono8")


def test_pictures_of_another_size_are_refused(root):
    camera = {**to_plain(toy.SEEING)["cameras"]["top"], "width": 32, "height": 24}
    with pytest.raises(DataError, match="feature 'observation.images.top': .*16x16 pixels, the robot file says 32x24"):
        read(root, robot=robot_with(cameras={"top": camera}))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_policy_at_half_the_rate_sees_every_second_row_and_the_action_before_its_next_tick(version, tmp_path):
    written = write_lerobot(tmp_path / "set", version, fps=20.0)
    for (arrays, _), (columns, frames) in zip(read(tmp_path / "set"), written):
        n = len(frames) // 2
        np.testing.assert_array_equal(arrays["images.top"], frames[0 : 2 * n : 2])
        np.testing.assert_array_equal(arrays["state"], columns["observation.state"][0 : 2 * n : 2, 1:3])
        np.testing.assert_array_equal(arrays["action"], columns["action"][1 : 2 * n : 2])
        np.testing.assert_array_equal(arrays["stamp_ns"], np.arange(n) * 100_000_000)


@pytest.mark.parametrize("fps", [15.0, 5.0, 12.5])
def test_a_rate_that_is_no_multiple_is_refused(fps, tmp_path):
    write_lerobot(tmp_path / "set", fps=fps)
    with pytest.raises(DataError, match=rf"has {fps:g} rows a second, robot 'toy' asks for 10 Hz"):
        read(tmp_path / "set")


@pytest.mark.parametrize("fps", [0, -5, "ten", True])
def test_a_rate_that_is_none_is_refused(fps, tmp_path):
    write_lerobot(tmp_path / "set", info={"fps": fps})
    with pytest.raises(DataError, match="'fps' is"):
        read(tmp_path / "set")


def test_frames_go_by_their_time_and_never_by_their_number(root):
    """A frame too many, between two rows, shifts none of those behind it."""
    frames = pictures(LENGTHS[1], seed=1)
    times = [0.0, 0.1, 0.14, 0.2, 0.3, 0.4]
    more = np.stack([frames[0], frames[1], np.zeros_like(frames[0]), *frames[2:]])
    write_video(root / "videos/chunk-000" / CAMERA / "episode_000001.mp4", more, 10, times=times)
    np.testing.assert_array_equal(read(root)[1][0]["images.top"], frames)


def test_a_dropped_frame_is_told_with_its_row(root):
    frames = pictures(LENGTHS[1], seed=1)
    write_video(
        root / "videos/chunk-000" / CAMERA / "episode_000001.mp4", np.delete(frames, 2, 0), 10, times=[0.0, 0.1, 0.3, 0.4]
    )
    with pytest.raises(DataError, match=r"episode_000001.mp4' has no frame for row 2 at 0.200 s"):
        read(root)


def test_a_video_that_ends_early_is_told(root):
    write_video(root / "videos/chunk-000" / CAMERA / "episode_000001.mp4", pictures(3), 10)
    with pytest.raises(DataError, match=r"no frame for row 3 at 0.300 s; the nearest stands at 0.200 s"):
        read(root)


def test_a_video_that_lacks_an_episode_s_last_frame_never_gives_the_first_of_the_next_one(tmp_path):
    """Two episodes in one file; without its last frame the first ends where the second begins."""
    written = write_lerobot(tmp_path / "set", "v3.0")
    frames = [written[0][1][:-1], written[1][1]]
    write_video(tmp_path / "set/videos" / CAMERA / "chunk-000/file-000.mp4", np.concatenate(frames), 10)
    path = tmp_path / "set/meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[1][f"videos/{CAMERA}/from_timestamp"] = 0.3
    pq.write_table(pa.Table.from_pylist(rows), path)
    reader = LeRobotReader(tmp_path / "set", toy.SEEING, MAP)
    np.testing.assert_array_equal(reader.read(reader.episodes[1])[0]["images.top"], written[1][1])
    with pytest.raises(DataError, match=r"no frame for row 3 at 0.300 s; the nearest stands at 0.200 s"):
        reader.read(reader.episodes[0])


def test_a_list_of_other_files_is_no_video_whatever_its_name(root):
    """FFmpeg goes by content, and would open what a text file names."""
    video = root / "videos/chunk-000" / CAMERA / "episode_000000.mp4"
    video.rename(video.with_name("real.mp4"))
    video.write_text("ffconcat version 1.0\nfile real.mp4\n")
    with pytest.raises(DataError, match="episode_000000.mp4' can't be decoded"):
        read(root)


def test_colons_spaces_and_letters_of_any_script_in_a_path_are_no_protocol(root, monkeypatch):
    monkeypatch.chdir(root.parent)
    root.rename("http:ü 100%")
    (arrays, _), *_ = read(Path("http:ü 100%"))
    np.testing.assert_array_equal(arrays["images.top"], pictures(LENGTHS[0]))


def test_timestamps_that_begin_later_count_from_the_first_row(tmp_path):
    def later(columns):
        columns["timestamp"] += np.float32(0.1)

    write_lerobot(tmp_path / "set", "v2.0", change=later)
    (arrays, meta), *_ = read(tmp_path / "set")
    np.testing.assert_array_equal(arrays["images.top"], pictures(LENGTHS[0]))
    assert "timestamps begin at 0.100 s" in meta["warnings"][0]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_missing_video_is_told_by_name(version, tmp_path):
    write_lerobot(tmp_path / "set", version)
    last = sorted((tmp_path / "set" / "videos").rglob("*.mp4"))[-1]
    last.unlink()
    episodes = episodes_from_lerobot(tmp_path / "set", toy.SEEING, MAP)
    arrays, meta = next(episodes)
    assert len(arrays["action"]) == LENGTHS[0] and "has no video of episodes 2" in meta["warnings"][0]
    with pytest.raises(DataError, match=f"no video '.*{last.name}'"):
        list(episodes)


def test_a_feature_without_any_file_is_told_with_those_that_have_files(root):
    features = json.loads((root / "meta/info.json").read_text())["features"]
    edit(root / "meta/info.json", features={**features, "observation.images.side": features[CAMERA]})
    (_, meta), *_ = read(root)
    assert meta["warnings"] == ["feature 'observation.images.side' has no video of every episode"]
    with pytest.raises(
        DataError, match=r"'observation.images.side' for 'images.top' .* has no video file.*with files: observation.images.top"
    ):
        read(root, {**MAP, "images.top": "observation.images.side"})


def test_a_video_cut_off_or_of_another_kind_is_told(root):
    video = root / "videos/chunk-000" / CAMERA / "episode_000000.mp4"
    video.write_bytes(video.read_bytes()[:500])
    with pytest.raises(DataError, match="episode_000000.mp4' can't be decoded"):
        read(root)


def test_a_table_that_was_never_closed_is_told(root):
    path = root / "data/chunk-000/episode_000001.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="episode_000001.parquet' can't be read as parquet.*before it closed the file"):
        read(root)
    path.unlink()
    with pytest.raises(DataError, match="no file '.*episode_000001.parquet'"):
        read(root)


def test_wrong_counts_are_told_and_wrong_lengths_refused(root):
    edit(root / "meta/info.json", total_episodes=9, total_frames=1, total_tasks=5, splits={"train": "0:100"})
    (_, meta), *_ = read(root)
    assert meta["warnings"] == [
        "info.json says total_episodes 9, the tables hold 3",
        "info.json says total_frames 1, the tables hold 12",
        "info.json says total_tasks 5, the tables hold 2",
        "info.json says split train 0:100, there are 3 episodes",
    ]
    table = root / "meta/episodes.jsonl"
    table.write_text(table.read_text().replace('"length": 5', '"length": 6'))
    with pytest.raises(DataError, match="episode 1: .*holds 5 rows of it, the table of episodes says 6"):
        read(root)


def test_another_rate_of_the_rows_or_of_the_video_is_told(tmp_path):
    def slower(columns):
        columns["timestamp"] *= np.float32(2)

    write_lerobot(tmp_path / "rows", "v2.1", change=slower)
    with pytest.raises(DataError, match=r"episode 0: row 1 stands 0.2000 s after the first; at 10 Hz expected 0.1000 s"):
        read(tmp_path / "rows")
    write_lerobot(tmp_path / "video", "v2.1")
    features = json.loads((tmp_path / "video/meta/info.json").read_text())["features"]
    features[CAMERA]["info"]["video.fps"] = 30
    edit(tmp_path / "video/meta/info.json", features=features)
    assert read(tmp_path / "video")[0][1]["warnings"] == [f"info.json says fps 10, and 30 of the video '{CAMERA}'"]


def test_rows_out_of_order_are_refused(tmp_path):
    def swap(columns):
        columns["frame_index"][[0, 1]] = [1, 0]

    write_lerobot(tmp_path / "set", change=swap)
    with pytest.raises(DataError, match="episode 0: frame_index doesn't count from 0"):
        read(tmp_path / "set")


@pytest.mark.parametrize("name", ["timestamp", "action", "observation.state"])
def test_a_column_that_info_json_names_but_no_file_holds_is_told(name, tmp_path):
    write_lerobot(tmp_path / "set", drop=(name,))
    with pytest.raises(DataError, match=f"episode 0 has no column '{name}'"):
        read(tmp_path / "set")


@pytest.mark.parametrize(
    "mapping, told",
    [
        ({}, r"'state' of robot 'toy' has shape \(2,\), 'observation.state'.*gives \(5,\).*--map state=observation.state\[0:2\]"),
        ({"state": "observation.stat[0:2]"}, "no feature 'observation.stat.*did you mean 'observation.state'"),
        ({"stat": "action"}, "--map names 'stat'.*did you mean 'state'"),
        ({"state": "observation.state[4:9]"}, r"gives \(1,\)"),
        ({"state": CAMERA}, "'state' can't be 'observation.images.top', which holds videos"),
        ({**MAP, "images.top": "action"}, "'images.top' can't be 'action', which holds float32s"),
    ],
)
def test_a_wrong_map_is_told(mapping, told, root):
    with pytest.raises(DataError, match=told):
        read(root, mapping)


def test_columns_go_by_joint_name_where_the_feature_names_them(root):
    joints = toy.SEEING.action.joints
    features = json.loads((root / "meta/info.json").read_text())["features"]
    features["action"]["names"] = {"motors": [f"{joint}.pos" for joint in reversed(joints)]}
    features["observation.state"]["names"] = ["c", joints[1], "d", "e", joints[0]]
    edit(root / "meta/info.json", features=features)
    plain = LeRobotReader(root, toy.SEEING, {"action": "action[0:2]", "state": "observation.state[0:2]"})
    named = LeRobotReader(root, toy.SEEING, {})
    (by_place, _), (by_name, _) = plain.read(plain.episodes[0]), named.read(named.episodes[0])
    np.testing.assert_array_equal(by_name["action"], by_place["action"][:, ::-1])
    np.testing.assert_array_equal(by_name["state"], by_name["extra.observation_state"][:, [4, 1]])


@pytest.mark.parametrize("suffix", ["", ".pos"])
def test_a_feature_that_names_a_joint_at_another_place_is_never_taken_by_position(suffix, root):
    a, b = toy.SEEING.action.joints
    features = json.loads((root / "meta/info.json").read_text())["features"]
    features["action"]["names"] = [f"{b}{suffix}", "gripper"]
    edit(root / "meta/info.json", features=features)
    with pytest.raises(DataError, match=f"'{b}{suffix}' is value 0 of 'action' and 1 of 'action'.* doesn't name {a}{suffix}"):
        read(root)
    (arrays, _), *_ = read(root, {**MAP, "action": "action[0:2]"})
    assert arrays["action"].shape == (LENGTHS[0], 2)


def test_goals_come_from_the_episode_s_task(tmp_path):
    write_lerobot(tmp_path / "set", "v3.0")
    told = robot_with(goal={"topic": "goal", "type": "std_msgs/msg/String", "tasks": ["pull it", "push it", "lift it"]})
    goals = [arrays["goal"] for arrays, _ in read(tmp_path / "set", robot=told)]
    assert [g.argmax(axis=1).tolist() for g in goals] == [[1] * 4, [0] * 5, [1] * 3]
    other = robot_with(goal={"topic": "goal", "type": "std_msgs/msg/String", "tasks": ["pull it", "lift it"]})
    with pytest.raises(DataError, match="task 0 for 'goal': no task 'push it'; available: lift it, pull it"):
        read(tmp_path / "set", robot=other)


def test_pictures_embedded_in_the_table_are_read(tmp_path):
    import cv2

    write_lerobot(tmp_path / "set", "v2.1")
    features = json.loads((tmp_path / "set/meta/info.json").read_text())["features"]
    features[CAMERA]["dtype"] = "image"
    edit(tmp_path / "set/meta/info.json", features=features)
    for e, length in enumerate(LENGTHS):
        path = tmp_path / "set/data/chunk-000" / f"episode_{e:06d}.parquet"
        png = [{"bytes": cv2.imencode(".png", p[..., ::-1])[1].tobytes(), "path": None} for p in pictures(length, seed=e)]
        pq.write_table(pq.read_table(path).append_column(CAMERA, pa.array(png)), path)
    for e, (arrays, _) in enumerate(read(tmp_path / "set")):
        np.testing.assert_array_equal(arrays["images.top"], pictures(LENGTHS[e], seed=e))


def test_pictures_beyond_the_limit_wait_on_disk_and_are_the_same(root, monkeypatch, tmp_path):
    expected = read(root)
    (tmp_path / "waiting").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "waiting"))
    picture = expected[0][0]["images.top"][0].nbytes
    monkeypatch.setattr(lerobot, "frame_array", lambda shape: frame_array(shape, limit=min(LENGTHS) * picture))
    found = read(root)
    assert [isinstance(arrays["images.top"], np.memmap) for arrays, _ in found] == [n > min(LENGTHS) for n in LENGTHS]
    assert not os.listdir(tmp_path / "waiting")
    for (arrays, _), (whole, _) in zip(found, expected):
        np.testing.assert_array_equal(arrays["images.top"], whole["images.top"])
    longest = LENGTHS.index(max(LENGTHS))
    stage_episode(toy.SEEING, tmp_path / "staged", found[longest][0], {})
    np.testing.assert_array_equal(Episode(tmp_path / "staged")["images.top"], expected[longest][0]["images.top"])


def test_a_disk_without_room_for_pictures_is_told(monkeypatch, tmp_path):
    def full(descriptor, start, size):
        assert size >= 5 * 48
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DataError, match="no room for 0 MB of pictures in '.*': .*No space left on device; free some"):
        frame_array((5, 4, 4, 3), limit=100, folder=tmp_path)
    assert not os.listdir(tmp_path)


def test_columns_that_a_store_can_not_hold_are_left_out_and_told(tmp_path):
    def odd(columns):
        columns["next.reward"][1] = np.nan
        columns["note"] = np.array(["x"] * len(columns["index"]))

    write_lerobot(tmp_path / "set", change=odd)
    (arrays, meta), *_ = read(tmp_path / "set")
    assert "extra.next_reward" not in arrays and "extra.note" not in arrays
    assert meta["warnings"] == [
        "left out: column 'next.reward' holds NaN or infinity",
        "left out: column 'note' holds string; expected numbers",
    ]


def test_columns_of_any_name_become_arrays_that_a_store_takes_and_two_of_one_name_are_told(tmp_path):
    def named(columns):
        for number, name in enumerate(("observation.gripper-force", "joint torque", "extra.left arm", "a.b", "a_b", "größe")):
            columns[name] = np.full(len(columns["index"]), float(number))

    write_lerobot(tmp_path / "set", change=named)
    (arrays, meta), *_ = read(tmp_path / "set")
    found = {name: array[0] for name, array in arrays.items() if name.startswith("extra.") and "observation_state" not in name}
    reward = found.pop("extra.next_reward")
    assert found == {
        "extra.observation_gripper_force": 0, "extra.joint_torque": 1, "extra.left_arm": 2, "extra.a_b": 3, "extra.gr__e": 5,
    }  # fmt: skip
    assert np.isfinite(reward) and check_episode(toy.SEEING, arrays) == LENGTHS[0]
    assert meta["warnings"] == ["left out: column 'a_b' would be 'extra.a_b', which another column is already"]


@pytest.mark.parametrize(
    "change, told",
    [
        ({"codebase_version": "v1.6"}, "version 'v1.6'; this reads v2.0, v2.1, v3.0"),
        ({"features": []}, "'features' is a list; expected names with dtype and shape"),
        ({"chunks_size": 0}, "'chunks_size' is 0; expected files per folder"),
        ({"chunks_size": "many"}, "'chunks_size' is 'many'"),
        ({"features": {"action": 3}}, "feature 'action' is 3; expected dtype and shape"),
        ({"data_path": "../{episode_index}.parquet"}, "leads out of the data set"),
        ({"data_path": "/etc/{episode_index}"}, "leads out of the data set"),
        ({"data_path": "data/{episode}.parquet"}, "names 'episode'; available: episode_chunk, episode_index"),
    ],
)
def test_metadata_that_can_not_be_followed_is_refused(change, told, root):
    edit(root / "meta/info.json", **change)
    with pytest.raises(DataError, match=told):
        read(root)


def test_an_endless_number_in_the_table_of_episodes_is_refused(root):
    (root / "meta/episodes.jsonl").write_text('{"episode_index": 1e400, "length": 4, "tasks": []}')
    with pytest.raises(DataError, match="the table of episodes lacks or misstates"):
        read(root)


@pytest.mark.parametrize("file", ["meta/info.json", "meta/episodes.jsonl"])
@pytest.mark.parametrize("text", ["{", "[1]", "\x00"])
def test_metadata_that_is_no_json_is_refused(file, text, root):
    (root / file).write_text(text)
    with pytest.raises(DataError, match="JSON"):
        read(root)


def test_an_episode_table_that_is_missing_is_named(tmp_path):
    for version, told in (("v2.1", "episodes.jsonl"), ("v3.0", r"meta/episodes/chunk-\*")):
        write_lerobot(tmp_path / version, version)
        for path in (tmp_path / version / "meta").rglob("*"):
            if path.name != "info.json" and path.is_file():
                path.unlink()
        with pytest.raises(DataError, match=told):
            read(tmp_path / version)


def test_a_data_set_recorded_by_others_is_read_with_its_faults_told():
    """GR1 in simulation, v2.0, 20 Hz: five episodes, 2,096 rows, one camera of two that info.json names."""
    folder = os.environ.get("ROS_VDD_DATA")
    if not folder:
        pytest.skip("ROS_VDD_DATA names no folder with recorded data sets")
    joints = [f"motor_{i}" for i in range(22, 29)]
    camera = {"topic": "ego", "width": 256, "height": 256, "resize": [96, 96], "max_age_s": 0.1}
    action = {
        "topic": "command",
        "joints": joints,
        "unit": "rad",
        "lower": [-4.0] * 7,
        "upper": [4.0] * 7,
        "command_rate_hz": 20.0,
    }
    spec = robot_from_mapping(
        {
            "name": "gr1",
            "rate_hz": 20.0,
            "cameras": {"ego": camera},
            "action": action,
            "safe_action": {"kind": "hold", "stale_chunk_s": 1.0},
        }
        | {"states": {"arm": {"topic": "joints", "joints": joints, "unit": "rad", "max_age_s": 0.1}}}
    )
    source = Path(folder, "lerobot", "gr1_sim_picknplace")
    reader = LeRobotReader(source, spec, {"images.ego": "observation.images.ego_view"})
    assert [e.length for e in reader.episodes] == [416, 470, 470, 412, 328]
    arrays, meta = reader.read(reader.episodes[4])
    assert arrays["images.ego"].shape == (328, 96, 96, 3) and arrays["state"].shape == (328, 7)
    assert any("observation.images.egoview" in w for w in meta["warnings"])
    rows = pq.read_table(source / "data/chunk-000/episode_000004.parquet").to_pylist()
    np.testing.assert_array_equal(arrays["action"], np.array([r["action"][22:29] for r in rows], np.float32))
    with pytest.raises(DataError, match="has no video file"):
        LeRobotReader(source, spec, {"images.ego": "observation.images.egoview"})
