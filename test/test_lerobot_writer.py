# SPDX-License-Identifier: Apache-2.0
"""A LeRobotDataset v3.0 of ours is what the format says, reads back as it was, and survives a writer that dies."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="LeRobotDatasets need pyarrow")
pytest.importorskip("av", reason="LeRobotDatasets need PyAV")

import pyarrow.parquet as pq  # noqa: E402
import toy  # noqa: E402
from ros_vdd.config import to_plain  # noqa: E402
from ros_vdd.data import lerobot_writer  # noqa: E402
from ros_vdd.data.lerobot import LeRobotReader, episodes_from_lerobot  # noqa: E402
from ros_vdd.data.lerobot_stats import QUANTILES, merge, picture_stats, vector_stats  # noqa: E402
from ros_vdd.data.lerobot_writer import LeRobotWriter  # noqa: E402
from ros_vdd.data.video_writer import choose_encoding, write_video  # noqa: E402
from ros_vdd.errors import DataError  # noqa: E402
from ros_vdd.streams.spec import robot_from_mapping  # noqa: E402

LENGTHS = (5, 3, 4)
KEY = "observation.images.top"


def robot(**camera):
    described = {**to_plain(toy.SEEING)["cameras"]["top"], **camera}
    return robot_from_mapping(to_plain(toy.SEEING) | {"cameras": {"top": described}})


def smooth(count, side):
    """Pictures that a lossy codec keeps: a ramp that moves."""
    ramp = np.linspace(30, 220, side)
    return np.stack(
        [np.clip(ramp[:, None, None] + [0, 8 * k, -8 * k] + 0 * ramp[None, :, None], 0, 255) for k in range(count)]
    ).astype(np.uint8)


def episode(length, seed, spec=toy.SEEING):
    rng = np.random.default_rng(seed)
    return {
        "images.top": smooth(length, spec.cameras["top"].output_shape[0]),
        "state": rng.normal(size=(length, 2)).astype(np.float32),
        "action": rng.normal(size=(length, 2)).astype(np.float32),
        "stamp_ns": 1_795_178_486_591_280_197 + np.arange(length) * 100_000_007,
        "age_ns.action": rng.integers(0, 9999, length),
        "extra.reward": rng.normal(size=length),
    }


def write(root, spec=toy.SEEING, video="lossless", lengths=LENGTHS):
    writer = LeRobotWriter(root, spec, video)
    written = [episode(length, seed, spec) for seed, length in enumerate(lengths)]
    for k, arrays in enumerate(written):
        writer.add(arrays, {"task": f"task {k % 2}", "source": "bag", "source_sha256": f"{k:064d}", "segment": 0})
    writer.finish()
    return written


def test_without_loss_everything_comes_back_exactly(tmp_path):
    written = write(tmp_path / "set")
    read = list(episodes_from_lerobot(tmp_path / "set", toy.SEEING, {}))
    assert len(read) == len(written)
    for k, ((arrays, meta), expected) in enumerate(zip(read, written)):
        assert set(arrays) == set(expected)
        for name, array in expected.items():
            np.testing.assert_array_equal(arrays[name], array, err_msg=name)
            assert arrays[name].dtype == array.dtype
        assert (meta["task"], meta["warnings"]) == (f"task {k % 2}", [])


@pytest.mark.parametrize("video, codec, worst", [("av1", "av1", 8), ("h264", "h264", 8), ("auto", "av1", 8)])
def test_with_loss_numbers_come_back_exactly_and_pictures_nearly(video, codec, worst, tmp_path):
    spec = robot(width=64, height=64)
    written = write(tmp_path / "set", spec, video)
    for (arrays, _), expected in zip(episodes_from_lerobot(tmp_path / "set", spec, {}), written):
        np.testing.assert_array_equal(arrays["state"], expected["state"])
        np.testing.assert_array_equal(arrays["action"], expected["action"])
        assert np.abs(arrays["images.top"].astype(int) - expected["images.top"]).max() <= worst
    said = json.loads((tmp_path / "set/meta/info.json").read_text())["features"][KEY]["info"]
    assert (said["video.codec"], said["video.fps"], said["video.height"]) == (codec, 10, 64)


def test_pictures_cropped_and_resized_once_are_not_again(tmp_path):
    spec = robot(crop=[0, 0, 8, 8], resize=[16, 16])  # the policy's size is the camera's: only the mark tells them apart
    written = write(tmp_path / "set", spec)
    for (arrays, _), expected in zip(episodes_from_lerobot(tmp_path / "set", spec, {}), written):
        np.testing.assert_array_equal(arrays["images.top"], expected["images.top"])


@pytest.mark.parametrize(
    "size, kind, chosen",
    [((64, 64), "auto", "av1"), ((62, 64), "auto", "h264"), ((65, 64), "auto", "h264"), ((7, 9), "lossless", "h264")],
)
def test_the_codec_suits_the_size_and_every_size_can_be_written(size, kind, chosen, tmp_path):
    encoding = choose_encoding(kind, *size)
    assert encoding.codec == chosen
    write_video(tmp_path / "v.mp4", np.full((3, *size, 3), 90, np.uint8), 10, encoding)
    assert (tmp_path / "v.mp4").stat().st_size > 100


def test_a_size_or_codec_that_does_not_go_is_told():
    with pytest.raises(DataError, match="AV1 doesn't take pictures of 16x16; .*h264 or lossless"):
        choose_encoding("av1", 16, 16)
    with pytest.raises(DataError, match="video 'av2' isn't known; available: .*did you mean 'av1'"):
        choose_encoding("av2", 16, 16)


def test_the_tables_are_those_of_the_format(tmp_path):
    write(tmp_path / "set")
    root = tmp_path / "set"
    info = json.loads((root / "meta/info.json").read_text())
    said = {
        k: info[k] for k in ("codebase_version", "fps", "total_episodes", "total_frames", "total_tasks", "chunks_size", "splits")
    }
    assert said == {
        "codebase_version": "v3.0", "fps": 10, "total_episodes": 3, "total_frames": 12, "total_tasks": 2, "chunks_size": 1000,
        "splits": {"train": "0:3"},
    }  # fmt: skip
    assert info["features"]["observation.state"] == {"dtype": "float32", "shape": [2], "names": ["a.pos", "b.pos"]}
    rows = [pq.read_table(p).to_pylist()[0] for p in sorted((root / "meta/episodes/chunk-000").glob("*.parquet"))]
    assert [(r["episode_index"], r["dataset_from_index"], r["dataset_to_index"], r["length"]) for r in rows] == [
        (0, 0, 5, 5),
        (1, 5, 8, 3),
        (2, 8, 12, 4),
    ]
    assert [r[f"videos/{KEY}/to_timestamp"] for r in rows] == [0.5, 0.3, 0.4]
    data = pq.read_table(root / "data/chunk-000/file-001.parquet").to_pydict()
    assert (data["index"], data["frame_index"], data["episode_index"], data["task_index"]) == (
        [5, 6, 7],
        [0, 1, 2],
        [1] * 3,
        [1] * 3,
    )
    assert np.abs(np.array(data["timestamp"]) - np.arange(3) / 10).max() < 1e-7
    tasks = pq.read_table(root / "meta/tasks.parquet")
    assert tasks.to_pydict() == {"task_index": [0, 1], "task": ["task 0", "task 1"]}
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]


def test_statistics_are_those_of_all_frames(tmp_path):
    written = write(tmp_path / "set")
    stats = json.loads((tmp_path / "set/meta/stats.json").read_text())
    actions = np.concatenate([w["action"] for w in written])
    np.testing.assert_allclose(stats["action"]["mean"], actions.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats["action"]["std"], actions.std(0), rtol=1e-5)
    for name, q in QUANTILES.items():
        np.testing.assert_allclose(stats["action"][name], np.quantile(actions.astype(np.float64), q, axis=0), rtol=1e-6)
    frames = np.concatenate([w["images.top"] for w in written]) / 255
    np.testing.assert_allclose(np.ravel(stats[KEY]["mean"]), frames.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(np.ravel(stats[KEY]["std"]), frames.std((0, 1, 2)), rtol=1e-6)
    assert (stats["action"]["count"], np.shape(stats[KEY]["min"])) == ([12], (3, 1, 1))


def test_quantiles_of_pictures_are_those_of_their_pixels():
    frames = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3)).astype(np.uint8)
    found = picture_stats(frames)
    for name, q in QUANTILES.items():
        expected = np.quantile(frames.reshape(-1, 3) / 255, q, axis=0, method="inverted_cdf")
        np.testing.assert_allclose(found[name].ravel(), expected)


def test_merging_episodes_gives_mean_and_spread_of_all():
    rng = np.random.default_rng(1)
    parts = [rng.normal(k, 1 + k, (5 + k, 3)) for k in range(4)]
    whole, merged = vector_stats(np.concatenate(parts)), merge([vector_stats(p) for p in parts])
    for key in ("min", "max", "mean", "std", "count"):
        np.testing.assert_allclose(merged[key], whole[key])


def test_a_robot_with_tasks_names_them_and_gets_its_goals_back(tmp_path):
    writer = LeRobotWriter(tmp_path / "set", toy.SEEING_TOLD, "lossless")
    arrays = episode(4, 0) | {"goal": np.eye(3, dtype=np.float32)[[0, 0, 2, 1]]}
    writer.add(arrays, {})
    reader = LeRobotReader(tmp_path / "set", toy.SEEING_TOLD, {})
    np.testing.assert_array_equal(reader.read(reader.episodes[0])[0]["goal"], arrays["goal"])
    by_task = LeRobotReader(tmp_path / "set", toy.SEEING_TOLD, {"goal": "task_index"})
    np.testing.assert_array_equal(by_task.read(by_task.episodes[0])[0]["goal"], arrays["goal"])
    assert reader.episodes[0].tasks == ("push", "lift", "pull")


@pytest.mark.parametrize("step", ["_move", "_write_table", "_replace"])
def test_a_writer_that_dies_leaves_whole_episodes_and_the_next_goes_on(step, tmp_path, monkeypatch):
    """Killed at each of its steps in turn; then what is there reads back, and one more episode makes it complete."""
    original, number = getattr(lerobot_writer, step), 0
    while True:
        root = tmp_path / f"{step}{number}"
        writer = LeRobotWriter(root, toy.SEEING, "lossless")
        writer.add(episode(5, 0), {"task": "a"})
        left = number

        def dying(*args):
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            return original(*args)

        monkeypatch.setattr(lerobot_writer, step, dying)
        try:
            writer.add(episode(3, 1), {"task": "b"})
            survived = True
        except KeyboardInterrupt:
            survived = False
        monkeypatch.setattr(lerobot_writer, step, original)
        reader = LeRobotReader(root, toy.SEEING, {})
        assert [reader.read(e)[0]["action"].shape[0] for e in reader.episodes] in ([5], [5, 3])
        again = LeRobotWriter(root, toy.SEEING, "lossless")
        again.add(episode(4, 2), {"task": "c"})
        again.finish()
        reader = LeRobotReader(root, toy.SEEING, {})
        lengths = [len(reader.read(e)[0]["action"]) for e in reader.episodes]
        assert lengths[0] == 5 and lengths[-1] == 4 and reader.warnings == []
        if survived:
            return
        number += 1


def test_a_second_writer_goes_on_where_the_first_ended(tmp_path):
    write(tmp_path / "set")
    writer = LeRobotWriter(tmp_path / "set", toy.SEEING, "lossless")
    assert [m["source_sha256"] for m in writer.metas()] == [f"{k:064d}" for k in range(3)]
    writer.add(episode(6, 9), {"task": "task 1"})
    reader = LeRobotReader(tmp_path / "set", toy.SEEING, {})
    assert [e.length for e in reader.episodes] == [*LENGTHS, 6] and reader.warnings == []


def test_a_data_set_of_another_robot_or_with_other_arrays_is_not_added_to(tmp_path):
    write(tmp_path / "set")
    with pytest.raises(DataError, match=r"made for another robot file: cameras.top.resize: None here, \[8, 8\] there"):
        LeRobotWriter(tmp_path / "set", robot(resize=[8, 8]), "lossless")
    more = episode(3, 1) | {"extra.more": np.zeros(3)}
    with pytest.raises(DataError, match="other features than this episode: 'extra.more' is .* here, absent there"):
        LeRobotWriter(tmp_path / "set", toy.SEEING, "lossless").add(more, {})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(DataError, match="is no LeRobotDataset of ours"):
        LeRobotWriter(tmp_path / "other", toy.SEEING)


def test_a_flipped_bit_in_our_numbers_is_never_read_as_good(tmp_path):
    written = write(tmp_path / "set", lengths=(40,))
    path = tmp_path / "set/data/chunk-000/file-000.parquet"
    whole = path.read_bytes()
    refused = 0
    for at in np.random.default_rng(0).integers(4, len(whole) - 8, 60):
        data = bytearray(whole)
        data[at] ^= 0x10
        path.write_bytes(data)
        try:
            ((arrays, _),) = episodes_from_lerobot(tmp_path / "set", toy.SEEING, {})
        except DataError:
            refused += 1
            continue
        np.testing.assert_array_equal(arrays["action"], written[0]["action"])
        np.testing.assert_array_equal(arrays["state"], written[0]["state"])
    assert refused > 20


def test_the_lerobot_library_loads_it(tmp_path):
    pytest.importorskip("lerobot", reason="lerobot isn't installed; pip install lerobot beside ros_vdd to run this")
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    spec = robot(width=64, height=64)
    written = write(tmp_path / "set", spec, "h264")
    dataset = LeRobotDataset("ros_vdd/test", root=tmp_path / "set")
    assert (len(dataset), dataset.num_episodes, dataset.fps) == (12, 3, 10)
    item = dataset[6]
    np.testing.assert_array_equal(item["action"].numpy(), written[1]["action"][1])
    np.testing.assert_array_equal(item["observation.state"].numpy(), written[1]["state"][1])
    assert item["task"] == "task 1"
    picture = item[KEY].numpy().transpose(1, 2, 0) * 255
    assert np.abs(picture - written[1]["images.top"][1]).max() <= 8
