# SPDX-License-Identifier: Apache-2.0
"""A recording is complete or called .partial, opens with other readers, and loses little when it is cut off."""

import os
import threading
from pathlib import Path

import pytest
from make_bags import SECOND, STORE, joint_state, serialize, text
from mcap.reader import make_reader
from rosbags.highlevel import AnyReader

from ros_vdd.data.bag import Bag
from ros_vdd.data.bag_metadata import amend_custom_data, read_metadata
from ros_vdd.data.bag_writer import BagWriter
from ros_vdd.data.folder_lock import lock_folder
from ros_vdd.data.mcap_writer import McapWriter
from ros_vdd.errors import DataError

TOPICS = {"/joint_states": "sensor_msgs/msg/JointState", "/camera": "sensor_msgs/msg/Image"}
MS = 1_000_000


class Clock:
    now_ns = 0

    def __call__(self):
        return self.now_ns


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def writer(tmp_path, clock):
    return BagWriter(tmp_path / "episode_000000", TOPICS, {"ros_vdd.robot": "name: r\n"}, clock, ros_distro="jazzy")


def record(writer, clock, count=50, period_ms=10):
    for i in range(count):
        clock.now_ns = i * period_ms * MS
        message = joint_state(i * period_ms * MS, position=(i, -i))
        writer.write("/joint_states", SECOND + clock.now_ns, serialize(message))


def test_an_independent_reader_finds_every_message_the_types_and_their_hashes(writer, clock):
    record(writer, clock)
    with AnyReader([writer.close()]) as reader:  # checks the hash of each type against its definition
        read = [(t, reader.deserialize(raw, c.msgtype)) for c, t, raw in reader.messages()]
        assert {c.topic: (c.msgtype, c.msgcount) for c in reader.connections} == {
            "/joint_states": ("sensor_msgs/msg/JointState", 50),
            "/camera": ("sensor_msgs/msg/Image", 0),
        }
        assert reader.message_count == 50 and reader.duration == 490 * MS + 1
    assert [t for t, _ in read] == [SECOND + i * 10 * MS for i in range(50)]
    assert [tuple(m.position) for _, m in read] == [(i, -i) for i in range(50)]


def test_our_reader_finds_the_custom_data_also_without_metadata(writer, clock):
    record(writer, clock)
    folder = writer.close()
    assert (Bag.open(folder).custom_data, Bag.open(folder).warnings) == ({"ros_vdd.robot": "name: r\n"}, [])
    (folder / "metadata.yaml").unlink()
    assert Bag.open(folder).custom_data == {"ros_vdd.robot": "name: r\n"}


def test_the_folder_appears_under_its_name_only_when_complete(writer, clock):
    record(writer, clock)
    assert not writer.folder.exists() and writer.partial.is_dir()
    writer.close()
    assert writer.folder.is_dir() and not writer.partial.exists()
    assert sorted(p.name for p in writer.folder.iterdir()) == ["episode_000000_0.mcap", "metadata.yaml"]


def test_a_process_that_dies_loses_at_most_one_chunk_period(writer, clock):
    record(writer, clock)  # the last message at 490 ms; nothing is closed
    left = list(Bag.open(writer.partial, recover=True).messages())
    assert [int(m.message.position[0]) for m in left] == list(range(41))  # chunks closed at 100, 200, 300 and 400 ms


def test_a_pause_of_all_topics_leaves_nothing_in_memory(writer, clock):
    record(writer, clock, count=3)
    clock.now_ns += 100 * MS
    writer.flush_if_due()
    assert len(list(Bag.open(writer.partial, recover=True).messages())) == 3


def test_every_chunk_has_a_checksum(writer, clock):
    record(writer, clock)
    with (writer.close() / "episode_000000_0.mcap").open("rb") as stream:
        data = stream.read()
        stream.seek(0)
        chunks = make_reader(stream).get_summary().chunk_indexes
    assert len(chunks) == 5
    for chunk in chunks:
        crc_at = chunk.chunk_start_offset + 9 + 24  # opcode and length, then two times and a size
        assert data[crc_at : crc_at + 4] != b"\0\0\0\0"


def test_nothing_is_overwritten(writer, clock, tmp_path):
    with pytest.raises(DataError, match="episode_000000.partial' exists"):
        BagWriter(writer.folder, TOPICS, {}, clock)
    writer.close()
    with pytest.raises(DataError, match="never overwritten"):
        BagWriter(writer.folder, TOPICS, {}, clock)


def test_a_disk_that_refuses_the_first_bytes_keeps_no_folder(tmp_path, clock, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    locks = []
    monkeypatch.setattr("ros_vdd.data.bag_writer.lock_folder", lambda folder: locks.append(lock_folder(folder)) or locks[-1])
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        BagWriter(tmp_path / "bag", TOPICS, {}, clock)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(locks[0])


def test_what_is_abandoned_on_a_disk_that_can_only_be_read_is_not_locked(writer, clock, monkeypatch):
    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refuse)
    writer.abandon()
    os.close(lock_folder(writer.partial))


def test_an_unknown_type_is_refused_before_anything_is_written(tmp_path, clock):
    with pytest.raises(DataError, match="lab_msgs/msg/Grip"):
        BagWriter(tmp_path / "bag", {"/grip": "lab_msgs/msg/Grip"}, {}, clock)
    assert list(tmp_path.iterdir()) == []


def test_recorded_definitions_equal_those_of_the_type_store(writer, clock):
    folder = writer.close()
    with AnyReader([folder]) as reader:
        for name in TOPICS.values():
            assert reader.typestore.hash_rihs01(name) == STORE.hash_rihs01(name)


@pytest.mark.parametrize("split", [{"split_s": 0.2}, {"split_bytes": 4000}])
def test_a_long_recording_is_split_into_files_that_are_one_recording(tmp_path, clock, split):
    writer = BagWriter(tmp_path / "long", TOPICS, {"a": "1"}, clock, **split)
    record(writer, clock, 100)
    assert writer.counts == {"/joint_states": 100, "/camera": 0}
    folder = writer.close({"b": "2"})
    files = sorted(p.name for p in folder.glob("*.mcap"))
    assert len(files) > 2 and files[0] == "long_0.mcap"
    with AnyReader([folder]) as reader:
        assert [t for _, t, _ in reader.messages()] == [SECOND + i * 10 * MS for i in range(100)]
        assert reader.message_count == 100 and reader.duration == 990 * MS + 1
    bag = Bag.open(folder)
    assert (bag.topics["/joint_states"].count, bag.warnings, bag.custom_data) == (100, [], {"a": "1", "b": "2"})
    entries = read_metadata(folder / "metadata.yaml")["files"]
    assert [entry["path"] for entry in entries] == files and sum(e["message_count"] for e in entries) == 100
    if "split_s" in split:
        assert all(e["duration"]["nanoseconds"] < 200 * MS for e in entries)


def test_what_is_known_only_at_the_end_is_in_metadata_and_in_the_file(writer, clock):
    record(writer, clock)
    folder = writer.close({"ros_vdd.verdict": "warn"})
    for _ in range(2):
        assert Bag.open(folder).custom_data == {"ros_vdd.robot": "name: r\n", "ros_vdd.verdict": "warn"}
        (folder / "metadata.yaml").unlink(missing_ok=True)


def test_custom_data_of_a_finished_recording_can_be_amended_and_all_else_stays(writer, clock):
    record(writer, clock)
    folder = writer.close()
    before = read_metadata(folder / "metadata.yaml")
    amend_custom_data(folder, {"ros_vdd.success": "true"})
    after = read_metadata(folder / "metadata.yaml")
    assert after.pop("custom_data") == {**before.pop("custom_data"), "ros_vdd.success": "true"} and after == before
    with AnyReader([folder]) as reader:
        assert reader.message_count == 50
    assert sorted(p.name for p in folder.iterdir()) == ["episode_000000_0.mcap", "metadata.yaml"]


def test_a_topic_found_later_is_recorded_from_then_on(writer, clock):
    record(writer, clock, 5)
    writer.add_topic("/late", "std_msgs/msg/String")
    writer.write("/late", 2 * SECOND, serialize(text("hello")))
    bag = Bag.open(writer.close())
    assert bag.topics["/late"] == ("std_msgs/msg/String", 1)
    assert [m.message.data for m in bag.messages(["/late"])] == ["hello"]


def test_a_sync_that_takes_its_time_holds_up_no_chunk(tmp_path, clock, monkeypatch):
    gate = threading.Event()
    sync = McapWriter.sync
    monkeypatch.setattr(McapWriter, "sync", lambda self: (gate.wait(30), sync(self)))
    writer = BagWriter(tmp_path / "bag", TOPICS, {}, clock, fsync_s=0.2, sync_beside=True)
    record(writer, clock, 100)
    assert len(list(Bag.open(writer.partial, recover=True).messages())) == 91
    gate.set()
    writer.close()
    assert len(list(Bag.open(writer.folder).messages())) == 100


def test_a_sync_that_fails_beside_is_told_by_the_next_write_or_the_end(tmp_path, clock, monkeypatch):
    def fail(self):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(McapWriter, "sync", fail)
    writer = BagWriter(tmp_path / "bag", TOPICS, {}, clock, fsync_s=0.2, sync_beside=True)
    with pytest.raises(OSError, match="Input/output"):
        record(writer, clock, 50)
        writer.close()
    writer.abandon()
