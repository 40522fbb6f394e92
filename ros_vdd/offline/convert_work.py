# SPDX-License-Identifier: Apache-2.0
"""Units converted side by side in processes, and handed over in their own order."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from ros_vdd.errors import DataError, RosVddError
from ros_vdd.offline.convert_outputs import stage
from ros_vdd.offline.convert_sources import VERDICTS, Options, Unit, content_key, read, verdict_of
from ros_vdd.streams.spec import RobotSpec


@dataclass(frozen=True)
class Job:
    """What every worker knows.

    Attributes:
        staging: folder for episodes on their way, on the file system of the output.
        done: by content, how many episodes of a unit are in the output, and whether these are all.
    """

    robot: RobotSpec
    options: Options
    form: str
    video: str
    staging: Path
    done: dict[str, tuple[int, bool]]


@dataclass(frozen=True)
class Result:
    """What became of one unit.

    Attributes:
        folders: its staged episodes; those that are in the output already aren't staged again.
        first: number of the first of them within the unit.
        skipped, refused: why there are none, in words.
    """

    unit: Unit
    key: str = ""
    folders: tuple[Path, ...] = ()
    first: int = 0
    frames: int = 0
    warnings: tuple[str, ...] = ()
    skipped: str | None = None
    refused: str | None = None


def convert_unit(job: Job, number: int, unit: Unit) -> Result:
    """Convert one unit into staged episodes; a refusal is a result, not an exception."""
    try:
        if job.options.only is not None:
            verdict = verdict_of(unit, job.robot)
            if verdict in VERDICTS and VERDICTS.index(verdict) > VERDICTS.index(job.options.only):
                return Result(unit, skipped=f"the recorder's verdict is {verdict}")
        key = content_key(unit, job.robot, job.options)
        there, complete = job.done.get(key, (0, False))
        if complete:
            return Result(unit, key, skipped=f"the same content is there already ({there} episodes)")
        folders, frames, warnings = [], 0, []
        for segment, (arrays, meta) in enumerate(read(unit, job.robot, job.options)):
            warnings += [w for w in meta.get("warnings", ()) if w not in warnings]
            if segment < there:
                continue
            folder = job.staging / f"{number:06d}_{segment:06d}"
            stage(job.form, folder, job.robot, job.video, arrays, {**meta, "source_sha256": key, "segment": segment})
            folders.append(folder)
            frames += len(arrays["action"])
    except (RosVddError, OSError) as error:
        return Result(unit, refused=str(error))
    return Result(unit, key, tuple(folders), there, frames, tuple(warnings))


def convert_units(job: Job, units: Sequence[Unit], jobs: int) -> Iterator[Result]:
    """Yield the result of each unit in the order given, at most `jobs` at work at once.

    Raises:
        DataError: a process died, which the system does to one that takes too much memory.
    """
    if jobs == 1 or len(units) == 1:
        yield from (convert_unit(job, number, unit) for number, unit in enumerate(units))
        return
    pool = ProcessPoolExecutor(min(jobs, len(units)), get_context("spawn"), _begin, (job,))
    try:
        yield from pool.map(_convert, range(len(units)), units)
    except BrokenProcessPool as error:
        raise DataError(
            "a process was ended from outside, for want of memory perhaps; run the command again with fewer --jobs: it goes on"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_JOB: list[Job] = []


def _begin(job: Job) -> None:
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted, and ends its workers
    cv2.setNumThreads(1)  # the processes share the cores already
    _JOB[:] = [job]


def _convert(number: int, unit: Unit) -> Result:
    return convert_unit(_JOB[0], number, unit)
