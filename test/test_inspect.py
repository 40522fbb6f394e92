# SPDX-License-Identifier: Apache-2.0
"""Inspect tells of bags, stores and policies what is known in closed form, as JSON and as a table."""

import argparse
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from make_bags import SECOND, joint_state, write_bag, write_mcap

from ros_vdd.bundle import Manifest, write
from ros_vdd.config import to_plain
from ros_vdd.data.bag import Bag
from ros_vdd.data.episodes import EpisodeWriter
from ros_vdd.errors import ConfigError, DataError, PolicyError
from ros_vdd.offline import inspect, inspect_bag
from ros_vdd.offline.inspect_bag import _Seen
from ros_vdd.streams.spec import load_robot

MS = 1_000_000


def inspected(capsys, path: Path, *options: str) -> str:
    parser = argparse.ArgumentParser()
    inspect.add_arguments(parser)
    assert inspect.run(parser.parse_args([str(path), *options])) == 0
    return capsys.readouterr().out


@pytest.fixture
def bag(tmp_path):
    """Joint states at 10 Hz, 4 ms on the way, with a gap of half a second at 1.0 s, and one without a stamp."""
    times = [*range(0, 1100, 100), *range(1500, 2100, 100)]
    events = [("/arm", SECOND + ms * MS, joint_state(SECOND + (ms - 4) * MS)) for ms in times]
    events.append(("/arm", SECOND + 2100 * MS, joint_state(0)))
    return write_bag(tmp_path / "bag", events, custom_data={"a": "b\nc"})


def test_what_is_kept_of_a_joint_is_a_time_and_a_number_of_eight_bytes_each(tmp_path):
    names, count = [f"joint_{i}" for i in range(20)], 1000
    events = [("/arm", SECOND + i * MS, joint_state(SECOND, names, np.arange(20) + i / 7)) for i in range(count)]
    bag = Bag.open(write_bag(tmp_path / "long", events))
    tracemalloc.start()
    try:
        seen = _Seen(bag)
        for _ in seen.watch(bag.raw_messages(bag.topics)):
            pass
        traces = tracemalloc.take_snapshot().traces
        kept = sum(trace.size for trace in traces if trace.traceback[0].filename == inspect_bag.__file__)
    finally:
        tracemalloc.stop()
    assert kept / (20 * count) < 20
    (times, positions) = seen.joint_series(SECOND)["/arm"]["joint_3"]
    assert times == pytest.approx(np.arange(count) / 1e3, abs=1e-12)
    assert positions == pytest.approx(3 + np.arange(count) / 7, abs=1e-12)


def test_a_bag_s_rate_gap_and_clock_are_measured(bag, capsys):
    told = json.loads(inspected(capsys, bag, "--json"))
    topic = told["topics"]["/arm"]
    assert (told["kind"], told["storage"], told["custom_data"]) == ("bag", "mcap", {"a": "b\nc"})
    assert (topic["count"], topic["unstamped"], topic["undecodable"]) == (18, 1, "")
    assert topic["rate_hz"] == pytest.approx(17 / 2.1)
    assert (topic["largest_gap_s"], topic["largest_gap_at_s"]) == (0.5, 0.9 + 0.1)
    assert topic["log_minus_header_s"] == pytest.approx([0.004] * 3)


def test_a_bag_s_table_has_a_row_for_each_topic(bag, capsys):
    table = inspected(capsys, bag)
    assert "/arm   sensor_msgs/msg/JointState  18        8.10       0.500 at 1.0" in table
    assert "1 with stamp zero" in table and "a: b ... (2 lines)" in table


def test_a_topic_that_can_not_be_decoded_is_still_counted(tmp_path, capsys):
    events = [("/arm", 0, joint_state(0)), ("/arm", SECOND, joint_state(0))]
    path = write_mcap(tmp_path / "json.mcap", events, encoding="json")
    topic = json.loads(inspected(capsys, path, "--json"))["topics"]["/arm"]
    assert (topic["count"], topic["rate_hz"], topic["log_minus_header_s"]) == (2, 1.0, None)
    assert "'json'" in topic["undecodable"]


def test_a_store_s_frames_and_ranges_are_told(tmp_path, capsys):
    store = EpisodeWriter(tmp_path / "store", load_robot("pusht"))
    for first, count in ((0, 5), (10, 3)):
        rows = np.arange(first, first + count, dtype=np.float32)
        images = np.zeros((count, 96, 96, 3), np.uint8)
        vectors = np.stack([rows, -rows], axis=1)
        stamps = np.arange(count, dtype=np.int64)
        store.add({"images.top": images, "state": vectors, "action": vectors * 2, "stamp_ns": stamps}, {"source": "x"})
    told = json.loads(inspected(capsys, tmp_path / "store", "--json"))
    assert {k: told[k] for k in ("kind", "robot", "episodes", "frames", "shortest", "longest", "duration_s")} == {
        "kind": "episodes",
        "robot": "pusht",
        "episodes": 2,
        "frames": 8,
        "shortest": 3,
        "longest": 5,
        "duration_s": 0.8,
    }
    assert told["arrays"]["state"] == {"shape": [2], "dtype": "float32", "min": [0, -12], "max": [12, 0]}
    assert told["arrays"]["images.top"]["min"] is None
    assert "2 episodes of 3 to 5 frames, 8 frames (0.8 s)" in inspected(capsys, tmp_path / "store")


@pytest.fixture
def policy(tmp_path):
    manifest = Manifest(
        name="tiny", kind="mixture", robot=to_plain(load_robot("pusht")), network={}, n_obs_steps=2, horizon=16,
        n_action_steps=8, experts=4, scores={"success_rate": 0.5}, provenance={"method": "vdd"},
    )
    return write(tmp_path / "tiny", manifest, {"weights.safetensors": b"12345"}).path


def test_a_policy_s_shapes_and_scores_are_told(policy, capsys):
    told = json.loads(inspected(capsys, policy, "--json"))
    assert (told["kind"], told["policy_kind"], told["experts"], told["robot"]) == ("policy", "mixture", 4, "pusht")
    assert told["inputs"] == {"images.top": [2, 96, 96, 3], "state": [2, 2]}
    assert told["files"]["weights.safetensors"] == 5 and told["scores"] == {"success_rate": 0.5}
    text = inspected(capsys, policy)
    assert "tiny, mixture of 4 experts" in text
    assert "scores.success_rate: 0.5" in text and "provenance.method: vdd" in text


def test_a_damaged_policy_and_a_missing_path_are_refused(policy, tmp_path, capsys):
    (policy / "weights.safetensors").write_bytes(b"12344")
    with pytest.raises(PolicyError, match="damaged or was edited"):
        inspected(capsys, policy)
    with pytest.raises(ConfigError, match="no file or folder '.*nothing'; available: .*tiny.*"):
        inspected(capsys, tmp_path / "nothing")
    with pytest.raises(DataError, match="is no bag"):
        inspected(capsys, tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match="expected a name that ends in .mcap or .db3"):
        inspected(capsys, tmp_path / "notes.txt")
    (tmp_path / "demos.zarr").mkdir()
    with pytest.raises(DataError, match="ros-vdd convert"):
        inspected(capsys, tmp_path / "demos.zarr")


def test_a_truncated_bag_is_described_on_request_only(tmp_path, capsys):
    path = write_mcap(tmp_path / "cut.mcap", [("/arm", i, joint_state(i)) for i in range(20)])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match="ask for recovery"):
        inspected(capsys, path)
    assert "warning: left out: it ends in the middle" in inspected(capsys, path, "--recover")
