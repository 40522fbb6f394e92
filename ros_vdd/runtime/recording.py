# SPDX-License-Identifier: Apache-2.0
"""Episodes as an operator makes them: start, stop, discard, undo; each one bag folder under its task.

    ROOT/TASK/episode_000000/            a finished episode
    ROOT/TASK/episode_000001.partial/    being recorded, or left by a crash
    ROOT/TASK/.trash/episode_000002/     discarded; the last one comes back by undo_discard

Numbers are never given twice, so a discarded episode always finds its place free again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from ros_vdd.config import dump_yaml
from ros_vdd.data.bag import ROBOT_KEY, TASK_KEY
from ros_vdd.data.bag_writer import BagWriter
from ros_vdd.data.cdr import definition_text
from ros_vdd.errors import DataError, RosVddError
from ros_vdd.streams.spec import RobotSpec

_TASK = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_EPISODE = re.compile(r"episode_(\d{6})(\.partial)?")


class Reply(NamedTuple):
    """The answer to an operator's request."""

    success: bool
    message: str


class EpisodeRecorder:
    """Turns requests and received messages into recordings. One thread calls it.

    Args:
        root: folder of all tasks; it is made when missing.
        task: what is demonstrated; letters, digits, _ and -.
        robot: the robot file; it travels inside every recording.
        topics: name as recorded -> message type, all topics to record.
        required: those of `topics` without which an episode is worth nothing.
        clock: [ns] steady time.
        silent_after_s: [s] a required topic without a message for so long is silent, and start is refused.
        latched: those of `topics` whose newest message counts however old it is. An episode begins with it, at the log time of
            its first message; they are never silent.
        writer_options: handed to `BagWriter`.

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
        silent_after_s: float = 1.0,
        latched: Iterable[str] = (),
        **writer_options,
    ) -> None:
        if not _TASK.fullmatch(task):
            raise DataError(f"task '{task}' can't be a folder name; use letters, digits, _ and -, at most 64")
        for type_name in topics.values():
            definition_text(type_name)  # takes 0.1 s once; in `start` it would hold up the messages
        self.failure = ""  # why the last recording ended by itself, "" when none did
        self._folder = root / task
        self._trash = self._folder / ".trash"
        self._custom_data = {ROBOT_KEY: dump_yaml(robot), TASK_KEY: task}
        self._topics, self._required = dict(topics), tuple(required)
        self._clock, self._silent_ns = clock, round(silent_after_s * 1e9)
        self._writer_options = writer_options
        self._heard_ns: dict[str, int] = {}
        self._latched = frozenset(latched)
        self._newest: dict[str, bytes] = {}  # message of each latched topic
        self._opening: dict[str, bytes] = {}  # those messages as an episode is to begin with
        self._writer: BagWriter | None = None
        self._last: Path | None = None  # the episode that discard means while none is being recorded
        self._discarded: list[Path] = []

    @property
    def recording(self) -> bool:
        """Whether an episode is being recorded."""
        return self._writer is not None

    def receive(self, topic: str, log_time_ns: int, data: bytes) -> None:
        """Take one message as it came; it is written while an episode is being recorded."""
        self._heard_ns[topic] = self._clock()
        if topic in self._latched:
            self._newest[topic] = data
        self._guard(lambda writer: self._write(writer, topic, log_time_ns, data))

    def tick(self) -> None:
        """Write what waits; call it a few times a second, so that a pause of all topics leaves nothing in memory."""
        self._guard(lambda writer: writer.flush_if_due())

    def start(self) -> Reply:
        """Begin an episode; refused while one is being recorded or a required topic is silent."""
        if self._writer:
            return Reply(False, f"{self._writer.folder.name} is being recorded; stop or discard it first")
        silent = [self._silence(topic) for topic in self._required if self._is_silent(topic)]
        if silent:
            return Reply(False, f"not started: {'; '.join(silent)}")
        try:
            self._trash.mkdir(parents=True, exist_ok=True)
            folder = self._folder / f"episode_{self._next_number():06d}"
            self._writer = BagWriter(folder, self._topics, self._custom_data, self._clock, **self._writer_options)
        except (OSError, RosVddError) as error:
            return Reply(False, f"not started: {error}")
        self.failure, self._last, self._opening = "", None, dict(self._newest)
        return Reply(True, f"recording {folder}")

    def stop(self) -> Reply:
        """Complete the episode."""
        if not self._writer:
            return Reply(False, self.failure or "nothing is being recorded")
        writer, self._writer = self._writer, None
        try:
            self._last = writer.close()
        except OSError as error:
            writer.abandon()
            return Reply(False, self._failed(writer, error))
        return Reply(True, f"{self._last}: {_count(writer.counts)}")

    def discard(self) -> Reply:
        """Move the episode being recorded, else the last finished one, to the trash."""
        if self._writer:
            stopped = self.stop()
            if not stopped.success:
                return stopped
        if self._last is None:
            return Reply(False, "nothing to discard since the recorder started")
        target = self._trash / self._last.name
        try:
            self._last.rename(target)
        except OSError as error:
            return Reply(False, f"{self._last.name} not discarded: {error}")
        self._discarded.append(target)
        self._last = None
        return Reply(True, f"{target.name} is in {self._trash}; undo_discard brings it back")

    def undo_discard(self) -> Reply:
        """Bring the episode discarded last back to its place."""
        if not self._discarded:
            return Reply(False, "nothing was discarded since the recorder started")
        source = self._discarded[-1]
        try:
            self._last = source.rename(self._folder / source.name)
        except OSError as error:
            return Reply(False, f"{source.name} not brought back: {error}")
        self._discarded.pop()
        return Reply(True, f"{self._last} is back")

    def _write(self, writer: BagWriter, topic: str, log_time_ns: int, data: bytes) -> None:
        """Write a message, before the first one what was latched; the message itself may already be newer than that."""
        opening, self._opening = self._opening, {}
        for name in opening.keys() - {topic}:
            writer.write(name, log_time_ns, opening[name])
        writer.write(topic, log_time_ns, data)

    def _guard(self, action: Callable[[BagWriter], None]) -> None:
        """Let the writer do something; a failing disk ends the episode and is told, never raised into a callback."""
        if not self._writer:
            return
        try:
            action(self._writer)
        except OSError as error:
            writer, self._writer = self._writer, None
            writer.abandon()
            self.failure = self._failed(writer, error)

    def _failed(self, writer: BagWriter, error: OSError) -> str:
        return f"{writer.folder.name} ended by a write error: {error}. What was written lies in {writer.partial}"

    def _is_silent(self, topic: str) -> bool:
        heard_ns = self._heard_ns.get(topic)
        return heard_ns is None or topic not in self._latched and self._clock() - heard_ns > self._silent_ns

    def _silence(self, topic: str) -> str:
        heard_ns = self._heard_ns.get(topic)
        if heard_ns is None:
            return f"{topic} ({self._topics[topic]}) never came"
        return f"{topic} is silent for {(self._clock() - heard_ns) / 1e9:.1f} s, limit {self._silent_ns / 1e9:g} s"

    def _next_number(self) -> int:
        names = [p.name for folder in (self._folder, self._trash) for p in folder.iterdir()]
        return max((int(m[1]) for m in map(_EPISODE.fullmatch, names) if m), default=-1) + 1


def _count(counts: Mapping[str, int]) -> str:
    return f"{sum(counts.values())} messages ({', '.join(f'{topic} {count}' for topic, count in counts.items())})"
