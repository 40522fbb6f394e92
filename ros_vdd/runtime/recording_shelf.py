# SPDX-License-Identifier: Apache-2.0
"""The folder of one task, where episodes lie, are discarded and come back.

    ROOT/TASK/episode_000000/            a finished episode
    ROOT/TASK/episode_000001.partial/    being recorded, or left by a crash until the recorder starts again
    ROOT/TASK/.trash/episode_000002/     discarded; the last one comes back by undo_discard

Numbers are never given twice, so a discarded episode always finds its place free again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ros_vdd.data.bag_metadata import amend_custom_data
from ros_vdd.data.bag_recovery import NothingLeft, recover, unfinished
from ros_vdd.errors import RosVddError
from ros_vdd.runtime.recording_reply import Note, Reply
from ros_vdd.runtime.recording_take import REASONS_KEY, SUCCESS_KEY, VERDICT_KEY

UNFINISHED = "the recorder ended without completing it"
_EPISODE = re.compile(r"episode_(\d{6})(\.partial)?")


class Shelf:
    """Episodes of one task. One thread calls it.

    Args:
        folder: of the task; it is made when missing.
        ros_distro: name of the ROS distribution, for recordings that are recovered.
    """

    def __init__(self, folder: Path, ros_distro: str = "") -> None:
        self.folder, self._trash = folder, folder / ".trash"
        self.last: Path | None = None
        """The finished episode that discard and mark mean."""
        self._discarded: list[Path] = []
        self._ros_distro = ros_distro

    def next_folder(self) -> Path:
        """Return the folder of a new episode, which does not exist yet; its parent does.

        Raises:
            OSError: the parent can't be made.
        """
        self._trash.mkdir(parents=True, exist_ok=True)
        names = [p.name for folder in (self.folder, self._trash) for p in folder.iterdir()]
        number = max((int(m[1]) for m in map(_EPISODE.fullmatch, names) if m), default=-1) + 1
        return self.folder / f"episode_{number:06d}"

    def discard(self) -> Reply:
        """Move the last finished episode to the trash."""
        if self.last is None:
            return Reply(False, "no finished episode to discard")
        target = self._trash / self.last.name
        try:
            self.last.rename(target)
        except OSError as error:
            return Reply(False, f"{self.last.name} not discarded: {error}")
        self._discarded.append(target)
        self.last = None
        return Reply(True, f"{target.name} is in {self._trash}; undo_discard brings it back")

    def undo_discard(self) -> Reply:
        """Bring the episode discarded last back to its place."""
        if not self._discarded:
            return Reply(False, "nothing was discarded since the recorder started")
        source = self._discarded[-1]
        try:
            self.last = source.rename(self.folder / source.name)
        except OSError as error:
            return Reply(False, f"{source.name} not brought back: {error}")
        self._discarded.pop()
        return Reply(True, f"{self.last} is back")

    def mark(self, success: bool) -> Reply:
        """Write into the last finished episode whether it did what it was to do."""
        if self.last is None:
            return Reply(False, "no finished episode to mark")
        try:
            amend_custom_data(self.last, {SUCCESS_KEY: str(success).lower()})
        except (OSError, RosVddError) as error:
            return Reply(False, f"{self.last.name} not marked: {error}")
        return Reply(True, f"{self.last.name} is marked as {outcome(success)}")

    def recover(self) -> Iterator[Note]:
        """Complete what a crash left, and say so; what holds no message goes to the trash."""
        for left in unfinished(self.folder):
            try:
                note = self._recover(left)
            except (OSError, RosVddError) as error:
                note = Note("error", f"{left} not recovered: {error}")
            yield note

    def _recover(self, left: Path) -> Note:
        try:
            done = recover(left, UNFINISHED, {VERDICT_KEY: "warn", REASONS_KEY: UNFINISHED}, self._ros_distro)
        except NothingLeft:
            self._trash.mkdir(exist_ok=True)
            left.rename(self._trash / left.name)
            return Note("warning", f"{left} held no message and is in {self._trash}")
        return Note("warning", f"{done.folder} was left unfinished and is recovered: {count(done.counts)}")


def recover_all(root: Path, ros_distro: str = "") -> Iterator[Note]:
    """Complete what a crash left of any task, and say so."""
    for folder in sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else ():
        yield from Shelf(folder, ros_distro).recover()


def outcome(success: bool) -> str:
    """Return what a demonstration was, in words."""
    return "a success" if success else "a failure"


def count(counts: dict[str, int]) -> str:
    """Return how many messages there are, by topic."""
    return f"{sum(counts.values())} messages ({', '.join(f'{topic} {number}' for topic, number in counts.items())})"
