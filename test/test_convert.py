# SPDX-License-Identifier: Apache-2.0
"""`ros-vdd convert`: sources become one store, added to where it exists; mistakes are told and leave none behind."""

from __future__ import annotations

import shutil
import sys

import numpy as np
import pytest

pytest.importorskip("zarr", reason="the sources of these tests are replay buffers")

import toy  # noqa: E402
from ros_vdd import cli  # noqa: E402
from ros_vdd.config import dump_yaml, to_plain  # noqa: E402
from ros_vdd.data.episodes import LEFT_OUT, EpisodeStore  # noqa: E402
from ros_vdd.errors import ConfigError, DataError  # noqa: E402
from test_replay_buffer import write_buffer  # noqa: E402

MAP = ["--map", "state=state[1:3]", "images.top=img"]


@pytest.fixture
def root(tmp_path):
    (tmp_path / "toy.yaml").write_text(dump_yaml(toy.SEEING), encoding="utf-8")
    write_buffer(tmp_path / "demos.zarr")
    return tmp_path


def convert(root, *more, sources=("demos.zarr",), robot="toy.yaml", mapping=MAP):
    arguments = [
        "convert",
        *(str(root / s) for s in sources),
        "--robot",
        str(root / robot),
        "--out",
        str(root / "store"),
    ]
    return cli.run([*arguments, "--no-progress", *mapping, *more])


def test_a_replay_buffer_becomes_a_store(root, capsys):
    assert convert(root) == 0
    assert "3 episodes, 10 frames (1 s at 10 Hz)" in capsys.readouterr().out
    store = EpisodeStore(root / "store")
    assert [e.length for e in store] == [4, 5, 1]
    assert store.robot == toy.SEEING
    assert store[1].meta["source"] == "demos.zarr" and store[1].meta["episode"] == 1


def test_sources_are_added_in_the_order_given(root):
    write_buffer(root / "more.zarr", action=np.ones((10, 2), np.float32))
    convert(root, sources=("demos.zarr", "more.zarr"))
    assert [e.meta["source"] for e in EpisodeStore(root / "store")] == ["demos.zarr"] * 3 + ["more.zarr"] * 3


def test_what_is_there_already_is_not_added_again_under_any_name(root, capsys):
    shutil.copytree(root / "demos.zarr", root / "copy.zarr")
    convert(root, sources=("demos.zarr", "copy.zarr"))
    assert "copy.zarr: the same content as" in capsys.readouterr().out
    assert convert(root, sources=("copy.zarr",)) == 0
    told = capsys.readouterr().out
    assert "copy.zarr: the same content is there already (3 episodes)" in told and "0 episodes, 0 frames (0 s at 10 Hz)" in told
    assert len(EpisodeStore(root / "store")) == 3
    write_buffer(root / "more.zarr", action=np.ones((10, 2), np.float32))
    convert(root, sources=("copy.zarr", "more.zarr"))
    assert [e.meta["source"] for e in EpisodeStore(root / "store")] == ["demos.zarr"] * 3 + ["more.zarr"] * 3


@pytest.mark.parametrize("left_out", [[0], [2], [0, 1, 2]])
def test_what_a_person_left_out_is_not_brought_back(root, left_out, capsys):
    convert(root)
    (root / "store" / LEFT_OUT).mkdir()
    for number in left_out:
        (root / "store" / f"episode_{number:06d}").rename(root / "store" / LEFT_OUT / f"episode_{number:06d}")
    write_buffer(root / "more.zarr", action=np.ones((10, 2), np.float32))
    convert(root, sources=("demos.zarr", "more.zarr"))
    kept = [n for n in range(3) if n not in left_out]
    assert EpisodeStore(root / "store").names == [f"episode_{number:06d}" for number in [*kept, 3, 4, 5]]


def test_a_store_of_another_robot_is_not_added_to(root):
    convert(root)
    (root / "other.yaml").write_text(dump_yaml({**to_plain(toy.SEEING), "rate_hz": 5.0}), encoding="utf-8")
    with pytest.raises(DataError, match="made for another robot file: rate_hz"):
        convert(root, robot="other.yaml")
    assert len(EpisodeStore(root / "store")) == 3


@pytest.mark.parametrize(
    "mapping, told",
    [
        (["--map", "state"], "--map 'state': expected NAME=ARRAY"),
        (["--map", "=state"], "--map '=state': expected"),
        (["--map", "state=stat[0:2]"], "no array 'stat"),
        ([], r"choose columns with --map state=state\[0:2\]"),
    ],
)
def test_a_wrong_map_is_told_and_leaves_no_store(mapping, told, root):
    with pytest.raises(DataError, match=told):
        convert(root, mapping=mapping)
    assert not (root / "store").exists()


def test_a_source_that_isnt_there_is_told_before_anything_is_written(root):
    with pytest.raises(DataError, match="no file or folder.*nothing.zarr"):
        convert(root, sources=("demos.zarr", "nothing.zarr"))
    assert not (root / "store").exists()


def test_a_zarr_of_something_else_is_told(root):
    (root / "empty.zarr").mkdir()
    with pytest.raises(DataError, match="no meta/episode_ends"):
        convert(root, sources=("empty.zarr",))


def test_a_wrong_robot_is_told(root):
    with pytest.raises(ConfigError, match="no file or folder '.*nobody.yaml'"):
        convert(root, robot="nobody.yaml")


def test_pictures_of_another_size_are_told(root):
    camera = {**to_plain(toy.SEEING)["cameras"]["top"], "resize": [8, 8]}
    (root / "small.yaml").write_text(dump_yaml({**to_plain(toy.SEEING), "cameras": {"top": camera}}), encoding="utf-8")
    with pytest.raises(DataError, match=r"'images.top' of robot 'toy' has shape \(8, 8, 3\).*gives \(16, 16, 3\)"):
        convert(root, robot="small.yaml")


def test_a_damaged_buffer_ends_with_one_message_and_status_two(root, capsys):
    (root / "demos.zarr" / "data" / "img" / "3.0.0.0").unlink()
    arguments = [
        "convert",
        str(root / "demos.zarr"),
        "--robot",
        str(root / "toy.yaml"),
        "--out",
        str(root / "store"),
        "--no-progress",
    ]
    assert cli.main([*arguments, *MAP]) == cli.USER_ERROR
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and "'img' lacks its chunk '3.0.0.0'" in told[0]


def test_missing_zarr_is_told_with_what_to_install(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(DataError, match=r"needs zarr; pip install 'ros_vdd\[data\]'"):
        convert(root)


def test_what_was_converted_is_what_was_recorded(root):
    arrays = write_buffer(root / "again.zarr")
    convert(root)
    frames = np.concatenate([e["images.top"] for e in EpisodeStore(root / "store")])
    np.testing.assert_array_equal(frames, arrays["img"].astype(np.uint8))
