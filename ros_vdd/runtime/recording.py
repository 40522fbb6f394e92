# SPDX-License-Identifier: Apache-2.0
"""Episodes as an operator makes them, out of messages that come all the time: the side that never waits for a disk."""

from __future__ import annotations

import re
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path

from ros_vdd.config import dump_yaml
from ros_vdd.data.bag import ROBOT_KEY, TASK_KEY
from ros_vdd.data.bag_writer import BagWriter, Qos
from ros_vdd.data.cdr import definition_text
from ros_vdd.data.cdr_header import has_header, header_stamp_ns
from ros_vdd.errors import DataError, RosVddError
from ros_vdd.runtime.recording_gate import StartGate
from ros_vdd.runtime.recording_latched import Latched
from ros_vdd.runtime.recording_live import LiveCheck
from ros_vdd.runtime.recording_loss import SequenceGaps
from ros_vdd.runtime.recording_options import RecordingOptions
from ros_vdd.runtime.recording_queue import WriteQueue
from ros_vdd.runtime.recording_reply import Note, Reply, at_once
from ros_vdd.runtime.recording_ring import Received, Ring
from ros_vdd.runtime.recording_shelf import Shelf, outcome, recover_all
from ros_vdd.runtime.recording_take import Finished, Take
from ros_vdd.streams.spec import RobotSpec

OPERATOR_KEY, REVISION_KEY = "ros_vdd.operator", "ros_vdd.revision"
SPACE_PERIOD_NS = 500_000_000
GB = 1e9
_TASK = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class EpisodeRecorder:
    """Turns requests and received messages into recordings. One thread calls it, and never waits for a disk.

    Args:
        root: folder of all tasks; it is made when missing.
        task: what is demonstrated; letters, digits, _ and -.
        robot: the robot file; it travels inside every recording.
        topics: name as recorded -> message type, all of the robot.
        required: those of `topics` without which an episode is worth nothing.
        clock: [ns] steady time.
        latched: those of `topics` whose newest message counts however old it is. An episode begins with it, at the log time of
            its first message; they are never silent.
        options: how episodes are written.
        operator, revision: who records, and with which software; "" where that isn't known.
        free: [bytes] free space on the disk of a folder.
        threaded: False: all is written before a request returns.

    Raises:
        DataError: the task name can't be a folder name, or a type is not a standard one.
    """

    def __init__(
        self,
        root: Path,
        task: str,
        robot: RobotSpec,
        topics: Mapping[str, str],
        required: Iterable[str],
        clock: Callable[[], int],
        latched: Iterable[str] = (),
        options: RecordingOptions = RecordingOptions(),
        operator: str = "",
        revision: str = "",
        free: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
        threaded: bool = True,
    ) -> None:
        if not _TASK.fullmatch(task):
            raise DataError(f"task '{task}' can't be a folder name; use letters, digits, _ and -, at most 64")
        for type_name in topics.values():
            definition_text(type_name)  # takes 0.1 s once; in `start` it would hold up the messages
        self.topics = dict(topics)
        """Name as recorded -> message type of everything that is recorded."""
        self.notes: deque[Note] = deque()
        """What happened without a request, oldest first; whoever tells it takes it out."""
        self._shelf = Shelf(root / task, options.ros_distro)
        about = {ROBOT_KEY: dump_yaml(robot), TASK_KEY: task, OPERATOR_KEY: operator, REVISION_KEY: revision}
        self._custom_data = {key: text for key, text in about.items() if text}
        self._robot, self._clock, self._options, self._free = robot, clock, options, free
        latched = frozenset(latched)
        self._latched, self._of_robot = Latched(latched), frozenset(topics)
        self.gate = StartGate(list(required), latched, clock, options.silent_after_s)
        self.live = LiveCheck(robot, clock())
        self._gaps, self._ring = SequenceGaps(), Ring(options.pre_roll_s, options.pre_roll_mb * 1e6)
        self._qos: dict[str, Sequence[Qos]] = {}
        self._take: Take | None = None
        self._ended = ""  # why the last episode ended by itself, until the operator was told
        self._space_looked_ns, self._threaded = 0, threaded
        self._queue = WriteQueue(self._share(), self._idle, options.chunk_s / 2, threaded)
        self._post("recovering unfinished episodes", lambda: self.notes.extend(recover_all(root, options.ros_distro)))

    @property
    def recording(self) -> bool:
        """Whether an episode is being recorded."""
        return self._take is not None and self._take.goes_on

    @property
    def waiting_bytes(self) -> int:
        """[bytes] of messages that wait for the disk."""
        return self._queue.bytes

    @property
    def error(self) -> Exception | None:
        """What went wrong in the writing thread that nobody foresaw."""
        return self._queue.error

    def add_topic(self, topic: str, type_name: str) -> None:
        """Record one more topic from now on.

        Raises:
            DataError: the type is not a standard one.
        """
        definition_text(type_name)
        self.topics[topic] = type_name
        self._queue.topic_bytes = self._share()
        if self._take is not None:
            add = partial(self._take.add_topic, topic, type_name, self._qos.get(topic, ()))
            self._post(f"taking in {topic}", add)

    def offer(self, topic: str, qos: Sequence[Qos]) -> None:
        """Take note of what the publishers of a topic offer; it is written into the bags that begin from now on.

        Of a topic beside the robot's whose publishers are all transient local, episodes begin with the newest message of each.
        """
        self._qos[topic] = tuple(qos)
        if topic not in self._of_robot:
            self._latched.offer(topic, qos)

    def receive(self, topic: str, log_time_ns: int, data: bytes, sequence: int | None = None, publisher: bytes = b"") -> None:
        """Take one message as it came; it is written while an episode is being recorded.

        Args:
            topic: one of `topics`.
            log_time_ns: [ns] when it was received, by the clock of the recordings.
            data: CDR bytes.
            sequence: its number at its publisher; None where the middleware doesn't tell.
            publisher: which publisher that is.
        """
        now_ns = self._clock()
        missing = 0 if sequence is None else self._gaps.missing(topic, publisher, sequence)
        self.gate.hear(topic, now_ns)
        stamp_ns = header_stamp_ns(data) if has_header(self.topics[topic]) else None
        self.live.hear(topic, now_ns, None if stamp_ns is None else log_time_ns - stamp_ns, missing)
        message = Received(topic, log_time_ns, data, sequence or 0, missing, now_ns, publisher)
        take = self._take
        if take is not None and take.goes_on:
            self._hand_over(take, message)
        else:
            for gone in self._ring.push(message):
                self._latched.hear(gone)

    def lose(self, topic: str, count: int) -> None:
        """Count messages of which the middleware says that they are lost; not where it numbers them."""
        self.live.lose(topic, count)
        if self._take is not None and self._take.goes_on:
            self._take.losses.add("dds", topic, count)

    def start(self) -> Future[Reply]:
        """Begin an episode; refused while one is being recorded, a required topic is silent, or the disk is nearly full."""
        if self._take is not None and self._take.goes_on:
            return at_once(Reply(False, f"{_name(self._take)} is being recorded; stop or discard it first"))
        if problems := self.gate.problems(self.topics):
            return at_once(Reply(False, f"not started: {'; '.join(problems)}"))
        for gone in self._ring.expire(self._clock()):  # too old for the episode, but a goal may be among it
            self._latched.hear(gone)
        before = self._ring.take()
        take = Take(self._open_bag, self._robot, dict(self.topics), self._latched.opening(), before, on_failure=self._failed)
        seen: set[str] = set()
        for message in before:
            take.losses.add("dds", message.topic, message.missing if message.topic in seen else 0)
            seen.add(message.topic)
            self._latched.hear(message)
        self._take, self._ended = take, ""
        return self._queue.submit(partial(self._begin, take))

    def stop(self) -> Future[Reply]:
        """Complete the episode and tell what it holds, and its verdict."""
        take, self._take = self._take, None
        if take is None or not take.goes_on:
            itself = take.closing or take.ended if take is not None else ""
            told, self._ended = self._ended or itself or "nothing is being recorded", ""
            return at_once(Reply(False, told))
        return self._queue.submit(partial(self._finish, take))

    def discard(self) -> Future[Reply]:
        """Move the episode being recorded, else the last finished one, to the trash."""
        take, self._take = self._take, None
        return self._queue.submit(partial(self._discard, take if take is not None and take.goes_on else None))

    def undo_discard(self) -> Future[Reply]:
        """Bring the episode discarded last back to its place."""
        return self._queue.submit(self._shelf.undo_discard)

    def mark_success(self, success: bool) -> Future[Reply]:
        """Say whether the demonstration did what it was to do: the one being recorded, else the last finished one."""
        if self._take is not None and self._take.goes_on:
            self._take.success = success
            return at_once(Reply(True, f"this episode is marked as {outcome(success)}"))
        return self._queue.submit(partial(self._shelf.mark, success))

    def settle(self) -> None:
        """Write what waits in the calling thread, where there is no other."""
        self._queue.drain()
        self._idle()

    def close(self) -> Reply | None:
        """Complete the episode that is being recorded, if one is, and end the writing thread; wait for both."""
        reply = self.stop() if self.recording else None
        self._queue.close()
        return reply.result() if reply is not None else None

    def _share(self) -> float:
        return self._options.queue_mb * 1e6 / max(len(self.topics), 1)

    def _hand_over(self, take: Take, message: Received) -> None:
        take.losses.add("dds", message.topic, message.missing)
        write = partial(take.write, message.topic, message.log_time_ns, message.data, message.sequence)
        if not self._queue.put(message.topic, len(message.data), write):
            take.losses.add("queue", message.topic)
            self.live.lose(message.topic)
        self._latched.hear(message)

    def _post(self, what: str, job: Callable[[], object]) -> None:
        self._queue.post(job, partial(self._unforeseen, what))

    # From here on: in the writing thread.

    def _unforeseen(self, what: str, error: Exception) -> None:
        self.notes.append(Note("error", f"{what} failed: {type(error).__name__}: {error}"))

    def _begin(self, take: Take) -> Reply:
        try:
            folder = take.open()
        except (OSError, RosVddError) as error:
            take.ended = take.ended or str(error)
            return Reply(False, f"not started: {error}")
        if take.ended:  # while what came before the start was being written
            return Reply(False, f"not started: {take.ended}")
        return Reply(True, f"recording {folder}")

    def _open_bag(self, topics: Mapping[str, str]) -> BagWriter:
        folder = self._shelf.next_folder()
        if problem := self._too_little_space():
            raise DataError(problem)
        options = self._options
        return BagWriter(
            folder,
            topics,
            self._custom_data,
            self._clock,
            chunk_s=options.chunk_s,
            fsync_s=options.fsync_s,
            ros_distro=options.ros_distro,
            qos=self._qos,
            split_bytes=options.split_gb * GB or None,
            split_s=options.split_s or None,
            sync_beside=self._threaded,
        )

    def _finish(self, take: Take, why: str = "") -> Reply:
        if take.bag is None or take.ended:  # the disk refused while what waited was being written
            return Reply(False, self._ended or take.ended)
        try:
            return self._finished(take.finish(why))
        except OSError as error:
            take.ended = f"a write error ended it: {error}"
            take.bag.abandon()
            return Reply(False, self._salvage(take))

    def _finished(self, done: Finished) -> Reply:
        self._shelf.last = done.folder
        return Reply(True, str(done))

    def _failed(self, take: Take) -> None:
        """Tell at once that the disk refused; the bag is completed behind all that still waits, which is lost."""
        self._ended = f"{_name(take)} ended: {take.ended}"
        self.notes.append(Note("error", self._ended))
        self._post(f"completing {_name(take)}", partial(self._salvage, take))

    def _salvage(self, take: Take) -> str:
        try:
            done = take.salvage(self._options.ros_distro)
        except (OSError, RosVddError) as error:
            where = take.bag.partial if take.bag else self._shelf.folder
            self._shelf.last = None  # discard and mark meant this one; they must not hit the one before
            text = f"{_name(take)} ended: {take.ended}. Nor could it be completed ({error}); what was written lies in {where}"
        else:
            self._shelf.last = done.folder
            text = f"{_name(take)} ended: {take.ended}. What was written is complete: {done}"
        self._ended = text
        self.notes.append(Note("error", text))
        return text

    def _idle(self) -> None:
        take = self._take
        if take is None or take.bag is None or take.ended:
            return
        take.flush_if_due()
        now_ns = self._clock()
        if take.goes_on and now_ns - self._space_looked_ns >= SPACE_PERIOD_NS:
            self._space_looked_ns = now_ns
            if problem := self._too_little_space():
                take.closing = problem
                self._post(f"completing {_name(take)}", partial(self._end_early, take))

    def _end_early(self, take: Take) -> None:
        reply = self._finish(take, take.closing)
        if reply.success:
            self._ended = f"ended early: {take.closing}. {reply.message}"
            self.notes.append(Note("error", self._ended))

    def _too_little_space(self) -> str:
        free_gb = self._free(self._shelf.folder) / GB
        floor = self._options.min_free_gb
        return f"{free_gb:.2f} GB free in {self._shelf.folder}, min_free_gb is {floor:g}" if free_gb < floor else ""

    def _discard(self, take: Take | None) -> Reply:
        stopped = self._finish(take) if take is not None else Reply(True, "")
        return self._shelf.discard() if stopped.success else stopped


def _name(take: Take) -> str:
    return take.bag.folder.name if take.bag else "the episode"
