# SPDX-License-Identifier: Apache-2.0
"""What a crash or damage leaves: every intact chunk, no message that isn't as it was written, a bag others can open."""

import os
import random

import pytest
from make_bags import SECOND, STORE, joint_state, serialize, write_mcap
from mcap.reader import make_reader
from mcap.writer import CompressionType
from rosbags.highlevel import AnyReader

from ros_vdd.data.bag import Bag
from ros_vdd.data.bag_recovery import RECOVERED_KEY, recover, unfinished
from ros_vdd.data.bag_writer import BagWriter, lock_folder
from ros_vdd.data.mcap_chunks import Damage, scan
from ros_vdd.errors import DataError

TOPICS = {"/joint_states": "sensor_msgs/msg/JointState", "/camera": "sensor_msgs/msg/Image"}
EVER = {"sec": 9223372036, "nsec": 854775807}
QOS = {
    "history": "keep_last", "depth": 5, "reliability": "best_effort", "durability": "volatile", "deadline": EVER,
    "lifespan": EVER, "liveliness": "automatic", "liveliness_lease_duration": EVER, "avoid_ros_namespace_conventions": False,
}  # fmt: skip
MS = 1_000_000


@pytest.fixture(autouse=True)
def no_sync(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)  # takes 20 ms on a disk


class Clock:
    now_ns = 0

    def __call__(self):
        return self.now_ns


def record(folder, count=50, close=False, **options):
    """Write messages 10 ms apart in chunks of 100 ms; return the folder as a killed process leaves it."""
    clock = Clock()
    writer = BagWriter(folder, TOPICS, {"ros_vdd.robot": "name: r\n"}, clock, **options)
    for i in range(count):
        clock.now_ns = i * 10 * MS
        writer.write("/joint_states", SECOND + clock.now_ns, serialize(joint_state(0, position=(i, -i))), i)
    if close:
        return writer.close()
    os.close(writer._lock)
    return writer.partial


def numbers(folder):
    with AnyReader([folder]) as reader:
        return [int(reader.deserialize(raw, c.msgtype).position[0]) for c, _, raw in reader.messages()]


def test_a_killed_recording_is_recovered_with_every_closed_chunk(tmp_path):
    recovered = recover(record(tmp_path / "e", qos={"/joint_states": [QOS]}), "killed", {"note": "n"}, "kilted")
    assert recovered.folder == tmp_path / "e" and recovered.counts == {"/joint_states": 41, "/camera": 0}
    assert sorted(p.name for p in recovered.folder.iterdir()) == ["e_0.mcap", "metadata.yaml"]
    assert numbers(recovered.folder) == list(range(41))
    bag = Bag.open(recovered.folder)
    assert bag.warnings == [] and [int(m.message.position[0]) for m in bag.messages()] == list(range(41))
    assert bag.custom_data["note"] == "n" and bag.custom_data["ros_vdd.robot"] == "name: r\n"
    assert bag.custom_data[RECOVERED_KEY].startswith("killed; ")
    with (recovered.folder / "e_0.mcap").open("rb") as stream:
        reader = make_reader(stream, validate_crcs=True)
        assert reader.get_summary().statistics.message_count == 41
        assert sum(1 for _ in reader.iter_messages(["/joint_states"])) == 41
    with AnyReader([recovered.folder]) as reader:
        (qos,) = next(c for c in reader.connections if c.topic == "/joint_states").ext.offered_qos_profiles
        assert (qos.depth, qos.reliability.name) == (5, "BEST_EFFORT")


def test_the_recovered_file_is_that_of_the_writer_up_to_the_cut(tmp_path):
    partial = record(tmp_path / "e")
    before = (partial / "e_0.mcap").read_bytes()
    after = (recover(partial, "killed").folder / "e_0.mcap").read_bytes()
    assert after.startswith(before)


@pytest.mark.parametrize("split", [{"split_s": 0.2}, {"split_bytes": 3000}])
def test_a_killed_recording_of_several_files_is_recovered_whole(tmp_path, split):
    partial = record(tmp_path / "e", count=100, **split)
    files = len(list(partial.glob("*.mcap")))
    assert files > 2
    assert numbers(recover(partial, "killed").folder) == list(range(91))


def test_a_cut_at_any_byte_keeps_every_whole_chunk(tmp_path):
    whole = (record(tmp_path / "whole") / "whole_0.mcap").read_bytes()
    (tmp_path / "all.mcap").write_bytes(whole)
    chunk_ends = [r.end for r in scan(tmp_path / "all.mcap") if not isinstance(r, Damage) and r.opcode == 6]
    draw = random.Random(1)
    cuts = {draw.randrange(10, len(whole)) for _ in range(15)} | set(chunk_ends) | {e - 1 for e in chunk_ends}
    for number, cut in enumerate(sorted(cuts)):
        partial = tmp_path / f"c{number}.partial"
        partial.mkdir()
        (partial / "c_0.mcap").write_bytes(whole[:cut])
        chunks = sum(end <= cut for end in chunk_ends)
        if not chunks:
            with pytest.raises(DataError, match="no message"):
                recover(partial, "cut")
            continue
        assert numbers(recover(partial, "cut").folder) == list(range(11 + 10 * (chunks - 1))), cut


def test_a_flipped_bit_loses_its_own_chunk_and_no_other(tmp_path):
    whole = bytearray((record(tmp_path / "whole", close=True) / "whole_0.mcap").read_bytes())
    chunks = [r for r in scan(tmp_path / "whole" / "whole_0.mcap") if not isinstance(r, Damage) and r.opcode == 6]
    of_chunk = [range(11), *(range(11 + 10 * k, 21 + 10 * k) for k in range(3)), range(41, 50)]
    draw = random.Random(2)
    bits = [8 * (chunks[2].start + byte) + bit for byte in range(9) for bit in (0, 5)]  # opcode and length
    bits += [draw.randrange(8 * len(whole)) for _ in range(25)]
    for number, position in enumerate(bits):
        broken = bytearray(whole)
        broken[position // 8] ^= 1 << position % 8
        partial = tmp_path / f"b{number}.partial"
        partial.mkdir()
        (partial / "b_0.mcap").write_bytes(broken)
        # The two times in a chunk's head, bytes 9 to 24, are told by its messages as well.
        hit = [k for k, c in enumerate(chunks) if c.start <= position // 8 < c.end and not 9 <= position // 8 - c.start < 25]
        expected = [n for k, held in enumerate(of_chunk) if k not in hit for n in held]
        assert numbers(recover(partial, "damaged").folder) == expected, position


def test_a_file_that_is_damaged_and_cut_has_no_damage_left_inside_of_it(tmp_path):
    partial = record(tmp_path / "e")
    path = partial / "e_0.mcap"
    chunks = [r for r in scan(path) if not isinstance(r, Damage) and r.opcode == 6]
    broken = bytearray(path.read_bytes()[: chunks[-1].end - 5])
    broken[chunks[1].start + 100] ^= 1
    path.write_bytes(broken)
    folder = recover(partial, "damaged").folder
    assert not [found for found in scan(folder / "e_0.mcap") if isinstance(found, Damage)]
    assert numbers(folder) == [*range(11), *range(21, 31)] and Bag.open(folder).warnings == []


def test_an_unfinished_recording_that_is_being_written_is_left_alone(tmp_path):
    writer = BagWriter(tmp_path / "e", TOPICS, {}, Clock())
    assert list(unfinished(tmp_path)) == []
    with pytest.raises(BlockingIOError):
        recover(writer.partial, "killed")
    writer.abandon()
    assert list(unfinished(tmp_path)) == [writer.partial]


def test_a_recording_that_is_completed_meanwhile_does_not_end_the_search(tmp_path, monkeypatch):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.partial").mkdir()

    def lock(folder):
        if folder.name == "a.partial":
            folder.rmdir()
        if folder.name == "b.partial":
            raise PermissionError(13, "Permission denied")
        return lock_folder(folder)

    monkeypatch.setattr("ros_vdd.data.bag_recovery.lock_folder", lock)
    assert [folder.name for folder in unfinished(tmp_path)] == ["b.partial", "c.partial"]


def test_a_recording_that_was_complete_but_for_its_name_is_not_touched(tmp_path):
    folder = record(tmp_path / "e", close=True)
    before = (folder / "e_0.mcap").read_bytes()
    (folder / "metadata.yaml").unlink()
    folder.rename(tmp_path / "e.partial")
    recover(tmp_path / "e.partial", "killed")
    assert (folder / "e_0.mcap").read_bytes() == before and numbers(folder) == list(range(50))


def test_a_recording_is_never_overwritten_by_a_recovered_one(tmp_path):
    partial = record(tmp_path / "e")
    (tmp_path / "e").mkdir()
    with pytest.raises(DataError, match="exists as well"):
        recover(partial, "killed")
    assert partial.is_dir()


def test_types_are_those_of_the_type_store(tmp_path):
    with AnyReader([recover(record(tmp_path / "e"), "killed").folder]) as reader:
        assert all(c.digest == STORE.hash_rihs01(c.msgtype) for c in reader.connections)


@pytest.mark.parametrize("compression", [CompressionType.NONE, CompressionType.ZSTD, CompressionType.LZ4])
def test_a_reader_that_recovers_goes_on_behind_a_damaged_length(tmp_path, compression):
    ten = [("/joint_states", i * SECOND, joint_state(i * SECOND, position=(i, -i))) for i in range(10)]
    whole = write_mcap(tmp_path / "whole.mcap", ten, compression=compression, chunk_size=100).read_bytes()
    with (tmp_path / "whole.mcap").open("rb") as stream:
        second = make_reader(stream).get_summary().chunk_indexes[1]
    for at in (second.chunk_start_offset, second.chunk_start_offset + second.chunk_length):  # of the chunk, of its message index
        for byte in (0, 1, 2, 4, 8):
            broken = bytearray(whole)
            broken[at + byte] ^= 2
            (tmp_path / "broken.mcap").write_bytes(broken)
            left = [int(m.message.position[0]) for m in Bag.open(tmp_path / "broken.mcap", recover=True).messages()]
            assert set(left) >= set(range(10)) - {1, 2} and left == sorted(left), (at, byte)
