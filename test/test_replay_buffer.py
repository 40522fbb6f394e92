# SPDX-License-Identifier: Apache-2.0
"""Replay buffers (zarr v2, written here byte by byte) become episodes; every damage is one clear error."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

pytest.importorskip("zarr", reason="replay buffers need zarr")

import toy  # noqa: E402
from ros_vdd.config import to_plain  # noqa: E402
from ros_vdd.data.replay_buffer import episodes_from_replay_buffer, is_replay_buffer  # noqa: E402
from ros_vdd.errors import DataError  # noqa: E402
from ros_vdd.streams.spec import robot_from_mapping  # noqa: E402

ENDS = np.array([4, 9, 10], dtype=np.int64)
CHUNK = 3  # frames, so that episodes begin inside chunks
MAP = {"state": "state[1:3]", "action": "action"}


def write_array(folder, array, compress=False):
    """Write a zarr v2 array by its specification: `.zarray` and one file a chunk, the last one padded."""
    import numcodecs

    codec = numcodecs.Zlib() if compress else None
    folder.mkdir(parents=True)
    chunks = [min(CHUNK, len(array)), *array.shape[1:]]
    described = {"zarr_format": 2, "shape": array.shape, "chunks": chunks, "dtype": array.dtype.str, "order": "C"}
    described |= {"fill_value": 0, "filters": None, "compressor": codec.get_config() if codec else None}
    (folder / ".zarray").write_text(json.dumps(described))
    for index in range(-(-len(array) // chunks[0])):
        block = np.zeros(chunks, array.dtype)
        part = array[index * chunks[0] : (index + 1) * chunks[0]]
        block[: len(part)] = part
        name = ".".join([str(index)] + ["0"] * (array.ndim - 1))
        (folder / name).write_bytes(codec.encode(block.tobytes()) if codec else block.tobytes())


def write_buffer(root, compress=False, ends=ENDS, **changes):
    """Write a buffer of ten frames and return its arrays."""
    rng = np.random.default_rng(0)
    arrays = {
        "img": rng.integers(0, 256, (10, 16, 16, 3)).astype(np.float32),
        "state": rng.normal(size=(10, 5)).astype(np.float32),
        "action": rng.normal(size=(10, 2)).astype(np.float32),
        **changes,
    }
    for group in (root, root / "data", root / "meta"):
        group.mkdir(parents=True, exist_ok=True)
        (group / ".zgroup").write_text('{"zarr_format": 2}')
    for name, array in arrays.items():
        write_array(root / "data" / name, array, compress)
    write_array(root / "meta" / "episode_ends", ends)
    return arrays


def read(root, mapping=MAP, robot=toy.SEEING):
    return list(episodes_from_replay_buffer(root, robot, mapping))


@pytest.fixture
def root(tmp_path):
    write_buffer(tmp_path / "buffer.zarr")
    return tmp_path / "buffer.zarr"


@pytest.mark.parametrize("compress", [False, True])
def test_episodes_are_the_slices_between_the_ends(compress, tmp_path):
    arrays = write_buffer(tmp_path / "b.zarr", compress)
    episodes = read(tmp_path / "b.zarr")
    assert len(episodes) == 3
    for (episode, meta), start, end in zip(episodes, [0, 4, 9], ENDS):
        np.testing.assert_array_equal(episode["images.top"], arrays["img"][start:end].astype(np.uint8))
        np.testing.assert_array_equal(episode["state"], arrays["state"][start:end, 1:3])
        np.testing.assert_array_equal(episode["action"], arrays["action"][start:end])
        np.testing.assert_array_equal(episode["stamp_ns"], np.arange(end - start) * 100_000_000)
    assert [meta["episode"] for _, meta in episodes] == [0, 1, 2]


def test_types_are_those_of_the_store(root):
    episode, _ = read(root)[0]
    assert {k: v.dtype.str[1:] for k, v in episode.items() if "extra" not in k} == {
        "images.top": "u1",
        "state": "f4",
        "action": "f4",
        "stamp_ns": "i8",
    }


def test_what_isnt_mapped_whole_is_kept_as_extra(root):
    episode, _ = read(root)[1]
    assert {k for k in episode if k.startswith("extra.")} == {"extra.state"}
    assert episode["extra.state"].shape == (5, 5)


def test_a_grey_camera_s_pictures_are_grey_whatever_the_buffer_holds(root):
    plain = to_plain(toy.SEEING)
    camera = {**plain["cameras"]["top"], "encoding": "mono8"}
    found = read(root, robot=robot_from_mapping({**plain, "cameras": {"top": camera}}))[0][0]["images.top"]
    coloured = read(root)[0][0]["images.top"]
    assert (found == found[..., :1]).all() and np.abs(found[..., 0] - coloured @ [0.299, 0.587, 0.114]).max() <= 1


def test_an_only_camera_is_found_as_img(root):
    assert "images.top" in read(root)[0][0]
    assert "images.top" in read(root, {**MAP, "images.top": "img"})[0][0]


def test_a_missing_chunk_is_an_error_and_never_zeros(root):
    (root / "data" / "state" / "2.0").unlink()
    with pytest.raises(DataError, match=r"'state' lacks its chunk '2.0' \(frames 6 to 8\)"):
        read(root)


def test_a_missing_chunk_of_the_ends_is_an_error(root):
    (root / "meta" / "episode_ends" / "0").unlink()
    with pytest.raises(DataError, match="'episode_ends' lacks its chunk '0'"):
        read(root)


def write_by_zarr(root, zarr_format, empty=True, **options):
    """Write a buffer with the zarr library, version 3; return its actions, of which the first chunk is zeros."""
    zarr = pytest.importorskip("zarr", minversion="3", reason="zarr v3 needs zarr 3")
    group = zarr.open_group(str(root), mode="w", zarr_format=zarr_format)
    actions = np.random.default_rng(0).normal(size=(10, 2)).astype(np.float32)
    actions[:CHUNK] = 0
    arrays = {"img": np.full((10, 16, 16, 3), 7, np.uint8), "state": np.ones((10, 5), np.float32), "action": actions}
    for name, values in [*((f"data/{n}", a) for n, a in arrays.items()), ("meta/episode_ends", ENDS)]:
        chunks = (CHUNK, *values.shape[1:])
        more = {key: (2 * CHUNK, *values.shape[1:]) for key in options} if name.startswith("data") else {}
        array = group.create_array(
            name, shape=values.shape, dtype=values.dtype, chunks=chunks, config={"write_empty_chunks": empty}, **more
        )
        array[...] = values
    return actions


@pytest.mark.parametrize("zarr_format, options", [(2, {}), (3, {}), (3, {"shards": True})])
def test_what_zarr_3_writes_is_read_in_both_formats_and_with_shards(zarr_format, options, tmp_path):
    actions = write_by_zarr(tmp_path / "b.zarr", zarr_format, **options)
    np.testing.assert_array_equal(np.concatenate([e["action"] for e, _ in read(tmp_path / "b.zarr")]), actions)


@pytest.mark.parametrize("zarr_format, chunk", [(2, "0.0"), (3, "c/0/0")])
def test_zeros_that_zarr_3_left_out_are_refused_with_the_remedy(zarr_format, chunk, tmp_path):
    write_by_zarr(tmp_path / "b.zarr", zarr_format, empty=False)
    with pytest.raises(DataError, match=f"'action' lacks its chunk '{chunk}' .*write_empty_chunks"):
        read(tmp_path / "b.zarr")


def test_extras_that_a_store_can_not_hold_are_left_out_and_told(tmp_path):
    numbers = np.ones((10, 2), np.float32)
    write_buffer(tmp_path / "b.zarr", **{"eef-pos quat": numbers, "eef_pos_quat": numbers, "force": numbers * np.nan})
    episode, meta = read(tmp_path / "b.zarr")[0]
    assert {k for k in episode if k.startswith("extra.")} == {"extra.state", "extra.eef_pos_quat"}
    assert meta["warnings"] == [
        "left out: array 'eef_pos_quat' would be 'extra.eef_pos_quat', which another array is already",
        "left out: array 'force' holds NaN or infinity",
    ]


def test_a_number_beside_the_frames_is_no_array_of_theirs(tmp_path):
    write_buffer(tmp_path / "b.zarr")
    described = {"zarr_format": 2, "shape": [], "chunks": [], "dtype": "<f8", "order": "C", "fill_value": 10.0}
    (tmp_path / "b.zarr/data/rate").mkdir()
    (tmp_path / "b.zarr/data/rate/.zarray").write_text(json.dumps(described | {"filters": None, "compressor": None}))
    assert len(read(tmp_path / "b.zarr")) == 3


@pytest.mark.parametrize("ends", [ENDS[:, None], ENDS - 0.5], ids=["table", "halves"])
def test_ends_that_are_no_whole_numbers_are_refused(ends, tmp_path):
    write_buffer(tmp_path / "b.zarr", ends=ends)
    with pytest.raises(DataError, match="expected one whole number an episode"):
        read(tmp_path / "b.zarr")


@pytest.mark.parametrize("compress", [False, True])
def test_a_truncated_chunk_is_an_error(compress, tmp_path):
    write_buffer(tmp_path / "b.zarr", compress)
    chunk = tmp_path / "b.zarr" / "data" / "state" / "0.0"
    chunk.write_bytes(chunk.read_bytes()[:-8])
    with pytest.raises(DataError, match="frames 0 to 3 of 'state' can't be decoded.*copy the folder again"):
        read(tmp_path / "b.zarr")


@pytest.mark.parametrize("text", ["", "{", '{"zarr_format": 2}'])
def test_a_damaged_array_description_is_an_error(text, root):
    (root / "data" / "state" / ".zarray").write_text(text)
    with pytest.raises(DataError, match="replay buffer|no array"):
        read(root)


def test_missing_ends_are_an_error(root):
    shutil.rmtree(root / "meta" / "episode_ends")
    assert not is_replay_buffer(root)
    with pytest.raises(DataError, match="no meta/episode_ends"):
        read(root)


def test_a_buffer_without_data_is_an_error(root):
    shutil.rmtree(root / "data")
    with pytest.raises(DataError, match="can't be read"):
        read(root)


@pytest.mark.parametrize("ends", [[4, 9, 11], [4, 9], [4, 4, 10], [9, 4, 10], [0, 4, 10], [-2, 4, 10]])
def test_ends_that_dont_describe_the_arrays_are_an_error(ends, tmp_path):
    write_buffer(tmp_path / "b.zarr", ends=np.array(ends))
    with pytest.raises(DataError, match="episode_ends .* disagree"):
        read(tmp_path / "b.zarr")


def test_arrays_of_different_length_are_an_error(tmp_path):
    write_buffer(tmp_path / "b.zarr", action=np.zeros((9, 2), np.float32))
    with pytest.raises(DataError, match="'action': 9.*disagree"):
        read(tmp_path / "b.zarr")


@pytest.mark.parametrize(
    "mapping, told",
    [
        (
            {"state": "state"},
            r"'state' of robot 'toy' has shape \(2,\), 'state'.*gives \(5,\).*--map state=state\[0:2\]",
        ),
        ({"state": "state[0:3]"}, r"gives \(3,\)"),
        ({"state": "state[4:6]"}, r"gives \(1,\)"),
        ({"state": "state[2:1]"}, r"gives \(0,\)"),
        ({"state": "stat[0:2]"}, "no array 'stat\\[0:2\\]'.*did you mean 'state'"),
        ({"state": "state[0:"}, "no array"),
        ({"state": "state[0:2]", "actoin": "action"}, "--map names 'actoin'.*did you mean 'action'"),
        ({"state": "state[0:2]", "images.top": "state"}, "change the robot file"),
    ],
)
def test_a_wrong_map_is_told(mapping, told, root):
    with pytest.raises(DataError, match=told):
        read(root, mapping)


@pytest.mark.parametrize("scale, offset", [(2.0, 0.0), (1 / 255, 0.0), (1.0, -1.0), (1.0, np.nan)])
def test_pictures_outside_the_range_of_a_byte_are_never_guessed(scale, offset, tmp_path):
    images = np.full((10, 16, 16, 3), 255.0, np.float32) * scale
    images[0] = offset
    write_buffer(tmp_path / "b.zarr", img=images)
    with pytest.raises(DataError, match="'images.top': float32 values.*expected 0 to 255"):
        read(tmp_path / "b.zarr")


PLACES = np.array([0, 0, 0, 0, 2, 2, 2, 1, 1, 1])


@pytest.mark.parametrize(
    "array, said",
    [
        (PLACES, "task"),
        (PLACES[:, None].astype(np.float32), "task"),
        (np.stack([PLACES * 0, PLACES], axis=1), "task[1:2]"),
        (np.eye(3, dtype=np.float64)[PLACES], "task"),
        (np.eye(5)[PLACES + 1], "task[1:4]"),
    ],
    ids=["numbers", "a column of numbers", "one of several columns", "one-hots", "columns of one-hots"],
)
def test_goals_are_task_numbers_or_vectors(array, said, tmp_path):
    write_buffer(tmp_path / "b.zarr", task=array)
    episodes = read(tmp_path / "b.zarr", {**MAP, "goal": said}, toy.SEEING_TOLD)
    found = np.concatenate([episode["goal"] for episode, _ in episodes])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.eye(3)[PLACES])


@pytest.mark.parametrize(
    "array, said, words",
    [
        (PLACES + 1, "task", "no task 3; available: 0 push, 1 pull, 2 lift"),
        (PLACES * 0.5, "task", "'goal' holds 0.5; expected task numbers, 0 to 2"),
        (np.eye(4)[PLACES], "task", r"'goal' of robot 'toy' has shape \(3,\)"),
        (PLACES, "task[0:1]", r"'goal' of robot 'toy' has shape \(3,\)"),
        (PLACES, "tasks", "no array 'tasks' for 'goal'"),
    ],
)
def test_goals_that_are_none_are_refused(array, said, words, tmp_path):
    write_buffer(tmp_path / "b.zarr", task=array)
    with pytest.raises(DataError, match=words):
        read(tmp_path / "b.zarr", {**MAP, "goal": said}, toy.SEEING_TOLD)
