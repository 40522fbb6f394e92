# SPDX-License-Identifier: Apache-2.0
"""`ros-vdd convert` over many bags: any number of processes, killed or not, gives one store; formats go round."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from make_bags import write_bag
from test_bag_convert import arm, bag_of, camera, commands, robot

from ros_vdd import cli
from ros_vdd.config import dump_yaml
from ros_vdd.data import episodes
from ros_vdd.data.bag_convert import episodes_from_bag
from ros_vdd.data.episodes import EpisodeStore
from ros_vdd.data.folder_lock import lock_folder
from ros_vdd.errors import ConfigError, DataError
from ros_vdd.offline import convert as convert_verb
from ros_vdd.offline import convert_staging, convert_work
from ros_vdd.offline.convert_outputs import open_output
from ros_vdd.offline.convert_staging import staging_folder, staging_path

NAMES = ("first", "second", "third", "fourth")


def events(number):
    """A demonstration of its own length; the second one has a gap, so that it becomes two episodes."""
    ticks = [*range(4), *range(8, 12)] if number == 1 else range(5 + number)
    return camera(ticks), arm(range(number, 1300, 10)), commands(range(40, 1300, 100))


@pytest.fixture
def root(tmp_path):
    (tmp_path / "robot.yaml").write_text(dump_yaml(robot()), encoding="utf-8")
    for number, name in enumerate(NAMES):
        bag_of(tmp_path / name, *events(number))
    return tmp_path


def convert(root, *more, sources=NAMES, out="store", robot_file="robot.yaml"):
    command = [
        "convert",
        *(str(root / s) for s in sources),
        "--robot",
        str(root / robot_file),
        "--out",
        str(root / out),
        "--no-progress",
    ]
    return cli.run([*command, *more])


def content(folder):
    """All files of a store but for the paths that meta.yaml names."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_any_number_of_jobs_gives_the_same_store_byte_by_byte(root):
    convert(root)
    convert(root, "--jobs", "3", out="parallel")
    assert content(root / "parallel") == content(root / "store")
    found = [(e.meta["source"].rpartition("/")[2], e.meta["segment"]) for e in EpisodeStore(root / "store")]
    assert found == [("first", 0), ("second", 0), ("second", 1), ("third", 0), ("fourth", 0)]
    assert not list(root.glob(".*"))


def test_a_second_run_adds_nothing_and_a_grown_list_only_what_is_new(root, capsys):
    convert(root, sources=NAMES[:2])
    before = content(root / "store")
    convert(root, sources=NAMES[:2])
    assert content(root / "store") == before and "0 episodes" in capsys.readouterr().out.splitlines()[-1]
    convert(root)
    convert(root, out="whole")
    assert content(root / "whole") == content(root / "store")


@pytest.mark.parametrize("dies_at", [0, 2, 4])
def test_killed_after_any_episode_the_next_run_completes_the_same_store(dies_at, root, monkeypatch):
    convert(root, out="whole")
    taken, take = 0, episodes.EpisodeWriter.take

    def dying(self, folder, **more):
        nonlocal taken
        if taken == dies_at:
            raise KeyboardInterrupt
        taken += 1
        return take(self, folder, **more)

    monkeypatch.setattr(episodes.EpisodeWriter, "take", dying)
    with pytest.raises(KeyboardInterrupt):
        convert(root)
    monkeypatch.undo()
    left = EpisodeStore(root / "store") if (root / "store").exists() else []
    assert [len(e["action"]) == e.length for e in left] == [True] * dies_at
    convert(root)
    assert content(root / "whole") == content(root / "store")


def test_a_killed_run_s_staged_episodes_never_count(root, monkeypatch):
    (root / ".store.staging" / "000000_000000").mkdir(parents=True)
    (root / ".store.staging" / "000000_000000" / "meta.yaml").write_text("half")
    convert(root)
    assert len(EpisodeStore(root / "store")) == 5 and not (root / ".store.staging").exists()


@pytest.mark.parametrize("form", ["store", "rosbag2"])
def test_the_folder_one_stands_in_can_be_written(form, root, monkeypatch):
    convert(root, "--format", form, sources=NAMES[:1])
    (root / "here").mkdir()
    monkeypatch.chdir(root / "here")
    arguments = ["convert", str(root / "first"), "--robot", str(root / "robot.yaml"), "--format", form, "--out", "."]
    assert cli.run([*arguments, "--no-progress"]) == 0
    assert sorted(os.listdir()) == sorted(os.listdir(root / "store"))


@pytest.mark.parametrize("form", ["store", "lerobot", "rosbag2"])
def test_onto_a_mount_point_nothing_is_moved_from_another_file_system(form, root, monkeypatch):
    if form == "lerobot":
        pytest.importorskip("pyarrow", reason="LeRobotDatasets need pyarrow")
        pytest.importorskip("av", reason="LeRobotDatasets need PyAV")
    store, replace = root / "store", os.replace

    def within(source, target):
        if store.resolve() not in Path(source).resolve().parents:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        replace(source, target)

    store.mkdir()
    (store / ".store.staging").mkdir()  # left by a run that was killed
    monkeypatch.setattr(Path, "is_mount", lambda path: path == store.resolve())
    monkeypatch.setattr(os, "replace", within)
    convert(root, "--format", form, sources=NAMES[:2])
    convert(root, "--format", form, sources=NAMES[:3])
    assert not (store / ".store.staging").exists() and not (root / ".store.staging").exists()
    assert len(list(store.glob("episode_*" if form != "lerobot" else "data/*/*.parquet"))) == 4


def test_where_beside_it_nothing_may_be_written_episodes_wait_within(root, monkeypatch):
    (root / "store").mkdir()
    assert staging_path(root / "store") == root / ".store.staging"
    monkeypatch.setattr(os, "access", lambda path, mode: path != root)
    assert staging_path(root / "store") == root / "store" / ".store.staging"


def test_a_file_is_no_folder_to_write_to(root):
    (root / "store").touch()
    with pytest.raises(DataError, match="store' exists and is no episode store; choose another --out"):
        convert(root)


@pytest.mark.parametrize("begun", [False, True])
def test_two_at_once_into_one_folder_the_second_is_refused_and_the_first_unharmed(begun, root, monkeypatch):
    """The second comes when the first opens what it writes to: what is there already is read under the lock, too."""
    convert(root, out="whole")
    if begun:
        convert(root, sources=NAMES[:1])
    opened = []

    def opening(*args):
        if not opened:
            opened.append(args)
            with pytest.raises(DataError, match="another ros-vdd convert is writing '.*store'; wait for it, or choose another"):
                convert(root)
        return open_output(*args)

    monkeypatch.setattr(convert_verb, "open_output", opening)
    convert(root)
    assert opened and content(root / "store") == content(root / "whole") and not (root / ".store.staging").exists()


@pytest.mark.parametrize("made_again", [False, True])
def test_a_lock_on_a_folder_that_is_gone_is_none(made_again, root, monkeypatch):
    """The one before removes the folder between our opening it and our lock."""
    calls = []

    def late(folder):
        calls.append(folder)
        lock = lock_folder(folder)
        if len(calls) == 1:
            folder.rmdir()
            if made_again:
                folder.mkdir()
        return lock

    monkeypatch.setattr(convert_staging, "lock_folder", late)
    with staging_folder(root / "store") as folder:
        assert len(calls) == 2 and folder.is_dir()
        with pytest.raises(DataError, match="another ros-vdd convert"), staging_folder(root / "store"):
            pass
        assert folder.is_dir()
    assert not folder.exists()


def test_a_refused_bag_ends_the_run_or_is_told_at_its_end(root, capsys):
    (root / "second" / "second.mcap").write_bytes(b"no mcap at all")
    with pytest.raises(DataError, match=r"second.mcap' is not an MCAP file \('.*' has the 1 episode before it; --keep-going goes on"):
        convert(root, "--jobs", "2")
    assert len(EpisodeStore(root / "store")) == 1
    assert convert(root, "--keep-going") == 1
    told = capsys.readouterr().out.splitlines()
    assert told[-2].startswith(f"refused {root / 'second'}: ") and told[-1].endswith("; 1 skipped; 1 refused")
    assert [e.meta["source"].rpartition("/")[2] for e in EpisodeStore(root / "store")] == ["first", "third", "fourth"]


@pytest.mark.parametrize("only, kept", [("warn", 3), ("accept", 2)])
def test_takes_of_a_worse_verdict_are_left_out(only, kept, root, capsys):
    for name, verdict in (("second", "warn"), ("third", "reject"), ("fourth", "accept")):
        shutil.rmtree(root / name)
        group = sorted((e for g in events(NAMES.index(name) + 4) for e in g), key=lambda e: e[1])
        write_bag(root / name, group, custom_data={"ros_vdd.verdict": verdict})
    convert(root, "--only", only)
    store = EpisodeStore(root / "store")
    assert len(store) == kept and all(e.meta.get("verdict", "accept") != "reject" for e in store)
    assert "third: the recorder's verdict is reject" in capsys.readouterr().out
    convert(root, sources=["third"])
    assert len(EpisodeStore(root / "store")) == kept + 1


def test_clock_and_stale_reach_the_converter(root):
    convert(root, "--clock", "images.top", "--stale", "keep", sources=["second"])
    (expected, _), *more = episodes_from_bag(root / "second", robot(), clock="images.top", stale="keep")
    store = EpisodeStore(root / "store")
    np.testing.assert_array_equal(store[0]["stamp_ns"], expected["stamp_ns"])
    assert len(store) == 1 + len(more)
    with pytest.raises(DataError, match="clock 'top' is no observed stream"):
        convert(root, "--clock", "top", sources=["first"], out="other")


def test_a_store_becomes_bags_and_those_the_same_store(root):
    convert(root)
    convert(root, "--format", "rosbag2", sources=["store"], out="bags", robot_file="robot.yaml")
    bags = sorted(p.name for p in (root / "bags").glob("episode_*"))
    assert bags == [f"episode_{k:06d}" for k in range(5)]
    convert(root, sources=[f"bags/{name}" for name in bags], robot_file="bags/robot.yaml", out="again")
    for was, now in zip(EpisodeStore(root / "store"), EpisodeStore(root / "again")):
        for name in ("images.top", "state", "action", "stamp_ns"):
            np.testing.assert_array_equal(was[name], now[name])
    convert(root, "--format", "rosbag2", sources=["store"], out="bags")
    assert len(list((root / "bags").glob("episode_*"))) == 5


def test_a_store_becomes_a_lerobot_data_set_and_that_the_same_store(root):
    pytest.importorskip("pyarrow", reason="LeRobotDatasets need pyarrow")
    pytest.importorskip("av", reason="LeRobotDatasets need PyAV")
    convert(root)
    convert(root, "--format", "lerobot", "--video", "lossless", "--jobs", "2", sources=["store"], out="set")
    convert(root, sources=["set"], out="again")
    assert len(EpisodeStore(root / "again")) == 5
    for was, now in zip(EpisodeStore(root / "store"), EpisodeStore(root / "again")):
        assert set(was) == set(now)
        for name in was:
            np.testing.assert_array_equal(was[name], now[name])
    before = content(root / "set")
    convert(root, "--format", "lerobot", "--video", "lossless", sources=["store"], out="set")
    assert content(root / "set") == before


@pytest.mark.parametrize(
    "step, call, count", [("finish", 0, 4), ("_write_info", 0, 1), ("_write_info", 1, 1), ("_write_info", 2, 1)]
)
def test_a_data_set_whose_writer_was_killed_is_completed_by_the_next_run(step, call, count, root, monkeypatch):
    pytest.importorskip("pyarrow", reason="LeRobotDatasets need pyarrow")
    pytest.importorskip("av", reason="LeRobotDatasets need PyAV")
    from ros_vdd.data.lerobot_writer import LeRobotWriter

    lossless = ("--format", "lerobot", "--video", "lossless")
    convert(root, *lossless, sources=NAMES[:count], out="whole")
    original, calls = getattr(LeRobotWriter, step), 0

    def dying(self, *args):
        nonlocal calls
        calls += 1
        if calls > call:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(LeRobotWriter, step, dying)
    with pytest.raises(KeyboardInterrupt):
        convert(root, *lossless, sources=NAMES[:count], out="set")
    monkeypatch.undo()
    convert(root, *lossless, sources=NAMES[:count], out="set")
    assert content(root / "set") == content(root / "whole")


def test_a_store_needs_no_robot_file(root):
    convert(root)
    assert cli.run(["convert", str(root / "store"), "--out", str(root / "copy"), "--no-progress"]) == 0
    assert EpisodeStore(root / "copy").robot == EpisodeStore(root / "store").robot
    with pytest.raises(DataError, match="store' is a source; choose another --out"):
        cli.run(["convert", str(root / "store"), "--out", str(root / "store"), "--no-progress"])


@pytest.mark.parametrize("form", ["store", "lerobot", "rosbag2"])
def test_a_folder_of_something_else_is_told_before_anything_is_read(form, root, monkeypatch):
    (root / "store").mkdir()
    (root / "store" / "thesis.tex").touch()
    monkeypatch.setattr(convert_work, "read", None)
    with pytest.raises(DataError, match="choose another --out"):
        convert(root, "--format", form)
    assert os.listdir(root / "store") == ["thesis.tex"]


def ended_from_outside(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_is_told_and_hangs_nothing(root, monkeypatch):
    monkeypatch.setattr(convert_work, "_convert", ended_from_outside)
    with pytest.raises(DataError, match="a process was ended from outside.*fewer --jobs"):
        convert(root, "--jobs", "2")
    assert not list(root.glob(".*")) and not (root / "store").exists()


@pytest.mark.parametrize("value", ["0", "-2"])
def test_no_jobs_are_refused(value, root):
    with pytest.raises(ConfigError, match="'jobs' is"):
        convert(root, "--jobs", value)
