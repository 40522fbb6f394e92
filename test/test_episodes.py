# SPDX-License-Identifier: Apache-2.0
"""The episode store gives back what was written, appears whole, and tells what is damaged or doesn't fit."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import toy
from ros_vdd.config import to_plain
from ros_vdd.data.bag_export import BagExport
from ros_vdd.data.episodes import LEFT_OUT, EpisodeStore, EpisodeWriter
from ros_vdd.errors import DataError
from ros_vdd.streams.spec import robot_from_mapping


@pytest.fixture
def arrays():
    return toy.arrays(toy.SEEING, 5, np.random.default_rng(0))


@pytest.fixture
def writer(tmp_path):
    return EpisodeWriter(tmp_path / "store", toy.SEEING)


def test_what_was_written_is_read(writer, arrays):
    assert writer.add(arrays, {"source": "here", "number": 3}) == "episode_000000"
    store = EpisodeStore(writer.root)
    assert len(store) == 1 and store.robot == toy.SEEING
    assert store[0].length == 5 and store[0].meta == {"source": "here", "number": 3}
    assert set(store[0]) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(store[0][name], array)
        assert store[0][name].dtype == array.dtype


def test_arrays_are_mapped_not_loaded(writer, arrays):
    writer.add(arrays, {})
    assert isinstance(EpisodeStore(writer.root)[0]["images.top"], np.memmap)


def test_a_second_writer_appends(writer, arrays):
    writer.add(arrays, {})
    assert EpisodeWriter(writer.root, toy.SEEING).add(arrays, {}) == "episode_000001"
    assert EpisodeStore(writer.root).names == ["episode_000000", "episode_000001"]


def test_an_episode_that_was_left_out_keeps_its_number_and_counts_as_converted(writer, arrays):
    for source in "abc":
        writer.add(arrays, {"source": source})
    (writer.root / LEFT_OUT).mkdir()
    (writer.root / "episode_000002").rename(writer.root / LEFT_OUT / "episode_000002")
    again = EpisodeWriter(writer.root, toy.SEEING)
    assert [meta["source"] for meta in again.metas()] == ["a", "b", "c"]
    assert again.add(arrays, {"source": "d"}) == "episode_000003"
    assert [episode.meta["source"] for episode in EpisodeStore(writer.root)] == ["a", "b", "d"]


def test_an_episode_that_was_left_out_because_it_is_damaged_stops_nobody(writer, arrays):
    writer.add(arrays, {"source": "a"})
    (writer.root / LEFT_OUT / "episode_000001").mkdir(parents=True)
    again = EpisodeWriter(writer.root, toy.SEEING)
    assert [meta["source"] for meta in again.metas()] == ["a"] and again.add(arrays, {}) == "episode_000002"


def test_a_writer_that_dies_leaves_no_half_episode(writer, arrays, monkeypatch):
    writer.add(arrays, {})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        writer.add(arrays, {})
    assert len(EpisodeStore(writer.root)) == 1
    assert EpisodeWriter(writer.root, toy.SEEING).add(arrays, {}) == "episode_000001"


@pytest.mark.parametrize("output", [EpisodeWriter, BagExport])
def test_a_writer_that_dies_over_the_description_leaves_a_folder_to_begin_in(output, tmp_path, monkeypatch):
    def write_half(path, text, **options):
        path.write_bytes(text.encode()[:50])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "write_text", write_half)
        output(tmp_path / "out", toy.SEEING)
    assert list(output(tmp_path / "out", toy.SEEING).metas()) == []


def test_a_store_of_another_robot_is_not_added_to(writer):
    other = robot_from_mapping({**to_plain(toy.SEEING), "rate_hz": 20.0})
    with pytest.raises(DataError, match="made for another robot file: rate_hz: 10.0 here, 20.0 there"):
        EpisodeWriter(writer.root, other)


def test_a_folder_of_something_else_is_not_written_to(tmp_path):
    (tmp_path / "thesis.tex").write_text("dear")
    for taken in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(DataError, match="exists and is no episode store"):
            EpisodeWriter(taken, toy.SEEING)


@pytest.mark.parametrize(
    "change, told",
    [
        ({"state": None}, "lacks state"),
        ({"stamp_ns": None}, "lacks stamp_ns"),
        ({"state": np.zeros((5, 3), np.float32)}, r"'state' is float32\(5, 3\); expected float32\(5, 2\)"),
        ({"state": np.zeros((4, 2), np.float32)}, r"\(4, 2\); expected float32\(5, 2\)"),
        ({"action": np.zeros((5, 2))}, "'action' is float64"),
        ({"images.top": np.zeros((5, 16, 16, 3), np.float32)}, "expected uint8"),
        ({"state": np.float32([[0, 0], [0, 0], [0, np.nan], [0, 0], [0, 0]])}, "NaN or infinity, first at frame 2"),
        ({"extra.a.b": np.zeros(5)}, "array name 'extra.a.b'"),
        ({"../outside": np.zeros(5)}, "array name '../outside'"),
    ],
)
def test_an_episode_that_doesnt_fit_is_refused(change, told, writer, arrays):
    given = {k: v for k, v in {**arrays, **change}.items() if v is not None}
    with pytest.raises(DataError, match=told):
        writer.add(given, {})
    assert len(EpisodeStore(writer.root)) == 0


def test_an_episode_without_frames_is_refused(writer, arrays):
    with pytest.raises(DataError, match="no frames"):
        writer.add({k: v[:0] for k, v in arrays.items()}, {})


def test_a_place_without_a_store_is_told(tmp_path):
    with pytest.raises(DataError, match="not an episode store.*ros-vdd convert"):
        EpisodeStore(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "format: ros_vdd/episodes/1\n", "format: [1\n", "format: ros_vdd/episodes/1\nrobot: 3\n"]
)
def test_a_damaged_store_description_is_told(text, writer):
    (writer.root / "store.yaml").write_text(text)
    with pytest.raises(DataError, match="store.yaml"):
        EpisodeStore(writer.root)


def test_a_newer_format_is_told(writer):
    text = (writer.root / "store.yaml").read_text().replace("episodes/1", "episodes/2")
    (writer.root / "store.yaml").write_text(text)
    with pytest.raises(DataError, match="format is 'ros_vdd/episodes/2'; this version reads"):
        EpisodeStore(writer.root)


def test_damaged_episode_files_are_told(writer, arrays):
    folder = writer.root / writer.add(arrays, {})
    whole = (folder / "state.npy").read_bytes()
    for spoiled in (whole[:-1], whole[:20], b"", b"PK\x03\x04" + whole, b"\x80\x04K\x01."):  # a zip file; a pickle
        (folder / "state.npy").write_bytes(spoiled)
        with pytest.raises(DataError, match="state'?.npy.*convert the episode again"):
            EpisodeStore(writer.root)[0]["state"]
    np.save(folder / "state.npy", arrays["state"][:4])
    with pytest.raises(DataError, match=r"holds float32\(4, 2\), meta.yaml says float32\(5, 2\)"):
        EpisodeStore(writer.root)[0]["state"]
    (folder / "state.npy").unlink()
    with pytest.raises(DataError, match="can't be read"):
        EpisodeStore(writer.root)[0]["state"]


@pytest.mark.parametrize(
    "text", ["", "length: 5\n", "length: many\nmeta: {}\narrays: {}\n", "length: 5\nmeta: {}\narrays: {state: 3}\n"]
)
def test_damaged_episode_descriptions_are_told(text, writer, arrays):
    folder = writer.root / writer.add(arrays, {})
    (folder / "meta.yaml").write_text(text)
    with pytest.raises(DataError, match="meta.yaml.*convert again"):
        EpisodeStore(writer.root)[0]


def test_an_array_that_isnt_there_is_told_with_the_nearest(writer, arrays):
    writer.add(arrays, {})
    episode = EpisodeStore(writer.root)[0]
    assert "stat" not in episode and "state" in episode
    with pytest.raises(DataError, match="no array 'stat'.*did you mean 'state'"):
        episode["stat"]


def test_the_fingerprint_names_the_data(writer, arrays):
    writer.add(arrays, {})
    before = EpisodeStore(writer.root).fingerprint()
    assert EpisodeStore(writer.root).fingerprint() == before
    writer.add(arrays, {})
    assert EpisodeStore(writer.root).fingerprint() != before
