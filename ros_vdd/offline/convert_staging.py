# SPDX-License-Identifier: Apache-2.0
"""Where episodes wait until they are whole: on the file system of the output, for one `ros-vdd convert` at a time."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ros_vdd.data.folder_lock import lock_folder
from ros_vdd.errors import DataError


@contextlib.contextmanager
def staging_folder(out: str | Path) -> Iterator[Path]:
    """Give an empty folder from which `os.replace` reaches `out`; while it is there, nobody else gets it.

    Raises:
        DataError: another convert into `out` is running.
    """
    folder = staging_path(Path(out).resolve())
    try:
        lock = _locked(folder)
    except BlockingIOError as error:
        raise DataError(f"another ros-vdd convert is writing '{out}'; wait for it, or choose another --out") from error
    try:
        for left in folder.iterdir():  # by a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def staging_path(out: Path) -> Path:
    """Return the folder's path: beside `out`, or within where beside is another file system or can't be written."""
    within = out.is_mount() or out.is_dir() and not os.access(out.parent, os.W_OK)
    return (out if within else out.parent) / f".{out.name}.staging"


def _locked(folder: Path) -> int:
    """Return a lock on the folder that bears the name now; the one before us removes its own as it ends."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            lock = lock_folder(folder)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock), os.stat(folder)):
                    return lock
            os.close(lock)
