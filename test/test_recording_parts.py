# SPDX-License-Identifier: Apache-2.0
"""What a recorder is made of: a bounded queue, counted losses, a ring of the last seconds, figures, the live check."""

import threading

import pytest
from make_bags import SECOND, T, joint_state, serialize, text

from ros_vdd.config import parse_yaml, to_plain
from ros_vdd.data.cdr_header import has_header, header_stamp_ns
from ros_vdd.errors import ConfigError
from ros_vdd.runtime.recording_live import LiveCheck
from ros_vdd.runtime.recording_loss import Losses, SequenceGaps
from ros_vdd.runtime.recording_meter import MAX_AGES, TopicMeter
from ros_vdd.runtime.recording_options import RecordingOptions
from ros_vdd.runtime.recording_queue import WriteQueue
from ros_vdd.runtime.recording_ring import Received, Ring
from ros_vdd.runtime.revision import revision
from ros_vdd.streams.spec import load_robot, robot_from_mapping

MS = 1_000_000
CAMERA = "/camera/image_raw"


def test_a_full_topic_is_refused_and_another_is_not():
    queue, done = WriteQueue(100, threaded=False), []
    assert [queue.put("/camera", 60, lambda: done.append("c")) for _ in range(2)] == [True, False]
    assert queue.put("/joints", 60, lambda: done.append("j")) and queue.bytes == 120
    assert queue.submit(lambda: done.append("job") or "answer").result() == "answer"
    assert done == ["c", "j", "job"] and queue.bytes == 0
    assert queue.put("/camera", 1000, lambda: None)  # one message always finds room: else it could never be recorded


def test_a_job_waits_for_no_disk_and_keeps_the_order():
    gate, done = threading.Event(), []
    queue = WriteQueue(100)
    queue.put("/a", 1, gate.wait)
    first, second = queue.submit(lambda: done.append(1)), queue.submit(lambda: done.append(2))
    assert not first.done()
    gate.set()
    second.result(timeout=10)
    assert done == [1, 2]
    queue.close()
    assert queue.submit(lambda: 3).result(timeout=1) == 3  # after the end it is done at once


def test_idle_is_called_also_while_something_always_waits():
    idled, over = threading.Event(), threading.Event()
    queue = WriteQueue(100, idle=idled.set, period_s=0.001)

    def again():
        if not over.is_set():
            queue.put("/a", 1, again)

    again()
    idled.clear()
    seen = idled.wait(timeout=5)
    over.set()
    queue.close()
    assert seen


def test_what_a_job_raises_is_told_to_who_asked_and_a_message_s_error_to_the_owner():
    queue = WriteQueue(100, threaded=False)
    queue.put("/a", 1, lambda: 1 / 0)
    with pytest.raises(KeyError):
        queue.submit({}.popitem).result()
    assert isinstance(queue.error, ZeroDivisionError)


def test_what_a_job_raises_that_nobody_waits_for_is_told():
    queue, told = WriteQueue(100, threaded=False), []
    queue.post({}.popitem, told.append)
    queue.post(lambda: None, told.append)
    assert [type(error) for error in told] == [KeyError] and queue.error is None


def test_gaps_are_found_for_each_publisher_of_a_topic():
    gaps = SequenceGaps()
    assert [gaps.missing("/a", b"x", n) for n in (5, 6, 9, 10)] == [0, 0, 2, 0]
    assert [gaps.missing("/a", b"y", n) for n in (1, 3)] == [0, 1]
    assert gaps.missing("/b", b"x", 100) == 0
    assert gaps.missing("/a", b"x", 10) == 0  # a latched message that came again


def test_losses_add_up_over_causes():
    losses = Losses()
    losses.add("dds", "/a", 3)
    losses.add("queue", "/a")
    losses.add("disk", "/b", 2)
    losses.add("dds", "/c", 0)
    assert losses.by_topic() == {"/a": 4, "/b": 2} and losses.of("/c") == 0
    assert losses.by_cause() == {"/a": {"dds": 3, "queue": 1}, "/b": {"disk": 2}}


def held(topic, heard_ms, size=1):
    return Received(topic, heard_ms * MS, bytes(size), 0, 0, heard_ms * MS)


def test_the_ring_holds_the_last_seconds_and_gives_them_once():
    ring = Ring(0.1, 1e9)
    gone = [m.heard_ns // MS for i in range(20) for m in ring.push(held("/a", 10 * i))]
    assert gone == [10 * i for i in range(10)]
    assert [m.heard_ns // MS for m in ring.expire(210 * MS)] == [100, 110]
    assert [m.heard_ns // MS for m in ring.take()] == [120, 130, 140, 150, 160, 170, 180, 190]
    assert ring.take() == [] and ring.bytes == 0


def test_the_ring_is_bounded_by_bytes_and_may_hold_nothing():
    ring = Ring(100.0, 25)
    assert [len(ring.push(held("/a", i, 10))) for i in range(4)] == [0, 0, 1, 1] and ring.bytes == 20
    assert len(Ring(0.0, 1e9).push(held("/a", 5))) == 1


def test_figures_of_a_topic_are_those_of_its_times():
    meter = TopicMeter()
    for i in (0, 1, 2, 3, 7, 8):
        meter.add(SECOND + i * 100 * MS, SECOND + i * 100 * MS - 5 * MS)
    health = meter.health(SECOND, SECOND + 900 * MS, lost=2)
    assert (health.messages, health.lost, health.age_s) == (6, 2, 0.005)
    assert health.rate_hz == pytest.approx(5 / 0.8) and health.largest_gap_s == pytest.approx(0.4)
    assert meter.health(SECOND - 500 * MS, SECOND + 900 * MS).largest_gap_s == pytest.approx(0.5)
    assert TopicMeter().health(0, 3 * SECOND).largest_gap_s == 3.0


@pytest.mark.parametrize("phase_ms", [0, 1, 50, 99])
def test_the_rate_of_a_topic_that_died_or_began_late_is_that_over_the_whole_take(phase_ms):
    rates = []
    for begin, end in ((0, 100), (0, 10), (90, 100)):  # periods of 100 ms, of the 100 of a take
        meter = TopicMeter()
        for i in range(begin, end):
            meter.add((phase_ms + 100 * i) * MS)
        rates.append(meter.health(0, 10 * SECOND).rate_hz)
    assert rates == pytest.approx([10.0, 1.1, 1.1])


def test_the_median_age_of_a_long_take_needs_bounded_memory():
    meter = TopicMeter()
    for i in range(3 * MAX_AGES):
        meter.add(i * MS + 1, i * MS + 1 - (10 * MS if i % 3 else 20 * MS))
    assert len(meter._ages) < MAX_AGES and meter.health(0, 1).age_s == 0.010


@pytest.fixture
def live():
    return LiveCheck(load_robot("pusht"), 0)


def test_the_live_check_tells_what_began_and_what_is_over_and_nothing_twice(live):
    topics = {CAMERA: "sensor_msgs/msg/Image", "/tf": "tf2_msgs/msg/TFMessage"}
    limit_ms = round(load_robot("pusht").cameras["top"].max_age_s * 1000)
    said = []
    for second in range(5):
        silent = second in (1, 2)
        for i in range(0 if silent else 10):
            live.hear(CAMERA, (second * 1000 + i * 100) * MS, 4 * MS, 0)
        if second == 3:
            live.lose("/tf", 2)
        healths = live.look(topics, (second + 1) * SECOND)
        said.append(live.changes(live.findings(healths)))
    assert limit_ms < 1000
    assert said[0] == [] and said[2] == []
    assert said[1][0].startswith(f"{CAMERA} silent for 1.1") and len(said[1]) == 1
    assert said[3] == ["/tf lost 2 of 2 messages", f"{CAMERA} is well again (silent before)"]
    assert said[4] == ["/tf is well again (lost before)"]


def test_a_silence_grows_from_look_to_look(live):
    live.hear(CAMERA, 0, None, 0)
    gaps = [live.look({CAMERA: ""}, second * SECOND)[CAMERA].largest_gap_s for second in (1, 2, 3)]
    assert gaps == [1.0, 2.0, 3.0]


def test_a_silence_that_spans_a_look_is_told_once(live):
    said = []
    for ms in [*range(0, 850, 100), *range(1150, 3000, 100)]:  # 350 ms of silence, of which the look at 1 s sees 200
        if ms > 1000 * (len(said) + 1):
            said.append(live.changes(live.findings(live.look({CAMERA: ""}, (len(said) + 1) * SECOND))))
        live.hear(CAMERA, ms * MS, None, 0)
    said.append(live.changes(live.findings(live.look({CAMERA: ""}, 3 * SECOND))))
    limit_s = load_robot("pusht").cameras["top"].max_age_s
    assert 0.2 < limit_s < 0.35
    assert said == [[], [f"{CAMERA} silent for 0.35 s, limit {limit_s:g} s"], [f"{CAMERA} is well again (silent before)"]]


def test_a_topic_that_never_came_is_silent_since_the_beginning(live):
    gaps = [live.look({CAMERA: ""}, second * SECOND)[CAMERA].largest_gap_s for second in (1, 2)]
    assert gaps == [1.0, 2.0]


def test_a_slow_and_an_old_topic_are_told_with_their_limits():
    plain = {**to_plain(load_robot("pusht")), "quality": {"min_rate_hz": {"camera/image_raw": 20.0}}}
    live = LiveCheck(robot_from_mapping(plain), 0)
    for i in range(10):
        live.hear(CAMERA, i * 100 * MS, 3 * SECOND, 0)
    kinds = {f.kind: f.text for f in live.findings(live.look({CAMERA: ""}, SECOND))}
    assert set(kinds) == {"slow", "old"} and "10.0 Hz, at least 20 Hz" in kinds["slow"] and "3.000 s old" in kinds["old"]


@pytest.mark.parametrize("little", [True, False])
def test_the_stamp_of_a_header_is_read_without_decoding(little):
    data = bytes(serialize(joint_state(7 * SECOND + 5)))
    if not little:  # only what is looked at, as a big-endian machine writes it
        data = b"\0\0\0\0" + data[4:8][::-1] + data[8:12][::-1] + data[12:]
    assert header_stamp_ns(data) == 7 * SECOND + 5
    assert header_stamp_ns(serialize(joint_state(0))) is None and header_stamp_ns(b"\0\1\0\0") is None


def test_types_that_begin_with_a_header_are_known_by_their_definition():
    assert has_header("sensor_msgs/msg/Image") and has_header("sensor_msgs/msg/Joy")
    assert not has_header("std_msgs/msg/String") and not has_header("tf2_msgs/msg/TFMessage")
    assert not hasattr(text("x"), "header") and "header" in T["sensor_msgs/msg/Image"].__dataclass_fields__


@pytest.mark.parametrize("wrong", [{"chunk_s": 0.0}, {"min_free_gb": -1.0}, {"split_s": float("inf")}, {"queue_mb": 0.0}])
def test_options_without_meaning_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        RecordingOptions(**wrong)


def test_the_revision_is_that_of_the_checkout_or_the_version(tmp_path):
    assert revision(tmp_path).startswith("ros_vdd ")
    assert parse_yaml(f"revision: {revision()}")["revision"]
