# SPDX-License-Identifier: Apache-2.0
"""Bags of both storage formats are read as written; a damaged or foreign one is refused in words."""

import gc
import itertools
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
import zstandard
from make_bags import SECOND, STORE, image, joint_state, serialize, write_bag, write_mcap, write_raw
from mcap.records import Statistics
from mcap.writer import CompressionType, IndexType, Writer as McapWriter
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

from ros_vdd.data import bag_mcap, mcap_scan
from ros_vdd.data.bag import Bag
from ros_vdd.errors import DataError

JOINT_STATE = "sensor_msgs/msg/JointState"
DEFINITION = STORE.generate_msgdef(JOINT_STATE, ros_version=2)[0]
TEN = [("/joint_states", i * SECOND, joint_state(i * SECOND, position=(i, -i))) for i in range(10)]


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_messages_come_back_as_written(tmp_path, storage):
    bag = Bag.open(write_bag(tmp_path / "bag", TEN, storage, {"robot": "text"}))
    read = list(bag.messages(["/joint_states"]))
    assert [m.log_time_ns for m in read] == [i * SECOND for i in range(10)]
    assert [tuple(m.message.position) for m in read] == [(i, -i) for i in range(10)]
    assert [m.message.header.stamp.sec for m in read] == list(range(10))
    assert bag.topics == {"/joint_states": ("sensor_msgs/msg/JointState", 10)}
    assert (bag.custom_data, bag.warnings, bag.storage) == ({"robot": "text"}, [], storage)


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_single_file_is_read_with_a_warning(tmp_path, storage):
    folder = write_bag(tmp_path / "bag", TEN, storage)
    file = next(p for p in folder.iterdir() if p.suffix in (".mcap", ".db3"))
    bag = Bag.open(file)
    assert len(list(bag.messages())) == 10
    assert "read alone" in bag.warnings[0]


def test_an_mcap_folder_without_metadata_is_read_with_a_warning(tmp_path):
    folder = write_bag(tmp_path / "bag", TEN)
    (folder / "metadata.yaml").unlink()
    bag = Bag.open(folder)
    assert len(list(bag.messages())) == 10
    assert "no metadata.yaml" in bag.warnings[0]


def test_a_sqlite_folder_without_metadata_is_refused(tmp_path):
    folder = write_bag(tmp_path / "bag", TEN, "sqlite3")
    (folder / "metadata.yaml").unlink()
    with pytest.raises(DataError, match="reindex"):
        Bag.open(folder)


def test_a_missing_split_is_named(tmp_path):
    folder = write_bag(tmp_path / "bag", TEN)
    (folder / "bag.mcap").rename(folder / "other.mcap")
    with pytest.raises(DataError, match="names bag.mcap, not in the folder"):
        Bag.open(folder)


def test_splits_are_merged_by_log_time(tmp_path):
    folder = write_bag(tmp_path / "bag", TEN[::2])
    write_mcap(folder / "bag_1.mcap", TEN[1::2])
    metadata = folder / "metadata.yaml"
    metadata.write_text(metadata.read_text().replace("- bag.mcap", "- bag.mcap\n  - bag_1.mcap", 1))
    bag = Bag.open(folder)
    assert bag.topics["/joint_states"].count == 10
    assert [m.log_time_ns for m in bag.messages()] == [i * SECOND for i in range(10)]


def test_messages_out_of_order_in_the_file_are_sorted(tmp_path):
    for name, options in {"indexed": {}, "plain": {"use_chunking": False}}.items():
        path = write_mcap(tmp_path / f"{name}.mcap", TEN[::-1], **options)
        assert [m.log_time_ns for m in Bag.open(path).messages()] == [i * SECOND for i in range(10)]


def test_a_file_without_index_is_sorted_however_far_it_is_out_of_order(tmp_path):
    random = np.random.default_rng(0)
    near = np.argsort(np.arange(200) + random.integers(0, 9, 200))
    for name, order in {"far": random.permutation(200), "near": near, "sorted": np.arange(200)}.items():
        messages = [("/a" if i % 3 else "/b", int(i) * SECOND, joint_state(int(i) * SECOND, position=(i, -i))) for i in order]
        path = write_mcap(tmp_path / f"{name}.mcap", messages, index_types=IndexType.NONE)
        bag = Bag.open(path)
        assert [m.log_time_ns // SECOND for m in bag.messages()] == list(range(200))
        assert [m.log_time_ns // SECOND for m in bag.messages(["/b"])] == list(range(0, 200, 3))


def test_an_unknown_topic_suggests_the_nearest(tmp_path):
    bag = Bag.open(write_bag(tmp_path / "bag", TEN))
    with pytest.raises(DataError, match="did you mean '/joint_states'"):
        bag.messages(["/joint_state"])


def test_a_truncated_mcap_tells_how_many_messages_are_left(tmp_path):
    path = write_mcap(tmp_path / "cut.mcap", TEN)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"middle of a record.* \d+ messages can be read"):
        Bag.open(path)


def test_recovery_returns_only_whole_messages_of_every_truncation(tmp_path):
    whole = write_mcap(tmp_path / "whole.mcap", TEN).read_bytes()
    cut = tmp_path / "cut.mcap"
    expected = [tuple(m.position) for _, _, m in TEN]
    most = 0
    for size in range(0, len(whole), 61):
        cut.write_bytes(whole[:size])
        try:
            bag = Bag.open(cut, recover=True)
        except DataError:
            continue
        left = [tuple(m.message.position) for m in bag.messages()]
        assert left == expected[: len(left)] and len(left) >= most
        assert bag.topics["/joint_states"].count == len(left) and bag.warnings
        most = len(left)
    assert most == 10


def test_a_flipped_bit_in_a_chunk_is_refused_and_recovery_leaves_that_chunk_out(tmp_path):
    path = write_mcap(tmp_path / "flip.mcap", TEN)
    data = bytearray(path.read_bytes())
    at = data.index(serialize(TEN[5][2])) + 30
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="a chunk fails its checksum"):
        list(Bag.open(path).messages())
    bag = Bag.open(path, recover=True)
    left = [int(m.message.position[0]) for m in bag.messages()]
    assert 5 not in left and {0, 9} <= set(left) and "checksum" in bag.warnings[-1]


def test_messages_whose_topic_is_lost_with_a_chunk_are_counted(tmp_path):
    path = write_mcap(tmp_path / "flip.mcap", TEN)
    data = bytearray(path.read_bytes())
    data[data.index(serialize(TEN[0][2])) + 30] ^= 1  # the first chunk, which also describes the topic
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"\d messages are of a topic whose description is lost.*No message is left"):
        Bag.open(path, recover=True)


def test_a_flipped_bit_anywhere_never_yields_a_changed_message(tmp_path):
    whole = write_mcap(tmp_path / "whole.mcap", TEN).read_bytes()
    known = {serialize(m) for _, _, m in TEN}
    path = tmp_path / "flip.mcap"
    for at in np.random.default_rng(0).integers(0, len(whole), 100):
        data = bytearray(whole)
        data[at] ^= 0x10
        path.write_bytes(data)
        try:
            read = [serialize(m.message) for m in Bag.open(path).messages()]
        except DataError:
            continue
        assert set(read) <= known


@pytest.mark.parametrize("profile, encoding, word", [("ros1", "ros1", "ros1"), ("", "json", "json")])
def test_foreign_encodings_are_refused_by_name(tmp_path, profile, encoding, word):
    path = write_mcap(tmp_path / "foreign.mcap", TEN, profile=profile, encoding=encoding)
    with pytest.raises(DataError, match=word):
        Bag.open(path).messages()


def test_a_ros1_bag_and_an_unknown_storage_are_refused(tmp_path):
    (tmp_path / "old.bag").write_bytes(b"#ROSBAG V2.0\n")
    with pytest.raises(DataError, match="ROS 1 bag.*rosbags-convert"):
        Bag.open(tmp_path / "old.bag")
    folder = write_bag(tmp_path / "bag", TEN)
    metadata = folder / "metadata.yaml"
    metadata.write_text(metadata.read_text().replace("storage_identifier: mcap", "storage_identifier: mcab"))
    with pytest.raises(DataError, match="'mcab'; available: mcap, sqlite3; did you mean 'mcap'"):
        Bag.open(folder)


@pytest.mark.parametrize(
    "old, new, words",
    [
        (
            "compression_format: ''\n  compression_mode: ''",
            "compression_format: lz4\n  compression_mode: FILE",
            "compressed as 'lz4'; expected zstd",
        ),
        ("relative_file_paths", "relative_paths", "not the metadata of a recording"),
        ("rosbag2_bagfile_information:", "rosbag2_bagfile_information: [", "not valid YAML"),
    ],
)
def test_metadata_that_can_not_be_followed_is_refused(tmp_path, old, new, words):
    folder = write_bag(tmp_path / "bag", TEN)
    text = (folder / "metadata.yaml").read_text()
    assert old in text
    (folder / "metadata.yaml").write_text(text.replace(old, new))
    with pytest.raises(DataError, match=words):
        Bag.open(folder)


def test_a_damaged_database_is_refused(tmp_path):
    folder = write_bag(tmp_path / "bag", TEN, "sqlite3")
    file = folder / "bag.db3"
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(DataError, match="rosbag2 database"):
        list(Bag.open(folder).messages())


def test_single_messages_compressed_by_rosbag2_are_read(tmp_path):
    writer = Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.SQLITE3)
    writer.set_compression(CompressionMode.MESSAGE, CompressionFormat.ZSTD)
    with writer:
        connection = writer.add_connection("/camera", "sensor_msgs/msg/Image", typestore=STORE)
        writer.write(connection, 7, serialize(image(7, np.full((4, 4, 3), 9))))
    (read,) = Bag.open(tmp_path / "bag").messages()
    assert read.message.data.tolist() == [9] * 48


@pytest.mark.parametrize("storage", [StoragePlugin.SQLITE3, StoragePlugin.MCAP])
def test_bags_compressed_by_rosbags_are_read(tmp_path, storage):
    """Message by message, and whole files; SQLite's are compressed as rosbag2 does, with the ending in the metadata."""
    modes = [CompressionMode.MESSAGE] + [CompressionMode.FILE] * (storage == StoragePlugin.SQLITE3)
    for mode in modes:
        writer = Writer(tmp_path / mode.name, version=8, storage_plugin=storage)
        writer.set_compression(mode, CompressionFormat.ZSTD)
        with writer:
            connection = writer.add_connection("/joint_states", "sensor_msgs/msg/JointState", typestore=STORE)
            for _, stamp, message in TEN:
                writer.write(connection, stamp, serialize(message))
        bag = Bag.open(tmp_path / mode.name)
        assert [int(m.message.position[0]) for m in bag.messages()] == list(range(10))
        assert bag.topics["/joint_states"].count == 10


@pytest.fixture
def packed(tmp_path):
    """A bag whose one file is compressed, as `ros2 bag record --compression-mode file` leaves it."""
    folder = write_bag(tmp_path / "bag", TEN)
    file = folder / "bag.mcap"
    (folder / "bag.mcap.zstd").write_bytes(zstandard.ZstdCompressor().compress(file.read_bytes()))
    file.unlink()
    text = (folder / "metadata.yaml").read_text()
    text = text.replace("compression_format: ''", "compression_format: zstd")
    text = text.replace("compression_mode: ''", "compression_mode: FILE")
    (folder / "metadata.yaml").write_text(text)
    return folder


def test_compressed_files_are_unpacked_for_reading_and_gone_afterwards(packed, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    text = (packed / "metadata.yaml").read_text()
    for named in ("bag.mcap", "bag.mcap.zstd"):  # with the ending and without, as versions differ
        (packed / "metadata.yaml").write_text(text.replace("- bag.mcap", f"- {named}"))
        bag = Bag.open(packed)
        assert [m.log_time_ns for m in bag.messages()] == [i * SECOND for i in range(10)]
        assert len(list((tmp_path / "temporary").rglob("*.mcap"))) == 1
        del bag
        gc.collect()
        assert not list((tmp_path / "temporary").iterdir())
    assert len(list(Bag.open(packed / "bag.mcap.zstd").messages())) == 10
    (packed / "metadata.yaml").unlink()
    assert len(list(Bag.open(packed).messages())) == 10


def test_a_compressed_file_that_is_cut_off_or_none_is_told(packed):
    file = packed / "bag.mcap.zstd"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(DataError, match="bag.mcap.zstd' is cut off; recovery"):
        Bag.open(packed)
    file.write_bytes(b"no zstd at all")
    with pytest.raises(DataError, match="bag.mcap.zstd' can't be unpacked"):
        Bag.open(packed)
    file.unlink()
    with pytest.raises(DataError, match="names bag.mcap"):
        Bag.open(packed)


@pytest.mark.parametrize("version", range(4, 10))
@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_metadata_of_every_version_is_read(tmp_path, version, storage):
    """Version 4 has neither files nor custom_data, 5 to 8 no distribution or hash, up to 8 profiles are text with numbers."""
    folder = write_bag(tmp_path / "bag", TEN, storage, {"robot": "text"})
    path = folder / "metadata.yaml"
    whole = yaml.safe_load(path.read_text())
    inside = whole["rosbag2_bagfile_information"]
    inside["version"] = version
    if version < 9:
        inside.pop("ros_distro", None)
        for topic in inside["topics_with_message_count"]:
            topic["topic_metadata"]["offered_qos_profiles"] = "- history: 1\n  depth: 10\n  reliability: 1\n  durability: 2\n"
            topic["topic_metadata"].pop("type_description_hash", None)
    if version < 6:
        inside.pop("custom_data", None)
    if version < 5:
        inside.pop("files", None)
    path.write_text(yaml.safe_dump(whole))
    bag = Bag.open(folder)
    assert [int(m.message.position[0]) for m in bag.messages()] == list(range(10))
    assert bag.custom_data == ({} if version < 6 else {"robot": "text"})


@pytest.mark.parametrize("given, told", [({"trial": 7, "ok": True}, {"trial": "7", "ok": "True"}), ([1], {}), ("x", {})])
def test_custom_data_of_other_recorders_is_text(tmp_path, given, told):
    folder = write_bag(tmp_path / "bag", TEN, "sqlite3")
    whole = yaml.safe_load((folder / "metadata.yaml").read_text())
    whole["rosbag2_bagfile_information"]["custom_data"] = given
    (folder / "metadata.yaml").write_text(yaml.safe_dump(whole))
    assert Bag.open(folder).custom_data == told


def test_an_mcap_without_statistics_or_index_is_counted_by_reading(tmp_path):
    for name, options in {
        "statistics": {"use_statistics": False},
        "index": {"index_types": IndexType.NONE, "use_statistics": False},
    }.items():
        bag = Bag.open(write_mcap(tmp_path / f"{name}.mcap", TEN, **options))
        assert bag.topics["/joint_states"].count == 10
        assert [m.log_time_ns for m in bag.messages()] == [i * SECOND for i in range(10)]


def test_a_type_name_without_msg_is_understood(tmp_path):
    with (tmp_path / "old.mcap").open("wb") as stream:
        writer = McapWriter(stream)
        writer.start(profile="ros2")
        definition = STORE.generate_msgdef("sensor_msgs/msg/JointState", ros_version=2)[0]
        schema = writer.register_schema("sensor_msgs/JointState", "ros2msg", definition.encode())
        channel = writer.register_channel("/joint_states", "cdr", schema)
        writer.add_message(channel, 5, serialize(TEN[3][2]), 5)
        writer.finish()
    bag = Bag.open(tmp_path / "old.mcap")
    assert bag.topics == {"/joint_states": ("sensor_msgs/msg/JointState", 1)}
    assert [tuple(m.message.position) for m in bag.messages()] == [(3, -3)]


def test_bytes_that_are_no_message_are_told_with_topic_and_time(tmp_path):
    path = write_mcap(tmp_path / "short.mcap", TEN, enable_crcs=False)
    data, raw = path.read_bytes(), serialize(TEN[3][2])
    at = data.index(raw)
    broken = raw[:4] + b"\xff" * (len(raw) - 4)
    path.write_bytes(data[:at] + broken + data[at + len(raw) :])
    with pytest.raises(DataError, match="topic '/joint_states' at 3000000000 ns: .* not a sensor_msgs/msg/JointState"):
        list(Bag.open(path).messages())


def test_what_rclpy_serialized_is_read_with_the_bytes_that_fast_dds_estimated_too_many(tmp_path):
    """Up to four bytes for each of its four sequences, and three for rounding up; with more it is no message."""
    whole = serialize(TEN[3][2])
    whole += bytes(-len(whole) % 4)
    for count, fits in ((0, True), (8, True), (16, True), (24, False)):
        path = tmp_path / f"{count}.mcap"
        write_raw(path, {"/joint_states": (JOINT_STATE, DEFINITION)}, [("/joint_states", 5, whole + b"\xa5" * count)])
        if fits:
            assert [tuple(m.message.position) for m in Bag.open(path).messages()] == [(3, -3)]
            continue
        with pytest.raises(DataError, match="are not a sensor_msgs/msg/JointState message"):
            list(Bag.open(path).messages())


@pytest.mark.parametrize("swapped", [False, True])
def test_versions_of_a_type_on_one_topic_are_refused_where_their_fields_differ(tmp_path, swapped):
    second = "float64 y\nfloat64 x\n" if swapped else "# metres\nfloat64 x\nfloat64 y\n"
    data = [b"\0\1\0\0" + np.array(values).tobytes() for values in ((1.0, 2.0), (3.0, 4.0))]
    for k, text in enumerate(("float64 x\nfloat64 y\n", second)):
        write_raw(tmp_path / f"bag_{k}.mcap", {"/a": ("lab_msgs/msg/Grip", text)}, [("/a", k, data[k])])
    bag = Bag.open(tmp_path)
    if swapped:
        with pytest.raises(DataError, match="topic '/a' carries lab_msgs/msg/Grip in several versions, whose fields differ"):
            bag.messages()
    else:
        assert [(m.message.x, m.message.y) for m in bag.messages()] == [(1.0, 2.0), (3.0, 4.0)]


def test_whatever_part_of_the_index_a_writer_leaves_out_all_messages_are_read(tmp_path):
    switches = ("repeat_channels", "repeat_schemas", "use_chunking", "use_statistics", "use_summary_offsets", "enable_crcs")
    indexes = (IndexType.ALL, IndexType.NONE, IndexType.CHUNK, IndexType.MESSAGE)
    for index_types, chosen in itertools.product(indexes, itertools.product((True, False), repeat=len(switches))):
        (tmp_path / "a.mcap").unlink(missing_ok=True)
        bag = Bag.open(write_mcap(tmp_path / "a.mcap", TEN, index_types=index_types, **dict(zip(switches, chosen))))
        assert bag.topics == {"/joint_states": (JOINT_STATE, 10)}
        assert [m.log_time_ns for m in bag.messages()] == [i * SECOND for i in range(10)]


def test_statistics_without_counts_by_channel_are_no_counts_of_zero(tmp_path, monkeypatch):
    """The MCAP specification: "An empty map indicates this statistic is not available"."""
    written = Statistics.write
    monkeypatch.setattr(Statistics, "write", lambda s, stream: written(replace(s, channel_message_counts={}), stream))
    assert Bag.open(write_mcap(tmp_path / "a.mcap", TEN)).topics["/joint_states"].count == 10


@pytest.mark.parametrize("index_types", [IndexType.ALL, IndexType.NONE])
def test_a_chunk_that_claims_to_be_huge_is_damage_and_not_unpacked(tmp_path, monkeypatch, index_types):
    options = {"compression": CompressionType.ZSTD, "chunk_size": 1 << 20, "index_types": index_types}
    big = [("/joint_states", SECOND, joint_state(SECOND, position=np.zeros(100_000), names=["x"] * 100_000))]
    path = write_mcap(tmp_path / "a.mcap", big, **options)
    for module in (bag_mcap, mcap_scan):
        monkeypatch.setattr(module, "MAX_BYTES", 1 << 20)
    with pytest.raises(DataError, match="is damaged: McapError: a chunk claims to hold [0-9]+ bytes"):
        Bag.open(path)


def test_a_file_that_metadata_does_not_name_is_told(tmp_path):
    """A recorder that crashed behind a split leaves the metadata of before."""
    folder = write_bag(tmp_path / "bag", TEN)
    assert Bag.open(folder).warnings == []
    write_mcap(folder / "bag_1.mcap", TEN)
    (line,) = Bag.open(folder).warnings
    assert "metadata.yaml doesn't name bag_1.mcap beside it" in line


def test_a_packed_file_beside_its_unpacked_self_is_read_once(tmp_path):
    write_mcap(tmp_path / "bag_0.mcap", TEN)
    (tmp_path / "bag_0.mcap.zstd").write_bytes(zstandard.compress((tmp_path / "bag_0.mcap").read_bytes()))
    assert Bag.open(tmp_path).topics["/joint_states"].count == 10


def _real_bags():
    folder = os.environ.get("ROS_VDD_DATA")
    if not folder:
        return [pytest.param(None, marks=pytest.mark.skip(reason="ROS_VDD_DATA names no folder with recorded bags"))]
    return sorted({p.parent for p in Path(folder, "bags").rglob("*") if p.suffix in (".mcap", ".db3")})


@pytest.mark.parametrize("folder", _real_bags(), ids=lambda p: getattr(p, "name", "none"))
def test_recorded_bags_agree_with_an_independent_reader(folder):
    bag = Bag.open(folder)
    source = folder if (folder / "metadata.yaml").exists() else next(folder.glob("*.mcap"))
    with AnyReader([source], default_typestore=STORE) as reader:
        topics = {c.topic: c.msgtype for c in reader.connections if c.msgcount and c.msgtype in STORE.fielddefs}
        chosen = [c for c in reader.connections if c.topic in topics]
        raw = reader.messages(chosen)
        expected = sorted((t, c.topic, repr(reader.deserialize(data, c.msgtype))) for c, t, data in raw)
    assert sorted((m.log_time_ns, m.topic, repr(m.message)) for m in bag.messages(topics)) == expected
