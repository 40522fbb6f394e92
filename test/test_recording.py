# SPDX-License-Identifier: Apache-2.0
"""An operator's requests: start is refused while a topic is silent, an episode is never lost by a discard."""

import os
import threading

import numpy as np
import pytest
from make_bags import SECOND, image, joint_state, serialize, text, trajectory
from mcap.reader import make_reader

from ros_vdd.config import parse_yaml, to_plain
from ros_vdd.data.bag import Bag
from ros_vdd.data.bag_convert import episodes_from_bag
from ros_vdd.errors import DataError
from ros_vdd.runtime.recording import EpisodeRecorder
from ros_vdd.runtime.recording_options import RecordingOptions
from ros_vdd.streams.spec import load_robot, robot_from_mapping

TOPICS = {"/joint_states": "sensor_msgs/msg/JointState", "/rumour": "sensor_msgs/msg/JointState"}
DATA = serialize(joint_state(0))
ROBOT = load_robot("pusht")


@pytest.fixture(autouse=True)
def no_sync(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)  # takes 20 ms on a disk


class Clock:
    now_ns = 5 * SECOND

    def __call__(self):
        return self.now_ns


@pytest.fixture
def clock():
    return Clock()


def make(root, clock, topics=TOPICS, required=("/joint_states",), **options):
    """A recorder without a thread: all is written when a request is answered."""
    names = ("latched", "free", "operator", "revision", "robot", "threaded")
    own = {name: options.pop(name) for name in names if name in options}
    options = RecordingOptions(**{"min_free_gb": 0.0, **options})
    robot = own.pop("robot", ROBOT)
    return EpisodeRecorder(root, "push", robot, topics, required, clock, options=options, **{"threaded": False, **own})


def ask(future):
    assert future.done()
    return future.result()


@pytest.fixture
def recorder(tmp_path, clock):
    return make(tmp_path, clock)


def demonstrate(recorder, messages=3):
    recorder.receive("/joint_states", 0, DATA)
    started = ask(recorder.start())
    for i in range(messages):
        recorder.receive("/joint_states", i, DATA)
    return started


def test_start_is_refused_while_a_required_topic_never_came(recorder, tmp_path):
    reply = ask(recorder.start())
    assert not reply.success
    assert reply.message == "not started: /joint_states (sensor_msgs/msg/JointState) never came"
    assert list(tmp_path.rglob("*")) == []


def test_start_is_refused_when_a_topic_has_fallen_silent(recorder, clock):
    recorder.receive("/joint_states", 0, DATA)
    clock.now_ns += 3 * SECOND // 2
    assert ask(recorder.start()).message == "not started: /joint_states is silent for 1.5 s, limit 1 s"


def test_only_what_comes_between_start_and_stop_is_recorded(recorder, tmp_path):
    assert demonstrate(recorder).success and recorder.recording
    reply = ask(recorder.stop())
    assert reply.success and "3 messages (/joint_states 3, /rumour 0)" in reply.message
    recorder.receive("/joint_states", 9, DATA)
    bag = Bag.open(tmp_path / "push" / "episode_000000")
    assert [m.log_time_ns for m in bag.messages()] == [0, 1, 2]


def test_the_robot_file_travels_in_the_bag(recorder, tmp_path):
    demonstrate(recorder)
    ask(recorder.stop())
    custom = Bag.open(tmp_path / "push" / "episode_000000").custom_data
    (tmp_path / "robot.yaml").write_text(custom["ros_vdd.robot"])
    assert load_robot(tmp_path / "robot.yaml") == load_robot("pusht")
    assert custom["ros_vdd.task"] == "push"


def test_a_recorded_episode_converts(tmp_path, clock):
    robot = load_robot("pusht")
    topics = {f"/{topic}": type_name for topic, type_name in robot.topics().items()}
    recorder = make(tmp_path, clock, topics, ())
    assert ask(recorder.start()).success
    for k in range(5):
        stamp = 7 * SECOND + k * SECOND // 10
        messages = {
            "/camera/image_raw": image(stamp, np.full((96, 96, 3), k)),
            "/joint_states": joint_state(stamp, position=(k, -k)),
            "/joint_trajectory_controller/joint_trajectory": trajectory(stamp, positions=(10 + k, 0)),
        }
        for delay, (topic, message) in enumerate(messages.items()):
            recorder.receive(topic, stamp + delay, serialize(message))
    assert ask(recorder.stop()).success
    ((arrays, meta),) = episodes_from_bag(tmp_path / "push" / "episode_000000", robot)
    assert arrays["images.top"][:, 5, 5, 0].tolist() == [0, 1, 2, 3, 4]
    assert arrays["state"].tolist() == [[k, -k] for k in range(5)]
    assert arrays["action"].tolist() == [[10 + k, 0] for k in range(5)]
    assert (meta["task"], meta["warnings"]) == ("push", [])


def test_start_twice_and_stop_twice_are_refused(recorder):
    demonstrate(recorder)
    assert "is being recorded" in ask(recorder.start()).message
    assert ask(recorder.stop()).success
    assert ask(recorder.stop()) == (False, "nothing is being recorded")


def test_a_discarded_episode_comes_back_in_its_place(recorder, tmp_path):
    demonstrate(recorder)
    assert ask(recorder.discard()).success and not recorder.recording
    assert not (tmp_path / "push" / "episode_000000").exists()
    demonstrate(recorder)
    ask(recorder.stop())
    assert ask(recorder.undo_discard()).success
    names = sorted(p.name for p in (tmp_path / "push").glob("episode_*"))
    assert names == ["episode_000000", "episode_000001"]
    assert ask(recorder.undo_discard()).message == "nothing was discarded since the recorder started"


def test_discard_after_stop_means_the_last_episode_and_only_once(recorder, tmp_path):
    demonstrate(recorder)
    ask(recorder.stop())
    demonstrate(recorder)
    ask(recorder.stop())
    assert ask(recorder.discard()).success
    assert not ask(recorder.discard()).success
    assert [p.name for p in (tmp_path / "push").glob("episode_*")] == ["episode_000000"]


def test_numbers_go_on_after_a_restart_a_crash_and_a_discard(recorder, tmp_path, clock):
    for left in ("episode_000003", "episode_000004.partial", ".trash/episode_000007"):
        (tmp_path / "push" / left).mkdir(parents=True)
    assert "episode_000008" in demonstrate(recorder).message


def test_a_full_disk_ends_the_episode_with_the_reason_and_a_complete_bag(recorder, tmp_path, clock, monkeypatch):
    demonstrate(recorder)
    recorder.settle()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ros_vdd.data.mcap_writer.McapWriter.sync", full)
    clock.now_ns += 2 * SECOND
    recorder.receive("/joint_states", 5, DATA)
    recorder.receive("/joint_states", 6, DATA)
    recorder.settle()
    assert not recorder.recording
    first, last = recorder.notes
    assert first.level == "error" and first.text.startswith("episode_000000 ended: a write error ended it: [Errno 28] No space")
    assert "What was written is complete" in last.text
    reply = ask(recorder.stop())
    assert not reply.success and "No space left" in reply.message
    bag = Bag.open(tmp_path / "push" / "episode_000000")
    recorded = bag.topics["/joint_states"].count
    assert recorded >= 3 and bag.custom_data["ros_vdd.verdict"] == "reject"
    assert parse_yaml(bag.custom_data["ros_vdd.lost"]) == {"/joint_states": 5 - recorded}
    monkeypatch.undo()
    assert "episode_000001" in demonstrate(recorder).message
    assert ask(recorder.stop()).success


def test_what_lay_in_memory_when_the_disk_refused_is_counted_as_lost_to_it(recorder, tmp_path, clock, monkeypatch):
    demonstrate(recorder)
    clock.now_ns += SECOND
    recorder.settle()
    clock.now_ns += SECOND
    recorder.settle()  # three are on the disk

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ros_vdd.data.mcap_writer.McapWriter.flush", full)
    take(recorder, range(1, 5))
    clock.now_ns += SECOND
    recorder.settle()
    take(recorder, [9])  # the episode is over
    assert "lost: /joint_states 4" in recorder.notes[-1].text
    assert parse_yaml(custom(tmp_path)["ros_vdd.lost_by_cause"]) == {"/joint_states": {"disk": 4}}
    assert Bag.open(tmp_path / "push" / "episode_000000").topics["/joint_states"].count == 3


def test_discard_and_mark_never_hit_the_episode_before_one_that_could_not_be_completed(recorder, tmp_path, clock, monkeypatch):
    demonstrate(recorder)
    ask(recorder.stop())
    demonstrate(recorder)
    recorder.settle()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ros_vdd.data.mcap_writer.McapWriter.sync", full)
    monkeypatch.setattr("ros_vdd.runtime.recording_take.recover", full)
    clock.now_ns += 2 * SECOND
    recorder.settle()
    assert "Nor could it be completed" in recorder.notes[-1].text
    assert ask(recorder.discard()) == (False, "no finished episode to discard")
    assert ask(recorder.mark_success(False)) == (False, "no finished episode to mark")
    assert "ros_vdd.success" not in custom(tmp_path)


@pytest.mark.parametrize("task", ["../up", "a/b", "", "a b", ".hidden"])
def test_a_task_that_leaves_the_folder_is_refused(tmp_path, clock, task):
    with pytest.raises(DataError, match="folder name"):
        EpisodeRecorder(tmp_path, task, load_robot("pusht"), TOPICS, [], clock)


@pytest.fixture
def told(tmp_path, clock):
    """A recorder of a robot with a goal."""
    topics = {"/goal": "std_msgs/msg/String", **TOPICS}
    return make(tmp_path, clock, topics, ["/goal", "/joint_states"], latched=["/goal"])


def goals(folder):
    return [(m.log_time_ns, m.message.data) for m in Bag.open(folder).messages(["/goal"])]


def test_every_episode_begins_with_the_goal_that_was_latched(told, tmp_path, clock):
    told.receive("/goal", 1, serialize(text("push")))
    clock.now_ns += 100 * SECOND
    for first in (1000, 2000):
        assert demonstrate(told, 0).success  # the goal is old, not silent
        told.receive("/joint_states", first, DATA)
        told.receive("/goal", first + 1, serialize(text("pull")))
        assert ask(told.stop()).success
    assert goals(tmp_path / "push" / "episode_000000") == [(1000, "push"), (1001, "pull")]
    assert goals(tmp_path / "push" / "episode_000001") == [(2000, "pull"), (2001, "pull")]
    first = next(Bag.open(tmp_path / "push" / "episode_000000").messages())
    assert first.topic == "/goal"  # before the message of the same time: the goal counts for it


def offered(durability):
    return [{"durability": durability}]


def heard_of(folder, topic="/tf_static"):
    return [(m.log_time_ns, m.message.data) for m in Bag.open(folder).messages([topic])]


def test_every_episode_begins_with_the_newest_message_of_each_publisher_of_a_latched_extra_topic(recorder, tmp_path):
    recorder.offer("/tf_static", 2 * offered("transient_local"))
    recorder.add_topic("/tf_static", "std_msgs/msg/String")
    for data, publisher in (("camera", b"c"), ("old arm", b"a"), ("arm", b"a")):
        recorder.receive("/tf_static", 1, serialize(text(data)), 1, publisher)
    demonstrate(recorder, 0)
    recorder.receive("/joint_states", 1000, DATA)
    recorder.receive("/tf_static", 1001, serialize(text("new camera")), 2, b"c")
    ask(recorder.stop())
    demonstrate(recorder, 0)
    recorder.receive("/tf_static", 2000, serialize(text("moved arm")), 3, b"a")
    ask(recorder.stop())
    assert heard_of(tmp_path / "push" / "episode_000000") == [(1000, "camera"), (1000, "arm"), (1001, "new camera")]
    assert heard_of(tmp_path / "push" / "episode_000001") == [(2000, "arm"), (2000, "new camera"), (2000, "moved arm")]


def test_only_extra_topics_that_are_latched_by_all_publishers_open_an_episode(recorder, tmp_path):
    recorder.offer("/joint_states", offered("transient_local"))  # of the robot: an old command would be an action
    recorder.offer("/told", offered("transient_local"))
    recorder.add_topic("/told", "std_msgs/msg/String")
    recorder.receive("/told", 1, serialize(text("x")))
    recorder.offer("/told", [])  # its publisher is gone: what it said holds
    demonstrate(recorder)
    ask(recorder.stop())
    recorder.offer("/told", [*offered("transient_local"), *offered("volatile")])
    demonstrate(recorder)
    ask(recorder.stop())
    counts = [{t: i.count for t, i in Bag.open(tmp_path / "push" / f"episode_{n:06d}").topics.items()} for n in (0, 1)]
    assert [(c["/told"], c["/joint_states"]) for c in counts] == [(1, 3), (0, 3)]


def test_a_goal_that_comes_first_takes_the_place_of_the_latched_one(told, tmp_path):
    told.receive("/goal", 1, serialize(text("push")))
    demonstrate(told, 0)
    told.receive("/goal", 5, serialize(text("lift")))
    told.receive("/joint_states", 6, DATA)
    ask(told.stop())
    assert goals(tmp_path / "push" / "episode_000000") == [(5, "lift")]


def test_start_is_refused_while_no_goal_was_given(told):
    assert demonstrate(told, 0).message == "not started: /goal (std_msgs/msg/String) never came"


def take(recorder, numbers, topic="/joint_states", step_ms=10, begin_ms=0):
    for k, number in enumerate(numbers):
        recorder.receive(topic, (begin_ms + k * step_ms) * 1_000_000, DATA, number, b"p")


def custom(root, number=0):
    return Bag.open(root / "push" / f"episode_{number:06d}").custom_data


def test_published_is_recorded_and_reported_lost(tmp_path, clock):
    recorder = make(tmp_path, clock, queue_mb=2 * 3 * len(DATA) / 1e6)  # three messages of each topic may wait
    take(recorder, [1])
    recorder.start()
    take(recorder, [2, 3, 6, 7, 8, 9])  # 4 and 5 are lost in the middleware; 7, 8 and 9 find no room
    reply = ask(recorder.stop())
    causes = parse_yaml(custom(tmp_path)["ros_vdd.lost_by_cause"])["/joint_states"]
    count = Bag.open(tmp_path / "push" / "episode_000000").topics["/joint_states"].count
    assert (count, causes) == (3, {"dds": 2, "queue": 3}) and "lost: /joint_states 5" in reply.message
    assert parse_yaml(custom(tmp_path)["ros_vdd.lost"]) == {"/joint_states": 5}


def test_topics_found_later_share_the_memory_of_the_queue(tmp_path, clock):
    recorder = make(tmp_path, clock, queue_mb=2 * 4 * len(DATA) / 1e6)  # four messages of each of two topics
    for topic in ("/a", "/b"):
        recorder.add_topic(topic, "sensor_msgs/msg/JointState")
    take(recorder, [1])
    recorder.start()
    take(recorder, [2, 3, 4, 5])  # two of each of four
    ask(recorder.stop())
    assert parse_yaml(custom(tmp_path)["ros_vdd.lost_by_cause"]) == {"/joint_states": {"queue": 2}}


def test_the_verdict_is_said_and_stored_with_its_reasons(tmp_path, clock):
    robot = robot_from_mapping({**to_plain(ROBOT), "quality": {"min_duration_s": 0.5}})
    topics = {f"/{topic}": type_name for topic, type_name in robot.topics().items()}
    recorder = make(tmp_path, clock, topics, (), robot=robot, operator="ann", revision="abc")
    for seconds, level in ((0.6, "accept"), (0.4, "reject")):
        recorder.start()
        for topic in topics:
            take(recorder, [None] * round(seconds * 100 + 1), topic)
        reply = ask(recorder.stop())
        assert f"verdict: {level}" in reply.message and reply.success
    assert custom(tmp_path, 0)["ros_vdd.verdict"] == "accept" and custom(tmp_path, 0)["ros_vdd.reasons"] == ""
    assert custom(tmp_path, 1)["ros_vdd.reasons"] == "lasted 0.400 s, at least 0.5 s is asked for"
    assert (custom(tmp_path)["ros_vdd.operator"], custom(tmp_path)["ros_vdd.revision"]) == ("ann", "abc")


def test_success_is_marked_while_recording_and_afterwards(recorder, tmp_path):
    assert ask(recorder.mark_success(True)) == (False, "no finished episode to mark")
    demonstrate(recorder)
    assert ask(recorder.mark_success(True)).success
    ask(recorder.stop())
    assert custom(tmp_path)["ros_vdd.success"] == "true"
    assert ask(recorder.mark_success(False)) == (True, "episode_000000 is marked as a failure")
    assert custom(tmp_path)["ros_vdd.success"] == "false" and custom(tmp_path)["ros_vdd.task"] == "push"
    demonstrate(recorder)
    ask(recorder.stop())
    assert "ros_vdd.success" not in custom(tmp_path, 1)


def test_below_the_floor_of_free_space_no_episode_begins_and_one_in_progress_ends_complete(tmp_path, clock):
    free = [3e9]
    recorder = make(tmp_path, clock, free=lambda _: free[0], min_free_gb=2.0)
    assert demonstrate(recorder).success
    clock.now_ns += SECOND
    recorder.settle()
    assert recorder.recording
    free[0] = 1.5e9
    clock.now_ns += SECOND
    recorder.settle()
    assert not recorder.recording
    assert "1.50 GB free" in recorder.notes[-1].text and recorder.notes[-1].level == "error"
    assert "1.50 GB free" in ask(recorder.stop()).message
    assert Bag.open(tmp_path / "push" / "episode_000000").topics["/joint_states"].count == 3
    assert custom(tmp_path)["ros_vdd.verdict"] in ("warn", "reject") and "GB free" in custom(tmp_path)["ros_vdd.reasons"]
    refused = demonstrate(recorder)
    assert not refused.success and "min_free_gb is 2" in refused.message and not recorder.recording
    free[0] = 3e9
    assert "episode_000001" in demonstrate(recorder).message


def test_the_last_seconds_before_the_start_are_in_the_episode_and_in_no_other(tmp_path, clock):
    recorder = make(tmp_path, clock, pre_roll_s=0.05)
    for k in range(20):
        clock.now_ns += SECOND // 100
        take(recorder, [k], begin_ms=10 * k)
    assert ask(recorder.start()).success
    take(recorder, [20], begin_ms=200)
    ask(recorder.stop())
    assert ask(recorder.start()).success
    take(recorder, [21], begin_ms=210)
    ask(recorder.stop())
    times = [[m.log_time_ns // 1_000_000 for m in Bag.open(tmp_path / "push" / f"episode_{n:06d}").messages()] for n in (0, 1)]
    assert times == [[150, 160, 170, 180, 190, 200], [210]]


def test_start_is_answered_by_a_failure_where_the_disk_refuses_the_pre_roll(tmp_path, clock, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    recorder = make(tmp_path, clock, pre_roll_s=1.0)
    take(recorder, range(3))
    monkeypatch.setattr("ros_vdd.data.mcap_writer.McapWriter.write", full)
    reply = ask(recorder.start())
    assert not reply.success and reply.message.startswith("not started: a write error ended it: [Errno 28] No space left")
    assert not recorder.recording


def test_an_episode_with_a_pre_roll_begins_with_the_goal_in_force_then(tmp_path, clock):
    topics = {"/goal": "std_msgs/msg/String", **TOPICS}
    recorder = make(tmp_path, clock, topics, ["/goal"], latched=["/goal"], pre_roll_s=0.1)
    recorder.receive("/goal", 1, serialize(text("push")))
    clock.now_ns += SECOND
    take(recorder, [1], begin_ms=1000)
    recorder.receive("/goal", 1_050_000_000, serialize(text("pull")))
    take(recorder, [2], begin_ms=1060)
    ask(recorder.start())
    ask(recorder.stop())
    assert goals(tmp_path / "push" / "episode_000000") == [(1_000_000_000, "push"), (1_050_000_000, "pull")]
    ask(recorder.start())
    take(recorder, [3], begin_ms=2000)
    ask(recorder.stop())
    assert goals(tmp_path / "push" / "episode_000001") == [(2_000_000_000, "pull")]


def test_a_goal_that_came_long_before_the_pre_roll_with_nothing_after_it_is_in_the_episode(tmp_path, clock):
    topics = {"/goal": "std_msgs/msg/String", **TOPICS}
    recorder = make(tmp_path, clock, topics, ["/goal"], latched=["/goal"], pre_roll_s=0.1)
    recorder.receive("/goal", 1, serialize(text("push")))
    clock.now_ns += SECOND  # nothing comes meanwhile that would take its place in the ring
    assert ask(recorder.start()).success
    take(recorder, [1], begin_ms=1000)
    ask(recorder.stop())
    assert goals(tmp_path / "push" / "episode_000000") == [(1_000_000_000, "push")]


def test_what_a_crash_left_is_recovered_at_the_next_start(tmp_path, clock):
    first = make(tmp_path, clock)
    demonstrate(first)
    first.settle()
    clock.now_ns += SECOND
    first.settle()
    os.close(first._take.bag._lock)  # as the end of a process does
    (tmp_path / "push" / "episode_000001.partial").mkdir()
    (tmp_path / "other" / "episode_000000.partial").mkdir(parents=True)
    second = make(tmp_path, clock)
    assert "other/episode_000000.partial held no message" in second.notes.popleft().text  # of another task
    texts = [note.text for note in second.notes]
    assert "episode_000000 was left unfinished and is recovered: 3 messages (/joint_states 3, /rumour 0)" in texts[0]
    assert "episode_000001.partial held no message" in texts[1] and len(texts) == 2
    told = custom(tmp_path)
    assert told["ros_vdd.recovered"].startswith("the recorder ended without completing it") and told["ros_vdd.verdict"] == "warn"
    assert "episode_000002" in demonstrate(second).message


def test_one_folder_that_can_not_be_recovered_keeps_no_other_from_it(tmp_path, clock):
    for name in ("episode_000000.partial", "episode_000001.partial", ".trash/episode_000000.partial/full"):
        (tmp_path / "push" / name).mkdir(parents=True)
    first, second = make(tmp_path, clock).notes
    assert first.level == "error" and "episode_000000.partial not recovered: [Errno 39] Directory not empty" in first.text
    assert "episode_000001.partial held no message" in second.text


def test_what_ends_the_recovery_is_told(tmp_path, clock, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("nobody foresaw it")

    monkeypatch.setattr("ros_vdd.runtime.recording_shelf.unfinished", broken)
    (tmp_path / "push").mkdir()
    (note,) = make(tmp_path, clock).notes
    assert note == ("error", "recovering unfinished episodes failed: ZeroDivisionError: nobody foresaw it")


def test_another_recorder_s_episode_is_left_alone(tmp_path, clock):
    first = make(tmp_path, clock)
    demonstrate(first)
    assert not make(tmp_path, clock).notes
    assert ask(first.stop()).success


def test_a_topic_that_matches_but_can_t_be_recorded_refuses_the_start_by_name(recorder):
    recorder.gate.refused = {"/grip": "is lab_msgs/msg/Grip, whose definition isn't known"}
    assert demonstrate(recorder).message == "not started: /grip is lab_msgs/msg/Grip, whose definition isn't known"


def test_a_topic_found_during_an_episode_is_recorded_from_then_on(recorder, tmp_path):
    demonstrate(recorder)
    recorder.add_topic("/late", "std_msgs/msg/String")
    recorder.receive("/late", 9, serialize(text("x")))
    assert ask(recorder.stop()).success
    assert Bag.open(tmp_path / "push" / "episode_000000").topics["/late"].count == 1


def test_a_long_episode_is_split_and_is_one_bag(tmp_path, clock):
    recorder = make(tmp_path, clock, split_s=0.2)
    take(recorder, [0])
    recorder.start()
    take(recorder, range(1, 101))
    ask(recorder.stop())
    folder = tmp_path / "push" / "episode_000000"
    assert len(list(folder.glob("*.mcap"))) == 5 and Bag.open(folder).topics["/joint_states"].count == 100


def test_the_thread_that_receives_never_waits_for_the_disk(tmp_path, clock, monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr("ros_vdd.data.mcap_writer.McapWriter.sync", lambda self: gate.wait(30))
    recorder = make(tmp_path, clock, threaded=True)
    recorder.receive("/joint_states", 0, DATA)
    recorder.start()
    take(recorder, range(1, 51))
    stopped = recorder.stop()
    started = recorder.start()  # while the first one is being closed
    take(recorder, range(51, 101))
    assert not stopped.done() and not started.done()
    gate.set()
    assert "50 messages" in stopped.result(timeout=30).message
    assert "50 messages" in recorder.close().message


def test_numbers_go_on_in_the_bag(recorder, tmp_path):
    take(recorder, [6])
    recorder.start()
    take(recorder, [7, 8, 9])
    ask(recorder.stop())
    with (tmp_path / "push" / "episode_000000" / "episode_000000_0.mcap").open("rb") as stream:
        assert [message.sequence for _, _, message in make_reader(stream).iter_messages()] == [7, 8, 9]
